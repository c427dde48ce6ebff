"""Estimates, fine-tuning with a teacher, rank checks: what the commands around training do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import nas
from nas.fidelity import kendall
from nas.finetuning import deployed_network, find_network
from nas.recipes import load_recipe
from nas.runs import Run
from search_spaces import UserError
from supernets import ImageData, Interrupted, evaluate
from tests.nas.test_cli import nas as command
from tests.nas.test_cli import refused

DATA = "fake:28x1x4"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return nas.load_data(DATA, seed=0)


def new_supernet(data: ImageData) -> nas.Supernet:
    space = nas.space("small-mobilenet", width=0.25, image=28, resolution=[8, 12], channels=1, classes=data.classes)
    return nas.Supernet(space, seed=0)


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    nas.train(new_supernet(data), data, out=folder, recipe=load_recipe("sandwich", epochs=2.0), seed=0)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    shutil.copytree(trained, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_a_run_keeps_its_whole_recipe_and_a_log(run: Run) -> None:
    assert run.settings["recipe"] == load_recipe("sandwich", epochs=2.0).to_dict()
    assert run.file("training/log.csv").read_text().startswith("step,epoch,phase,lr,loss")
    assert not run.file("training/checkpoint.good.safetensors").exists()


def test_a_run_of_an_older_version_opens_and_goes_on(run: Run, data: ImageData) -> None:
    value = json.loads(run.file("run.json").read_text())
    for name in ("ema", "precision", "accumulate", "sample", "validate_every"):
        del value["recipe"][name]
    run.file("run.json").write_text(json.dumps(value))
    assert Run.open(run.path).settings == run.settings
    nas.train(new_supernet(data), data, out=run.path, recipe=load_recipe("sandwich", epochs=2.0), seed=0)
    with pytest.raises(UserError, match=r"its recipe differs \(name was sandwich, now attentive\)"):
        nas.train(new_supernet(data), data, out=run.path, recipe=load_recipe("attentive", epochs=2.0), seed=0)


def test_nothing_is_made_for_training_that_cannot_begin(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batches of 4096"):
        nas.train(new_supernet(data), data, out=tmp_path / "run", recipe=load_recipe("sandwich", batch=4096))
    with pytest.raises(UserError, match="1 training steps for 7 phases"):
        nas.train(new_supernet(data), data, out=tmp_path / "run", recipe=load_recipe("quick", epochs=0.01))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_the_phases_and_writes_nothing(tmp_path: Path) -> None:
    options = ["train-supernet", "--data", DATA, "--width", 0.25, "--out", "run", "--epochs", 1, "--dry-run"]
    shown = command(*options, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "expand 2/2" in shown.stdout
    found = json.loads(command(*options, "--recipe", "sandwich", "--json", "--quiet", cwd=tmp_path).stdout)
    assert [(phase["name"], phase["steps"], phase["networks"]) for phase in found] == [("all", 10, 4)]
    assert not any(tmp_path.iterdir())


def test_fine_tuning_with_the_supernet_as_teacher(run: Run, data: ImageData) -> None:
    path = nas.finetune(run, arch="smallest", epochs=0.5, recipe="finetune-distilled")
    taught = path.read_bytes()
    assert nas.finetune(run, arch=run.space.smallest, epochs=0.5, recipe="finetune-distilled").read_bytes() == taught
    with pytest.raises(UserError, match=r"'finetune-distilled' for 0.5 epochs, not 'finetune' for 0.5"):
        nas.finetune(run, arch="smallest", epochs=0.5)
    path.unlink()
    assert nas.finetune(run, arch="smallest", epochs=0.5).read_bytes() != taught
    network = deployed_network(run, run.space.smallest, data)
    assert evaluate(network, data.val, run.space.smallest["resolution"])[0] > 0.3
    assert [p.name for p in path.parent.iterdir() if "checkpoint.safetensors" in p.name] == []


def test_networks_are_found_by_id(run: Run) -> None:
    scored = nas.score(run, samples=20, images=20)
    assert find_network(run, scored[-1].arch.id) == scored[-1].arch
    assert find_network(run, "largest") == run.space.largest
    with pytest.raises(UserError, match="one of the 20 networks scored"):
        find_network(run, "0000000000")


def test_a_rank_check_resumes_and_keeps_its_budget(run: Run) -> None:
    said: list[str] = []
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        nas.rank_check(run, networks=3, epochs=0.5, stop=lambda: next(asked) == 7)
    first = sorted(path.name for path in run.file("rank_check").glob("*.json"))
    assert len(first) < 3
    check = nas.rank_check(run, networks=3, epochs=0.5, progress=mock.Mock(say=said.append))
    assert len(check.pairs) == 3
    assert {f"{pair.id}.json" for pair in check.pairs} >= set(first)
    assert json.loads(run.file("rank_check.json").read_text())["tau"] == check.tau
    assert {path.suffix for path in run.file("rank_check").iterdir()} == {".json", ".csv"}
    shown = command("rank-check", run.path, "--k", 3, "--epochs", 0.5, "--quiet")
    assert shown.returncode == 0, shown.stderr
    assert "Kendall's tau" in shown.stdout
    refused(command("rank-check", run.path, "--k", 3, "--epochs", 1, "--quiet"), "epochs = 0.5, not 1", "same budget")
    refused(command("rank-check", run.path, "--k", 2, "--epochs", 1), "3 or more")


def test_kendalls_tau_and_its_interval() -> None:
    values = np.linspace(0, 1, 12)
    assert kendall(values, values) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert kendall(values, -values)[0] == pytest.approx(-1)
    assert kendall([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]) == (None, None, None)
    rng = np.random.default_rng(0)
    noisy = values + rng.normal(0, 0.2, 12)
    tau, low, high = kendall(values, noisy)
    assert low < tau < high
    wide = kendall(values[::3], noisy[::3])
    assert wide[2] - wide[1] > high - low  # fewer networks say less


def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    with mock.patch("nas.runs.write_json", side_effect=OSError(28, "No space left on device")):
        options = ("--data", DATA, "--width", 0.25, "--out", "run", "--epochs", 1)
        refused(command("train-supernet", *options, cwd=tmp_path), "the disk is full", "Free some space")
