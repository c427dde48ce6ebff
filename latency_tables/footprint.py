"""Peak memory of a runtime with a model: measured in a process of its own, where nothing else has been allocated.

``python -m latency_tables.footprint DEVICE MODEL`` prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from latency_tables.isolated import environment
from latency_tables.standalone.worker import ended
from search_spaces.errors import UserError

__all__ = ["peak_memory"]

LONGEST_S = 300.0
RUNS = 3
STATUS = Path("/proc/self/status")


def peak_memory(device: str, model: Path) -> int | None:
    """Bytes that loading a model and running it takes at most beside the runtime itself.

    None where the system does not tell, or where the model has not run after five minutes.

    Raises:
        UserError: the device cannot run the model.
    """
    if not STATUS.exists():  # Linux only
        return None
    words = [sys.executable, "-m", "latency_tables.footprint", device, str(model)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False, env=environment())
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        reason = ": ".join([ended(done.returncode), *last])
        raise UserError(
            f"{device} cannot run {model}: {reason}", allowed="A model of the device's runtime", next_step="See: nas devices"
        )
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (most so far), bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _main(device: str, model: str) -> None:
    from latency_tables.devices import open_device
    from latency_tables.onnx_graph import empty_onnx

    opened = open_device(device)
    opened.load(empty_onnx()).run()  # the runtime's own memory is there now
    content = Path(model).read_bytes()
    before = _resident("VmRSS")
    runner = opened.load(content)
    for _ in range(RUNS):
        runner.run()
    sys.stdout.write(json.dumps({"bytes": max(0, _resident("VmHWM") - before)}) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
