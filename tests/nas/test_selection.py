"""Survival by rank and crowding against pymoo's."""

from __future__ import annotations

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from nas.selection import survivors

Merits = list[tuple[float, float]]


def merits(costs: np.ndarray, n: int, violation: np.ndarray | None = None) -> tuple[Merits, Merits]:
    """Rank and crowding, as pymoo has them, of the rows that survive there and here; (inf, violation) outside limits.

    Not the rows themselves: where several are equally good at the cut, pymoo draws among them.
    """
    population = Population.new(X=np.arange(len(costs))[:, None], F=costs)
    if violation is not None:
        population.set("G", violation[:, None])
    problem = Problem(n_var=1, n_obj=costs.shape[1], n_ieq_constr=0 if violation is None else 1)
    kept = RankAndCrowding().do(problem, population, n_survive=n, random_state=np.random.default_rng(0))

    def merit(index: int) -> tuple[float, float]:
        if violation is not None and violation[index] > 0:
            return (np.inf, float(violation[index]))
        return (population[index].get("rank"), -population[index].get("crowding"))

    ours = survivors(costs, n, violation=violation).tolist()
    assert len(set(ours)) == min(n, len(costs))
    return sorted(map(merit, kept.get("X")[:, 0].tolist())), sorted(map(merit, ours))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_rows_survive_as_in_pymoo(objectives: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.random((150, objectives)) ** 2
    for n in (40, 75, 149):
        theirs, ours = merits(costs, n)
        assert ours == theirs


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_break_limits_come_last(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, violation = rng.random((120, 2)), np.clip(rng.normal(size=120), 0, None)
    for n in (30, 100):
        theirs, ours = merits(costs, n, violation)
        assert ours == theirs
        assert (np.diff(violation[survivors(costs, n, violation=violation)]) >= 0).all()


@pytest.mark.parametrize("objectives", [2, 3])
def test_order_and_ties(objectives: int) -> None:
    rng = np.random.default_rng(1)
    costs = rng.integers(0, 6, (200, objectives)).astype(float)  # many equal rows and equal values
    order = survivors(costs, 500)
    assert sorted(order.tolist()) == list(range(200))
    dominated_by = (costs[:, None] <= costs[None]).all(axis=2) & (costs[:, None] < costs[None]).any(axis=2)
    place = np.argsort(order)
    assert all(place[a] < place[b] for a, b in np.argwhere(dominated_by))  # nobody stands before one that beats it
    front = ~dominated_by.any(axis=0)
    assert front[order[: front.sum()]].all()


def test_small_cases() -> None:
    assert survivors(np.empty((0, 2)), 3).shape == (0,)
    assert survivors(np.ones((1, 2)), 3).tolist() == [0]
    assert set(survivors(np.ones((3, 2)), 2).tolist()) <= {0, 1, 2}
    assert survivors(np.ones((2, 1)), 5, violation=np.array([2.0, 1.0])).tolist() == [1, 0]
