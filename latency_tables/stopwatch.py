"""The measurement protocol: how a run is timed so that the figure can be trusted and repeated.

Calibrated loops, warm-up, interleaved rounds in random order (drift then hits all candidates alike), one pinned
core, no garbage collection while the clock runs; the median with its spread, on two clocks. Wall time is what a
user feels; the thread's CPU time is what survives a busy machine.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np

from search_spaces.progress import SILENT, Progress

__all__ = ["SYSTEM_CLOCK", "Clock", "Failure", "Measurement", "SystemClock", "measure", "one_core"]

LONGEST_SAMPLE = 1_000_000  # runs; a bound for a clock that stands still

Run = Callable[[], None]


class Clock(Protocol):
    """Two clocks in nanoseconds, each with any origin."""

    def wall_ns(self) -> int: ...
    def cpu_ns(self) -> int: ...


class SystemClock:
    """The machine's monotonic clock and the calling thread's CPU time."""

    def wall_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        return time.thread_time_ns()


SYSTEM_CLOCK: Clock = SystemClock()


@dataclass(frozen=True)
class Measurement:
    """Time of one run: wall-clock median, 10th and 90th percentile over the samples, and median CPU time, in ms."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    cpu_median_ms: float
    samples: int
    runs_per_sample: int

    @property
    def busy(self) -> float:
        """Wall time by CPU time: 1 on a quiet machine, more where others take the core away."""
        return self.median_ms / self.cpu_median_ms

    def ms(self, clock: str) -> float:
        """The median on a clock, ``"wall"`` or ``"cpu"``."""
        return self.cpu_median_ms if clock == "cpu" else self.median_ms

    @classmethod
    def of(cls, wall_ns: Sequence[float], cpu_ns: Sequence[float], runs_per_sample: int) -> Measurement:
        """From the times of whole samples, each of ``runs_per_sample`` runs."""
        scale = 1e-6 / runs_per_sample
        p10, median, p90 = (float(v) for v in np.percentile(wall_ns, [10, 50, 90]) * scale)
        return cls(median, p10, p90, float(np.median(cpu_ns) * scale), len(wall_ns), runs_per_sample)

    @classmethod
    def from_dict(cls, value: Any) -> Measurement:
        """The measurement that `to_dict` wrote.

        Raises:
            ValueError: a missing or unknown field, or a number that is not finite and positive.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise ValueError(f"a measurement has the fields {', '.join(names)}")
        for name in names:
            number = value[name]
            whole = name in ("samples", "runs_per_sample")
            if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
                raise ValueError(f"{name} is {number!r}, not a number")
            if not math.isfinite(number) or number <= 0:
                raise ValueError(f"{name} is {number!r}; times and counts are finite and positive")
        return cls(**value)

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be loaded or run."""

    reason: str


@contextmanager
def one_core(wanted: bool = True) -> Iterator[None]:
    """Keep the calling thread on one core, where the system can, and restore its cores afterwards."""
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(before)})  # interrupts tend to land on the first core
        pinned = True
    except OSError:
        pinned = False
    try:
        yield
    finally:
        if pinned:
            os.sched_setaffinity(0, before)


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def measure(
    loaders: Sequence[Callable[[], Run]],
    *,
    rng: np.random.Generator,
    rounds: int = 20,
    warmup: int = 10,
    sample_ms: float = 0.5,
    pin: bool = True,
    clock: Clock = SYSTEM_CLOCK,
    progress: Progress = SILENT,
) -> list[Measurement | Failure]:
    """Time candidates against each other: every round takes one sample of each, in a new random order.

    All candidates are held in memory at once; give them in chunks of some dozens.

    Args:
        loaders: per candidate, a callable that makes it ready and returns what runs it once.
        rounds: samples of each candidate.
        warmup: runs before the first sample.
        sample_ms: a sample repeats the run until it lasts at least this long.
        pin: stay on one core; wrong for candidates with several threads.
        progress: advanced by one for each candidate loaded and by one for each round.

    Returns: in the order given; a `Failure` for a candidate whose loading or warm-up raised.
    """
    results: list[Measurement | Failure | None] = [None] * len(loaders)
    runs: dict[int, tuple[Run, int]] = {}
    walls: dict[int, list[int]] = {}
    cpus: dict[int, list[int]] = {}
    with one_core(pin):
        for index, load in enumerate(loaders):
            try:
                run = load()
                runs[index] = (run, _calibrate(run, warmup, sample_ms, clock))
                walls[index], cpus[index] = [], []
            except Exception as error:  # noqa: BLE001 - a runtime may fail in any way, and must not cost the other candidates
                results[index] = Failure(f"{type(error).__name__}: {error}")
            progress.advance()
        with _no_collection():
            for _ in range(rounds):
                for index in rng.permutation(list(runs)):
                    wall, cpu = _sample(*runs[index], clock)
                    walls[index].append(wall)
                    cpus[index].append(cpu)
                progress.advance()
    for index, (_, count) in runs.items():
        results[index] = Measurement.of(walls[index], cpus[index], count)
    return [result for result in results if result is not None]


def _sample(run: Run, count: int, clock: Clock) -> tuple[int, int]:
    """Wall and CPU nanoseconds of ``count`` runs.

    One run goes before the clock: it brings the candidate back into the caches, which the others have filled since.
    Without it the sum of layers misses whole networks of microsecond layers by a third, not by a few percent.
    """
    repeat = range(count)
    run()
    cpu = clock.cpu_ns()
    wall = clock.wall_ns()
    for _ in repeat:
        run()
    wall = clock.wall_ns() - wall
    return wall, clock.cpu_ns() - cpu


def _calibrate(run: Run, warmup: int, sample_ms: float, clock: Clock) -> int:
    """Warm up, then the number of runs that fill a sample, from the fastest of three."""
    for _ in range(max(0, warmup - 6)):  # the samples below run it six times
        run()
    fastest = max(1, min(_sample(run, 1, clock)[0] for _ in range(3)))
    return min(LONGEST_SAMPLE, max(1, math.ceil(sample_ms * 1e6 / fastest)))
