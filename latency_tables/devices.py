"""The devices there are, and how a name becomes one: ``RUNTIME[:option=value,...]``, elsewhere ``ssh://HOST/RUNTIME...``."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from latency_tables.device import Device, Options
from latency_tables.isolated import Isolated, open_at
from latency_tables.standalone.runtime import PROVIDERS
from search_spaces.errors import UserError, unknown_name

__all__ = ["DEVICES", "REMOTE", "DeviceRow", "list_devices", "open_device", "parse_device"]


@dataclass(frozen=True)
class _Entry:
    """Where a device is made and what it needs.

    Attributes:
        home: ``MODULE:FUNCTION``, ``(kind, options) -> LocalDevice``; imported when the device is opened.
        module: that must be installed.
        distributions: one of them brings the module; its version is the device's.
        install: the command that gets it, one of our extras where there is one.
        about: precisions, and what else there is to say.
        runs: models are run to be timed, which a process of its own does.
    """

    home: str
    module: str
    distributions: tuple[str, ...]
    install: str
    about: str
    runs: bool = True


_ORT = ("onnxruntime", "onnxruntime-gpu")
_ORT_HOME = "latency_tables.onnxruntime_cpu:open_onnxruntime"
_ORT_GPU = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"  # both have the same files: only one can be there
_TORCH_HOME = "latency_tables.torch_devices:open_torch"
DEVICES: Mapping[str, _Entry] = {
    "onnxruntime-cpu": _Entry(_ORT_HOME, "onnxruntime", _ORT, "pip install onnxruntime", "fp32, int8; the default"),
    "onnxruntime-cuda": _Entry(_ORT_HOME, "onnxruntime", _ORT, _ORT_GPU, "fp32; NVIDIA GPU, copies included"),
    "onnxruntime-tensorrt": _Entry(_ORT_HOME, "onnxruntime", _ORT, _ORT_GPU, "fp32; NVIDIA GPU, copies included"),
    "openvino-cpu": _Entry(
        "latency_tables.openvino_cpu:open_openvino",
        "openvino",
        ("openvino",),
        "pip install 'hwnas[openvino]'",
        "fp32, bf16, int8",
    ),
    "mnn-cpu": _Entry("latency_tables.mnn_cpu:open_mnn", "MNN", ("MNN",), "pip install 'hwnas[mnn]'", "fp32"),
    "torch-cpu": _Entry(_TORCH_HOME, "torch", ("torch",), "pip install torch", "fp32, bf16; eager"),
    "torch-cuda": _Entry(_TORCH_HOME, "torch", ("torch",), "install a CUDA build of torch", "fp32, tf32, fp16, bf16; graphs"),
    "simulated": _Entry(
        "latency_tables.simulated:open_simulated",
        "onnx",
        ("onnx",),
        "pip install onnx",
        "a formula, for tests and docs",
        runs=False,
    ),
}

# A place and the way to it: a device there runs a kit. "ssh://user@host:port/DEVICE", "adb://SERIAL/DEVICE".
REMOTE: Mapping[str, str] = {"ssh": "latency_tables.remote:open_ssh", "adb": "latency_tables.remote:open_adb"}


@dataclass(frozen=True)
class DeviceRow:
    """A line of the list of devices.

    Attributes:
        available: can be opened here.
        version: of the runtime; None where it is not installed.
        install: what to do where it is not available.
        about: its precisions.
    """

    name: str
    available: bool
    version: str | None
    install: str
    about: str


def list_devices() -> list[DeviceRow]:
    """Every known device and whether it can be opened here; imports no runtime but those whose hardware must be asked for."""
    return [
        DeviceRow(name, _installed(entry) and _present(name), _version(entry), entry.install, entry.about)
        for name, entry in DEVICES.items()
    ]


def open_device(name: str, *, threads: int | None = None, batch: int | None = None, precision: str | None = None) -> Device:
    """A device by name, with options in the name or beside it.

    Args:
        name: e.g. ``onnxruntime-cpu``, ``onnxruntime-cpu:precision=int8``, ``ssh://pi@raspberry/onnxruntime-cpu``.
        threads: of the runtime (default 1); with more than one, times are comparable only where nothing else runs.
        batch: images per run (default 1).
        precision: of the arithmetic (default fp32).

    Raises:
        UserError: an unknown name, a runtime that is not installed, or options that the device does not have.
    """
    scheme, sign, rest = name.partition("://")
    if not sign:
        kind, options = _parsed(name, name, threads=threads, batch=batch, precision=precision)
        _check_installed(kind)
        entry = DEVICES[kind]
        here: Device = Isolated(entry.home, kind, options) if entry.runs else open_at(entry.home, kind, options)
        return here
    place, _, local = rest.partition("/")
    if scheme == "table":
        raise UserError(
            f"device '{name}' is a table only",
            allowed="It can be searched for, not run on",
            next_step="To measure or verify, name a device that can be reached (nas devices)",
        )
    if scheme not in REMOTE or not place or not local:
        raise UserError(
            f"device '{name}'",
            allowed=f"A place is {' or '.join(f'{s}://PLACE/DEVICE' for s in REMOTE)}",
            next_step="Write for example: ssh://pi@raspberry/onnxruntime-cpu",
        )
    kind, options = _parsed(local, name, threads=threads, batch=batch, precision=precision)
    if kind not in PROVIDERS:
        raise UserError(
            f"device '{kind}' elsewhere",
            allowed=f"A kit runs: {', '.join(PROVIDERS)}",
            next_step=f"Write for example: {scheme}://{place}/onnxruntime-cpu",
        )
    found: Device = open_at(REMOTE[scheme], place, kind, options)
    return found


def parse_device(name: str) -> tuple[str, Options]:
    """Kind and options of a device's name.

    Raises:
        UserError: an unknown name or option.
    """
    return _parsed(name, name)


def _parsed(text: str, whole: str, **beside: int | str | None) -> tuple[str, Options]:
    """Kind and options of ``KIND:name=value,...``; what is given beside the name must not contradict it."""
    kind, sign, listed = text.partition(":")
    if kind not in DEVICES:
        raise unknown_name("device", kind, DEVICES, command="nas devices")
    known = {field.name for field in dataclasses.fields(Options)}
    given: dict[str, str] = {}
    for part in listed.split(",") if sign else []:
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in given:
            raise _bad_option(whole, part)
        given[name] = value
    for name, extra in beside.items():
        if extra is not None:
            if given.get(name, str(extra)) != str(extra):
                raise _bad_option(whole, f"{name}={extra}")
            given[name] = str(extra)
    numbers: dict[str, int] = {}
    for name in {"threads", "batch"} & given.keys():
        value = given[name]
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 4096:
            raise _bad_option(whole, f"{name}={value}")
        numbers[name] = int(value)
    return kind, Options(precision=given.get("precision", Options().precision), **numbers)


def _bad_option(name: str, option: str) -> UserError:
    return UserError(
        f"option '{option}' of device '{name}'",
        allowed="threads and batch (whole numbers from 1) and precision, each once",
        next_step="Write for example: onnxruntime-cpu:precision=int8,threads=2",
    )


def _check_installed(kind: str) -> None:
    entry = DEVICES[kind]
    if not _installed(entry) or not _present(kind):
        lacks = f"{entry.module}, which is not installed" if not _installed(entry) else "hardware or a build that is not here"
        raise UserError(
            f"device '{kind}' needs {lacks}",
            allowed="Available here: " + (", ".join(row.name for row in list_devices() if row.available) or "none"),
            next_step=f"Install it with: {entry.install}",
        )


def _installed(entry: _Entry) -> bool:
    return importlib.util.find_spec(entry.module) is not None


def _present(kind: str) -> bool:
    """Whether the hardware is there, for devices that need a special one."""
    if kind == "torch-cuda":
        if not (importlib.util.find_spec("torch") and _has_nvidia()):
            return False
        import torch

        return torch.cuda.is_available()
    return kind not in ("onnxruntime-cuda", "onnxruntime-tensorrt") or (
        _has_nvidia() and _version_of("onnxruntime-gpu") is not None and _version_of("onnxruntime") is None
    )


def _has_nvidia() -> bool:
    import shutil

    return shutil.which("nvidia-smi") is not None


def _version(entry: _Entry) -> str | None:
    return next((found for name in entry.distributions if (found := _version_of(name)) is not None), None)


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
