"""ONNX Runtime: on the processor (the default device), and its CUDA and TensorRT providers where the package has them.

On a GPU a run includes copying the input there and the output back, as a caller of the session feels it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latency_tables.device import LocalDevice, Options, serialised
from latency_tables.quantise import quantised
from latency_tables.standalone.runtime import PRECISIONS, SessionRunner, describe, open_session

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxRuntime", "open_onnxruntime"]


@dataclass(frozen=True)
class OnnxRuntime(LocalDevice):
    """ONNX Runtime with one of its providers; ``int8`` runs models of float weights as `quantised` ones."""

    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, as JSON values."""
        return describe(self.kind, self.precision, self.threads, self.batch)

    def load(self, model: onnx.ModelProto | bytes) -> SessionRunner:
        """A session for the model; raises what ONNX Runtime raises where it cannot take it."""
        if self.precision == "int8":
            model = quantised(model)
        return SessionRunner(open_session(serialised(model), self.kind, self.threads), self.batch)


def open_onnxruntime(kind: str, options: Options) -> OnnxRuntime:
    """The device of a provider."""
    return OnnxRuntime(kind, options, PRECISIONS[kind])
