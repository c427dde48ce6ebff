"""How a run is timed, with nothing but the standard library and numpy; `latency_tables.stopwatch` says why it is done so."""

from __future__ import annotations

import gc
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple, Union

import numpy as np

LONGEST_SAMPLE = 1_000_000  # runs; a bound for a clock that stands still
LONGEST_PLAN = 50  # times the rounds that a plan asks for
CALM = 0.1  # the quantile that counts: neighbours only ever add to a time, and seldom to every sample
STEADY = 0.98  # warm-up ends when three runs are no faster than this share of the three before
WARM_UP_TRIES = 10

Run = Callable[[], None]
Raw = Tuple[List[int], List[int], int]  # wall and CPU nanoseconds of samples, runs per sample


class SystemClock:
    """The machine's monotonic clock and the calling thread's CPU time."""

    def wall_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        return time.thread_time_ns()

    def lap(self, run: Run, count: int) -> Tuple[int, int]:
        """Wall and CPU nanoseconds of so many runs; they have ended when it returns."""
        repeat = range(count)
        cpu = self.cpu_ns()
        wall = self.wall_ns()
        for _ in repeat:
            run()
        wall = self.wall_ns() - wall
        return wall, self.cpu_ns() - cpu


@dataclass(frozen=True)
class Plan:
    """How candidates are timed.

    Attributes:
        rounds: most samples of a candidate.
        least: samples that every candidate gets.
        target: a candidate has enough samples when the 95 % interval of its `CALM` quantile is this narrow (half width,
            relative); 0: all get ``rounds``.
        warmup: runs before the first sample, more where times still fall.
        sample_ms: a sample repeats the run until it lasts at least this long.
        seconds: for so long nothing has enough samples, and rounds go on beyond ``rounds``: a neighbour's burst of a second
            must not be all that is seen of the machine.
    """

    rounds: int = 20
    least: int = 10
    target: float = 0.01
    warmup: int = 10
    sample_ms: float = 0.5
    seconds: float = 0.0

    @property
    def most(self) -> int:
        """Rounds at most."""
        return self.rounds * (LONGEST_PLAN if self.seconds > 0 else 1)


def fastest_core(cores: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """The one that the system says is most capable: processors with two kinds of cores count them in any order.

    Of several the last one: interrupts tend to land on the first.
    """

    def speed(core: int) -> int:
        for fact in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
            try:
                return int((root / "cpu{}".format(core) / fact).read_text(encoding="ascii"))
            except (OSError, ValueError):  # not every system tells, and not of every core
                continue
        return 0

    best: int = max(cores, key=lambda core: (speed(core), core))
    return best


@contextmanager
def one_core(wanted: bool = True) -> Iterator[None]:
    """Keep the calling thread on one core, where the system can, and restore its cores afterwards."""
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {fastest_core(before)})
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


def time_runs(
    loaders: Sequence[Callable[[], Run]],
    plan: Plan,
    rng: np.random.Generator,
    clock: Any,
    pin: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> List[Union[Raw, str]]:
    """Time candidates against each other: every round takes one sample of each that needs more, in a new random order.

    Args:
        loaders: per candidate, a callable that makes it ready and returns what runs it once.
        pin: stay on one core; wrong for candidates with several threads.
        advance: called for each candidate loaded and for each of ``plan.rounds``.

    Returns: in the order given; text where loading or warming up raised.
    """
    failures: Dict[int, str] = {}
    runs: Dict[int, Tuple[Run, int]] = {}
    walls: Dict[int, List[int]] = {}
    cpus: Dict[int, List[int]] = {}
    with one_core(pin):
        for index, load in enumerate(loaders):
            try:
                run = load()
                runs[index] = (run, _calibrate(run, plan, clock))
                walls[index], cpus[index] = [], []
            except Exception as error:  # noqa: BLE001 - a runtime may fail in any way, and must not cost the other candidates
                failures[index] = f"{type(error).__name__}: {error}"
            advance()
        with _no_collection():
            begun = time.monotonic()
            for number in range(plan.most):
                early = time.monotonic() - begun < plan.seconds
                if number >= plan.rounds and not early:
                    break
                unsettled = [i for i in runs if early or not _settled(walls[i], cpus[i], plan)]
                for index in rng.permutation(unsettled).tolist():
                    wall, cpu = _sample(runs[index][0], runs[index][1], clock)
                    walls[index].append(wall)
                    cpus[index].append(cpu)
                if number < plan.rounds:
                    advance()
    return [failures[i] if i in failures else (walls[i], cpus[i], runs[i][1]) for i in range(len(loaders))]


def _sample(run: Run, count: int, clock: Any) -> Tuple[int, int]:
    """Wall and CPU nanoseconds of ``count`` runs.

    One run goes before the clock: it brings the candidate back into the caches, which the others have filled since.
    Without it the sum of layers misses whole networks of microsecond layers by a third, not by a few percent.
    """
    run()
    found: Tuple[int, int] = clock.lap(run, count)
    return found


def _calibrate(run: Run, plan: Plan, clock: Any) -> int:
    """Warm up until times fall no more, then the number of runs that fill a sample."""
    for _ in range(max(1, plan.warmup - 6)):  # at least six more below
        run()
    fastest: int = min(clock.lap(run, 1)[0] for _ in range(3))
    for _ in range(WARM_UP_TRIES):
        before, fastest = fastest, min(clock.lap(run, 1)[0] for _ in range(3))
        if fastest >= STEADY * before:
            break
    return min(LONGEST_SAMPLE, max(1, math.ceil(plan.sample_ms * 1e6 / max(1, fastest))))


def interval(samples: Sequence[float], share: float = 0.5) -> Tuple[float, float]:
    """The 95 % interval of a quantile (default: the median), from order statistics: it needs no shape of the distribution."""
    ordered, place = sorted(samples), share * len(samples)
    reach = 1.96 * math.sqrt(place * (1 - share))
    return ordered[max(0, math.floor(place - reach))], ordered[min(len(ordered), math.ceil(place + reach)) - 1]


def _settled(wall: Sequence[int], cpu: Sequence[int], plan: Plan) -> bool:
    """Whether either clock has settled: on a busy machine only the CPU's ever does, and it is the one used there."""
    if len(wall) < plan.least:
        return False
    for samples in (wall, cpu):
        low, high = interval(samples, CALM)
        if high - low <= plan.target * (high + low):
            return True
    return False
