"""Supernets: image data, weight-sharing networks, their training. Importing this package does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from supernets.vision import install

if TYPE_CHECKING:
    from supernets.blocks import Network
    from supernets.calibration import accuracy, calibrated, evaluate, recalibrate, resolution_of
    from supernets.checkpoint import load_tensors, save_tensors
    from supernets.data import Examples, ImageData, Split, load_data, placed, shown_to
    from supernets.distributed import ALONE, Ranks, processes
    from supernets.estimating import PhaseEstimate, estimate_training
    from supernets.own_models import ElasticSupernet, elastic, elastic_space
    from supernets.phases import Phase, plan_phases
    from supernets.pretrained import Matched, start_from
    from supernets.proxies import PROXIES, proxy_scores
    from supernets.recipe import PhaseSettings, Recipe
    from supernets.rounding import train_rounded
    from supernets.sharing import Fused, fused
    from supernets.sorting import sort_channels
    from supernets.supernet import Supernet, load_weights
    from supernets.torch_onnx import ElasticWriter, export_onnx
    from supernets.training import Interrupted, Trained, train

__all__ = [
    "ALONE",
    "PROXIES",
    "ElasticSupernet",
    "ElasticWriter",
    "Examples",
    "Fused",
    "ImageData",
    "Interrupted",
    "Matched",
    "Network",
    "Phase",
    "PhaseEstimate",
    "PhaseSettings",
    "Ranks",
    "Recipe",
    "Split",
    "Supernet",
    "Trained",
    "accuracy",
    "calibrated",
    "elastic",
    "elastic_space",
    "estimate_training",
    "evaluate",
    "export_onnx",
    "fused",
    "load_data",
    "load_tensors",
    "load_weights",
    "placed",
    "plan_phases",
    "processes",
    "proxy_scores",
    "recalibrate",
    "resolution_of",
    "save_tensors",
    "shown_to",
    "sort_channels",
    "start_from",
    "train",
    "train_rounded",
]

_MODULES = {
    "blocks": ("Network",),
    "calibration": ("accuracy", "calibrated", "evaluate", "recalibrate", "resolution_of"),
    "checkpoint": ("load_tensors", "save_tensors"),
    "data": ("Examples", "ImageData", "Split", "load_data", "placed", "shown_to"),
    "distributed": ("ALONE", "Ranks", "processes"),
    "estimating": ("PhaseEstimate", "estimate_training"),
    "own_models": ("ElasticSupernet", "elastic", "elastic_space"),
    "pretrained": ("Matched", "start_from"),
    "proxies": ("PROXIES", "proxy_scores"),
    "rounding": ("train_rounded",),
    "phases": ("Phase", "plan_phases"),
    "recipe": ("PhaseSettings", "Recipe"),
    "sharing": ("Fused", "fused"),
    "sorting": ("sort_channels",),
    "supernet": ("Supernet", "load_weights"),
    "torch_onnx": ("ElasticWriter", "export_onnx"),
    "training": ("Interrupted", "Trained", "train"),
}
_HOMES = {name: f"supernets.{module}" for module, names in _MODULES.items() for name in names}

install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'supernets' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
