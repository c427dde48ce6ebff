"""Whether this machine is fit to train and to measure: each check says what it found and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from latency_tables.stopwatch import BUSY, SLOWED

__all__ = ["Check", "doctor"]

OURS = "hwnas"  # the distribution
RUNTIME = "onnxruntime"  # there are builds of it under other names, which have the same module
OLDEST_PYTHON = (3, 11)
PROBE_S = 0.3
SPARE_BYTES = 2 << 30


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        status: ``ok``, ``note`` (works, could be better) or ``broken``.
        found: what it found.
        advice: what to do; empty where nothing needs doing.
    """

    name: str
    status: str
    found: str
    advice: str = ""


def doctor() -> list[Check]:
    """All checks; none changes anything."""
    return [check() for check in CHECKS.values()]


def _python() -> Check:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    good = sys.version_info >= OLDEST_PYTHON
    return Check("python", "ok" if good else "broken", found, "" if good else "Install Python 3.11 or newer")


def _packages() -> Check:
    try:
        needed = _needed()
    except metadata.PackageNotFoundError:
        return Check("packages", "note", f"{OURS} is not installed, so that nothing says what it needs", f"pip install {OURS}")
    found = {name: _found(name) for name in needed}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        advice = f"pip install {shlex.join(needed[name] for name in missing)}"
        return Check("packages", "broken", f"missing: {', '.join(missing)}", advice)
    return Check("packages", "ok", ", ".join(version for version in found.values() if version is not None))


def _needed() -> dict[str, str]:
    """What the toolkit needs, extras apart: name of the distribution -> the requirement as pip takes it.

    Raises:
        PackageNotFoundError: the toolkit is not installed.
    """
    plain = [text for text in metadata.requires(OURS) or [] if "extra ==" not in text]
    return {re.split(r"[^\w.-]", text, maxsplit=1)[0]: text for text in plain}


def _found(name: str) -> str | None:
    """A distribution and its version; of the runtime any build that has its module. None where there is none."""
    builds = [name]
    if name == RUNTIME:
        builds += metadata.packages_distributions().get(RUNTIME, [])
    for build in builds:
        with suppress(metadata.PackageNotFoundError):
            return f"{build} {metadata.version(build)}"
    return None


def _runtime() -> Check:
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return Check("onnxruntime", "broken", "not installed", "pip install onnxruntime onnx")
    import numpy as np

    from latency_tables import Measurement, Plan, open_device
    from latency_tables.device import Candidate
    from latency_tables.onnx_graph import empty_onnx

    device = open_device("onnxruntime-cpu")
    (timed,) = device.time(
        [Candidate("an empty network", empty_onnx)], rng=np.random.default_rng(0), plan=Plan(rounds=5, least=5)
    )
    if not isinstance(timed, Measurement):
        return Check("onnxruntime", "broken", timed.reason, "pip install --force-reinstall onnxruntime")
    return Check("onnxruntime", "ok", f"a call takes {timed.median_ms * 1e3:.0f} µs")


def _cores() -> Check:
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    found = f"{allowed} of {total} cores may be used"
    return Check(
        "cores",
        "ok" if allowed == total else "note",
        found,
        "" if allowed == total else "Started under taskset or in a container",
    )


def _governor() -> Check:
    from latency_tables.standalone.runtime import machine

    governor = machine().get("governor")
    if governor is None:
        return Check("governor", "ok", "the system does not tell (a virtual machine, or not Linux)")
    good = governor == "performance"
    advice = "" if good else "Times vary with it. For steady ones: sudo cpupower frequency-set -g performance"
    return Check("governor", "ok" if good else "note", str(governor), advice)


def _quiet() -> Check:
    """A busy loop of a fraction of a second: wall against CPU time, and the median of its laps against their calmest tenth."""
    wall, cpu, laps = time.perf_counter(), time.thread_time(), []
    while time.thread_time() - cpu < PROBE_S and time.perf_counter() - wall < 4 * PROBE_S:
        start = time.thread_time()
        sum(range(10_000))
        laps.append(time.thread_time() - start)
    ratio = (time.perf_counter() - wall) / max(1e-9, time.thread_time() - cpu)
    slowed = statistics.median(laps) / max(1e-9, statistics.quantiles(laps, n=10)[0]) - 1
    found = f"wall time is {ratio:.2f} of CPU time; half of the laps take {slowed:.0%} longer than the calmest tenth"
    if ratio > BUSY:
        return Check(
            "quiet", "note", found, "Other processes take the core; tables then use CPU time. Stop them for wall times"
        )
    advice = "Neighbours share the processor, or it throttles; tables hold the times of calm moments" if slowed > SLOWED else ""
    return Check("quiet", "note" if advice else "ok", found, advice)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    writable = os.access(Path.cwd(), os.W_OK)
    found = f"{free / 2**30:.1f} GiB free in {Path.cwd()}" + ("" if writable else ", not writable")
    if not writable:
        return Check("disk", "broken", found, "Change to a folder of your own")
    good = free > SPARE_BYTES
    return Check("disk", "ok" if good else "note", found, "" if good else "Runs take up to some gigabytes")


def _gpu() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("gpu", "note", "torch is not installed", "pip install torch")
    import torch

    if torch.cuda.is_available():
        return Check("gpu", "ok", torch.cuda.get_device_name())
    advice = "Install a CUDA build of torch to train on it" if shutil.which("nvidia-smi") else ""
    return Check("gpu", "note" if advice else "ok", "none that torch sees; training uses the processor", advice)


def _remote() -> Check:
    found = [name for name in ("ssh", "adb") if shutil.which(name)]
    return Check("remote", "ok", f"to reach other devices: {', '.join(found) or 'neither ssh nor adb; kits by hand work'}")


CHECKS: Mapping[str, Callable[[], Check]] = {
    "python": _python,
    "packages": _packages,
    "onnxruntime": _runtime,
    "cores": _cores,
    "governor": _governor,
    "quiet": _quiet,
    "disk": _disk,
    "gpu": _gpu,
    "remote": _remote,
}
