"""MNN on the processor: the mobile runtime that converts an ONNX layer in milliseconds.

The converter is called inside this process. The package's own command for it is not: that one installs another package and
reports its use to a server.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from latency_tables.device import LocalDevice, Options

__all__ = ["Mnn", "open_mnn"]

PRECISIONS = {"fp32": "high"}  # of its 16-bit modes none is in the package for this kind of processor


@contextmanager
def _silenced() -> Iterator[None]:
    """The library writes to the process's own output from C++."""
    kept = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("wb") as nothing:
        try:
            for number in (1, 2):
                os.dup2(nothing.fileno(), number)
            yield
        finally:
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)


def _mnn() -> Any:
    with _silenced():
        import MNN
        import MNN.nn
    return MNN


@dataclass(frozen=True)
class Mnn(LocalDevice):
    """MNN's CPU backend."""

    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, as JSON values."""
        return self.fingerprint_of("mnn", str(_mnn().version()))

    def load(self, model: onnx.ModelProto | bytes) -> MnnRunner:
        """A converted and loaded model.

        Raises:
            ValueError: the converter refuses it.
        """
        mnn = _mnn()
        loaded = onnx.load_from_string(model) if isinstance(model, bytes) else model
        names = [loaded.graph.input[0].name], [loaded.graph.output[0].name]
        settings = {"backend": "CPU", "precision": PRECISIONS[self.precision], "numThread": self.threads}
        with tempfile.TemporaryDirectory() as folder, _silenced():
            source, target = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
            source.write_bytes(loaded.SerializeToString())
            import _tools  # MNN's converter

            _tools.mnnconvert(["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "none"])
            if not target.exists():
                raise ValueError("MNN cannot convert this model")
            module = mnn.nn.load_module_from_file(str(target), *names, runtime_manager=_manager(mnn, settings))
        shape = [d.dim_value or self.batch for d in loaded.graph.input[0].type.tensor_type.shape.dim]
        return MnnRunner(mnn, module, shape)


def _manager(mnn: Any, settings: dict[str, Any]) -> Any:
    return mnn.nn.create_runtime_manager((settings,))


class MnnRunner:
    """A loaded model and a fixed random input."""

    def __init__(self, mnn: Any, module: Any, shape: list[int]) -> None:
        self._mnn, self._module = mnn, module
        self._feed = self._packed(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))

    def _packed(self, images: NDArray[np.float32]) -> Any:
        expr = self._mnn.expr
        plain = expr.const(np.ascontiguousarray(images), list(images.shape), expr.NCHW, expr.float)
        return expr.convert(plain, expr.NC4HW4) if images.ndim == 4 else plain

    def run(self) -> None:
        """One run on the fixed input; reading the output is what makes the library compute it."""
        self._module.onForward([self._feed])[0].read()

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The output for images (N, C, H, W), float32."""
        output = self._module.onForward([self._packed(images)])[0]
        plain = self._mnn.expr.convert(output, self._mnn.expr.NCHW)
        return np.array(plain.read(), dtype=np.float32)


def open_mnn(kind: str, options: Options) -> Mnn:
    """The device."""
    return Mnn(kind, options, tuple(PRECISIONS))
