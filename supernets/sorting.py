"""Channel sorting: the most important channels first, before smaller widths are trained as prefixes.

Once-for-all (arXiv 1908.09791): the importance of a hidden channel is the L1 norm of the weights that read it. A layer's
operators name the channels that they read and write (`Op.reads`, `Op.writes`), so no block needs code of its own; channels
that other layers see as well (a block's input and output) stay where they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from search_spaces import SearchSpace
from search_spaces.layers import Layer
from supernets.supernet import Supernet

__all__ = ["sort_channels"]

Member = tuple[str, int]  # tensor name, dimension
SHARED = frozenset({"in", "out"})


@torch.no_grad()
def sort_channels(supernet: Supernet, trained: SearchSpace) -> None:
    """Reorder hidden channels in place by falling importance; every architecture of ``trained`` keeps its function.

    Args:
        trained: the part of the space trained so far. Its widths are prefixes that must stay together: channels are
            sorted within the segments between them.
    """
    for position in supernet.occupied:
        block, _ = supernet.at(position)
        tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        largest = supernet.space.structures_at(supernet.space.positions[position])[-1]
        known = [*trained.structures_at(trained.positions[position]), largest]
        for label, members in _hidden_groups(known).items():
            readers = [name for name, dim in members if dim == 1]
            weight = tensors[readers[-1]]
            importance = weight.abs().sum(dim=[d for d in range(weight.ndim) if d != 1])  # (hidden,)
            widths = {op.out_channels for layer in known for op in layer.ops() if op.writes == label}
            order = _order(importance, widths)
            for name, dim in members:
                tensors[name].copy_(tensors[name].index_select(dim, order))


def _hidden_groups(layers: Sequence[Layer]) -> dict[str, list[Member]]:
    """Dimensions that carry the same hidden channels in all layers that can stand at a position, by the channels' name.

    Without those that are hidden in one layer and its input in another: an inverted residual that does not expand.
    """
    labels: dict[Member, set[str]] = {}
    for layer in layers:
        for member, label in _members(layer):
            labels.setdefault(member, set()).add(label)
    mixed = {label for found in labels.values() if len(found) > 1 for label in found} | SHARED
    groups: dict[str, list[Member]] = {}
    for member, found in labels.items():
        (label, *_) = found
        if label not in mixed:
            groups.setdefault(label, []).append(member)
    return groups


def _members(layer: Layer) -> list[tuple[Member, str]]:
    """The dimensions of a layer's tensors with the names of their channels, in order of execution."""
    found = []
    for op in layer.ops():
        names = list(op.tensors())
        found += [((name, 0), op.writes) for name in names]
        if names and op.groups == 1:
            found.append(((names[0], 1), op.reads))
    return found


def _order(importance: Tensor, widths: set[int]) -> Tensor:
    """Indices by falling importance within each segment between the trained widths."""
    edges = sorted({0, len(importance), *widths})
    parts = [
        start + torch.argsort(importance[start:stop], descending=True, stable=True) for start, stop in itertools.pairwise(edges)
    ]
    return torch.cat(parts)
