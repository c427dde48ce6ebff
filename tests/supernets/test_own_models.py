"""Laws of bring-your-own-model: sharing, lowering, refusals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import Architecture, Choice, ElasticSpace, UserError, from_dict
from search_spaces.artifacts import value_hash
from supernets import ElasticSupernet, Supernet, elastic, export_onnx, fused, recalibrate
from tests.own_networks import Constants, ConvBlock, PlainCnn, SignalCnn, Tied, resnet, vit

SPACES: dict[str, Callable[[], ElasticSpace]] = {
    "cnn": lambda: elastic(PlainCnn, {"kernel": [3, 5], "depth": [2, 3, 4], "width": [8, 12]}, input_shape=(1, 20, 20)),
    "resolution": lambda: elastic(
        PlainCnn, {"resolution": [16, 20], "depth": [1, 2], "width": [4, 6]}, input_shape=(1, 20, 20), fixed={"kernel": 3}
    ),
    "signal": lambda: elastic(SignalCnn, {"widths": Choice((4, 6, 8), 3), "kernel": [3, 5]}, input_shape=(1, 40)),
    "resnet": lambda: elastic(
        resnet, {"d2": [1, 2], "d4": [1, 2, 3], "width": [4, 8]}, input_shape=(3, 32, 32), fixed={"d1": 1, "d3": 1}
    ),
    "vit": lambda: elastic(
        vit,
        {"depth": [1, 2, 3], "mlp_dim": [8, 16, 32], "hidden": [8, 16]},
        input_shape=(3, 16, 16),
        rules={"*.in_proj_*": fused(3)},
        block_level=2,
    ),
    "constants": lambda: elastic(Constants, {"width": [4, 8], "depth": [1, 2, 3]}, input_shape=(8,)),
    "tied": lambda: elastic(Tied, {"width": [4, 6, 8]}, input_shape=(8,)),
}


@pytest.fixture(params=SPACES, scope="module")
def space(request: pytest.FixtureRequest) -> ElasticSpace:
    return SPACES[request.param]()


def some(space: ElasticSpace, n: int = 4) -> list[Architecture]:
    return [*space.sample(n, seed=2, per_gene=True), space.smallest, space.largest]


def batch(space: ElasticSpace, arch: Architecture, n: int = 3) -> torch.Tensor:
    return torch.randn(n, *space.shape_of(arch), generator=torch.Generator().manual_seed(1))


def randomised(space: ElasticSpace) -> Supernet:
    """A supernet with every tensor away from its initial value, so that a wrong slice shows."""
    net = Supernet(space, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim == 1 and "ramp" not in name and "calls" not in name:
                tensor.normal_(0.5, 0.5, generator=generator)
    return net


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_supernet_equals_the_extracted_network(space: ElasticSpace, training: bool, grad: bool) -> None:
    net = randomised(space).train(training)
    assert isinstance(net, ElasticSupernet)
    with torch.set_grad_enabled(grad):
        for arch in some(space):
            x, network = batch(space, arch), net.extract(arch)
            torch.manual_seed(0)  # dropout
            ours = net(x, arch)
            torch.manual_seed(0)
            assert torch.equal(ours, network(x))
            assert ours.shape == (3, net.classes)


def test_the_extracted_network_is_what_the_constructor_builds(space: ElasticSpace) -> None:
    net = randomised(space)
    for arch in some(space, 2):
        network, own = net.extract(arch), space.build(**space.arguments(arch))
        assert str(network) == str(own)
        own.load_state_dict(network.state_dict())
        x = batch(space, arch)
        assert torch.equal(network.eval()(x), own.eval()(x))
        assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in network.parameters()}


@pytest.mark.parametrize("training", [False, True])
def test_a_call_leaves_nothing_behind(space: ElasticSpace, training: bool) -> None:
    net = randomised(space).train(training)
    a, b = space.smallest, space.largest
    before = {name: t.clone() for name, t in net.state_dict().items()}
    torch.manual_seed(0)
    first = net(batch(space, a), a)
    net(batch(space, b), b)
    torch.manual_seed(0)
    assert torch.equal(first, net(batch(space, a), a))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_gradients_reach_the_used_part_and_no_other(space: ElasticSpace) -> None:
    net = randomised(space).train()
    touched: set[str] = set()
    for arch in [space.largest, space.smallest]:
        net.zero_grad(set_to_none=True)
        net(batch(space, arch), arch).square().sum().backward()
        small = dict(net.extract(arch).named_parameters())
        for name, parameter in net.network.named_parameters():
            assert (parameter.grad is not None) == (name in small), name
            if parameter.grad is not None:
                assert int((parameter.grad != 0).sum()) <= small[name].numel()
                touched.add(name)
    assert touched == {name for name, _ in net.network.named_parameters()}


def test_lowering_is_exact(space: ElasticSpace) -> None:
    net = Supernet(space)
    for arch in some(space, 6):
        network = net.extract(arch).eval()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(batch(space, arch, 1))
        assert space.macs(arch) == counter.get_total_flops() // 2
        assert space.params(arch) == sum(p.numel() for p in network.parameters())
        assert space.activation_bytes(arch) > 0
    rows = space.to_array(space.sample(50, seed=5))
    assert space.macs(rows).tolist() == [space.macs(arch) for arch in space.from_array(rows)]


def test_onnx_of_whole_networks_agrees_for_any_batch(space: ElasticSpace) -> None:
    net = randomised(space)
    if isinstance(net.network, Tied):
        pytest.skip("it counts its calls")
    for arch in (space.smallest, space.largest):
        network = net.extract(arch).eval()
        model = export_onnx(network, batch(space, arch, 2), metadata={"id": arch.id})
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for n in (1, 5):
            x = batch(space, arch, n)
            got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            with torch.no_grad():
                np.testing.assert_allclose(got, network(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_restricted_space_prices_like_the_whole_one() -> None:
    space = SPACES["cnn"]()
    part = space.restrict(depth=[2, 3], kernel=[3])
    assert isinstance(part, ElasticSpace)
    assert part.key == space.key
    for arch in part.sample(5, seed=1):
        assert part.macs(arch) == space.macs(arch)
    with pytest.raises(UserError, match="not an option"):
        Supernet(part)(torch.randn(1, 1, 20, 20), space.largest)


def test_json_keeps_everything_but_the_constructor(space: ElasticSpace) -> None:
    part = space.restrict({space.genes[0].name: [space.genes[0].options[-1]]})
    for given in (space, part):
        again = from_dict(given.to_dict())
        assert again.key == given.key
        assert again.genes == given.genes
        assert [arch.id for arch in again.sample(5)] == [arch.id for arch in given.sample(5)]
        with pytest.raises(UserError, match="no network behind it"):
            again.macs(again.largest)


def test_the_same_seed_gives_the_users_own_initial_weights_and_keeps_the_random_state() -> None:
    space = SPACES["cnn"]()
    state = torch.get_rng_state()
    nets = [Supernet(space, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    own = PlainCnn(5, 4, 12)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), own.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(next(nets[0].parameters()), next(nets[2].parameters()))


def test_tied_weights_stay_tied() -> None:
    network = Supernet(SPACES["tied"]()).extract(SPACES["tied"]().smallest)
    assert network.first.weight is network.second.weight


def test_fused_tensors_are_cut_group_by_group() -> None:
    large = torch.arange(24.0).view(12, 2)
    part = fused(3)(large, (6, 1))
    assert part.tolist() == [[0, 1], [2, 3], [8, 9], [10, 11], [16, 17], [18, 19]]
    unequal = fused((2, 1), dim=1)
    assert unequal(torch.arange(6.0)[None], (1, 3)).tolist() == [[0, 1, 4]]
    assert unequal(large[:, :0], (12, 0)).shape == (12, 0)
    bias = torch.arange(6.0)
    assert unequal(bias, (3,)) is bias  # no such dimension: the prefix is cut before
    with pytest.raises(ValueError, match="6 and 4 along dimension 1 are not parts 2:1"):
        unequal(torch.zeros(1, 6), (1, 4))


class Branches(torch.nn.Module):
    """A convolution over two concatenated branches, as in SqueezeNet: the second has twice the channels."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(3, width, 1), torch.nn.Conv2d(3, 2 * width, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(3 * width)
        self.mix = torch.nn.Conv2d(3 * width, 8, kernel, padding=kernel // 2)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.one(x), self.two(x)], 1)
        logits: torch.Tensor = self.head(self.mix(self.norm(both)).mean((2, 3)))
        return logits


def test_concatenated_inputs_are_cut_part_by_part() -> None:
    """A channel meets the same filters in every network: without the other channels the largest network is the small one."""
    rules = {"mix.*": fused((1, 2), dim=1), "norm.*": fused((1, 2))}
    space = elastic(Branches, {"width": [2, 4], "kernel": [1, 3]}, rules=rules, input_shape=(3, 8, 8))
    net = Supernet(space, seed=0).eval()
    small = net.extract(space.smallest).eval()
    rows = [0, 1, 4, 5, 6, 7]
    assert torch.equal(small.mix.weight, net.network.mix.weight[:, rows, 1:2, 1:2])
    assert torch.equal(small.norm.weight, net.network.norm.weight[rows])
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(small(x), net(x, space.smallest))
    narrow = space.architecture(width=2, kernel=3)
    with torch.no_grad():
        for conv, kept in ((net.network.one, 2), (net.network.two, 4)):
            conv.weight[kept:], conv.bias[kept:] = 0, 0  # type: ignore[index]
    assert torch.allclose(net(x, narrow), net(x, space.largest), atol=1e-6)


@pytest.mark.parametrize("given", [(0,), ((),), ((2, 0),), ((1.5,),), (True,), (2, -1)])
def test_a_fused_rule_has_parts(given: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match="whole numbers from 1"):
        fused(given[0], dim=given[1] if len(given) > 1 else 0)


def test_a_rule_of_ones_own() -> None:
    def last_rows(large: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return large[-shape[0] :, : shape[1]] if len(shape) > 1 else large[-shape[0] :]

    space = elastic(Constants, {"width": [4, 8]}, fixed={"depth": 1}, rules={"layers.*": last_rows}, input_shape=(8,))
    net = Supernet(space)
    small = net.extract(space.smallest)
    assert torch.equal(small.layers[0].weight, net.network.layers[0].weight[-4:, :8])


def test_recalibration_knows_every_batch_normalisation() -> None:
    space = SPACES["signal"]()
    network = Supernet(space).extract(space.smallest)
    recalibrate(network, [torch.randn(16, 1, 40) + 3 for _ in range(2)])
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    assert len(norms) == 3
    assert all(float(norm.running_mean.abs().sum()) > 0 for norm in norms)


# ---- refusals ---------------------------------------------------------------------------------------------------


class Shifted(nn.Sequential):
    """Depth moves the head to another name."""

    def __init__(self, depth: int) -> None:
        super().__init__(*[nn.Linear(8, 8) for _ in range(depth)], nn.Linear(8, 3))


class OtherKind(nn.Sequential):
    def __init__(self, depth: int) -> None:
        super().__init__(*[ConvBlock(1, 1, 3, 1) for _ in range(depth)], nn.Flatten(), nn.Linear(64, 3))


class Conv(nn.Module):
    def __init__(self, kernel: int = 3, bias: bool = True, extra: bool = False, width: int = 4) -> None:
        super().__init__()
        if width == 5:
            raise ValueError("five is not supported")
        self.conv = nn.Conv2d(1, width, kernel, bias=bias)
        if extra:
            self.extra = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(
    ("build", "choices", "message"),
    [
        (Conv, {"width": [8, 4]}, r"'conv.weight' is \(8, 1, 3, 3\) in Conv\(width=8\), larger than \(4, 1, 3, 3\)"),
        (Conv, {"kernel": [2, 3]}, r"'conv.weight' has a kernel of 2 in Conv\(kernel=2\) and of 3"),
        (Conv, {"bias": [False, True]}, r"'conv.bias' is in Conv\(bias=True\) and missing in Conv\(bias=False\)"),
        (Conv, {"extra": [True, False]}, r"module 'extra' is in Conv\(extra=True\) and not in Conv\(extra=False\)"),
        (Conv, {"width": [5, 6]}, r"Conv\(width=5\) raised ValueError: five is not supported"),
        (Conv, {"widht": [4, 8]}, r"unknown argument of the constructor 'widht' \(did you mean 'width'"),
        (Conv, {}, "a space without choices"),
        (Conv, {"width": []}, "at least one option"),
        (Conv, {"width": 4}, "choice 'width' is 4"),
        (PlainCnn, {"width": [4, 8]}, "the constructor needs 'kernel'"),
        (OtherKind, {"depth": [1, 2]}, r"'2' is a Linear in OtherKind\(depth=1\) and a Flatten"),
        (Shifted, {"depth": [1, 2]}, r"'1' is the last layer of Shifted\(depth=1\) and a hidden layer of Shifted\(depth=2\)"),
        (lambda width: None, {"width": [1]}, "returned a NoneType"),
        (lambda width: nn.LazyLinear(width), {"width": [1, 2]}, "'weight' of .* has no shape before the first image"),
        ("text", {"width": [1]}, "build is 'text'"),
    ],
)
def test_what_does_not_nest_is_refused_by_name(build: Any, choices: dict[str, Any], message: str) -> None:
    shape = (8,) if build is Shifted else (1, 8, 8)
    with pytest.raises(UserError, match=message):
        elastic(build, choices, input_shape=shape)


def test_input_that_the_network_does_not_take() -> None:
    with pytest.raises(UserError, match=r"raised RuntimeError on input \(1, 3, 20, 20\)"):
        elastic(PlainCnn, {"width": [4, 8]}, fixed={"kernel": 3, "depth": 1}, input_shape=(3, 20, 20))
    with pytest.raises(UserError, match=r"gives \(1, 4, 20, 20\) for input"):
        elastic(lambda width: nn.Conv2d(1, width, 3, padding=1), {"width": [2, 4]}, input_shape=(1, 20, 20))


class WithAuxiliaryHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.aux, self.head = nn.Linear(8, width), nn.Linear(width, 4), nn.Linear(width, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.drop(self.body(x))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_training_gives_logits_alone_too() -> None:
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"WithAuxiliaryHead\(width=8\) gives a tuple for input \(2, 8\) in training mode"):
        elastic(WithAuxiliaryHead, {"width": [4, 8]}, input_shape=(8,))
    assert torch.equal(state, torch.get_rng_state())


def test_without_an_input_shape_everything_works_but_counting() -> None:
    space = elastic(PlainCnn, {"width": [4, 8]}, fixed={"kernel": 3, "depth": 1})
    net = Supernet(space)
    assert net(torch.randn(2, 1, 20, 20), space.smallest).shape == (2, 10)
    with pytest.raises(UserError, match="input_shape"):
        space.macs(space.largest)
    net.bind((1, 20, 20))
    assert net.classes == 10
    assert net.space.macs(net.space.largest) > 0
    assert net.space.largest == space.largest


def test_a_block_that_too_many_choices_change_is_refused_with_the_way_out() -> None:
    class Inside(nn.Module):
        def __init__(self, widths: list[int]) -> None:
            super().__init__()
            self.all = nn.Module()
            self.all.parts = nn.ModuleList(nn.Linear(8, width) for width in widths)
            self.all.forward = lambda x: torch.cat([part(x) for part in self.all.parts], 1)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.all(x)[:, :8])

    space = elastic(Inside, {"widths": Choice((8, 12, 16), 10)}, input_shape=(8,))
    with pytest.raises(UserError, match="block 'all' depends on 10 choices"):
        space.macs(space.largest)


def test_classes_that_the_networks_do_not_have() -> None:
    space = SPACES["constants"]()
    with pytest.raises(UserError, match=r"classes=4 .* have 3"):
        Supernet(space, 4)


class Acted(nn.Module):
    """An activation by name, held as a function."""

    def __init__(self, act: str, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.block = Function(act)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.conv(x)).mean((2, 3)))


class Function(nn.Module):
    def __init__(self, act: str) -> None:
        super().__init__()
        self.function = getattr(nn.functional, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def test_blocks_that_run_something_else_are_other_layers() -> None:
    space = elastic(Acted, {"act": ["relu", "gelu", "mish"], "width": [4]}, input_shape=(1, 8, 8))
    kinds = [
        next(layer.key for layer in space.lower(space.architecture(act=a, width=4)) if "Function" in layer.key)
        for a in ("relu", "gelu", "mish")
    ]
    assert len(set(kinds)) == 3


def test_costs_are_the_same_in_inference_mode() -> None:
    with torch.inference_mode():
        inside = SPACES["cnn"]()
        found = inside.macs(inside.largest)
    outside = SPACES["cnn"]()
    assert found == outside.macs(outside.largest) > 0


class Shortcut(nn.Module):
    """A residual block as people write it: nothing on the shortcut where shapes agree."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.Identity() if width == 4 else nn.Conv2d(4, width, 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.conv(x) + self.down(x)).mean((2, 3)))


def test_an_identity_may_stand_where_the_largest_network_has_weights() -> None:
    space = elastic(Shortcut, {"width": [4, 8]}, input_shape=(4, 8, 8))
    net = randomised(space)
    for arch in (space.smallest, space.largest):
        x = batch(space, arch)
        assert torch.equal(net(x, arch), net.extract(arch)(x))


class Chance(nn.Module):
    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(8, width)
        self.norm = nn.InstanceNorm1d(width, track_running_stats=True) if kind == "instance" else nn.Identity()
        if kind == "buffer":
            self.register_buffer("basis", torch.randn(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.linear(x))


def cut(large: torch.Tensor, shape: tuple[int, ...], by: int = 1) -> torch.Tensor:
    del by
    return large[tuple(slice(n) for n in shape)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fixed": {"kind": "buffer"}}, "buffer 'basis' is another one"),
        ({"fixed": {"kind": "instance"}}, "'norm' is a InstanceNorm1d that tracks"),
        ({"fixed": {"kind": "none"}, "rules": {"*.linaer.*": fused(2)}}, "unknown tensor of a rule"),
        ({"fixed": {"kind": nn.ReLU}}, "fixed argument 'kind' is <class"),
        ({"fixed": {"kind": "none", "outputs": 3}}, "fixed argument 'outputs'"),
    ],
)
def test_what_would_go_wrong_later_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        elastic(Chance, {"width": [4, 8]}, input_shape=(8,), **given)


def test_rules_that_are_partial_functions_have_a_name_of_their_own() -> None:
    made = [
        elastic(
            Chance,
            {"width": [4, 8]},
            input_shape=(8,),
            fixed={"kind": "none"},
            rules={"linear.weight": functools.partial(cut, by=by)},
        )
        for by in (1, 1, 2)
    ]
    first, again, other = (value_hash(space.to_dict()) for space in made)
    assert first == again != other
