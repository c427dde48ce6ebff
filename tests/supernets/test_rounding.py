"""Quantisation-aware training: the grid is that of INT8, the network is left as a float network, and training helps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import search_spaces
from supernets import Network, Supernet
from supernets.rounding import rounding, train_rounded


@pytest.fixture
def network() -> nn.Module:
    space = search_spaces.build("small-mobilenet", width=0.25, image=28, channels=1, classes=4)
    network = Supernet(space, seed=0).extract(space.smallest).eval()
    # One channel a hundred times larger than the rest: a grid for the whole tensor is coarse for the others.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[0] *= 30
    return network


def images(seed: int, count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 1, 16, 16, generator=generator) for _ in range(count)]


def test_weights_lie_on_the_grid_inside_and_are_float_again_outside(network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    (batch,) = images(0)
    with torch.no_grad():
        plain = network(batch)
        with rounding(network, [batch]):
            scale = before["blocks.0.conv.weight"].abs().flatten(1).amax(1) / 127
            steps = convolution.weight.flatten(1) / scale[:, None]
            assert torch.allclose(steps, steps.round(), atol=1e-3)
            assert not torch.equal(network(batch), plain)
        assert torch.equal(network(batch), plain)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_inputs_round_to_256_levels_with_zero_among_them() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False)).eval()
    nn.init.ones_(network[0].weight)
    x = torch.linspace(-1, 3, 5000)[:, None]
    with torch.no_grad(), rounding(network, [x]):
        levels = network(x).unique()
        assert len(levels) == 256
        assert 0.0 in levels
        assert network(torch.tensor([[9.0]])) <= 3.01  # what calibration has not seen is cut


def test_training_brings_the_rounded_network_back_to_the_float_one(network: nn.Module) -> None:
    losses = train_rounded(network, images(1), images(2, 1) * 60, steps=60, rate=3e-3)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert isinstance(network, Network)
    assert not network.training
    assert not any("parametrizations" in name for name, _ in network.named_parameters())


def test_no_steps_change_nothing(network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert train_rounded(network, images(1), [], steps=0) == []
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
