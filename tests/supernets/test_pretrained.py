"""Starting from a checkpoint of the largest network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import search_spaces
from search_spaces import UserError
from supernets import Supernet, elastic, start_from
from tests.own_networks import PlainCnn, resnet

CHOICES = {"kernel": [3, 5], "depth": [2, 3], "width": [4, 8]}


def supernet() -> Supernet:
    return Supernet(elastic(PlainCnn, CHOICES, input_shape=(1, 20, 20)), seed=0)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["state dict", "torch", "wrapped", "safetensors"])
def test_the_largest_network_is_the_checkpoint(tmp_path: Path, kind: str) -> None:
    own, net = PlainCnn(5, 3, 8), supernet()
    state = own.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind == "wrapped" else state, path)
    matched = start_from(net, state if kind == "state dict" else path)
    assert same(net.network.state_dict(), state)
    assert matched.values == sum(t.numel() for t in state.values())
    assert matched.kept == matched.unused == ()
    assert f"{len(state)} tensors" in str(matched)
    x = torch.randn(2, 1, 20, 20)
    assert torch.equal(net.eval()(x, net.space.largest), own.eval()(x))


def test_a_torchvision_checkpoint_with_another_classifier() -> None:
    choices = {"d1": [1, 2], "d2": [1, 2], "d3": [1], "d4": [1], "width": [4, 8]}
    net = Supernet(elastic(resnet, choices, input_shape=(3, 32, 32), fixed={"classes": 7}))
    state = resnet(2, 2, 1, 1, 8, classes=10).state_dict()
    with pytest.raises(UserError, match=r"'fc.weight' is \(10, 64\), not \(7, 64\)"):
        start_from(net, state)
    before = net.network.fc.weight.clone()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}  # as DataParallel saves it
    matched = start_from(net, wrapped, rename={"module.": ""}, skip=["fc.*"])
    assert matched.kept == matched.unused == ("fc.weight", "fc.bias")
    assert torch.equal(net.network.fc.weight, before)
    assert torch.equal(net.network.layer1[1].conv2.weight, state["layer1.1.conv2.weight"])


def test_our_own_checkpoints_and_built_in_spaces() -> None:
    space = search_spaces.build("small-mobilenet", width=0.5, image=28)
    first, second, third = (Supernet(space, seed=seed) for seed in (1, 2, 3))
    start_from(second, first.state_dict())
    assert same(second.state_dict(), first.state_dict())
    matched = start_from(third, first.extract(space.largest).state_dict())
    assert same(third.network.state_dict(), first.network.state_dict())
    assert matched.kept == ()


@pytest.mark.parametrize("name", ["ofa-resnet50", "attentive-nas"])
def test_weights_that_the_largest_network_lacks_stay(name: str) -> None:
    """Where smaller networks have a shortcut's convolution that the largest one has not, or one of another size."""
    space = search_spaces.build(name, classes=3, resolution=[32])
    first, second = Supernet(space, seed=1).eval(), Supernet(space, seed=2).eval()
    largest = first.extract(space.largest)
    assert first.network.state_dict().keys() >= largest.state_dict().keys()
    start_from(second, largest.state_dict())
    assert same(second.extract(space.largest).state_dict(), largest.state_dict())
    held = sum(tensor.numel() for tensor in largest.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)) == (
        held < sum(tensor.numel() for tensor in first.network.parameters())
    )


def test_functions_rename_too() -> None:
    net, state = supernet(), PlainCnn(5, 3, 8).state_dict()
    start_from(net, {name.upper(): tensor for name, tensor in state.items()}, rename=str.lower)
    assert same(net.network.state_dict(), state)


def test_nothing_changes_when_something_does_not_fit() -> None:
    net, state = supernet(), PlainCnn(5, 3, 8).state_dict()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["more"] = state.pop("head.bias")
    with pytest.raises(UserError, match=r"'head.bias' is missing; 'more' is not in the network"):
        start_from(net, state)
    with pytest.raises(UserError, match=r"and \d+ more"):
        start_from(net, PlainCnn(5, 3, 6).state_dict())
    assert same(net.state_dict(), before)


def test_counters_may_be_missing() -> None:
    state = {name: t for name, t in PlainCnn(5, 3, 8).state_dict().items() if not name.endswith("num_batches_tracked")}
    assert start_from(supernet(), state).kept == ()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    net = supernet()
    with pytest.raises(UserError, match="do not exist"):
        start_from(net, tmp_path / "absent.pt")
    cut = tmp_path / "cut.pt"
    torch.save(PlainCnn(5, 3, 8).state_dict(), cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    empty, broken, module = tmp_path / "empty.pt", tmp_path / "broken.safetensors", tmp_path / "module.pt"
    empty.write_bytes(b"")
    broken.write_bytes(b"nothing")
    torch.save(PlainCnn(5, 3, 8), module)  # a whole module: code, not weights
    for path in (cut, empty, broken, module):
        with pytest.raises(UserError, match="cannot be read as weights"):
            start_from(net, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        start_from(net, {"a": 1})  # type: ignore[dict-item]
