"""Devices: where networks run and are timed. One file per runtime, one line here for each."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import UserError, unknown_name

if TYPE_CHECKING:
    import onnx

__all__ = ["DEVICES", "Device", "DeviceRow", "Runner", "list_devices", "machine", "open_device"]


class Runner(Protocol):
    """A network that is loaded and ready."""

    def run(self) -> None:
        """One run on a fixed random input of the device's batch size; this is what is timed."""

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The output for images (N, C, H, W), float32, or uint8 as the model takes them; N is free where its first axis is."""


class Device(Protocol):
    """A runtime with its options: everything that changes a network's time, and its way to load one."""

    @property
    def name(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def precision(self) -> str: ...

    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, as JSON values; a key that cannot be read is absent."""

    def load(self, model: onnx.ModelProto | bytes) -> Runner:
        """Make a model ready. Raises whatever the runtime raises for a model that it cannot take."""


def machine() -> dict[str, Any]:
    """The part of a fingerprint that all devices on this machine share."""
    found = {
        "processor": _processor(),
        "logical_cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    }
    return {key: value for key, value in found.items() if value}


def _processor() -> str | None:
    lines = (_text(Path("/proc/cpuinfo")) or "").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return next(named, None) or platform.processor() or None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not every system has the file, nor lets us read it
        return None


# ---- the devices there are ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """How to open a device and what it needs."""

    open: Callable[[int, int, str], Device]
    package: str  # of the runtime; its version is the device's
    install: str


def _onnxruntime_cpu(threads: int, batch: int, precision: str) -> Device:
    from latency_tables.onnxruntime_cpu import OnnxRuntimeCpu

    return OnnxRuntimeCpu(threads=threads, batch=batch, precision=precision)


DEVICES: dict[str, _Entry] = {
    "onnxruntime-cpu": _Entry(_onnxruntime_cpu, "onnxruntime", "pip install onnxruntime"),
}


@dataclass(frozen=True)
class DeviceRow:
    """A line of the list of devices; ``version`` of the runtime is None where it is not installed."""

    name: str
    available: bool
    version: str | None
    install: str


def list_devices() -> list[DeviceRow]:
    """Every known device and whether its runtime is installed; imports no runtime."""
    return [DeviceRow(name, _installed(entry), _version(entry), entry.install) for name, entry in DEVICES.items()]


def open_device(name: str, *, threads: int = 1, batch: int = 1, precision: str = "fp32") -> Device:
    """A device by name.

    Args:
        threads: of the runtime; with more than one, times are comparable only on a machine with nothing else to do.
        batch: images per run.
        precision: of the arithmetic.

    Raises:
        UserError: an unknown name, a runtime that is not installed, or options that the device does not have.
    """
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES, command="nas devices")
    entry = DEVICES[name]
    if not _installed(entry):
        raise UserError(
            f"device '{name}' needs {entry.package}, which is not installed",
            allowed="Available here: " + (", ".join(row.name for row in list_devices() if row.available) or "none"),
            next_step=f"Install it with: {entry.install}",
        )
    if threads < 1 or batch < 1:
        raise UserError(
            f"device '{name}' with threads={threads}, batch={batch}",
            allowed="Both are whole numbers from 1",
            next_step="Correct the option",
        )
    return entry.open(threads, batch, precision)


def _installed(entry: _Entry) -> bool:
    return importlib.util.find_spec(entry.package) is not None


def _version(entry: _Entry) -> str | None:
    try:
        return metadata.version(entry.package)
    except metadata.PackageNotFoundError:
        return None
