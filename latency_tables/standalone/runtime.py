"""ONNX Runtime and the machine that it runs on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Dict, Sequence, Union

import numpy as np

PROVIDERS = {
    "onnxruntime-cpu": ["CPUExecutionProvider"],
    "onnxruntime-cuda": ["CUDAExecutionProvider"],
    "onnxruntime-tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
}
PRECISIONS = {kind: ("fp32", "int8") if kind == "onnxruntime-cpu" else ("fp32",) for kind in PROVIDERS}
ERRORS_ONLY = 3  # the runtime's log severity


def machine() -> Dict[str, Any]:
    """What times depend on whatever the runtime; a fact that cannot be read is absent."""
    found = {
        "processor": _processor(),
        "logical_cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
    return {key: value for key, value in found.items() if value}


def _processor() -> str:
    """The board where it has a name, for boards of several generations say the same of their processor; else the processor."""
    board = _text("/proc/device-tree/model").strip("\0 ")
    lines = _text("/proc/cpuinfo").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return board or next(named, "") or _mac() or platform.processor()


def _mac() -> str:
    """The processor's name on macOS, where Python knows only its architecture."""
    if platform.system() != "Darwin":
        return ""
    words = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not every system has the file, nor lets us read it
        return ""


def quiet_onnxruntime() -> Any:
    """ONNX Runtime, imported without its telemetry: else it begins, on its import, a store of events that it uploads later."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def describe(device: str, precision: str, threads: int, batch: int) -> Dict[str, Any]:
    """The fingerprint of an ONNX Runtime device on this machine."""
    onnxruntime = quiet_onnxruntime()
    options = {"precision": precision, "threads": threads, "batch": batch}
    found = {**machine(), "runtime": "onnxruntime", "runtime_version": onnxruntime.__version__, **options}
    return found if device == "onnxruntime-cpu" else {**found, "provider": PROVIDERS[device][0]}


def open_session(model: Union[bytes, str], device: str, threads: int) -> Any:
    """An ONNX Runtime session with every graph optimisation (they change times by a factor of four).

    Raises:
        RuntimeError: the runtime has no such provider; else whatever it raises for a model that it cannot take.
    """
    ort = quiet_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    # Threads that spin between runs take the cores from what runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = PROVIDERS[device]
    exact = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # fp32 is float32: see `latency_tables.torch_devices`
    if wanted[0] not in ort.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {wanted[0]}; it has {', '.join(ort.get_available_providers())}")
    if device != "onnxruntime-cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN as pip brings them, for torch as well: no system's loader looks there
    session = ort.InferenceSession(model, options, providers=[(name, exact.get(name, {})) for name in wanted])
    if wanted[0] not in session.get_providers():  # it falls back to the processor without a word
        raise RuntimeError(f"{wanted[0]} could not be started")
    return session


def random_input(shape: Sequence[int], pixels: bool) -> Any:
    """A fixed random input: float32 of spread 1, or uint8."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape, np.uint8) if pixels else rng.standard_normal(shape, dtype=np.float32)


class SessionRunner:
    """A session with one input (float32, or uint8) and one output, and a fixed random input of ``batch`` images."""

    def __init__(self, session: Any, batch: int) -> None:
        source = session.get_inputs()[0]
        shape = (source.shape[0] if isinstance(source.shape[0], int) else batch, *source.shape[1:])
        self._session = session
        self._source = source.name
        self._outputs = [session.get_outputs()[0].name]
        self._feed = {source.name: random_input(shape, source.type == "tensor(uint8)")}

    def run(self) -> None:
        """One run on the fixed input."""
        self._session.run(self._outputs, self._feed)

    def infer(self, images: Any) -> Any:
        """The output for images (N, C, H, W), float32, or uint8 in the layout that the model takes."""
        return self._session.run(self._outputs, {self._source: images})[0]
