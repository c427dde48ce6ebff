"""Objectives, limits, dominance, evolution: laws and known answers."""

from __future__ import annotations

import numpy as np
import pytest

import search_spaces
from nas.evolution import nsga2
from nas.objectives import Limit, Objective, check_feasible, format_value, objectives_of, parse_limits
from nas.pareto import non_dominated, spread_out
from nas.scoring import choose_subnets
from nas.verifying import wilson_interval
from search_spaces import SearchSpace, UserError


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ({"latency": "5ms"}, 5.0),
        ({"latency": 5}, 5.0),
        ({"latency": "250us"}, 0.25),
        ({"latency": "0.01 s"}, 10.0),
        ({"params": "4M"}, 4e6),
        ({"macs": "1.5G"}, 1.5e9),
        ({"size": "10MB"}, 1e7),
        ({"accuracy": "90%"}, 0.9),
    ],
)
def test_limits_with_units(given: dict, bound: float) -> None:
    assert parse_limits(given)[0].bound == pytest.approx(bound)


@pytest.mark.parametrize("value", ["", "ms", "5 parsecs", "-3ms", "0", "nan", "1e400", "5ms5", "inf"])
def test_bad_limits_are_named(value: str) -> None:
    with pytest.raises(UserError, match="limit latency="):
        parse_limits({"latency": value})
    with pytest.raises(UserError, match="did you mean 'latency'"):
        parse_limits({"latencey": "5ms"})


def test_limits_point_the_right_way() -> None:
    assert (Limit("latency", 5.0).excess(np.array([4.0, 5.0, 6.0])) > 0).tolist() == [False, False, True]
    assert (Limit("accuracy", 0.9).excess(np.array([0.8, 0.9, 1.0])) > 0).tolist() == [True, False, False]
    assert format_value("params", 4.2e6) == "4.2 M"
    assert format_value("size", 4.2e6) == "4.2 MB"


def test_dominance_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    for objectives in (2, 3):
        costs = rng.integers(0, 8, size=(200, objectives)).astype(float)
        kept = non_dominated(costs)
        for index, row in enumerate(costs):
            dominated = ((costs <= row).all(axis=1) & (costs < row).any(axis=1)).any()
            first = (costs[:index] != row).any(axis=1).all()
            assert (index in kept) == (not dominated and first)


def test_spreading_keeps_the_extremes() -> None:
    x = np.linspace(0, 1, 200)
    costs = np.column_stack([x, (1 - x) ** 2])
    chosen = spread_out(costs, 9)
    assert len(set(chosen)) == 9
    assert {0, 199} <= set(chosen)
    gaps = np.diff(costs[chosen, 0])
    assert gaps.max() < 3 * gaps.min()
    assert spread_out(costs[:3], 9) == [0, 1, 2]
    assert spread_out(np.zeros((4, 2)), 3) == [0]


def _space() -> SearchSpace:
    return search_spaces.build("small-mobilenet", width=0.25, image=28, channels=1)


def _objectives(space: SearchSpace) -> list[Objective]:
    accuracy = Objective("accuracy", "", True, values=lambda rows: (space.canonical(rows) + 1.0).sum(axis=1) / 200)
    return [accuracy, objectives_of(space)["macs"]]


def test_evolution_finds_the_known_front() -> None:
    """Few genes vary, so the true front is known by enumeration."""
    space = _space().restrict(
        {f"{c}[{i}]": [o] for c, o in (("kernel", 3), ("expand", 2)) for i in range(3, 12)} | {"resolution": [28]}
    )
    objectives = _objectives(space)
    rows = space.sample_rows(60_000, np.random.default_rng(0), per_gene=True)
    rows = rows[space.unique(rows)]
    costs = np.column_stack([-objectives[0].values(rows), objectives[1].values(rows)])
    truth = {tuple(row) for row in costs[non_dominated(costs)]}
    found = nsga2(space, objectives, [], seed=0, generations=80)
    reached = {(-objectives[0].values(r[None])[0], objectives[1].values(r[None])[0]) for r in found}
    assert len(truth - reached) <= len(truth) // 5


def test_evolution_is_seeded_and_respects_limits() -> None:
    space = _space()
    objectives = _objectives(space)
    limit = (objectives[1], Limit("macs", 6e5))
    a, b = (nsga2(space, objectives, [limit], seed=4, generations=10) for _ in range(2))
    assert (a == b).all()
    assert (space.macs(a) <= 6e5).all()
    assert (space.canonical(a) == a).all()
    assert len(space.unique(a)) == len(a)


def test_an_infeasible_limit_is_answered_without_search() -> None:
    space = search_spaces.build("ofa-mobilenet-v3")
    least = space.macs(space.smallest)
    with pytest.raises(UserError) as caught:
        check_feasible(space, objectives_of(space), parse_limits({"macs": least - 1}))
    assert space.smallest.id in caught.value.allowed
    suggested = caught.value.next_step.partition("--limit ")[2]
    name, _, value = suggested.partition("=")
    check_feasible(space, objectives_of(space), parse_limits({name: value}))  # the command that it names works


def test_limits_that_are_infeasible_together_are_named() -> None:
    space = _space()
    objectives = _objectives(space)
    contradiction = [(objectives[1], Limit("macs", 5e5)), (objectives[0], Limit("accuracy", 0.99))]
    with pytest.raises(UserError, match=r"macs <= 500 k, accuracy >= 99.0%"):
        nsga2(space, objectives, contradiction, seed=0, generations=5)


def test_chosen_subnets_cover_the_range() -> None:
    space = _space()
    cost = space.cost(lambda layer: layer.macs)
    archs = choose_subnets(space, 30, cost, np.random.default_rng(0))
    assert len(set(archs)) == 30
    assert {space.smallest, space.largest} <= set(archs)
    macs = np.sort(np.log(space.macs(archs)))
    assert np.diff(macs).max() < 0.25 * np.ptp(macs)
    tiny = space.restrict({g.name: [g.options[0]] for g in space.genes if g.name != "resolution"})
    assert len(choose_subnets(tiny, 30, tiny.cost(lambda layer: layer.macs), np.random.default_rng(0))) == 4


def test_wilson_interval() -> None:
    low, high = wilson_interval(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert 0 < wilson_interval(10, 10)[0] < 1
