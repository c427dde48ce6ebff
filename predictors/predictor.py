"""Regressors from architectures to a value, each with a mean and a spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone

import search_spaces
from predictors.models import AUTO, FOLDS, HIDDEN_LAYERS, PREDICTORS, folds
from predictors.threads import one_thread
from search_spaces import Architecture, SearchSpace
from search_spaces.artifacts import read_json, write_json
from search_spaces.checks import check_space
from search_spaces.errors import UserError, unknown_name
from search_spaces.records import reading, record

__all__ = ["ArchitecturePredictor", "Prediction", "build"]

Values = NDArray[np.float64]
Archs = Architecture | Sequence[Architecture] | NDArray[np.int64]
FEWEST = 2 * FOLDS
PREDICTOR_VERSION = 1
MOST_WIDTH, MOST_LAYERS = 10_000, 32  # of a network that a file may ask for


@dataclass(frozen=True)
class Prediction:
    """Predicted values: ``mean`` and ``std`` (one standard deviation of a new measurement), both (N,).

    As an array it is the mean, so that scikit-learn's scorers and `cross_val_predict` take it as it is.
    """

    mean: Values
    std: Values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    def __len__(self) -> int:
        return len(self.mean)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Values:
        return np.array(self.mean, dtype=dtype, copy=copy)


@dataclass(frozen=True)
class _Stored:
    """A predictor as JSON has it."""

    predictor: str
    shares: bool
    hidden_layer_sizes: list[int]
    architectures: list[list[int]]
    values: list[float]


class ArchitecturePredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor over a space's encodings, in which choices without effect are zero.

    Args:
        kind: a name of `PREDICTORS`, or ``auto``: the kind with the smallest error in 5-fold cross-validation.
        space: the architectures' space.
        shares: the values are shares (accuracies) in 0..1: fitted as log odds, so that predictions stay inside and keep
            telling good networks apart where accuracies crowd below 1.
        hidden_layer_sizes: of the kind ``mlp``.

    Attributes:
        kind_: the kind that is in use after `fit`.
        errors_: cross-validated root mean squared error of each kind that was tried (in log odds for shares).
        rows_, values_: what it was fitted to, (N, genes) and (N,).
    """

    def __init__(
        self, kind: str, space: SearchSpace, shares: bool = False, hidden_layer_sizes: Sequence[int] = HIDDEN_LAYERS
    ) -> None:
        self.kind = kind
        self.space = space
        self.shares = shares
        self.hidden_layer_sizes = hidden_layer_sizes

    @one_thread()
    def fit(self, archs: Archs, values: ArrayLike) -> ArchitecturePredictor:
        """Fit to measured values, (N,).

        Raises:
            UserError: an unknown kind, too few values or all of one network, or values that are not finite numbers.
        """
        _check_kind(self.kind)
        rows = self.space.rows(archs)
        target = measured(rows, values)
        if len(rows) < FEWEST or (rows == rows[0]).all():
            raise UserError(
                f"{len(rows)} architectures, {len(self.space.unique(rows))} of them different, to fit a predictor to",
                allowed=f"At least {FEWEST}, and not all the same",
                next_step="Score more subnets",
            )
        self.rows_, self.values_ = rows.copy(), target.copy()
        if self.shares:
            if target.min() < 0 or target.max() > 1:
                raise UserError(
                    f"values from {target.min():g} to {target.max():g}",
                    allowed="Shares, from 0 to 1 (shares=True)",
                    next_step="Divide percentages by 100",
                )
            target = _log_odds(target)
        # Scaled values suit every kind's priors.
        self.center_, self.scale_ = target.mean(), target.std() or 1.0
        target = (target - self.center_) / self.scale_
        kinds = AUTO if self.kind == "auto" else (self.kind,)
        models = {kind: PREDICTORS[kind](self.space, self.hidden_layer_sizes).fit(rows, target) for kind in kinds}
        self.errors_ = {kind: float(np.sqrt(np.mean(m.residuals_**2))) * self.scale_ for kind, m in models.items()}
        self.kind_ = min(self.errors_, key=self.errors_.__getitem__)
        self.model_ = models[self.kind_]
        return self

    def predict(self, archs: Archs) -> Prediction:
        """Mean and spread for architectures, a list of them, or an (N, genes) array.

        The spread is the model's own where it has one, otherwise the error in cross-validation.
        """
        rows = self._asked(archs)
        if not len(rows):
            return Prediction(np.empty(0), np.empty(0))
        raw, std = self.model_.predict(rows)
        mean = self._unscaled(raw)
        std = np.full(len(mean), self.errors_[self.kind_]) if std is None else std * self.scale_
        if self.shares:
            std = std * mean * (1 - mean)  # to first order
        return Prediction(mean, std)

    def mean(self, archs: Archs) -> Values:
        """``predict(archs).mean`` alone, (N,), without what the spread costs: for a search that prices many thousands."""
        rows = self._asked(archs)
        return self._unscaled(self.model_.mean(rows)) if len(rows) else np.empty(0)

    def _asked(self, archs: Archs) -> NDArray[np.int64]:
        """Rows to predict.

        Raises:
            UserError: it was not fitted.
        """
        if not hasattr(self, "model_"):
            raise UserError(
                f"predictor '{self.kind}' was not fitted",
                allowed="A fitted predictor predicts and can be saved",
                next_step="Call fit(archs, values) first",
            )
        return self.space.rows(archs)

    def _unscaled(self, raw: Values) -> Values:
        """Means in the unit of the values."""
        mean: Values = raw * self.scale_ + self.center_
        if self.shares:
            mean = 1 / (1 + np.exp(-mean))
        return mean

    def save(self, path: str | Path) -> None:
        """Write specification and data as JSON; `load` fits anew, which is repeatable, so nothing has to be trusted.

        Raises:
            UserError: it was not fitted.
        """
        self._asked(())
        body = {
            "predictor": self.kind,
            "shares": self.shares,
            "hidden_layer_sizes": list(self.hidden_layer_sizes),
            "space": self.space.to_dict(),
            "architectures": self.rows_.tolist(),
            "values": self.values_.tolist(),
        }
        write_json(Path(path), "predictor", PREDICTOR_VERSION, body)

    @classmethod
    def load(cls, path: str | Path) -> ArchitecturePredictor:
        """The predictor of a file that `save` wrote: fitted to the same data, with the same predictions.

        Raises:
            UserError: the file is missing, damaged or newer than this toolkit.
        """
        file = Path(path)
        value = read_json(file, "predictor", PREDICTOR_VERSION, make="predictor.save(path)")
        with reading(file, allowed="The file as predictor.save writes it", next_step="Fit the predictor again and save it"):
            space = search_spaces.from_dict(value["space"])
            found = record(_Stored, value)
            if not found.hidden_layer_sizes or not all(0 < width <= MOST_WIDTH for width in found.hidden_layer_sizes):
                raise ValueError(f"hidden layers of {found.hidden_layer_sizes!r:.60}")
            if len(found.hidden_layer_sizes) > MOST_LAYERS:
                raise ValueError(f"{len(found.hidden_layer_sizes)} hidden layers")
            rows = np.array(found.architectures, dtype=np.int64)
            predictor = cls(found.predictor, space, found.shares, tuple(found.hidden_layer_sizes))
            return predictor.fit(rows, found.values)


def measured(rows: NDArray[np.int64], values: ArrayLike) -> Values:
    """Measured values of rows as numbers, (N,).

    Raises:
        UserError: not one finite number for each.
    """
    try:
        target = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"values that are no numbers ({error})", allowed="One number for each architecture", next_step="Correct the values"
        ) from None
    if target.shape != (len(rows),):
        raise UserError(
            f"{len(rows)} architectures with values of shape {target.shape}",
            allowed="One value for each architecture, (N,)",
            next_step="Correct the values",
        )
    if not np.isfinite(target).all():
        at = int(np.flatnonzero(~np.isfinite(target))[0])
        raise UserError(
            f"value {at} is {target[at]}", allowed="Finite numbers", next_step="Leave out architectures without a value"
        )
    return target


def build(
    kind: str, space: SearchSpace, *, shares: bool = False, hidden_layer_sizes: Sequence[int] | None = None
) -> ArchitecturePredictor:
    """An unfitted predictor by name (``auto``, or one of `PREDICTORS`); see `ArchitecturePredictor`.

    Raises:
        UserError: an unknown kind, or hidden layers for a kind without any.
    """
    _check_kind(kind)
    check_space(space)
    if hidden_layer_sizes is None:
        return ArchitecturePredictor(kind, space, shares)
    widths = hidden_layer_sizes if isinstance(hidden_layer_sizes, Sequence) and len(hidden_layer_sizes) else [0]
    whole = all(isinstance(width, (int, np.integer)) and width > 0 for width in widths)
    if kind != "mlp" or not whole:
        raise UserError(
            f"hidden_layer_sizes={hidden_layer_sizes!r} for predictor '{kind}'",
            allowed="One or more positive numbers, for the kind 'mlp'",
            next_step="Give for example: nas.predictor('mlp', space, hidden_layer_sizes=(400, 400, 400))",
        )
    return ArchitecturePredictor(kind, space, shares, tuple(hidden_layer_sizes))


def _check_kind(kind: str) -> None:
    if kind not in (*PREDICTORS, "auto"):
        raise unknown_name("predictor", kind, [*PREDICTORS, "auto"], command="nas search --help")


def _log_odds(shares: Values) -> Values:
    """Log odds of shares; those at 0 or 1 as if one image in a thousand were the other way."""
    inside = np.clip(shares, 0.001, 0.999)
    return np.log(inside / (1 - inside))


def out_of_fold(
    predictor: ArchitecturePredictor, rows: NDArray[np.int64], values: Values, *, learn_from: int | None = None
) -> Prediction:
    """Predictions of every value by a predictor that did not see it (5 folds).

    Args:
        learn_from: values that it learns from, at most; None: all that are not in the fold.
    """
    mean, std = np.empty(len(values)), np.empty(len(values))
    for part_of_all, test in folds(len(values), seed=1):
        train = part_of_all if learn_from is None else np.random.default_rng(len(values)).permutation(part_of_all)[:learn_from]
        part = clone(predictor).fit(rows[train], values[train]).predict(rows[test])
        mean[test], std[test] = part.mean, part.std
    return Prediction(mean, std)
