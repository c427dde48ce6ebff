"""The conformance suite on every built-in family, and on spaces that break its laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import search_spaces
from nas.testing import check_export, check_lowering, check_rows, check_space, check_supernet
from search_spaces import Choice, SearchSpace, UserError
from search_spaces.layers import Conv, GlobalPool, Linear
from search_spaces.space import Position
from supernets import elastic
from tests.own_networks import PlainCnn

build = search_spaces.build

# Small enough to run in seconds; every kind of choice of the family keeps at least two options.
SMALL: dict[str, Callable[[], SearchSpace]] = {
    "ofa-mobilenet-v3": lambda: build("ofa-mobilenet-v3", width=0.5, classes=7, resolution=[32, 64]).restrict(depth=[2, 3]),
    "ofa-proxyless": lambda: build("ofa-proxyless", width=0.35, classes=7, channels=1, resolution=[32, 48]).restrict(
        depth=[2, 4]
    ),
    "ofa-resnet50": lambda: build("ofa-resnet50", classes=7, resolution=[32, 36]).restrict(
        {f"width[{i}]": [0.65, 0.8] for i in range(1, 6)} | {f"depth[{i}]": [0, 1] for i in range(1, 5)}, expand=[0.2, 0.25]
    ),
    "attentive-nas": lambda: build("attentive-nas", classes=7, resolution=[32, 64]).restrict(
        {"depth[1]": [3, 4], "depth[2]": [3, 4], "depth[3]": [3], "depth[4]": [3, 4], "depth[5]": [3]}
    ),
    "mobilenet-v3-large": lambda: build("mobilenet-v3-large", classes=7, resolution=[32, 64]),
    "mobilenet-v3-small": lambda: build("mobilenet-v3-small", classes=7, resolution=[32, 64]),
    "small-mobilenet": lambda: build("small-mobilenet", width=0.5, image=28),
}


def test_every_family_is_here() -> None:
    assert SMALL.keys() == search_spaces.FAMILIES.keys()


@pytest.mark.parametrize("name", search_spaces.FAMILIES)
def test_families_conform(name: str) -> None:
    check_space(SMALL[name](), samples=100)


def test_a_space_of_ones_own_conforms() -> None:
    check_rows(own(), samples=100)
    check_supernet(own())
    check_export(own())
    check_lowering(own(), samples=30)


def own(widths: tuple[int, ...] = (8, 12, 16), *, useless: bool = False) -> SearchSpace:
    """Two convolutions and a classifier; the second convolution can be left out."""
    depth = ("depth", (2,))
    return SearchSpace(
        {
            "depth": [1, 2],
            "width": Choice(widths),
            "kernel": Choice((3, 5), 2, (None, depth)),
            **({"useless": [1, 2]} if useless else {}),
        },
        name="own",
        parameters={"classes": 5, "channels": 3},
        unkeyed=("classes", "channels"),
        positions=[
            Position("first", ("width", "kernel[0]"), lambda width, kernel: Conv(8, 3, width, kernel, 1, "relu")),
            Position(
                "second",
                ("width", "kernel[1]", "depth"),
                lambda width, kernel, depth: Conv(8, width, width, kernel, 1, "relu", shortcut=True) if depth > 1 else None,
            ),
            Position("pool", ("width",), lambda width: GlobalPool(8, width)),
            Position("classifier", ("width",), lambda width: Linear(1, width, 5)),
        ],
        traits={"norm_eps": 1e-5, "norm_momentum": 0.1},
    )


def test_options_that_do_nothing_are_found() -> None:
    with pytest.raises(AssertionError, match="merge the options"):
        check_lowering(own(useless=True), samples=30)


def test_layers_that_do_not_fit_are_found() -> None:
    space = own()
    broken = SearchSpace(
        space.choices,
        name="own",
        parameters=space.parameters,
        positions=[*space.positions[:2], *space.positions[3:]],
        traits=space.traits,
    )
    with pytest.raises(AssertionError, match="does not fit"):
        check_lowering(broken, samples=10)


def test_plain_choices_keep_the_laws_of_rows() -> None:
    rules = (None, ("blocks", (2, 3)), ("blocks", (3,)))
    space = SearchSpace({"blocks": [1, 2, 3], "op": Choice(("a", "b", "c"), 3, rules), "scale": [0.5, 1.0]}, name="cells")
    check_rows(space)
    check_rows(space.restrict({"op[1]": ["b"]}, scale=[1.0]))


def test_networks_of_ones_own_keep_the_laws_that_need_no_layers() -> None:
    choices = {"kernel": [3, 5], "depth": [2, 3], "width": [4, 8]}
    space = elastic(PlainCnn, choices, input_shape=(1, 20, 20))
    check_rows(space)
    check_export(space)
    for check in (check_space, check_lowering, check_supernet):
        with pytest.raises(UserError, match="cannot see into"):
            check(space)
