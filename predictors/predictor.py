"""Regressors from architectures to a value, each with a mean and a spread."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import KFold

from search_spaces import Architecture, SearchSpace
from search_spaces.errors import UserError, unknown_name

__all__ = ["PREDICTORS", "ArchitecturePredictor", "Prediction", "build"]

Values = NDArray[np.float64]
Archs = Architecture | Sequence[Architecture] | NDArray[np.int64]
FOLDS = 5
FEWEST = 2 * FOLDS


class _Model(Protocol):
    """A scikit-learn regressor that can tell its spread."""

    def fit(self, features: Values, values: Values) -> Any: ...
    def predict(self, features: Values, return_std: bool = ...) -> Any: ...


@dataclass(frozen=True)
class Prediction:
    """Predicted values: ``mean`` and ``std`` (one standard deviation of a new measurement), both (N,)."""

    mean: Values
    std: Values


def _ridge() -> _Model:
    model: _Model = BayesianRidge()
    return model


def _gaussian_process() -> _Model:
    # One-hot rows of two networks that differ in g genes are sqrt(2 g) apart: the bounds span one gene to all of them.
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(5.0, (1.0, 100.0)) + WhiteKernel(0.1, (1e-5, 10.0))
    model: _Model = GaussianProcessRegressor(kernel, normalize_y=False, n_restarts_optimizer=0, random_state=0)
    return model


PREDICTORS: Mapping[str, Callable[[], _Model]] = {
    "ridge": _ridge,
    "gaussian-process": _gaussian_process,
}


class ArchitecturePredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor over a space's one-hot encoding, in which choices without effect are zero.

    Args:
        kind: a name of `PREDICTORS`, or ``auto``: the kind with the smallest error in 5-fold cross-validation.
        space: the architectures' space.
        shares: the values are shares (accuracies) in 0..1: fitted as log odds, so that predictions stay inside and keep
            telling good networks apart where accuracies crowd below 1.

    Attributes:
        kind_: the kind that is in use after `fit`.
        errors_: cross-validated root mean squared error of each kind that was tried (in log odds for shares).
    """

    def __init__(self, kind: str, space: SearchSpace, shares: bool = False) -> None:
        self.kind = kind
        self.space = space
        self.shares = shares

    def fit(self, archs: Archs, values: ArrayLike) -> ArchitecturePredictor:
        """Fit to measured values, (N,).

        Raises:
            UserError: an unknown kind, too few values, or values that are not finite numbers.
        """
        features = self.space.encode(archs).astype(np.float64)
        target = np.asarray(values, dtype=np.float64)
        if target.shape != (len(features),) or len(target) < FEWEST or not np.isfinite(target).all():
            raise UserError(
                f"{len(features)} architectures with values of shape {target.shape}",
                allowed=f"One finite value for each of at least {FEWEST} architectures",
                next_step="Score more subnets",
            )
        if self.kind != "auto" and self.kind not in PREDICTORS:
            raise unknown_name("predictor", self.kind, [*PREDICTORS, "auto"], command="nas search --help")
        if self.shares:
            target = _log_odds(target)
        # A column that never varies says nothing; scaled values suit every kind's priors.
        self.columns_ = np.flatnonzero(features.std(axis=0) > 0)
        self.center_, self.scale_ = target.mean(), target.std() or 1.0
        features, target = features[:, self.columns_], (target - self.center_) / self.scale_
        kinds = list(PREDICTORS) if self.kind == "auto" else [self.kind]
        self.errors_ = {kind: _error(kind, features, target) * self.scale_ for kind in kinds}
        self.kind_ = min(self.errors_, key=self.errors_.__getitem__)
        self.model_ = _quiet_fit(PREDICTORS[self.kind_](), features, target)
        return self

    def predict(self, archs: Archs) -> Prediction:
        """Mean and spread for architectures, a list of them, or an (N, genes) array."""
        features = self.space.encode(archs).astype(np.float64)[:, self.columns_]
        mean, std = self.model_.predict(features, return_std=True)
        mean, std = mean * self.scale_ + self.center_, std * self.scale_
        if self.shares:
            mean = 1 / (1 + np.exp(-mean))
            std = std * mean * (1 - mean)  # to first order
        return Prediction(mean, std)

    def score(self, archs: Archs, values: ArrayLike) -> float:
        """Coefficient of determination of the mean."""
        target = np.asarray(values, dtype=np.float64)
        residual = target - self.predict(archs).mean
        return float(1 - (residual**2).sum() / ((target - target.mean()) ** 2).sum())


def build(kind: str, space: SearchSpace, *, shares: bool = False) -> ArchitecturePredictor:
    """An unfitted predictor by name (``auto``, or one of `PREDICTORS`); see `ArchitecturePredictor`."""
    if kind != "auto" and kind not in PREDICTORS:
        raise unknown_name("predictor", kind, [*PREDICTORS, "auto"], command="nas search --help")
    return ArchitecturePredictor(kind, space, shares)


def _log_odds(shares: Values) -> Values:
    """Log odds of shares; those at 0 or 1 as if one image in a thousand were the other way."""
    inside = np.clip(shares, 0.001, 0.999)
    return np.log(inside / (1 - inside))


def _quiet_fit(model: _Model, features: Values, target: Values) -> _Model:
    with warnings.catch_warnings():
        # A kernel parameter at its bound is an answer here (no structure, or no noise), not a failure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, target)
    return model


def _error(kind: str, features: Values, target: Values) -> float:
    """Root mean squared error of out-of-fold predictions."""
    residuals = []
    for train, test in KFold(FOLDS, shuffle=True, random_state=0).split(features):
        model = _quiet_fit(PREDICTORS[kind](), features[train], target[train])
        residuals.append(model.predict(features[test]) - target[test])
    return float(np.sqrt(np.mean(np.concatenate(residuals) ** 2)))


def out_of_fold(predictor: ArchitecturePredictor, rows: NDArray[np.int64], values: Values) -> Prediction:
    """Predictions of every value by a predictor that did not see it (5 folds)."""
    mean, std = np.empty(len(values)), np.empty(len(values))
    for train, test in KFold(FOLDS, shuffle=True, random_state=1).split(rows):
        part = clone(predictor).fit(rows[train], values[train]).predict(rows[test])
        mean[test], std[test] = part.mean, part.std
    return Prediction(mean, std)
