"""Runs of networks of the user's own: the whole loop, what a run remembers, and what it refuses to run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import nas
from nas.own_models import find_model, read_choices
from nas.pages.contents import read_contents
from nas.pages.figure import figure, network_facts
from search_spaces import UserError
from search_spaces.layers import Conv, GlobalPool, Linear
from search_spaces.space import Position
from supernets import ElasticSupernet, fused
from tests.own_networks import Scaled, vit

MODEL = """
import torch
from torch import nn
from beside import WIDTH

class Net(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, 2, 1)
        self.body = nn.ModuleList(nn.Sequential(
            nn.Conv2d(WIDTH if i == 0 else width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        ) for i in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.body:
            x = block(x)
        return self.head(x.mean((2, 3)))

def build(width, depth):
    return Net(width, depth)
"""
CHOICES = "depth = [1, 2, 3]\nwidth = [2, 3, 4, 5, 6, 8, 10, 12]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file, its choices, and a trained run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "beside.py").write_text("WIDTH = 4\n")
    (folder / "model.py").write_text(MODEL)
    (folder / "choices.toml").write_text(CHOICES)
    given = read_choices(folder / "choices.toml")
    space = nas.elastic(find_model(f"{folder / 'model.py'}:build"), given.pop("choices"), **given)
    nas.train(nas.Supernet(space, seed=0), "fake:28x1x4", out=folder / "run", epochs=4, seed=0)
    return folder


def test_the_whole_loop_from_the_folder_alone(folder: Path) -> None:
    run = folder / "run"
    front = nas.search(run, samples=20, points=4, generations=5, predictor="ridge", seed=0)
    assert len(front)  # how many, the clock says
    opened = nas.Run.open(run)
    before = {name: tensor.clone() for name, tensor in opened.supernet().state_dict().items()}
    nas.finetune(opened, pick="best", epochs=1)
    assert all(tensor.equal(before[name]) for name, tensor in opened.supernet().state_dict().items())
    exports = nas.export(run)
    assert all(export.proven for export in exports)
    assert [export.id for export in exports if export.finetuned] == [front.pick("best").arch.id]
    for export in exports:
        onnx.checker.check_model(onnx.load(run / "exports" / export.file), full_check=True)
    verification = nas.verify(run)
    assert len(verification.networks) == len(front)
    contents = read_contents(opened)
    drawn = figure(contents)
    assert drawn is not None
    assert "scored" in {trace["meta"]["role"] for trace in drawn["data"]}
    for facts in (network_facts(contents, row) for row in contents.rows):
        assert [block["name"] for stage in facts["drawing"] for block in stage["blocks"] if block][:1] == ["stem"]
        assert sum(part["share"] for part in facts["times"]) == pytest.approx(1)
    table = nas.LatencyTable.load(run / "tables" / "onnxruntime-cpu.json")
    space = nas.Run.open(run).space
    assert set(table.entries) == {layer.key for layer in space.layers()}
    assert table.bind(space).estimate(space.largest) > 0
    assert nas.report(run).path.is_file()


def test_training_resumes_and_is_done_once(folder: Path) -> None:
    space = nas.elastic(find_model(f"{folder / 'model.py'}:build"), read_choices(folder / "choices.toml")["choices"])
    again = nas.Supernet(space, seed=9)
    nas.train(again, "fake:28x1x4", out=folder / "run", epochs=4, seed=0)
    stored = nas.Run.open(folder / "run").supernet()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), stored.parameters(), strict=True))


def test_a_model_file_that_changed_is_not_run(folder: Path) -> None:
    file = folder / "model.py"
    try:
        file.write_text(MODEL + "\nraise SystemError('run')\n")
        run = nas.Run.open(folder / "run")
        assert run.space.count() == 24  # the choices need no code
        with pytest.raises(UserError, match=r"model.py, whose networks .* has, is missing or was changed"):
            run.supernet()
    finally:
        file.write_text(MODEL)


def test_a_run_from_elsewhere_runs_nothing_until_the_model_is_given(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder / "run", moved)
    with pytest.raises(UserError, match="is not run unasked"):
        nas.Run.open(moved).supernet()
    given = read_choices(folder / "choices.toml")["choices"]
    space = nas.elastic(find_model(f"{folder / 'model.py'}:build"), given)
    assert nas.Run.open(moved, space=space).supernet().classes == 4
    with pytest.raises(UserError, match="another space"):
        nas.Run.open(moved, space=nas.elastic(find_model(f"{folder / 'model.py'}:build"), given | {"depth": [1, 2]}))
    # The command that trained it, with the model named by the user, makes it a run of this place.
    nas.train(nas.Supernet(space), "fake:28x1x4", out=moved, epochs=4, seed=0)
    assert nas.Run.open(moved).supernet().classes == 4


def test_a_model_file_inside_the_run_is_never_run(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "bundle"
    shutil.copytree(folder / "run", moved)
    shutil.copy(folder / "model.py", moved / "model.py")
    record = json.loads((moved / "model.json").read_text())
    record |= {"file": str(moved / "model.py"), "folder": str(moved)}
    (moved / "model.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is not run unasked"):
        nas.Run.open(moved).supernet()


def test_constructors_without_a_file_need_the_space_again(tmp_path: Path) -> None:
    def local(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))

    space = nas.elastic(local, {"width": [4, 8]})
    run = nas.train(nas.Supernet(space), "fake:28x1x4", out=tmp_path / "run", epochs=1)
    assert run.supernet().classes == 4  # the run at hand knows it
    with pytest.raises(UserError, match="does not remember where its networks come from"):
        nas.Run.open(tmp_path / "run").supernet()
    assert nas.Run.open(tmp_path / "run", space=space).supernet().classes == 4


def test_parameters_outside_of_blocks_are_no_obstacle_to_a_profile(tmp_path: Path) -> None:
    scaled = nas.elastic(Scaled, {"width": [4, 8], "depth": [1, 2]}, input_shape=(1, 28, 28))
    rules = {"*.in_proj_*": fused(3)}
    spaces = {
        "scaled": scaled,
        "vit": nas.elastic(vit, {"depth": [1, 2], "mlp_dim": [8, 16]}, input_shape=(3, 16, 16), rules=rules, block_level=2),
    }
    for name, space in spaces.items():
        assert [layer for layer in space.layers() if not layer.in_shape], "nothing runs between the blocks"
        table = nas.profile(space, device="simulated", out=tmp_path / f"{name}.json")
        assert set(table.entries) == {layer.key for layer in space.layers()}
        assert (table.estimate(space.sample(4)) > 0).all()
        assert table.breakdown(space.largest)["ms"].sum() == pytest.approx(table.estimate(space.largest))
        assert nas.LatencyTable.load(tmp_path / f"{name}.json").entries == table.entries
    run = nas.train(nas.Supernet(scaled, seed=0), "fake:28x1x4", out=tmp_path / "run", epochs=1, seed=0)
    assert len(nas.search(run, device="simulated", samples=4, points=2, generations=2, predictor="ridge", seed=0))


def layered(norm_eps: float = 1e-5) -> nas.SearchSpace:
    """A space of layers of one's own."""
    return nas.SearchSpace(
        {"width": [4, 8]},
        name="layered",
        parameters={"classes": 4, "channels": 1},
        positions=[
            Position("first", ("width",), lambda width: Conv(28, 1, width, 3, 2, "relu")),
            Position("pool", ("width",), lambda width: GlobalPool(14, width)),
            Position("classifier", ("width",), lambda width: Linear(1, width, 4)),
        ],
        shrink=("width",),
        unkeyed=("classes", "channels"),
        traits={"norm_eps": norm_eps, "norm_momentum": 0.1},
    )


def test_a_run_of_layers_of_ones_own_that_an_older_version_made_is_opened(tmp_path: Path) -> None:
    nas.train(nas.Supernet(layered(), seed=0), "fake:28x1x4", out=tmp_path / "run", epochs=1, seed=0)
    with pytest.raises(UserError, match="another space"):
        nas.Run.open(tmp_path / "run", space=layered(norm_eps=1e-3))
    file = tmp_path / "run" / "run.json"
    value = json.loads(file.read_text())
    for name in ("shrink", "unkeyed", "traits"):
        del value["space"][name]
    file.write_text(json.dumps(value))
    assert nas.Run.open(tmp_path / "run", space=layered()).supernet().classes == 4
    nas.train(nas.Supernet(layered(), seed=0), "fake:28x1x4", out=tmp_path / "run", epochs=1, seed=0)
    with pytest.raises(UserError, match="classes = 7 asked of space 'layered', which was built with classes = 4"):
        nas.Supernet(layered(), classes=7)


def test_weights_are_a_part_of_the_run(folder: Path, tmp_path: Path) -> None:
    build = find_model(f"{folder / 'model.py'}:build")
    torch.save(build(width=6, depth=2).state_dict(), tmp_path / "w.pt")
    space = nas.elastic(build, {"depth": [1, 2], "width": [4, 6]})
    run = nas.train(nas.Supernet(space), "fake:28x1x4", out=tmp_path / "run", epochs=1, weights=tmp_path / "w.pt")
    assert run.settings["weights"]["file"] == "w.pt"
    with pytest.raises(UserError, match="another run: its weights"):
        nas.train(nas.Supernet(space), "fake:28x1x4", out=tmp_path / "run", epochs=1)


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and error text of a command."""
    from nas.cli import main

    monkeypatch.setattr(sys, "argv", ["nas", *arguments])
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    return code, capsys.readouterr().err


def test_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = find_model(f"{folder / 'model.py'}:build")
    torch.save(build(width=12, depth=3).state_dict(), tmp_path / "w.pt")
    named = ["--model", f"{folder / 'model.py'}:build", "--choices", str(folder / "choices.toml"), "--data", "fake:28x1x4"]
    arguments = ["train-supernet", *named, "--epochs", "1", "--out", str(tmp_path / "run"), "--weights", str(tmp_path / "w.pt")]
    code, text = command(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, text
    assert "start from" in text
    assert nas.Run.open(tmp_path / "run").space.shrink == ("depth", "width")


@pytest.mark.parametrize(
    ("model", "choices", "message"),
    [
        ("model.py", CHOICES, "FILE.py:FUNCTION"),
        ("absent.py:build", CHOICES, "does not exist"),
        ("model.py:bild", CHOICES, "did you mean 'build'"),
        ("model.py:WIDTH", CHOICES, "is no function"),
        ("broken.py:build", CHOICES, "broken.py raised SyntaxError"),
        ("raises.py:build", CHOICES, "raises.py raised RuntimeError: no luck"),
        ("model.py:build", "depth = 3\n", "depth = 3"),
        ("model.py:build", "depth = []\n", "depth = []"),
        ("model.py:build", "depth = [1,\n", "choices.toml is damaged"),
        ("model.py:build", "", "a space without choices"),
        ("model.py:build", CHOICES + "[rules]\n'*' = 3\n", "rules.'*' = 3"),
        ("model.py:build", "depth = [1, 2]\n", "the constructor needs 'width'"),
        ("model.py:build", "width = [4, 8]\ndepth = [2, 1]\n", "module 'body.1.0' is in build(width=4, depth=2)"),
    ],
)
def test_bad_input_exits_with_two_and_names_it(
    folder: Path,
    tmp_path: Path,
    model: str,
    choices: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(folder / "model.py", tmp_path)
    shutil.copy(folder / "beside.py", tmp_path)
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "raises.py").write_text("raise RuntimeError('no luck')\n")
    (tmp_path / "choices.toml").write_text(choices)
    arguments = ["train-supernet", "--model", str(tmp_path / model), "--choices", str(tmp_path / "choices.toml")]
    arguments += ["--data", "fake:28x1x4", "--out", str(tmp_path / "run")]
    code, text = command(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2, text
    assert message in text
    assert not (tmp_path / "run").exists()


def test_choices_in_toml(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("a = [1, 2]\n[b]\noptions = [3, 5]\nlength = 4\n[fixed]\nc = 7\n")
    with file.open("a") as more:
        more.write('[rules]\n"*.qkv" = {fused = 3}\n"mix.*" = {fused = [2, 1], dim = 1}\n"head.*" = "last"\n')
    (tmp_path / "model.py").write_text("def last(large, shape):\n    return large[-shape[0]:]\n")
    model = f"{tmp_path / 'model.py'}:build"
    assert read_choices(file, model) == {
        "choices": {"a": [1, 2], "b": nas.Choice((3, 5), 4)},
        "fixed": {"c": 7},
        "rules": {
            "*.qkv": nas.fused(3),
            "mix.*": nas.fused((2, 1), dim=1),
            "head.*": find_model(f"{tmp_path / 'model.py'}:last"),
        },
    }


def test_a_model_file_of_a_package_imports_the_package(tmp_path: Path) -> None:
    """Relative imports work, and so they do in a fresh process that opens the run from elsewhere."""
    package = tmp_path / "zoo_of_mine" / "nets"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package.parent / "sizes.py").write_text("WIDTH = 4\n")
    (package / "factory.py").write_text(MODEL.replace("from beside", "from ..sizes"))
    (package / "beside.py").write_text("WIDTH = 4\n")
    (package / "script.py").write_text(MODEL)  # imports what lies beside it, as a script does
    assert find_model(f"{package / 'script.py'}:build").__module__.startswith("hwnas_own_model_")
    build = find_model(f"{package / 'factory.py'}:build")
    assert build.__module__ == "zoo_of_mine.nets.factory"
    assert str(tmp_path) not in sys.path
    space = nas.elastic(build, {"width": [4, 6], "depth": [1, 2]})
    nas.train(nas.Supernet(space), "fake:28x1x4", out=tmp_path / "run", epochs=1)
    code = f"import nas; print(nas.Run.open({str(tmp_path / 'run')!r}).supernet().classes)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.stdout == "4\n", done.stderr
    other = tmp_path / "elsewhere" / "zoo_of_mine" / "nets"
    shutil.copytree(package.parent, other.parent)
    with pytest.raises(UserError, match=r"zoo_of_mine.nets.factory, which .* is already"):
        find_model(f"{other / 'factory.py'}:build")
    (package / "factory.py").write_text((package / "factory.py").read_text() + "# changed\n")
    with pytest.raises(UserError, match="was changed since this process imported it"):
        find_model(f"{package / 'factory.py'}:build")


def test_rules_of_ones_own_are_found_again(tmp_path: Path) -> None:
    """In another process, too: what the constructor's file has is found by name, other functions must be given again."""
    rule = "def last(large, shape):\n    return large[-shape[0]:, -shape[1]:] if len(shape) == 2 else large[-shape[0]:]\n"
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    (tmp_path / "model.py").write_text(MODEL + rule)
    model = f"{tmp_path / 'model.py'}:build"
    (tmp_path / "choices.toml").write_text(
        f'width = {[*range(4, 24, 2)]}\ndepth = [1, 2]\n[rules]\n"head.*" = "last"\n"body.*.1.*" = {{fused = 2}}\n'
    )
    given = read_choices(tmp_path / "choices.toml", model)
    space = nas.elastic(find_model(model), given.pop("choices"), **given)
    supernet = nas.Supernet(space, seed=0)
    run = nas.train(supernet, "fake:28x1x4", out=tmp_path / "run", epochs=1, seed=0)
    again = nas.Run.open(tmp_path / "run").supernet()
    assert isinstance(again, ElasticSupernet)
    small = again.extract(again.space.smallest)
    assert torch.equal(small.head.weight, again.network.head.weight[:, -4:])
    assert torch.equal(small.body[0][1].weight, again.network.body[0][1].weight[[0, 1, 11, 12]])
    assert len(nas.score(run.path, samples=20, images=50, jobs=2, seed=0)) == 20
    assert nas.Run.open(tmp_path / "run", space=space).space.to_dict() == again.space.to_dict()

    def local(large: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return large[tuple(slice(n) for n in shape)]

    other = nas.elastic(find_model(model), {"width": [4, 6], "depth": [1, 2]}, rules={"head.*": local})
    nas.train(nas.Supernet(other), "fake:28x1x4", out=tmp_path / "other", epochs=1)
    with pytest.raises(UserError, match=r"rule of your own for 'head\.\*' .*local"):
        nas.Run.open(tmp_path / "other").supernet().extract(other.smallest)


@pytest.mark.shared_data
def test_spoken_digits(shared_data: Path, tmp_path: Path) -> None:
    """A 1-D network on real speech learns in a few epochs: one in ten is chance."""
    from tests.own_networks import SignalCnn

    with np.load(shared_data / "fsdd_speech8k.npz") as stored:
        audio, offset, label = stored["audio"], stored["offset"], stored["label"]
    chosen = range(0, len(label), 2)
    x = np.zeros((len(chosen), 1, 2000), np.int16)
    for row, index in zip(x, chosen, strict=True):
        part = audio[offset[index] : offset[index + 1]][::2][:2000]
        row[0, : len(part)] = part
    np.savez(tmp_path / "speech.npz", x=x, y=label[::2])
    choices = {"kernel": [5, 9], "widths": nas.Choice((8, 12, 16), 5)}
    space = nas.elastic(SignalCnn, choices, fixed={"classes": 10})
    run = nas.train(nas.Supernet(space, seed=0), f"npz:{tmp_path / 'speech.npz'}", out=tmp_path / "run", epochs=12)
    log = json.loads((run.path / "training" / "log.json").read_text())
    assert log["phases"][-1]["largest"] > 0.3
    assert run.space.macs(run.space.largest) > run.space.macs(run.space.smallest)
