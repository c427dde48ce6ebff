"""Concrete layers: every shape is in them, nothing is elastic.

A layer is the hinge of the toolkit: networks are built from layers, latency tables are keyed by them, and
multiply-accumulates, parameters and activation memory are counted from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

from search_spaces.ops import FLOAT_BYTES, Counted, Layer, Op, key_of, make_divisible, out_size

__all__ = [
    "Block",
    "Bottleneck",
    "Conv",
    "GlobalPool",
    "Layer",
    "Linear",
    "MBConv",
    "MaxPool",
    "Op",
    "make_divisible",
    "out_size",
    "parse_layer",
]


class _Strided(Counted):
    """Shapes of a layer that maps ``in_channels`` to ``out_channels`` with a stride."""

    in_channels: int
    out_channels: int
    stride: int

    @property
    def out_size(self) -> int:
        return out_size(self.size, self.stride)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return (self.in_channels, self.size, self.size)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return (self.out_channels, self.out_size, self.out_size)

    @property
    def projects(self) -> bool:
        """Whether a shortcut needs a convolution: the numbers of channels differ."""
        return self.in_channels != self.out_channels

    def shortcut_ops(self, *, norm: bool) -> Iterator[Op]:
        """A shortcut past the layer: average pooling by the stride, then a 1x1 convolution if channels differ."""
        held, side = self.out_channels * self.out_size**2, self.out_size
        if self.stride > 1:
            yield Op("pool", self.in_channels, self.in_channels, self.size, side, held=held)
        if self.projects:
            yield Op("conv", self.in_channels, self.out_channels, side, side, norm=norm, name="shortcut.conv", held=held)


@dataclass(frozen=True)
class Conv(_Strided):
    """Dense convolution, then batch normalisation (``norm``) or a bias, then an activation.

    ``shortcut`` adds the input to the result; its shape must be the output's.
    """

    kind: ClassVar[str] = "conv"
    size: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    act: str
    norm: bool = True
    bias: bool = False
    shortcut: bool = False

    def ops(self) -> Iterator[Op]:
        yield Op(
            "conv",
            self.in_channels,
            self.out_channels,
            self.size,
            self.out_size,
            self.kernel,
            bias=self.bias,
            norm=self.norm,
            name="conv",
        )


@dataclass(frozen=True)
class MBConv(_Strided):
    """Inverted residual: 1x1 expand, depthwise ``kernel``, optional squeeze-and-excite, 1x1 project.

    The expand convolution is absent when ``mid_channels == in_channels``. ``se_channels`` is the hidden width of
    squeeze-and-excite (ReLU inside, hard sigmoid gate), 0 where there is none. A ``shortcut`` is the input itself, or
    where shapes differ its average over the stride and a 1x1 convolution without batch normalisation (AttentiveNAS).
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

    def ops(self) -> Iterator[Op]:
        mid, side, se = self.mid_channels, self.out_size, self.se_channels
        held = self.in_channels * self.size**2 if self.shortcut else 0
        inner = "mid" if self.expands else "in"
        if self.expands:
            yield Op("conv", self.in_channels, mid, self.size, self.size, norm=True, name="expand.conv", writes="mid")
        yield Op(
            "conv",
            mid,
            mid,
            self.size,
            side,
            self.kernel,
            groups=mid,
            norm=True,
            name="depthwise.conv",
            reads=inner,
            writes=inner,
            held=held if self.expands else 0,
        )
        if se:
            yield Op("pool", mid, mid, side, 1, reads=inner, writes=inner, held=held)
            yield Op("conv", mid, se, 1, 1, bias=True, name="se.reduce", reads=inner, writes="se", held=held)
            yield Op("conv", se, mid, 1, 1, bias=True, name="se.expand", reads="se", writes=inner, held=held)
        yield Op("conv", mid, self.out_channels, side, side, norm=True, name="project.conv", reads=inner, held=held)
        if self.shortcut:
            yield from self.shortcut_ops(norm=False)


@dataclass(frozen=True)
class Bottleneck(_Strided):
    """ResNet-D's residual block: 1x1 reduce, ``kernel`` with the stride, 1x1 expand, shortcut, activation.

    The shortcut is the input itself, or where shapes differ its average over the stride, a 1x1 convolution and batch
    normalisation.
    """

    kind: ClassVar[str] = "bottleneck"
    size: int
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    stride: int
    act: str

    def ops(self) -> Iterator[Op]:
        mid, side, held = self.mid_channels, self.out_size, self.in_channels * self.size**2
        yield Op("conv", self.in_channels, mid, self.size, self.size, norm=True, name="reduce.conv", writes="first")
        yield Op(
            "conv",
            mid,
            mid,
            self.size,
            side,
            self.kernel,
            norm=True,
            name="spatial.conv",
            reads="first",
            writes="second",
            held=held,
        )
        yield Op("conv", mid, self.out_channels, side, side, norm=True, name="expand.conv", reads="second", held=held)
        yield from self.shortcut_ops(norm=True)


@dataclass(frozen=True)
class MaxPool(Counted):
    """Maximum over ``kernel`` x ``kernel`` pixels, same padding."""

    kind: ClassVar[str] = "maxpool"
    size: int
    channels: int
    kernel: int
    stride: int

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        side = out_size(self.size, self.stride)
        return (self.channels, side, side)

    def ops(self) -> Iterator[Op]:
        yield Op("pool", self.channels, self.channels, self.size, out_size(self.size, self.stride))


@dataclass(frozen=True)
class GlobalPool(Counted):
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
class Linear(Counted):
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
        yield Op("linear", self.in_channels * self.size**2, self.out_channels, 1, 1, bias=True, name="linear")


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
        return key_of(self)

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

    def ops(self) -> Iterator[Op]:
        """None: what it does is in the user's code, and so is which of its channels belong together."""
        return iter(())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """None, for the same reason."""
        return {}

    def structure(self) -> Layer:
        return self


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x") if part)


_KINDS: tuple[type[Counted] | type[Block], ...] = (Conv, MBConv, Bottleneck, MaxPool, GlobalPool, Linear, Block)
LAYER_KINDS = {kind.kind: kind for kind in _KINDS}


def parse_layer(key: str) -> Layer:
    """The layer that ``key`` names; the inverse of ``layer.key``. Fields that an older version did not have may be absent.

    Raises:
        ValueError: the text is not the key of a known kind of layer.
    """
    kind, _, rest = key.partition("(")
    if kind not in LAYER_KINDS or not rest.endswith(")"):
        raise ValueError(f"'{key}' is not a layer's key; kinds: {', '.join(LAYER_KINDS)}")
    cls = LAYER_KINDS[kind]
    given = dict(item.split("=", 1) for item in rest[:-1].split(",") if "=" in item)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not needed <= given.keys() <= fields.keys():
        raise ValueError(f"'{key}' should have the fields {', '.join(fields)}")
    casts: dict[str, Callable[[str], Any]] = {"int": int, "bool": {"True": True, "False": False}.__getitem__, "str": str}
    try:
        values = {name: casts[str(fields[name].type)](text) for name, text in given.items()}
    except KeyError as error:
        raise ValueError(f"'{key}' has a field that is neither True nor False: {error}") from None
    return cast(Layer, cls(**values))
