"""Models of measured quantities: a Gaussian process over values on a scale that suits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.strategies.task import Rows, Values
from predictors.gaussian_process import ArchitectureProcess
from search_spaces import SearchSpace

__all__ = ["Broken", "Model", "Scale"]

# Shares of the distance from the best to the median value over which the scale turns logarithmic.
WIDTHS = (np.inf, 1.0, 0.3)
# The scale is chosen anew, and weights are fitted anew, when so many times more values are known.
SCALE_GROWTH, WEIGHTS_GROWTH = 1.5, 1.05
FIRST_ITERATIONS, LATER_ITERATIONS = 60, 15
# Beyond so many times the distance from the best to the median value, counted from the median, a network is broken.
BROKEN = 3.0


@dataclass(frozen=True)
class Scale:
    """A monotone scale for costs that is linear near the best value and logarithmic far from it.

    How bad a bad network is says little about good ones (a cell without gradient, a network that swaps memory); a
    process on the plain scale would bend to explain it.
    """

    best: float
    width: float

    @classmethod
    def of(cls, costs: Values, share: float) -> Scale:
        best = float(costs.min())
        width = float(np.median(costs) - best) or float(np.ptp(costs)) or 1.0
        return cls(best, share * width)

    def to(self, costs: Values) -> Values:
        if np.isinf(self.width):
            return costs
        return self.width * np.log1p((costs - self.best) / self.width)

    def back(self, values: Values) -> Values:
        if np.isinf(self.width):
            return values
        return self.best + self.width * np.expm1(np.minimum(values / self.width, 50.0))

    def stretch(self, costs: Values) -> float:
        """Logarithm of the scale's derivative, summed over the costs: makes evidence on different scales comparable."""
        if np.isinf(self.width):
            return 0.0
        return -float(np.log1p((costs - self.best) / self.width).sum())


@dataclass(frozen=True)
class Broken:
    """Which networks break down: values far worse than all others, such as the accuracy of a cell without a path.

    They are another regime: a process that has to reach them has little precision left among working networks, and on a
    scale that is wide for them its draws promise that some of them work. So a process of its own says where they are.

    Attributes:
        process: of 1 for broken and 0 for working networks; a draw above a half is broken.
        value: what a broken network is taken to have.
    """

    process: ArchitectureProcess
    value: float

    @staticmethod
    def bound(costs: Values) -> float:
        """The worst value of a working network, infinite where half of all are as good as the best.

        Positive costs are compared by their ratios: latencies of good networks may well span a factor of ten.
        """
        positive = bool(costs.min() > 0)
        seen = np.log(costs) if positive else costs
        median = float(np.median(seen))
        spread = median - float(seen.min())
        if spread <= 0:
            return float(np.inf)
        bound = median + BROKEN * spread
        return float(np.exp(min(bound, 700.0))) if positive else bound

    @classmethod
    def fit(
        cls, space: SearchSpace, rows: Rows, costs: Values, bound: float, before: Broken | None, iterations: int
    ) -> Broken | None:
        """None where nothing is broken."""
        broken = costs > bound
        if not broken.any():
            return None
        start = None if before is None else before.process.weights_
        process = ArchitectureProcess(space, start=start, iterations=FIRST_ITERATIONS if before is None else iterations)
        return cls(process.fit(rows, broken.astype(np.float64)), float(np.median(costs[broken])))

    def put(self, levels: Values, values: Values) -> Values:
        """The values (...), replaced where the level of the process says broken."""
        mixed: NDArray[np.float64] = np.where(levels > 0.5, self.value, values)
        return mixed


@dataclass(frozen=True)
class Model:
    """A fitted quantity (minimised).

    Attributes:
        process: of the values of working networks; broken ones count as the worst of these.
        broken: where networks break down; None if none did.
        share: of `WIDTHS`, the one with the greatest evidence.
        chosen_at: how many values were known when it was chosen.
        fitted_at: how many when the weights were fitted.
    """

    process: ArchitectureProcess
    broken: Broken | None
    scale: Scale
    share: float
    chosen_at: int
    fitted_at: int

    @classmethod
    def fit(cls, space: SearchSpace, rows: Rows, costs: Values, before: Model | None = None) -> Model:
        """Fit, starting from the model before: its scale and its weights, until there is much more to judge them by."""
        count = len(costs)
        if before is None:
            return cls._best(space, rows, costs, WIDTHS, None, FIRST_ITERATIONS, (count, count))
        if count >= SCALE_GROWTH * before.chosen_at:
            return cls._best(space, rows, costs, WIDTHS, before, LATER_ITERATIONS, (count, count))
        if count >= WEIGHTS_GROWTH * before.fitted_at:
            return cls._best(space, rows, costs, (before.share,), before, LATER_ITERATIONS, (before.chosen_at, count))
        return cls._best(space, rows, costs, (before.share,), before, 0, (before.chosen_at, before.fitted_at))

    @classmethod
    def _best(
        cls,
        space: SearchSpace,
        rows: Rows,
        costs: Values,
        shares: Sequence[float],
        before: Model | None,
        iterations: int,
        at: tuple[int, int],
    ) -> Model:
        """The model with the greatest evidence among scales."""
        start = None if before is None else before.process.weights_
        bound = Broken.bound(costs)
        broken = Broken.fit(space, rows, costs, bound, None if before is None else before.broken, iterations)
        costs = np.minimum(costs, bound)
        models, evidence = [], []
        for share in shares:
            scale = Scale.of(costs, share)
            process = ArchitectureProcess(space, start=start, iterations=iterations)
            process.fit(rows, scale.to(costs))
            models.append(cls(process, broken, scale, share, *at))
            evidence.append(process.evidence_ + scale.stretch(costs))
        return models[int(np.argmax(evidence))]

    def mean(self, rows: Rows) -> Values:
        """Median prediction, (N,)."""
        values = self.scale.back(self.process.mean(rows))
        return values if self.broken is None else self.broken.put(self.broken.process.mean(rows), values)

    def optimistic(self, rows: Rows, deviations: float) -> Values:
        """So many standard deviations below the mean, (N,)."""
        mean, std = self.process.predict(rows, noise=False)
        values = self.scale.back(mean - deviations * std)
        if self.broken is None:
            return values
        level, spread = self.broken.process.predict(rows, noise=False)
        return self.broken.put(level - deviations * spread, values)

    def sample(self, rows: Rows, count: int, rng: np.random.Generator) -> Values:
        """Joint draws without measurement noise, (count, N)."""
        values = self.scale.back(self.process.sample(rows, count, rng))
        return values if self.broken is None else self.broken.put(self.broken.process.sample(rows, count, rng), values)
