"""A Gaussian process over architectures: a sum over genes plus interactions, one weight per gene learnt from the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, lapack, solve_triangular
from scipy.optimize import minimize

from predictors.kernel import GeneKernel, Sample, option_effects
from search_spaces import SearchSpace

__all__ = ["ArchitectureProcess", "Weights", "square_root"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

ITERATIONS = 60
MOST_FOR_WEIGHTS = 300  # weights are learnt from at most so many rows; the posterior uses all
PRIOR_WIDTH = 1.5  # of the logarithms of weights: a gene may matter some twenty times more than another one
FARTHEST = 15.0  # of those logarithms from the prior's means, so that no line search tries what overflows
_JITTER = 1e-6  # of the variance of the values, in the covariance of the fitted ones
_ROUNDING = 1e-8  # of the largest variance of draws


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


@dataclass(frozen=True)
class _Side:
    """Rows as one side of a covariance.

    Attributes:
        near: what the distance adds up for a state of the other side, (states, rows).
        own: what it has of the rows alone, (rows,).
        alone: what the sum over genes lacks for a state of the other side, (states, rows).
    """

    near: Values
    own: Values
    alone: Values


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
        self.weights_ = self._fit_weights(rows, target)
        self._fitted = self._side(rows)
        covariance = self._between(self.kernel.one_hot(rows), self._fitted)
        covariance[np.diag_indices(len(rows))] += np.exp(self.weights_.noise) + _JITTER
        self._root = cholesky(covariance, lower=True)
        self._solved = cho_solve((self._root, True), target)
        self._additive = self._sums()
        self.evidence_ = -float(
            0.5 * target @ self._solved + np.log(np.diag(self._root)).sum() + len(rows) * np.log(self.scale_)
        )
        return self

    # ---- weights --------------------------------------------------------------------------------------------

    def _fit_weights(self, rows: Rows, target: Values) -> Weights:
        if self.start is not None and not self.iterations:
            return self.start
        # Every k-th row, with the last ones, which a search has placed where it matters.
        few = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_FOR_WEIGHTS)).astype(int))
        sample = self.kernel.sample(rows[few])
        prior = self._prior(sample)
        first = prior if self.start is None else self.start
        found = minimize(
            lambda flat: self._loss(first.like(flat), sample, target[few], prior),
            first.flat(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(mean - FARTHEST, mean + FARTHEST) for mean in prior.flat()],
            options={"maxiter": self.iterations},
        )
        return first.like(found.x)

    def _prior(self, sample: Sample) -> Weights:
        """Means of the weights: random networks are a distance of 2 apart, half of the variance belongs to single genes."""
        count = len(self.kernel.terms)
        total = max(1.0, float(sample.distances(np.ones(count)).mean()))
        near = np.full(count, np.log(1.5 / total))
        spread = 2 * float(sample.counts.var(axis=0).sum())
        counts = np.full(sample.counts.shape[1], np.log(0.5 / max(spread, 1e-9)))
        alone = np.full(count, -np.log(max(1, count)))
        return Weights(near, alone, counts, np.log(0.5), np.log(0.1), np.log(1e-3))

    def _loss(self, weights: Weights, sample: Sample, target: Values, prior: Weights) -> tuple[float, Values]:
        """Negative log posterior of the weights, and its gradient."""
        count = len(target)
        near, alone, by_count = np.exp(weights.near), np.exp(weights.alone), np.exp(weights.counts)
        both, pairs, noise = np.exp([weights.both, weights.pairs, weights.noise])
        counts = sample.counts
        together = both * np.exp(-(sample.distances(near) + _apart(counts, by_count)))
        total = alone.sum()
        apart = total - sample.distances(alone)
        squared = pairs / total**2 * apart**2
        covariance = together + apart + squared
        covariance[np.diag_indices(count)] += noise + _JITTER
        try:
            root = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        except (LinAlgError, ValueError):  # weights far outside; the line search steps back
            return 1e10, np.zeros(len(weights.flat()))
        solved = cho_solve((root, True), target, check_finite=False)
        inverse = _inverse(root)
        slope = 0.5 * (inverse - np.outer(solved, solved))  # of the likelihood, by the covariance
        far = slope * together
        by_near = -near * sample.collect(far)
        by_counts = -2 * by_count * (far.sum(axis=1) @ counts**2 - (counts * (far @ counts)).sum(axis=0))
        outer = slope * (1 + 2 * pairs / total**2 * apart)
        by_alone = alone * (outer.sum() - sample.collect(outer) - 2 / total * np.sum(slope * squared))
        others = [far.sum(), np.sum(slope * squared), noise * np.trace(slope)]
        gradient = np.concatenate([by_near, by_alone, by_counts, others])
        widths = np.append(np.full(len(gradient) - 1, PRIOR_WIDTH), 2.0)
        off = (weights.flat() - prior.flat()) / widths
        likelihood = 0.5 * target @ solved + np.log(np.diag(root)).sum()
        return float(likelihood + 0.5 * off @ off), gradient + off / widths

    # ---- posterior ------------------------------------------------------------------------------------------

    def _side(self, rows: Rows) -> _Side:
        """What covariances with these rows need of them."""
        weights, counts = self.weights_, self.kernel.one_hot(rows) @ self.kernel.counts
        weighted = counts * np.exp(weights.counts)
        near = self.kernel.reach(rows, np.exp(weights.near)) - 2 * weighted @ self.kernel.counts.T
        return _Side(near.T, (weighted * counts).sum(axis=1), self.kernel.reach(rows, np.exp(weights.alone)).T)

    def _interaction(self, first: Values, second: _Side) -> Values:
        """The covariance's exponential part between one-hot rows, (N, M)."""
        own = (first @ self.kernel.counts) ** 2 @ np.exp(self.weights_.counts)
        distance = first @ second.near
        distance += own[:, None] + second.own
        np.exp(np.negative(distance, out=distance), out=distance)
        distance *= np.exp(self.weights_.both)
        return distance

    def _between(self, first: Values, second: _Side) -> Values:
        """Covariance of the function between one-hot rows, (N, M)."""
        total = np.exp(self.weights_.alone).sum()
        alone = total - first @ second.alone
        result: Values = self._interaction(first, second) + alone + np.exp(self.weights_.pairs) / total**2 * alone**2
        return result

    def _covariance(self, rows: Rows) -> Values:
        """With the fitted rows, (N, fitted)."""
        return self._between(self.kernel.one_hot(rows), self._fitted)

    def _sums(self) -> tuple[Values, Values] | None:
        """What the sum over genes and its square add to the mean: ``hot @ linear + hot @ quadratic @ hot``.

        Sums over the fitted rows, taken once instead of for every prediction. None where the rows are fewer than the states.
        """
        if len(self._fitted.alone) > len(self._solved):
            return None
        total, solved = np.exp(self.weights_.alone).sum(), self._solved
        alone, pairs = self._fitted.alone, np.exp(self.weights_.pairs) / total**2
        along = alone @ solved
        quadratic = pairs * (alone * solved) @ alone.T
        # Every row has as many ones as there are genes: a constant is a linear term.
        constant = (total + pairs * total**2) * solved.sum() / len(self.space.genes)
        return constant - (1 + 2 * pairs * total) * along, quadratic

    def mean(self, rows: Rows) -> Values:
        """Posterior mean, (N,)."""
        hot = self.kernel.one_hot(rows)
        if self._additive is None:
            mean = self._between(hot, self._fitted) @ self._solved
        else:
            linear, quadratic = self._additive
            mean = self._interaction(hot, self._fitted) @ self._solved
            mean += hot @ linear + np.einsum("ns,ns->n", hot @ quadratic, hot)
        return mean * self.scale_ + self.center_  # type: ignore[no-any-return]

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
        inverse = _inverse(self._root)
        found = np.empty(len(self._solved))
        for part in left_out:
            found[part] = -np.linalg.solve(inverse[np.ix_(part, part)], self._solved[part]) * self.scale_
        return found

    def sample(self, rows: Rows, count: int, rng: np.random.Generator) -> Values:
        """Joint draws of the function without measurement noise, (count, N)."""
        hot = self.kernel.one_hot(rows)
        covariance = self._between(hot, self._fitted)
        explained = solve_triangular(self._root, covariance.T, lower=True, check_finite=False)
        left = self._between(hot, self._side(rows)) - explained.T @ explained
        draws = rng.normal(size=(count, len(rows))) @ square_root(left).T
        return (draws + covariance @ self._solved) * self.scale_ + self.center_  # type: ignore[no-any-return]


def _apart(values: Values, weights: Values) -> Values:
    """Weighted sums of squared differences between rows, (N, N)."""
    own = values**2 @ weights
    return np.maximum(own[:, None] + own - 2 * (values * weights) @ values.T, 0.0)


def square_root(covariance: Values) -> Values:
    """A matrix whose product with its transpose is the covariance (N, N), which rounding may have made indefinite."""
    even = covariance + _ROUNDING * max(float(np.diag(covariance).max()), 1e-300) * np.eye(len(covariance))
    try:
        root: Values = cholesky(even, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        spread, axes = np.linalg.eigh(covariance)
        root = axes * np.sqrt(np.maximum(spread, 0.0))
    return root


def _inverse(root: Values) -> Values:
    """Of the matrix that has this lower Cholesky factor."""
    half, _ = lapack.dpotri(root, lower=1)
    half = np.tril(half)
    return half + np.tril(half, -1).T  # type: ignore[no-any-return]
