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
        accuracy_card,
        compare,
        estimate_training,
        export,
        finetune,
        make_verification_kit,
        network,
        predictor,
        profile,
        quantize,
        rank_check,
        report,
        score,
        search,
        space,
        spaces,
        train,
        verify,
        worker,
    )
    from nas.evolution import evolve
    from nas.exporting import write_onnx
    from nas.few_shot import FewShotLatency, LatencyPredictor
    from nas.health import doctor
    from nas.measuring import Cost, measure
    from nas.memory import keep_freed_memory
    from nas.optimizing import OptimizeResult, optimize
    from nas.pareto import ParetoFront
    from nas.plain_networks import load_network
    from nas.runs import Run
    from nas.selection import survivors
    from nas.tables import import_kit, import_table, make_kit
    from predictors import ArchitecturePredictor, learning_curve, report_card
    from search_spaces import Architecture, Choice, SearchSpace, UserError
    from supernets import Interrupted, Supernet, elastic, fused, load_data, recalibrate, start_from

__all__ = [
    "Architecture",
    "ArchitecturePredictor",
    "Choice",
    "Cost",
    "FewShotLatency",
    "Interrupted",
    "LatencyPredictor",
    "LatencyTable",
    "OptimizeResult",
    "ParetoFront",
    "Run",
    "SearchSpace",
    "Supernet",
    "UserError",
    "accuracy_card",
    "compare",
    "doctor",
    "elastic",
    "estimate_training",
    "evolve",
    "export",
    "finetune",
    "fused",
    "import_kit",
    "import_table",
    "keep_freed_memory",
    "learning_curve",
    "load_data",
    "load_network",
    "make_kit",
    "make_verification_kit",
    "measure",
    "network",
    "optimize",
    "predictor",
    "profile",
    "quantize",
    "rank_check",
    "recalibrate",
    "report",
    "report_card",
    "score",
    "search",
    "space",
    "spaces",
    "start_from",
    "survivors",
    "train",
    "verify",
    "worker",
    "write_onnx",
]

_HOMES = {
    "Architecture": "search_spaces",
    "ArchitecturePredictor": "predictors",
    "Choice": "search_spaces",
    "Cost": "nas.measuring",
    "FewShotLatency": "nas.few_shot",
    "Interrupted": "supernets",
    "LatencyPredictor": "nas.few_shot",
    "LatencyTable": "latency_tables",
    "OptimizeResult": "nas.optimizing",
    "ParetoFront": "nas.pareto",
    "Run": "nas.runs",
    "SearchSpace": "search_spaces",
    "Supernet": "supernets",
    "UserError": "search_spaces",
    "doctor": "nas.health",
    "elastic": "supernets",
    "evolve": "nas.evolution",
    "fused": "supernets",
    "keep_freed_memory": "nas.memory",
    "learning_curve": "predictors",
    "import_kit": "nas.tables",
    "import_table": "nas.tables",
    "load_data": "supernets",
    "make_kit": "nas.tables",
    "measure": "nas.measuring",
    "load_network": "nas.plain_networks",
    "optimize": "nas.optimizing",
    "report_card": "predictors",
    "recalibrate": "supernets",
    "start_from": "supernets",
    "survivors": "nas.selection",
    "write_onnx": "nas.exporting",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("hwnas")
    if name not in __all__:
        raise AttributeError(f"module 'nas' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES.get(name, "nas.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
