"""Kits measure what a profile does; what comes back is believed only where it makes sense."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas
import search_spaces
from latency_tables import Amount, LatencyTable, Plan
from latency_tables.by_hand import import_kit, make_kit
from latency_tables.device import Options
from latency_tables.entries import Entry
from latency_tables.kit import SCRIPT
from search_spaces import UserError
from supernets import ElasticWriter, elastic
from tests.own_networks import PlainCnn

SPACE = search_spaces.build("small-mobilenet", width=0.25, resolution=[16]).restrict(kernel=[3], depth=[1], expand=[2, 4])
FAST = Plan(rounds=3, least=3, warmup=1, sample_ms=0.02)


def run_there(folder: Path) -> subprocess.CompletedProcess[str]:
    """The kit's own script, in a process that knows of no other folder."""
    words = [sys.executable, "-s", "-E", str(folder / SCRIPT)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit that was run."""
    folder = tmp_path_factory.mktemp("kits") / "kit"
    make_kit(SPACE, folder, amount=Amount(4, 3), plan=FAST)
    done = run_there(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def kit(run_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(run_once, tmp_path / "kit"))


def test_a_kit_gives_the_table_of_the_machine_it_ran_on(kit: Path, tmp_path: Path) -> None:
    table = import_kit(kit, "table://board", out=tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
    assert set(table.entries) == {layer.key for layer in SPACE.layers()}
    assert (table.device, len(table.networks), table.fingerprint["runtime"]) == ("table://board", 7, "onnxruntime")
    assert table.quality is not None
    results = json.loads((kit / "results.json").read_text())["items"]
    entry = table.entries[SPACE.layers()[0].key]
    assert isinstance(entry, Entry)
    medians = {np.median(item["wall_ns"]) / item["runs"] * 1e-6 for item in results.values()}
    assert any(entry.alone.median_ms == pytest.approx(median) for median in medians)
    with pytest.raises(UserError, match="there already"):
        import_kit(kit, "table://board", out=tmp_path / "t.json")


def test_a_kit_of_a_network_of_ones_own_comes_back(tmp_path: Path) -> None:
    space = elastic(PlainCnn, {"depth": [1, 2, 3], "width": [4, 8]}, input_shape=(1, 16, 16), fixed={"kernel": 3})
    make_kit(space, tmp_path / "kit", amount=Amount(3, 2), plan=FAST, writer=ElasticWriter(space))
    done = run_there(tmp_path / "kit")
    assert done.returncode == 0, done.stderr
    table = nas.import_kit(tmp_path / "kit", name="board", space=space)
    assert set(table.entries) == {layer.key for layer in space.layers()}
    assert table.estimate(space.largest) > 0


def test_a_kit_is_small_and_needs_no_toolkit(run_once: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in run_once.iterdir()}
    models = {name: size for name, size in sizes.items() if name.endswith(".onnx")}
    assert max(models.values()) < 64_000
    sources = "".join(path.read_text() for path in [run_once / SCRIPT, *(run_once / "standalone").glob("*.py")])
    assert "import search_spaces" not in sources
    assert "from latency_tables" not in sources


def test_a_machine_without_the_runtime_is_told_what_to_install(kit: Path) -> None:
    code = """
import runpy, sys
sys.path.insert(0, ".")
sys.modules["onnxruntime"] = None  # as if it were not there
sys.argv[0] = "run_kit.py"
runpy.run_path("run_kit.py", run_name="__main__")
"""
    words = [sys.executable, "-c", code]
    run = subprocess.run(words, cwd=kit, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert "pip install onnxruntime" in run.stderr
    assert "Traceback" not in run.stderr


def test_running_a_kit_again_measures_nothing_twice_and_half_a_run_goes_on(kit: Path, tmp_path: Path) -> None:
    before = json.loads((kit / "results.json").read_text())
    assert run_there(kit).returncode == 0
    assert json.loads((kit / "results.json").read_text()) == before
    chunks = json.loads((kit / "kit.json").read_text())["chunks"]
    half = before | {
        "items": {name: item for name, item in before["items"].items() if name in {n for c in chunks[:2] for n in c}}
    }
    (kit / "results.json").write_text(json.dumps(half))
    with pytest.raises(UserError, match="not timed yet") as caught:
        import_kit(kit, "table://board", out=tmp_path / "t.json")
    assert SCRIPT in caught.value.next_step
    assert not (tmp_path / "t.json").exists()
    assert run_there(kit).returncode == 0
    after = json.loads((kit / "results.json").read_text())["items"]
    assert all(after[name] == item for name, item in half["items"].items())
    assert set(after) == set(before["items"])


@pytest.mark.parametrize(
    "text", ['{"kind": "latency-kit-res', "[]", '{"kit": "x"}', '{"kit": 1, "fingerprint": {}, "items": 3}']
)
def test_damaged_results_are_named_there(kit: Path, text: str) -> None:
    (kit / "results.json").write_text(text)
    done = run_there(kit)
    assert done.returncode == 2
    assert "move it away" in done.stderr
    assert "Traceback" not in done.stderr
    assert (kit / "results.json").read_text() == text


def test_a_kit_that_is_stopped_by_hand_says_so_and_goes_on(kit: Path) -> None:
    (kit / "results.json").unlink()
    words = [sys.executable, SCRIPT]
    run = subprocess.Popen(words, cwd=kit, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stderr is not None
    run.stderr.readline()  # the first chunk is under way
    os.killpg(run.pid, signal.SIGINT)
    rest = run.stderr.read()
    assert run.wait(60) == 130
    assert "run this again to go on" in rest
    assert "Traceback" not in rest
    assert run_there(kit).returncode == 0


def test_results_of_another_machine_are_not_mixed(kit: Path) -> None:
    results = json.loads((kit / "results.json").read_text())
    results["fingerprint"]["processor"] = "another"
    (kit / "results.json").write_text(json.dumps(results))
    done = run_there(kit)
    assert done.returncode == 2
    assert "another kit, machine or runtime" in done.stderr


def first(results: dict[str, Any]) -> dict[str, Any]:
    item: dict[str, Any] = results["items"][sorted(results["items"])[0]]
    return item


def damage(results: dict[str, Any], where: str) -> Any:
    """Results as somebody careless, or somebody with other aims, could have written them."""
    if where == "nan":
        first(results)["wall_ns"][0] = float("nan")
    elif where == "negative":
        first(results)["cpu_ns"][0] = -5
    elif where == "text":
        first(results)["wall_ns"] = "fast"
    elif where == "huge":
        first(results)["runs"] = 10**30
    elif where == "many":
        first(results)["wall_ns"] = first(results)["cpu_ns"] = [1000] * 1_000_000
    elif where == "true":
        first(results)["runs"] = True
    elif where == "kit":
        results["kit"] = "../../etc"
    elif where == "options":
        results["fingerprint"]["threads"] = 8
    elif where == "nested":
        results["fingerprint"]["processor"] = {"a": [1]}
    elif where == "escape":
        results["fingerprint"]["processor"] = "\x1b]0;title\x07"
    elif where == "list":
        return [results]
    elif where == "paths":
        results["items"] = {f"../../{name}": item for name, item in results["items"].items()}
    return results


WHERE = ["nan", "negative", "text", "huge", "many", "true", "kit", "options", "nested", "escape", "list", "paths"]


@pytest.mark.parametrize("where", WHERE)
def test_results_that_make_no_sense_are_one_error(kit: Path, tmp_path: Path, where: str) -> None:
    path = kit / "results.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()), where)))
    with pytest.raises(UserError):
        import_kit(kit, "table://board", out=tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_one_error(kit: Path, content: bytes) -> None:
    (kit / "results.json").write_bytes(content)
    with pytest.raises(UserError):
        import_kit(kit, "table://board")


def test_a_model_that_failed_there_is_named(kit: Path, tmp_path: Path) -> None:
    path = kit / "results.json"
    results = json.loads(path.read_text())
    labels = json.loads((kit / "kit.json").read_text())["labels"]
    bad = next(name for name, label in labels.items() if label.startswith("mbconv"))
    results["items"][bad] = {"error": "Fail: no such kernel"}
    path.write_text(json.dumps(results))
    with pytest.raises(UserError, match="no such kernel"):
        import_kit(kit, "table://board", out=tmp_path / "t.json")


def test_an_int8_kit_and_what_no_kit_can_do(tmp_path: Path) -> None:
    space = SPACE.restrict(expand=[2])
    folder = tmp_path / "kit"
    make_kit(space, folder, options=Options(precision="int8", batch=2), amount=Amount(2, 0), plan=FAST)
    done = run_there(folder)
    assert done.returncode == 0, done.stderr
    assert import_kit(folder, "table://board").fingerprint["precision"] == "int8"
    with pytest.raises(UserError, match="not empty"):
        make_kit(space, folder)
    with pytest.raises(UserError, match="a kit for 'torch-cpu'"):
        make_kit(space, tmp_path / "other", kind="torch-cpu")
