"""The slicing rule: the weights of a smaller layer out of those of the largest one at its position.

Channels: a prefix of each dimension. Kernels: the centre of the filter, taken through a learned linear map per step
(7 to 5, then 5 to 3), shared by all channels of the layer (Once-for-all, arXiv 1908.09791). Nothing here knows a kind
of block: what to slice is read off the shapes that the plain block asks for. Networks of the user's own are cut by the same
moves (`supernets.sharing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from search_spaces.errors import UserError
from search_spaces.layers import Layer
from supernets.blocks import build_block

__all__ = ["KernelMaps", "SlicePlan", "plan_slices"]


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
            edge = (weight.shape[-1] - small) // 2
            crop = weight[:, :, edge : edge + small, edge : edge + small]
            flat = crop.reshape(-1, small * small)
            weight = nn.functional.linear(flat, self.get_parameter(f"{large}to{small}")).view(crop.shape)
        return weight


Cut = tuple[int, int, int]  # dimension, start, length


@dataclass(frozen=True)
class Move:
    """One tensor of the shell and where its values come from.

    The module's own dictionaries are kept, not the tensors: moving a supernet to another device replaces its tensors.
    """

    name: str  # in the block, e.g. "expand.conv.weight"
    target: dict[str, Tensor | None]
    source: dict[str, Tensor | None]
    leaf: str
    cuts: tuple[Cut, ...] = ()
    rule: Callable[[Tensor], Tensor] | None = None  # what makes the value of the part that was cut out, e.g. a kernel map
    read: bool = True  # by the block when it runs; the others matter in a copy only

    def value(self) -> Tensor | None:
        """A view of the source where there is no rule."""
        tensor = self.source[self.leaf]
        if tensor is None:
            return None
        for dim, start, length in self.cuts:  # half the time of one index with several slices
            tensor = tensor.narrow(dim, start, length)
        return tensor if self.rule is None else self.rule(tensor)


@dataclass(frozen=True)
class SlicePlan:
    """How one concrete layer runs on the weights of the largest layer at its position.

    Attributes:
        shell: the plain block, in training or evaluation mode, without weights of its own.
        moves: its tensors as slices of the largest layer's.
    """

    shell: nn.Module
    moves: tuple[Move, ...]

    def run(self, x: Tensor) -> Tensor:
        """The plain block on slices (views: gradients reach the supernet). They are taken out again afterwards.

        Does what `torch.func.functional_call` does, without its search for names at every call.
        """
        moves = self._read
        placeholders = [move.target[move.leaf] for move in moves]
        try:
            for move in moves:
                move.target[move.leaf] = move.value()
            return self.shell(x)  # type: ignore[no-any-return]
        finally:
            for move, placeholder in zip(moves, placeholders, strict=True):
                move.target[move.leaf] = placeholder

    @cached_property
    def _read(self) -> tuple[Move, ...]:
        return tuple(move for move in self.moves if move.read)

    def filled(self) -> nn.Module:
        """A plain block with copies of the slices, independent of the supernet."""
        copies = {move.name: move.value() for move in self.moves}
        return _clone(self.shell, {name: t.detach().clone() for name, t in copies.items() if t is not None}, "")


def _clone(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """Copy of a module tree with other tensors; building it anew would spend its time on weights that are overwritten.

    Written past `nn.Module.__setattr__`, which would look at every entry for what it may be: half of an extraction.
    """
    twin = module.__class__.__new__(module.__class__)
    parts = {
        "_parameters": {k: None if p is None else nn.Parameter(tensors[prefix + k]) for k, p in module._parameters.items()},
        "_buffers": {k: None if b is None else tensors[prefix + k] for k, b in module._buffers.items()},
        "_modules": {k: None if m is None else _clone(m, tensors, f"{prefix}{k}.") for k, m in module._modules.items()},
    }
    twin.__dict__.update(module.__dict__ | parts)
    if isinstance(twin, nn.BatchNorm2d):
        twin.__dict__["track_running_stats"] = True
    return twin


def hull(layers: Sequence[Layer], traits: Mapping[str, float]) -> nn.Module:
    """The block of the last layer, grown until it has every tensor of every layer in its largest size; on the meta device.

    Almost always that is the last layer's block itself. A shortcut is why not: it has a convolution only where the
    numbers of channels differ, which they may not in the largest layer.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        block = build_block(layers[-1], traits)
        for layer in layers:
            tensors = layer.tensors()
            if not tensors.keys() <= {*block.state_dict()}:
                _graft(block, build_block(layer, traits))
            for name, shape in tensors.items():
                shapes[name] = tuple(map(max, shape, shapes.get(name, shape)))
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if shapes.get(name, tensor.shape) != tensor.shape:
                path, _, leaf = name.rpartition(".")
                larger = torch.empty(shapes[name])
                setattr(block.get_submodule(path), leaf, nn.Parameter(larger) if tensor.requires_grad else larger)
    return block


def _graft(block: nn.Module, other: nn.Module) -> None:
    """Give a module tree the branches that it lacks."""
    for name, child in other.named_children():
        own = block._modules.get(name)
        if own is None or (isinstance(own, nn.Identity) and not isinstance(child, nn.Identity)):
            block.add_module(name, child)
        else:
            _graft(own, child)


def plan_slices(
    layer: Layer, block: nn.Module, maps: KernelMaps | None, *, traits: Mapping[str, float], training: bool, at: str
) -> SlicePlan:
    """Compare the shapes that ``layer`` asks for with those of the largest layer's block.

    Args:
        block: the block of the largest layer at the position; owns the weights.
        maps: the position's kernel maps; None takes the centres of larger filters.
        at: name of the position, for error messages.

    Raises:
        UserError: a tensor that the largest layer lacks, or that is not nested in it.
    """
    with torch.device("meta"):  # shapes only: the shell owns no memory
        shell = build_block(layer, traits).train(training)
    owners = dict(block.named_modules())
    moves = []
    for path, module in shell.named_modules():
        normalises = isinstance(module, nn.BatchNorm2d)
        if normalises:
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
                    cuts = _nested(tensor, source.get(leaf), f"{at}: '{name}'")
                    rule = None
                    if maps is not None and any(dim >= 2 for dim, _, _ in cuts):  # a partial: copies of a supernet copy it too
                        rule, cuts = partial(maps, size=tensor.shape[-1]), tuple(cut for cut in cuts if cut[0] < 2)
                    # Statistics are not read while the batch's own are used, their counter never is.
                    unread = normalises and target is module._buffers and (training or leaf == "num_batches_tracked")
                    moves.append(Move(name, target, source, leaf, cuts, rule, not unread))
    return SlicePlan(shell, tuple(moves))


def _nested(small: Tensor, large: Tensor | None, name: str) -> tuple[Cut, ...]:
    """The cuts that make ``small`` of ``large``: prefixes of channels, the centre of filters."""
    want, have = tuple(small.shape), None if large is None else tuple(large.shape)
    if have is None or len(have) != len(want) or any(h < w for h, w in zip(have, want, strict=True)):
        raise UserError(
            f"{name} of shape {want} is not nested in {have}",
            allowed="Every layer at a position must fit into the one of the largest architecture",
            next_step="Correct the space's lowering",
        )
    return cuts_between(want, have, filters=True)


def cuts_between(small: Sequence[int], large: Sequence[int], *, filters: bool) -> tuple[Cut, ...]:
    """The part of shape ``small`` of a tensor of shape ``large``: a prefix of every dimension.

    Args:
        filters: the third dimension and those after it are a filter's, whose centre is taken.
    """
    sizes = enumerate(zip(small, large, strict=True))
    return tuple((dim, (h - w) // 2 if filters and dim >= 2 else 0, w) for dim, (w, h) in sizes if w != h)
