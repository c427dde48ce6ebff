"""Batch-normalisation statistics and accuracy of an extracted network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["accuracy", "recalibrate"]


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
    right, seen = 0, 0
    for images, labels in batches:
        right += int((network(images).argmax(1) == labels).sum())
        seen += len(labels)
    return right / seen, seen
