"""Arrays of any shape as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import search_spaces
from nas.recipes import load_recipe
from search_spaces import Choice, UserError
from supernets import PhaseSettings, Recipe, Supernet, elastic, evaluate, load_data, shown_to, train
from supernets.arrays import array_statistics
from supernets.checks import check_training
from tests.own_networks import PlainCnn, SignalCnn


def signals(n: int = 240, length: int = 40, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy sines, one frequency per class, as int16."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    phase = rng.uniform(0, 6.28, (n, 1))
    wave = np.sin(np.arange(length) * (0.2 + 0.35 * y[:, None]) + phase) + rng.normal(0, 0.2, (n, length))
    return (wave * 1000).astype(np.int16)[:, None], y


@pytest.fixture
def path(tmp_path: Path) -> Path:
    x, y = signals()
    np.savez(tmp_path / "sines.npz", x=x, y=np.array(["a", "b", "c", "d"])[y])
    return tmp_path / "sines.npz"


def test_splits_shapes_and_normalisation(path: Path) -> None:
    data = load_data(f"npz:{path}", seed=1)
    assert (data.name, data.classes, data.class_names) == ("sines", 4, ("a", "b", "c", "d"))
    assert (data.channels, data.size, data.input_shape) == (1, 40, (1, 40))
    assert [len(part) for part in (data.train, data.val, data.test)] == [168, 24, 48]
    everything = data.train.batch(range(168), 40)
    assert everything.shape == (168, 1, 40)
    assert everything.dtype == torch.float32
    assert abs(float(everything.mean())) < 1e-5
    assert abs(float(everything.std()) - 1) < 1e-2
    again = load_data(f"npz:{path}", seed=1)
    assert again.hash == data.hash != load_data(f"npz:{path}", seed=2).hash
    assert torch.equal(again.train.batch([3, 1], 40), data.train.batch([3, 1], 40))
    with pytest.raises(UserError, match="not scaled"):
        data.train.batch([0], 32)


def test_given_splits_are_kept(tmp_path: Path) -> None:
    (x, y), (xt, yt) = signals(80), signals(20, seed=3)
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=xt, y_test=yt)
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert dict(data.held_out) == {"val": 0.1}
    assert np.array_equal(np.sort(data.test.labels.numpy()), np.sort(yt))
    assert len(data.test) == 20


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 4, 4), (2, 3, 4, 4)])
def test_any_shape_has_statistics_per_channel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(5, 3, (40, *shape)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2)
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert len(data.mean) == (1 if len(shape) == 1 else shape[0])
    assert data.train.batch([0, 1], shape[-1]).shape == (2, *shape)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1) if x.ndim > 2 else None
    mean, std = array_statistics(x)  # in chunks
    assert np.allclose(mean, x.mean(axes, dtype=float))
    assert np.allclose(std, x.std(axes, dtype=float))


def test_arrays_of_another_size_are_refused_before_training(tmp_path: Path) -> None:
    """They are not scaled: what the space wants must be what they have, from the first phase to the last."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.random((90, 3, 32, 32), np.float32), y=np.arange(90) % 3)
    np.savez(tmp_path / "behind.npz", x=rng.random((90, 32, 32, 3), np.float32), y=np.arange(90) % 3)
    recipe = load_recipe("quick", epochs=4, batch=16)
    space = search_spaces.build("small-mobilenet", width=0.25, image=32)
    for file, advice in (("a.npz", "--resolution 32"), ("behind.npz", "channels first")):
        data = load_data(f"npz:{tmp_path / file}")
        with pytest.raises(UserError, match=advice):
            check_training(Supernet(space, 3, channels=data.channels), data, recipe)
    fits = Supernet(space.restrict(resolution=[32]), 3)
    check_training(fits, load_data(f"npz:{tmp_path / 'a.npz'}"), recipe)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 3))}, "has no array 'y'"),
        ({"x": np.zeros((4, 3)), "y": np.zeros(3, int)}, "x of shape"),
        ({"x": np.zeros((4, 3)), "y": np.zeros(4)}, "float64, for train"),
        ({"x": np.full((4, 3), np.nan), "y": np.zeros(4, int)}, "not all finite"),
        ({"x": np.array([["a"]] * 4), "y": np.zeros(4, int)}, "not all finite numbers"),
        ({"x": np.zeros((4, 3)), "y": np.zeros(4, int), "z": np.zeros(1)}, "has an array 'z'"),
        (
            {"x": np.zeros((4, 3)), "y": np.zeros(4, int), "x_val": np.zeros((4, 2)), "y_val": np.zeros(4, int)},
            r"shape \(2,\) for val",
        ),
        ({"x": np.array([None] * 4), "y": np.zeros(4, int)}, "cannot be read"),
        ({"x": np.zeros((4, 3)), "y": np.arange(4) % 2, "x_val": np.zeros((4, 3))}, "has only one of 'x_val' and 'y_val'"),
        ({"x": np.full((4, 3), 1e300), "y": np.arange(4) % 2}, "not all finite numbers in single precision"),
        ({"x": np.zeros((4, 3)), "y": np.zeros(4, int)}, "has 1 classes"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, "has 0 classes"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_data(f"npz:{tmp_path / 'a.npz'}")


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"text")
    with pytest.raises(UserError, match="cannot be read"):
        load_data(f"npz:{tmp_path / 'a.npz'}")
    with pytest.raises(UserError, match="does not exist"):
        load_data(f"npz:{tmp_path / 'b.npz'}")


def test_a_signal_network_learns(path: Path) -> None:
    data = load_data(f"npz:{path}")
    net = Supernet(elastic(SignalCnn, {"kernel": [3, 5], "widths": Choice((6, 8), 3)}), seed=0)
    recipe = Recipe(name="t", epochs=30, batch=32, phases={"full": PhaseSettings(weight=2, lr=0.1), "other": PhaseSettings()})
    log = train(net, data, recipe).log
    assert [row["phase"] for row in log] == ["full", "kernel", "widths"]
    assert net.space.input_shape == (1, 40)
    assert log[-1]["largest"] > 0.6 > 0.25
    assert evaluate(net.extract(net.space.largest), data.val, 40)[1] == 24


def test_networks_of_ones_own_get_contiguous_images_of_their_size() -> None:
    data = load_data("fake:28x1x4")
    space = elastic(PlainCnn, {"width": [4, 8]}, fixed={"kernel": 3, "depth": 1, "classes": 4}, input_shape=(1, 20, 20))
    batch = shown_to(data, space).train.batch([0, 1], 20)
    assert batch.stride() == (400, 400, 20, 1)
    assert shown_to(data, space).input_shape == (1, 20, 20)

    def flat(bias: bool) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 256, 4, bias=bias))

    shown = shown_to(data, elastic(flat, {"bias": [True]}, input_shape=(3, 16, 16)))
    assert shown.train.batch([0], 16).shape == (1, 3, 16, 16)


def test_arrays_that_the_networks_do_not_take(path: Path) -> None:
    space = elastic(SignalCnn, {"kernel": [3, 5]}, fixed={"widths": [4, 4]}, input_shape=(1, 32))
    with pytest.raises(UserError, match=r"shape \(1, 40\), the networks of 'SignalCnn' take \(1, 32\)"):
        shown_to(load_data(f"npz:{path}"), space)
