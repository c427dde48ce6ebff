"""The kinds of predictors: regressors over rows of a space that know their out-of-sample residuals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingRegressor, StackingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import BayesianRidge, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.svm import SVR

from predictors.gaussian_process import ArchitectureProcess
from search_spaces import SearchSpace

__all__ = ["AUTO", "FOLDS", "HIDDEN_LAYERS", "PREDICTORS", "Model", "folds"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

FOLDS = 5
HIDDEN_LAYERS = (400, 400, 400)  # the predictor of Once-for-all (Cai et al. 2020)


class Model(Protocol):
    """A regressor over canonical rows of a space.

    Attributes:
        residuals_: after `fit`: prediction minus value of every row, by a model that did not learn from it; (N,).
    """

    residuals_: Values

    def fit(self, rows: Rows, values: Values) -> Any: ...

    def mean(self, rows: Rows) -> Values:
        """(N,), without what the spread costs."""
        ...

    def predict(self, rows: Rows) -> tuple[Values, Values | None]:
        """Mean, and standard deviation of a new measurement, (N,) each; None: the same everywhere, that of residuals."""
        ...


def folds(count: int, *, seed: int = 0) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Training and test indices of 5-fold cross-validation."""
    return list(KFold(FOLDS, shuffle=True, random_state=seed).split(np.zeros(count)))


class Encoded:
    """A scikit-learn regressor over a space's encodings: one-hot, and ordinal in 0..1; inactive genes are 0.

    Args:
        spread: the estimator tells its own standard deviation.
    """

    def __init__(self, space: SearchSpace, estimator: Any, *, spread: bool = False) -> None:
        self.space = space
        self.estimator = estimator
        self.spread = spread

    def _features(self, rows: Rows) -> NDArray[np.float32]:
        """(N, features); by columns in memory, as encodings are."""
        both = np.concatenate([self.space.encode_rows(rows).T, self.space.encode_rows(rows, ordinal=True).T])
        return both[self.columns_].T

    def fit(self, rows: Rows, values: Values) -> Encoded:
        self.columns_ = np.arange(int(self.space.lengths.sum()) + len(self.space.genes))
        # A column that never varies says nothing.
        self.columns_ = np.flatnonzero(np.ptp(self._features(rows), axis=0) > 0)
        features = self._features(rows).astype(np.float64)
        self.residuals_ = np.empty(len(rows))
        with warnings.catch_warnings():
            # The last iteration of a small network, or a parameter at its bound, is an answer here, not a failure.
            warnings.simplefilter("ignore", ConvergenceWarning)
            chosen = _tuned(self.estimator, features, values)
            for train, test in folds(len(rows)):
                part = clone(chosen).fit(features[train], values[train])
                self.residuals_[test] = part.predict(features[test]) - values[test]
            self.model_ = chosen.fit(features, values)
        return self

    def mean(self, rows: Rows) -> Values:
        return self.model_.predict(self._features(rows))  # type: ignore[no-any-return]

    def predict(self, rows: Rows) -> tuple[Values, Values | None]:
        if not self.spread:
            return self.mean(rows), None
        mean, std = self.model_.predict(self._features(rows), return_std=True)
        return mean, std


class GaussianProcess:
    """`ArchitectureProcess` with the residuals of 5 folds in closed form, at the weights of all data."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def fit(self, rows: Rows, values: Values) -> GaussianProcess:
        self.process_ = ArchitectureProcess(self.space).fit(rows, values)
        self.residuals_ = self.process_.residuals([test for _, test in folds(len(rows))])
        return self

    def mean(self, rows: Rows) -> Values:
        return self.process_.mean(rows)

    def predict(self, rows: Rows) -> tuple[Values, Values | None]:
        return self.process_.predict(rows)


def _tuned(estimator: Any, features: NDArray[np.float64], values: Values) -> Any:
    """The estimator, unfitted, with hyperparameters that all values chose: residuals are at these, as the process's are."""
    if isinstance(estimator, GridSearchCV):
        return clone(clone(estimator).fit(features, values).best_estimator_)
    if isinstance(estimator, StackingRegressor):
        return clone(estimator).set_params(**{name: _tuned(one, features, values) for name, one in estimator.estimators})
    return clone(estimator)


def _polynomial() -> Any:
    # The kernel trick: ridge over all products of two features without writing them down.
    return GridSearchCV(KernelRidge(kernel="poly", degree=2, coef0=1.0), {"alpha": np.logspace(-3, 2, 6)}, cv=3)


def _support_vectors() -> Any:
    grid = {"C": [1.0, 10.0, 100.0], "gamma": [0.001, 0.003, 0.01, 0.03, 0.1]}
    return GridSearchCV(SVR(epsilon=0.01), grid, cv=3)


def _boosting() -> Any:
    # Genes mostly act alone: many small trees on random halves of few data, as in stochastic boosting (Friedman 2002).
    return GradientBoostingRegressor(
        n_estimators=300, learning_rate=0.15, max_depth=2, subsample=0.5, max_features="sqrt", random_state=0
    )


def _stack() -> Any:
    members = [
        ("ridge", BayesianRidge()),
        ("polynomial", _polynomial()),
        ("svr", _support_vectors()),
        ("boosting", _boosting()),
    ]
    return StackingRegressor(members, final_estimator=RidgeCV(np.logspace(-3, 2, 6)), cv=FOLDS)


def _network(hidden_layers: Sequence[int]) -> Any:
    # A few hundred values at most: a quasi-Newton method on all of them fits far better than steps on batches.
    return MLPRegressor(hidden_layer_sizes=tuple(hidden_layers), solver="lbfgs", max_iter=100, alpha=0.01, random_state=0)


# name -> model of (space, hidden layers of neural networks)
PREDICTORS: Mapping[str, Callable[[SearchSpace, Sequence[int]], Model]] = {
    "ridge": lambda space, _: Encoded(space, BayesianRidge(), spread=True),
    "polynomial-ridge": lambda space, _: Encoded(space, _polynomial()),
    "gaussian-process": lambda space, _: GaussianProcess(space),
    "svr": lambda space, _: Encoded(space, _support_vectors()),
    "mlp": lambda space, layers: Encoded(space, _network(layers)),
    "gradient-boosting": lambda space, _: Encoded(space, _boosting()),
    "nearest-neighbour": lambda space, _: Encoded(space, KNeighborsRegressor(5, weights="distance")),
    "stack": lambda space, _: Encoded(space, _stack()),
}

# What ``auto`` chooses from: all that take seconds for some hundred values.
AUTO = ("ridge", "polynomial-ridge", "gaussian-process", "svr", "gradient-boosting", "nearest-neighbour")
