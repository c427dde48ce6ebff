"""The default strategy: Gaussian processes for what is measured, exact values for what is known, batches by hypervolume gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.evolution import evolve, skewed_rows
from nas.pareto import non_dominated
from nas.strategies.gain import choose_batch, directions
from nas.strategies.task import Archive, Rows, Task, Values
from predictors.gaussian_process import ArchitectureProcess

__all__ = ["Surrogate"]

FIRST = 20  # evaluations before the first model, at least where the budget allows
DRAWS = 64
RAYS = 128
POPULATION = 200
GENERATIONS = 40
CANDIDATES = 600


@dataclass(frozen=True)
class _Model:
    """A quantity's process over values whose bad tail is compressed: how bad a bad network is says little about good ones."""

    process: ArchitectureProcess
    knee: float
    width: float

    @classmethod
    def fit(cls, process: ArchitectureProcess, rows: Rows, costs: Values) -> _Model:
        low, middle = np.quantile(costs, [0.05, 0.5])
        width = float(middle - low) or float(np.ptp(costs)) or 1.0
        knee = float(middle + 2.0 * width)
        over = np.maximum(costs - knee, 0.0)
        return cls(process.fit(rows, np.minimum(costs, knee) + width * np.log1p(over / width)), knee, width)

    def back(self, values: Values) -> Values:
        over = np.clip((values - self.knee) / self.width, 0.0, 50.0)
        return np.minimum(values, self.knee) + self.width * np.expm1(over)


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
        self._models: dict[int, ArchitectureProcess] = {}
        self._proposal = 0

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)

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
        pool = [space.to_array([space.smallest, space.largest])]
        if task.bounds.size and len(task.measured) < len(task.quantities):
            front = task.nearest.front
            pool.append(front[:1])
        count = max(2, 40 * n)
        pool += [skewed_rows(space, count // 2, self.rng), self.task.draw(count // 2, self.archive, self.rng)]
        rows = np.concatenate(pool)
        rows = rows[space.unique(rows)] if False else rows
        rows = rows[self.archive.new(rows)]
        rows = rows[task.allowed(rows)]
        rows = rows[space.unique(rows)]
        return self._balanced(rows, n)

    def _balanced(self, rows: Rows, n: int) -> Rows:
        """The first two rows, then always the one whose options were taken least so far."""
        hot = self.task.space.encode_rows(rows).astype(np.float64)
        hot /= np.maximum(1.0, np.repeat(self.task.space.lengths, self.task.space.lengths))[None, :] ** 0.0
        chosen = list(range(min(2, len(rows), n))) if not len(self.archive) else []
        counts = self.task.space.encode_rows(self.archive.rows).sum(axis=0) if len(self.archive) else np.zeros(hot.shape[1])
        counts = counts + hot[chosen].sum(axis=0)
        left = np.ones(len(rows), dtype=bool)
        left[chosen] = False
        while len(chosen) < min(n, len(rows)):
            score = hot @ (1.0 / (1.0 + counts)) / np.maximum(1.0, hot.sum(axis=1))
            score[~left] = -np.inf
            best = int(score.argmax())
            chosen.append(best)
            left[best] = False
            counts = counts + hot[best]
        return rows[chosen]

    # ---- later batches --------------------------------------------------------------------------------------

    def _fit(self) -> dict[int, _Model]:
        models = {}
        for column in self.task.measured:
            before = self._models.get(column)
            process = ArchitectureProcess(self.task.space, start=before, iterations=60 if before is None else 15)
            models[column] = _Model.fit(process, self.archive.rows, self.archive.values[:, column])
            self._models[column] = process
        self._proposal += 1
        return models

    def _candidates(self, models: dict[int, _Model], n: int) -> Rows:
        """New networks on or near the predicted fronts, (N, genes)."""
        task, space = self.task, self.task.space
        good = self._front(self.archive.values)
        start = np.concatenate([self.archive.rows[good], self.archive.rows[:2]])

        def price(rows: Rows, optimism: float) -> tuple[Values, Values]:
            values = task.known(rows)
            for column, model in models.items():
                if optimism:
                    mean, std = model.process.predict(rows, noise=False)
                    values[:, column] = model.back(mean - optimism * std)
                else:
                    values[:, column] = model.back(model.process.mean(rows))
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
        rows = np.concatenate(pools)
        rows = rows[self.archive.new(rows)]
        rows = rows[space.unique(rows)]
        rows = rows[task.allowed(rows)][:CANDIDATES]
        if len(rows) <= 2 * n:
            more = task.draw(3 * n, self.archive, self.rng)
            rows = np.concatenate([rows, more])
            rows = rows[space.unique(rows)]
        return rows

    def _front(self, values: Values) -> NDArray[np.intp]:
        """The best evaluated networks: the front of those within the limits, or of the least violation."""
        violation = self.task.excess(values)
        inside = np.flatnonzero(violation <= violation.min())
        return inside[non_dominated(values[inside][:, self.task.objectives])]

    def _choose(self, models: dict[int, _Model], candidates: Rows, n: int) -> list[int]:
        task = self.task
        good = self._front(self.archive.values)
        near = np.unique(np.concatenate([good, self._near(models)]))
        rows = np.concatenate([self.archive.rows[near], candidates])
        draws = np.repeat(task.known(rows)[None], DRAWS, axis=0)
        for column, model in models.items():
            draws[:, :, column] = model.back(model.process.sample(rows, DRAWS, self.rng))
        within = task.excess(draws) <= 0
        top = self.archive.values[good][:, task.objectives]
        low, high = top.min(axis=0), top.max(axis=0)
        wide = np.ptp(self.archive.values[:, task.objectives], axis=0)
        span = np.where(high > low, high - low, np.where(wide > 0, wide, 1.0))
        costs = (draws[:, :, task.objectives] - (high + 0.1 * span)) / span
        rays = directions(RAYS, len(task.objectives), self.rng)
        chosen, _ = choose_batch(costs, within, len(near), n, rays)
        return chosen

    def _near(self, models: dict[int, _Model]) -> NDArray[np.intp]:
        """Evaluated networks whose predicted values are non-dominated: under noise, the front that is believed in."""
        values = self.archive.values.copy()
        for column, model in models.items():
            values[:, column] = model.back(model.process.mean(self.archive.rows))
        return self._front(values)
