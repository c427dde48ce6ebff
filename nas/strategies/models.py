"""Models of measured quantities: a Gaussian process over values on a scale that suits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.strategies.task import Rows, Values
from predictors.gaussian_process import ArchitectureProcess
from search_spaces import SearchSpace

__all__ = ["Model", "Scale"]

# Shares of the distance from the best to the median value over which the scale turns logarithmic.
WIDTHS = (np.inf, 1.0, 0.3)
GROWTH = 1.5  # the scale is chosen anew when so many times more values are known
FIRST_ITERATIONS, LATER_ITERATIONS = 60, 15


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
class Model:
    """A fitted quantity (minimised).

    Attributes:
        share: of `WIDTHS`, the one with the greatest evidence.
        chosen_at: how many values were known when it was chosen.
    """

    process: ArchitectureProcess
    scale: Scale
    share: float
    chosen_at: int

    @classmethod
    def fit(cls, space: SearchSpace, rows: Rows, costs: Values, before: Model | None = None) -> Model:
        """Fit, starting from the weights of the model before, on its scale unless there is much more to judge scales by."""
        settled = before is not None and len(costs) < GROWTH * before.chosen_at
        start = None if before is None else before.process
        best: tuple[float, Model] | None = None
        for share in (before.share,) if before is not None and settled else WIDTHS:
            scale = Scale.of(costs, share)
            iterations = FIRST_ITERATIONS if start is None else LATER_ITERATIONS
            process = ArchitectureProcess(space, start=start, iterations=iterations).fit(rows, scale.to(costs))
            chosen_at = before.chosen_at if before is not None and settled else len(costs)
            evidence = process.evidence_ + scale.stretch(costs)
            if best is None or evidence > best[0]:
                best = evidence, cls(process, scale, share, chosen_at)
        assert best is not None
        return best[1]

    def mean(self, rows: Rows) -> Values:
        """Median prediction, (N,)."""
        return self.scale.back(self.process.mean(rows))

    def optimistic(self, rows: Rows, deviations: float) -> Values:
        """So many standard deviations below the mean, (N,)."""
        mean, std = self.process.predict(rows, noise=False)
        return self.scale.back(mean - deviations * std)

    def sample(self, rows: Rows, count: int, rng: np.random.Generator) -> Values:
        """Joint draws without measurement noise, (count, N)."""
        return self.scale.back(self.process.sample(rows, count, rng))
