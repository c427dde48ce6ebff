"""Networks of inverted residuals with fixed widths: stem, one plain block, stages of elastic blocks, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.family import check_parameters, depth_rules, shrunk
from search_spaces.layers import Conv, GlobalPool, Layer, Linear, MBConv, make_divisible
from search_spaces.rows import Choice
from search_spaces.space import Position, SearchSpace

__all__ = ["Body", "First", "Head", "Stage", "inverted_residual_space"]


@dataclass(frozen=True)
class First:
    """The block after the stem; it expands nothing and is never elastic."""

    width: int
    stride: int
    act: str
    se: bool = False
    shortcut: bool = False  # where shapes allow one


@dataclass(frozen=True)
class Stage:
    """A run of blocks that share width, activation and squeeze-and-excite; the first one has the stride.

    Attributes:
        depth: numbers of blocks to choose from.
        kernel: per block, kernel sizes to choose from.
        expand: expansions to choose from.
        full: per block, hidden channels that an expansion is a share of; None: expansions are ratios of input channels.
    """

    width: int
    stride: int
    act: str
    se: bool
    depth: tuple[int, ...]
    kernel: tuple[tuple[int, ...], ...]
    expand: tuple[float, ...]
    full: tuple[int, ...] | None = None

    def block(self, before: int, number: int, strides: tuple[int, ...]) -> Callable[..., Layer | None]:
        """The layer of one block, from (resolution, kernel, expand[, depth])."""
        stride = self.stride if number == 0 else 1
        base = before if self.full is None else self.full[number]

        def layer(size: int, kernel: int, expand: float, depth: int | None = None) -> Layer | None:
            if depth is not None and depth <= number:
                return None
            mid = make_divisible(round(base * expand))
            se = make_divisible(mid // 4) if self.se else 0
            shortcut = stride == 1 and before == self.width
            return MBConv(shrunk(size, strides), before, mid, self.width, kernel, stride, self.act, se, shortcut)

        return layer


@dataclass(frozen=True)
class Head:
    """From the last stage to the classes: a convolution, pooling, another convolution where there is one, a classifier."""

    final: int
    act: str
    feature: int | None = None
    feature_bias: bool = False

    def positions(self, before: int, strides: tuple[int, ...], classes: int) -> list[Position]:
        final, feature, act = self.final, self.feature, self.act
        found = [
            Position("final", ("resolution",), lambda size: Conv(shrunk(size, strides), before, final, 1, 1, act)),
            Position("pool", ("resolution",), lambda size: GlobalPool(shrunk(size, strides), final)),
        ]
        if feature is not None:
            mix = Conv(1, final, feature, 1, 1, act, norm=False, bias=self.feature_bias)
            found.append(Position("feature", (), lambda: mix))
        return [*found, Position("classifier", (), lambda: Linear(1, feature or final, classes))]


@dataclass(frozen=True)
class Body:
    """A whole network, in channels as they are."""

    stem_width: int
    stem_stride: int
    stem_act: str
    first: First
    stages: tuple[Stage, ...]
    head: Head


def inverted_residual_space(
    name: str,
    body: Body,
    *,
    parameters: Mapping[str, float],
    resolution: Sequence[int],
    norm_eps: float = 1e-5,
    dropout: float = 0.1,
    published: Mapping[str, Mapping[str, Any]] | None = None,
) -> SearchSpace:
    """The space of a body: resolution, depth per stage, kernel and expansion per block.

    Stages with one depth have no gene for it.
    """
    check_parameters(name, parameters, resolution)
    elastic = [stage for stage in body.stages if len(stage.depth) > 1]
    genes = {id(stage): f"depth[{number}]" for number, stage in enumerate(elastic)}
    rules = [rule for stage in body.stages for rule in depth_rules(genes.get(id(stage), ""), stage.depth)]
    kernels = [options for stage in body.stages for options in stage.kernel]
    expands = [stage.expand for stage in body.stages for _ in stage.kernel]
    return SearchSpace(
        {
            "resolution": Choice(tuple(resolution)),
            "depth": Choice.each([stage.depth for stage in elastic]),
            "kernel": Choice.each(kernels, rules),
            "expand": Choice.each(expands, rules),
        },
        name=name,
        parameters=parameters,
        positions=_positions(body, rules, int(parameters["channels"]), int(parameters["classes"])),
        shrink=("resolution", "kernel", "depth", "expand"),
        unkeyed=("classes", "channels"),
        built_in=True,
        traits={"norm_eps": norm_eps, "norm_momentum": 0.1, "dropout": dropout, "kernel_maps": 1.0},
        published=published,
    )


def _positions(body: Body, rules: Sequence[Any], channels: int, classes: int) -> list[Position]:
    stem, first = body.stem_width, body.first
    strides = [body.stem_stride]

    def stem_layer(size: int) -> Layer:
        return Conv(size, channels, stem, 3, body.stem_stride, body.stem_act)

    def first_layer(size: int) -> Layer:
        se = make_divisible(stem // 4) if first.se else 0
        shortcut = first.shortcut and first.stride == 1 and stem == first.width
        side = shrunk(size, [body.stem_stride])
        return MBConv(side, stem, stem, first.width, 3, first.stride, first.act, se, shortcut)

    positions = [Position("stem", ("resolution",), stem_layer), Position("first", ("resolution",), first_layer)]
    strides.append(first.stride)
    before, index = first.width, 0
    for number, stage in enumerate(body.stages):
        for block in range(len(stage.kernel)):
            rule = rules[index]
            genes = ["resolution", f"kernel[{index}]", f"expand[{index}]"] + ([rule[0]] if rule else [])
            layer = stage.block(before, block, tuple(strides))
            positions.append(Position(f"stage{number + 1}.block{block + 1}", tuple(genes), layer))
            index += 1
            if block == 0:
                strides.append(stage.stride)
                before = stage.width
    return [*positions, *body.head.positions(before, tuple(strides), classes)]
