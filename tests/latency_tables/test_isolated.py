"""A runtime that takes its process down costs the model that it crashed on, nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import search_spaces
from latency_tables import Amount, Candidate, LatencyTable, Measurement, Plan, open_device, profile
from latency_tables.by_hand import import_kit, make_kit
from latency_tables.device import Options
from latency_tables.isolated import Isolated
from latency_tables.kit import SCRIPT
from latency_tables.onnx_graph import build_onnx, empty_onnx
from latency_tables.stopwatch import Failure
from search_spaces import UserError
from search_spaces.layers import Conv

FAST = Plan(rounds=3, least=3, warmup=1, sample_ms=0.02)
SPACE = search_spaces.build("small-mobilenet", width=0.25, resolution=[16]).restrict(kernel=[3], depth=[1], expand=[2, 4])

# A device whose runtime ends its process on models with a certain text, or where it holds many models.
STAND_IN = """
import os, signal, time
from latency_tables.device import LocalDevice, serialised

held = []

def end():
    if os.environ["HOW"] == "hang":
        time.sleep(600)
    print("terminate called", flush=True)
    os.abort() if os.environ["HOW"] == "abort" else os.kill(os.getpid(), signal.SIGKILL)

class StandIn(LocalDevice):
    def fingerprint(self):
        return self.fingerprint_of("stand-in", "1")

    def load(self, model):
        content = serialised(model)
        poisoned = os.environ.get("POISON", "none").encode() in content
        if poisoned and os.environ["WHEN"] == "load":
            end()
        held.append(content)
        if len(held) > int(os.environ.get("MOST", "1000")):
            end()
        return Runner(content, poisoned)

class Runner:
    def __init__(self, content, poisoned):
        self.content, self.poisoned = content, poisoned

    def run(self):
        if self.poisoned:
            end()
        sum(self.content)

def open_stand_in(kind, options):
    return StandIn(kind, options, ("fp32",))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOW", "abort")
    monkeypatch.setenv("WHEN", "load")


def opened() -> Isolated:
    return Isolated("stand_in:open_stand_in", "stand-in", Options())


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("how", "when", "signal"), [("abort", "load", "SIGABRT"), ("kill", "run", "SIGKILL")])
def test_a_layer_that_kills_the_runtime_is_named_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, when: str, signal: str
) -> None:
    amount, out = Amount(4, 3), tmp_path / "t.json"
    reference = {layer.key for layer in SPACE.lower(SPACE.smallest)}
    poison = next(layer.key for layer in SPACE.layers() if layer.key not in reference)
    with monkeypatch.context() as poisoned:
        for name, value in (("POISON", poison), ("HOW", how), ("WHEN", when)):
            poisoned.setenv(name, value)
        with pytest.raises(UserError) as caught:
            profile(SPACE, opened(), amount=amount, plan=FAST, out=out)
    assert f"layer {poison}" in caught.value.problem
    assert signal in caught.value.problem
    if how == "abort":
        assert "terminate called" in caught.value.problem  # what the runtime said last
    kept = LatencyTable.load(out)
    assert set(kept.entries) == {layer.key for layer in SPACE.layers()} - {poison}
    assert str(len(kept.entries)) in caught.value.allowed
    table = profile(SPACE, opened(), amount=amount, plan=FAST, out=out)  # it runs now: the same command goes on
    assert {key: table.entries[key] for key in kept.entries} == kept.entries
    assert poison in table.entries
    assert table.correction is not None


@pytest.mark.usefixtures("stand_in")
def test_models_that_are_too_many_at_a_time_are_timed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOST", "3")
    monkeypatch.setenv("POISON", "poison")
    good, bad = build_onnx([Conv(4, 3, 4, 1, 1, "relu")]), build_onnx([Conv(4, 3, 4, 1, 1, "relu")], metadata={"a": "poison"})
    models = [good, good, bad, good, good, good, good]
    found = opened().time([Candidate("", lambda m=m: m) for m in models], rng=np.random.default_rng(0), plan=FAST)
    assert [isinstance(timing, Failure) for timing in found] == [model is bad for model in models]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("when", ["load", "run"])
def test_a_model_that_hangs_is_named_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    for name, value in (("POISON", "poison"), ("HOW", "hang"), ("WHEN", when)):
        monkeypatch.setenv(name, value)
    good, bad = build_onnx([Conv(4, 3, 4, 1, 1, "relu")]), build_onnx([Conv(4, 3, 4, 1, 1, "relu")], metadata={"a": "poison"})
    long = build_onnx([Conv(4, 64, 64, 3, 1, "relu")])  # more than a pipe holds: the hanging process does not take it
    device = opened()
    device._worker._silence_s = 5.0
    models = [good, bad, long, good]
    found = device.time([Candidate("", lambda m=m: m) for m in models], rng=np.random.default_rng(0), plan=FAST)
    assert [isinstance(timing, Failure) for timing in found] == [model is bad for model in models]
    assert "hung: no sign of life for 5 s" in str(found[1])


@pytest.mark.usefixtures("stand_in")
def test_all_progress_is_told_and_a_model_that_cannot_be_made_costs_itself() -> None:
    class Steps:
        done = 0

        def advance(self, n: int = 1) -> None:
            self.done += n

    def broken() -> bytes:
        raise RuntimeError("no such layer")

    steps = Steps()
    candidates = [Candidate("good", empty_onnx), Candidate("broken", broken), Candidate("good", empty_onnx)]
    first, second, third = opened().time(candidates, rng=np.random.default_rng(0), plan=FAST, progress=steps)  # type: ignore[arg-type]
    assert isinstance(first, Measurement)
    assert isinstance(third, Measurement)
    assert second == Failure("RuntimeError: no such layer")
    assert steps.done == 3 + FAST.rounds


@pytest.mark.usefixtures("stand_in")
def test_a_process_that_does_not_start_is_one_clear_error() -> None:
    candidates = [Candidate("good", empty_onnx)]
    sick = opened()
    sick._worker._command = [sys.executable, "-c", "raise ImportError('libruntime.so is missing')"]
    with pytest.raises(UserError, match=r"libruntime\.so is missing"):
        sick.time(candidates, rng=np.random.default_rng(0), plan=FAST)


@pytest.mark.usefixtures("stand_in")
def test_no_process_is_left_behind() -> None:
    device = opened()
    device.time([Candidate("good", empty_onnx)], rng=np.random.default_rng(0), plan=FAST)
    process = device._worker._process
    assert process.poll() is None
    del device._worker
    assert process.poll() is not None


def test_a_real_runtime_in_its_own_process() -> None:
    found = open_device("onnxruntime-cpu")
    assert isinstance(found, Isolated)
    network = build_onnx([Conv(8, 3, 8, 3, 1, "relu")])
    candidates = [Candidate("good", lambda: network), Candidate("bad", lambda: b"not a model")]
    for _ in range(2):  # the process serves both
        good, bad = found.time(candidates, rng=np.random.default_rng(0), plan=FAST)
        assert isinstance(good, Measurement)
        assert isinstance(bad, Failure)


# An ONNX Runtime that aborts on one file of a kit.
RUNTIME = """
import os
from types import SimpleNamespace as Some

__version__ = "1"
ExecutionMode = Some(ORT_SEQUENTIAL=0)
GraphOptimizationLevel = Some(ORT_ENABLE_ALL=0)

def disable_telemetry_events(): pass
def get_available_providers(): return ["CPUExecutionProvider"]

class SessionOptions:
    def add_session_config_entry(self, *names): pass

class InferenceSession:
    def __init__(self, path, options, providers):
        if path.endswith(os.environ.get("POISON", "none")):
            os.abort()
    def get_providers(self): return get_available_providers()
    def get_inputs(self): return [Some(name="in", shape=["N", 3, 4, 4], type="tensor(float)")]
    def get_outputs(self): return [Some(name="out")]
    def run(self, outputs, feed): return [sum(range(1000))]
"""


def test_a_kit_names_the_model_that_killed_the_runtime_and_times_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    kit = make_kit(SPACE, folder, amount=Amount(4, 3), plan=FAST)
    (folder / "onnxruntime.py").write_text(RUNTIME)
    poison = next(name for name in kit.names if kit.labels[name].startswith("mbconv"))
    words = [sys.executable, "-s", "-E", str(folder / SCRIPT)]
    done = subprocess.run(words, env={**os.environ, "POISON": poison}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    items = json.loads((folder / "results.json").read_text())["items"]
    assert [name for name in kit.names if "error" in items[name]] == [poison]
    with pytest.raises(UserError, match="SIGABRT") as caught:
        import_kit(folder, "table://board")
    assert kit.labels[poison].split(" x ")[0] in caught.value.problem
