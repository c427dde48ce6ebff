"""Channel sorting: the most important channels first, before smaller widths are trained as prefixes.

Once-for-all (arXiv 1908.09791): the importance of a hidden channel is the L1 norm of the weights that read it. Which
dimension of which parameter belongs to the same hidden channels is read off by comparing shapes over all layers that
can stand at a position, so no block needs code of its own.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import torch
from torch import Tensor

from search_spaces import SearchSpace
from search_spaces.layers import Layer
from supernets.supernet import Supernet

__all__ = ["sort_channels"]

Member = tuple[str, int]  # tensor name, dimension
Sizes = tuple[int, ...]  # one dimension's length in every structure at a position


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
        structures = _structures(supernet.space, position)
        groups = _hidden_groups(supernet, position, structures)
        known = _structures(trained, position)
        for sizes, members in groups.items():
            readers = [name for name, dim in members if dim == 1]
            if not readers:
                continue
            weight = tensors[readers[-1]]
            importance = weight.abs().sum(dim=[d for d in range(weight.ndim) if d != 1])  # (hidden,)
            widths = {size for structure, size in zip(structures, sizes, strict=True) if structure in known}
            order = _order(importance, widths)
            for name, dim in members:
                tensors[name].copy_(tensors[name].index_select(dim, order))


def _structures(space: SearchSpace, position: int) -> list[Layer]:
    layers = space.layers_at(space.positions[position])
    return list(dict.fromkeys(layer.structure() for layer in layers if layer is not None))


def _hidden_groups(supernet: Supernet, position: int, structures: list[Layer]) -> dict[Sizes, list[Member]]:
    """Dimensions that shrink together, apart from those that carry the block's own input and output."""
    shapes: dict[Member, list[int]] = defaultdict(list)
    for structure in structures:
        shell = supernet.plan(position, structure, training=False).shell
        for name, tensor in [*shell.named_parameters(), *shell.named_buffers()]:
            for dim in range(min(tensor.ndim, 2)):
                shapes[name, dim].append(tensor.shape[dim])
    outside = {tuple(s.in_shape[0] for s in structures), tuple(s.out_shape[0] for s in structures)}
    groups: dict[Sizes, list[Member]] = defaultdict(list)
    for member, lengths in shapes.items():
        sizes = tuple(lengths)
        if len(sizes) == len(structures) and len(set(sizes)) > 1 and sizes not in outside:
            groups[sizes].append(member)
    return groups


def _order(importance: Tensor, widths: set[int]) -> Tensor:
    """Indices by falling importance within each segment between the trained widths."""
    edges = sorted({0, len(importance), *widths})
    parts = [
        start + torch.argsort(importance[start:stop], descending=True, stable=True) for start, stop in itertools.pairwise(edges)
    ]
    return torch.cat(parts)
