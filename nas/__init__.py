"""Hardware-aware neural architecture search: train one supernet, measure your device, get verified networks.

The verbs of the command line are functions here, and the nouns are classes; everything is loaded when first used, so
``import nas`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency_tables import LatencyTable
    from nas.api import (
        estimate_training,
        export,
        finetune,
        predictor,
        profile,
        rank_check,
        report,
        score,
        search,
        space,
        spaces,
        train,
        verify,
    )
    from nas.optimizing import OptimizeResult, optimize
    from nas.pareto import ParetoFront
    from nas.runs import Run
    from nas.selection import survivors
    from search_spaces import Architecture, Choice, SearchSpace, UserError
    from supernets import Supernet, elastic, fused, load_data, recalibrate, start_from

__all__ = [
    "Architecture",
    "Choice",
    "LatencyTable",
    "OptimizeResult",
    "ParetoFront",
    "Run",
    "SearchSpace",
    "Supernet",
    "UserError",
    "elastic",
    "estimate_training",
    "export",
    "finetune",
    "fused",
    "load_data",
    "optimize",
    "predictor",
    "profile",
    "rank_check",
    "recalibrate",
    "report",
    "score",
    "search",
    "space",
    "spaces",
    "start_from",
    "survivors",
    "train",
    "verify",
]

_HOMES = {
    "Architecture": "search_spaces",
    "Choice": "search_spaces",
    "LatencyTable": "latency_tables",
    "OptimizeResult": "nas.optimizing",
    "ParetoFront": "nas.pareto",
    "Run": "nas.runs",
    "SearchSpace": "search_spaces",
    "Supernet": "supernets",
    "UserError": "search_spaces",
    "elastic": "supernets",
    "fused": "supernets",
    "load_data": "supernets",
    "optimize": "nas.optimizing",
    "recalibrate": "supernets",
    "start_from": "supernets",
    "survivors": "nas.selection",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("hwnas")
    if name not in __all__:
        raise AttributeError(f"module 'nas' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES.get(name, "nas.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
