"""Laws of weight sharing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import search_spaces
from search_spaces import Architecture, SearchSpace, UserError
from supernets import Supernet, load_weights, recalibrate, sort_channels
from supernets.slicing import KernelMaps

SPACES = {
    "ofa": lambda: search_spaces.build("ofa-mobilenet-v3", width=0.5, classes=7, resolution=[32, 48, 64]),
    "small": lambda: search_spaces.build("small-mobilenet", width=0.5, image=28, channels=1),
    "small-48": lambda: search_spaces.build("small-mobilenet", width=0.5, image=48),
}


def randomise(module: nn.Module) -> None:
    """Every tensor away from its initial value, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point() and (".norm." in name or "bias" in name):
                tensor.normal_(0.5, 0.5, generator=generator)
            elif "kernels." in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)


@pytest.fixture(params=SPACES)
def supernet(request: pytest.FixtureRequest) -> Supernet:
    net = Supernet(SPACES[request.param](), seed=3)
    randomise(net)
    return net


def some(space: SearchSpace, n: int = 6) -> list[Architecture]:
    return [*space.sample(n, seed=2, per_gene=True), space.smallest, space.largest]


def images(supernet: Supernet, arch: Architecture, n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(arch["resolution"])
    x = torch.randn(n, supernet.channels, arch["resolution"], arch["resolution"], generator=generator)
    return x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [False, True])
def test_supernet_equals_the_extracted_network(supernet: Supernet, training: bool) -> None:
    supernet.train(training)
    for arch in some(supernet.space):
        network = supernet.extract(arch)
        x = images(supernet, arch)
        torch.manual_seed(0)  # dropout
        ours = supernet(x, arch)
        torch.manual_seed(0)
        assert torch.equal(ours, network(x))


def test_extraction_is_a_copy(supernet: Supernet) -> None:
    arch = supernet.space.largest
    network = supernet.extract(arch)
    shared = {p.data_ptr() for p in supernet.parameters()}
    assert not shared & {p.data_ptr() for p in network.parameters()}
    before = {name: t.clone() for name, t in supernet.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[name]) for name, t in supernet.state_dict().items())


def test_parameters_of_the_extracted_network_are_those_of_the_space(supernet: Supernet) -> None:
    for arch in some(supernet.space):
        network = supernet.extract(arch)
        assert sum(p.numel() for p in network.parameters()) == supernet.space.params(arch)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("ofa-mobilenet-v3", {"width": 1.0}, 7_678_880),
        ("ofa-mobilenet-v3", {"width": 1.2}, 10_715_752),
        ("ofa-proxyless", {"width": 1.0}, 5_118_162),
        ("ofa-proxyless", {"width": 1.3}, 7_956_882),
        ("ofa-resnet50", {}, 48_105_992),
    ],
)
def test_published_size_of_the_supernet(name: str, width: dict[str, float], expected: int) -> None:
    net = Supernet(search_spaces.build(name, resolution=[224], **width))
    assert sum(p.numel() for p in net.parameters()) == expected


def test_a_supernet_has_what_smaller_layers_need_beyond_the_largest_network() -> None:
    space = search_spaces.build("attentive-nas", resolution=[224])
    net = Supernet(space)
    # In the largest network the first block keeps 24 channels; from 16 to 24 or back its shortcut is a convolution.
    assert sum(p.numel() for p in net.parameters()) == space.params(space.largest) + 24 * 24
    assert len(net.kernels) == 0  # small kernels are the centres of large ones


@pytest.mark.parametrize("training", [False, True])
def test_a_call_leaves_nothing_behind(supernet: Supernet, training: bool) -> None:
    supernet.train(training)
    a, b = supernet.space.sample(2, seed=9)
    before = {name: t.clone() for name, t in supernet.state_dict().items()}
    torch.manual_seed(0)
    first = supernet(images(supernet, a), a)
    for _ in range(2):
        supernet(images(supernet, b), b)
    torch.manual_seed(0)
    assert torch.equal(first, supernet(images(supernet, a), a))
    assert all(torch.equal(t, before[name]) for name, t in supernet.state_dict().items())


def test_gradients_equal_those_of_the_extracted_network(supernet: Supernet) -> None:
    supernet.train()
    arch = supernet.space.sample(1, seed=4)[0]
    network = supernet.extract(arch)
    x = images(supernet, arch, n=4)
    for net, out in ((supernet, None), (network, None)):
        torch.manual_seed(0)
        out = net(x, arch) if net is supernet else net(x)
        out.square().sum().backward()
    by_slot = {position: slot for slot, position in enumerate(supernet.occupied)}
    for at, (position, _) in enumerate(supernet.space.placed(arch)):
        large = dict(supernet.network.blocks[by_slot[position]].named_parameters())
        for name, small in network.blocks[at].named_parameters():
            if small.ndim < 4 or small.shape[2:] == large[name].shape[2:]:
                part = large[name].grad[tuple(slice(n) for n in small.shape)]
                assert torch.allclose(part, small.grad, rtol=1e-5, atol=1e-6), name


def test_every_parameter_is_trained_by_some_architecture_and_by_no_other(supernet: Supernet) -> None:
    supernet.train()
    touched: set[str] = set()
    for arch in [supernet.space.largest, *supernet.space.sample(40, seed=1, per_gene=True)]:
        supernet.zero_grad(set_to_none=True)
        supernet(images(supernet, arch, n=4), arch).square().sum().backward()
        used = {name for name, p in supernet.named_parameters() if p.grad is not None}
        positions = {position for position, _ in supernet.space.placed(arch)}
        weighty = [any(True for _ in block.parameters()) for block in supernet.network.blocks]  # pooling has none
        slots = {s for s, position in enumerate(supernet.occupied) if position in positions and weighty[s]}
        owners = {int(name.split(".")[2 if name.startswith("network") else 1]) for name in used}
        assert owners == slots
        touched |= used
    assert touched == {name for name, _ in supernet.named_parameters()}


def test_kernel_maps_at_identity_crop_the_centre() -> None:
    weight = torch.randn(6, 1, 7, 7)
    maps = KernelMaps([3, 5, 7])
    assert torch.equal(maps(weight, 7), weight)
    assert torch.allclose(maps(weight, 5), weight[:, :, 1:6, 1:6], atol=1e-6)
    assert torch.allclose(maps(weight, 3), weight[:, :, 2:5, 2:5], atol=1e-6)


def test_the_small_kernel_comes_from_the_mapped_middle_one() -> None:
    weight = torch.randn(4, 1, 7, 7)
    maps = KernelMaps([3, 5, 7])
    with torch.no_grad():
        maps.get_parameter("7to5").normal_()
        maps.get_parameter("5to3").normal_()
    five = maps(weight, 5)
    by_hand = torch.stack([maps.get_parameter("7to5") @ w.flatten() for w in weight[:, 0, 1:6, 1:6]]).view(4, 1, 5, 5)
    assert torch.allclose(five, by_hand, atol=1e-4)
    three = torch.stack([maps.get_parameter("5to3") @ w.flatten() for w in five[:, 0, 1:4, 1:4]]).view(4, 1, 3, 3)
    assert torch.allclose(maps(weight, 3), three, atol=1e-4)


def test_sorting_keeps_every_trained_network(supernet: Supernet) -> None:
    space = supernet.space.restrict(kernel=[max(supernet.space.choices["kernel"].options)])
    options = space.choices["expand"].options
    supernet.eval()
    for kept in (list(options[-2:]), [options[-1]]):
        trained = space.restrict(expand=kept)
        archs = [trained.largest, *trained.sample(4, seed=0)]
        before = [supernet(images(supernet, a), a).detach() for a in archs]
        weights = {name: p.detach().clone() for name, p in supernet.named_parameters()}
        sort_channels(supernet, trained)
        for arch, old in zip(archs, before, strict=True):
            new = supernet(images(supernet, arch), arch).detach()
            assert torch.allclose(new, old, rtol=1e-4, atol=1e-4 * float(old.abs().max()))
        assert any(not torch.equal(p, weights[name]) for name, p in supernet.named_parameters())


SORTED = {
    "proxyless": lambda: search_spaces.build("ofa-proxyless", width=0.35, classes=7, resolution=[32]),
    "resnet": lambda: search_spaces.build("ofa-resnet50", classes=7, resolution=[32]).restrict(
        {f"depth[{i}]": [0, 1] for i in range(1, 5)}, width=[0.65, 0.8]
    ),
    "attentive": lambda: search_spaces.build("attentive-nas", classes=7, resolution=[32]).restrict(
        {f"depth[{i}]": [3] for i in range(1, 6)}
    ),
    "mobilenet-v3": lambda: search_spaces.build("mobilenet-v3-small", classes=7, resolution=[32]),
}


@pytest.mark.parametrize("name", SORTED)
def test_sorting_keeps_every_trained_network_of_any_width(name: str) -> None:
    net = Supernet(SORTED[name](), seed=0)
    randomise(net)
    net.eval()
    options = net.space.choices["expand"].options
    for kept in (options[-2:], options[-1:]):
        trained = net.space.restrict(
            {
                gene.name: [v for v in gene.options if v in kept] or gene.options
                for gene in net.space.genes
                if gene.choice == "expand"
            }
        )
        archs = [trained.largest, trained.smallest, *trained.sample(3, seed=0)]
        before = [net(images(net, a), a).detach() for a in archs]
        weights = {n: p.detach().clone() for n, p in net.named_parameters()}
        sort_channels(net, trained)
        for arch, old in zip(archs, before, strict=True):
            new = net(images(net, arch), arch).detach()
            assert torch.allclose(new, old, rtol=1e-3, atol=1e-3 * float(old.abs().max()))
        assert any(not torch.equal(p, weights[n]) for n, p in net.named_parameters())


def test_sorting_a_bottleneck_orders_both_of_its_hidden_widths() -> None:
    space = SORTED["resnet"]()
    net = Supernet(space, seed=0)
    sort_channels(net, space.restrict({f"width[{i}]": [0.8] for i in range(1, 6)}, expand=[0.35]))
    blocks = [block for block in net.network.blocks if hasattr(block, "spatial")]
    assert len(blocks) == 14
    for block in blocks:
        for reader in (block.spatial.conv, block.expand.conv):
            assert (reader.weight.abs().sum(dim=(0, 2, 3)).diff() <= 1e-4).all()


def test_sorting_puts_the_most_read_channels_first() -> None:
    net = Supernet(search_spaces.build("small-mobilenet", width=0.5, image=28), seed=0)
    sort_channels(net, net.space.restrict(expand=[6]))
    for block in net.network.blocks:
        project = getattr(block, "project", None)
        if project is not None and project.conv.in_channels > 8:
            importance = project.conv.weight.abs().sum(dim=(0, 2, 3))
            assert (importance.diff() <= 1e-6).all()


def test_recalibration_against_the_definition() -> None:
    net = Supernet(search_spaces.build("small-mobilenet", width=0.5, image=28), seed=0)
    network = net.extract(net.space.largest)
    batches = [torch.randn(8, 3, 28, 28) for _ in range(3)] + [torch.randn(4, 3, 28, 28)]
    stem = network.blocks[0]
    with torch.no_grad():
        maps = [stem.conv(batch) for batch in batches]
    weights = torch.tensor([8.0, 8.0, 8.0, 4.0]) / 28
    mean = sum(w * m.mean((0, 2, 3)) for w, m in zip(weights, maps, strict=True))
    variance = sum(w * m.var((0, 2, 3), unbiased=False) for w, m in zip(weights, maps, strict=True))
    recalibrate(network, batches)
    assert not network.training
    assert torch.allclose(stem.norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(stem.norm.running_var, variance, rtol=1e-3)
    reference = network.state_dict()
    again = net.extract(net.space.largest)
    recalibrate(again, [batches[i] for i in (2, 0, 1)] + batches[3:])
    for name, tensor in again.state_dict().items():
        assert torch.allclose(tensor, reference[name], rtol=1e-3, atol=1e-4), name


def test_recalibration_does_not_draw_dropout_and_keeps_momenta() -> None:
    net = Supernet(search_spaces.build("small-mobilenet", width=0.5, image=28), seed=0)
    network = net.extract(net.space.smallest)
    state = torch.get_rng_state()
    recalibrate(network, [torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))])
    assert torch.equal(state, torch.get_rng_state())
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_same_seed_same_weights() -> None:
    space = search_spaces.build("small-mobilenet", width=0.5, image=28)
    a, b, c = Supernet(space, seed=1), Supernet(space, seed=1), Supernet(space, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_a_restricted_space_shares_the_weights_of_the_full_one() -> None:
    space = search_spaces.build("small-mobilenet", width=0.5, image=28)
    part = space.restrict(depth=[1, 2])
    net = Supernet(part)
    assert len(net.occupied) < len(Supernet(space).occupied)
    x = torch.randn(2, 3, 28, 28)
    for arch in part.sample(3, seed=0):
        assert net.eval()(x, arch).shape == (2, 10)
    with pytest.raises(UserError, match="not an option"):
        net(x, space.largest)


def test_weights_of_another_class_count_are_refused() -> None:
    space = search_spaces.build("small-mobilenet", width=0.5, image=28)
    with pytest.raises(UserError, match=r"linear.* is \(7"):
        load_weights(Supernet(space), Supernet(space, 7).state_dict(), source="runs/a")


def test_a_deep_copy_has_weights_of_its_own(supernet: Supernet) -> None:
    """Also after a call, when slices are planned."""
    arch = supernet.space.smallest
    x = images(supernet, arch)
    before = supernet.eval()(x, arch).detach()
    twin = copy.deepcopy(supernet)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert torch.equal(twin(x, arch), before)
    twin(x, arch).sum().backward()
    assert any(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in supernet.parameters())
