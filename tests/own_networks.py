"""Networks as users write them, for the tests of bring-your-own-model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class PlainCnn(nn.Module):
    """Elastic kernel, depth and width; ``view`` in its forward, a pooling module that is called twice."""

    def __init__(self, kernel: int, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 8, 3, 1)
        self.pool = nn.MaxPool2d(2)
        self.body = nn.ModuleList(ConvBlock(8 if i == 0 else width, width, kernel, 1) for i in range(depth))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for block in self.body:
            x = block(x)
        x = self.pool(x)
        return self.head(self.drop(x.view(x.size(0), x.size(1), -1).mean(2)))


class SignalCnn(nn.Module):
    """A 1-D network on (B, 1, L)."""

    def __init__(self, widths: list[int], kernel: int, classes: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for width in widths:
            layers += [nn.Conv1d(inputs, width, kernel, 2, kernel // 2, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(2))


class Constants(nn.Module):
    """What cannot stay on the meta device: a computed buffer, a tensor that is no buffer, values read while building."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        rates = [float(rate) for rate in torch.linspace(0.1, 0.5, depth)]
        self.layers = nn.ModuleList(nn.Linear(8 if i == 0 else width, width) for i in range(depth))
        self.rates = rates
        self.register_buffer("ramp", torch.arange(width) / width)
        self.shift = torch.full((width,), 0.25)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer, rate in zip(self.layers, self.rates, strict=True):
            x = torch.tanh(layer(x)) * rate
        return self.head(x * self.ramp + self.shift)


class Scaled(nn.Module):
    """Elastic width and depth; a parameter of the network itself, in none of its blocks."""

    def __init__(self, width: int, depth: int, classes: int = 4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1, 1))
        self.blocks = nn.ModuleList(ConvBlock(1 if i == 0 else width, width, 3, 2) for i in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """One weight under two names, and a buffer that the forward writes to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(8, width, bias=False)
        self.second = nn.Linear(8, width, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.zeros(1))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.first(x) + self.second(x).relu()) + self.calls


def resnet(d1: int, d2: int, d3: int, d4: int, width: int = 8, classes: int = 10) -> nn.Module:
    """torchvision's ResNet of basic blocks, the width written by the user."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class Narrow(ResNet):
        def __init__(self) -> None:
            super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=classes)
            self.inplanes = width
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            for stage, depth in enumerate((d1, d2, d3, d4)):
                stride = 1 if stage == 0 else 2
                setattr(self, f"layer{stage + 1}", self._make_layer(BasicBlock, width << stage, depth, stride))
            self.fc = nn.Linear(width * 8, classes)

    return Narrow()


def vit(depth: int, mlp_dim: int, hidden: int = 16) -> nn.Module:
    """torchvision's VisionTransformer."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, depth, 2, hidden, mlp_dim, num_classes=5)
