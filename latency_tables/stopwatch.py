"""The measurement protocol: how a run is timed so that the figure can be trusted and repeated.

Calibrated loops, warm-up until times fall no more, interleaved rounds in random order (drift then hits all candidates
alike), samples until the time is known well enough, one pinned core, no garbage collection while the clock runs; the
median with its interval and spread, on two clocks. Wall time is what a user feels; the thread's CPU time is what survives
a process that takes the core away. What shares the caches, the memory or the hyper-thread shows on both, for a while and in all
that is timed then; so what candidates have in common in a round is taken out, and a time is that of the calmest rounds. The
timing itself is in `standalone.timing`, which other machines run as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latency_tables.standalone.timing import CALM, Plan, Raw, SystemClock, interval, one_core, time_runs
from search_spaces.progress import SILENT, Progress

__all__ = [
    "BUSY",
    "SLOWED",
    "SYSTEM_CLOCK",
    "Clock",
    "Failure",
    "Measurement",
    "Plan",
    "SystemClock",
    "busiest",
    "clock_of",
    "measure",
    "one_core",
    "understood",
    "undisturbed",
]

BUSY = 1.05  # wall by CPU time from which the machine counts as busy
SLOWED = 0.10  # of the median over the time undisturbed, from which it is worth a word
BUSY_QUANTILE = 0.9
SWEEPS = 100  # of the median polish, at most; it ends where logarithms of times move by less than `STILL`
STILL = 1e-6
INTERVAL = 1.96 * 1.2533 * 1.4826  # from a median absolute deviation to half of the 95 % interval of a median
FORMER = {"cpu_low_ms", "cpu_high_ms"}  # fields of format 2 that nothing uses any more

Run = Callable[[], None]


class Clock(Protocol):
    """What runs are timed with."""

    def lap(self, run: Run, count: int, /) -> tuple[int, int]:
        """Wall and CPU nanoseconds of so many runs; they have ended when it returns."""


SYSTEM_CLOCK: Clock = SystemClock()


@dataclass(frozen=True)
class Measurement:
    """Time of one run in ms, over samples of several runs; no sample is dropped.

    Attributes:
        median_ms, p10_ms, p90_ms, p95_ms: of the wall clock; ``low_ms`` and ``high_ms`` bound the 95 % interval of the median.
        cpu_median_ms: of the thread's CPU time.
        samples, runs_per_sample: how many.
        calm_ms, cpu_calm_ms: the time in the calmest rounds, see `undisturbed`; ``calm_error`` and ``cpu_calm_error`` are half
            its 95 % interval, relative.

    Older tables lack what has the default None here.

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
    calm_ms: float | None = None
    calm_error: float | None = None
    cpu_calm_ms: float | None = None
    cpu_calm_error: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            number = getattr(self, field.name)
            if number is None and field.default is None:
                continue
            whole = field.name in ("samples", "runs_per_sample")
            if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
                raise ValueError(f"{field.name} is {number!r}, not a number")
            if not math.isfinite(number) or number < 0 or (number == 0 and not field.name.endswith("error")):
                raise ValueError(f"{field.name} is {number!r}; times and counts are finite and positive")

    @property
    def busy(self) -> float:
        """Wall time by CPU time: 1 on a quiet machine, more where others take the core away."""
        return self.median_ms / self.cpu_median_ms

    def ms(self, clock: str) -> float:
        """The time undisturbed on a clock, ``"wall"`` or ``"cpu"``; the median where it is not known."""
        return (self.cpu_calm_ms or self.cpu_median_ms) if clock == "cpu" else (self.calm_ms or self.median_ms)

    def slowed(self, clock: str) -> float:
        """The median by the time undisturbed: 1 on a quiet machine."""
        return (self.cpu_median_ms if clock == "cpu" else self.median_ms) / self.ms(clock)

    def uncertainty(self, clock: str) -> float:
        """Half the 95 % interval of the time undisturbed, relative; 0 where it is unknown."""
        return (self.cpu_calm_error if clock == "cpu" else self.calm_error) or 0.0

    @classmethod
    def of(cls, wall_ns: Sequence[float], cpu_ns: Sequence[float], runs_per_sample: int) -> Measurement:
        """From the times of whole samples, each of ``runs_per_sample`` runs, where nothing else was timed in the same rounds.

        Raises:
            ValueError: times that no clock shows.
        """
        raw: Any = (wall_ns, cpu_ns, runs_per_sample)
        (found,) = understood([raw])
        if isinstance(found, Failure):
            raise ValueError(found.reason)
        return found

    @classmethod
    def from_dict(cls, value: Any) -> Measurement:
        """The measurement that `to_dict` wrote, now or in an older format.

        Raises:
            ValueError: a missing or unknown field, or a number that is not finite and positive.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(value, Mapping) or not needed <= set(value) <= known | FORMER:
            raise ValueError(f"a measurement has the fields {', '.join(field.name for field in fields(cls))}")
        return cls(**{name: number for name, number in value.items() if name not in FORMER})

    def to_dict(self) -> dict[str, float | int]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be loaded or run."""

    reason: str


def busiest(timings: Sequence[Measurement]) -> float:
    """Wall by CPU time of the busier measurements: short runs dodge the scheduler, long ones do not."""
    return float(np.quantile([timing.busy for timing in timings], BUSY_QUANTILE))


def clock_of(timings: Sequence[Measurement], *, one_thread: bool) -> str:
    """The clock that tells of the network, not of its neighbours: CPU time on a busy machine, else the wall's.

    Several threads have only the wall's: the calling one sleeps while they work.
    """
    return "cpu" if one_thread and timings and busiest(timings) > BUSY else "wall"


def measure(
    loaders: Sequence[Callable[[], Run]],
    *,
    rng: np.random.Generator,
    plan: Plan | None = None,
    pin: bool = True,
    clock: Clock = SYSTEM_CLOCK,
    progress: Progress = SILENT,
) -> list[Measurement | Failure]:
    """Time candidates against each other: every round takes one sample of each, in a new random order.

    All candidates are held in memory at once; give them in chunks of some dozens.

    Args:
        loaders: per candidate, a callable that makes it ready and returns what runs it once.
        pin: stay on one core; wrong for candidates with several threads.
        progress: advanced by one for each candidate loaded and by one for each round.

    Returns: in the order given; a `Failure` for a candidate whose loading or warm-up raised.
    """
    return understood(time_runs(loaders, plan or Plan(), rng, clock, pin, progress.advance))


def understood(timed: Sequence[Raw | str]) -> list[Measurement | Failure]:
    """What `standalone.timing.time_runs` gave; a failure, too, where a clock makes no sense."""
    found: dict[int, Measurement | Failure] = {}
    sound: dict[int, Raw] = {}
    for index, raw in enumerate(timed):
        if isinstance(raw, str):
            found[index] = Failure(raw)
        elif (credible := _credible(raw)) is None:
            found[index] = Failure("its clock makes no sense: a run took no time, or less")
        else:
            sound[index] = credible
    if sound:
        wall, cpu = undisturbed([raw[0] for raw in sound.values()]), undisturbed([raw[1] for raw in sound.values()])
        for index, raw, *calm in zip(sound, sound.values(), *wall, *cpu, strict=True):
            found[index] = _measurement(raw, *map(float, calm))
    return [found[index] for index in range(len(timed))]


def _credible(raw: Raw) -> Raw | None:
    """The samples, without those in which a clock did not move; None where it seldom moves, or ran backwards.

    A virtual machine's clock stands still now and then; a CPU clock that counts in ticks longer than a sample stands still most
    of the time, and then the wall clock has to do for both.
    """
    wall, cpu, runs = raw
    if min(*wall, *cpu) < 0 or runs <= 0:
        return None
    if 2 * sum(time > 0 for time in cpu) < len(cpu):
        cpu = wall
    kept = [(one, other) for one, other in zip(wall, cpu, strict=True) if one > 0 and other > 0]
    if 2 * len(kept) < len(wall):
        return None
    return [one for one, _ in kept], [other for _, other in kept], runs


def _measurement(raw: Raw, calm: float, calm_error: float, cpu_calm: float, cpu_calm_error: float) -> Measurement:
    """From samples, and what is undisturbed of them, ns."""
    wall_ns, cpu_ns, runs = raw
    scale = 1e-6 / runs
    p10, median, p90, p95 = (float(v) for v in np.quantile(wall_ns, [0.1, 0.5, 0.9, 0.95]) * scale)
    low, high = interval(wall_ns)
    return Measurement(
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        p95_ms=p95,
        low_ms=low * scale,
        high_ms=high * scale,
        cpu_median_ms=float(np.median(cpu_ns)) * scale,
        calm_ms=calm * scale,
        calm_error=calm_error,
        cpu_calm_ms=cpu_calm * scale,
        cpu_calm_error=cpu_calm_error,
        samples=len(wall_ns),
        runs_per_sample=runs,
    )


def undisturbed(samples: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times of candidates as they are in the calmest rounds, (N,), and half their 95 % intervals, relative, (N,).

    A sample is what the candidate takes, times what the round does to all, times chance: log t = candidate + round, by Tukey's
    median polish. Of the rounds' factors a low quantile counts: neighbours add, and not in every round. One candidate alone has
    its own samples' quantile.

    Args:
        samples: per candidate its times in the first rounds, as many as it took part in (one left out shifts those after it
            by a round, which the medians bear).
    """
    logs = np.full((len(samples), max(map(len, samples))), np.nan)
    for row, times in zip(logs, samples, strict=True):
        row[: len(times)] = np.log(times)
    own, common = polished(logs)
    full = np.isfinite(logs).mean(axis=0) >= 0.5  # a round of a few says little
    spread = np.nanmedian(np.abs(logs - common - own[:, None]), axis=1)
    counts = np.isfinite(logs).sum(axis=1)
    return np.exp(own + np.quantile(common[full], CALM)), INTERVAL * spread / np.sqrt(counts)


def polished(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows' and columns' parts of a table (N, M) that is about their sum, NaN where it is not known, by medians."""
    rows, columns = np.nanmedian(table, axis=1), np.zeros(table.shape[1])
    for _ in range(SWEEPS):
        before = columns
        columns = np.nanmedian(table - rows[:, None], axis=0)
        rows = np.nanmedian(table - columns, axis=1)
        if np.abs(columns - before).max() < STILL:
            break
    return rows, columns
