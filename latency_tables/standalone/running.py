"""The script of a kit: ``python3 run_kit.py`` in the kit's folder.

It opens no connection, writes only beside itself (``weights.bin``, ``results.json``), and goes on where it was interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Dict, Sequence

import numpy as np

from .runtime import SessionRunner, describe, open_session
from .timing import Plan, Run, SystemClock
from .worker import Worker, serve

RESULTS_KIND, RESULTS_VERSION = "latency-kit-results", 1
SCRIPT = "run_kit.py"


def write_pool(path: Path, pool: Dict[str, Any]) -> None:
    """The file of random weights that all models of a kit share: per spread, ``count`` float32; then ``count`` bytes."""
    rng = np.random.default_rng(0)
    with path.with_suffix(".part").open("wb") as stream:
        for spread in pool["spreads"]:
            stream.write((np.float32(spread) * rng.standard_normal(pool["count"], dtype=np.float32)).tobytes())
        stream.write(rng.integers(-100, 100, pool["count"], dtype=np.int8).tobytes())
    path.with_suffix(".part").replace(path)


def run_kit(folder: Path) -> int:
    """Time what is not timed yet, saving after every chunk. Returns an exit status."""
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    try:
        fingerprint = describe(kit["device"], kit["precision"], kit["threads"], kit["batch"])
    except ImportError as error:
        sys.stderr.write(f"{sys.executable}: {error}. The kit needs it: pip install onnxruntime, then run this again\n")
        return 2
    results = {"kind": RESULTS_KIND, "version": RESULTS_VERSION, "kit": kit["id"], "fingerprint": fingerprint, "items": {}}
    target = folder / "results.json"
    if target.exists():
        try:
            found = json.loads(target.read_text(encoding="utf-8"))
            known = (found["kit"], found["fingerprint"], type(found["items"]))
        except (ValueError, KeyError, TypeError):
            sys.stderr.write("results.json is damaged: move it away, then run this again\n")
            return 2
        if known != (kit["id"], fingerprint, dict):
            sys.stderr.write("results.json is of another kit, machine or runtime: move it away, then run this again\n")
            return 2
        results = found
    if kit["pool"]["count"] and not (folder / "weights.bin").exists():
        write_pool(folder / "weights.bin", kit["pool"])
    plan = Plan(**kit["plan"])
    options = [kit["device"], str(kit["threads"]), str(kit["batch"])]
    worker = Worker([sys.executable, str(folder / SCRIPT), "--serve", *options])
    for number, names in enumerate(kit["chunks"]):
        if all(name in results["items"] for name in names):
            continue
        sys.stderr.write(f"chunk {number + 1} of {len(kit['chunks'])}\n")
        paths = [os.fsencode(folder / name) for name in names]
        timed = worker.time([partial(bytes, path) for path in paths], plan, kit["seed"] + number, kit["threads"] == 1)
        for name, found in zip(names, timed):
            results["items"][name] = (
                {"error": found} if isinstance(found, str) else dict(zip(("wall_ns", "cpu_ns", "runs"), found))
            )
        part = target.with_suffix(".part")
        with part.open("w", encoding="utf-8") as stream:
            json.dump(results, stream)
            stream.flush()
            os.fsync(stream.fileno())  # else a board that loses power may keep an empty file under the final name
        part.replace(target)
    sys.stderr.write(f"done: {target}\n")
    return 0


def main(arguments: Sequence[str]) -> int:
    """``run_kit.py`` runs the kit beside it; with ``--describe DEVICE PRECISION THREADS BATCH`` it prints the fingerprint, with
    ``--serve DEVICE THREADS BATCH`` it is the process that times the models whose paths it is told."""
    if arguments[:1] == ["--describe"]:
        device, precision, threads, batch = arguments[1:]
        sys.stdout.write(json.dumps(describe(device, precision, int(threads), int(batch))) + "\n")
        return 0
    if arguments[:1] == ["--serve"]:
        device, threads, batch = arguments[1:]

        def load(path: bytes) -> Run:
            return SessionRunner(open_session(os.fsdecode(path), device, int(threads)), int(batch)).run

        try:
            serve(load, SystemClock())
        except KeyboardInterrupt:  # whoever started this is told, too
            return 130
        return 0
    try:
        return run_kit(Path(sys.argv[0]).resolve().parent)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what is timed is kept, run this again to go on\n")
        return 130
