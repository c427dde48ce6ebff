"""What every layer is made of: operators with shapes and names, and the counts that follow from them.

Counting rules: MACs are those of convolutions and linear layers only; parameters include the affine part of
batch normalisation and biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, cast

__all__ = ["FLOAT_BYTES", "Counted", "Layer", "Op", "key_of", "make_divisible", "out_size"]

FLOAT_BYTES = 4


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of ``divisor``, never below 90 % of ``value`` (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def out_size(size: int, stride: int) -> int:
    """Side of the output of an odd-kernel, same-padded operator on a side of ``size`` pixels."""
    return (size - 1) // stride + 1


@dataclass(frozen=True, slots=True)
class Op:
    """One operator inside a layer, with what is needed to count it and to name its weights.

    Attributes:
        kind: ``conv``, ``linear`` (counted as the convolution of a 1x1 map) or ``pool``.
        name: of its weights in the layer's module, e.g. ``"expand.conv"``; its batch normalisation, if any, has the
            same name with ``norm`` at the end.
        reads, writes: names of the channels that it takes and makes. Those of a layer's own input and output are
            ``in`` and ``out``; any others are seen by this layer alone and may be reordered together.
        held: elements kept beside the operator's own input and output (a shortcut's).
    """

    kind: str
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    kernel: int = 1
    groups: int = 1
    bias: bool = False
    norm: bool = False
    name: str = ""
    reads: str = "in"
    writes: str = "out"
    held: int = 0

    @property
    def weighted(self) -> bool:
        return self.kind != "pool"

    @property
    def macs(self) -> int:
        if not self.weighted:
            return 0
        return self.out_size**2 * self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    @property
    def params(self) -> int:
        if not self.weighted:
            return 0
        weights = self.out_channels * (self.in_channels // self.groups) * self.kernel**2
        return weights + self.out_channels * (int(self.bias) + 2 * int(self.norm))

    @property
    def weights(self) -> int:
        """Numbers stored once batch normalisation is folded: the weights and one bias per channel."""
        if not self.weighted:
            return 0
        folded = self.out_channels if self.bias or self.norm else 0
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2 + folded

    @property
    def norm_name(self) -> str:
        return f"{self.name.removesuffix('conv')}norm"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its weights by name, with the statistics of its batch normalisation."""
        if not self.weighted:
            return {}
        shape: tuple[int, ...] = (self.out_channels, self.in_channels // self.groups)
        named = {f"{self.name}.weight": shape if self.kind == "linear" else (*shape, self.kernel, self.kernel)}
        if self.bias:
            named[f"{self.name}.bias"] = (self.out_channels,)
        if self.norm:
            named |= {f"{self.norm_name}.{n}": (self.out_channels,) for n in ("weight", "bias", "running_mean", "running_var")}
        return named


class Layer(Protocol):
    """What every concrete layer offers. Shapes are (channels, height, width), those of a `Block` as its network has them."""

    @property
    def key(self) -> str: ...
    @property
    def in_shape(self) -> tuple[int, ...]: ...
    @property
    def out_shape(self) -> tuple[int, ...]: ...
    @property
    def macs(self) -> int: ...
    @property
    def params(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def activation_bytes(self) -> int: ...
    def ops(self) -> Iterator[Op]: ...
    def tensors(self) -> dict[str, tuple[int, ...]]: ...
    def structure(self) -> Layer: ...


def key_of(layer: Any) -> str:
    """A readable name that is unique among layers: ``kind(field=value, ...)``; see `parse_layer`."""
    return f"{layer.kind}({','.join(f'{f.name}={getattr(layer, f.name)}' for f in dataclasses.fields(layer))})"


class Counted:
    """Key and counts, derived from a dataclass's fields and from its operators."""

    kind: ClassVar[str]
    size: int

    def ops(self) -> Iterator[Op]:
        """The operators in order of execution."""
        raise AssertionError(f"{type(self).__name__} names no operators")

    @cached_property
    def key(self) -> str:
        """See `parse_layer`."""
        return key_of(self)

    @cached_property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops())

    @cached_property
    def params(self) -> int:
        return sum(op.params for op in self.ops())

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the deployed float32 weights (batch normalisation folded)."""
        return FLOAT_BYTES * sum(op.weights for op in self.ops())

    @cached_property
    def activation_bytes(self) -> int:
        """Peak bytes of float32 activations alive at once for one image: an operator's input, its output, what is held."""
        alive = (op.in_channels * op.in_size**2 + op.out_channels * op.out_size**2 + op.held for op in self.ops())
        return FLOAT_BYTES * max(alive)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by name; the names are those in the state dict of the layer's module."""
        return {name: shape for op in self.ops() for name, shape in op.tensors().items()}

    def structure(self) -> Layer:
        """The same layer without its input size: what decides the weights' shapes."""
        return cast(Layer, dataclasses.replace(self, size=1))  # type: ignore[type-var]
