"""ONNX Runtime on the processor: the default device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from latency_tables.device import machine
from search_spaces.errors import UserError

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxRuntimeCpu", "OnnxRuntimeRunner"]

PRECISIONS = ("fp32",)
ERRORS_ONLY = 3  # the runtime's log severity


@dataclass(frozen=True)
class OnnxRuntimeCpu:
    """ONNX Runtime's CPU provider with every graph optimisation (they change times by a factor of four).

    Raises:
        UserError: a precision that this device does not have.
    """

    threads: int = 1
    batch: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(
                f"precision '{self.precision}' on {self.name}",
                allowed=f"It has: {', '.join(PRECISIONS)}",
                next_step="Leave the option out, or choose another device (nas devices)",
            )

    @property
    def name(self) -> str:
        return "onnxruntime-cpu"

    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, as JSON values."""
        return {
            **machine(),
            "runtime": "onnxruntime",
            "runtime_version": ort.__version__,
            "precision": self.precision,
            "threads": self.threads,
            "batch": self.batch,
        }

    def load(self, model: onnx.ModelProto | bytes) -> OnnxRuntimeRunner:
        """A session for the model; raises what ONNX Runtime raises where it cannot take it."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = ERRORS_ONLY
        # Threads that spin between runs take the cores from what runs next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        ort.disable_telemetry_events()
        content = model if isinstance(model, bytes) else model.SerializeToString()
        return OnnxRuntimeRunner(ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]), self.batch)


class OnnxRuntimeRunner:
    """A session with one float32 input and one output, and a fixed random input of ``batch`` images."""

    def __init__(self, session: ort.InferenceSession, batch: int) -> None:
        source = session.get_inputs()[0]
        first, *rest = source.shape
        shape = (first if isinstance(first, int) else batch, *rest)
        self._session = session
        self._source = source.name
        self._outputs = [session.get_outputs()[0].name]
        rng = np.random.default_rng(0)
        pixels = source.type == "tensor(uint8)"
        self._feed = {source.name: rng.integers(0, 256, shape, np.uint8) if pixels else rng.standard_normal(shape, np.float32)}

    def run(self) -> None:
        """One run on the fixed input."""
        self._session.run(self._outputs, self._feed)

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The output for images (N, C, H, W), float32, or uint8 in the layout that the model takes."""
        output: NDArray[np.float32] = self._session.run(self._outputs, {self._source: images})[0]
        return output
