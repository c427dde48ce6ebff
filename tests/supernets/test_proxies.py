"""Zero-cost proxies against their definitions on networks small enough to work out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import search_spaces
from search_spaces import UserError
from supernets import Supernet
from supernets.proxies import PROXIES, proxy_scores

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Eight examples of five numbers in three classes."""
    rng = torch.Generator().manual_seed(1)
    return torch.randn(8, 5, generator=rng), torch.arange(8) % 3


def test_one_linear_layer_has_closed_forms(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    layer = nn.Linear(5, 3, bias=False)
    weight = layer.weight.detach()
    # The gradient of the cross-entropy by W is (softmax(W x) - onehot)^T x / B.
    error = torch.softmax(x @ weight.T, 1) - nn.functional.one_hot(labels, 3)
    gradient = error.T @ x / len(x)

    def score(name: str) -> float:
        return PROXIES[name](layer, x, labels, GENERATOR)

    assert score("plain") == pytest.approx(float((weight * gradient).sum()), rel=1e-5)
    assert score("snip") == pytest.approx(float((weight * gradient).abs().sum()), rel=1e-5)
    assert score("grad_norm") == pytest.approx(float(gradient.norm()), rel=1e-5)
    outputs = x @ weight.T
    assert score("fisher") == pytest.approx(float(0.5 * ((outputs * error / len(x)) ** 2).mean(0).sum()), rel=1e-5)
    assert score("synflow") == pytest.approx(np.log(float(weight.abs().sum().double())), rel=1e-6)  # last: all positive now


def test_grasp_is_the_hessian_of_the_loss(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    layer = nn.Linear(5, 3, bias=False)
    weight = layer.weight.detach().clone().requires_grad_(True)

    def loss(flat: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ flat.view(3, 5).T, labels)

    gradient = torch.autograd.functional.jacobian(loss, weight.flatten())
    hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    expected = -float(weight.detach().flatten() @ hessian @ gradient)
    assert PROXIES["grasp"](layer, x, labels, GENERATOR) == pytest.approx(expected, rel=1e-4)


def test_naswot_is_the_determinant_of_equal_codes(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    hidden = network[0](x)
    codes = [hidden > 0, network[2](hidden.relu()) > 0]
    equal = sum(((a[:, None] == a[None]).sum(-1) for a in codes), torch.zeros(8, 8)).numpy()  # units in the same state
    expected = np.linalg.slogdet(equal.astype(float))[1]
    assert PROXIES["naswot"](network, x, labels, GENERATOR) == pytest.approx(expected, rel=1e-9)


def test_jacob_cov_is_greatest_for_unrelated_derivatives() -> None:
    alike = PROXIES["jacob_cov"](nn.Linear(5, 3), torch.randn(4, 5), torch.zeros(4), GENERATOR)  # the same at every input
    values = np.array([1e-5] * 3 + [4 + 1e-5])
    assert alike == pytest.approx(-float((np.log(values) + 1 / values).sum()), rel=1e-3)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 3))
    assert PROXIES["jacob_cov"](network, torch.randn(4, 64), torch.zeros(4), GENERATOR) > alike


def test_zen_does_not_depend_on_the_scale_of_normalised_weights() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 7.0 * super().forward(x)

    def score(conv: type[nn.Conv2d]) -> float:
        network = nn.Sequential(conv(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-12), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        return PROXIES["zen"](network.train(), torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.Generator().manual_seed(3))

    # Normalisation takes a factor out of the features, and the logarithm of the deviation puts it back.
    assert score(Scaled) - score(nn.Conv2d) == pytest.approx(np.log(7.0), rel=1e-4)


def test_all_of_a_subnet_seeded_and_without_a_trace() -> None:
    space = search_spaces.build("small-mobilenet", width=0.25, image=28, channels=1).restrict(resolution=[16])
    supernet = Supernet(space, seed=0)
    network = supernet.extract(space.smallest)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = [(torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(n)), torch.arange(8)) for n in range(2)]
    scores = proxy_scores(network, batches, seed=0)
    assert set(scores) == set(PROXIES)
    assert all(np.isfinite(value) for value in scores.values())
    assert scores == proxy_scores(network, batches, seed=0)
    assert scores["snip"] != proxy_scores(network, batches, ["snip"], seed=1)["snip"]
    assert all((tensor == before[name]).all() for name, tensor in network.state_dict().items())
    with pytest.raises(UserError, match="unknown proxy"):
        proxy_scores(network, batches, ["snap"])
    with pytest.raises(UserError, match="activation"):
        proxy_scores(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), batches, ["naswot"])
