"""A Gaussian process over architectures: a sum over genes plus interactions, one weight per gene learnt from the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from predictors.kernel import GeneKernel, option_effects
from search_spaces import SearchSpace

__all__ = ["ArchitectureProcess", "Weights"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

ITERATIONS = 60
MOST_FOR_WEIGHTS = 300  # weights are learnt from at most so many rows; the posterior uses all
PRIOR_WIDTH = 1.5  # of the logarithms of weights: a gene may matter some twenty times more than another one
FARTHEST = 15.0  # of those logarithms from the prior's means, so that no line search tries what overflows
_JITTER = 1e-6


@dataclass(frozen=True)
class Weights:
    """Hyperparameters as logarithms.

    Attributes:
        near: of the terms in the distance of the interactions, (terms,).
        alone: of the terms in the sum over genes, (terms,).
        counts: of the counts of options in that distance, (options,).
        both: variance of the interactions of all genes.
        pairs: variance of the interactions of two genes.
        noise: variance of a measurement.
    """

    near: Values
    alone: Values
    counts: Values
    both: float
    pairs: float
    noise: float

    def flat(self) -> Values:
        return np.concatenate([self.near, self.alone, self.counts, [self.both, self.pairs, self.noise]])

    def like(self, flat: Values) -> Weights:
        """Other weights of the same shape."""
        first, second = len(self.near), 2 * len(self.near)
        return Weights(flat[:first], flat[first:second], flat[second:-3], *flat[-3:].tolist())

    @property
    def variance(self) -> float:
        """Of a network, without the noise of a measurement."""
        return float(np.exp(self.both) + np.exp(self.alone).sum() + np.exp(self.pairs))


class ArchitectureProcess:
    """Gaussian process regression with the covariance ``sum over genes + its square + exp(-distance)``, each weighted.

    The sum carries what every gene does on its own, its square what two genes do together, the exponential the rest. The
    distance counts differing genes, and how differently often options are taken: networks with the same options at other
    places are alike, which single genes do not show.
    Weights are the most probable ones under log-normal priors (automatic relevance determination, MacKay 1994; additive
    kernels of several orders, Duvenaud et al. 2011), found by L-BFGS on the marginal likelihood with exact gradients.

    Args:
        space: of the architectures.
        start: weights that the search for weights starts from, e.g. ``weights_`` of a process fitted to fewer values.
        iterations: of that search, at most; 0 takes the weights as they are.
    """

    def __init__(self, space: SearchSpace, *, start: Weights | None = None, iterations: int = ITERATIONS) -> None:
        self.space = space
        self.start = start
        self.iterations = iterations

    def fit(self, rows: Rows, values: Values) -> ArchitectureProcess:
        """Fit to values (N,) of canonical rows (N, genes); ``evidence_`` is then their log marginal likelihood."""
        self.center_, self.scale_ = float(values.mean()), float(values.std()) or 1.0
        target = (values - self.center_) / self.scale_
        self.kernel = GeneKernel(self.space, option_effects(self.space, rows, values))
        hot = self.kernel.one_hot(rows)
        prior = self._prior(hot)
        # Every k-th row, with the last ones, which a search has placed where it matters.
        few = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_FOR_WEIGHTS)).astype(int))
        first = prior if self.start is None else self.start
        self.weights_ = self._fit_weights(hot[few], target[few], first, prior)
        self._hot = hot
        covariance = self._between(hot, hot)
        covariance[np.diag_indices(len(rows))] += np.exp(self.weights_.noise) + _JITTER
        self._root = cholesky(covariance, lower=True)
        self._solved = cho_solve((self._root, True), target)
        self.evidence_ = -float(
            0.5 * target @ self._solved + np.log(np.diag(self._root)).sum() + len(rows) * np.log(self.scale_)
        )
        return self

    # ---- weights --------------------------------------------------------------------------------------------

    def _fit_weights(self, hot: Values, target: Values, first: Weights, prior: Weights) -> Weights:
        if not self.iterations:
            return first
        found = minimize(
            lambda flat: self._loss(first.like(flat), hot, target, prior),
            first.flat(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(mean - FARTHEST, mean + FARTHEST) for mean in prior.flat()],
            options={"maxiter": self.iterations},
        )
        return first.like(found.x)

    def _prior(self, hot: Values) -> Weights:
        """Means of the weights: random networks are a distance of 2 apart, half of the variance belongs to single genes."""
        count = len(self.kernel.terms)
        shares = hot.mean(axis=0)
        total = max(1.0, float(self.kernel.collect(np.outer(shares, shares)).sum()))
        near = np.full(count, np.log(1.5 / total))
        spread = 2 * float((hot @ self.kernel.counts).var(axis=0).sum())
        counts = np.full(self.kernel.counts.shape[1], np.log(0.5 / max(spread, 1e-9)))
        alone = np.full(count, -np.log(max(1, count)))
        return Weights(near, alone, counts, np.log(0.5), np.log(0.1), np.log(1e-3))

    def _loss(self, weights: Weights, hot: Values, target: Values, prior: Weights) -> tuple[float, Values]:
        """Negative log posterior of the weights, and its gradient."""
        count = len(target)
        near, alone, by_count = np.exp(weights.near), np.exp(weights.alone), np.exp(weights.counts)
        both, pairs, noise = np.exp([weights.both, weights.pairs, weights.noise])
        counts = hot @ self.kernel.counts
        distance = hot @ self.kernel.table(near) @ hot.T + _apart(counts, counts, by_count)
        together = both * np.exp(-distance)
        total = alone.sum()
        apart = total - hot @ self.kernel.table(alone) @ hot.T
        squared = pairs / total**2 * apart**2
        covariance = together + apart + squared
        covariance[np.diag_indices(count)] += noise + _JITTER
        try:
            root = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        except (LinAlgError, ValueError):  # weights far outside; the line search steps back
            return 1e10, np.zeros(len(weights.flat()))
        solved = cho_solve((root, True), target, check_finite=False)
        inverse = cho_solve((root, True), np.eye(count), check_finite=False)
        slope = 0.5 * (inverse - np.outer(solved, solved))  # of the likelihood, by the covariance
        far = slope * together
        by_near = -near * self.kernel.collect(hot.T @ far @ hot)
        by_counts = -2 * by_count * (far.sum(axis=1) @ counts**2 - (counts * (far @ counts)).sum(axis=0))
        outer = slope * (1 + 2 * pairs / total**2 * apart)
        by_alone = alone * (outer.sum() - self.kernel.collect(hot.T @ outer @ hot) - 2 / total * np.sum(slope * squared))
        others = [far.sum(), np.sum(slope * squared), noise * np.trace(slope)]
        gradient = np.concatenate([by_near, by_alone, by_counts, others])
        widths = np.append(np.full(len(gradient) - 1, PRIOR_WIDTH), 2.0)
        off = (weights.flat() - prior.flat()) / widths
        likelihood = 0.5 * target @ solved + np.log(np.diag(root)).sum()
        return float(likelihood + 0.5 * off @ off), gradient + off / widths

    # ---- posterior ------------------------------------------------------------------------------------------

    def _between(self, first: Values, second: Values) -> Values:
        """Covariance of the function between one-hot rows, (N, M)."""
        weights = self.weights_
        alone = np.exp(weights.alone).sum() - first @ (self.kernel.table(np.exp(weights.alone)) @ second.T)
        distance = first @ (self.kernel.table(np.exp(weights.near)) @ second.T)
        distance += _apart(first @ self.kernel.counts, second @ self.kernel.counts, np.exp(weights.counts))
        squared = np.exp(weights.pairs) * (alone / np.exp(weights.alone).sum()) ** 2
        result: Values = np.exp(weights.both) * np.exp(-distance) + alone + squared
        return result

    def _covariance(self, rows: Rows) -> Values:
        """With the fitted rows, (N, fitted)."""
        return self._between(self.kernel.one_hot(rows), self._hot)

    def mean(self, rows: Rows) -> Values:
        """Posterior mean, (N,)."""
        mean: Values = self._covariance(rows) @ self._solved * self.scale_ + self.center_
        return mean

    def predict(self, rows: Rows, *, noise: bool = True) -> tuple[Values, Values]:
        """Posterior mean and standard deviation, (N,) each; of a new measurement, or without its noise."""
        covariance = self._covariance(rows)
        explained = solve_triangular(self._root, covariance.T, lower=True, check_finite=False)
        left = np.maximum(self.weights_.variance - (explained**2).sum(axis=0), 0.0) + (
            np.exp(self.weights_.noise) if noise else 0.0
        )
        return (covariance @ self._solved) * self.scale_ + self.center_, np.sqrt(left) * self.scale_

    def residuals(self, left_out: Sequence[NDArray[np.intp]]) -> Values:
        """Prediction minus value of the fitted rows, each part predicted from all others in closed form, (N,)."""
        inverse = cho_solve((self._root, True), np.eye(len(self._solved)))
        found = np.empty(len(self._solved))
        for part in left_out:
            found[part] = -np.linalg.solve(inverse[np.ix_(part, part)], self._solved[part]) * self.scale_
        return found

    def sample(self, rows: Rows, count: int, rng: np.random.Generator) -> Values:
        """Joint draws of the function without measurement noise, (count, N)."""
        hot = self.kernel.one_hot(rows)
        covariance = self._between(hot, self._hot)
        explained = solve_triangular(self._root, covariance.T, lower=True, check_finite=False)
        left = self._between(hot, hot) - explained.T @ explained
        spread, axes = np.linalg.eigh(left)
        draws = rng.normal(size=(count, len(rows))) * np.sqrt(np.maximum(spread, 0.0)) @ axes.T
        return (draws + covariance @ self._solved) * self.scale_ + self.center_  # type: ignore[no-any-return]


def _apart(first: Values, second: Values, weights: Values) -> Values:
    """Weighted sums of squared differences between rows, (N, M)."""
    sums = (first**2 @ weights)[:, None] + (second**2 @ weights)[None, :] - 2 * (first * weights) @ second.T
    return np.maximum(sums, 0.0)
