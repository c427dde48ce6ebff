"""The optimiser of a recipe, its learning rate and state, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from supernets.recipe import Recipe

__all__ = ["WeightAverage", "learning_rate", "make_optimiser", "optimiser_state", "restore_state"]


def make_optimiser(model: nn.Module, recipe: Recipe, *, lr: float) -> torch.optim.Optimizer:
    """The optimiser of a recipe: weights decay, biases and normalisations do not, kernel maps as the recipe says.

    Fused: less than half of the plain loop's time on a CPU, and on a GPU no wait for the loss scale of fp16. The fused kernels
    walk through memory, so a gradient must lie in memory as its parameter does; gradients of a backward pass do.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.startswith("kernels."):  # the supernet's own, not a module of that name in a user's network
            (decayed if recipe.decay_kernel_maps else plain).append(parameter)
        else:
            (plain if parameter.ndim < 2 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(parameter.is_floating_point() for parameter in model.parameters())
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(recipe.momentum, 0.999), fused=fused)
    optimiser = torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=fused)
    if recipe.momentum:  # from zero for all: the fused kernel cannot take parameters that join in a later step
        for parameter in model.parameters():
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimiser


def learning_rate(step: int, start: int, stop: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps ``start`` to ``stop``, then a cosine to zero."""
    warm = int(warmup * (stop - start))
    at = step - start
    if at < warm:
        return peak * (at + 1) / (warm + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, stop - start - warm)))


def optimiser_state(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What an optimiser remembers, as ``KIND.PARAMETER`` -> tensor."""
    return {
        f"{kind}.{name}": tensor
        for name, parameter in model.named_parameters()
        for kind, tensor in optimiser.state.get(parameter, {}).items()
        if isinstance(tensor, Tensor)
    }


def restore_state(optimiser: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give an optimiser what another one remembered.

    In each parameter's own memory format: sums in another order would have other bits.
    """
    named = dict(model.named_parameters())
    for label, tensor in state.items():
        kind, name = label.split(".", 1)
        parameter = named[name]
        if tensor.shape == parameter.shape:
            kept = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        else:  # a counter: on the CPU unless the kernel that counts is on the GPU
            kept = tensor.to(parameter.device if optimiser.defaults.get("fused") else "cpu", copy=True)
        optimiser.state[parameter][kind] = kept


class WeightAverage:
    """The exponential moving average of a model's parameters.

    Args:
        decay: share of the average that a step keeps; less during the first steps, (1 + n) / (10 + n) after n of them, so
            that the average does not stay near where it began.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self.model.named_parameters():
            self.tensors[name].lerp_(parameter, 1 - keep)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew at the parameters as they are now."""
        self.updates = 0
        for name, parameter in self.model.named_parameters():
            self.tensors[name].copy_(parameter)

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a stored average."""
        self.updates = updates
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def give(self) -> None:
        """The model has the averaged parameters from now on."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged parameters while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
