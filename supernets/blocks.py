"""The only model code: one plain module per kind of layer, and the network that is a chain of them.

Parameter names are a contract (files and the ONNX writer use them): layer i of a network has the prefix
``blocks.{i}.``, then what `Layer.tensors` says: ``conv.weight``, ``expand.norm.bias``, ``se.reduce.weight``, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.errors import UserError
from search_spaces.layers import Bottleneck, Conv, GlobalPool, Layer, Linear, MaxPool, MBConv

__all__ = ["Network", "build_block"]

Traits = Mapping[str, float]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hswish": lambda: nn.Hardswish(inplace=True),
    "swish": lambda: nn.SiLU(inplace=True),
    "none": nn.Identity,
}


def _norm(channels: int, traits: Traits) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, traits["norm_eps"], traits["norm_momentum"])


class _ConvNormAct(nn.Module):
    """Convolution, batch normalisation unless there is none, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: str = "none",
        norm: bool = True,
        bias: bool = False,
        traits: Traits,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = _norm(out_channels, traits) if norm else nn.Identity()
        self.act = _ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class _SqueezeExcite(nn.Module):
    """Channel gate from the global mean: reduce, ReLU, expand, hard sigmoid."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        gate = self.expand(torch.relu_(self.reduce(gate)))
        return x * nn.functional.hardsigmoid(gate)


class _ConvBlock(_ConvNormAct):
    """A layer that is one convolution, with or without a shortcut."""

    def __init__(self, layer: Conv, traits: Traits) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            kernel=layer.kernel,
            stride=layer.stride,
            act=layer.act,
            norm=layer.norm,
            bias=layer.bias,
            traits=traits,
        )
        self.shortcut = layer.shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.shortcut else y


class _Shortcut(nn.Module):
    """The input of a block in the shape of its output: averaged over the stride, then a 1x1 convolution if channels differ."""

    def __init__(self, layer: MBConv | Bottleneck, traits: Traits, *, norm: bool) -> None:
        super().__init__()
        self.stride, self.projects = layer.stride, layer.projects
        if layer.projects:
            self.conv = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False)
            self.norm = _norm(layer.out_channels, traits) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = nn.functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.norm(self.conv(x)) if self.projects else x


class _MBConvBlock(nn.Module):
    """Inverted residual: expand, depthwise, squeeze-and-excite, project, shortcut."""

    def __init__(self, layer: MBConv, traits: Traits) -> None:
        super().__init__()
        mid = layer.mid_channels
        self.expand = _ConvNormAct(layer.in_channels, mid, act=layer.act, traits=traits) if layer.expands else nn.Identity()
        self.depthwise = _ConvNormAct(
            mid, mid, kernel=layer.kernel, stride=layer.stride, groups=mid, act=layer.act, traits=traits
        )
        self.se = _SqueezeExcite(mid, layer.se_channels) if layer.se_channels else nn.Identity()
        self.project = _ConvNormAct(mid, layer.out_channels, traits=traits)
        self.shortcut = _Shortcut(layer, traits, norm=False) if layer.shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return y if self.shortcut is None else self.shortcut(x) + y  # type: ignore[no-any-return]


class _BottleneckBlock(nn.Module):
    """ResNet's residual block: reduce, spatial convolution, expand, shortcut, activation."""

    def __init__(self, layer: Bottleneck, traits: Traits) -> None:
        super().__init__()
        mid = layer.mid_channels
        self.reduce = _ConvNormAct(layer.in_channels, mid, act=layer.act, traits=traits)
        self.spatial = _ConvNormAct(mid, mid, kernel=layer.kernel, stride=layer.stride, act=layer.act, traits=traits)
        self.expand = _ConvNormAct(mid, layer.out_channels, traits=traits)
        self.shortcut = _Shortcut(layer, traits, norm=True)
        self.act = _ACTIVATIONS[layer.act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.expand(self.spatial(self.reduce(x))))  # type: ignore[no-any-return]


class _PoolBlock(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)


class _LinearBlock(nn.Module):
    def __init__(self, layer: Linear, traits: Traits) -> None:
        super().__init__()
        self.dropout = nn.Dropout(traits.get("dropout", 0.0))
        self.linear = nn.Linear(layer.in_channels * layer.size**2, layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x.flatten(1)))  # type: ignore[no-any-return]  # (B, classes)


_BLOCKS: dict[type, Callable[[Any, Traits], nn.Module]] = {
    Conv: _ConvBlock,
    MBConv: _MBConvBlock,
    Bottleneck: _BottleneckBlock,
    MaxPool: lambda layer, _traits: nn.MaxPool2d(layer.kernel, layer.stride, layer.kernel // 2),
    GlobalPool: lambda _layer, _traits: _PoolBlock(),
    Linear: _LinearBlock,
}


def build_block(layer: Layer, traits: Traits) -> nn.Module:
    """The plain module of a layer.

    Args:
        traits: ``norm_eps``, ``norm_momentum`` and optionally ``dropout`` (see `SearchSpace.traits`).
    """
    if type(layer) not in _BLOCKS:
        raise UserError(
            f"no module for a layer of kind {type(layer).__name__}",
            allowed=f"Kinds with a module: {', '.join(kind.__name__ for kind in _BLOCKS)}",
            next_step="Add the module to supernets/blocks.py",
        )
    return _BLOCKS[type(layer)](layer, traits)


class Network(nn.Module):
    """A plain network: its layers' modules one after the other. Input (B, C, H, W), output (B, classes).

    Args:
        traits: see `build_block`.
        blocks: modules that exist already, one per layer; default: new ones.
    """

    def __init__(self, layers: Sequence[Layer], traits: Traits, *, blocks: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.traits = dict(traits)
        self.blocks = nn.ModuleList(blocks or [build_block(layer, traits) for layer in layers])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def initialise(network: Network, generator: torch.Generator) -> None:
    """Fresh weights: He fan-out for convolutions, unit scale for batch normalisation, 1/sqrt(inputs) for linear layers.

    The batch normalisation at the end of a residual branch starts at the trait ``residual_gamma`` (default 1).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()  # the weight may be larger than its module says
            spread = (2.0 / fan_out) ** 0.5
            nn.init.normal_(module.weight, 0.0, spread, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.weight.shape[1] ** -0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in network.blocks:
        if isinstance(block, _MBConvBlock | _BottleneckBlock) and block.shortcut is not None:
            last = block.project.norm if isinstance(block, _MBConvBlock) else block.expand.norm
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.constant_(last.weight, network.traits.get("residual_gamma", 1.0))
