"""What one ONNX file costs on a device: time, throughput, memory, size and, where it is counted, energy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables import Candidate, Measurement, Plan, open_device
from latency_tables.footprint import peak_memory
from latency_tables.stopwatch import Failure
from nas.onnx_files import Signature
from search_spaces.checks import check_whole
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

__all__ = ["Cost", "measure"]

ROUNDS = 60


@dataclass(frozen=True)
class Cost:
    """What a model costs on a device.

    Attributes:
        time: of one run of ``batch`` images: the file's own number where it has one, else the device's.
        images_per_s: ``batch`` over the median wall time.
        file_bytes: of the ONNX file.
        memory_bytes: most that the runtime takes for it beside itself; None where it cannot be told.
        energy_j: of one run, of the whole processor or GPU, idle power included; None where nothing counts it.
        energy_of: the counter.
    """

    device: str
    batch: int
    time: Measurement
    images_per_s: float
    file_bytes: int
    memory_bytes: int | None = None
    energy_j: float | None = None
    energy_of: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not known is absent."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure(model: str | Path, *, device: str = "onnxruntime-cpu", seed: int = 0, progress: Progress = SILENT) -> Cost:
    """Measure an ONNX file on a device, e.g. ``onnxruntime-cpu:batch=8`` for throughput at eight images.

    Raises:
        UserError: no such file, an unknown device, or a model that the device cannot run.
    """
    check_whole("seed", seed, 0)
    path = Path(model)
    if not path.is_file():
        raise UserError(f"{path} does not exist", allowed="An ONNX file", next_step="Export one with: nas export RUN")
    opened = open_device(device)
    content, batch = path.read_bytes(), Signature.of(path).batch or opened.batch
    plan = Plan(rounds=ROUNDS, target=0.0)
    progress.start(f"time on {opened.name}", 1 + plan.rounds)
    try:
        (timing,) = opened.time(
            [Candidate(path.name, lambda: content)], rng=np.random.default_rng(seed), plan=plan, progress=progress
        )
    finally:
        progress.stop()
    if isinstance(timing, Failure):
        raise UserError(
            f"{opened.name} cannot run {path}: {timing.reason}",
            allowed="A model with one float32 image input that the runtime supports",
            next_step="Choose another device (nas devices), or export the network again",
        )
    here = "://" not in opened.name and opened.fingerprint().get("processor") != "simulated"
    energy = opened.energy(content, timing.median_ms)
    return Cost(
        device=opened.name,
        batch=batch,
        time=timing,
        images_per_s=1e3 * batch / timing.median_ms,
        file_bytes=len(content),
        memory_bytes=peak_memory(opened.name, path) if here else None,
        energy_j=energy.joules if energy else None,
        energy_of=energy.counter if energy else None,
    )
