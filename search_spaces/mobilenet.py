"""Families of inverted-residual networks.

`ofa_mobilenet_v3`: the space of Once-for-all (Cai et al., ICLR 2020, arXiv 1908.09791), MobileNetV3 body.
`small_mobilenet`: the same blocks for images of 28 to 64 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search_spaces.errors import UserError
from search_spaces.layers import Conv, GlobalPool, Layer, Linear, MBConv, make_divisible, out_size
from search_spaces.rows import Choice
from search_spaces.space import Position, SearchSpace

__all__ = ["ofa_mobilenet_v3", "small_mobilenet"]


@dataclass(frozen=True)
class _Stage:
    """A run of blocks that share width, activation and squeeze-and-excite; the first one has the stride."""

    width: int
    stride: int
    act: str
    se: bool


@dataclass(frozen=True)
class _Body:
    """A MobileNetV3-like network; widths are those of width multiplier 1."""

    stem_width: int
    stem_stride: int
    first_width: int
    stages: tuple[_Stage, ...]
    final_width: int
    feature_width: int


_OFA = _Body(
    stem_width=16,
    stem_stride=2,
    first_width=16,
    stages=(
        _Stage(24, 2, "relu", se=False),
        _Stage(40, 2, "relu", se=True),
        _Stage(80, 2, "hswish", se=False),
        _Stage(112, 1, "hswish", se=True),
        _Stage(160, 2, "hswish", se=True),
    ),
    final_width=960,
    feature_width=1280,
)

_SMALL_STAGES = (
    _Stage(24, 2, "relu", se=False),
    _Stage(40, 2, "relu", se=True),
    _Stage(80, 2, "hswish", se=False),
    _Stage(96, 1, "hswish", se=True),
)


def ofa_mobilenet_v3(
    width: float = 1.0,
    *,
    classes: int = 1000,
    channels: int = 3,
    resolution: Sequence[int] = tuple(range(128, 225, 4)),
) -> SearchSpace:
    """Once-for-all's MobileNetV3 space: 5 stages of 2 to 4 blocks, kernel 3/5/7 and expansion 3/4/6 per block.

    Args:
        width: width multiplier, fixed for one supernet (published: 1.0 and 1.2).
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; published: the 25 multiples of 4 from 128 to 224.
    """
    return _inverted_residual_space(
        "ofa-mobilenet-v3",
        _OFA,
        parameters={"width": width, "classes": classes, "channels": channels},
        resolution=tuple(resolution),
        depth=(2, 3, 4),
        kernel=(3, 5, 7),
        expand=(3, 4, 6),
    )


def small_mobilenet(
    width: float = 1.0,
    *,
    image: int = 32,
    classes: int = 10,
    channels: int = 3,
    resolution: Sequence[int] | None = None,
) -> SearchSpace:
    """MobileNetV3 blocks for small images: 4 stages of 1 to 3 blocks, kernel 3/5 and expansion 2/4/6 per block.

    The total stride is 8 below 40 pixels (the stem keeps the size) and 16 from there on: the last map has about 4x4 pixels.

    Args:
        width: width multiplier, fixed for one supernet.
        image: side of the images in pixels, 28 to 64; decides the stem's stride and the resolutions.
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; default: four sizes up to ``image`` in equal steps (20, 24, 28, 32 for 32).
    """
    if not 28 <= image <= 64:
        raise UserError(
            f"image={image} for small-mobilenet",
            allowed="It is made for images of 28 to 64 pixels",
            next_step="Choose a size in that range (images are scaled to it), or use the space ofa-mobilenet-v3",
        )
    step = 4 * max(1, image // 32)
    body = _Body(16, 1 if image < 40 else 2, 16, _SMALL_STAGES, final_width=480, feature_width=640)
    return _inverted_residual_space(
        "small-mobilenet",
        body,
        parameters={"width": width, "image": image, "classes": classes, "channels": channels},
        resolution=tuple(resolution) if resolution else tuple(image - i * step for i in (3, 2, 1, 0)),
        depth=(1, 2, 3),
        kernel=(3, 5),
        expand=(2, 4, 6),
    )


def _inverted_residual_space(
    name: str,
    body: _Body,
    *,
    parameters: dict[str, float],
    resolution: tuple[int, ...],
    depth: tuple[int, ...],
    kernel: tuple[int, ...],
    expand: tuple[int, ...],
) -> SearchSpace:
    _check(name, parameters, resolution)
    most = max(depth)
    rules = tuple(
        None if block < min(depth) else (f"depth[{stage}]", tuple(d for d in depth if d > block))
        for stage in range(len(body.stages))
        for block in range(most)
    )
    blocks = len(rules)
    choices = {
        "resolution": Choice(resolution),
        "depth": Choice(depth, len(body.stages)),
        "kernel": Choice(kernel, blocks, rules),
        "expand": Choice(expand, blocks, rules),
    }
    return SearchSpace(
        choices,
        name=name,
        parameters=parameters,
        positions=_positions(body, parameters, depth),
        shrink=("resolution", "kernel", "depth", "expand"),
        unkeyed=("classes", "channels"),
        traits={"norm_eps": 1e-5, "norm_momentum": 0.1, "dropout": 0.1},
    )


def _positions(body: _Body, parameters: dict[str, float], depth: tuple[int, ...]) -> list[Position]:
    def wide(channels: int) -> int:
        return make_divisible(channels * parameters["width"])

    stem, first = wide(body.stem_width), wide(body.first_width)
    channels, classes = int(parameters["channels"]), int(parameters["classes"])
    strides = [body.stem_stride]

    def stem_layer(size: int) -> Layer:
        return Conv(size, channels, stem, 3, body.stem_stride, "hswish")

    def first_layer(size: int) -> Layer:
        return MBConv(_shrunk(size, strides[:1]), stem, stem, first, 3, 1, "relu", shortcut=stem == first)

    positions = [Position("stem", ("resolution",), stem_layer), Position("first", ("resolution",), first_layer)]
    before = first
    for number, stage in enumerate(body.stages):
        for block in range(max(depth)):
            index = number * max(depth) + block
            genes = ["resolution", f"kernel[{index}]", f"expand[{index}]"] + (
                [f"depth[{number}]"] if block >= min(depth) else []
            )
            layer = _block(stage, before, wide(stage.width), block, tuple(strides))
            positions.append(Position(f"stage{number + 1}.block{block + 1}", tuple(genes), layer))
            if block == 0:
                strides.append(stage.stride)
                before = wide(stage.width)
    final, feature, last, total = wide(body.final_width), wide(body.feature_width), before, tuple(strides)
    return [
        *positions,
        Position("final", ("resolution",), lambda size: Conv(_shrunk(size, total), last, final, 1, 1, "hswish")),
        Position("pool", ("resolution",), lambda size: GlobalPool(_shrunk(size, total), final)),
        Position("feature", (), lambda: Conv(1, final, feature, 1, 1, "hswish", norm=False)),
        Position("classifier", (), lambda: Linear(1, feature, classes)),
    ]


def _block(stage: _Stage, before: int, out: int, block: int, strides: tuple[int, ...]) -> Callable[..., Layer | None]:
    """The layer of one elastic block, from (resolution, kernel, expand[, depth])."""
    stride = stage.stride if block == 0 else 1

    def layer(size: int, kernel: int, expand: int, depth: int | None = None) -> Layer | None:
        if depth is not None and depth <= block:
            return None
        mid = make_divisible(round(before * expand))
        se = make_divisible(mid // 4) if stage.se else 0
        shortcut = stride == 1 and before == out
        return MBConv(_shrunk(size, strides), before, mid, out, kernel, stride, stage.act, se, shortcut)

    return layer


def _shrunk(size: int, strides: Sequence[int]) -> int:
    for stride in strides:
        size = out_size(size, stride)
    return size


def _check(name: str, parameters: dict[str, float], resolution: tuple[int, ...]) -> None:
    allowed = "width lies in 0.1 to 10, classes is at least 2, channels and every resolution at least 1"
    good = 0.1 <= parameters["width"] <= 10 and parameters["classes"] >= 2 and parameters["channels"] >= 1
    if not good or not resolution or min(resolution) < 1 or list(resolution) != sorted(set(resolution)):
        given = ", ".join(f"{key}={value}" for key, value in parameters.items())
        raise UserError(
            f"{name} with {given}, resolution={list(resolution)}",
            allowed=f"{allowed}; resolutions ascend",
            next_step="Correct the parameter",
        )
