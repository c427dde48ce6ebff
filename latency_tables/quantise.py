"""Models of float weights as int8 ones, for timing: static, 8-bit activations and weights per channel, as QDQ nodes.

Scales come from a few random inputs: times do not depend on them, accuracy does. To ship an int8 network, make it with
images (`nas quantize`); a model that is quantised already is timed as it is.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from latency_tables.device import serialised
from latency_tables.standalone.runtime import quiet_onnxruntime

__all__ = ["quantised"]

INPUTS = 2  # random inputs for the scales


class _RandomInputs:
    """Reads random images, as the quantiser asks for them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        source = model.graph.input[0]
        shape = [d.dim_value or 1 for d in source.type.tensor_type.shape.dim]
        rng = np.random.default_rng(0)
        self._left: Iterator[dict[str, Any]] = iter(
            [{source.name: rng.standard_normal(shape, dtype=np.float32)} for _ in range(INPUTS)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def quantised(model: onnx.ModelProto | bytes) -> onnx.ModelProto:
    """The model with QDQ nodes; unchanged where it has some already.

    Unsigned activations and signed weights: ONNX Runtime's CPU provider has fast kernels for this pair only.
    """
    quiet_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(_RandomInputs, CalibrationDataReader):  # type: ignore[misc]
        pass

    # A copy: the quantiser moves the weights of what it is given into files of its own.
    loaded = onnx.load_from_string(serialised(model))
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in loaded.graph.node):
        return loaded
    reader = Reader(loaded)
    properties = {p.key: p.value for p in loaded.metadata_props}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        quantize_static(
            loaded,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(target)
    onnx.helper.set_model_props(found, properties)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises a step that folds batch normalisation; the models timed here have it folded."""
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
