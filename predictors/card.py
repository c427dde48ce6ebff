"""What a predictor is worth: rank correlation, error and honesty of its spread on networks that it did not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau, spearmanr

from predictors.predictor import ArchitecturePredictor, out_of_fold
from search_spaces import Architecture

__all__ = ["ReportCard", "report_card"]


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
    """

    kind: str
    networks: int
    kendall: float | None
    spearman: float | None
    rmse: float
    spread: float
    covered_90: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def report_card(
    predictor: ArchitecturePredictor, archs: Sequence[Architecture] | NDArray[np.int64], values: ArrayLike
) -> ReportCard:
    """Judge a predictor by 5-fold cross-validation; the predictor itself is not changed.

    Args:
        predictor: fitted or not; its kind is what counts (``auto`` chooses anew within every fold).
        values: measured, (N,).
    """
    rows = predictor.space.rows(archs)
    measured = np.asarray(values, dtype=np.float64)
    predicted = out_of_fold(predictor, rows, measured)
    return ReportCard(
        kind=getattr(predictor, "kind_", predictor.kind),
        networks=len(measured),
        kendall=_correlation(kendalltau, predicted.mean, measured),
        spearman=_correlation(spearmanr, predicted.mean, measured),
        rmse=float(np.sqrt(np.mean((predicted.mean - measured) ** 2))),
        spread=float(measured.std()),
        covered_90=float(np.mean(np.abs(predicted.mean - measured) <= 1.645 * predicted.std)),
    )


def _correlation(statistic: Any, a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(statistic(a, b).statistic)
