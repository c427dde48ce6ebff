"""Devices: where networks run and are timed. One file per runtime, one line in `DEVICES` for each.

A device's name says what changes its times: ``onnxruntime-cpu:precision=int8,threads=2``. Defaults are left out of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latency_tables.energy import Energy, count_energy, energy_meter
from latency_tables.standalone.runtime import machine
from latency_tables.stopwatch import SYSTEM_CLOCK, Clock, Failure, Measurement, Plan, measure
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Candidate",
    "Device",
    "LocalDevice",
    "Model",
    "Optioned",
    "Options",
    "Runner",
    "check_precision",
    "file_name",
    "full_name",
    "machine",
    "serialised",
]

Model = Any  # an onnx.ModelProto, or the bytes of one


class Runner(Protocol):
    """A network that is loaded and ready."""

    def run(self) -> None:
        """One run on a fixed random input of the device's batch size; this is what is timed."""

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The output for images (N, C, H, W), float32, or uint8 as the model takes them; N is free where its first axis is."""


@dataclass(frozen=True)
class Candidate:
    """A model to be timed: what it is, for people and for kits, and how to make it."""

    label: str
    model: Callable[[], onnx.ModelProto | bytes]


class Device(Protocol):
    """A runtime with its options: everything that changes a network's time, and its ways to load and to time one."""

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

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        """Time models against each other, on the device's own clock, in the order given.

        ``progress`` is advanced by one for each candidate and by one for each of ``plan.rounds``.
        """

    def energy(self, model: onnx.ModelProto | bytes, run_ms: float) -> Energy | None:
        """Energy of one run of a model that takes about ``run_ms``; None where nothing counts it."""


@dataclass(frozen=True)
class Options:
    """What a device's name says beside its runtime."""

    threads: int = 1
    batch: int = 1
    precision: str = "fp32"


def full_name(kind: str, options: Options) -> str:
    """The one spelling of a device's name: options in alphabetical order, defaults left out."""
    standard = Options()
    given = [
        f"{name}={getattr(options, name)}"
        for name in ("batch", "precision", "threads")
        if getattr(options, name) != getattr(standard, name)
    ]
    return kind + (":" + ",".join(given) if given else "")


def file_name(name: str) -> str:
    """A device's name as the name of its table's file, without the suffix: no character that a system treats specially."""
    return re.sub(r"[^A-Za-z0-9.@,=_-]+", "+", name)


def serialised(model: onnx.ModelProto | bytes) -> bytes:
    """A model as the bytes of its file."""
    return model if isinstance(model, bytes) else model.SerializeToString()


def check_precision(kind: str, options: Options, precisions: Sequence[str]) -> None:
    """UserError for a precision that a device does not have."""
    if options.precision not in precisions:
        raise UserError(
            f"precision '{options.precision}' on {kind}",
            allowed=f"It has: {', '.join(precisions)}",
            next_step="Leave the option out, or choose another device (nas devices)",
        )


class Optioned:
    """What every device's options say of it."""

    options: Options

    @property
    def threads(self) -> int:
        return self.options.threads

    @property
    def batch(self) -> int:
        return self.options.batch

    @property
    def precision(self) -> str:
        return self.options.precision

    def energy(self, model: onnx.ModelProto | bytes, run_ms: float) -> Energy | None:
        """See `Device.energy`: nothing counts it."""
        return None


@dataclass(frozen=True)
class LocalDevice(Optioned):
    """What devices on this machine share: a name made of their options, and timing by the stopwatch here.

    Raises:
        UserError: a precision that the device does not have.
    """

    kind: str
    options: Options
    precisions: tuple[str, ...]

    def __post_init__(self) -> None:
        check_precision(self.kind, self.options, self.precisions)

    @property
    def name(self) -> str:
        return full_name(self.kind, self.options)

    @property
    def clock(self) -> Clock:
        """What runs are timed with."""
        return SYSTEM_CLOCK

    def fingerprint_of(self, runtime: str, version: str, **more: Any) -> dict[str, Any]:
        """A fingerprint on this machine."""
        return {**machine(), "runtime": runtime, "runtime_version": version, **asdict(self.options), **more}

    def fingerprint(self) -> dict[str, Any]:
        raise NotImplementedError

    def load(self, model: onnx.ModelProto | bytes) -> Runner:
        raise NotImplementedError

    def energy(self, model: onnx.ModelProto | bytes, run_ms: float) -> Energy | None:
        """See `Device.energy`: by this machine's counter, of its processor or its GPU."""
        meter = energy_meter(gpu="cuda" in self.kind or "tensorrt" in self.kind)
        return None if meter is None else count_energy(self.load(model).run, run_ms, meter, wait=self.wait)

    def wait(self) -> None:
        """Until all runs have ended; most have when they return."""

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        """See `Device.time`."""

        def loader(candidate: Candidate) -> Callable[[], Callable[[], None]]:
            return lambda: self.load(candidate.model()).run

        loaders = [loader(candidate) for candidate in candidates]
        return measure(loaders, rng=rng, plan=plan, pin=self.threads == 1, clock=self.clock, progress=progress)
