"""Nothing is asked of the network, and nothing is told to it, unless a device elsewhere was named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The whole loop and every runtime that is installed, in a process in which each attempt to connect is an end.
LOOP = """
import os, sys
from pathlib import Path

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        sys.stderr.write(f"NETWORK {event} {arguments}\\n")
        os._exit(3)

sys.addaudithook(hook)
import nas
from latency_tables.devices import list_devices

out = Path(sys.argv[1])
images = nas.load_data("fake:28x1x4")
space = nas.space("small-mobilenet", width=0.25, resolution=[16], channels=1, classes=4).restrict(kernel=[3], expand=[2, 4])
run = nas.train(nas.Supernet(space, seed=0), images, out=out, recipe="quick", epochs=0.5)
nas.profile(space, device="simulated", out=out)
nas.search(run, device="simulated", samples=20, points=2, generations=5, predictor="ridge")
exports = nas.export(run)
nas.quantize(run, pick="knee", images=32)
nas.verify(run, device="simulated")
nas.report(run)
for row in list_devices():
    if row.available and row.name != "simulated":
        nas.measure(out / "exports" / exports[0].file, device=row.name)
        print(row.name)
nas.doctor()
"""


@pytest.mark.faults
@pytest.mark.parametrize("cut_off", [False, True], ids=["watched", "without a network"])
def test_the_loop_needs_no_network(tmp_path: Path, *, cut_off: bool) -> None:
    words = [sys.executable, "-c", LOOP, str(tmp_path / "run")]
    if cut_off:
        words = ["unshare", "-n", *words]
        if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
            pytest.skip("networks cannot be taken away here")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NETWORK" not in done.stderr
    assert "onnxruntime-cpu" in done.stdout
