"""Estimates, fine-tuning with a teacher, rank checks: what the commands around training do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import nas
from nas.baselines import train_largest_alone
from nas.cli.training import _own_device
from nas.fidelity import kendall
from nas.finetuning import deployed_network, find_network
from nas.recipes import load_recipe
from nas.runs import Run
from search_spaces import UserError
from search_spaces.layers import Conv, GlobalPool, Linear
from search_spaces.progress import SILENT
from search_spaces.space import Position
from supernets import ImageData, Interrupted, Ranks, evaluate
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


def test_the_baseline_is_trained_where_the_run_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(supernet: nas.Supernet, *_: object, **__: object) -> None:
        raise RuntimeError(str(next(supernet.parameters()).device))

    monkeypatch.setattr("nas.baselines.train", look)
    with pytest.raises(RuntimeError, match=r"^meta$"):  # it stands for a GPU
        train_largest_alone(replace(run, torch_device="meta"), epochs=1.0, progress=SILENT)


def test_a_run_of_an_older_version_opens_and_goes_on(run: Run, data: ImageData) -> None:
    value = json.loads(run.file("run.json").read_text())
    for name in ("ema", "precision", "accumulate", "sample", "validate_every"):
        del value["recipe"][name]
    run.file("run.json").write_text(json.dumps(value))
    assert Run.open(run.path).settings == run.settings
    nas.train(new_supernet(data), data, out=run.path, recipe=load_recipe("sandwich", epochs=2.0), seed=0)
    with pytest.raises(UserError, match=r"its recipe differs \(name was sandwich, now attentive\)"):
        nas.train(new_supernet(data), data, out=run.path, recipe=load_recipe("attentive", epochs=2.0), seed=0)


def test_epochs_count_for_every_kind_of_recipe(data: ImageData, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("batch = 64\n[phases.full]\n[phases.other]\n")
    for recipe in ("progressive", load_recipe("progressive"), file, str(file)):
        phases = nas.estimate_training(new_supernet(data), data, recipe=recipe, epochs=8.0)
        assert sum(phase.epochs for phase in phases) == pytest.approx(8.0, rel=0.01)


def test_a_space_of_layers_of_ones_own_goes_all_the_way(tmp_path: Path) -> None:
    data = nas.load_data("fake:8x3x5", seed=0)

    def space(widths: list[int]) -> nas.SearchSpace:
        return nas.SearchSpace(
            {"width": widths, "kernel": [3, 5]},
            name="one-convolution",
            parameters={"classes": 5, "channels": 3},
            positions=[
                Position("first", ("width", "kernel"), lambda width, kernel: Conv(8, 3, width, kernel, 1, "relu")),
                Position("pool", ("width",), lambda width: GlobalPool(8, width)),
                Position("classifier", ("width",), lambda width: Linear(1, width, 5)),
            ],
            shrink=("kernel", "width"),
            traits={"norm_eps": 1e-5, "norm_momentum": 0.1},
        )

    own = space([8, 12])
    run = nas.train(nas.Supernet(own), data, out=tmp_path / "run", recipe="quick", epochs=0.5)
    assert len(nas.score(run, samples=20, images=50)) == own.count() == 4
    again = Run.open(run.path, space=space([8, 12]))
    assert again.supernet().space == own
    assert len(nas.score(again, samples=20, images=50)) == 4
    with pytest.raises(UserError, match="another space"):
        Run.open(run.path, space=space([8, 16]))
    with pytest.raises(UserError, match="no network behind it") as caught:
        Run.open(run.path).supernet()
    assert "nas.Run.open(RUN, space=...)" in caught.value.next_step


def test_a_run_goes_on_without_its_options_and_where_its_images_are_now(tmp_path: Path) -> None:
    generator, photos = np.random.default_rng(0), tmp_path / "photos"
    for index in range(240):
        path = photos / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (28, 28), np.uint8)).save(path)
    asked = ("--width", 0.25, "--resolution", "16,20", "--recipe", "quick", "--epochs", 7, "--seed", 3, "--no-augment")
    made = command("train-supernet", "--data", "folder:photos", "--out", "run", *asked, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "168 images to train, 24 to score, 48 to test, 2 classes" in made.stderr
    assert "training steps are few" in made.stderr
    before = Run.open(tmp_path / "run").settings
    assert before["data"]["source"] == f"folder:{photos}"
    for given in ((), ("--epochs", 7), ("--epochs", 7.0, "--recipe", "quick")):
        again = command("train-supernet", "--out", tmp_path / "run", *given)  # from another folder
        assert "is trained already" in again.stderr
    photos.rename(tmp_path / "moved")
    lost = command("score", tmp_path / "run", "--n", 20)
    refused(lost, "are not where they were")
    assert "nas train-supernet --out" in lost.stderr
    assert command("train-supernet", "--out", "run", "--data", "folder:moved", cwd=tmp_path).returncode == 0
    after = Run.open(tmp_path / "run").settings
    assert after == {**before, "data": {**before["data"], "source": f"folder:{tmp_path / 'moved'}"}}
    assert Run.open(tmp_path / "run").data().classes == 2
    (tmp_path / "moved" / "a" / "0.png").unlink()
    refused(command("train-supernet", "--out", tmp_path / "run"), "its data differs")
    refused(command("train-supernet", "--out", tmp_path / "new"), "is no run yet")


def test_a_gpu_of_ones_own_is_not_shared_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernets.checks.check_torch_device", lambda name: None)
    assert [_own_device("cuda", Ranks(rank, 2, rank)) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert _own_device("cuda:1", Ranks()) == "cuda:1"
    with pytest.raises(UserError, match="cuda:1 in 2 processes"):
        _own_device("cuda:1", Ranks(0, 2, 0))


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
    tau, low, high = kendall(values, values)
    assert (tau, high) == (pytest.approx(1), pytest.approx(1))
    assert 0 < low < 0.5  # a perfect order of twelve is no proof of one of all
    assert kendall(values[:3], values[:3])[1] == 0  # chance has this order once in six
    assert kendall(values, -values)[2] == pytest.approx(-low)
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
