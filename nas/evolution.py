"""NSGA-II over a search space: pymoo's algorithm with operators on rows of option indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling

from nas.objectives import Limit, Objective
from nas.pareto import non_dominated
from search_spaces import SearchSpace
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

__all__ = ["nsga2"]

Rows = NDArray[np.int64]


class _Costs(Problem):  # type: ignore[misc]
    """Objectives (minimised) and limits of whole populations."""

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective], limits: Sequence[tuple[Objective, Limit]]) -> None:
        super().__init__(n_var=len(space.genes), n_obj=len(objectives), n_ieq_constr=len(limits), xl=0, xu=space.lengths - 1)
        self.objectives, self.limits = objectives, limits

    def _evaluate(self, x: Rows, out: dict[str, Any], *_args: Any, **_kwargs: Any) -> None:
        rows = x.astype(np.int64)
        known = {objective.name: objective.values(rows) for objective in self.objectives}
        out["F"] = np.column_stack([-known[o.name] if o.maximise else known[o.name] for o in self.objectives])
        # A violation in shares of the bound, so that limits of different units weigh alike.
        excess = [limit.excess(known.get(o.name, o.values(rows))) / limit.bound for o, limit in self.limits]
        out["G"] = np.column_stack(excess) if excess else np.empty((len(rows), 0))


class _Start(Sampling):  # type: ignore[misc]
    """The smallest and the largest network, then networks of every size: both ends of the front are there from the start."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, _problem: Problem, n_samples: int, *, random_state: np.random.Generator, **_kwargs: Any) -> Rows:
        ends = self.space.to_array([self.space.smallest, self.space.largest])
        skew = np.exp(random_state.normal(size=(n_samples, 1)))
        draws = random_state.random((n_samples, len(self.space.genes))) ** skew
        rows = np.concatenate([ends, self.space.canonical(np.floor(draws * self.space.lengths).astype(np.int64))])
        return rows[:n_samples]


class _UniformCrossover(Crossover):  # type: ignore[misc]
    def __init__(self, space: SearchSpace) -> None:
        super().__init__(2, 2)
        self.space = space

    def _do(self, _problem: Problem, parents: Rows, *, random_state: np.random.Generator, **_kwargs: Any) -> Rows:
        first, second = parents.astype(np.int64)  # each (matings, genes)
        children = [self.space.crossover(first, second, random_state), self.space.crossover(second, first, random_state)]
        return np.stack(children)


class _GeneMutation(Mutation):  # type: ignore[misc]
    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, _problem: Problem, rows: Rows, *, random_state: np.random.Generator, **_kwargs: Any) -> Rows:
        return self.space.mutate(rows.astype(np.int64), random_state)


class _Distinct(DuplicateElimination):  # type: ignore[misc]
    """Rows are canonical, so equal networks have equal bytes."""

    def _do(self, population: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        seen = set() if other is None else {row.tobytes() for row in other.get("X").astype(np.int64)}
        for index, row in enumerate(population.get("X").astype(np.int64)):
            key = row.tobytes()
            is_duplicate[index] |= key in seen
            seen.add(key)
        return is_duplicate


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

    NSGA-II (Deb et al. 2002) as pymoo has it, with uniform crossover and per-gene mutation over options, and a memory
    of every network it met: the front is taken from all of them, not from the last population alone.

    Raises:
        UserError: no network within all limits was met.
    """
    problem = _Costs(space, objectives, limits)
    algorithm = NSGA2(
        pop_size=population,
        sampling=_Start(space),
        crossover=_UniformCrossover(space),
        mutation=_GeneMutation(space),
        eliminate_duplicates=_Distinct(),
    )
    algorithm.setup(problem, termination=("n_gen", generations), seed=seed)
    rows, costs = np.empty((0, len(space.genes)), dtype=np.int64), np.empty((0, len(objectives)))
    least = np.inf
    progress.start("search (NSGA-II)", generations)
    try:
        while algorithm.has_next():
            found = algorithm.ask()
            if found is None or not len(found):  # every network of a small space was met
                break
            algorithm.evaluator.eval(problem, found)
            algorithm.tell(infills=found)
            violation = np.clip(found.get("G"), 0, None).sum(axis=1)
            least = min(least, float(violation.min(initial=np.inf)))
            good = violation <= 0
            rows = np.concatenate([rows, found.get("X")[good].astype(np.int64)])
            costs = np.concatenate([costs, found.get("F")[good]])
            if len(rows):
                keep = non_dominated(costs)
                rows, costs = rows[keep], costs[keep]
            progress.advance()
    finally:
        progress.stop()
    if not len(rows):
        names = ", ".join(str(limit) for _, limit in limits)
        raise UserError(
            f"no network of {space.key} was found within all limits together: {names}",
            allowed=f"The nearest one exceeds them by {least:.1%} of the bounds in sum",
            next_step="Relax a limit",
        )
    return rows[np.lexsort(costs.T)]
