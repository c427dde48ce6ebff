"""Layers to ONNX, written node by node: the one writer for profiling and for export, so what is timed is what ships.

A network costs milliseconds to write, no torch is needed, and batch normalisation is folded into the convolutions.
Weights are named as a network's state dict names them: layer ``i`` has the prefix ``blocks.{i}.``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from search_spaces.artifacts import made_by
from search_spaces.errors import UserError
from search_spaces.layers import Conv, GlobalPool, Layer, Linear, MBConv, Op

__all__ = ["INPUT", "OUTPUT", "build_onnx", "empty_onnx", "random_weights"]

INPUT = "image"
OUTPUT = "logits"
FIRST_OPSET = 14  # HardSwish appears here

Weights = Mapping[str, NDArray[Any]]


def build_onnx(
    layers: Sequence[Layer],
    *,
    weights: Weights | None = None,
    eps: float = 1e-5,
    metadata: Mapping[str, str] | None = None,
    batch: int | None = None,
    opset: int = 17,
    ir_version: int = 8,
    seed: int = 0,
) -> onnx.ModelProto:
    """The ONNX model of a sequence of layers, float32, batch normalisation folded.

    Input ``image`` (N, C, H, W); output ``logits``: (N, classes) after a linear layer, else the last map (N, C, H, W).

    Args:
        weights: arrays named like a network's state dict (see `random_weights`); None draws random ones.
        eps: of batch normalisation.
        metadata: text stored in the model (space, architecture, ...).
        batch: images per run; None leaves the first axis open.
        seed: of the random weights.

    Raises:
        UserError: a layer of a kind or with an activation that has no ONNX form here, or an opset below 14.
        ValueError: layers that do not fit one another, or weights that are missing or have another shape.
    """
    if not layers:
        raise ValueError("a model needs at least one layer; see empty_onnx")
    if opset < FIRST_OPSET:
        raise UserError(
            f"ONNX opset {opset}", allowed=f"Opsets from {FIRST_OPSET} have every operator needed", next_step="Use opset 17"
        )
    for before, after in itertools.pairwise(layers):
        if before.out_shape != after.in_shape or (isinstance(before, Linear) and not isinstance(after, Linear)):
            raise ValueError(f"the output of {before.key} does not fit {after.key}")
    graph = _Graph(random_weights(layers, seed=seed) if weights is None else weights, eps)
    value = INPUT
    for index, layer in enumerate(layers):
        graph.prefix = f"blocks.{index}."
        value = _writer(layer)(graph, layer, value)
    graph.nodes[-1].output[0] = OUTPUT
    last = layers[-1].out_shape
    shape = last[:1] if isinstance(layers[-1], Linear) else last
    return _model(graph, layers[0].in_shape, shape, batch=batch, opset=opset, ir_version=ir_version, metadata=metadata)


def empty_onnx(*, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """A model that does next to nothing, one ReLU on one number: its time is that of calling the runtime."""
    graph = _Graph({}, 0.0)
    graph.add("Relu", [INPUT], "relu")
    graph.nodes[-1].output[0] = OUTPUT
    return _model(graph, (1, 1, 1), (1, 1, 1), batch=None, opset=opset, ir_version=ir_version, metadata=None)


def random_weights(layers: Sequence[Layer], *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random float32 weights of a network, scaled so that activations stay of order 1 at any depth.

    The names, per layer ``blocks.{i}.``: a convolution ``conv.weight`` (and ``conv.bias``) and
    ``norm.{weight,bias,running_mean,running_var}``; an inverted residual the same under ``expand.``, ``depthwise.`` and
    ``project.``, with ``se.reduce.{weight,bias}`` and ``se.expand.{weight,bias}``; a classifier ``linear.{weight,bias}``.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for index, layer in enumerate(layers):
        for part in _parts(layer):
            for name, shape in part.shapes().items():
                weights[f"blocks.{index}.{name}"] = _draw(name, shape, rng)
    return weights


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    if len(shape) > 1:
        fan_in = int(np.prod(shape[1:]))
        return rng.standard_normal(shape, dtype=np.float32) * np.float32((2.0 / fan_in) ** 0.5)
    spread = np.float32(0.1) * rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return np.float32(0.8) + spread
    return 1 + np.abs(spread) if name.endswith("running_var") else spread


# ---- weights of a layer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One weighted operator of a layer and the names of its arrays."""

    op: Op
    weight: str  # "expand.conv", "se.reduce", "linear", ...
    norm: str = ""  # "expand.norm"; empty without batch normalisation
    flat: bool = False  # a matrix, not a convolution

    def shapes(self) -> dict[str, tuple[int, ...]]:
        op = self.op
        kernel: tuple[int, ...] = (op.out_channels, op.in_channels // op.groups)
        names: dict[str, tuple[int, ...]] = {f"{self.weight}.weight": kernel if self.flat else (*kernel, op.kernel, op.kernel)}
        if op.bias:
            names[f"{self.weight}.bias"] = (op.out_channels,)
        if self.norm:
            names |= {f"{self.norm}.{n}": (op.out_channels,) for n in ("weight", "bias", "running_mean", "running_var")}
        return names


def _conv_parts(layer: Layer) -> list[_Part]:
    conv = cast(Conv, layer)
    return [_Part(next(conv.ops()), "conv", "norm" if conv.norm else "")]


def _mbconv_parts(layer: Layer) -> list[_Part]:
    block = cast(MBConv, layer)
    names = ["expand"] * block.expands + ["depthwise"] + ["se.reduce", "se.expand"] * bool(block.se_channels) + ["project"]
    ops = [op for op in block.ops() if op.kind == "conv"]
    return [
        _Part(op, f"{name}.conv", f"{name}.norm") if op.norm else _Part(op, name) for name, op in zip(names, ops, strict=True)
    ]


def _linear_parts(layer: Layer) -> list[_Part]:
    return [_Part(next(cast(Linear, layer).ops()), "linear", flat=True)]


def _parts(layer: Layer) -> list[_Part]:
    _writer(layer)  # refuses unknown kinds
    return PARTS[type(layer)](layer)


# ---- nodes --------------------------------------------------------------------------------------------------


@dataclass
class _Graph:
    """Nodes and constants while a model is being written."""

    weights: Weights
    eps: float
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        full = f"{self.prefix}{name}"
        self.nodes.append(helper.make_node(op, list(inputs), [full], name=full, **attributes))
        return full

    def constant(self, name: str, array: NDArray[Any]) -> str:
        full = f"{self.prefix}{name}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), full))
        return full

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        found = self.weights.get(f"{self.prefix}{name}")
        if found is None or found.shape != shape:
            got = "missing" if found is None else f"of shape {found.shape}"
            raise ValueError(f"weight '{self.prefix}{name}' is {got}; it should have the shape {shape}")
        return np.asarray(found, dtype=np.float64)

    def folded(self, part: _Part) -> list[str]:
        """The constants of an operator, kernel and bias, with batch normalisation folded in double precision."""
        shapes = part.shapes()
        kernel = self.array(f"{part.weight}.weight", shapes[f"{part.weight}.weight"])
        channels = (part.op.out_channels,)
        bias = self.array(f"{part.weight}.bias", channels) if part.op.bias else None
        if part.norm:
            gamma, beta, mean, var = (
                self.array(f"{part.norm}.{n}", channels) for n in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / np.sqrt(var + self.eps)
            kernel = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
            bias = beta - mean * scale if bias is None else beta + (bias - mean) * scale
        names = [self.constant(f"{part.weight}.weight", kernel)]
        return names if bias is None else [*names, self.constant(f"{part.weight}.bias", bias)]

    def conv(self, value: str, part: _Part, *, stride: int = 1, act: str = "none") -> str:
        side, pad = part.op.kernel, part.op.kernel // 2
        value = self.add(
            "Conv",
            [value, *self.folded(part)],
            f"{part.weight}/Conv",
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[pad] * 4,
            dilations=[1, 1],
            group=part.op.groups,
        )
        return self.activation(value, act, part.weight)

    def activation(self, value: str, act: str, name: str) -> str:
        if act not in ACTIVATIONS:
            raise UserError(
                f"activation '{act}' has no ONNX form",
                allowed=f"Known: {', '.join(ACTIVATIONS)}",
                next_step="Give the layers of the space one of these",
            )
        found = ACTIVATIONS[act]
        if found is None:
            return value
        op, limits = found
        inputs = [self.constant(f"{name}/{op}/{i}", np.array(limit)) for i, limit in enumerate(limits)]
        return self.add(op, [value, *inputs], f"{name}/{op}")


# Activation -> operator and its constant inputs.
ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]] | None] = {
    "none": None,
    "relu": ("Relu", ()),
    "relu6": ("Clip", (0.0, 6.0)),
    "hswish": ("HardSwish", ()),
}


def _write_conv(graph: _Graph, layer: Layer, value: str) -> str:
    conv = cast(Conv, layer)
    return graph.conv(value, _conv_parts(conv)[0], stride=conv.stride, act=conv.act)


def _write_mbconv(graph: _Graph, layer: Layer, value: str) -> str:
    block = cast(MBConv, layer)
    parts: Iterator[_Part] = iter(_mbconv_parts(block))
    source = value
    if block.expands:
        value = graph.conv(value, next(parts), act=block.act)
    value = graph.conv(value, next(parts), stride=block.stride, act=block.act)
    if block.se_channels:
        gate = graph.add("GlobalAveragePool", [value], "se/GlobalAveragePool")
        gate = graph.conv(gate, next(parts), act="relu")
        gate = graph.conv(gate, next(parts))
        gate = graph.add("HardSigmoid", [gate], "se/HardSigmoid", alpha=1 / 6, beta=0.5)
        value = graph.add("Mul", [value, gate], "se/Mul")
    value = graph.conv(value, next(parts))
    return graph.add("Add", [value, source], "Add") if block.shortcut else value


def _write_linear(graph: _Graph, layer: Layer, value: str) -> str:
    value = graph.add("Flatten", [value], "Flatten", axis=1)
    return graph.add("Gemm", [value, *graph.folded(_linear_parts(layer)[0])], "linear/Gemm", transB=1)


WRITERS: dict[type, Callable[[_Graph, Layer, str], str]] = {
    Conv: _write_conv,
    MBConv: _write_mbconv,
    GlobalPool: lambda graph, layer, value: graph.add("GlobalAveragePool", [value], "GlobalAveragePool"),
    Linear: _write_linear,
}
PARTS: dict[type, Callable[[Layer], list[_Part]]] = {
    Conv: _conv_parts,
    MBConv: _mbconv_parts,
    GlobalPool: lambda layer: [],
    Linear: _linear_parts,
}


def _writer(layer: Layer) -> Callable[[_Graph, Layer, str], str]:
    writer = WRITERS.get(type(layer))
    if writer is None:
        raise UserError(
            f"layers of kind {type(layer).__name__} have no ONNX form",
            allowed=f"Known: {', '.join(kind.__name__ for kind in WRITERS)}",
            next_step="Use a space made of these layers (nas spaces)",
        )
    return writer


def _model(
    graph: _Graph,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    *,
    batch: int | None,
    opset: int,
    ir_version: int,
    metadata: Mapping[str, str] | None,
) -> onnx.ModelProto:
    first: str | int = "N" if batch is None else batch
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "network",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [first, *in_shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [first, *out_shape])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name=made_by(),
    )
    if metadata:
        helper.set_model_props(model, dict(metadata))
    return model
