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
from search_spaces.layers import Bottleneck, Conv, GlobalPool, Layer, Linear, MaxPool, MBConv, Op
from search_spaces.onnx_versions import DEFAULT_IR, DEFAULT_OPSET, FIRST_OPSET

__all__ = ["INPUT", "OUTPUT", "build_onnx", "empty_onnx", "random_weights"]

INPUT = "image"
OUTPUT = "logits"

Weights = Mapping[str, NDArray[Any]]


def build_onnx(
    layers: Sequence[Layer],
    *,
    weights: Weights | None = None,
    eps: float = 1e-5,
    metadata: Mapping[str, str] | None = None,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    ir_version: int = DEFAULT_IR,
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
        UserError: a layer of a kind or with an activation that has no ONNX form here, or an opset below `FIRST_OPSET`.
        ValueError: layers that do not fit one another, or weights that are missing or have another shape.
    """
    if not layers:
        raise ValueError("a model needs at least one layer; see empty_onnx")
    if opset < FIRST_OPSET:
        raise UserError(
            f"ONNX opset {opset}",
            allowed=f"Opsets from {FIRST_OPSET} have every operator needed",
            next_step=f"Use opset {DEFAULT_OPSET}",
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


def empty_onnx(*, opset: int = DEFAULT_OPSET, ir_version: int = DEFAULT_IR) -> onnx.ModelProto:
    """A model that does next to nothing, one ReLU on one number: its time is that of calling the runtime."""
    graph = _Graph({}, 0.0)
    graph.add("Relu", [INPUT], "relu")
    graph.nodes[-1].output[0] = OUTPUT
    return _model(graph, (1, 1, 1), (1, 1, 1), batch=None, opset=opset, ir_version=ir_version, metadata=None)


def random_weights(layers: Sequence[Layer], *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random float32 weights of a network, scaled so that activations stay of order 1 at any depth.

    The names are those of each layer's own tensors with the prefix ``blocks.{i}.``.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for index, layer in enumerate(layers):
        _writer(layer)  # refuses unknown kinds
        for name, shape in layer.tensors().items():
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

    def folded(self, op: Op) -> list[str]:
        """The constants of an operator, kernel and bias, with batch normalisation folded in double precision."""
        arrays = {name: self.array(name, shape) for name, shape in op.tensors().items()}
        kernel, bias = arrays[f"{op.name}.weight"], arrays.get(f"{op.name}.bias")
        if op.norm:
            names = ("weight", "bias", "running_mean", "running_var")
            gamma, beta, mean, var = (arrays[f"{op.norm_name}.{n}"] for n in names)
            scale = gamma / np.sqrt(var + self.eps)
            kernel = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
            bias = beta - mean * scale if bias is None else beta + (bias - mean) * scale
        names_written = [self.constant(f"{op.name}.weight", kernel)]
        return names_written if bias is None else [*names_written, self.constant(f"{op.name}.bias", bias)]

    def conv(self, value: str, op: Op, *, stride: int = 1, act: str = "none") -> str:
        side, pad = op.kernel, op.kernel // 2
        value = self.add(
            "Conv",
            [value, *self.folded(op)],
            f"{op.name}/Conv",
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[pad] * 4,
            dilations=[1, 1],
            group=op.groups,
        )
        return self.activation(value, act, op.name)

    def shortcut(self, value: str, layer: MBConv | Bottleneck, ops: Iterator[Op]) -> str:
        """The input of a block in the shape of its output."""
        if layer.stride > 1:
            side = [layer.stride] * 2
            value = self.add("AveragePool", [value], "shortcut/AveragePool", kernel_shape=side, strides=side, ceil_mode=1)
        return self.conv(value, next(ops)) if layer.projects else value

    def activation(self, value: str, act: str, name: str) -> str:
        if act not in ACTIVATIONS:
            raise UserError(
                f"activation '{act}' has no ONNX form",
                allowed=f"Known: {', '.join(ACTIVATIONS)}",
                next_step="Give the layers of the space one of these",
            )
        return ACTIVATIONS[act](self, value, name)


def _operator(op: str, *limits: float) -> Callable[[_Graph, str, str], str]:
    """An activation that is one operator, with its constant inputs."""

    def write(graph: _Graph, value: str, name: str) -> str:
        inputs = [graph.constant(f"{name}/{op}/{i}", np.array(limit)) for i, limit in enumerate(limits)]
        return graph.add(op, [value, *inputs], f"{name}/{op}")

    return write


def _swish(graph: _Graph, value: str, name: str) -> str:
    return graph.add("Mul", [value, graph.add("Sigmoid", [value], f"{name}/Sigmoid")], f"{name}/Mul")


ACTIVATIONS: dict[str, Callable[[_Graph, str, str], str]] = {
    "none": lambda _graph, value, _name: value,
    "relu": _operator("Relu"),
    "relu6": _operator("Clip", 0.0, 6.0),
    "hswish": _operator("HardSwish"),
    "swish": _swish,
}


def _weighted(layer: Layer) -> Iterator[Op]:
    return (op for op in layer.ops() if op.weighted)


def _write_conv(graph: _Graph, layer: Layer, value: str) -> str:
    conv = cast(Conv, layer)
    result = graph.conv(value, next(_weighted(conv)), stride=conv.stride, act=conv.act)
    return graph.add("Add", [result, value], "Add") if conv.shortcut else result


def _write_mbconv(graph: _Graph, layer: Layer, value: str) -> str:
    block = cast(MBConv, layer)
    ops, source = _weighted(block), value
    if block.expands:
        value = graph.conv(value, next(ops), act=block.act)
    value = graph.conv(value, next(ops), stride=block.stride, act=block.act)
    if block.se_channels:
        gate = graph.add("GlobalAveragePool", [value], "se/GlobalAveragePool")
        gate = graph.conv(gate, next(ops), act="relu")
        gate = graph.conv(gate, next(ops))
        gate = graph.add("HardSigmoid", [gate], "se/HardSigmoid", alpha=1 / 6, beta=0.5)
        value = graph.add("Mul", [value, gate], "se/Mul")
    value = graph.conv(value, next(ops))
    return graph.add("Add", [value, graph.shortcut(source, block, ops)], "Add") if block.shortcut else value


def _write_bottleneck(graph: _Graph, layer: Layer, value: str) -> str:
    block = cast(Bottleneck, layer)
    ops, source = _weighted(block), value
    value = graph.conv(value, next(ops), act=block.act)
    value = graph.conv(value, next(ops), stride=block.stride, act=block.act)
    value = graph.conv(value, next(ops))
    return graph.activation(graph.add("Add", [value, graph.shortcut(source, block, ops)], "Add"), block.act, "out")


def _write_max_pool(graph: _Graph, layer: Layer, value: str) -> str:
    pool = cast(MaxPool, layer)
    side, stride = [pool.kernel] * 2, [pool.stride] * 2
    return graph.add("MaxPool", [value], "MaxPool", kernel_shape=side, strides=stride, pads=[pool.kernel // 2] * 4)


def _write_linear(graph: _Graph, layer: Layer, value: str) -> str:
    value = graph.add("Flatten", [value], "Flatten", axis=1)
    return graph.add("Gemm", [value, *graph.folded(next(_weighted(layer)))], "linear/Gemm", transB=1)


WRITERS: dict[type, Callable[[_Graph, Layer, str], str]] = {
    Conv: _write_conv,
    MBConv: _write_mbconv,
    Bottleneck: _write_bottleneck,
    MaxPool: _write_max_pool,
    GlobalPool: lambda graph, _layer, value: graph.add("GlobalAveragePool", [value], "GlobalAveragePool"),
    Linear: _write_linear,
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
