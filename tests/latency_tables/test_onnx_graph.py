"""The ONNX writer against torch.nn.functional on the same weights, for every kind of layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

import search_spaces
from latency_tables import open_device
from latency_tables.onnx_graph import build_onnx, empty_onnx, random_weights
from search_spaces import UserError
from search_spaces.layers import Bottleneck, Conv, GlobalPool, Layer, Linear, MaxPool, MBConv

EPS = 1e-3

LAYERS: list[Layer] = [
    Conv(9, 3, 8, 3, 2, "hswish"),
    Conv(9, 3, 8, 5, 1, "relu"),
    Conv(4, 8, 6, 1, 1, "relu6"),
    Conv(4, 8, 6, 3, 1, "none", norm=False, bias=True),
    Conv(4, 8, 6, 1, 1, "hswish", norm=True, bias=True),
    Conv(1, 8, 6, 1, 1, "hswish", norm=False),
    MBConv(7, 8, 24, 8, 5, 1, "relu", shortcut=True),
    MBConv(7, 8, 24, 12, 7, 2, "hswish", se_channels=8),
    MBConv(7, 8, 24, 8, 3, 1, "hswish", se_channels=8, shortcut=True),
    MBConv(7, 8, 8, 8, 3, 1, "relu", shortcut=True),
    MBConv(7, 8, 8, 12, 3, 2, "relu"),
    MBConv(7, 8, 24, 12, 3, 1, "swish", se_channels=8, shortcut=True),
    MBConv(7, 8, 24, 12, 5, 2, "swish", shortcut=True),
    MBConv(8, 8, 8, 8, 3, 2, "relu6", shortcut=True),
    Conv(5, 8, 8, 3, 1, "relu", shortcut=True),
    Bottleneck(7, 8, 16, 24, 3, 2, "relu"),
    Bottleneck(8, 8, 16, 24, 3, 1, "relu"),
    Bottleneck(7, 24, 8, 24, 3, 1, "relu"),
    MaxPool(7, 8, 3, 2),
    MaxPool(8, 8, 3, 2),
    GlobalPool(5, 8),
    Linear(1, 8, 10),
    Linear(2, 8, 10),
]
ACTS = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hswish": F.hardswish, "swish": F.silu}


class Reference:
    """The same layers in torch, batch normalisation not folded."""

    def __init__(self, layers: list[Layer], weights: dict[str, np.ndarray]) -> None:
        self.layers = layers
        self.weights = {name: torch.from_numpy(array) for name, array in weights.items()}

    def conv(self, x: torch.Tensor, name: str, stride: int = 1, groups: int = 1, act: str = "none") -> torch.Tensor:
        kernel = self.weights[f"{name}conv.weight"]
        x = F.conv2d(x, kernel, self.weights.get(f"{name}conv.bias"), stride, kernel.shape[-1] // 2, groups=groups)
        if f"{name}norm.weight" in self.weights:
            names = ("running_mean", "running_var", "weight", "bias")
            x = F.batch_norm(x, *(self.weights[f"{name}norm.{n}"] for n in names), eps=EPS)
        return ACTS[act](x)

    def mbconv(self, x: torch.Tensor, layer: MBConv, name: str) -> torch.Tensor:
        source, weights = x, self.weights
        if layer.mid_channels != layer.in_channels:
            x = self.conv(x, f"{name}expand.", act=layer.act)
        x = self.conv(x, f"{name}depthwise.", layer.stride, layer.mid_channels, layer.act)
        if layer.se_channels:
            gate = F.conv2d(x.mean((2, 3), keepdim=True), weights[f"{name}se.reduce.weight"], weights[f"{name}se.reduce.bias"])
            gate = F.conv2d(F.relu(gate), weights[f"{name}se.expand.weight"], weights[f"{name}se.expand.bias"])
            x = x * F.hardsigmoid(gate)
        x = self.conv(x, f"{name}project.")
        return x + self.shortcut(source, layer, name) if layer.shortcut else x

    def bottleneck(self, x: torch.Tensor, layer: Bottleneck, name: str) -> torch.Tensor:
        y = self.conv(x, f"{name}reduce.", act=layer.act)
        y = self.conv(y, f"{name}spatial.", layer.stride, act=layer.act)
        return ACTS[layer.act](self.conv(y, f"{name}expand.") + self.shortcut(x, layer, name))

    def shortcut(self, x: torch.Tensor, layer: MBConv | Bottleneck, name: str) -> torch.Tensor:
        if layer.stride == 2:  # means over windows of 2 x 2, or of what is left of them at the edge
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            ones = F.pad(torch.ones(1, 1, layer.size, layer.size), (0, layer.size % 2, 0, layer.size % 2))
            x = F.avg_pool2d(x, 2) / F.avg_pool2d(ones, 2)
        return self.conv(x, f"{name}shortcut.") if layer.in_channels != layer.out_channels else x

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            name = f"blocks.{index}."
            if isinstance(layer, Conv):
                y = self.conv(x, name, layer.stride, act=layer.act)
                x = x + y if layer.shortcut else y
            elif isinstance(layer, Bottleneck):
                x = self.bottleneck(x, layer, name)
            elif isinstance(layer, MaxPool):
                x = F.max_pool2d(x, layer.kernel, layer.stride, layer.kernel // 2)
            elif isinstance(layer, MBConv):
                x = self.mbconv(x, layer, name)
            elif isinstance(layer, GlobalPool):
                x = x.mean((2, 3), keepdim=True)
            else:
                x = F.linear(x.flatten(1), self.weights[f"{name}linear.weight"], self.weights[f"{name}linear.bias"])
        return x


def agree(layers: list[Layer], *, batch: int = 2) -> None:
    weights = random_weights(layers, seed=3)
    model = build_onnx(layers, weights=weights, eps=EPS)
    onnx.checker.check_model(model, full_check=True)
    images = np.random.default_rng(0).standard_normal((batch, *layers[0].in_shape)).astype(np.float32)
    got = open_device("onnxruntime-cpu").load(model).infer(images)
    want = Reference(layers, weights)(torch.from_numpy(images)).numpy()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.key)
def test_every_kind_of_layer_computes_what_torch_computes(layer: Layer) -> None:
    agree([layer])


@pytest.mark.parametrize("name", list(search_spaces.FAMILIES))
def test_whole_networks_compute_what_torch_computes_for_any_batch(name: str) -> None:
    space = search_spaces.build(name)
    agree(list(space.lower(space.smallest)), batch=1)
    agree(list(space.lower(space.sample(1, seed=1)[0])), batch=3)


def test_activations_stay_of_order_one_through_a_whole_network() -> None:
    space = search_spaces.build("small-mobilenet")
    layers = list(space.lower(space.largest))
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    for end in (1, 5, len(layers) - 4, len(layers)):
        output = open_device("onnxruntime-cpu").load(build_onnx(layers[:end])).infer(images)
        assert 0.01 < np.sqrt(np.mean(output.astype(np.float64) ** 2)) < 100


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = (build_onnx([LAYERS[7]], seed=seed).SerializeToString() for seed in (0, 0, 1))
    assert first == again != other


def test_axes_are_open_unless_a_batch_is_fixed() -> None:
    assert build_onnx(LAYERS[:1]).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    fixed = build_onnx(LAYERS[:1], batch=4)
    onnx.checker.check_model(fixed, full_check=True)
    assert fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 4
    open_device("onnxruntime-cpu").load(fixed).run()


def test_opset_ir_and_metadata_are_as_asked() -> None:
    model = build_onnx(LAYERS[:1], metadata={"architecture": "abc"}, opset=15, ir_version=9)
    assert model.opset_import[0].version == 15
    assert model.ir_version == 9
    assert {p.key: p.value for p in model.metadata_props} == {"architecture": "abc"}
    onnx.checker.check_model(empty_onnx(), full_check=True)


def test_what_cannot_be_written_is_refused() -> None:
    class Odd:
        in_shape = out_shape = (1, 1, 1)
        key = "odd()"

    with pytest.raises(UserError, match="Odd"):
        build_onnx([Odd()])  # type: ignore[list-item]
    with pytest.raises(UserError, match="gelu"):
        build_onnx([Conv(4, 3, 8, 3, 1, "gelu")])
    with pytest.raises(UserError, match="opset 11"):
        build_onnx(LAYERS[:1], opset=11)
    with pytest.raises(ValueError, match="does not fit"):
        build_onnx([Linear(1, 8, 10), Linear(1, 8, 10)])
    weights = random_weights(LAYERS[:1])
    with pytest.raises(ValueError, match=r"norm.bias' is missing"):
        build_onnx(LAYERS[:1], weights={k: v for k, v in weights.items() if not k.endswith("norm.bias")})
    with pytest.raises(ValueError, match="shape"):
        build_onnx(LAYERS[:1], weights=weights | {"blocks.0.conv.weight": np.zeros((1, 1, 1, 1), np.float32)})
