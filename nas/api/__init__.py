"""The verbs. Each one is a function here and a command in `nas.cli`; the work is in the modules of `nas`."""

from __future__ import annotations

from nas.api.defaults import DEFAULT_DEVICE, DEFAULT_HEARTBEAT, DEFAULT_IDLE, DEFAULT_IMAGES, DEFAULT_POINTS, DEFAULT_SAMPLES
from nas.api.searching import accuracy_card, predictor, profile, score, search, worker
from nas.api.shipping import compare, export, make_verification_kit, network, quantize, report, verify
from nas.api.spaces import space, spaces
from nas.api.training import estimate_training, finetune, rank_check, train

__all__ = [
    "DEFAULT_DEVICE",
    "DEFAULT_HEARTBEAT",
    "DEFAULT_IDLE",
    "DEFAULT_IMAGES",
    "DEFAULT_POINTS",
    "DEFAULT_SAMPLES",
    "accuracy_card",
    "compare",
    "estimate_training",
    "export",
    "finetune",
    "make_verification_kit",
    "network",
    "predictor",
    "profile",
    "quantize",
    "rank_check",
    "report",
    "score",
    "search",
    "space",
    "spaces",
    "train",
    "verify",
    "worker",
]
