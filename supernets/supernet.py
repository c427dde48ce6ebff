"""The supernet: the parameters of the largest network, and any architecture of the space run on slices of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

import search_spaces
from search_spaces import Architecture, ElasticSpace, SearchSpace
from search_spaces.checks import check_space
from search_spaces.errors import UserError
from search_spaces.layers import Layer
from supernets.blocks import Network, initialise
from supernets.data import layout_on
from supernets.slicing import KernelMaps, SlicePlan, hull, plan_slices

__all__ = ["Supernet"]

_CACHED_ARCHITECTURES = 1024

_Path = tuple[list[Layer], list[SlicePlan]]


class Supernet(nn.Module):
    """All networks of a space in one set of weights.

    ``supernet(x, arch)`` equals ``supernet.extract(arch)(x)`` bit for bit: both run the same plain blocks on the same
    slices. There is no current subnet, and a call leaves nothing behind: batch normalisation uses the batch's
    statistics in training mode and the stored ones in evaluation mode, and never updates them. Statistics that belong
    to one architecture come from `supernets.recalibrate` on the extracted network.

    Args:
        space: a space with a network behind it.
        classes: outputs of the classifier; default: those of the space.
        channels: channels of the input image; default: those of the space.
        seed: of the initial weights.

    For an `ElasticSpace` it makes a `supernets.own_models.ElasticSupernet`: the same calls on the user's own network.
    """

    network: nn.Module

    def __new__(cls, space: SearchSpace | None = None, *_: object, **__: object) -> Supernet:  # without a space: copies
        if cls is Supernet and isinstance(space, ElasticSpace):
            from supernets.own_models import ElasticSupernet

            return super().__new__(ElasticSupernet)
        return super().__new__(cls)

    def __init__(
        self,
        space: SearchSpace,
        classes: int | None = None,
        *,
        channels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_space(space)
        self.space = search_spaces.rebuild(space, classes=classes, channels=channels)
        placed = self.space.placed(self.space.largest)
        self._slot = {position: slot for slot, (position, _) in enumerate(placed)}
        structures = {position: self.space.structures_at(self.space.positions[position]) for position in self._slot}
        blocks = [hull(layers, self.space.traits) for layers in structures.values()]
        network = Network([layer for _, layer in placed], self.space.traits, blocks=blocks).to_empty(device="cpu")
        initialise(network, torch.Generator().manual_seed(seed))
        self.network = network
        self.network.to(memory_format=layout_on(torch.device("cpu")))  # type: ignore[call-overload]
        self.kernels = nn.ModuleDict()
        for position, slot in self._slot.items():
            sizes = {getattr(layer, "kernel", 1) for layer in structures[position]}
            if len(sizes) > 1 and self.space.traits.get("kernel_maps", 1.0):
                self.kernels[str(slot)] = KernelMaps(sorted(sizes))
        self._plans: dict[tuple[int, Layer, bool], SlicePlan] = {}
        self._paths: dict[tuple[Architecture, bool], _Path] = {}

    def plan(self, position: int, layer: Layer, *, training: bool) -> SlicePlan:
        """How a layer at a position of the space runs on this supernet's weights; kept for the next call."""
        key = (position, layer.structure(), training)
        if key not in self._plans:
            block, maps = self.at(position)
            name = self.space.positions[position].name
            self._plans[key] = plan_slices(layer, block, maps, traits=self.space.traits, training=training, at=name)
        return self._plans[key]

    def at(self, position: int) -> tuple[nn.Module, KernelMaps | None]:
        """The block that owns the weights at a position of the space, and the kernel maps there."""
        slot = self._slot[position]
        maps = self.kernels[str(slot)] if str(slot) in self.kernels else None
        assert maps is None or isinstance(maps, KernelMaps)
        blocks = self.network.blocks
        assert isinstance(blocks, nn.ModuleList)
        return blocks[slot], maps

    @property
    def occupied(self) -> list[int]:
        """Positions of the space at which the largest architecture has a layer."""
        return list(self._slot)

    def _path(self, arch: Architecture) -> _Path:
        """The layers of an architecture in order and their plans, kept for the architectures used last."""
        key = (arch, self.training)
        if key not in self._paths:
            if len(self._paths) >= _CACHED_ARCHITECTURES:
                del self._paths[next(iter(self._paths))]
            placed = self.space.placed(arch)
            plans = [self.plan(position, layer, training=self.training) for position, layer in placed]
            self._paths[key] = ([layer for _, layer in placed], plans)
        return self._paths[key]

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """Logits of one architecture: (B, C, H, W) to (B, classes). Images are expected at ``arch["resolution"]``."""
        for plan in self._path(arch)[1]:
            x = plan.run(x)
        return x

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `torch.nn.Module.to`, and in the memory format that is fast there (see `layout_on`), unless one is given.

        A network of the user's own keeps its format.
        """
        super().to(*args, **kwargs)
        if "memory_format" not in kwargs and not isinstance(self.space, ElasticSpace):
            self.network.to(memory_format=layout_on(next(self.parameters()).device))  # type: ignore[call-overload]
        return self

    @torch.no_grad()
    def extract(self, arch: Architecture) -> nn.Module:
        """A plain network with its own copy of the slices; nothing of the supernet is needed to run it."""
        layers, plans = self._path(arch)
        network = Network(layers, self.space.traits, blocks=[plan.filled() for plan in plans])
        network.training = network.blocks.training = self.training  # those of the blocks are right already
        return network

    def largest_tensors(self) -> dict[str, Tensor]:
        """The tensors of the largest network by their names in it: views, writing to them changes the supernet."""
        plans = enumerate(self._path(self.space.largest)[1])
        values = {f"blocks.{slot}.{move.name}": move.value() for slot, plan in plans for move in plan.moves}
        return {name: tensor.detach() for name, tensor in values.items() if tensor is not None}

    def check(self, arch: Architecture) -> None:
        """Raise a `UserError` unless the architecture belongs to this supernet's space."""
        self.space.to_array(arch)

    def bind(self, input_shape: Sequence[int]) -> None:
        """Told of the shape of the data's examples; a built-in space knows its own."""

    @property
    def classes(self) -> int:
        return int(self.space.parameters["classes"])

    @property
    def channels(self) -> int:
        return int(self.space.parameters["channels"])


def load_weights(supernet: Supernet, state: dict[str, Tensor], *, source: str) -> None:
    """Load a state dict strictly.

    Raises:
        UserError: names or shapes differ; the first differing tensor is named.
    """
    own = supernet.state_dict()
    for name in own.keys() | state.keys():
        have, given = own.get(name), state.get(name)
        if have is None or given is None or have.shape != given.shape:
            raise UserError(
                f"{source}: '{name}' is {_shape(given)} where the supernet of {supernet.space.key} has {_shape(have)}",
                allowed=f"Weights of a supernet of {supernet.space.key} with {supernet.classes} classes",
                next_step="Use the run's own space and class count, or train anew with: nas train-supernet",
            )
    supernet.load_state_dict(state)


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))
