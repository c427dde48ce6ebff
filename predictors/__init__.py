"""Predictors of measured values from architectures: scikit-learn estimators over a space's encodings."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from predictors.card import (
        FeatureGain,
        LearningCurve,
        ReportCard,
        feature_gain,
        kendall_tau,
        learning_curve,
        rank_correlations,
        report_card,
    )
    from predictors.models import AUTO, PREDICTORS
    from predictors.predictor import ArchitecturePredictor, Prediction, build

__all__ = [
    "AUTO",
    "PREDICTORS",
    "ArchitecturePredictor",
    "FeatureGain",
    "LearningCurve",
    "Prediction",
    "ReportCard",
    "build",
    "feature_gain",
    "kendall_tau",
    "learning_curve",
    "rank_correlations",
    "report_card",
]

_HOMES = {
    "AUTO": "predictors.models",
    "ArchitecturePredictor": "predictors.predictor",
    "PREDICTORS": "predictors.models",
    "Prediction": "predictors.predictor",
    "FeatureGain": "predictors.card",
    "LearningCurve": "predictors.card",
    "ReportCard": "predictors.card",
    "build": "predictors.predictor",
    "feature_gain": "predictors.card",
    "kendall_tau": "predictors.card",
    "learning_curve": "predictors.card",
    "rank_correlations": "predictors.card",
    "report_card": "predictors.card",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'predictors' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
