"""The measurement protocol: how a run is timed so that the figure can be trusted and repeated.

Calibrated loops, warm-up until times fall no more, interleaved rounds in random order (drift then hits all candidates
alike), samples until the time is known well enough, one pinned core, no garbage collection while the clock runs; the
median with its interval and spread, on two clocks. Wall time is what a user feels; the thread's CPU time is what survives
a process that takes the core away. Neither survives what shares its caches, memory or hyper-thread. But that only ever adds,
and not to every sample, so a run's time here is a low quantile: repeated measurements agree on it within a percent or two
where their medians are ten apart. The timing itself is in `standalone.timing`, which other machines run as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np

from latency_tables.standalone.timing import CALM, Plan, Raw, SystemClock, interval, one_core, time_runs
from search_spaces.progress import SILENT, Progress

__all__ = [
    "BUSY",
    "SYSTEM_CLOCK",
    "Clock",
    "Failure",
    "Measurement",
    "Plan",
    "SystemClock",
    "busiest",
    "measure",
    "one_core",
    "understood",
]

BUSY = 1.05  # wall by CPU time from which the machine counts as busy
BUSY_QUANTILE = 0.9

Run = Callable[[], None]


class Clock(Protocol):
    """Two clocks in nanoseconds, each with any origin."""

    def wall_ns(self) -> int: ...
    def cpu_ns(self) -> int: ...


SYSTEM_CLOCK: Clock = SystemClock()


@dataclass(frozen=True)
class Measurement:
    """Time of one run in ms, over samples of several runs; no sample is dropped.

    Attributes:
        median_ms, p10_ms, p90_ms, p95_ms: of the wall clock; ``low_ms`` and ``high_ms`` bound the 95 % interval of the median.
        cpu_median_ms, cpu_p10_ms: of the thread's CPU time; ``cpu_low_ms`` and ``cpu_high_ms`` bound the median's interval.
        samples, runs_per_sample: how many.

    Older tables have no ``cpu_p10_ms``, those of format 1 neither intervals nor the 95th percentile: None there.

    Raises:
        ValueError: a number that is not finite and positive.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    cpu_median_ms: float
    samples: int
    runs_per_sample: int
    p95_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    cpu_low_ms: float | None = None
    cpu_high_ms: float | None = None
    cpu_p10_ms: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            number = getattr(self, field.name)
            if number is None and field.default is None:
                continue
            whole = field.name in ("samples", "runs_per_sample")
            if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
                raise ValueError(f"{field.name} is {number!r}, not a number")
            if not math.isfinite(number) or number <= 0:
                raise ValueError(f"{field.name} is {number!r}; times and counts are finite and positive")

    @property
    def busy(self) -> float:
        """Wall time by CPU time: 1 on a quiet machine, more where others take the core away."""
        return self.median_ms / self.cpu_median_ms

    def slowed(self, clock: str) -> float:
        """The median by the time undisturbed: 1 on a quiet machine, more where others share caches or a hyper-thread."""
        return (self.cpu_median_ms if clock == "cpu" else self.median_ms) / self.ms(clock)

    def ms(self, clock: str) -> float:
        """The time undisturbed, the 10th percentile on a clock, ``"wall"`` or ``"cpu"``; the median where it is not known."""
        return self.p10_ms if clock == "wall" else self.cpu_p10_ms or self.cpu_median_ms

    def uncertainty(self, clock: str) -> float:
        """Half the 95 % interval of the median on a clock, relative; 0 where it is unknown."""
        low, high = (self.cpu_low_ms, self.cpu_high_ms) if clock == "cpu" else (self.low_ms, self.high_ms)
        return 0.0 if low is None or high is None else (high - low) / (high + low)

    @classmethod
    def of(cls, wall_ns: Sequence[float], cpu_ns: Sequence[float], runs_per_sample: int) -> Measurement:
        """From the times of whole samples, each of ``runs_per_sample`` runs.

        Raises:
            ValueError: times that no clock shows.
        """
        scale = 1e-6 / runs_per_sample
        calm, median, p90, p95 = (float(v) for v in np.quantile(wall_ns, [CALM, 0.5, 0.9, 0.95]) * scale)
        cpu_calm, cpu_median = (float(v) for v in np.quantile(cpu_ns, [CALM, 0.5]) * scale)
        bounds = [float(v) * scale for clock in (wall_ns, cpu_ns) for v in interval(clock)]
        return cls(median, calm, p90, cpu_median, len(wall_ns), runs_per_sample, p95, *bounds, cpu_calm)

    @classmethod
    def from_dict(cls, value: Any) -> Measurement:
        """The measurement that `to_dict` wrote, now or in format 1.

        Raises:
            ValueError: a missing or unknown field, or a number that is not finite and positive.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(value, Mapping) or not needed <= set(value) <= known:
            raise ValueError(f"a measurement has the fields {', '.join(field.name for field in fields(cls))}")
        return cls(**value)

    def to_dict(self) -> dict[str, float | int]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be loaded or run."""

    reason: str


def busiest(timings: Sequence[Measurement]) -> float:
    """Wall by CPU time of the busier measurements: short runs dodge the scheduler, long ones do not."""
    return float(np.quantile([timing.busy for timing in timings], BUSY_QUANTILE))


def measure(
    loaders: Sequence[Callable[[], Run]],
    *,
    rng: np.random.Generator,
    rounds: int = 20,
    warmup: int = 10,
    sample_ms: float = 0.5,
    target: float = 0.0,
    least: int = 10,
    pin: bool = True,
    clock: Clock = SYSTEM_CLOCK,
    progress: Progress = SILENT,
) -> list[Measurement | Failure]:
    """Time candidates against each other: every round takes one sample of each, in a new random order.

    All candidates are held in memory at once; give them in chunks of some dozens.

    Args:
        loaders: per candidate, a callable that makes it ready and returns what runs it once.
        rounds, warmup, sample_ms, target, least: see `Plan`.
        pin: stay on one core; wrong for candidates with several threads.
        progress: advanced by one for each candidate loaded and by one for each round.

    Returns: in the order given; a `Failure` for a candidate whose loading or warm-up raised.
    """
    plan = Plan(rounds=rounds, least=min(least, rounds), target=target, warmup=warmup, sample_ms=sample_ms)
    timed = time_runs(loaders, plan, rng, clock, pin, progress.advance)
    return [understood(found) for found in timed]


def understood(found: Raw | str) -> Measurement | Failure:
    """What `standalone.timing.time_runs` gave for a candidate; a failure, too, where its clock makes no sense."""
    if isinstance(found, str):
        return Failure(found)
    try:
        return Measurement.of(*found)
    except ValueError as error:
        return Failure(f"it was timed in a way that makes no sense: {error}")
