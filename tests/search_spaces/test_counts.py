"""Counts of the published space, and counts of any space against the slow path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import search_spaces
from search_spaces import SearchSpace
from search_spaces.space import Archs

# Known answers for the Once-for-all MobileNetV3 space, 1000 classes: width, kernel, expand, depth, resolution, params, MACs.
GOLDEN = [
    (1.0, 7, 6, 4, 224, 7_664_760, 566.17),
    (1.0, 7, 6, 4, 128, 7_664_760, 188.25),
    (1.0, 5, 4, 3, 192, 4_551_792, 185.10),
    (1.0, 3, 3, 2, 224, 3_410_792, 121.28),
    (1.0, 3, 3, 2, 128, 3_410_792, 41.48),
    (1.2, 7, 6, 4, 224, 10_701_632, 843.10),
    (1.2, 5, 4, 3, 192, 6_245_312, 284.52),
    (1.2, 3, 3, 2, 224, 4_602_456, 193.08),
    (1.2, 3, 3, 2, 128, 4_602_456, 65.54),
]

SPACES = {
    "ofa": lambda: search_spaces.build("ofa-mobilenet-v3"),
    "ofa-1.2": lambda: search_spaces.build("ofa-mobilenet-v3", width=1.2, classes=10),
    "small": lambda: search_spaces.build("small-mobilenet", width=0.5, image=28, channels=1),
    "small-64": lambda: search_spaces.build("small-mobilenet", image=64),
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]()


@pytest.mark.parametrize(("width", "kernel", "expand", "depth", "resolution", "params", "macs"), GOLDEN)
def test_published_counts(
    width: float, kernel: int, expand: int, depth: int, resolution: int, params: int, macs: float
) -> None:
    space = search_spaces.build("ofa-mobilenet-v3", width=width)
    arch = space.architecture(resolution=resolution, depth=[depth] * 5, kernel=[kernel] * 20, expand=[expand] * 20)
    assert space.params(arch) == params
    assert space.macs(arch) / 1e6 == pytest.approx(macs, abs=0.005)


def test_published_size_of_the_space() -> None:
    assert search_spaces.build("ofa-mobilenet-v3", resolution=[224]).count() == 7371**5
    assert search_spaces.build("ofa-mobilenet-v3").count() == 25 * 7371**5


def test_gathers_equal_the_sum_over_layers(space: SearchSpace) -> None:
    archs = [*space.sample(300, seed=1), *space.sample(100, seed=2, per_gene=True), space.smallest, space.largest]
    lowered = [space.lower(arch) for arch in archs]
    assert space.macs(archs).tolist() == [sum(layer.macs for layer in layers) for layers in lowered]
    assert space.params(archs).tolist() == [sum(layer.params for layer in layers) for layers in lowered]
    assert space.weight_bytes(archs).tolist() == [sum(layer.weight_bytes for layer in layers) for layers in lowered]
    assert space.activation_bytes(archs).tolist() == [max(layer.activation_bytes for layer in layers) for layers in lowered]


def test_one_architecture_gives_a_number(space: SearchSpace) -> None:
    arch = space.sample(1, seed=3)[0]
    assert isinstance(space.macs(arch), int)
    assert space.macs(arch) == space.macs([arch])[0] == space.macs(space.to_array(arch))[0]


def test_layers_fit_together(space: SearchSpace) -> None:
    for arch in [*space.sample(50, seed=4), space.smallest, space.largest]:
        layers = space.lower(arch)
        assert layers[0].in_shape == (space.parameters["channels"], arch["resolution"], arch["resolution"])
        assert all(a.out_shape == b.in_shape for a, b in itertools.pairwise(layers))
        assert layers[-1].out_shape[0] == space.parameters["classes"]
        assert set(layers) <= set(space.layers())


def _tiny() -> SearchSpace:
    """180 networks: two stages vary in depth, the others are fixed."""
    space = search_spaces.build("small-mobilenet", resolution=[20, 32])
    fixed = {f"{c}[{i}]": [o] for c, o in (("kernel", 5), ("expand", 4)) for i in range(12)}
    fixed |= {"kernel[1]": [3, 5], "expand[1]": [2, 6], "kernel[3]": [3, 5], "depth[2]": [2], "depth[3]": [1]}
    return space.restrict(fixed)


def all_rows(space: SearchSpace) -> np.ndarray:
    rows = space.canonical(np.array(list(itertools.product(*[range(n) for n in space.lengths]))))
    return rows[space.unique(rows)]


def test_count_and_extremes_against_enumeration() -> None:
    space = _tiny()
    rows = all_rows(space)
    assert len(rows) == space.count()
    rng = np.random.default_rng(0)
    prices = {layer: float(rng.normal()) for layer in space.layers()}  # any sign: not just monotone costs
    for cost in (space.cost(prices.__getitem__), space.cost(lambda layer: layer.activation_bytes, peak=True)):
        values = cost(rows)
        for extreme, expected in ((cost.minimum, values.min()), (cost.maximum, values.max())):
            value, row = extreme(len(space.genes))
            assert value == pytest.approx(expected, abs=1e-9)
            assert cost(space.canonical(row[None, :]))[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", SPACES)
def test_extremes_of_large_spaces(name: str) -> None:  # elimination in a bad order would need terabytes
    space = SPACES[name]()
    cost = space.cost(lambda layer: layer.macs)
    assert cost.minimum(len(space.genes))[0] == space.macs(space.smallest)
    assert cost.maximum(len(space.genes))[0] == space.macs(space.largest)


def test_every_function_takes_the_same_inputs(space: SearchSpace) -> None:
    archs = space.sample(5, seed=0)
    forms: list[Archs] = [archs, space.to_array(archs)]
    for form in forms:
        assert space.encode(form).shape[0] == 5
        assert space.params(form).shape == (5,)
