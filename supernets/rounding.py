"""Quantisation-aware training: a network trained on while every convolution and linear layer rounds as INT8 will.

Weights round per output channel around zero, inputs per tensor between the extremes seen on training images; the gradient goes
straight through the rounding (Jacob et al., CVPR 2018, arXiv 1712.05877). Batch normalisation keeps its statistics: folding it
scales whole output channels, and with them their grids, so it need not be folded here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["rounding", "train_rounded"]

_ROUNDED = (nn.Conv1d, nn.Conv2d, nn.Linear)
LEVELS = 255


class _RoundedWeight(nn.Module):
    """A weight on the grid of signed eight bits, one scale per output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12) / 127
        zero = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


@contextmanager
def rounding(network: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block the network computes with rounded weights and inputs; afterwards it has its float weights again.

    Args:
        network: in evaluation mode.
        batches: (B, C, H, W) training images that the ranges of inputs come from.
    """
    layers = [module for module in network.modules() if isinstance(module, _ROUNDED)]
    ranges = _ranges(network, layers, batches)
    hooks = [layer.register_forward_pre_hook(_rounder(*ranges[layer])) for layer in layers if layer in ranges]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _RoundedWeight())
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@torch.no_grad()
def _ranges(network: nn.Module, layers: Sequence[nn.Module], batches: Iterable[Tensor]) -> dict[nn.Module, tuple[float, float]]:
    """Smallest and largest input of each layer; zero is always inside, so that padding is exact."""
    found: dict[nn.Module, tuple[float, float]] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = found.get(layer, (0.0, 0.0))
        found[layer] = (min(low, float(inputs[0].min())), max(high, float(inputs[0].max())))

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _rounder(low: float, high: float) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    scale = max(high - low, 1e-12) / LEVELS
    zero = round(-low / scale)

    def rounded(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, LEVELS), *inputs[1:])

    return rounded


def train_rounded(
    network: nn.Module, calibration: Iterable[Tensor], batches: Iterable[Tensor], *, steps: int, rate: float = 1e-4
) -> list[float]:
    """Train a network on, in place, so that its rounded outputs become those of the float network that it was.

    The float network's class probabilities are the targets: no labels are needed, and nothing new is learned.

    Args:
        network: in evaluation mode; stays in it, so dropout and batch statistics play no part.
        calibration: (B, C, H, W) images for the ranges of inputs.
        batches: (B, C, H, W) images, one step each; only one is held at a time.
        steps: number of batches.
        rate: Adam's learning rate at the first step; falls to zero along a cosine over the steps.

    Returns: the loss of each step (divergence of the rounded from the float probabilities, nats).
    """
    teacher = copy.deepcopy(network).requires_grad_(False)
    losses = []
    with rounding(network, calibration):
        optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
        for images in batches:
            target = teacher(images).log_softmax(1)
            loss = nn.functional.kl_div(network(images).log_softmax(1), target, reduction="batchmean", log_target=True)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return losses
