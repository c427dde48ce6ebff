"""MobileNetV3-Large and -Small (Howard et al., ICCV 2019, arXiv 1905.02244), each with the space of what can be taken off.

The largest network of a space is the published one; every other has smaller kernels, fewer hidden channels in its blocks
(as NetAdapt shrinks them), fewer blocks at the ends of stages, or smaller images.
"""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.inverted import Body, First, Head, Stage, inverted_residual_space
from search_spaces.space import SearchSpace

__all__ = ["mobilenet_v3_large", "mobilenet_v3_small"]

SHARES = (0.5, 0.75, 1.0)  # of the published hidden channels
RESOLUTIONS = (128, 160, 192, 224)


def _stage(width: int, stride: int, act: str, se: bool, kernel: int, full: tuple[int, ...]) -> Stage:
    kernels = tuple(k for k in (3, 5) if k <= kernel)
    return Stage(width, stride, act, se, tuple(range(1, len(full) + 1)), (kernels,) * len(full), SHARES, full)


_LARGE = Body(
    16,
    2,
    "hswish",
    First(16, 1, "relu", shortcut=True),
    (
        _stage(24, 2, "relu", False, 3, (64, 72)),
        _stage(40, 2, "relu", True, 5, (72, 120, 120)),
        _stage(80, 2, "hswish", False, 3, (240, 200, 184, 184)),
        _stage(112, 1, "hswish", True, 3, (480, 672)),
        _stage(160, 2, "hswish", True, 5, (672, 960, 960)),
    ),
    Head(960, "hswish", 1280, feature_bias=True),
)
_SMALL = Body(
    16,
    2,
    "hswish",
    First(16, 2, "relu", se=True),
    (
        _stage(24, 2, "relu", False, 3, (72, 88)),
        _stage(40, 2, "hswish", True, 5, (96, 240, 240)),
        _stage(48, 1, "hswish", True, 5, (120, 144)),
        _stage(96, 2, "hswish", True, 5, (288, 576, 576)),
    ),
    Head(576, "hswish", 1024, feature_bias=True),
)


def mobilenet_v3_large(*, classes: int = 1000, channels: int = 3, resolution: Sequence[int] = RESOLUTIONS) -> SearchSpace:
    """MobileNetV3-Large as published (the largest network here) and what can be taken off it.

    Args:
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; published: 224.
    """
    return _space("mobilenet-v3-large", _LARGE, classes, channels, resolution)


def mobilenet_v3_small(*, classes: int = 1000, channels: int = 3, resolution: Sequence[int] = RESOLUTIONS) -> SearchSpace:
    """MobileNetV3-Small as published (the largest network here) and what can be taken off it.

    Args:
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; published: 224.
    """
    return _space("mobilenet-v3-small", _SMALL, classes, channels, resolution)


def _space(name: str, body: Body, classes: int, channels: int, resolution: Sequence[int]) -> SearchSpace:
    blocks = [block for stage in body.stages for block in stage.kernel]
    full = {
        "resolution": 224,
        "depth": [max(stage.depth) for stage in body.stages],
        "kernel": [max(kernels) for kernels in blocks],
        "expand": [1.0] * len(blocks),
    }
    return inverted_residual_space(
        name,
        body,
        parameters={"classes": classes, "channels": channels},
        resolution=resolution,
        dropout=0.2,
        published={name: full},
    )
