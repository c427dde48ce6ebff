"""The space of AttentiveNAS (Wang et al., CVPR 2021, arXiv 2011.09011) and AlphaNet (ICML 2021, arXiv 2102.07954)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search_spaces.family import check_parameters, shrunk
from search_spaces.layers import Conv, GlobalPool, Layer, Linear, MBConv, make_divisible
from search_spaces.rows import Choice
from search_spaces.space import Position, SearchSpace

__all__ = ["attentive_nas"]

RESOLUTIONS = (192, 224, 256, 288)
ACT = "swish"
STEM = (16, 24)
LAST = (1792, 1984)
HEAD_EXPAND = 6


@dataclass(frozen=True)
class _Stage:
    """Inverted residuals that share all choices; the first one has the stride."""

    width: tuple[int, ...]
    depth: tuple[int, ...]
    expand: tuple[int, ...]
    stride: int
    se: bool


STAGES = (
    _Stage((16, 24), (1, 2), (1,), 1, False),
    _Stage((24, 32), (3, 4, 5), (4, 5, 6), 2, False),
    _Stage((32, 40), (3, 4, 5, 6), (4, 5, 6), 2, True),
    _Stage((64, 72), (3, 4, 5, 6), (4, 5, 6), 2, False),
    _Stage((112, 120, 128), (3, 4, 5, 6, 7, 8), (4, 5, 6), 1, True),
    _Stage((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (6,), 2, True),
    _Stage((216, 224), (1, 2), (6,), 1, True),
)

# Resolution, widths, depths, kernels, expansions of the published models.
PUBLISHED = {
    "a0": (192, (16, 16, 24, 32, 64, 112, 192, 216, 1792), (1, 3, 3, 3, 3, 3, 1), (3, 3, 3, 3, 3, 3, 3), (1, 4, 4, 4, 4, 6, 6)),
    "a1": (224, (16, 16, 24, 32, 64, 112, 192, 216, 1984), (1, 3, 3, 3, 3, 3, 1), (3, 3, 3, 5, 3, 5, 3), (1, 4, 4, 4, 4, 6, 6)),
    "a2": (224, (16, 16, 24, 32, 64, 112, 200, 224, 1984), (1, 3, 3, 3, 3, 4, 1), (3, 3, 3, 3, 3, 5, 3), (1, 4, 5, 4, 4, 6, 6)),
    "a3": (224, (16, 16, 24, 32, 64, 112, 208, 224, 1984), (2, 3, 3, 4, 3, 5, 1), (3, 3, 3, 5, 3, 3, 3), (1, 4, 4, 4, 4, 6, 6)),
    "a4": (256, (16, 16, 24, 32, 64, 112, 192, 216, 1984), (1, 3, 3, 4, 3, 5, 1), (3, 3, 3, 5, 3, 5, 3), (1, 4, 4, 5, 4, 6, 6)),
    "a5": (256, (16, 16, 24, 32, 72, 112, 192, 216, 1792), (1, 3, 3, 3, 4, 6, 1), (3, 3, 3, 5, 3, 3, 3), (1, 4, 5, 4, 4, 6, 6)),
    "a6": (288, (16, 16, 24, 32, 64, 112, 216, 224, 1984), (1, 3, 3, 4, 4, 6, 1), (3, 3, 3, 3, 3, 5, 3), (1, 4, 6, 5, 4, 6, 6)),
}


def attentive_nas(*, classes: int = 1000, channels: int = 3, resolution: Sequence[int] = RESOLUTIONS) -> SearchSpace:
    """AttentiveNAS's space: 7 stages of inverted residuals with width, depth, kernel and expansion per stage.

    ``width`` has 9 values (stem, stages, last convolution), ``depth``, ``kernel`` and ``expand`` have 7. Small kernels are
    the centres of large ones. The published networks are in ``space.published`` as ``a0`` to ``a6``.

    Args:
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; published: 192, 224, 256 and 288.
    """
    parameters = {"classes": classes, "channels": channels}
    check_parameters("attentive-nas", parameters, resolution)
    names = ("resolution", "width", "depth", "kernel", "expand")
    return SearchSpace(
        {
            "resolution": Choice(tuple(resolution)),
            "width": Choice.each([STEM, *(stage.width for stage in STAGES), LAST]),
            "depth": Choice.each([stage.depth for stage in STAGES]),
            "kernel": Choice((3, 5), len(STAGES)),
            "expand": Choice.each([stage.expand for stage in STAGES]),
        },
        name="attentive-nas",
        parameters=parameters,
        positions=_positions(channels, classes),
        shrink=("resolution", "kernel", "depth", "expand", "width"),
        unkeyed=("classes", "channels"),
        built_in=True,
        traits={"norm_eps": 1e-5, "norm_momentum": 0.1, "dropout": 0.2, "kernel_maps": 0.0, "residual_gamma": 0.0},
        published={name: dict(zip(names, values, strict=True)) for name, values in PUBLISHED.items()},
    )


def _positions(channels: int, classes: int) -> list[Position]:
    res = "resolution"
    positions = [Position("stem", (res, "width[0]"), lambda size, out: Conv(size, channels, out, 3, 2, ACT))]
    strides = [2]
    for number, stage in enumerate(STAGES):
        shared = (f"width[{number + 1}]", f"kernel[{number}]", f"expand[{number}]")
        for block in range(max(stage.depth)):
            elastic = (f"depth[{number}]",) if block >= min(stage.depth) else ()
            before = (f"width[{number}]",) if block == 0 else ()
            layer = _first_block(stage, tuple(strides)) if block == 0 else _later_block(stage, tuple(strides), block)
            positions.append(Position(f"mb{number + 1}.block{block + 1}", (res, *before, *shared, *elastic), layer))
            if block == 0:
                strides.append(stage.stride)
    total = tuple(strides)

    def final(width: int) -> int:
        return make_divisible(width * HEAD_EXPAND)

    return [
        *positions,
        Position("final", (res, "width[7]"), lambda size, before: Conv(shrunk(size, total), before, final(before), 1, 1, ACT)),
        Position("pool", (res, "width[7]"), lambda size, before: GlobalPool(shrunk(size, total), final(before))),
        Position("feature", ("width[7]", "width[8]"), lambda before, out: Conv(1, final(before), out, 1, 1, ACT, norm=False)),
        Position("classifier", ("width[8]",), lambda before: Linear(1, before, classes)),
    ]


def _block(stage: _Stage, size: int, before: int, out: int, kernel: int, expand: int, stride: int) -> Layer:
    mid = make_divisible(round(before * expand))
    se = make_divisible(mid // 4) if stage.se else 0
    return MBConv(size, before, mid, out, kernel, stride, ACT, se, shortcut=True)


def _first_block(stage: _Stage, strides: tuple[int, ...]) -> Callable[..., Layer]:
    """From (resolution, width before, width, kernel, expand)."""

    def layer(size: int, before: int, width: int, kernel: int, expand: int) -> Layer:
        return _block(stage, shrunk(size, strides), before, width, kernel, expand, stage.stride)

    return layer


def _later_block(stage: _Stage, strides: tuple[int, ...], block: int) -> Callable[..., Layer | None]:
    """From (resolution, width, kernel, expand[, depth])."""

    def layer(size: int, width: int, kernel: int, expand: int, depth: int | None = None) -> Layer | None:
        if depth is not None and depth <= block:
            return None
        return _block(stage, shrunk(size, strides), width, width, kernel, expand, 1)

    return layer
