"""NSGA-II over a search space, on arrays of rows: no object per candidate, so that predictions set the pace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.objectives import Limit, Objective, nearest, violations
from nas.pareto import non_dominated
from nas.selection import survivors
from search_spaces import SearchSpace
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress
from search_spaces.rows import row_keys

__all__ = ["Evolved", "evolve", "nsga2", "skewed_rows"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]
Price = Callable[[Rows], tuple[Values, Values]]


@dataclass(frozen=True)
class Evolved:
    """What an evolution found.

    Attributes:
        front: non-dominated networks within all limits, of all generations, (N, genes).
        population: the last one, best first.
        least: the smallest violation of the limits that was met; 0 where a network within them was.
    """

    front: Rows
    population: Rows
    least: float


def evolve(
    space: SearchSpace,
    price: Price,
    *,
    start: Rows,
    rng: np.random.Generator,
    population: int = 100,
    generations: int = 100,
    progress: Progress = SILENT,
) -> Evolved:
    """NSGA-II (Deb et al. 2002) with uniform crossover and per-gene mutation over options.

    Args:
        price: canonical rows to costs (N, objectives), all minimised, and violations (N,), 0 within the limits.
        start: networks to begin with; random ones of every size fill the population up.
    """
    rows = np.concatenate([start, skewed_rows(space, max(0, population - len(start)), rng)])
    rows = rows[space.unique(rows)]
    costs, violation = price(rows)
    front, front_costs, least = rows[:0], costs[:0], np.inf
    for generation in range(generations):
        if generation:
            first, second = (rows[np.minimum(*rng.integers(len(rows), size=(2, population)))] for _ in range(2))
            made = _new(space.mutate(space.crossover(first, second, rng), rng), rows)
            if len(made):
                made_costs, made_violation = price(made)
                rows, costs = np.concatenate([rows, made]), np.concatenate([costs, made_costs])
                violation = np.concatenate([violation, made_violation])
        within = violation <= 0
        least = min(least, float(violation.min(initial=np.inf)))
        front, front_costs = np.concatenate([front, rows[within]]), np.concatenate([front_costs, costs[within]])
        keep = non_dominated(front_costs)
        front, front_costs = front[keep], front_costs[keep]
        best = survivors(costs, population, violation=violation)
        rows, costs, violation = rows[best], costs[best], violation[best]
        progress.advance()
    return Evolved(front, rows, max(0.0, least))


def skewed_rows(space: SearchSpace, n: int, rng: np.random.Generator) -> Rows:
    """N random networks of every size: each leans towards small or towards large options, (N, genes)."""
    skew = np.exp(rng.normal(size=(n, 1)))
    return space.canonical(np.floor(rng.random((n, len(space.genes))) ** skew * space.lengths).astype(np.int64))


def _new(made: Rows, known: Rows) -> Rows:
    """The distinct rows of ``made`` that are not among ``known``."""
    first = np.unique(row_keys(np.concatenate([known, made])), return_index=True)[1]
    return made[np.sort(first[first >= len(known)]) - len(known)]


def nsga2(
    space: SearchSpace,
    objectives: Sequence[Objective],
    limits: Sequence[tuple[Objective, Limit]],
    *,
    seed: int,
    population: int = 100,
    generations: int = 100,
    progress: Progress = SILENT,
) -> Rows:
    """The non-dominated feasible networks of all generations, (N, genes) canonical rows.

    Raises:
        UserError: no network within all limits was met.
    """

    every = {objective.name: objective for objective in [*objectives, *(objective for objective, _ in limits)]}
    bounds = [limit for _, limit in limits]

    def price(rows: Rows) -> tuple[Values, Values]:
        known = {name: objective.values(rows) for name, objective in every.items()}
        costs = np.column_stack([-known[o.name] if o.maximise else known[o.name] for o in objectives])
        return costs, violations(bounds, known, len(rows))

    ends = space.to_array([space.smallest, space.largest])  # both ends of the front are there from the start
    progress.start("search (NSGA-II)", generations)
    try:
        found = evolve(
            space,
            price,
            start=ends,
            rng=np.random.default_rng(seed),
            population=population,
            generations=generations,
            progress=progress,
        )
    finally:
        progress.stop()
    if not len(found.front):
        last = {name: objective.values(found.population) for name, objective in every.items()}
        raise UserError(
            f"no network of {space.key} was found within all limits together: {', '.join(map(str, bounds))}",
            allowed=f"The nearest one has {nearest(bounds, last, len(found.population))}",
            next_step="Relax a limit",
        )
    return found.front[np.lexsort(price(found.front)[0].T)]
