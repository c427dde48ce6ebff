"""Counts of the published space, and counts of any space against the slow path."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

import search_spaces
from search_spaces import SearchSpace
from search_spaces.space import Archs

# Known answers for the published spaces, 1000 classes: space, parameters, choices, parameters, MACs in millions.
OFA_MOBILENET = [
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
OFA_PROXYLESS = [
    (1.0, 7, 6, 4, 224, 5_103_336, 606.59),
    (1.0, 3, 3, 2, 224, 2_500_632, 154.16),
    (1.0, 3, 3, 2, 128, 2_500_632, 51.20),
    (1.3, 7, 6, 4, 224, 7_942_056, 1004.91),
    (1.3, 3, 3, 2, 128, 3_718_832, 87.82),
]
OFA_RESNET = [
    (1.0, 0.35, [2, 2, 2, 2, 2], 48_105_992, 7491.6),
    (1.0, 0.25, [2, 1, 1, 1, 1], 24_179_016, 3892.1),
    (0.65, 0.2, [0, 0, 0, 0, 0], 6_539_280, 962.2),
]
# Of the published models of AttentiveNAS, MACs in millions as printed there.
ATTENTIVE_MACS = {"a0": 203, "a1": 279, "a2": 317, "a3": 357, "a4": 444, "a5": 491, "a6": 709}

SPACES = {
    **{name: functools.partial(search_spaces.build, name) for name in search_spaces.FAMILIES},
    "ofa-1.2": lambda: search_spaces.build("ofa-mobilenet-v3", width=1.2, classes=10),
    "small-28": lambda: search_spaces.build("small-mobilenet", width=0.5, image=28, channels=1),
    "small-64": lambda: search_spaces.build("small-mobilenet", image=64),
    "resnet-part": lambda: search_spaces.build("ofa-resnet50").restrict({"width[2]": [0.8], "depth[3]": [0, 2]}, expand=[0.2]),
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]()


@pytest.mark.parametrize(
    ("name", "width", "kernel", "expand", "depth", "resolution", "params", "macs"),
    [("ofa-mobilenet-v3", *row) for row in OFA_MOBILENET] + [("ofa-proxyless", *row) for row in OFA_PROXYLESS],
)
def test_published_counts_of_inverted_residuals(
    name: str, width: float, kernel: int, expand: int, depth: int, resolution: int, params: int, macs: float
) -> None:
    space = search_spaces.build(name, width=width)
    blocks = len(space.architecture(resolution=224, depth=4, kernel=7, expand=6)["kernel"])
    arch = space.architecture(resolution=resolution, depth=[depth] * 5, kernel=[kernel] * blocks, expand=[expand] * blocks)
    assert space.params(arch) == params
    assert space.macs(arch) / 1e6 == pytest.approx(macs, abs=0.005)


@pytest.mark.parametrize(("width", "expand", "depth", "params", "macs"), OFA_RESNET)
def test_published_counts_of_resnet(width: float, expand: float, depth: list[int], params: int, macs: float) -> None:
    space = search_spaces.build("ofa-resnet50")
    arch = space.architecture(resolution=224, depth=depth, expand=[expand] * 18, width=[width] * 6)
    assert space.params(arch) == params
    assert space.macs(arch) / 1e6 == pytest.approx(macs, abs=0.05)


@pytest.mark.parametrize(("size", "params", "macs"), [("large", 5_483_032, 216.59), ("small", 2_542_856, 56.51)])
def test_published_counts_of_mobilenet_v3(size: str, params: int, macs: float) -> None:
    space = search_spaces.build(f"mobilenet-v3-{size}")
    arch = space.published[f"mobilenet-v3-{size}"]
    assert arch == space.largest
    assert space.params(arch) == params
    assert space.macs(arch) / 1e6 == pytest.approx(macs, abs=0.005)


def test_published_macs_of_attentive_nas() -> None:
    space = search_spaces.build("attentive-nas")
    assert space.published.keys() == ATTENTIVE_MACS.keys()
    for name, macs in ATTENTIVE_MACS.items():
        # Printed in whole millions, so half of one either way.
        assert space.macs(space.published[name]) / 1e6 == pytest.approx(macs, abs=0.5), name
    assert space.restrict(resolution=[192]).published.keys() == {"a0"}


def test_published_sizes_of_the_spaces() -> None:
    build = search_spaces.build
    assert build("ofa-mobilenet-v3", resolution=[224]).count() == 7371**5
    assert build("ofa-mobilenet-v3").count() == 25 * 7371**5
    assert build("ofa-proxyless", resolution=[224]).count() == 7371**5 * 9
    stem, short, long = 2 * 2 * 3, 3 * (3**2 + 3**3 + 3**4), 3 * (3**4 + 3**5 + 3**6)
    assert build("ofa-resnet50", resolution=[224]).count() == stem * short**3 * long
    widths, depths, kernels, expands = 2**7 * 3 * 4, 2 * 3 * 4 * 4 * 6 * 6 * 2, 2**7, 3**4
    assert build("attentive-nas").count() == 4 * widths * depths * kernels * expands


def test_the_network_of_an_architecture_is_its_own(space: SearchSpace) -> None:  # no option does what another one does
    archs = set(space.sample(500, seed=5, per_gene=True))
    assert len({space.lower(arch) for arch in archs}) == len(archs)


def test_gathers_equal_the_sum_over_layers(space: SearchSpace) -> None:
    archs = [*space.sample(1200, seed=1), *space.sample(800, seed=2, per_gene=True), space.smallest, space.largest]
    known = {layer: (layer.macs, layer.params, layer.weight_bytes, layer.activation_bytes) for layer in space.layers()}
    counts = [[known[layer] for layer in space.lower(arch)] for arch in archs]
    assert space.macs(archs).tolist() == [sum(c[0] for c in found) for found in counts]
    assert space.params(archs).tolist() == [sum(c[1] for c in found) for found in counts]
    assert space.weight_bytes(archs).tolist() == [sum(c[2] for c in found) for found in counts]
    assert space.activation_bytes(archs).tolist() == [max(c[3] for c in found) for found in counts]


def test_columns_are_canonical_rows_on_their_side(space: SearchSpace) -> None:
    rows = np.random.default_rng(0).integers(space.lengths, size=(3000, len(space.genes)))  # more than one block
    assert (space.canonical(rows) == space.columns(rows).T).all()
    marked = space.columns(rows, mark=True).T
    assert ((marked == np.iinfo(marked.dtype).max) == ~space.active(rows)).all()
    encoded = space.encode(rows)
    by_hand = np.zeros_like(encoded)
    offsets = np.concatenate([[0], np.cumsum(space.lengths)[:-1]])
    for at, gene in np.argwhere(space.active(rows)):
        by_hand[at, offsets[gene] + rows[at, gene]] = 1
    assert (encoded == by_hand).all()
    ordinal = np.where(space.active(rows), (rows + 1) / space.lengths, 0)
    assert np.allclose(space.encode(rows, ordinal=True), ordinal)


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
