"""Latency of whole networks without tables: learnt from measured networks, or carried over from other devices with a few.

Both treat the logarithm or the value of a latency as what it is, a number that counts relatively.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search_spaces import Architecture, SearchSpace
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from latency_tables import LatencyTable
    from predictors import Prediction

__all__ = ["FewShotLatency", "LatencyPredictor"]

Values = NDArray[np.float64]
Archs = Any  # an architecture, a list of them, or an (N, genes) array
Source = Callable[[Archs], Any]

FEWEST = 4
POOL = 1500  # networks from which the ones to measure are chosen
# The prior of a new device: how far it may be from the mean of the known ones, and how far genes may act on their own.
SPREADS = (1.0, 2.0, 4.0)
NOISES = (0.01, 0.02, 0.04, 0.08, 0.16)  # of a measurement, relative
OWN = (0.0, 0.03, 0.1)
SLOPE = 0.1  # variance of the slope around 1
LEVEL = 4.0  # variance of the level, in logarithms


class LatencyPredictor:
    """Latency learnt from measured whole networks, by a predictor on milliseconds or on their logarithm.

    Which of the two is decided by the mean relative error in cross-validation: what adds up is a sum in milliseconds, what
    multiplies (a runtime that is slower throughout) is one in logarithms. A factor, from the same left-out predictions, makes
    that error smallest: where noise only ever slows a network down, the mean is not the best guess.

    Args:
        kind: of predictor, see `nas.predictor`.
    """

    def __init__(self, space: SearchSpace, *, kind: str = "gaussian-process") -> None:
        self.space = space
        self.kind = kind

    def fit(self, archs: Archs, latency_ms: ArrayLike) -> LatencyPredictor:
        """Learn from measured networks, (N,) ms.

        Raises:
            UserError: times that are not finite and positive, or too few of them.
        """
        import predictors

        values = _checked(latency_ms)
        fitted = {}
        for form, target in (("ms", values), ("log", np.log(values))):
            model = predictors.build(self.kind, self.space).fit(archs, target)
            told = target + model.model_.residuals_ * model.scale_  # of networks that the model did not learn from
            told = np.maximum(told, values.min() / 2) if form == "ms" else np.exp(told)
            factor = _least_error_factor(told, values)
            fitted[form] = (float(np.mean(np.abs(factor * told / values - 1))), factor, model)
        self.form_ = min(fitted, key=lambda form: fitted[form][0])
        self.error_, self.factor_, self.model_ = fitted[self.form_]
        self.least_ms_ = float(values.min()) / 2
        return self

    def predict(self, archs: Archs) -> Prediction:
        """Mean and spread in ms, (N,) each."""
        from predictors import Prediction

        if not hasattr(self, "model_"):
            raise _not_fitted("LatencyPredictor")
        found = self.model_.predict(archs)
        if self.form_ == "log":
            mean = self.factor_ * np.exp(found.mean)
            return Prediction(mean, mean * found.std)  # to first order
        return Prediction(self.factor_ * np.maximum(found.mean, self.least_ms_), self.factor_ * found.std)


class FewShotLatency:
    """A new device's latency from 10 to 30 measured networks and what is known of other devices.

    In logarithms, a new device is a mixture of the known ones, each with a slope and a level of its own, plus what single
    genes do here alone. Two estimates are averaged: known devices weighted by how well each explains the measured networks
    (left out one by one), and a Gaussian process whose prior is the known devices' own variation (hyperparameters averaged by
    evidence). With one known device it is the recipe log y = a + b log f + ridge residual.

    Args:
        sources: latency tables of other devices over the space, or functions of architectures that give (N,) ms.
    """

    def __init__(self, space: SearchSpace, sources: Sequence[LatencyTable | Source]) -> None:
        if not sources:
            raise UserError(
                "no known device", allowed="At least one table or predictor of another device", next_step="Profile one first"
            )
        self.space = space
        self.sources: list[Source] = [source if callable(source) else source.estimate for source in sources]

    def choose(self, n: int = 10, *, among: Archs | None = None, seed: int = 0) -> list[Architecture]:
        """The networks to measure: each one where the known devices leave the most open, given those chosen before.

        Args:
            among: networks to choose from; None draws some.

        Raises:
            UserError: fewer than 4, or more than there are.
        """
        rows = self.space.sample_rows(POOL, np.random.default_rng(seed)) if among is None else self.space.rows(among)
        rows = rows[self.space.unique(rows)]
        if not FEWEST <= n <= len(rows):
            raise UserError(f"{n} networks", allowed=f"{FEWEST} to {len(rows)}", next_step="Choose about 10 to 30")
        known = self._known(rows)
        return self.space.from_array(rows[spread_out(self._parts(known - known.mean(axis=0), rows, 2.0, OWN[1]), n)])

    def fit(self, archs: Archs, latency_ms: ArrayLike) -> FewShotLatency:
        """Learn from measured networks, (N,) ms.

        Raises:
            UserError: times that are not finite and positive, or fewer than 4.
        """
        self.values_ = np.log(_checked(latency_ms))
        self.rows_ = self.space.rows(archs)
        if len(self.rows_) != len(self.values_):
            raise UserError(
                f"{len(self.rows_)} networks, {len(self.values_)} times", allowed="One time each", next_step="Give as many"
            )
        self.known_ = self._known(self.rows_)
        self.centre_ = self.known_.mean(axis=0)
        return self

    def predict(self, archs: Archs) -> Prediction:
        """Mean and spread in ms, (N,) each."""
        from predictors import Prediction

        if not hasattr(self, "known_"):
            raise _not_fitted("FewShotLatency")
        rows = self.space.rows(archs)
        known = self._known(rows)
        process, std = self._process(rows, known)
        mean = np.exp((process + self._mixture(known)) / 2)
        return Prediction(mean, mean * std)

    def _known(self, rows: NDArray[np.int64]) -> Values:
        """Logarithms of the known devices' latencies, (N, devices)."""
        from nas.problems import takes_rows

        archs = None if all(takes_rows(self.space, source) for source in self.sources) else self.space.from_array(rows)
        times = (source(rows if takes_rows(self.space, source) else archs) for source in self.sources)
        return np.log(np.stack([_checked(latency_ms) for latency_ms in times], axis=1))

    def _mixture(self, known: Values) -> Values:
        """Known devices with a level and a slope each, weighted by the evidence of their left-out errors."""
        count, misses, told = len(self.values_), [], []
        for mine, theirs in zip(self.known_.T, known.T, strict=True):
            design = np.stack([np.ones(count), mine], axis=1)
            solve = np.linalg.pinv(design)
            level, slope = solve @ self.values_
            left_out = (self.values_ - level - slope * mine) / np.maximum(1 - np.einsum("ij,ji->i", design, solve), 1e-6)
            misses.append(float((left_out**2).sum()))
            told.append(level + slope * theirs)
        weights = np.exp(-count / 2 * np.log(np.array(misses) / min(misses)) if min(misses) > 0 else -1e9 * np.array(misses))
        return np.asarray(weights @ np.stack(told) / weights.sum())

    def _process(self, rows: NDArray[np.int64], known: Values) -> tuple[Values, Values]:
        """The Gaussian process's mean and standard deviation, averaged over hyperparameters by evidence."""
        mine, theirs = self.known_ - self.centre_, known - self.centre_
        base, level = mine.mean(axis=1), self.values_.mean()
        target = self.values_ - level - base
        evidence, means, variances = [], [], []
        for spread in SPREADS if len(self.sources) > 1 else SPREADS[:1]:
            for own in OWN:
                here, there = self._parts(mine, self.rows_, spread, own), self._parts(theirs, rows, spread, own)
                for noise in NOISES:
                    lower = np.linalg.cholesky(here @ here.T + noise**2 * np.eye(len(target)))
                    inner = np.linalg.solve(lower, np.column_stack([target, here @ there.T]))
                    evidence.append(-0.5 * float(inner[:, 0] @ inner[:, 0]) - float(np.log(np.diag(lower)).sum()))
                    means.append(inner[:, 0] @ inner[:, 1:])
                    variances.append((there**2).sum(axis=1) - (inner[:, 1:] ** 2).sum(axis=0) + noise**2)
        weights = np.exp(np.array(evidence) - max(evidence))
        weights /= weights.sum()
        mean = weights @ np.stack(means)
        variance = weights @ (np.stack(variances) + np.stack(means) ** 2) - mean**2
        return level + theirs.mean(axis=1) + mean, np.sqrt(np.maximum(variance, 0))

    def _parts(self, known: Values, rows: NDArray[np.int64], spread: float, own: float) -> Values:
        """Features whose products are the prior covariance: each device's way of its own, the mean, the level, the genes."""
        base = known.mean(axis=1, keepdims=True)
        devices = spread * (known - base) / np.sqrt(known.shape[1])
        level = np.full((len(rows), 1), np.sqrt(LEVEL))
        parts = [devices, np.sqrt(SLOPE) * base, level]
        if own:
            parts.append(own * self.space.encode_rows(rows).astype(np.float64) / np.sqrt(len(self.space.genes)))
        return np.hstack(parts)


def spread_out(parts: Values, n: int) -> NDArray[np.intp]:
    """``n`` rows of features (N, F), each the one of largest variance given those before (greedy D-optimal design)."""
    left = np.eye(parts.shape[1])
    chosen: list[int] = []
    for _ in range(n):
        variance = np.einsum("ij,jk,ik->i", parts, left, parts)
        variance[chosen] = -np.inf
        best = int(variance.argmax())
        along = left @ parts[best]
        left = left - np.outer(along, along) / (NOISES[1] ** 2 + parts[best] @ along)
        chosen.append(best)
    return np.array(chosen, dtype=np.intp)


def _least_error_factor(told: Values, values: Values) -> float:
    """The factor on predictions with the least mean relative error: a median of the ratios, weighted by their inverse."""
    ratios = values / told
    order = np.argsort(ratios)
    weights = np.cumsum(1 / ratios[order])
    return float(ratios[order][np.searchsorted(weights, weights[-1] / 2)])


def _checked(latency_ms: ArrayLike) -> Values:
    values = np.atleast_1d(np.asarray(latency_ms, dtype=np.float64))
    if values.ndim != 1 or len(values) == 0 or not (np.isfinite(values) & (values > 0)).all():
        raise UserError(
            f"latencies of shape {values.shape}",
            allowed="Finite, positive numbers, one per network",
            next_step="Measure them again",
        )
    return values


def _not_fitted(what: str) -> UserError:
    return UserError(f"{what} was not fitted", allowed="A fitted one predicts", next_step="Call fit(archs, latency_ms) first")
