"""OpenVINO on the processor. Its telemetry is kept from starting, and the precision is what was asked for: the runtime's own
default on recent Intel processors is bf16."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from latency_tables.device import LocalDevice, Options, serialised
from latency_tables.quantise import quantised
from latency_tables.standalone.runtime import random_input

__all__ = ["OpenVino", "open_openvino"]

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8: what is not quantised stays fp32


def _openvino() -> Any:
    """The package, imported without its telemetry: it reports to a server where it finds this module."""
    if "openvino" not in sys.modules:
        missing: Any = None
        sys.modules.setdefault("openvino_telemetry", missing)
    import openvino

    return openvino


@dataclass(frozen=True)
class OpenVino(LocalDevice):
    """OpenVINO's CPU plug-in, one stream, for latency."""

    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, as JSON values."""
        return self.fingerprint_of("openvino", str(_openvino().__version__))

    def load(self, model: onnx.ModelProto | bytes) -> OpenVinoRunner:
        """A compiled model; raises what OpenVINO raises where it cannot take it."""
        openvino = _openvino()
        loaded = quantised(model) if self.precision == "int8" else model
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        return OpenVinoRunner(openvino, core, core.read_model(serialised(loaded)), settings, self.batch)


class OpenVinoRunner:
    """A compiled model of fixed shape and a fixed random input of ``batch`` images."""

    def __init__(self, openvino: Any, core: Any, model: Any, settings: dict[str, Any], batch: int) -> None:
        first, *rest = model.inputs[0].get_partial_shape()
        self._batch = batch if first.is_dynamic else first.get_length()
        self._shape = [side.get_length() for side in rest]
        self._parts = (openvino, core, model, settings)
        self._request = self._compiled(self._batch)
        self._last: tuple[int, Any] | None = None
        pixels = model.inputs[0].get_element_type().get_type_name() == "u8"
        self._feed = random_input((self._batch, *self._shape), pixels)
        self._request.set_input_tensor(openvino.Tensor(self._feed, shared_memory=True))

    def _compiled(self, batch: int) -> Any:
        """A fixed shape: with an open one the plug-in plans less."""
        _, core, model, settings = self._parts
        model.reshape({model.inputs[0]: [batch, *self._shape]})
        return core.compile_model(model, "CPU", settings).create_infer_request()

    def run(self) -> None:
        """One run on the fixed input."""
        self._request.infer()

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The output for images (N, C, H, W), float32, or uint8 in the layout that the model takes."""
        if self._last is None or self._last[0] != len(images):  # test images come in batches of one size
            self._last = (len(images), self._compiled(len(images)))
        request = self._last[1]
        request.set_input_tensor(self._parts[0].Tensor(np.ascontiguousarray(images)))
        request.infer()
        return np.array(request.get_output_tensor().data, dtype=np.float32)


def open_openvino(kind: str, options: Options) -> OpenVino:
    """The device."""
    return OpenVino(kind, options, tuple(HINTS))
