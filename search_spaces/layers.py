"""Concrete layers: every shape is in them, nothing is elastic.

A layer is the hinge of the toolkit: networks are built from layers, latency tables are keyed by them, and
multiply-accumulates, parameters and activation memory are counted from them.

Counting rules: MACs are those of convolutions and linear layers only; parameters include the affine part of
batch normalisation and biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, cast

__all__ = ["Block", "Conv", "GlobalPool", "Layer", "Linear", "MBConv", "Op", "make_divisible", "out_size", "parse_layer"]

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
    """One operator inside a layer, with what is needed to count it."""

    kind: str  # "conv" (linear layers are convolutions of a 1x1 map) or "pool"
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    kernel: int = 1
    groups: int = 1
    bias: bool = False
    norm: bool = False

    @property
    def macs(self) -> int:
        if self.kind != "conv":
            return 0
        return self.out_size**2 * self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    @property
    def params(self) -> int:
        if self.kind != "conv":
            return 0
        weights = self.out_channels * (self.in_channels // self.groups) * self.kernel**2
        return weights + self.out_channels * (int(self.bias) + 2 * int(self.norm))

    @property
    def weights(self) -> int:
        """Numbers stored once batch normalisation is folded: the weights and one bias per channel."""
        if self.kind != "conv":
            return 0
        folded = self.out_channels if self.bias or self.norm else 0
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2 + folded


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
    def structure(self) -> Layer: ...


class _Counted:
    """Key and counts, derived from a dataclass's fields and from its operators."""

    kind: ClassVar[str]
    size: int

    def ops(self) -> Iterator[Op]:
        raise AssertionError(f"{type(self).__name__} names no operators")

    @property
    def held(self) -> int:
        """Elements kept beside the operators' own input and output (a shortcut's)."""
        return 0

    @cached_property
    def key(self) -> str:
        """A readable name that is unique among layers: ``kind(field=value, ...)``; see `parse_layer`."""
        return _key(self)

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
        """Peak bytes of float32 activations alive at once for one image: an operator's input, its output, a shortcut."""
        peak = 0
        for index, op in enumerate(self.ops()):
            alive = op.in_channels * op.in_size**2 + op.out_channels * op.out_size**2
            peak = max(peak, alive + (self.held if index else 0))
        return FLOAT_BYTES * peak

    def structure(self) -> Layer:
        """The same layer without its input size: what decides the weights' shapes."""
        return cast(Layer, dataclasses.replace(self, size=1))  # type: ignore[type-var]


@dataclass(frozen=True)
class Conv(_Counted):
    """Dense convolution, then batch normalisation (``norm``) or a bias, then an activation."""

    kind: ClassVar[str] = "conv"
    size: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    act: str
    norm: bool = True
    bias: bool = False

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return (self.in_channels, self.size, self.size)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        side = out_size(self.size, self.stride)
        return (self.out_channels, side, side)

    def ops(self) -> Iterator[Op]:
        side = out_size(self.size, self.stride)
        yield Op("conv", self.in_channels, self.out_channels, self.size, side, self.kernel, bias=self.bias, norm=self.norm)


@dataclass(frozen=True)
class MBConv(_Counted):
    """Inverted residual: 1x1 expand, depthwise ``kernel``, optional squeeze-and-excite, 1x1 project.

    The expand convolution is absent when ``mid_channels == in_channels``. ``se_channels`` is the hidden width of
    squeeze-and-excite (ReLU inside, hard sigmoid gate), 0 where there is none.
    """

    kind: ClassVar[str] = "mbconv"
    size: int
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    stride: int
    act: str
    se_channels: int = 0
    shortcut: bool = False

    @property
    def expands(self) -> bool:
        return self.mid_channels != self.in_channels

    @property
    def held(self) -> int:
        return self.in_channels * self.size**2 if self.shortcut else 0

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return (self.in_channels, self.size, self.size)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        side = out_size(self.size, self.stride)
        return (self.out_channels, side, side)

    def ops(self) -> Iterator[Op]:
        mid, side = self.mid_channels, out_size(self.size, self.stride)
        if self.expands:
            yield Op("conv", self.in_channels, mid, self.size, self.size, norm=True)
        yield Op("conv", mid, mid, self.size, side, self.kernel, groups=mid, norm=True)
        if self.se_channels:
            yield Op("pool", mid, mid, side, 1)
            yield Op("conv", mid, self.se_channels, 1, 1, bias=True)
            yield Op("conv", self.se_channels, mid, 1, 1, bias=True)
        yield Op("conv", mid, self.out_channels, side, side, norm=True)


@dataclass(frozen=True)
class GlobalPool(_Counted):
    """Global average pooling to a 1x1 map."""

    kind: ClassVar[str] = "pool"
    size: int
    channels: int

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return (self.channels, 1, 1)

    def ops(self) -> Iterator[Op]:
        yield Op("pool", self.channels, self.channels, self.size, 1)


@dataclass(frozen=True)
class Linear(_Counted):
    """Classifier on a 1x1 map: flatten, (dropout while training), linear with bias."""

    kind: ClassVar[str] = "linear"
    size: int
    in_channels: int
    out_channels: int

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return (self.in_channels, self.size, self.size)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return (self.out_channels, 1, 1)

    def ops(self) -> Iterator[Op]:
        yield Op("conv", self.in_channels * self.size**2, self.out_channels, 1, 1, bias=True)


@dataclass(frozen=True)
class Block:
    """A piece of a network of the user's own: known by its structure, counted when it was traced.

    The module itself is not here; whoever needs it asks the space (`search_spaces.elastic.ElasticSpace`).

    Attributes:
        name: of the module's class.
        code: hash of everything that decides what the module computes, apart from the values of its weights.
        source, target: shape of its first input and of its output for one image, ``"16x32x32"``; empty without.
        macs: multiply-accumulates of convolutions and matrix products.
        activation_bytes: most float32 bytes that one operation reads and writes.
    """

    kind: ClassVar[str] = "block"
    name: str
    code: str
    source: str
    target: str
    macs: int
    params: int
    activation_bytes: int

    @cached_property
    def key(self) -> str:
        """See `parse_layer`."""
        return _key(self)

    @property
    def in_shape(self) -> tuple[int, ...]:
        return _sizes(self.source)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return _sizes(self.target)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its float32 parameters."""
        return FLOAT_BYTES * self.params

    def structure(self) -> Layer:
        return self


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x") if part)


def _key(layer: Any) -> str:
    return f"{layer.kind}({','.join(f'{f.name}={getattr(layer, f.name)}' for f in dataclasses.fields(layer))})"


LAYER_KINDS: dict[str, type[_Counted] | type[Block]] = {kind.kind: kind for kind in (Conv, MBConv, GlobalPool, Linear, Block)}


def parse_layer(key: str) -> Layer:
    """The layer that ``key`` names; the inverse of ``layer.key``.

    Raises:
        ValueError: the text is not the key of a known kind of layer.
    """
    kind, _, rest = key.partition("(")
    if kind not in LAYER_KINDS or not rest.endswith(")"):
        raise ValueError(f"'{key}' is not a layer's key; kinds: {', '.join(LAYER_KINDS)}")
    cls = LAYER_KINDS[kind]
    given = dict(item.split("=", 1) for item in rest[:-1].split(",") if "=" in item)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if given.keys() != fields.keys():
        raise ValueError(f"'{key}' should have the fields {', '.join(fields)}")
    casts: dict[str, Callable[[str], Any]] = {"int": int, "bool": {"True": True, "False": False}.__getitem__, "str": str}
    try:
        values = {name: casts[str(fields[name].type)](text) for name, text in given.items()}
    except KeyError as error:
        raise ValueError(f"'{key}' has a field that is neither True nor False: {error}") from None
    return cast(Layer, cls(**values))
