"""The slicing rule: the weights of a smaller layer out of those of the largest one at its position.

Channels: a prefix of each dimension. Kernels: the centre of the filter, taken through a learned linear map per step
(7 to 5, then 5 to 3), shared by all channels of the layer (Once-for-all, arXiv 1908.09791). Nothing here knows a kind
of block: what to slice is read off the shapes that the plain block asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.errors import UserError
from search_spaces.layers import Layer
from supernets.blocks import build_block

__all__ = ["KernelMaps", "Move", "SlicePlan", "plan_slices"]


class KernelMaps(nn.Module):
    """The learned maps between the kernel sizes of one position; the identity at first (a plain centre crop)."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sorted(sizes, reverse=True))
        for large, small in zip(self.sizes, self.sizes[1:], strict=False):
            self.register_parameter(f"{large}to{small}", nn.Parameter(torch.eye(small * small)))

    def forward(self, weight: Tensor, size: int) -> Tensor:
        """Filters of a smaller size, (O, I, K, K) to (O, I, size, size), one step of sizes after the other."""
        for large, small in zip(self.sizes, self.sizes[1:], strict=False):
            if large <= size:
                break
            edge = (large - small) // 2
            crop = weight[:, :, edge : edge + small, edge : edge + small]
            flat = crop.reshape(-1, small * small)
            weight = nn.functional.linear(flat, self.get_parameter(f"{large}to{small}")).view(crop.shape)
        return weight


@dataclass(frozen=True)
class Move:
    """One tensor of the shell and where its values come from.

    The module's own dictionaries are kept, not the tensors: moving a supernet to another device replaces its tensors.
    """

    name: str  # in the block, e.g. "expand.conv.weight"
    target: dict[str, Tensor | None]
    source: dict[str, Tensor | None]
    leaf: str
    prefix: tuple[slice, ...] | None  # None: the whole tensor
    kernel: int | None  # the filter is shrunk to this size
    rule: Callable[[Tensor], Tensor] | None = None  # what else makes the value

    def value(self, maps: KernelMaps | None) -> Tensor | None:
        tensor = self.source[self.leaf]
        if tensor is None:
            return None
        if self.prefix is not None:
            tensor = tensor[self.prefix]
        if self.kernel is not None:
            assert maps is not None
            tensor = maps(tensor, self.kernel)
        return tensor if self.rule is None else self.rule(tensor)


@dataclass(frozen=True)
class SlicePlan:
    """How one concrete layer runs on the weights of the largest layer at its position.

    Attributes:
        shell: the plain block, in training or evaluation mode, without weights of its own.
        moves: its tensors as slices of the largest layer's.
        maps: the kernel maps of the position, if it has any.
    """

    shell: nn.Module
    moves: tuple[Move, ...]
    maps: KernelMaps | None

    def run(self, x: Tensor) -> Tensor:
        """The plain block on slices (views: gradients reach the supernet). They are taken out again afterwards.

        Does what `torch.func.functional_call` does, without its search for names at every call.
        """
        placeholders = [move.target[move.leaf] for move in self.moves]
        try:
            for move in self.moves:
                move.target[move.leaf] = move.value(self.maps)
            return self.shell(x)  # type: ignore[no-any-return]
        finally:
            for move, placeholder in zip(self.moves, placeholders, strict=True):
                move.target[move.leaf] = placeholder

    def filled(self) -> nn.Module:
        """A plain block with copies of the slices, independent of the supernet."""
        copies = {move.name: move.value(self.maps) for move in self.moves}
        return _clone(self.shell, {name: t.detach().clone() for name, t in copies.items() if t is not None}, "")


def _clone(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """Copy of a module tree with other tensors; building it anew would spend its time on weights that are overwritten."""
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin._parameters = {k: None if p is None else nn.Parameter(tensors[prefix + k]) for k, p in module._parameters.items()}
    twin._buffers = {k: None if b is None else tensors[prefix + k] for k, b in module._buffers.items()}
    twin._modules = {k: None if m is None else _clone(m, tensors, f"{prefix}{k}.") for k, m in module._modules.items()}
    if isinstance(twin, nn.BatchNorm2d):
        twin.track_running_stats = True
    return twin


def plan_slices(
    layer: Layer, block: nn.Module, maps: KernelMaps | None, *, traits: Mapping[str, float], training: bool, at: str
) -> SlicePlan:
    """Compare the shapes that ``layer`` asks for with those of the largest layer's block.

    Args:
        block: the block of the largest layer at the position; owns the weights.
        maps: the position's kernel maps, if it has any.
        at: name of the position, for error messages.

    Raises:
        UserError: a tensor that the largest layer lacks, or that is not nested in it.
    """
    with torch.device("meta"):  # shapes only: the shell owns no memory
        shell = build_block(layer, traits).train(training)
    owners = dict(block.named_modules())
    moves = []
    for path, module in shell.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # Batch statistics while training, given statistics in evaluation; never an update: a supernet's running
            # statistics would mix architectures, and one call would change the result of the next.
            module.track_running_stats = False
        owner = owners.get(path)
        for target, source in (
            (module._parameters, owner._parameters if owner else {}),
            (module._buffers, owner._buffers if owner else {}),
        ):
            for leaf, tensor in target.items():
                if tensor is not None:
                    name = f"{path}.{leaf}" if path else leaf
                    prefix, kernel = _nested(tensor, source.get(leaf), f"{at}: '{name}'")
                    moves.append(Move(name, target, source, leaf, prefix, kernel))
    return SlicePlan(shell, tuple(moves), maps)


def _nested(small: Tensor, large: Tensor | None, name: str) -> tuple[tuple[slice, ...] | None, int | None]:
    """Slices of the leading dimensions (None: all) and the kernel size (None: unchanged) that make ``small`` of ``large``."""
    want, have = tuple(small.shape), None if large is None else tuple(large.shape)
    if have is None or len(have) != len(want) or any(h < w for h, w in zip(have, want, strict=True)):
        raise UserError(
            f"{name} of shape {want} is not nested in {have}",
            allowed="Every layer at a position must fit into the one of the largest architecture",
            next_step="Correct the space's lowering",
        )
    prefix = None if have[:2] == want[:2] else tuple(slice(n) for n in want[:2])
    return prefix, want[2] if have[2:] != want[2:] else None
