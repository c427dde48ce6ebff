"""LINAS, the predictor-guided evolution of DyNAS-T, as a baseline."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVR

from nas.evolution import evolve
from nas.strategies.task import Archive, Rows, Task, Values

__all__ = ["Linas"]

POPULATION = 50
INNER_EVALUATIONS = 20_000


class Linas:
    """Lightweight iterative NAS (Sarah et al. 2022): evaluate a population, fit predictors, evolve on them, repeat.

    As published: ridge or support vector regression by cross-validated percentage error on labels scaled by a power of
    ten, refitted to all evaluations; a fresh NSGA-II of 20,000 predicted evaluations and population 50 every time, whose
    last population is evaluated next. Cured: known costs are exact instead of predicted, encodings are masked,
    mutation acts on every gene, networks that were evaluated before are replaced by the next best or random ones.
    Grids are logarithmic (13 and 8 steps) instead of 100 steps each.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.archive = Archive.of(task)
        self.rng = np.random.default_rng([task.seed, 2])
        self._waiting: Rows = np.empty((0, len(task.space.genes)), dtype=np.int64)

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)

    def ask(self, n: int) -> Rows:
        left = self._waiting[self.archive.new(self._waiting)]
        if not len(left):
            left = self._waiting = self._population()
        return left[:n]

    def _population(self) -> Rows:
        size = min(POPULATION, max(2, self.task.budget // 4))
        if not len(self.archive):
            return self.task.draw(size, self.archive, self.rng)
        fitted = {column: self._fit(self.archive.values[:, column]) for column in self.task.measured}

        def price(rows: Rows) -> tuple[Values, Values]:
            values = self.task.known(rows)
            for column, (model, scale) in fitted.items():
                values[:, column] = model.predict(self.task.space.encode_rows(rows)) * scale
            return values[:, self.task.objectives], self.task.excess(values)

        # Every inner run starts from nothing, as published.
        found = evolve(
            self.task.space,
            price,
            start=self.archive.rows[:0],
            rng=self.rng,
            population=POPULATION,
            generations=INNER_EVALUATIONS // POPULATION,
        )
        rows = found.population[:size]
        rows = rows[self.archive.new(rows)]
        rows = rows[self.task.allowed(rows)]
        rows = np.concatenate([rows, self.task.draw(size - len(rows), self.archive, self.rng)])
        return rows[self.task.space.unique(rows)]

    def _fit(self, values: Values) -> tuple[BaseEstimator, float]:
        features = self.task.space.encode_rows(self.archive.rows)
        largest = float(np.abs(values).max()) or 1.0
        scale = 10.0 ** (np.floor(np.log10(largest)) - 1)
        grids = [
            (Ridge(), {"alpha": np.logspace(-1, 1, 13)}),
            (SVR(gamma="auto", epsilon=0.0), {"C": np.logspace(0, 2, 8)}),
        ]
        searches = [
            GridSearchCV(clone(model), grid, scoring="neg_mean_absolute_percentage_error", cv=min(5, len(values)))
            for model, grid in grids
        ]
        for search in searches:
            search.fit(features, values / scale)
        return max(searches, key=lambda search: float(search.best_score_)).best_estimator_, scale
