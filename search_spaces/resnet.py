"""The ResNet50 space of Once-for-all (Cai et al., ICLR 2020, arXiv 1908.09791): ResNet-50-D with elastic stem and widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search_spaces.family import Rule, check_parameters, depth_rules, shrunk
from search_spaces.layers import Bottleneck, Conv, GlobalPool, Layer, Linear, MaxPool, make_divisible
from search_spaces.mobilenet import PUBLISHED_RESOLUTIONS
from search_spaces.rows import Choice
from search_spaces.space import Position, SearchSpace

__all__ = ["ofa_resnet50"]

STEM_WIDTH = 64
STAGES = ((256, 2, 1), (512, 2, 2), (1024, 4, 2), (2048, 2, 2))  # width at multiplier 1, fewest blocks, stride
EXTRA = (0, 1, 2)
WIDTHS = (0.65, 0.8, 1.0)
EXPANDS = (0.2, 0.25, 0.35)


def ofa_resnet50(*, classes: int = 1000, channels: int = 3, resolution: Sequence[int] = PUBLISHED_RESOLUTIONS) -> SearchSpace:
    """Once-for-all's ResNet50 space: 4 stages with 0 to 2 extra blocks, expansion per block, width per stage.

    The choices are those of the published configurations without the options that make no difference:

    - ``depth``: 5 values; the first is the stem's residual convolution, 2 with it and 0 without (published: 1 means 0
      as well); the others are the extra blocks of the stages, 0 to 2.
    - ``expand``: 18 values, hidden channels of a block as a share of its output's.
    - ``width``: 6 multipliers; between the stem's convolutions, after the stem, then the stages'. The first is 0.65 or
      1.0 (published: 0.8 gives the same 24 channels as 0.65).

    Args:
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; published: the 25 multiples of 4 from 128 to 224.
    """
    parameters = {"classes": classes, "channels": channels}
    check_parameters("ofa-resnet50", parameters, resolution)
    rules = [rule for s, (_, base, _) in enumerate(STAGES) for rule in depth_rules(f"depth[{s + 1}]", EXTRA, base=base)]
    return SearchSpace(
        {
            "resolution": Choice(tuple(resolution)),
            "depth": Choice.each([(0, 2), *[EXTRA] * 4]),
            "expand": Choice(EXPANDS, len(rules), tuple(rules)),
            "width": Choice.each([(0.65, 1.0), *[WIDTHS] * 5]),
        },
        name="ofa-resnet50",
        parameters=parameters,
        positions=_positions(channels, classes, rules),
        shrink=("resolution", "depth", "expand", "width"),
        unkeyed=("classes", "channels"),
        built_in=True,
        traits={"norm_eps": 1e-5, "norm_momentum": 0.1},
    )


def _stem(multiplier: float) -> int:
    return make_divisible(STEM_WIDTH * multiplier)


def _middle(multiplier: float) -> int:
    return make_divisible(_stem(multiplier) // 2)


def _positions(channels: int, classes: int, rules: Sequence[Rule | None]) -> list[Position]:
    def residual(size: int, middle: float, depth: int) -> Layer | None:
        width = _middle(middle)
        return Conv(shrunk(size, [2]), width, width, 3, 1, "relu", shortcut=True) if depth else None

    def last(size: int, middle: float, out: float) -> Layer:
        return Conv(shrunk(size, [2]), _middle(middle), _stem(out), 3, 1, "relu")

    res = "resolution"
    positions = [
        Position("stem.first", (res, "width[0]"), lambda size, middle: Conv(size, channels, _middle(middle), 3, 2, "relu")),
        Position("stem.residual", (res, "width[0]", "depth[0]"), residual),
        Position("stem.last", (res, "width[0]", "width[1]"), last),
        Position("stem.pool", (res, "width[1]"), lambda size, out: MaxPool(shrunk(size, [2]), _stem(out), 3, 2)),
    ]
    strides, index, before = [2, 2], 0, STEM_WIDTH
    for stage, (width, base, stride) in enumerate(STAGES):
        for block in range(base + max(EXTRA)):
            first, rule = block == 0, rules[index]
            genes = [res, *([f"width[{stage + 1}]"] if first else []), f"width[{stage + 2}]", f"expand[{index}]"]
            layer = (
                _first_block(before, width, stride, tuple(strides))
                if first
                else _later_block(width, tuple(strides), block - base)
            )
            name = f"stage{stage + 1}.block{block + 1}"
            positions.append(Position(name, tuple([*genes, rule[0]] if rule else genes), layer))
            index += 1
            if first:
                strides.append(stride)
        before = width
    total = tuple(strides)
    return [
        *positions,
        Position("pool", (res, "width[5]"), lambda size, out: GlobalPool(shrunk(size, total), make_divisible(before * out))),
        Position("classifier", ("width[5]",), lambda out: Linear(1, make_divisible(before * out), classes)),
    ]


def _block(size: int, before: int, out: int, expand: float, stride: int) -> Layer:
    return Bottleneck(size, before, make_divisible(round(out * expand)), out, 3, stride, "relu")


def _first_block(before: int, width: int, stride: int, strides: tuple[int, ...]) -> Callable[..., Layer]:
    """The block that changes width and size, from (resolution, multiplier before, multiplier, expand)."""

    def layer(size: int, incoming: float, multiplier: float, expand: float) -> Layer:
        channels, out = make_divisible(before * incoming), make_divisible(width * multiplier)
        return _block(shrunk(size, strides), channels, out, expand, stride)

    return layer


def _later_block(width: int, strides: tuple[int, ...], extra: int) -> Callable[..., Layer | None]:
    """A block within a stage, from (resolution, multiplier, expand[, depth])."""

    def layer(size: int, multiplier: float, expand: float, depth: int | None = None) -> Layer | None:
        if depth is not None and depth <= extra:
            return None
        out = make_divisible(width * multiplier)
        return _block(shrunk(size, strides), out, out, expand, 1)

    return layer
