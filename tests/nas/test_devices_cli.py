"""Commands and verbs about devices, as a newcomer meets them in an empty folder."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import nas
from latency_tables.energy import energy_meter
from latency_tables.footprint import peak_memory
from latency_tables.onnx_graph import build_onnx
from nas.health import Check
from nas.tables import planned_profile
from search_spaces import UserError
from tests.nas.test_cli import nas as run
from tests.nas.test_cli import refused

SPACE = ("--space", "small-mobilenet", "--width", 0.25, "--resolution", "20,24,28")
QUIET = ("--quiet", "--json")


def space() -> nas.SearchSpace:
    return nas.space("small-mobilenet", width=0.25, resolution=[20, 24, 28])


def test_a_dry_run_measures_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    plan = json.loads(run("profile", *SPACE, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plan["layers"] == len(space().layers())
    assert plan["minutes"] > 0
    part = json.loads(run("profile", *SPACE, "--dry-run", "--measured-sizes", 2, "--json", cwd=tmp_path).stdout)
    assert part["layers"] < plan["layers"]
    assert part["layers"] + part["interpolated"] == plan["layers"]
    nas.profile(space(), device="simulated", out=tmp_path / "part.json", resolutions=2)
    again = run("profile", *SPACE, "--device", "simulated", "--dry-run", "--json", "--out", "part.json", cwd=tmp_path)
    assert json.loads(again.stdout)["layers"] == 0  # as a profile would
    (tmp_path / "part.json").unlink()
    assert list(tmp_path.iterdir()) == []
    assert "layers to measure" in run("profile", *SPACE, "--dry-run").stdout


def test_profile_says_its_errors_and_what_it_used(tmp_path: Path) -> None:
    made = run("profile", *SPACE, "--device", "simulated", "--out", "t.json", "--quiet", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    for word in ("held out", "Spearman", "in 10 %", "MACs and an offset", "the same networks again", "used: "):
        assert word in made.stdout
    facts = json.loads(run("profile", *SPACE, "--device", "simulated", "--out", "t.json", *QUIET, cwd=tmp_path).stdout)
    assert facts["quality"]["corrected"]["median"] < 0.01
    assert facts["warnings"] == []
    sizes = run("profile", *SPACE, "--device", "simulated", "--out", "s.json", "--measured-sizes", 2, "--quiet", cwd=tmp_path)
    assert "stand between measured sizes" in sizes.stdout


def test_too_few_networks_leave_a_good_table_alone(tmp_path: Path) -> None:
    nas.profile(space(), device="simulated", out=tmp_path / "t.json", networks=3, held_out=2)
    before = (tmp_path / "t.json").read_bytes()
    few: tuple[dict[str, int], ...] = ({"networks": 2}, {"networks": -1}, {"held_out": 1}, {"held_out": 0})
    for amount in few:
        with pytest.raises(UserError, match="at least"):
            nas.profile(space(), device="simulated", out=tmp_path / "t.json", force=True, **amount)
    with pytest.raises(UserError, match="networks=2"):
        planned_profile(space(), device="simulated", networks=2)
    assert (tmp_path / "t.json").read_bytes() == before
    # As a profile would, which asks for nothing more once there is a correction.
    plan = planned_profile(space(), device="simulated", out=tmp_path / "t.json")
    assert plan.complete
    assert (plan.layers, plan.networks, plan.minutes) == (0, 0, 0)
    assert nas.profile(space(), device="simulated", out=tmp_path / "t.json").quality.fitted_on == 3


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: nas.score(run, jobs=-1),
        lambda run: nas.search(run, jobs=-1, force=True),
        lambda run: nas.worker(run, jobs=0),
        lambda run: nas.worker(run, idle=float("nan")),
        lambda run: nas.worker(run, heartbeat=0),
        lambda run: nas.accuracy_card(run, tau=float("nan")),
        lambda run: nas.accuracy_card(run, tau=2),
        lambda run: nas.rank_check(run, epochs=1, images=0),
        lambda run: nas.rank_check(run, epochs=1, seed=-1),
        lambda run: nas.verify(run, seed=-1),
        lambda run: nas.verify(run, results="results.json"),
        lambda run: nas.compare(run, "x.onnx", seed=-1),
        lambda run: nas.make_kit(space(), out=run / "kit", seed=-1),
        lambda run: nas.measure("x.onnx", seed=-1),
        lambda run: nas.profile(space(), device="simulated", seed=-1),
    ],
)
def test_numbers_that_make_no_sense_are_told_to_programs_too(tmp_path: Path, ask: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match=r"=|without a kit"):  # the number, not that there is no run
        ask(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_device_is_fitted_to_a_few_networks(tmp_path: Path) -> None:
    source = nas.profile(space(), device="simulated", out=tmp_path / "source.json")
    arguments = ("--device", "simulated:precision=int8,batch=4", "--out", "new.json", "--like", "source.json", "--networks", 10)
    made = run("profile", *SPACE, *arguments, *QUIET, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["quality"]["fitted_on"] == 10
    assert facts["quality"]["corrected"]["median"] < 0.05
    table = nas.LatencyTable.load(tmp_path / "new.json")
    assert table.conditions["like"] == source.device


def test_a_kit_from_the_command_line(tmp_path: Path) -> None:
    made = run("kit", "make", *SPACE, "--measured-sizes", 2, "--out", "kit", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "python3 run_kit.py" in made.stdout
    refused(run("kit", "make", *SPACE, "--out", "kit", cwd=tmp_path), "not empty")
    refused(run("kit", "import", "kit", "--out", "t.json", cwd=tmp_path), "no results", "python3 run_kit.py")
    refused(run("kit", "import", "kit", cwd=tmp_path), "needs a run or --out")
    refused(run("kit", "import", "kit", "--out", "t.json", "--name", "../x", cwd=tmp_path), "name '../x'")
    done = subprocess.run([sys.executable, "run_kit.py"], cwd=tmp_path / "kit", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = run("kit", "import", "kit", "--out", "t.json", "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["device"] == "table://board"


def test_an_imported_table_can_be_searched_for_but_not_verified_on(finished: Path) -> None:
    opened = nas.Run.open(finished)
    frame = nas.profile(opened.space, device="simulated").to_frame()
    frame.to_csv(finished / "phone.csv", index=False)
    made = run("table-import", finished / "phone.csv", "--run", finished, "--name", "phone")
    assert made.returncode == 0, made.stderr
    assert f"nas search {finished} --device table://phone" in made.stdout
    arguments = ("--device", "table://phone", "--samples", 24, "--points", 3, "--predictor", "ridge", "--force")
    found = run("search", finished, *arguments, *QUIET)
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)) >= 1
    exported = run("export", finished)
    assert exported.stderr.rstrip().endswith(f"Next: nas kit make {finished} --exports --out FOLDER")
    refused(run("verify", finished, "--device", "table://phone"), "nothing here can reach table://phone")
    refused(run("search", finished, "--device", "table://tablet", "--force"), "does not exist", "table-import")
    refused(run("table-import", finished / "phone.csv", "--run", finished, "--name", "phone"), "there already")


def test_where_the_time_of_a_network_goes(finished: Path) -> None:
    shown = run("profile", finished, "--breakdown", "knee", "--quiet")
    assert shown.returncode == 0, shown.stderr
    assert "100.0%" in shown.stdout
    rows = json.loads(run("profile", finished, "--breakdown", "knee", *QUIET).stdout)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    refused(
        run("profile", *SPACE, "--device", "simulated", "--out", finished / "x.json", "--breakdown", "knee"), "without a run"
    )
    assert not (finished / "x.json").exists()  # it is said before anything is measured


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of memory")
def test_peak_memory_is_told_by_a_process_that_finds_what_is_imported_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "net.onnx", tmp_path / "seen"
    path.write_bytes(build_onnx(space().lower(space().smallest)).SerializeToString())
    (tmp_path / "sitecustomize.py").write_text(f"from pathlib import Path\nPath({str(seen)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert peak_memory("onnxruntime-cpu", path) is not None
    assert seen.exists()
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot run"):
        peak_memory("onnxruntime-cpu", path)
    monkeypatch.setattr("latency_tables.footprint.LONGEST_S", 0.01)
    assert peak_memory("onnxruntime-cpu", path) is None  # not known: what was timed is told all the same


def test_what_a_model_costs(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(build_onnx(space().lower(space().largest)).SerializeToString())
    cost = nas.measure(path, device="onnxruntime-cpu:batch=4")
    assert cost.file_bytes == path.stat().st_size
    assert cost.images_per_s == pytest.approx(4e3 / cost.time.median_ms)
    if sys.platform == "linux":
        assert cost.memory_bytes is not None
        assert cost.memory_bytes >= cost.file_bytes  # the weights are in there
    fixed = build_onnx(space().lower(space().largest), batch=4)  # such a file is run with four images on any device
    (tmp_path / "four.onnx").write_bytes(fixed.SerializeToString())
    four = nas.measure(tmp_path / "four.onnx")
    assert (four.batch, four.images_per_s) == (4, pytest.approx(4e3 / four.time.median_ms))
    shown = run("measure", path, "--quiet")
    assert "throughput" in shown.stdout
    assert json.loads(run("measure", path, "--device", "simulated", *QUIET).stdout).keys() >= {
        "time",
        "images_per_s",
        "file_bytes",
    }
    refused(run("measure", tmp_path / "none.onnx"), "does not exist")
    (tmp_path / "bad.onnx").write_bytes(b"x")
    refused(run("measure", tmp_path / "bad.onnx", "--quiet"), "not an ONNX file")


def test_energy_is_counted_where_there_is_a_counter_and_absent_elsewhere(tmp_path: Path) -> None:
    assert energy_meter(root=tmp_path) is None
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("energy_uj", "5000000"), ("max_energy_range_uj", "10000000"), ("name", "package-0")):
        (zone / name).write_text(text + "\n")
    meter = energy_meter(root=tmp_path)
    assert meter is not None
    assert (meter.name, meter.read()) == ("RAPL package-0", 5.0)
    assert meter.since(4.0) == pytest.approx(1.0)
    assert meter.since(9.0) == pytest.approx(6.0)  # the counter went round
    shutil.rmtree(zone)


def test_doctor_checks_and_advises() -> None:
    checks = nas.doctor()
    assert {check.name for check in checks} >= {"python", "packages", "onnxruntime", "quiet", "disk"}
    assert all(check.status in ("ok", "note", "broken") for check in checks)
    assert all(check.advice for check in checks if check.status != "ok")
    assert run("doctor").returncode == 0
    assert json.loads(run("doctor", "--json").stdout)


def test_doctor_looks_for_everything_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def packages() -> Check:
        return next(check for check in nas.doctor() if check.name == "packages")

    needed = [Requirement(text) for text in metadata.requires("hwnas") or []]
    needed = [requirement for requirement in needed if requirement.marker is None]
    assert len(needed) > 9
    assert [requirement.name for requirement in needed if requirement.name not in packages().found] == []
    real, gone = metadata.version, {"onnxruntime"}

    def version(name: str) -> str:
        if name in gone:
            raise metadata.PackageNotFoundError(name)
        return "1.27.0" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert packages().status == "ok"
    assert "onnxruntime-gpu 1.27.0" in packages().found
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    gone.add("safetensors")
    assert (packages().status, packages().found) == ("broken", "missing: onnxruntime, safetensors")
    assert Requirement(shlex.split(packages().advice)[-1]).name == "safetensors"


# ---- latency without tables -----------------------------------------------------------------------------------


def cells() -> nas.SearchSpace:
    return nas.SearchSpace({f"op{i}": [0, 1, 2, 3] for i in range(6)}, name="cells")


def device_ms(rows: np.ndarray, seed: int) -> np.ndarray:
    """A device's latencies: what an option costs varies from device to device around what it costs everywhere."""
    common = np.random.default_rng(0).uniform(0.2, 2.0, (6, 4))
    own = np.exp(0.3 * np.random.default_rng(seed).standard_normal((6, 4)))
    return 3.0 + (common * own)[np.arange(6), rows].sum(axis=1)


def test_a_new_device_is_learnt_from_ten_networks_and_other_devices() -> None:
    cell_space = cells()
    rows = cell_space.sample_rows(300, np.random.default_rng(1))
    sources = [lambda archs, seed=s: device_ms(cell_space.rows(archs), seed) for s in range(1, 9)]
    few = nas.FewShotLatency(cell_space, sources)
    chosen = few.choose(10, seed=0)
    assert len({arch.id for arch in chosen}) == 10
    measured = device_ms(cell_space.rows(chosen), 99)
    told = few.fit(chosen, measured).predict(rows)
    truth = device_ms(rows, 99)
    alone = nas.LatencyPredictor(cell_space, kind="ridge").fit(chosen, measured).predict(rows)
    assert np.abs(told.mean / truth - 1).mean() < 0.07
    assert np.abs(told.mean / truth - 1).mean() < np.abs(alone.mean / truth - 1).mean()
    assert (told.std > 0).all()
    table = [lambda archs: [float(device_ms(cell_space.rows([arch]), 1)[0]) for arch in archs]]  # of architectures alone
    assert (nas.FewShotLatency(cell_space, table).choose(4, seed=0)) == nas.FewShotLatency(cell_space, sources[:1]).choose(
        4, seed=0
    )
    known = nas.FewShotLatency(cell_space, sources[:1]).fit(chosen, 2 * device_ms(cell_space.rows(chosen), 1))
    assert known.predict(rows).mean == pytest.approx(2 * device_ms(rows, 1), rel=0.02)  # the same device at half the speed


@pytest.mark.parametrize(
    ("form", "latency"), [("ms", lambda rows: device_ms(rows, 1)), ("log", lambda rows: np.exp(device_ms(rows, 1)))]
)
def test_latency_is_learnt_in_the_form_that_it_has(form: str, latency: object) -> None:
    cell_space = cells()
    rows = cell_space.sample_rows(300, np.random.default_rng(0))
    values = latency(rows)  # type: ignore[operator]
    predictor = nas.LatencyPredictor(cell_space).fit(rows[:150], values[:150])
    assert predictor.form_ == form
    assert predictor.predict(rows[150:]).mean == pytest.approx(values[150:], rel=0.02)


@pytest.mark.parametrize("values", [[1.0, 2.0, -1.0, 2.0, 3.0], [1.0, float("nan"), 1.0, 2.0, 3.0], []])
def test_times_that_are_no_times_are_refused(values: list[float]) -> None:
    rows = cells().sample_rows(len(values), np.random.default_rng(0))
    with pytest.raises(nas.UserError):
        nas.LatencyPredictor(cells()).fit(rows, values)
    with pytest.raises(nas.UserError):
        nas.FewShotLatency(cells(), [lambda archs: np.ones(len(archs))]).fit(rows, values)
    with pytest.raises(nas.UserError, match="no known device"):
        nas.FewShotLatency(cells(), [])
    for unfitted in (nas.LatencyPredictor(cells()), nas.FewShotLatency(cells(), [lambda archs: np.ones(len(archs))])):
        with pytest.raises(nas.UserError, match="was not fitted"):
            unfitted.predict(rows)
