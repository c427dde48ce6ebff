"""A device whose times are a formula: for documentation and tests, where a clock would give another answer every time.

A node takes what is longer, its arithmetic or its traffic with memory, and a fixed time to start: the roofline of a small
processor. Nothing is timed; results are computed by ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from latency_tables.device import Candidate, LocalDevice, Options, serialised
from latency_tables.energy import Energy
from latency_tables.quantise import quantised
from latency_tables.standalone.runtime import SessionRunner, open_session
from latency_tables.stopwatch import Failure, Measurement, Plan
from search_spaces.progress import SILENT, Progress

__all__ = ["Simulated", "open_simulated", "simulated_ns"]

CALL_NS = 20_000.0
NODE_NS = 1_000.0
MACS_PER_NS = {"fp32": 8.0, "int8": 16.0}  # of one thread
BYTES_PER_NS = 10.0
MACHINE = {"processor": "simulated", "logical_cores": 8, "system": "none"}
VERSION = "1"  # of the formula
WATTS = 2.0
JOULES_PER_MAC = 1e-11


@dataclass(frozen=True)
class Simulated(LocalDevice):
    """The formula as a device."""

    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, as JSON values; the same on every machine."""
        return {**MACHINE, "runtime": "simulated", "runtime_version": VERSION, **asdict(self.options)}

    def load(self, model: onnx.ModelProto | bytes) -> SessionRunner:
        """The model in ONNX Runtime: its results are real, its times are not asked for."""
        loaded = quantised(model) if self.precision == "int8" else model
        return SessionRunner(open_session(serialised(loaded), "onnxruntime-cpu", 1), self.batch)

    def energy(self, model: onnx.ModelProto | bytes, run_ms: float) -> Energy:
        """The formula's value: so much for every second, and so much for every multiply-accumulate."""
        ns, macs = _simulated(model, self.options)
        return Energy(WATTS * 1e-9 * ns + JOULES_PER_MAC * macs, "simulated")

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        """The formula's value for every model; see `Device.time`."""
        found: list[Measurement | Failure] = []
        for candidate in candidates:
            try:
                ns = simulated_ns(candidate.model(), self.options)
                found.append(Measurement.of([ns], [ns], 1))
            except Exception as error:  # noqa: BLE001 - as on a real device, a model that fails must not cost the others
                found.append(Failure(f"{type(error).__name__}: {error}"))
            progress.advance()
        progress.advance((plan or Plan()).rounds)
        return found


def simulated_ns(model: onnx.ModelProto | bytes, options: Options) -> float:
    """Nanoseconds of one run of a model by the formula."""
    return _simulated(model, options)[0]


def _simulated(model: onnx.ModelProto | bytes, options: Options) -> tuple[float, float]:
    """Nanoseconds and multiply-accumulates of one run of a model."""
    loaded = onnx.load_from_string(serialised(model))
    first = loaded.graph.input[0].type.tensor_type.shape.dim[0]
    if not first.dim_value:
        first.dim_value = options.batch
    graph = onnx.shape_inference.infer_shapes(loaded).graph
    sizes: dict[str, list[int]] = {constant.name: list(constant.dims) for constant in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        sizes[value.name] = [max(1, d.dim_value) for d in value.type.tensor_type.shape.dim]
    item = 1 if options.precision == "int8" else 4
    speed = MACS_PER_NS[options.precision] * options.threads
    total, work = CALL_NS, 0.0
    for node in graph.node:
        shapes = [sizes[name] for name in [*node.input, *node.output] if name in sizes]
        traffic = item * sum(_count(shape) for shape in shapes) / BYTES_PER_NS
        macs = _macs(node, sizes)
        total, work = total + NODE_NS + max(macs / speed, traffic), work + macs
    return total, work


def _macs(node: onnx.NodeProto, sizes: dict[str, list[int]]) -> float:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0.0
    kernel, output = sizes.get(node.input[1], [1]), sizes[node.output[0]]
    # Per output value: a convolution's kernel has its inputs per group in it, a product its inner side.
    inner = _count(kernel[1:]) if node.op_type == "Conv" else kernel[0] * kernel[-1] / output[-1]
    return _count(output) * inner


def _count(shape: Sequence[int]) -> float:
    return float(np.prod(shape)) if shape else 1.0


def open_simulated(kind: str, options: Options) -> Simulated:
    """The device."""
    return Simulated(kind, options, tuple(MACS_PER_NS))
