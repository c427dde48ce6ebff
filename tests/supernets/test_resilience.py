"""Training that is killed, diverges, runs out of disk or is spread over processes."""

from __future__ import annotations

import csv
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

import search_spaces
from search_spaces import UserError
from supernets import ImageData, Interrupted, PhaseSettings, Recipe, Supernet, estimate_training, load_data, train
from supernets.health import TrainingLog, collapsed
from supernets.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(
    name="test",
    epochs=1.0,
    batch=32,
    ema=0.9,
    clip_norm=5.0,
    phases={"full": PhaseSettings(), "other": PhaseSettings(lr=0.03), "expand": PhaseSettings(stepwise=True, sort=True)},
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("fake:28x1x4", seed=0)


def new_supernet() -> Supernet:
    space = search_spaces.build("small-mobilenet", width=0.25, image=28, resolution=[8, 12], channels=1, classes=4)
    return Supernet(space, seed=0)


def weights(net: Supernet) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stop_at(call: int) -> object:
    asked = iter(range(1, 10_000))
    return lambda: next(asked) == call


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# One process imports, its children train: a child has not used autograd's threads before the fork.
SETUP = """
import hashlib, json, os, signal, sys, time
from pathlib import Path
import search_spaces
from supernets import Supernet, Recipe, load_data, processes, train, ALONE
recipe = Recipe.from_dict(json.loads(sys.argv[1]), source="argument")
folder = Path(sys.argv[2])
data = load_data("fake:28x1x4", seed=0)
space = search_spaces.build("small-mobilenet", width=0.25, image=28, resolution=[8, 12], channels=1, classes=4)

def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def digest(net):
    found = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
"""

KILLED = """
import random
def unbroken():
    net = Supernet(space, seed=0)
    train(net, data, recipe, seed=5, checkpoint=folder / "unbroken.safetensors")
    (folder / "unbroken").write_text(digest(net))

def broken():
    net = Supernet(space, seed=0)
    note = lambda: os.write(done, b".") and False
    train(net, data, recipe, seed=5, checkpoint=folder / "c.safetensors", save_every_s=0.0, stop=note)
    (folder / "broken").write_text(digest(net))

def killed():
    broken()
    signal.pause()  # whoever kills it may be late

read, done = os.pipe()
assert ended(in_child(unbroken)) == 0
draw = random.Random(7)
for steps in (draw.randrange(2, 9) for _ in range(3)):
    pid = in_child(killed)
    for _ in range(steps):
        os.read(read, 1)
    time.sleep(draw.random() * 0.02)  # anywhere: in a step, while the file is written
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -9
os.set_blocking(read, False)
assert ended(in_child(broken)) == 0
print(json.dumps([(folder / name).read_text() for name in ("unbroken", "broken")]))
"""

SPREAD = """
import torch
if recipe.norm == "batch":  # every image is the same in one part and in two only without random draws
    data = data.plain()
    torch.nn.Dropout.forward = lambda self, x: x

def together(rank, accumulate):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3])
    with processes() as ranks:
        net = Supernet(space, seed=0)
        train(net, data, recipe, seed=5, ranks=ranks, checkpoint=folder / "c.safetensors")
    torch.save(net.state_dict(), folder / f"rank{rank}.pt")

pids = [in_child(lambda rank=rank: together(rank, 1)) for rank in range(2)]
assert [ended(pid) for pid in pids] == [0, 0]
"""


def run_script(code: str, recipe: Recipe, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code, json.dumps(recipe.to_dict()), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimiser="adamw", phases={name: replace(p, lr=0.003) for name, p in RECIPE.phases.items()})
    unbroken, broken = json.loads(run_script(KILLED, recipe, tmp_path))
    assert unbroken == broken
    steps = [int(row["step"]) for row in rows(tmp_path / "c.csv")]
    assert steps == sorted(set(steps))  # no row twice, although steps were made twice


def test_two_processes_are_one_with_the_batch_in_two_parts(data: ImageData, tmp_path: Path) -> None:
    # Two steps: float error grows tenfold and more with every further one (3e-4 after four).
    recipe = replace(RECIPE, epochs=0.1, ema=0.0, sandwich=True, phases={"all": PhaseSettings(lr=0.02)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_script(SPREAD, recipe, tmp_path, port)
    alone = new_supernet()
    train(alone, data, replace(recipe, accumulate=2), seed=5)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    before, moved = new_supernet().state_dict(), 0.0
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], tensor, atol=1e-5), name
        moved = max(moved, float((tensor - before[name]).abs().max()))
    assert moved > 0.02  # it did train
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["c.safetensors"]
    said: list[str] = []  # one process goes on from what two have saved, and says what is different
    train(alone, data, recipe, seed=5, checkpoint=tmp_path / "c.safetensors", progress=mock.Mock(say=said.append))
    assert said == ["the batch is in 1 parts now, it was in 2: normalisation sees 32 images"]


def test_two_processes_with_common_statistics_are_one_with_the_whole_batch(data: ImageData, tmp_path: Path) -> None:
    recipe = replace(
        RECIPE, norm="batch", epochs=0.05, ema=0.0, sandwich=True, phases={"all": PhaseSettings(lr=0.02)}
    )  # a step
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_script(SPREAD, recipe, tmp_path, port)
    alone, apart = new_supernet(), new_supernet()
    with mock.patch.object(torch.nn.Dropout, "forward", lambda _, x: x):
        train(alone, data.plain(), recipe, seed=5)
        train(apart, data.plain(), replace(recipe, norm="part", accumulate=2), seed=5)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    farthest = [max(float((first[n] - t).abs().max()) for n, t in net.state_dict().items()) for net in (alone, apart)]
    assert farthest[0] < 1e-5
    assert farthest[1] > 1e-3  # with statistics of its own in each part it is another training


class OneNan:
    """Gives a loss that is not a number, once."""

    def __init__(self, step: int) -> None:
        self.step, self.plain = step, Steps.gradients

    def __call__(self, steps: Steps, step: int, phase: object) -> Iterator[tuple[torch.Tensor, int]]:
        for loss, networks in self.plain(steps, step, phase):
            bad, self.step = step == self.step, -1 if step == self.step else self.step
            yield loss * float("nan") if bad else loss, networks

    def __get__(self, steps: Steps, _: type) -> object:
        return lambda step, phase: self(steps, step, phase)


def test_a_loss_that_is_not_a_number_turns_training_back_once(data: ImageData, tmp_path: Path) -> None:
    said: list[str] = []
    progress = mock.Mock(say=said.append)
    net = new_supernet()
    path = tmp_path / "a" / "c.safetensors"
    with mock.patch.object(Steps, "gradients", OneNan(17)):
        train(net, data, RECIPE, seed=5, checkpoint=path, progress=progress)
    (turn,) = [text for text in said if "diverged" in text]
    assert "at step 18" in turn
    assert "learning rates times 0.3" in turn
    log = rows(path.with_suffix(".csv"))
    (event,) = [row for row in log if row["event"]]
    assert int(event["step"]) < 18
    assert log[-1]["step"] == "21"
    assert not path.with_suffix(".good.safetensors").exists()
    # Stopped after it turned back, and resumed: the same bits.
    twin, path = new_supernet(), tmp_path / "b" / "c.safetensors"
    with mock.patch.object(Steps, "gradients", OneNan(17)), pytest.raises(Interrupted):
        train(twin, data, RECIPE, seed=5, checkpoint=path, stop=stop_at(19))
    train(twin, data, RECIPE, seed=5, checkpoint=path)
    assert same(weights(net), weights(twin))
    assert [row["step"] for row in rows(path.with_suffix(".csv"))] == [row["step"] for row in log]


def test_a_second_divergence_is_an_error(data: ImageData, tmp_path: Path) -> None:
    hot = replace(RECIPE, clip_norm=0.0, phases={name: replace(p, lr=1e12, warmup=0.0) for name, p in RECIPE.phases.items()})
    with pytest.raises(UserError, match="also with lower learning rates; the last good state is in"):
        train(new_supernet(), data, hot, checkpoint=tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="nothing was saved"):
        train(new_supernet(), data, hot)


def test_a_network_that_forgets_is_noticed(data: ImageData, tmp_path: Path) -> None:
    assert collapsed(0.11, 0.9, 10)
    assert not collapsed(0.3, 0.9, 10)
    assert not collapsed(0.1, 0.25, 10)  # it never knew much
    found = iter([0.9, 0.26, *[0.9] * 20])
    said: list[str] = []

    def validated(*_: object, **__: object) -> dict[str, float]:
        return dict.fromkeys(("largest", "smallest"), next(found))

    with mock.patch("supernets.training.validate", validated), mock.patch("supernets.training.JUDGED_AFTER", 1):
        train(new_supernet(), data, RECIPE, checkpoint=tmp_path / "c.safetensors", progress=mock.Mock(say=said.append))
    assert [text for text in said if "fell from 90.0% to 26.0%: back to step" in text]


def test_validations_come_at_their_cadence_and_cost_no_bits(data: ImageData, tmp_path: Path) -> None:
    often, never = new_supernet(), new_supernet()
    said: list[str] = []
    recipe = replace(RECIPE, validate_every=0.25)
    with mock.patch("supernets.training.VALIDATION_GAP", 1):
        path = tmp_path / "c.safetensors"
        train(often, data, recipe, checkpoint=path, log=tmp_path / "log.csv", progress=mock.Mock(say=said.append))
    train(never, data, replace(RECIPE, validate_every=0.0))
    assert same(weights(often), weights(never))
    found = [row for row in rows(tmp_path / "log.csv") if row["random_2"]]
    assert [int(row["step"]) for row in found] == [5, 10, 15, 20]
    for row in found:
        assert all(0 <= float(row[name]) <= 1 for name in ("largest", "smallest", "random_1", "random_2"))
        assert float(row["images_per_s"]) > 0
    assert sum("images/s" in text and "left" in text for text in said) == 4


def test_scalars_for_tensorboard(data: ImageData, tmp_path: Path) -> None:
    writer = mock.Mock()
    with mock.patch("supernets.health._summary_writer", return_value=writer):
        train(new_supernet(), data, replace(RECIPE, epochs=0.4), scalars=tmp_path / "tb")
    writer.assert_called_once_with(str(tmp_path / "tb"), purge_step=0)
    names = {call.args[0] for call in writer.return_value.add_scalar.call_args_list}
    assert {"loss", "lr", "largest", "smallest", "images_per_s"} <= names
    writer.return_value.close.assert_called_once()
    with (
        mock.patch.dict(sys.modules, {"torch.utils.tensorboard": None}),
        pytest.raises(UserError, match=r"hwnas\[tensorboard\]"),
    ):
        TrainingLog(None, tmp_path / "tb")


def test_a_full_disk_leaves_the_last_checkpoint(data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    unbroken, net = new_supernet(), new_supernet()
    train(unbroken, data, RECIPE, seed=5)
    with pytest.raises(Interrupted):
        train(net, data, RECIPE, seed=5, checkpoint=path, stop=stop_at(4))
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch("supernets.checkpoint.save_file", side_effect=full), pytest.raises(UserError, match="No space left"):
        train(new_supernet(), data, RECIPE, seed=5, checkpoint=path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))  # no half file is left
    train(net, data, RECIPE, seed=5, checkpoint=path)
    assert same(weights(unbroken), weights(net))


def test_an_estimate_measures_every_phase_and_changes_nothing(data: ImageData) -> None:
    net = new_supernet()
    before = weights(net)
    found = estimate_training(net, data, RECIPE)
    assert [p.name for p in found] == ["full", "resolution", "kernel", "depth", "expand 1/2", "expand 2/2"]
    assert sum(p.steps for p in found) == 21
    assert all(p.step_s > 0 and p.peak_bytes > 1e6 and p.seconds == p.steps * p.step_s for p in found)
    assert same(before, weights(net))
