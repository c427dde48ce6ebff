"""What a predictor is worth: rank correlation, error and honesty of its spread on networks that it did not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau, spearmanr
from sklearn.base import clone
from sklearn.linear_model import BayesianRidge

from predictors.models import FOLDS, folds
from predictors.predictor import FEWEST, ArchitecturePredictor, measured, out_of_fold
from search_spaces import Architecture, SearchSpace
from search_spaces.errors import UserError

__all__ = [
    "FeatureGain",
    "LearningCurve",
    "ReportCard",
    "feature_gain",
    "kendall_tau",
    "learning_curve",
    "rank_correlations",
    "report_card",
]

TOP = 0.1  # the share of networks that a search is after
STEPS = 4
FEWEST_JUDGED = -(-FEWEST * 5 // 4)  # of which four fifths are enough to learn from
MOST_FOLD = 20  # an extrapolation over more than so many times the data is a guess


@dataclass(frozen=True)
class ReportCard:
    """A predictor on held-out networks (every network predicted once, by folds that did not contain it).

    Attributes:
        kind: the predictor in use.
        networks: how many were predicted.
        kendall, spearman: rank correlation of prediction and measurement; None where either does not vary.
        rmse: root mean squared error, in the value's unit.
        spread: standard deviation of the measured values: an rmse near it means that nothing was learnt.
        covered_90: share of measurements within the predicted 90 % interval.
        top_recall: share of the largest tenth by measurement that is in the largest tenth by prediction.
    """

    kind: str
    networks: int
    kendall: float | None
    spearman: float | None
    rmse: float
    spread: float
    covered_90: float
    top_recall: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def report_card(
    predictor: ArchitecturePredictor, archs: Sequence[Architecture] | NDArray[np.int64], values: ArrayLike
) -> ReportCard:
    """Judge a predictor by 5-fold cross-validation; the predictor itself is not changed.

    Args:
        predictor: fitted or not; its kind is what counts (``auto`` chooses anew within every fold).
        values: measured, (N,).

    Raises:
        UserError: values of another number, or too few for five folds.
    """
    rows = predictor.space.rows(archs)
    values = measured(rows, values)
    if len(rows) < FEWEST_JUDGED:
        raise UserError(
            f"{len(rows)} architectures to judge a predictor by",
            allowed=f"At least {FEWEST_JUDGED} architectures: every fifth is predicted from the others",
            next_step="Score more subnets",
        )
    predicted = out_of_fold(predictor, rows, values)
    kendall, spearman = rank_correlations(predicted.mean, values)
    return ReportCard(
        kind=getattr(predictor, "kind_", predictor.kind),
        networks=len(values),
        kendall=kendall,
        spearman=spearman,
        rmse=float(np.sqrt(np.mean((predicted.mean - values) ** 2))),
        spread=float(values.std()),
        covered_90=float(np.mean(np.abs(predicted.mean - values) <= 1.645 * predicted.std)),
        top_recall=_top_recall(predicted.mean, values),
    )


@dataclass(frozen=True)
class LearningCurve:
    """Rank correlation against the number of networks that a predictor learns from.

    Attributes:
        kind: the predictor.
        networks: ascending, (steps,).
        kendall: on networks that it did not see, (steps,); None where predictions or values do not vary.
    """

    kind: str
    networks: tuple[int, ...]
    kendall: tuple[float | None, ...]

    def more_for(self, kendall: float) -> int | None:
        """How many more networks to score to reach a rank correlation; 0: reached; None: the curve cannot tell.

        What is missing to 1 is taken to fall as a power of the number of networks. No answer beyond twenty times the
        data, or where the curve does not rise.
        """
        found = [0.0 if value is None else value for value in self.kendall]
        if found[-1] >= kendall:
            return 0
        missing = np.log(1 - np.clip(found, 0.0, 0.9999))
        slope, offset = np.polyfit(np.log(self.networks), missing, 1)
        if slope >= 0 or kendall >= 1:
            return None
        needed = np.exp(min((np.log(1 - kendall) - offset) / slope, 50.0))
        more = int(np.ceil(needed)) - self.networks[-1]
        return max(1, more) if needed <= MOST_FOLD * self.networks[-1] else None


def learning_curve(
    predictor: ArchitecturePredictor, archs: Sequence[Architecture] | NDArray[np.int64], values: ArrayLike
) -> LearningCurve:
    """How rank correlation grows with data, in four steps up to all of them; the predictor itself is not changed.

    Args:
        predictor: fitted or not; ``auto``, once fitted, counts as the kind that it chose.
        values: measured, (N,).

    Raises:
        UserError: too few values for the smallest step.
    """
    rows = predictor.space.rows(archs)
    values = measured(rows, values)
    kind = getattr(predictor, "kind_", predictor.kind)
    fixed = clone(predictor).set_params(kind=kind)
    most = len(values) - -(-len(values) // FOLDS)
    least = max(FEWEST, most / 2 ** (STEPS - 1))
    if most < 2 * FEWEST:
        raise UserError(
            f"{len(values)} values for a learning curve",
            allowed=f"At least {-(-2 * FEWEST * FOLDS // (FOLDS - 1))}",
            next_step="Score more subnets",
        )
    sizes = tuple(int(size) for size in np.unique(np.geomspace(least, most, STEPS).astype(int)))
    found = [kendall_tau(out_of_fold(fixed, rows, values, learn_from=size).mean, values) for size in sizes]
    return LearningCurve(kind, sizes, tuple(found))


def _top_recall(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    count = max(1, round(TOP * len(measured)))
    best = measured >= np.sort(measured)[-count]  # all of those that tie
    taken = np.argsort(-predicted, kind="stable")[:count]
    return float(best[taken].mean())


def kendall_tau(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Kendall's tau-b of (N,) and (N,) values; None where either does not vary."""
    return None if _even(a) or _even(b) else float(kendalltau(a, b).statistic)


def rank_correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Kendall's tau-b and Spearman's rho of (N,) and (N,) values; None where either does not vary."""
    tau = kendall_tau(a, b)
    return (None, None) if tau is None else (tau, float(spearmanr(a, b).statistic))


def _even(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) == 0)


@dataclass(frozen=True)
class FeatureGain:
    """A ridge regression on encodings, and the same with more features, on networks that neither saw.

    Attributes:
        kendall, kendall_with: rank correlation without and with them; None where predictions do not vary.
        rmse, rmse_with: root mean squared error, in the value's unit.
    """

    kendall: float | None
    kendall_with: float | None
    rmse: float
    rmse_with: float


def feature_gain(
    space: SearchSpace, archs: Sequence[Architecture] | NDArray[np.int64], values: ArrayLike, features: NDArray[np.float64]
) -> FeatureGain:
    """Whether features that an encoding does not have, such as zero-cost proxies, would help: 5-fold cross-validation.

    Args:
        values: measured, (N,).
        features: (N, features), of any scale.
    """
    rows = space.rows(archs)
    values = measured(rows, values)
    encoded = space.encode_rows(rows).astype(np.float64)
    spread = features.std(axis=0)
    added = np.concatenate([encoded, (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)], axis=1)
    predicted = np.empty((2, len(rows)))
    for train, test in folds(len(rows), seed=1):
        for at, inputs in enumerate((encoded, added)):
            predicted[at, test] = BayesianRidge().fit(inputs[train], values[train]).predict(inputs[test])
    before, after = (kendall_tau(row, values) for row in predicted)
    return FeatureGain(before, after, *np.sqrt(((predicted - values) ** 2).mean(axis=1)).tolist())
