"""Batch-normalisation statistics and accuracy of extracted networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces import Architecture
from supernets.data import Examples, ImageData, placed
from supernets.supernet import Supernet

__all__ = [
    "CALIBRATION_BATCH",
    "CALIBRATION_IMAGES",
    "accuracy",
    "calibrated",
    "calibration_images",
    "evaluate",
    "recalibrate",
    "resolution_of",
]

CALIBRATION_IMAGES = 2000
CALIBRATION_BATCH = 200
EVALUATION_BATCH = 100  # activations stay in the cache: a quarter faster than 250 on 32-px images
_DRAW = 3  # the purpose of these random draws, the second number of their seed; others are in `supernets.steps`


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute a network's batch-normalisation statistics on training images, in place; leaves it in evaluation mode.

    Every layer normalises by the batch's own statistics while they are collected; mean and (biased) variance are
    averaged over the batches, weighted by their sizes (Once-for-all, arXiv 1908.09791). Same result for any order of
    equal batches up to rounding.

    Args:
        batches: (B, C, H, W) images, prepared as in training.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    bias = dict.fromkeys(norms, 1.0)  # (n-1)/n: torch averages unbiased variances, the method biased ones

    def count(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        n = inputs[0].numel() / inputs[0].shape[1]
        assert isinstance(norm, _BatchNorm)
        bias[norm] = (n - 1) / n

    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    seen = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        for batch in batches:
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen
            network(batch)
    finally:
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            hook.remove()
            norm.momentum = momentum
            norm.eval()
    for norm in norms:
        assert norm.running_var is not None
        norm.running_var.mul_(bias[norm])


@torch.inference_mode()
def accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    """Top-1 accuracy as a fraction, and the number of images it was taken on.

    Args:
        batches: (images (B, C, H, W), labels (B,)).
    """
    network.eval()
    right, seen = torch.zeros((), dtype=torch.int64), 0
    for images, labels in batches:
        right = right.to(labels.device) + (network(images).argmax(1) == labels).sum()  # read once, at the end
        seen += len(labels)
    return int(right) / seen, seen


def calibrated(supernet: Supernet, arch: Architecture, data: ImageData, *, seed: int = 0) -> nn.Module:
    """The extracted network of an architecture with its own batch-normalisation statistics, in evaluation mode.

    Statistics come from up to 2,000 training images, augmented as in training, at the architecture's resolution; the
    same images for every architecture.
    """
    network = supernet.extract(arch)
    device = next(network.parameters()).device
    recalibrate(network, calibration_images(data, resolution_of(arch, data), device, seed=seed))
    return network


def calibration_images(data: ImageData, resolution: int, device: torch.device, *, seed: int) -> Iterator[Tensor]:
    """Up to 2,000 training images, augmented as in training, in equal batches (B, C, H, W) on the device."""
    rng = np.random.default_rng([seed, _DRAW])
    order = rng.permutation(len(data.train))[:CALIBRATION_IMAGES]
    # Equal batches: the last, smaller one would weigh its noisier variance like the others.
    size = min(CALIBRATION_BATCH, len(order))
    for part in order[: len(order) // size * size].reshape(-1, size):
        yield placed(data.train.batch(part, resolution, rng=rng), device)


def evaluate(network: nn.Module, split: Examples, resolution: int, *, most: int | None = None) -> tuple[float, int]:
    """Top-1 accuracy of a network as a fraction, and the number of images.

    Args:
        most: images to use: an even sample of the split, always the same; None uses all.
    """
    device = next(network.parameters()).device
    count = len(split) if most is None else min(most, len(split))
    chosen = np.linspace(0, len(split) - 1, count).astype(np.int64)
    parts = np.array_split(chosen, math.ceil(count / EVALUATION_BATCH))
    return accuracy(network, ((placed(split.batch(p, resolution), device), placed(split.labels[p], device)) for p in parts))


def resolution_of(arch: Architecture, data: ImageData) -> int:
    """Side in px of the images that an architecture takes."""
    return int(arch.to_dict().get("resolution", data.size))
