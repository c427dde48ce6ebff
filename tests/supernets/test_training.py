"""Training: phases, resume, interruption, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import search_spaces
from search_spaces import UserError
from supernets import (
    ImageData,
    Interrupted,
    PhaseSettings,
    Recipe,
    Supernet,
    calibrated,
    elastic,
    evaluate,
    load_data,
    load_tensors,
    plan_phases,
    save_tensors,
    train,
)
from supernets.optimising import learning_rate
from supernets.teaching import Teacher

RECIPE = Recipe(
    name="test",
    epochs=2.0,
    batch=32,
    phases={
        "full": PhaseSettings(weight=2, lr=0.05),
        "resolution": PhaseSettings(),
        "kernel": PhaseSettings(),
        "depth": PhaseSettings(subnets=2, stepwise=True),
        "expand": PhaseSettings(subnets=2, stepwise=True, sort=True),
    },
)
RECIPES = {"frozen": RECIPE, "sandwich": replace(RECIPE, sandwich=True, one_schedule=True)}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("fake:28x1x4", seed=0)


def new_supernet(data: ImageData, resolution: tuple[int, ...] = (8, 12)) -> Supernet:
    given = {"channels": 1, "classes": data.classes, "resolution": resolution}
    return Supernet(search_spaces.build("small-mobilenet", width=0.25, image=28, **given), seed=0)


def weights(net: Supernet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def unbroken(data: ImageData) -> Callable[[str], tuple[dict[str, torch.Tensor], list[dict[str, Any]]]]:
    """By a recipe's name: the weights and the log of a training with seed 5 that nothing interrupted, made once."""

    @cache
    def trained(name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        net = new_supernet(data)
        log = train(net, data, RECIPES[name], seed=5).log
        return weights(net), log

    return trained


class StopAt:
    """Asked after every step; says stop at the given ones."""

    def __init__(self, *steps: int) -> None:
        self.calls, self.steps = 0, steps

    def __call__(self) -> bool:
        self.calls += 1
        return self.calls in self.steps


def test_phases_open_the_space_step_by_step() -> None:
    space = search_spaces.build("small-mobilenet")
    phases = plan_phases(RECIPE, space, steps=100)
    assert [p.name for p in phases] == [
        "full", "resolution", "kernel", "depth 1/2", "depth 2/2", "expand 1/2", "expand 2/2",
    ]  # fmt: skip
    assert phases[0].space.count() == 1
    assert phases[0].space.largest == space.largest
    counts = [p.space.count() for p in phases]
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)
    assert counts[-1] == space.count()
    assert [p.start for p in phases[1:]] == [p.stop for p in phases[:-1]]
    assert (phases[0].start, phases[-1].stop) == (0, 100)
    assert all(p.trained.count() == q.space.count() for p, q in zip(phases[1:], phases, strict=False))


@pytest.mark.parametrize("steps", [7, 8, 13, 1000])
def test_every_phase_gets_a_step(steps: int) -> None:
    phases = plan_phases(RECIPE, search_spaces.build("small-mobilenet"), steps=steps)
    assert all(p.stop > p.start for p in phases)
    assert sum(p.stop - p.start for p in phases) == steps


def test_choices_with_one_option_need_no_phase() -> None:
    space = search_spaces.build("small-mobilenet").restrict(resolution=[32], kernel=[5])
    assert [p.opens for p in plan_phases(RECIPE, space, steps=50)] == ["full", "depth", "depth", "expand", "expand"]


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 800, peak=0.1, warmup=0.1) for step in range(100, 800)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(0.1)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_run_goes_on_to_the_same_bits(data: ImageData, unbroken: Any, tmp_path: Path, name: str) -> None:
    recipe, (expected, log) = RECIPES[name], unbroken(name)
    path = tmp_path / "checkpoint.safetensors"
    for stop in (StopAt(3), StopAt(11), StopAt(20)):  # in the first phase, and in later ones
        with pytest.raises(Interrupted) as caught:
            train(new_supernet(data), data, recipe, checkpoint=path, seed=5, stop=stop)
        assert caught.value.path == path
    resumed = new_supernet(data)
    again = train(resumed, data, recipe, checkpoint=path, seed=5)
    assert same(expected, weights(resumed))
    assert again.log == log
    finished = new_supernet(data)
    train(finished, data, recipe, checkpoint=path, seed=5)  # nothing left to do
    assert same(expected, weights(finished))


def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(data: ImageData, unbroken: Any, tmp_path: Path) -> None:
    expected, _ = unbroken("frozen")
    path = tmp_path / "c.safetensors"

    def crash() -> bool:
        crash.calls += 1  # type: ignore[attr-defined]
        if crash.calls == 20:  # type: ignore[attr-defined]
            raise MemoryError
        return False

    crash.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(MemoryError):
        train(new_supernet(data), data, RECIPE, checkpoint=path, seed=5, stop=crash)
    resumed = new_supernet(data)
    train(resumed, data, RECIPE, checkpoint=path, seed=5)
    assert same(expected, weights(resumed))


def test_training_learns_and_does_not_touch_the_global_generator(data: ImageData) -> None:
    net = new_supernet(data, (16, 20))
    state = torch.get_rng_state()
    trained = train(net, data, replace(RECIPE, epochs=6.0), seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert trained.steps == 6 * (len(data.train) // 32)
    arch = net.space.largest
    value, images = evaluate(calibrated(net, arch, data), data.test, arch["resolution"])
    assert images == len(data.test)
    assert value > 0.6  # four classes: 0.25 by chance
    assert trained.log[-1]["largest"] > 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "another seed"),
        ({"recipe": replace(RECIPE, momentum=0.8)}, "another recipe: momentum was 0.9, now 0.8"),
        ({"data": "fake:28x1x4|1"}, "another data"),
    ],
)
def test_another_run_is_refused_and_nothing_is_lost(data: ImageData, tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(Interrupted):
        train(new_supernet(data), data, RECIPE, checkpoint=path, seed=5, stop=StopAt(2))
    before = path.read_bytes()
    other = load_data("fake:28x1x4", seed=1) if "data" in change else data
    with pytest.raises(UserError, match=message):
        train(new_supernet(data), other, change.get("recipe", RECIPE), checkpoint=path, seed=change.get("seed", 5))
    assert path.read_bytes() == before


def test_bad_matches_are_named(data: ImageData) -> None:
    small = search_spaces.build("small-mobilenet", width=0.25, image=28, channels=1)
    with pytest.raises(UserError, match="4 classes, the supernet 10"):
        train(Supernet(small), data, RECIPE)
    with pytest.raises(UserError, match="batches of 4096"):
        train(new_supernet(data), data, replace(RECIPE, batch=4096))
    with pytest.raises(UserError, match="training steps for 7 phases"):
        train(new_supernet(data), data, replace(RECIPE, epochs=0.1))
    hot = {name: replace(phase, lr=1e12, warmup=0.0) for name, phase in RECIPE.phases.items()}
    with pytest.raises(UserError, match="diverged at step"):
        train(new_supernet(data), data, replace(RECIPE, phases=hot))


def test_a_recipe_is_checked_however_it_was_made(data: ImageData) -> None:
    for wrong, message in (
        ({"optimiser": "adam"}, "recipe 'r'.*optimiser = 'adam'"),
        ({"precision": "bfloat16"}, "precision"),
        ({"phases": {"all": PhaseSettings()}, "distill": 1.0, "sandwich": False}, "nothing teaches"),
    ):
        net = new_supernet(data)
        before = weights(net)
        with pytest.raises(UserError, match=message):
            train(net, data, replace(RECIPE, name="r", **wrong))
        assert same(weights(net), before)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_teacher_normalises_by_what_it_sees(data: ImageData, mode: str) -> None:
    net = new_supernet(data, resolution=(12, 16))
    largest = net.space.largest
    teacher = Teacher(net.extract(largest), mode=mode, data=data, seed=3)
    for resolution in (12, 16, 12):
        images = data.val.batch(range(40), resolution)
        arch = net.space.architecture(**{**largest.to_dict(), "resolution": resolution})
        own = calibrated(net, arch, data, seed=3)
        for module in own.modules():  # whatever the mode, nothing is dropped out
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train(mode == "train")
        with torch.no_grad():
            wanted = own(images).softmax(1)
        assert torch.allclose(teacher.at(resolution)(images), wanted)
    kept = Teacher(calibrated(net, largest, data, seed=3))  # a network that is given keeps its statistics
    images = data.val.batch(range(40), 12)
    with torch.no_grad():
        assert torch.equal(kept.at(12)(images), calibrated(net, largest, data, seed=3)(images).softmax(1))


class TiedHeads(torch.nn.Module):
    """One weight under two names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, width, 3, bias=False)
        self.first, self.second = torch.nn.Linear(width, 4), torch.nn.Linear(width, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        return self.first(x.amax((2, 3))) + self.second(x.mean((2, 3)))


def test_tied_weights_survive_a_checkpoint(data: ImageData, tmp_path: Path) -> None:
    own, file = elastic(TiedHeads, {"width": [4, 6, 8]}, input_shape=(1, 28, 28)), tmp_path / "c.safetensors"
    recipe = Recipe(name="tied", epochs=1.0, batch=32, sandwich=True, phases={"all": PhaseSettings(lr=0.05)})
    unbroken, stopped, again = (Supernet(own, seed=seed) for seed in (0, 0, 1))
    train(unbroken, data, recipe)
    with pytest.raises(Interrupted):
        train(stopped, data, recipe, checkpoint=file, stop=StopAt(3))
    train(again, data, recipe, checkpoint=file)
    assert same(weights(unbroken), weights(again))


def test_grey_images_train_a_network_for_colour(data: ImageData) -> None:
    space = search_spaces.build("small-mobilenet", width=0.25, image=28, classes=4).restrict(resolution=[16])
    net = Supernet(space)
    train(net, data, replace(RECIPE, epochs=0.5))
    with pytest.raises(UserError, match="3 channels, the network 1"):
        load_data("fake:28x3x4").shown_as(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "no \\[phases"),
        ("epoch = 3\n[phases.full]", "unknown key 'epoch' \\(did you mean 'epochs'"),
        ("epochs = 'x'\n[phases.full]", "epochs is a float"),
        ("epochs = -1\n[phases.full]", "epochs is above 0"),
        ("batch = 1\n[phases.full]", "at least 2"),
        ("[phases.full]\nlr = true", "lr is a float"),
        ("[phases.full]\nsubnets = 0", "1 to 64"),
        ("phases = 3", "no \\[phases"),
        ("[phases", "TOML"),
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Recipe.read(path)
    assert "r.toml" in str(caught.value)


def test_tensor_files(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensors = {"a": torch.randn(3, 4)[:, :2], "n": torch.tensor(7)}
    save_tensors(path, tensors, "thing", 1, {"note": "x"})
    loaded, meta = load_tensors(path, "thing", 1, make="m")
    assert meta["note"] == "x"
    assert same(loaded, tensors)
    with pytest.raises(UserError, match="holds 'thing'"):
        load_tensors(path, "other", 1, make="m")
    with pytest.raises(UserError, match="does not exist"):
        load_tensors(tmp_path / "none", "thing", 1, make="m")
    good = path.read_bytes()
    for at in (len(good) - 2, len(good) // 2, 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(UserError):
            load_tensors(path, "thing", 1, make="m")
    path.write_bytes(good[:-5])
    with pytest.raises(UserError, match="damaged"):
        load_tensors(path, "thing", 1, make="m")
