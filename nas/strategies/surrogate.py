"""The default strategy: processes for what is measured, exact values for what is known, batches by gain of hypervolume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.evolution import evolve, skewed_rows
from nas.pareto import non_dominated
from nas.selection import survivors
from nas.strategies.gain import choose_batch, directions
from nas.strategies.models import Broken, Model
from nas.strategies.task import Archive, Rows, Task, Values
from predictors.threads import one_thread

__all__ = ["Surrogate"]

FIRST = 20  # evaluations before the first model, at least where the budget allows
DRAWS = 256
RAYS = 128
POPULATION = 200
GENERATIONS = 40
CANDIDATES = 600
NEAR = 100  # evaluated networks that draws include: the best by value, and the best by prediction
TRAINING = 1500
MARGIN = 0.5  # from the worst values of the front to the reference point, in its spans


class Surrogate:
    """Surrogate-assisted search with uncertainty.

    Every proposal fits one Gaussian process per measured quantity, evolves networks on the predictions (the mean, and
    an optimistic bound), and takes from them, greedily, the batch with the greatest expected gain of hypervolume under
    joint draws of the posterior. The draws include evaluated networks, so noise does not pass for progress (noisy
    expected hypervolume improvement, Daulton et al. 2021, on a finite set of candidates).
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.archive = Archive.of(task)
        self.rng = np.random.default_rng([task.seed, 2])
        self._models: dict[int, Model] = {}

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)

    @one_thread()
    def ask(self, n: int) -> Rows:
        first = max(2, min(FIRST, self.task.budget // 2))
        if len(self.archive) < first:
            return self._design(n)
        models = self._fit()
        candidates = self._candidates(models, n)
        if len(candidates) <= n:
            return candidates
        return candidates[self._choose(models, candidates, n)]

    # ---- the first batch ------------------------------------------------------------------------------------

    def _design(self, n: int) -> Rows:
        """The ends of the space and of the known costs, then networks of every size, every option about equally often."""
        task, space = self.task, self.task.space
        ends = [space.to_array([space.smallest, space.largest]), self._known_ends()]
        pool = [skewed_rows(space, 20 * n, self.rng), task.draw(20 * n, self.archive, self.rng)]
        rows = np.concatenate(ends + pool)
        first = self._new(np.concatenate(ends))
        return self._balanced(self._new(rows), min(n, len(first)), n)

    def _known_ends(self) -> Rows:
        """The networks with the smallest value of each known quantity."""
        known = self.task.priced
        front = self.task.nearest.front if known else self.archive.rows[:0]
        if not len(front):
            return front
        best: Rows = front[self.task.known(front)[:, known].argmin(axis=0)]
        return best

    def _new(self, rows: Rows) -> Rows:
        """Those that may be proposed: each once, not evaluated, within the known limits."""
        rows = rows[self.archive.new(rows)]
        rows = rows[self.task.space.unique(rows)]
        return rows[self.task.allowed(rows)]

    def _balanced(self, rows: Rows, first: int, n: int) -> Rows:
        """The first rows, then always the one whose options were taken least so far; n in all."""
        hot = self.task.space.encode_rows(rows).astype(np.float64)
        counts = self.task.space.encode_rows(self.archive.rows).sum(axis=0) + hot[:first].sum(axis=0)
        left, chosen = np.ones(len(rows), dtype=bool), list(range(first))
        left[:first] = False
        genes = np.maximum(1.0, hot.sum(axis=1))
        while len(chosen) < min(n, len(rows)):
            rarity = np.where(left, hot @ (1.0 / (1.0 + counts)) / genes, -1.0)
            best = int(rarity.argmax())
            chosen.append(best)
            left[best] = False
            counts += hot[best]
        return rows[chosen]

    # ---- later batches --------------------------------------------------------------------------------------

    def _fit(self) -> dict[int, Model]:
        rows = self._training()
        columns = self.archive.values[rows][:, self.task.measured].T  # (measured, N)
        broken = np.array([costs > Broken.bound(costs) for costs in columns], dtype=bool)
        for column, costs, own in zip(self.task.measured, columns, broken, strict=True):
            # How fast a cell without a path is tells nothing about the latency of cells that are of use.
            use = broken.sum(axis=0) == own
            use |= use.sum() < len(use) / 2
            known = self.archive.rows[rows[use]]
            self._models[column] = Model.fit(self.task.space, known, costs[use], self._models.get(column))
        return self._models

    def _training(self) -> NDArray[np.intp]:
        """What models learn from: everything, or the best half of so many and others evenly over time."""
        count = len(self.archive)
        if count <= TRAINING:
            return np.arange(count)
        others = np.linspace(0, count - 1, TRAINING // 2).astype(np.intp)
        return np.unique(np.concatenate([self._best(self.archive.values, TRAINING // 2), others]))

    def _best(self, values: Values, n: int) -> NDArray[np.intp]:
        return survivors(values[:, self.task.objectives], n, violation=self.task.excess(values))

    def _candidates(self, models: dict[int, Model], n: int) -> Rows:
        """New networks on or near the predicted fronts, (N, genes)."""
        task, space = self.task, self.task.space
        good = self._front()
        start = np.concatenate([self.archive.rows[good], self.archive.rows[:2]])

        def price(rows: Rows, optimism: float) -> tuple[Values, Values]:
            values = task.known(rows)
            for column, model in models.items():
                values[:, column] = model.optimistic(rows, optimism) if optimism else model.mean(rows)
            return values[:, task.objectives], task.excess(values)

        pools = []
        for optimism, generations in ((0.0, GENERATIONS), (1.0, GENERATIONS // 2)):
            found = evolve(
                space,
                lambda rows, optimism=optimism: price(rows, optimism),  # type: ignore[misc]
                start=start,
                rng=self.rng,
                population=POPULATION,
                generations=generations,
            )
            pools += [found.front[self.rng.permutation(len(found.front))[: CANDIDATES // 3]], found.population[:POPULATION]]
            start = np.concatenate([start, found.front])
        parents = np.concatenate([self.archive.rows[good], pools[0]])
        pools.append(space.mutate(parents[self.rng.integers(len(parents), size=CANDIDATES // 4)], self.rng))
        rows = self._new(np.concatenate(pools))[:CANDIDATES]
        if len(rows) > 2 * n:
            return rows
        rows = np.concatenate([rows, task.draw(3 * n, self.archive, self.rng)])
        return rows[space.unique(rows)]

    def _front(self) -> NDArray[np.intp]:
        """The front of the evaluated networks within the limits, or of those that violate them least."""
        violation = self.task.excess(self.archive.values)
        inside = np.flatnonzero(violation <= violation.min())
        return inside[non_dominated(self.archive.values[inside][:, self.task.objectives])]

    def _choose(self, models: dict[int, Model], candidates: Rows, n: int) -> list[int]:
        task, values = self.task, self.archive.values.copy()
        for column, model in models.items():
            values[:, column] = model.mean(self.archive.rows)
        # Under noise the front by value and the front that is believed in differ; both say what a candidate has to beat.
        near = np.unique(np.concatenate([self._best(self.archive.values, NEAR), self._best(values, NEAR)]))
        rows = np.concatenate([self.archive.rows[near], candidates])
        draws = np.repeat(task.known(rows)[None], DRAWS, axis=0)
        for column, model in models.items():
            draws[:, :, column] = model.sample(rows, DRAWS, self.rng)
        excess = task.excess(draws)
        within, draws = excess <= 0, draws[:, :, task.objectives]
        low, high = _extent(draws, within)
        span = np.where(high > low, high - low, 1.0)
        costs = (draws - (high + MARGIN * span)) / span
        # Where no gain tells candidates apart: the nearest to the limits first, then the least certain.
        order = np.lexsort((-draws[:, len(near) :].std(axis=0).sum(axis=-1), excess[:, len(near) :].mean(axis=0)))
        turned = np.concatenate([np.arange(len(near)), len(near) + order])
        rays = directions(RAYS, len(task.objectives), self.rng)
        chosen = choose_batch(costs[:, turned], within[:, turned], len(near), n, rays)
        return [int(order[index]) for index in chosen]


def _extent(draws: Values, within: NDArray[np.bool_]) -> tuple[Values, Values]:
    """Where the front may end: ideal and worst values of the drawn fronts, (objectives,) each.

    The front of the evaluated networks alone would give no credit to networks beyond its ends.
    """
    ends = []
    for costs, inside in zip(draws, within, strict=True):
        front = costs[inside] if inside.any() else costs
        front = front[non_dominated(front)]
        ends.append((front.min(axis=0), front.max(axis=0)))
    low, high = np.array([a for a, _ in ends]), np.array([b for _, b in ends])
    return np.quantile(low, 0.1, axis=0), np.quantile(high, 0.9, axis=0)
