"""Laws of architectures and rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

import search_spaces
from search_spaces import Architecture, Choice, SearchSpace, UserError, completed
from search_spaces.layers import Conv, GlobalPool, Linear
from search_spaces.space import Position


def own() -> SearchSpace:
    """A space of one's own with a network behind it, and with everything that its JSON has to say."""
    return SearchSpace(
        {"width": [8, 12], "kernel": Choice((3, 5), 2)},
        name="mine",
        parameters={"classes": 5, "channels": 3},
        positions=[
            Position("first", ("width", "kernel[0]"), lambda width, kernel: Conv(8, 3, width, kernel, 1, "relu")),
            Position("second", ("width", "kernel[1]"), lambda width, kernel: Conv(8, width, width, kernel, 1, "relu")),
            Position("pool", ("width",), lambda width: GlobalPool(8, width)),
            Position("classifier", ("width",), lambda width: Linear(1, width, 5)),
        ],
        shrink=("kernel", "width"),
        unkeyed=("classes", "channels"),
        traits={"norm_eps": 1e-5, "norm_momentum": 0.1, "kernel_maps": 0},
    )


@pytest.fixture(params=[*search_spaces.FAMILIES, "plain", "own"])
def space(request: pytest.FixtureRequest) -> SearchSpace:
    if request.param == "own":
        return own()
    if request.param == "plain":
        rules = (None, ("op_2", ("skip",)))
        return SearchSpace({"op_1": [0, 1, 2], "op_2": ["none", "skip"], "scale": Choice((0.5, 1.0), 2, rules)}, name="cells")
    return search_spaces.build(request.param)


def test_rows_and_architectures_are_the_same_thing(space: SearchSpace) -> None:
    archs = space.sample(200, seed=0)
    rows = space.to_array(archs)
    assert space.from_array(rows) == archs
    assert (space.canonical(rows) == rows).all()
    assert [space.architecture(**arch.to_dict()) for arch in archs] == archs
    assert [space.architecture(**json.loads(json.dumps(arch.to_dict()))).id for arch in archs] == [a.id for a in archs]


def test_equal_networks_have_equal_ids_and_others_do_not() -> None:
    space = search_spaces.build("ofa-mobilenet-v3")
    shallow = {"resolution": 160, "depth": [2] * 5}
    kernels = [3, 5, 7, 3] * 5
    a = space.architecture(**shallow, kernel=kernels, expand=6)
    b = space.architecture(**shallow, kernel=[3, 5, 3, 7] * 5, expand=[6, 6, 3, 4] * 5)
    assert a == b
    assert a.id == b.id
    assert hash(a) == hash(b)
    assert a["kernel"] == [3, 5, None, None] * 5
    assert space.architecture(**shallow, kernel=7, expand=6).id != a.id
    archs = space.sample(2000, seed=5)
    assert len({x.id for x in archs}) == len(set(archs)) == len(space.unique(space.to_array(archs)))


def test_ids_survive_restriction_and_class_count_but_not_width() -> None:
    space = search_spaces.build("ofa-mobilenet-v3")
    part = space.restrict(kernel=[3, 5], resolution=[160])
    arch = part.sample(1, seed=0)[0]
    assert space.architecture(**arch.to_dict()) == arch
    assert search_spaces.rebuild(space, classes=10).architecture(**arch.to_dict()).id == arch.id
    assert search_spaces.build("ofa-mobilenet-v3", width=1.2).architecture(**arch.to_dict()).id != arch.id


def test_the_values_come_back_as_given() -> None:
    space = search_spaces.build("ofa-mobilenet-v3")
    arch = space.architecture(resolution=224, depth=[4] * 5, kernel=[7] * 20, expand=[6] * 20)
    assert arch["resolution"] == 224
    assert arch["kernel"] == [7] * 20
    assert arch == space.largest
    arch["kernel"].append(1)  # a copy: the architecture does not change
    assert arch["kernel"] == [7] * 20
    with pytest.raises(KeyError, match="choices: resolution"):
        arch["width"]


def test_space_json_round_trip(space: SearchSpace) -> None:
    part = space.restrict({space.genes[0].name: [space.genes[0].options[-1]]})
    last = space.restrict({gene.name: [gene.options[-1]] for gene in space.genes})
    for one in (space, part, last):
        assert one.to_dict()["version"] == 1
        twin = search_spaces.from_dict(json.loads(json.dumps(one.to_dict())))
        assert twin == one
        assert twin.key == one.key
        assert (twin.shrink, twin.unkeyed, twin.traits) == (one.shrink, one.unkeyed, one.traits)
        assert twin.from_array(twin.sample_rows(20, np.random.default_rng(0))) == one.sample(20, seed=0)
        assert [g.options for g in twin.genes] == [g.options for g in one.genes]
        assert twin.count() == one.count()


def test_only_a_space_of_ones_own_writes_what_a_family_knows() -> None:
    later = {"shrink", "unkeyed", "traits"}
    plain = SearchSpace({"op": [0, 1]}, name="cells")
    for space in (plain, *map(search_spaces.build, search_spaces.FAMILIES)):
        assert not later & space.to_dict().keys()
    written = own().to_dict()
    assert later <= written.keys()
    before = {name: value for name, value in written.items() if name not in later}
    assert completed(before, written) == written  # of an older version: it says nothing of them
    assert completed({**before, "traits": {"norm_eps": 1.0}}, written) != written
    assert completed(plain.to_dict(), plain.to_dict()) == plain.to_dict()


@pytest.mark.parametrize("wrong", [{"shrink": "width"}, {"unkeyed": [1]}, {"traits": {"norm_eps": "small"}}, {"traits": []}])
def test_json_of_ones_own_space_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="a search space is damaged"):
        search_spaces.from_dict(own().to_dict() | wrong)


def test_only_families_are_built_with_other_parameters() -> None:
    space = own()
    assert search_spaces.rebuild(space, classes=5, channels=None) is space
    with pytest.raises(UserError, match=r"classes = 7 asked of space 'mine', .* with classes = 5.* Build it with classes = 7"):
        search_spaces.rebuild(space, classes=7)
    with pytest.raises(UserError, match=r"classes = 7, channels = 1 asked .* classes = 5, channels = 3"):
        search_spaces.rebuild(space.restrict(width=[8]), classes=7, channels=1)


def test_sampling_is_uniform_over_distinct_networks() -> None:
    space = search_spaces.build("small-mobilenet", resolution=[32]).restrict(
        {f"expand[{i}]": [4] for i in range(12)} | {f"depth[{s}]": [1] for s in (1, 2, 3)}
    )
    # depth 1, 2, 3 of the first stage: 2, 4, 8 kernels there, times 2 for each of the other stages
    assert space.count() == (2 + 4 + 8) * 2**3
    rows = space.sample_rows(20_000, np.random.default_rng(0))
    keys, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(keys) == space.count()
    expected = 20_000 / space.count()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < space.count() + 5 * np.sqrt(2 * space.count())
    per_gene = space.sample_rows(20_000, np.random.default_rng(0), per_gene=True)
    depth = per_gene[:, [g.name for g in space.genes].index("depth[0]")]
    assert np.allclose(np.bincount(depth) / 20_000, 1 / 3, atol=0.02)


def test_variation_stays_in_the_space_and_canonical(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    a, b = space.sample_rows(500, rng), space.sample_rows(500, rng)
    for rows in (space.mutate(a, rng), space.crossover(a, b, rng)):
        assert ((rows >= 0) & (rows < space.lengths)).all()
        assert (space.canonical(rows) == rows).all()
    assert (space.crossover(a, a, rng) == a).all()
    assert (space.mutate(a, rng, rate=0.0) == a).all()


def test_mutation_changes_about_one_gene_and_fills_new_blocks_at_random() -> None:
    space = search_spaces.build("ofa-mobilenet-v3")
    rng = np.random.default_rng(0)
    rows = space.to_array([space.smallest] * 4000)
    changed = (space.mutate(rows, rng) != rows).sum(axis=1)
    assert 0.3 < (changed > 0).mean() < 0.95
    deep = space.canonical(rows + 0)
    deep = space.mutate(deep, rng, rate=1.0)
    kernel = [g.name for g in space.genes].index("kernel[3]")
    depth = [g.name for g in space.genes].index("depth[0]")
    assert set(deep[deep[:, depth] == 2, kernel]) == {0, 1, 2}


def test_crossover_takes_block_genes_from_the_parent_that_has_the_block() -> None:
    space = search_spaces.build("ofa-mobilenet-v3")
    shallow = space.architecture(resolution=128, depth=2, kernel=3, expand=3)
    children = space.crossover(space.to_array([shallow] * 300), space.to_array([space.largest] * 300), np.random.default_rng(0))
    for child in space.from_array(children):
        for stage in range(5):
            assert set(child["kernel"][stage * 4 + 2 : stage * 4 + 4]) <= {7, None}


def test_encodings_tell_networks_apart_and_ignore_what_has_no_effect(space: SearchSpace) -> None:
    rows = space.sample_rows(1000, np.random.default_rng(1))
    rows = rows[space.unique(rows)]
    for ordinal in (False, True):
        features = space.encode(rows, ordinal=ordinal)
        assert features.shape == (len(rows), len(space.feature_names(ordinal=ordinal)))
        assert len(np.unique(features, axis=0)) == len(rows)
    active = space.active(rows)
    assert (space.encode(rows).sum(axis=1) == active.sum(axis=1)).all()
    named = dict(zip(space.feature_names(), space.encode(rows[:1])[0], strict=True))
    for gene, index, on in zip(space.genes, rows[0], active[0], strict=True):
        assert named[f"{gene.name}={gene.options[index]}"] == float(on)


@pytest.mark.parametrize("name", ["ofa-mobilenet-v3", "ofa-proxyless"])
def test_the_encoding_contains_that_of_once_for_all(name: str) -> None:
    """Resolution, then all kernels, then all expansions, zeros for skipped blocks: the depth is what is not zero."""
    space = search_spaces.build(name)
    archs = space.sample(50, seed=0)
    kept = [at for at, feature in enumerate(space.feature_names()) if not feature.startswith("depth")]
    ours = space.encode(archs)[:, kept]
    for arch, features in zip(archs, ours, strict=True):
        theirs = [float(arch["resolution"] == size) for size in range(128, 225, 4)]
        theirs += [float(kernel == k) for kernel in arch["kernel"] for k in (3, 5, 7)]
        theirs += [float(expand == e) for expand in arch["expand"] for e in (3, 4, 6)]
        assert features.tolist() == theirs


def test_restriction_by_choice_and_by_position(space: SearchSpace) -> None:
    for name, choice in space.choices.items():
        genes = [gene for gene in space.genes if gene.choice == name]
        shared = [value for value in choice.options if all(value in gene.options for gene in genes)]
        assert space.restrict(**{name: choice.options}) == space
        if not shared:
            continue
        part = space.restrict(**{name: shared[:1]})
        assert all(list(gene.options) == shared[:1] for gene in part.genes if gene.choice == name)
        assert [g.options for g in part.genes if g.choice != name] == [g.options for g in space.genes if g.choice != name]
        assert part.key == space.key
    gene = space.genes[0]
    part = space.restrict({gene.name: gene.options[:1]})
    assert [g.options for g in part.genes[1:]] == [g.options for g in space.genes[1:]]
    with pytest.raises(UserError, match="is not an option"):
        part.architecture(**space.largest.to_dict())


def test_restriction_is_a_subset(space: SearchSpace) -> None:
    gene = space.genes[0]
    part = space.restrict({gene.name: [gene.options[0]]})
    assert part.count() <= space.count()
    for arch in part.sample(20, seed=0):
        assert space.to_array(arch).shape == (1, len(space.genes))
        assert part.from_array(part.to_array(arch)) == [arch]


def test_numbers_of_numpy_are_options_like_any_others() -> None:
    plain = SearchSpace({"kernel": [3, 5, 7], "rate": [0.5, 1.0]}, name="own")
    space = SearchSpace({"kernel": np.array([3, 5, 7]), "rate": list(np.array([0.5, 1.0]))}, name="own")
    assert space.to_dict() == plain.to_dict()
    assert space.largest.id == plain.largest.id
    json.dumps(space.largest.to_dict())


def test_a_parameter_means_the_same_in_every_form() -> None:
    plain = search_spaces.build("ofa-mobilenet-v3", width=1.0, classes=10, resolution=[128])
    for parameters in (
        {"width": 1, "classes": 10.0, "resolution": 128},
        {"classes": np.int64(10), "resolution": np.array([128.0])},
    ):
        same = search_spaces.build("ofa-mobilenet-v3", **parameters)
        assert same == plain
        assert same.largest.id == plain.largest.id
        json.dumps(same.to_dict())


def test_choices_may_have_the_names_of_arguments() -> None:
    space = SearchSpace({"self": [1, 2], "positions": [3, 4]})
    arch = space.restrict(positions=[4]).architecture(self=1, positions=4)
    assert (arch["self"], arch["positions"]) == (1, 4)


def test_architectures_of_another_space_of_the_same_name_are_refused() -> None:
    here, there = SearchSpace({"a": [1, 2], "b": [1, 2]}), SearchSpace({"b": [1, 2], "a": [1, 2]})
    longer = SearchSpace({"a": Choice((1, 2), 2), "b": [1, 2]})
    for other in (there, longer):
        with pytest.raises(UserError, match="belongs to custom with"):
            here.to_array(other.sample(1))


def test_an_array_of_architectures_is_a_list_of_them(space: SearchSpace) -> None:
    archs = space.sample(3, seed=0)
    array = np.empty(3, dtype=object)
    array[:] = archs
    np.testing.assert_array_equal(space.rows(array), space.to_array(archs))
    np.testing.assert_array_equal(space.encode(array), space.encode(archs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.architecture(resolution=160, depth=3, kernel=3), "choice 'expand' was not given"),
        (lambda s: s.architecture(resolution=160, depth=3, kernel=3, expand=3, width=2), "unknown choice 'width'"),
        (lambda s: s.architecture(resolution=161, depth=3, kernel=3, expand=3), "resolution = 161 is not an option"),
        (lambda s: s.architecture(resolution=160, depth=[3] * 4, kernel=3, expand=3), "depth has 4 values"),
        (lambda s: s.architecture(resolution=160, depth=4, kernel=[None] * 20, expand=3), r"kernel\[0\] is None, but"),
        (lambda s: s.restrict(kernel=[9]), r"kernel\[0\] cannot be restricted to \[9\]"),
        (lambda s: s.restrict(kernel=3), r"kernel\[0\] cannot be restricted to 3, a int"),
        (lambda s: s.restrict(kernel="35"), "cannot be restricted to '35'"),
        (lambda s: s.restrict(kernal=[3]), "did you mean 'kernel'"),
        (lambda s: s.macs(np.zeros((3, 7), dtype=np.int64)), r"array of shape \(3, 7\)"),
        (lambda s: s.macs(np.zeros((3, 46))), r"type float64"),
        (lambda s: s.encode(np.full((3, 46), 2) + np.eye(3, 46, 1, dtype=int)), r"row 0 has 3 for depth\[0\]"),
        (lambda s: s.macs(np.full((3, 46), -1)), r"row 0 has -1 for resolution"),
        (
            lambda s: search_spaces.build("ofa-resnet50").architecture(resolution=224, depth=1, expand=0.2, width=1.0),
            r"depth\[0\] = 1",
        ),
        (lambda s: search_spaces.build("attentive-nas").restrict(width=[16]), r"width\[2\] cannot be restricted"),
        (lambda s: search_spaces.build("attentive-nas", resolution=[224, 192]), "resolutions ascend"),
        (lambda s: SearchSpace({"op": Choice((1, 2), 2, (None, ("no", (1,))))}), r"op\[1\] depends on 'no'"),
        (lambda s: SearchSpace({"op": Choice.each([(1, 2), ()])}), r"choice 'op\[1\]' has the options \[\]"),
        (lambda s: search_spaces.from_dict(s.to_dict() | {"version": 9}), "format version 9"),
        (lambda s: search_spaces.build("ofa-mobilenet-v2"), "did you mean 'ofa-mobilenet-v3'"),
        (lambda s: search_spaces.build("small-mobilenet", image=224), "28 to 64"),
        (lambda s: search_spaces.build("ofa-mobilenet-v3", width=-1), "width=-1"),
        (lambda s: search_spaces.build("ofa-mobilenet-v3", widht=1), "did you mean 'width'"),
        (lambda s: SearchSpace({}), "without choices"),
        (lambda s: SearchSpace({"op": []}), "at least one option"),
        (lambda s: SearchSpace({"op": "abc"}), "is 'abc', a str"),
        (lambda s: SearchSpace({"op": {1, 2}}), r"is \{1, 2\}, a set"),
        (lambda s: SearchSpace({"op": 3}), "is 3, a int"),
        (lambda s: SearchSpace({1: [1, 2]}), "a choice is named 1"),
        (lambda s: SearchSpace({"op": [1.0, float("nan")]}), "the option nan"),
        (lambda s: SearchSpace({"op": Choice((1, 2), 0)}), "has length 0"),
        (lambda s: SearchSpace({"op": Choice((1, 2), 3, (None,))}), "1 entries in active_if"),
        (lambda s: SearchSpace({"op": Choice((1, 2), 3, None, ((1,), (2,)))}), "2 entries in at"),
        (lambda s: SearchSpace({"d": [1, 2], "op": Choice((1, 2), None, (("d", (3,)),))}), r"where d is one of \[3\]"),
        (
            lambda s: SearchSpace({"a": Choice((1, 2), None, (("b", (1,)),)), "b": Choice((1, 2), None, (("a", (1,)),))}),
            "a <- b <- a",
        ),
        (lambda s: s.from_array(np.full((1, 46), -1)), r"row 0 has -1 for resolution"),
        (lambda s: s.from_array([[0, 1]]), r"array of shape \(1, 2\)"),
        (lambda s: s.to_array(["largest"]), "'largest' is a str"),
        (lambda s: s.sample(-1), "n=-1"),
        (lambda s: s.sample(2.5), "n=2.5"),
        (lambda s: s.sample(2, seed="a"), "seed='a'"),
        (lambda s: search_spaces.build("ofa-mobilenet-v3", width="1"), "width='1'"),
        (lambda s: search_spaces.build("ofa-mobilenet-v3", classes=10.5), "classes=10.5"),
        (lambda s: search_spaces.build("ofa-mobilenet-v3", resolution="224"), "resolution='224'"),
        (lambda s: SearchSpace({"op": ["bn", None]}), "the option None, a NoneType"),
        (lambda s: SearchSpace({"op": [(1, 2), (3, 4)]}), r"the option \(1, 2\), a tuple"),
        (lambda s: SearchSpace({"op": [1]}).macs(SearchSpace({"op": [1]}).sample(1)), "no network behind it"),
        (lambda s: s.to_array(Architecture("cells", (("op", 1),))), "belongs to cells"),
        (lambda s: search_spaces.from_dict({"name": "small-mobilenet"}), "a search space is damaged"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    space = search_spaces.build("ofa-mobilenet-v3")
    with pytest.raises(UserError, match=message) as caught:
        call(space)
    assert caught.value.allowed
    assert caught.value.next_step


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="width=nan"):
        search_spaces.build("small-mobilenet", width=float("nan"))
    with pytest.raises(UserError, match="seed=-1"):
        search_spaces.build("small-mobilenet").sample(2, seed=-1)
