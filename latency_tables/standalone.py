"""Timing that needs no toolkit: the script that a kit carries to another machine, and the core of timing on this one.

On the other machine: ``python3 run_kit.py`` in the kit's folder. It needs Python 3.8 or newer, numpy and ONNX Runtime, opens
no connection, writes only beside itself (``weights.bin``, ``results.json``), and goes on where it was interrupted.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np

RESULTS_KIND, RESULTS_VERSION = "latency-kit-results", 1
LONGEST_SAMPLE = 1_000_000  # runs; a bound for a clock that stands still
STEADY = 0.98  # warm-up ends when three runs are no faster than this share of the three before
WARM_UP_TRIES = 10
PROVIDERS = {
    "onnxruntime-cpu": ["CPUExecutionProvider"],
    "onnxruntime-cuda": ["CUDAExecutionProvider"],
    "onnxruntime-tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
}
ERRORS_ONLY = 3  # the runtime's log severity

Run = Callable[[], None]
Raw = Tuple[List[int], List[int], int]  # wall and CPU nanoseconds of samples, runs per sample


class SystemClock:
    """The machine's monotonic clock and the calling thread's CPU time."""

    def wall_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        return time.thread_time_ns()


@dataclass(frozen=True)
class Plan:
    """How candidates are timed.

    Attributes:
        rounds: most samples of a candidate.
        least: samples that every candidate gets.
        target: a candidate has enough samples when the 95 % interval of its median is this narrow (half width, relative);
            0: all get ``rounds``.
        warmup: runs before the first sample, more where times still fall.
        sample_ms: a sample repeats the run until it lasts at least this long.
    """

    rounds: int = 20
    least: int = 10
    target: float = 0.01
    warmup: int = 10
    sample_ms: float = 0.5


# ---- timing -------------------------------------------------------------------------------------------------


@contextmanager
def one_core(wanted: bool = True) -> Iterator[None]:
    """Keep the calling thread on one core, where the system can, and restore its cores afterwards."""
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(before)})  # interrupts tend to land on the first core
        pinned = True
    except OSError:
        pinned = False
    try:
        yield
    finally:
        if pinned:
            os.sched_setaffinity(0, before)


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def time_runs(
    loaders: Sequence[Callable[[], Run]],
    plan: Plan,
    rng: np.random.Generator,
    clock: Any,
    pin: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> List[Union[Raw, str]]:
    """Time candidates against each other: every round takes one sample of each that needs more, in a new random order.

    Args:
        loaders: per candidate, a callable that makes it ready and returns what runs it once.
        pin: stay on one core; wrong for candidates with several threads.
        advance: called for each candidate loaded and for each of ``plan.rounds``.

    Returns: in the order given; text where loading or warming up raised.
    """
    failures: Dict[int, str] = {}
    runs: Dict[int, Tuple[Run, int]] = {}
    walls: Dict[int, List[int]] = {}
    cpus: Dict[int, List[int]] = {}
    with one_core(pin):
        for index, load in enumerate(loaders):
            try:
                run = load()
                runs[index] = (run, _calibrate(run, plan, clock))
                walls[index], cpus[index] = [], []
            except Exception as error:  # noqa: BLE001 - a runtime may fail in any way, and must not cost the other candidates
                failures[index] = f"{type(error).__name__}: {error}"
            advance()
        with _no_collection():
            for _ in range(plan.rounds):
                unsettled = [i for i in runs if not _settled(walls[i], cpus[i], plan)]
                for index in rng.permutation(unsettled).tolist():
                    wall, cpu = _sample(runs[index][0], runs[index][1], clock)
                    walls[index].append(wall)
                    cpus[index].append(cpu)
                advance()
    return [failures[i] if i in failures else (walls[i], cpus[i], runs[i][1]) for i in range(len(loaders))]


def _sample(run: Run, count: int, clock: Any) -> Tuple[int, int]:
    """Wall and CPU nanoseconds of ``count`` runs.

    One run goes before the clock: it brings the candidate back into the caches, which the others have filled since.
    Without it the sum of layers misses whole networks of microsecond layers by a third, not by a few percent.
    """
    run()
    return _lap(run, count, clock)


def _lap(run: Run, count: int, clock: Any) -> Tuple[int, int]:
    repeat = range(count)
    cpu = clock.cpu_ns()
    wall = clock.wall_ns()
    for _ in repeat:
        run()
    wall = clock.wall_ns() - wall
    return wall, clock.cpu_ns() - cpu


def _calibrate(run: Run, plan: Plan, clock: Any) -> int:
    """Warm up until times fall no more, then the number of runs that fill a sample."""
    for _ in range(max(1, plan.warmup - 6)):  # at least six more below
        run()
    fastest = min(_lap(run, 1, clock)[0] for _ in range(3))
    for _ in range(WARM_UP_TRIES):
        before, fastest = fastest, min(_lap(run, 1, clock)[0] for _ in range(3))
        if fastest >= STEADY * before:
            break
    return min(LONGEST_SAMPLE, max(1, math.ceil(plan.sample_ms * 1e6 / max(1, fastest))))


def median_interval(samples: Sequence[float]) -> Tuple[float, float]:
    """The 95 % interval of a median, from order statistics: it needs no shape of the distribution."""
    ordered = sorted(samples)
    low = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))))
    return ordered[low], ordered[len(ordered) - 1 - low]


def _settled(wall: Sequence[int], cpu: Sequence[int], plan: Plan) -> bool:
    """Whether either clock has settled: on a busy machine only the CPU's ever does, and it is the one used there."""
    if len(wall) < plan.least:
        return False
    for samples in (wall, cpu):
        low, high = median_interval(samples)
        if high - low <= plan.target * (high + low):
            return True
    return False


# ---- the machine and the runtime ----------------------------------------------------------------------------


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
    lines = _text("/proc/cpuinfo").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    board = _text("/proc/device-tree/model").strip("\0")
    return next(named, "") or board or platform.processor()


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
    if wanted[0] not in ort.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {wanted[0]}; it has {', '.join(ort.get_available_providers())}")
    session = ort.InferenceSession(model, options, providers=wanted)
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


# ---- a kit --------------------------------------------------------------------------------------------------


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
    fingerprint = describe(kit["device"], kit["precision"], kit["threads"], kit["batch"])
    results = {"kind": RESULTS_KIND, "version": RESULTS_VERSION, "kit": kit["id"], "fingerprint": fingerprint, "items": {}}
    target = folder / "results.json"
    if target.exists():
        found = json.loads(target.read_text(encoding="utf-8"))
        if (found.get("kit"), found.get("fingerprint")) != (kit["id"], fingerprint):
            sys.stderr.write("results.json is of another kit, machine or runtime: move it away, then run this again\n")
            return 2
        results = found
    if kit["pool"]["count"] and not (folder / "weights.bin").exists():
        write_pool(folder / "weights.bin", kit["pool"])
    plan = Plan(**kit["plan"])
    for number, names in enumerate(kit["chunks"]):
        if all(name in results["items"] for name in names):
            continue
        sys.stderr.write(f"chunk {number + 1} of {len(kit['chunks'])}\n")
        loaders = [_kit_loader(folder / name, kit) for name in names]
        timed = time_runs(loaders, plan, np.random.default_rng([kit["seed"], number]), SystemClock(), kit["threads"] == 1)
        for name, found in zip(names, timed):
            results["items"][name] = (
                {"error": found} if isinstance(found, str) else dict(zip(("wall_ns", "cpu_ns", "runs"), found))
            )
        part = target.with_suffix(".part")
        part.write_text(json.dumps(results), encoding="utf-8")
        part.replace(target)
    sys.stderr.write(f"done: {target}\n")
    return 0


def _kit_loader(path: Path, kit: Dict[str, Any]) -> Callable[[], Run]:
    return lambda: SessionRunner(open_session(str(path), kit["device"], kit["threads"]), kit["batch"]).run


def main(arguments: Sequence[str]) -> int:
    """``run_kit.py [FOLDER]`` runs a kit; ``run_kit.py --describe DEVICE PRECISION THREADS BATCH`` prints the fingerprint."""
    if arguments[:1] == ["--describe"]:
        device, precision, threads, batch = arguments[1:]
        sys.stdout.write(json.dumps(describe(device, precision, int(threads), int(batch))) + "\n")
        return 0
    return run_kit(Path(arguments[0]) if arguments else Path(__file__).resolve().parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
