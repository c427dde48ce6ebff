"""torch as a device: eager on the processor, a CUDA graph on a GPU. The ONNX model is run node by node with torch's operators.

So both take the models that every other device takes: batch normalisation is folded, activations are fused nowhere.
On a GPU, times are those of CUDA events around replays of a graph that was captured once: the time of the GPU itself, without
what Python adds. It was written without a GPU at hand; the conformance suite runs on it where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from latency_tables.device import LocalDevice, Options
from latency_tables.stopwatch import SYSTEM_CLOCK, Clock

__all__ = ["TorchDevice", "open_torch", "torch_threads"]

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = {"torch-cpu": ("fp32", "bf16"), "torch-cuda": ("fp32", "fp16", "bf16")}

Attributes = Mapping[str, Any]


def _sides(pads: Sequence[int]) -> list[int]:
    """Symmetric pads, as torch takes them."""
    half = len(pads) // 2
    if list(pads[:half]) != list(pads[half:]):
        raise NotImplementedError(f"asymmetric pads {list(pads)}")
    return list(pads[:half])


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, at: Attributes) -> Tensor:
    pads = _sides(at.get("pads", [0] * (2 * (weight.ndim - 2))))
    return torch.conv2d(x, weight, bias, at.get("strides", 1), pads, at.get("dilations", 1), at.get("group", 1))


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, at: Attributes) -> Tensor:
    return F.linear(a.T if at.get("transA") else a, b if at.get("transB") else b.T, c)


def _average(x: Tensor, *, at: Attributes) -> Tensor:
    pads, ceil = _sides(at.get("pads", [0, 0, 0, 0])), bool(at.get("ceil_mode"))
    return F.avg_pool2d(x, at["kernel_shape"], at.get("strides"), pads, ceil, bool(at.get("count_include_pad")))


def _largest(x: Tensor, *, at: Attributes) -> Tensor:
    pads = _sides(at.get("pads", [0, 0, 0, 0]))
    return F.max_pool2d(x, at["kernel_shape"], at.get("strides"), pads, 1, bool(at.get("ceil_mode")))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, b, at: a + b,
    "AveragePool": _average,
    "Clip": lambda x, low, high, at: x.clamp(low, high),
    "Conv": _conv,
    "Flatten": lambda x, at: x.flatten(at.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, at: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, at: (x * at.get("alpha", 0.2) + at.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda x, at: F.hardswish(x),
    "Identity": lambda x, at: x,
    "MatMul": lambda a, b, at: a @ b,
    "MaxPool": _largest,
    "Mul": lambda a, b, at: a * b,
    "Relu": lambda x, at: x.relu(),
    "Sigmoid": lambda x, at: x.sigmoid(),
}


@dataclass(frozen=True)
class TorchDevice(LocalDevice):
    """torch on the processor (``torch-cpu``) or on the first GPU (``torch-cuda``)."""

    @property
    def where(self) -> str:
        return self.kind.removeprefix("torch-")

    @cached_property
    def clock(self) -> Clock:
        """The machine's on the processor; CUDA events on a GPU."""
        return SYSTEM_CLOCK if self.where == "cpu" else CudaClock()

    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, as JSON values."""
        if self.where == "cpu":
            return self.fingerprint_of("torch", torch.__version__)
        gpu = {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda), "timing": "events, CUDA graph"}
        return self.fingerprint_of("torch", torch.__version__, **gpu)

    def load(self, model: onnx.ModelProto | bytes) -> TorchRunner:
        """The model's nodes as torch operators.

        Raises:
            NotImplementedError: an operator that has no counterpart here.
        """
        loaded = onnx.load_from_string(model) if isinstance(model, bytes) else model
        return TorchRunner(loaded, self.where, TYPES[self.precision], self.batch, self.threads)


class TorchRunner:
    """An ONNX graph, run eagerly, and a fixed random input of ``batch`` images."""

    def __init__(self, model: onnx.ModelProto, where: str, dtype: torch.dtype, batch: int, threads: int) -> None:
        graph = model.graph
        missing = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if missing or not graph.node:
            raise NotImplementedError(f"operators {', '.join(missing)}")
        self._where, self._dtype, self._threads = where, dtype, threads
        self._constants = {c.name: self._tensor(numpy_helper.to_array(c)) for c in graph.initializer}
        self._source, self._target = graph.input[0].name, graph.output[0].name
        attribute = onnx.helper.get_attribute_value
        self._steps = [
            (OPERATORS[n.op_type], list(n.input), n.output[0], {a.name: attribute(a) for a in n.attribute}) for n in graph.node
        ]
        shape = [d.dim_value or batch for d in graph.input[0].type.tensor_type.shape.dim]
        self._feed = self._tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        self.run: Callable[[], Any] = self._captured() if where == "cuda" else self._eager

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(device=self._where, dtype=self._dtype)

    def _forward(self, images: Tensor) -> Tensor:
        values = {**self._constants, self._source: images}
        for operator, inputs, output, attributes in self._steps:
            values[output] = operator(*[values[name] for name in inputs], at=attributes)
        return values[self._target]

    def _eager(self) -> None:
        """One run on the fixed input."""
        with torch.inference_mode(), torch_threads(self._threads):
            self._forward(self._feed)

    def _captured(self) -> Callable[[], None]:
        """Replays a CUDA graph of one run."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):  # libraries choose and allocate before the capture
            for _ in range(3):
                self._forward(self._feed)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            self._output = self._forward(self._feed)
        return graph.replay

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The output for images (N, C, H, W), float32."""
        with torch.inference_mode():
            output: NDArray[np.float32] = self._forward(self._tensor(images)).float().cpu().numpy()
        return output


class torch_threads:
    """torch's own number of threads for the block; setting it costs nothing where it is right already."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._number:
            torch.set_num_threads(self._number)

    def __exit__(self, *_: object) -> None:
        if self._before != self._number:
            torch.set_num_threads(self._before)


class CudaClock:
    """The GPU's own time: an event is recorded and waited for, and its distance to the one before is added up.

    It serves as CPU time, too: other processes on the GPU show in neither.
    """

    def __init__(self) -> None:
        self._last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._last.record()
        self._ms = 0.0

    def wall_ns(self) -> int:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        # Summed up from event to event: a distance is a 32-bit float and would be coarse after some minutes.
        self._ms += self._last.elapsed_time(event)
        self._last = event
        return round(self._ms * 1e6)

    def cpu_ns(self) -> int:
        return self.wall_ns()


def open_torch(kind: str, options: Options) -> TorchDevice:
    """The device."""
    return TorchDevice(kind, options, PRECISIONS[kind])
