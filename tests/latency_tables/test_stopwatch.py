"""The measurement protocol on a fake clock."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from latency_tables.standalone.timing import fastest_core, interval
from latency_tables.stopwatch import (
    Failure,
    Measurement,
    Plan,
    SystemClock,
    clock_of,
    measure,
    one_core,
    understood,
    undisturbed,
)
from tests.latency_tables.clock import FakeClock

GOOD = Measurement(2.0, 1.0, 3.0, 2.0, 20, 5).to_dict()


def loaders(clock: FakeClock, times: list[float], busy: float = 1.0) -> list[Callable[[], Callable[[], None]]]:
    """Candidates that take the given CPU nanoseconds and ``busy`` times as much wall time."""

    def load(ns: float) -> Callable[[], None]:
        def run() -> None:
            clock.wall += ns * busy
            clock.cpu += ns

        return run

    return [lambda ns=ns: load(ns) for ns in times]


def test_known_times_come_out_exactly_and_loops_fill_a_sample() -> None:
    clock = FakeClock()
    found = measure(
        loaders(clock, [1000, 50_000, 3e6], busy=2.0),
        rng=np.random.default_rng(0),
        plan=Plan(rounds=5, sample_ms=0.5, target=0),
        clock=clock,
    )
    for timing, ms in zip(found, (0.001, 0.05, 3.0), strict=True):
        assert isinstance(timing, Measurement)
        assert timing.median_ms == timing.p10_ms == timing.p90_ms == pytest.approx(2 * ms)
        assert timing.cpu_median_ms == pytest.approx(ms)
        assert timing.busy == pytest.approx(2)
        assert timing.runs_per_sample == max(1, math.ceil(0.5 / (2 * ms)))
        assert timing.samples == 5


def test_every_round_takes_every_candidate_once_in_changing_order() -> None:
    clock, log = FakeClock(), []

    def load(index: int) -> Callable[[], None]:
        def run() -> None:
            clock.wall += 1e6
            clock.cpu += 1e6
            log.append(index)

        return run

    measure(
        [lambda i=i: load(i) for i in range(6)],
        rng=np.random.default_rng(0),
        plan=Plan(rounds=8, sample_ms=0.5, target=0),
        clock=clock,
    )
    tail = log[-8 * 6 * 2 :: 2]  # a sample is one run before the clock and one on it
    rounds = [tuple(tail[start : start + 6]) for start in range(0, len(tail), 6)]
    assert all(sorted(order) == list(range(6)) for order in rounds)
    assert len(set(rounds)) > 1
    assert log.count(0) >= 10 + 8


def test_a_candidate_that_fails_does_not_cost_the_others() -> None:
    def broken() -> Callable[[], None]:
        raise RuntimeError("no such kernel")

    clock = FakeClock()
    candidates = [*loaders(clock, [1000]), broken, *loaders(clock, [2000])]
    first, second, third = measure(candidates, rng=np.random.default_rng(0), clock=clock)
    assert second == Failure("RuntimeError: no such kernel")
    assert isinstance(first, Measurement)
    assert isinstance(third, Measurement)
    assert third.median_ms == pytest.approx(0.002)


def test_a_clock_that_stands_still_does_not_hang() -> None:
    found = measure(
        [lambda: lambda: None], rng=np.random.default_rng(0), plan=Plan(rounds=1, sample_ms=1e-4, target=0), clock=FakeClock()
    )
    assert len(found) == 1


def test_cores_and_garbage_collection_are_restored() -> None:
    if hasattr(os, "sched_getaffinity"):
        before = os.sched_getaffinity(0)
        with one_core():
            assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) == before
        with one_core(False):
            assert os.sched_getaffinity(0) == before
    measure([lambda: lambda: None], rng=np.random.default_rng(0), plan=Plan(rounds=1, sample_ms=0.001, target=0))
    assert gc.isenabled()
    assert min(SystemClock().lap(lambda: None, 10)) >= 0


def test_the_most_capable_core_is_taken(tmp_path: Path) -> None:
    def system(fact: str, values: dict[int, int]) -> Path:
        for core, value in values.items():
            file = tmp_path / fact.replace("/", "-") / f"cpu{core}" / fact
            file.parent.mkdir(parents=True)
            file.write_text(f"{value}\n")
        return tmp_path / fact.replace("/", "-")

    hybrid = system("cpufreq/cpuinfo_max_freq", {0: 5_100_000, 1: 5_100_000, 2: 3_900_000, 3: 3_900_000})
    board = system("cpu_capacity", {0: 414, 1: 414, 2: 1024, 3: 1024})
    assert fastest_core({0, 1, 2, 3}, hybrid) == 1
    assert fastest_core({2, 3}, hybrid) == 3  # of those that the process may use
    assert fastest_core({0, 1, 2, 3}, board) == 3
    assert fastest_core({0, 1, 2, 3}, tmp_path / "silent") == 3


def test_json_round_trip() -> None:
    assert Measurement.from_dict(GOOD).to_dict() == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"median_ms": -1.0},
        {"p10_ms": 0},
        {"p90_ms": math.nan},
        {"cpu_median_ms": math.inf},
        {"samples": 1.5},
        {"samples": True},
        {"median_ms": "3"},
        {"more": 1},
    ],
)
def test_numbers_that_no_clock_shows_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Measurement.from_dict(GOOD | change)


@pytest.mark.parametrize("value", [None, 3, {}, {k: v for k, v in GOOD.items() if k != "samples"}])
def test_what_is_not_a_measurement_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        Measurement.from_dict(value)


# ---- how much is enough ---------------------------------------------------------------------------------------


def noisy(clock: FakeClock, ns: float, spread: float, seed: int = 0) -> Callable[[], Callable[[], None]]:
    """A candidate whose runs vary."""
    rng = np.random.default_rng(seed)

    def run() -> None:
        took = ns * (1 + spread * abs(rng.standard_normal()))
        clock.wall += took
        clock.cpu += took

    return lambda: run


def test_a_steady_candidate_needs_few_samples_and_a_noisy_one_all() -> None:
    clock = FakeClock()
    steady, restless = noisy(clock, 1e6, 0.0), noisy(clock, 1e6, 0.8)
    found = measure(
        [steady, restless],
        rng=np.random.default_rng(0),
        plan=Plan(rounds=40, least=10, target=0.01, sample_ms=0.5),
        clock=clock,
    )
    first, second = found
    assert isinstance(first, Measurement)
    assert isinstance(second, Measurement)
    assert (first.samples, second.samples) == (10, 40)
    assert first.low_ms == first.high_ms


def test_a_busy_machine_settles_on_the_cpu_clock() -> None:
    clock, rng = FakeClock(), np.random.default_rng(0)

    def run() -> None:
        clock.cpu += 1e6
        clock.wall += 1e6 * rng.uniform(1, 5)

    (found,) = measure(
        [lambda: run], rng=np.random.default_rng(0), plan=Plan(rounds=40, least=10, target=0.01, sample_ms=0.5), clock=clock
    )
    assert isinstance(found, Measurement)
    assert found.samples == 10
    assert found.low_ms < found.high_ms


def test_what_slows_all_down_for_most_of_the_rounds_does_not_show_in_their_times() -> None:
    clock, rng, runs = FakeClock(), np.random.default_rng(0), 0

    def load(ns: float) -> Callable[[], None]:
        def run() -> None:
            nonlocal runs
            runs += 1
            slow = 1.4 if runs % 600 < 400 else 1.0  # a neighbour on the hyper-thread, for a while
            took = ns * slow * (1 + 0.005 * rng.random())
            clock.wall += took
            clock.cpu += took

        return run

    times = [1e6, 2e6, 3e6, 5e6, 8e6]
    found = measure(
        [lambda ns=ns: load(ns) for ns in times], rng=rng, plan=Plan(rounds=60, sample_ms=0.5, target=0), clock=clock
    )
    for timing, ns in zip(found, times, strict=True):
        assert isinstance(timing, Measurement)
        for name in ("wall", "cpu"):
            assert timing.ms(name) == pytest.approx(1e-6 * ns, rel=0.006)
            assert 0 < timing.uncertainty(name) < 0.02
        assert timing.slowed("wall") > 1.3  # what it was like is kept


def test_times_undisturbed_need_not_be_of_the_same_rounds() -> None:
    rng = np.random.default_rng(0)
    own, rounds = np.array([1.0, 2.0, 4.0, 8.0]), np.exp(0.3 * rng.random(20))
    samples = [
        (one * rounds * np.exp(0.001 * rng.standard_normal(20)))[:count]
        for one, count in zip(own, (20, 10, 20, 14), strict=True)
    ]
    found, error = undisturbed([row.tolist() for row in samples])
    np.testing.assert_allclose(found / found[0], own, rtol=0.002)
    assert found[0] == pytest.approx(np.quantile(rounds, 0.1), rel=0.02)
    assert (error < 0.002).all()
    alone, nothing = undisturbed([samples[0].tolist()])
    assert alone[0] == pytest.approx(np.exp(np.quantile(np.log(samples[0]), 0.1)))
    assert nothing[0] == 0


def test_several_threads_are_timed_by_the_wall() -> None:
    def timing(busy: float) -> Measurement:
        return Measurement.of([1000.0 * busy] * 9, [1000.0] * 9, 1)

    assert clock_of([timing(1.0), timing(1.01)], one_thread=True) == "wall"
    assert clock_of([timing(1.5), timing(1.4)], one_thread=True) == "cpu"
    assert clock_of([timing(1.5), timing(1.4)], one_thread=False) == "wall"  # the calling thread sleeps, others work
    assert clock_of([], one_thread=True) == "wall"


def test_a_clock_that_makes_no_sense_is_a_failure_of_its_candidate() -> None:
    @dataclass
    class Backwards(FakeClock):
        def wall_ns(self) -> int:
            return -super().wall_ns()

    clock = Backwards()
    (found,) = measure(loaders(clock, [1000]), rng=np.random.default_rng(0), clock=clock)
    assert isinstance(found, Failure)
    assert "makes no sense" in found.reason


def test_a_clock_that_stands_still_now_and_then_costs_those_samples_alone() -> None:
    rng = np.random.default_rng(0)
    wall = (1e6 * np.exp(0.01 * rng.standard_normal(20))).astype(int).tolist()
    (steady,) = understood([(wall, wall, 1)])
    (stumbling,) = understood([([*wall[:9], 0, *wall[9:]], [*wall[:9], 5, *wall[9:]], 1)])
    (still,) = understood([([0] * 11 + wall[:10], wall[:10] + [1] * 11, 1)])
    assert stumbling == steady
    assert isinstance(still, Failure)


def test_a_cpu_clock_that_ticks_too_slowly_leaves_the_wall_clock() -> None:
    wall = [1_000_000 + i for i in range(20)]
    (ticking,) = understood([(wall, [0] * 19 + [10_000_000], 1)])
    assert isinstance(ticking, Measurement)
    assert ticking.cpu_median_ms == ticking.median_ms


def test_rounds_go_on_for_the_seconds_asked_for_and_no_longer_than_a_plan_may() -> None:
    def found(plan: Plan) -> Measurement:
        clock = FakeClock()
        (timing,) = measure(loaders(clock, [1000]), rng=np.random.default_rng(0), plan=plan, clock=clock)
        assert isinstance(timing, Measurement)
        return timing

    plan = Plan(rounds=3, least=2, target=0.5)
    assert found(plan).samples == 2  # it is settled
    assert found(replace(plan, seconds=0.05)).samples > 3
    assert found(replace(plan, seconds=3600.0)).samples == 150 == replace(plan, seconds=3600.0).most


def test_warming_up_goes_on_while_times_fall() -> None:
    clock, runs = FakeClock(), []

    def run() -> None:
        runs.append(None)
        took = 1e6 * max(1.0, 3 - 0.05 * len(runs))
        clock.wall += took
        clock.cpu += took

    (found,) = measure([lambda: run], rng=np.random.default_rng(0), plan=Plan(rounds=3, sample_ms=0.5, target=0), clock=clock)
    assert isinstance(found, Measurement)
    assert found.median_ms == pytest.approx(1.0, rel=0.3)  # at 3 to begin with
    assert len(runs) > 10 + 2 * 3


@pytest.mark.parametrize(("share", "truth"), [(0.5, math.log(2)), (0.25, math.log(4 / 3))])
def test_the_interval_of_a_quantile_holds_it_as_often_as_it_says(share: float, truth: float) -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        low, high = interval(rng.exponential(size=20).tolist(), share)
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 1


def test_no_sample_is_dropped_from_the_tail() -> None:
    found = Measurement.of([1e6] * 18 + [9e6] * 2, [1e6] * 20, 1)
    assert found.p95_ms is not None
    assert found.p95_ms > 5
    assert found.median_ms == found.low_ms == found.high_ms == pytest.approx(1)
