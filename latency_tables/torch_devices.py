"""torch as a device: eager on the processor, a CUDA graph on a GPU. The ONNX model is run node by node with torch's operators.

So both take the models that every other device takes: batch normalisation is folded, activations are fused nowhere.
On a GPU, times are those of CUDA events around replays of a graph that was captured once, queued while the GPU was held back:
the time of the GPU itself, without what Python adds. It was written without a GPU at hand; the conformance suite runs on it
where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = {"torch-cpu": ("fp32", "bf16"), "torch-cuda": ("fp32", "tf32", "fp16", "bf16")}
HEAD_START = 20_000  # cycles of the GPU for every run, about 10 us: more than it takes to queue one

Attributes = Mapping[str, Any]


def _sides(pads: Sequence[int]) -> list[int]:
    """Symmetric pads, as torch takes them."""
    half = len(pads) // 2
    if list(pads[:half]) != list(pads[half:]):
        raise NotImplementedError(f"asymmetric pads {list(pads)}")
    return list(pads[:half])


def _plain(at: Attributes, **meant: Any) -> None:
    """Refuse attributes with another meaning than what is computed here: a wrong output would pass for the network's."""
    for name, value in meant.items():
        if at.get(name, value) != value:
            raise NotImplementedError(f"{name}={at[name]!r}")


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, at: Attributes) -> Tensor:
    _plain(at, auto_pad=b"NOTSET")
    pads = _sides(at.get("pads", [0] * (2 * (weight.ndim - 2))))
    return torch.conv2d(x, weight, bias, at.get("strides", 1), pads, at.get("dilations", 1), at.get("group", 1))


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, at: Attributes) -> Tensor:
    _plain(at, alpha=1.0, beta=1.0)
    return F.linear(a.T if at.get("transA") else a, b if at.get("transB") else b.T, c)


def _average(x: Tensor, *, at: Attributes) -> Tensor:
    _plain(at, auto_pad=b"NOTSET", dilations=[1, 1])
    pads, ceil = _sides(at.get("pads", [0, 0, 0, 0])), bool(at.get("ceil_mode"))
    return F.avg_pool2d(x, at["kernel_shape"], at.get("strides"), pads, ceil, bool(at.get("count_include_pad")))


def _largest(x: Tensor, *, at: Attributes) -> Tensor:
    _plain(at, auto_pad=b"NOTSET", dilations=[1, 1], storage_order=0)
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

    @property
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
        return TorchRunner(loaded, self.where, self.precision, self.batch, self.threads)

    def wait(self) -> None:
        """A GPU goes on when a run returns."""
        if self.where == "cuda":
            torch.cuda.synchronize()


class TorchRunner:
    """An ONNX graph, run eagerly, and a fixed random input of ``batch`` images."""

    def __init__(self, model: onnx.ModelProto, where: str, precision: str, batch: int, threads: int) -> None:
        graph = model.graph
        missing = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if missing or not graph.node:
            raise NotImplementedError(f"operators {', '.join(missing)}")
        self._where, self._precision, self._threads = where, precision, threads
        self._constants = {c.name: self._tensor(numpy_helper.to_array(c)) for c in graph.initializer}
        self._source, self._target = graph.input[0].name, graph.output[0].name
        attribute = onnx.helper.get_attribute_value
        self._steps = [
            (OPERATORS[n.op_type], list(n.input), n.output[0], {a.name: attribute(a) for a in n.attribute}) for n in graph.node
        ]
        shape = [d.dim_value or batch for d in graph.input[0].type.tensor_type.shape.dim]
        self._feed = self._tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        self._graph = self._captured() if where == "cuda" else None
        # A method of this object, not of the graph's: the graph reads tensors that live as long as this object does.
        self.run: Callable[[], None] = self._eager if self._graph is None else self._replay

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(device=self._where, dtype=TYPES[self._precision])

    def _forward(self, images: Tensor) -> Tensor:
        values = {**self._constants, self._source: images}
        for operator, inputs, output, attributes in self._steps:
            values[output] = operator(*[values[name] for name in inputs], at=attributes)
        return values[self._target]

    def _eager(self) -> None:
        """One run on the fixed input."""
        with torch.inference_mode(), torch_threads(self._threads):
            self._forward(self._feed)

    def _replay(self) -> None:
        """Queue one run on the fixed input."""
        assert self._graph is not None
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """A CUDA graph of one run."""
        with torch.no_grad(), _single_precision(self._precision):
            return self._capture()

    def _capture(self) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose and allocate before the capture
            for _ in range(3):
                self._forward(self._feed)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._forward(self._feed)
        return graph

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The output for images (N, C, H, W), float32."""
        with torch.inference_mode(), _single_precision(self._precision):
            output: NDArray[np.float32] = self._forward(self._tensor(images)).float().cpu().numpy()
        return output


@contextmanager
def _single_precision(precision: str) -> Iterator[None]:
    """How a GPU computes in float32 here: exactly, or, for ``tf32``, with ten bits of the mantissa on tensor cores.

    torch's own default is the latter for convolutions: "fp32" would be something else on every other generation of GPUs.
    """
    kind = "tf32" if precision == "tf32" else "ieee"
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = kind
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


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
    """The GPU's own time, between two events. It serves as CPU time, too: other processes on the GPU show in neither.

    The runs are queued while the GPU is held back, so that it never waits for the next one: what starting a run costs the
    processor is no time of the network.
    """

    def lap(self, run: Callable[[], None], count: int) -> tuple[int, int]:
        """See `Clock.lap`."""
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(count * HEAD_START)  # type: ignore[no-untyped-call]
        begun.record()
        for _ in range(count):
            run()
        ended.record()
        ended.synchronize()
        ns = round(begun.elapsed_time(ended) * 1e6)
        return ns, ns


def open_torch(kind: str, options: Options) -> TorchDevice:
    """The device."""
    return TorchDevice(kind, options, PRECISIONS[kind])
