"""The whole loop in circles in one process: do memory, open files and threads stay flat?

``python scripts/soak.py --minutes 30`` trains, profiles, searches, exports, verifies and reports again and again, each time in
a new folder, and prints a line per circle and what grew from the first third to the last one. Memory is counted twice: what is
resident at the end of a circle, and what is held when the garbage is collected and the C library has given back what it keeps
free. Its free parts come in pieces that differ from circle to circle and hide a leak of a few kB, so it is told to keep one
heap and to map everything from 64 KiB on by itself, which goes back when it is freed.

SQLAlchemy keeps the statements of the last 100 to 150 databases that a process opened, and every circle has a database of its
own: a cache that swings between those bounds, 19 kB a statement. It is emptied before memory is counted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy.orm import Mapper

import nas

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0"}  # glibc's
SAMPLES = 20
FLAT_MIB = 0.1  # of growth of held memory per circle that counts as none
WARM = 5  # circles in which libraries fill their caches


def forget_statements() -> None:
    """Empty SQLAlchemy's caches of statements, one to a mapped class; they outlive their databases."""
    for mapper in [thing for thing in gc.get_objects() if issubclass(type(thing), Mapper)]:
        vars(mapper).pop("_compiled_cache", None)  # made anew at the next statement


def circle(folder: Path, seed: int) -> None:
    """The demo's loop with a budget of seconds."""
    images = nas.load_data("digits", seed=0)
    space = nas.space(
        "small-mobilenet", width=0.25, image=28, resolution=[20], channels=images.channels, classes=images.classes
    )
    space = space.restrict(kernel=[3, 5], depth=[1, 2])
    supernet = nas.Supernet(space, images.classes, channels=images.channels, seed=seed)
    run = nas.train(supernet, images, out=folder, recipe="quick", epochs=0.3, seed=seed)
    nas.profile(space, out=folder, networks=8, held_out=6)
    nas.search(run, device="onnxruntime-cpu", samples=SAMPLES, points=3, generations=10, predictor="ridge", seed=seed)
    nas.export(run)
    nas.verify(run)
    nas.report(run)


def resident() -> float:
    """Memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def resources() -> tuple[float, float, int, int]:
    """Memory in MiB, what of it is held, open files and threads of this process."""
    status = Path("/proc/self/status").read_text()
    memory, files = resident(), len(list(Path("/proc/self/fd").iterdir()))
    forget_statements()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return memory, resident(), files, int(status.split("Threads:")[1].split()[0])


def main() -> int:
    """Exit code 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    given = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    end = time.monotonic() + 60 * given.minutes
    rows: list[tuple[float, float, int, int]] = []
    print("circle  seconds  memory MiB  held MiB  open files  threads", flush=True)
    while time.monotonic() < end or len(rows) <= WARM + 3:
        folder, begun = Path(tempfile.mkdtemp(prefix="hwnas-soak-")), time.monotonic()
        try:
            circle(folder / "run", seed=len(rows))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows.append(resources())
        memory, held, files, threads = rows[-1]
        line = f"{memory:>10.1f}  {held:>8.1f}  {files:>10}  {threads:>7}"
        print(f"{len(rows):>6}  {time.monotonic() - begun:>7.1f}  {line}", flush=True)
    warm = rows[WARM:]
    third = max(1, len(warm) // 3)
    first, last = ([statistics.median(column) for column in zip(*part, strict=True)] for part in (warm[:third], warm[-third:]))
    grown = [(b - a) / max(1, len(warm) - third) for a, b in zip(first, last, strict=True)]
    print(
        f"{len(rows)} circles; medians of the first and last third after {WARM}: memory {first[0]:.1f} and {last[0]:.1f} MiB, "
        f"held {first[1]:.1f} and {last[1]:.1f} MiB, open files {first[2]:g} and {last[2]:g}, "
        f"threads {first[3]:g} and {last[3]:g}; held memory grows by {grown[1]:.3f} MiB a circle"
    )
    return int(grown[1] > FLAT_MIB or last[2] > first[2] or last[3] > first[3])


if __name__ == "__main__":
    sys.exit(main())
