"""Families of inverted-residual networks with elastic kernel, expansion, depth and resolution.

`ofa_mobilenet_v3`, `ofa_proxyless`: the spaces of Once-for-all (Cai et al., ICLR 2020, arXiv 1908.09791), with the bodies
of MobileNetV3 and ProxylessNAS. `small_mobilenet`: the same blocks for images of 28 to 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.errors import UserError
from search_spaces.inverted import Body, First, Head, Stage, inverted_residual_space
from search_spaces.layers import make_divisible
from search_spaces.space import SearchSpace

__all__ = ["PUBLISHED_RESOLUTIONS", "ofa_mobilenet_v3", "ofa_proxyless", "small_mobilenet"]

PUBLISHED_RESOLUTIONS = tuple(range(128, 225, 4))  # Once-for-all's 25 sizes

# Width at multiplier 1, stride, activation, squeeze-and-excite.
_OFA_STAGES = (
    (24, 2, "relu", False),
    (40, 2, "relu", True),
    (80, 2, "hswish", False),
    (112, 1, "hswish", True),
    (160, 2, "hswish", True),
)
_PROXYLESS_STAGES = ((24, 2), (40, 2), (80, 2), (96, 1), (192, 2), (320, 1))  # width and stride
_SMALL_STAGES = (
    (24, 2, "relu", False),
    (40, 2, "relu", True),
    (80, 2, "hswish", False),
    (96, 1, "hswish", True),
)


def _wide(channels: int, width: float) -> int:
    return make_divisible(channels * width)


def ofa_mobilenet_v3(
    width: float = 1.0,
    *,
    classes: int = 1000,
    channels: int = 3,
    resolution: Sequence[int] = PUBLISHED_RESOLUTIONS,
) -> SearchSpace:
    """Once-for-all's MobileNetV3 space: 5 stages of 2 to 4 blocks, kernel 3/5/7 and expansion 3/4/6 per block.

    Args:
        width: width multiplier, fixed for one supernet (published: 1.0 and 1.2).
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; published: the 25 multiples of 4 from 128 to 224.
    """
    body = Body(
        _wide(16, width),
        2,
        "hswish",
        First(_wide(16, width), 1, "relu", shortcut=True),
        tuple(
            Stage(_wide(c, width), stride, act, se, (2, 3, 4), ((3, 5, 7),) * 4, (3, 4, 6))
            for c, stride, act, se in _OFA_STAGES
        ),
        Head(_wide(960, width), "hswish", _wide(1280, width)),
    )
    parameters = {"width": width, "classes": classes, "channels": channels}
    return inverted_residual_space("ofa-mobilenet-v3", body, parameters=parameters, resolution=resolution)


def ofa_proxyless(
    width: float = 1.0,
    *,
    classes: int = 1000,
    channels: int = 3,
    resolution: Sequence[int] = PUBLISHED_RESOLUTIONS,
) -> SearchSpace:
    """Once-for-all's ProxylessNAS space: 5 stages of 2 to 4 blocks and a last block, kernel 3/5/7, expansion 3/4/6.

    ReLU6 throughout, no squeeze-and-excite. The last stage always has one block and so no gene for its depth; its kernel
    and expansion are the 21st of their lists.

    Args:
        width: width multiplier, fixed for one supernet (published: 1.3).
        classes: outputs of the classifier.
        channels: channels of the input image.
        resolution: input sizes; published: the 25 multiples of 4 from 128 to 224.
    """
    depths = [(2, 3, 4)] * 5 + [(1,)]
    body = Body(
        _wide(32, width),
        2,
        "relu6",
        First(_wide(16, width), 1, "relu6"),
        tuple(
            Stage(_wide(c, width), stride, "relu6", False, depth, ((3, 5, 7),) * max(depth), (3, 4, 6))
            for (c, stride), depth in zip(_PROXYLESS_STAGES, depths, strict=True)
        ),
        Head(_wide(1280, width), "relu6"),
    )
    parameters = {"width": width, "classes": classes, "channels": channels}
    return inverted_residual_space("ofa-proxyless", body, parameters=parameters, resolution=resolution, norm_eps=1e-3)


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
    body = Body(
        _wide(16, width),
        1 if image < 40 else 2,
        "hswish",
        First(_wide(16, width), 1, "relu", shortcut=True),
        tuple(
            Stage(_wide(c, width), stride, act, se, (1, 2, 3), ((3, 5),) * 3, (2, 4, 6)) for c, stride, act, se in _SMALL_STAGES
        ),
        Head(_wide(480, width), "hswish", _wide(640, width)),
    )
    return inverted_residual_space(
        "small-mobilenet",
        body,
        parameters={"width": width, "image": image, "classes": classes, "channels": channels},
        resolution=tuple(resolution) if resolution else tuple(image - i * step for i in (3, 2, 1, 0)),
    )
