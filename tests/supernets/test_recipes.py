"""What recipes say: losses, sampling, precision, averages; and that training does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import search_spaces
from nas.recipes import load_recipe, recipe_names
from search_spaces import UserError
from search_spaces.artifacts import value_hash
from supernets import (
    ImageData,
    Interrupted,
    PhaseSettings,
    Recipe,
    Supernet,
    load_data,
    load_tensors,
    plan_phases,
    save_tensors,
    train,
)
from supernets.distributed import ALONE
from supernets.losses import alpha_divergence, batch_loss
from supernets.optimising import WeightAverage, make_optimiser
from supernets.states import CheckpointFile
from supernets.steps import Steps
from supernets.teaching import Teacher

ALL = Recipe(name="all", epochs=1.0, batch=32, sandwich=True, phases={"all": PhaseSettings(lr=0.05, subnets=2)})
RICH = replace(
    ALL,
    epochs=0.1,
    batch=8,
    optimiser="adamw",
    precision="fp16",
    ema=0.95,
    clip_norm=5.0,
    accumulate=2,
    sample="worst-up",
    subnet_loss="mean",
    phases={"full": PhaseSettings(lr=0.003), "all": PhaseSettings(lr=0.003)},
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("fake:28x1x4", seed=0)


def new_supernet() -> Supernet:
    space = search_spaces.build("small-mobilenet", width=0.25, image=28, resolution=[8, 12], channels=1, classes=4)
    return Supernet(space, seed=0)


def steps_of(net: Supernet, data: ImageData, recipe: Recipe, seed: int = 3) -> Steps:
    return Steps(net, data, recipe, seed, ALONE, torch.amp.GradScaler("cpu", enabled=False))


def gradients(data: ImageData, recipe: Recipe, step: int = 0) -> dict[str, torch.Tensor]:
    net = new_supernet()
    phase = plan_phases(recipe, net.space, steps=100)[-1]
    list(steps_of(net, data, recipe).gradients(step, phase))
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def plain_divergence(logits: torch.Tensor, soft: torch.Tensor, alpha: float) -> torch.Tensor:
    """(B,) by the definition: sum over classes of q (f(p / q) - f(1))."""
    q = F.softmax(logits, dim=1)
    r = soft / q
    if alpha == 1:
        return (q * r * r.log()).sum(1)
    scale = 1 / (alpha * (alpha - 1))
    return (q * (scale * r**alpha - scale)).sum(1)


@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.5, 1.0, 2.0])
def test_the_alpha_divergences_gradient_is_that_of_its_definition(alpha: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    soft = F.softmax(torch.randn(16, 7, generator=generator, dtype=torch.float64), dim=1)
    loss, plain = alpha_divergence(logits, soft, alphas=(alpha, alpha), clip=1e9), plain_divergence(logits, soft, alpha).mean()
    assert torch.allclose(loss, plain)
    (ours,), (wanted,) = (torch.autograd.grad(value, logits) for value in (loss, plain))
    assert torch.allclose(ours, wanted, atol=1e-12)


def test_each_example_counts_its_larger_divergence() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(64, 5, generator=generator, dtype=torch.float64)
    soft = F.softmax(2 * torch.randn(64, 5, generator=generator, dtype=torch.float64), dim=1)
    low, high = plain_divergence(logits, soft, -1.0), plain_divergence(logits, soft, 1.0)
    assert (low > high).any()
    assert (low < high).any()
    for row in range(64):
        one = logits[row : row + 1].clone().requires_grad_()
        (ours,) = torch.autograd.grad(alpha_divergence(one, soft[row : row + 1], clip=1e9), one)
        alpha = -1.0 if low[row] > high[row] else 1.0
        (wanted,) = torch.autograd.grad(plain_divergence(one, soft[row : row + 1], alpha).sum(), one)
        assert torch.allclose(ours, wanted, atol=1e-10)


def test_the_alpha_divergence_stays_finite_at_the_ends() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    soft = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    loss = alpha_divergence(logits, soft)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_labels_and_teacher_are_weighed() -> None:
    logits, labels = torch.randn(8, 4), torch.arange(8) % 4
    soft = F.softmax(torch.randn(8, 4), dim=1)
    hard, taught = F.cross_entropy(logits, labels, label_smoothing=0.1), F.cross_entropy(logits, soft)
    assert batch_loss(ALL, logits, labels, None) == hard
    assert batch_loss(replace(ALL, labels=0.0), logits, labels, None) == hard  # nobody else teaches
    assert batch_loss(replace(ALL, labels=0.0, distill=2.0), logits, labels, soft) == 2 * taught
    assert batch_loss(replace(ALL, labels=0.5, distill=2.0), logits, labels, soft).item() == pytest.approx(
        float(0.5 * hard + 2 * taught)
    )


def test_a_mean_over_networks_is_the_sum_divided(data: ImageData) -> None:
    total, mean = gradients(data, ALL), gradients(data, replace(ALL, subnet_loss="mean"))
    assert total.keys() == mean.keys()
    for name, gradient in total.items():  # largest, smallest and two random ones
        assert torch.allclose(gradient / 4, mean[name], atol=1e-7)


def test_each_network_moves_the_weights_by_itself(data: ImageData) -> None:
    recipe = replace(ALL, subnet_loss="each", momentum=0.0)
    net, plain = new_supernet(), new_supernet()
    phase = plan_phases(recipe, net.space, steps=100)[-1]
    steps, optimiser = steps_of(net, data, recipe), torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for loss, networks in steps.gradients(0, phase):
        assert networks == 1
        losses.append(float(loss))
        optimiser.step()
        optimiser.zero_grad()
    by_hand, hand = torch.optim.SGD(plain.parameters(), lr=0.1), steps_of(plain, data, recipe)
    archs = hand._architectures(0, phase, {})
    soft = None
    for number, (arch, found) in enumerate(zip([plain.space.largest, *archs], losses, strict=True)):
        images, labels = steps.images(0, 0, arch["resolution"])
        with hand._drawing(0, 0, number):  # the same dropout
            logits = plain(images, arch)
        loss = batch_loss(recipe, logits, labels, soft)
        assert float(loss.detach()) == pytest.approx(found, rel=1e-5)
        by_hand.zero_grad()
        loss.backward()
        by_hand.step()
        soft = F.softmax(logits.detach(), dim=1) if soft is None else soft
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


def test_a_teachers_statistics_are_taken_outside_of_how_training_runs(data: ImageData) -> None:
    recipe = replace(ALL, sandwich=False, phases={"full": PhaseSettings(), "all": PhaseSettings(subnets=2)})
    net = new_supernet()
    steps, phase = steps_of(net, data, recipe), plan_phases(recipe, net.space, steps=100)[-1]
    steps.teacher = Teacher(net.extract(net.space.largest), data=data)
    inside: list[int] = []

    @contextmanager
    def forward(_: Steps) -> Iterator[None]:
        inside.append(1)
        yield
        inside.pop()

    def taken(*_: object) -> None:
        assert not inside

    with mock.patch.object(Steps, "_forward", forward), mock.patch("supernets.teaching.recalibrate", side_effect=taken) as took:
        list(steps.gradients(0, phase))
    assert took.call_count == 1


def test_accumulated_parts_are_averaged(data: ImageData) -> None:
    both = gradients(data, replace(ALL, accumulate=2))
    net = new_supernet()
    phase = plan_phases(ALL, net.space, steps=100)[-1]
    steps = steps_of(net, data, replace(ALL, accumulate=2))
    first, second = steps.images(0, 0, 20), steps.images(0, 1, 20)
    assert len(first[0]) == len(second[0]) == 16
    whole = steps_of(net, data, ALL).images(0, 0, 20)[1]
    assert torch.equal(torch.cat([first[1], second[1]]), whole)  # the same images, in two parts
    ((loss, networks),) = steps.gradients(0, phase)
    assert networks == 4
    assert float(loss) > 0
    assert both.keys() == {name for name, p in net.named_parameters() if p.grad is not None}
    halves = []
    for part in range(2):
        twin = new_supernet()
        alone = steps_of(twin, data, replace(ALL, accumulate=2))
        alone.ranks = mock.Mock(world=1, parts=lambda _, part=part: [part])
        list(alone.gradients(0, phase))
        halves.append({name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
    for name, gradient in both.items():
        assert torch.allclose(gradient, halves[0][name] + halves[1][name], atol=1e-6)


@pytest.mark.parametrize(("sample", "choose"), [("best-up", np.argmin), ("worst-up", np.argmax)])
def test_attentive_sampling_takes_the_best_or_worst_of_like_macs(data: ImageData, sample: str, choose: np.ufunc) -> None:
    recipe = replace(ALL, sample=sample, candidates=4)
    net = new_supernet()
    phase = plan_phases(recipe, net.space, steps=100)[-1]
    steps = steps_of(net, data, recipe)
    ranked: list[tuple[list, torch.Tensor]] = []
    plain = Steps._ranking

    def ranking(self: Steps, step: int, archs: list, batches: dict) -> torch.Tensor:
        losses = plain(self, step, archs, batches)
        ranked.append((archs, losses))
        return losses

    run: list = []
    forward = Supernet.forward

    def note(self: Supernet, x: torch.Tensor, arch: object) -> torch.Tensor:
        run.append(arch) if torch.is_grad_enabled() else None
        return forward(self, x, arch)

    with mock.patch.object(Steps, "_ranking", ranking), mock.patch.object(Supernet, "forward", note):
        list(steps.gradients(7, phase))
    assert len(ranked) == 2
    chosen = [archs[choose(losses.numpy())] for archs, losses in ranked]
    assert run == [net.space.largest, *chosen, net.space.restrict(resolution=[chosen[0]["resolution"]]).smallest]
    spread = np.ptp(net.space.macs(net.space.sample(200)))
    for archs, _ in ranked:
        assert len(archs) == 4
        assert np.ptp(net.space.macs(archs)) < spread / 10
        assert len({arch["resolution"] for arch in archs}) == 1


def test_the_average_of_weights() -> None:
    model = torch.nn.Linear(2, 1)
    average = WeightAverage(model, 0.9)
    history = [model.weight.detach().clone()]
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(1.0)
        history.append(model.weight.detach().clone())
        average.update()
    expected = history[0]
    for n, weight in enumerate(history[1:], start=1):
        keep = min(0.9, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * weight
    assert torch.allclose(average.tensors["weight"], expected)
    with average.in_place():
        assert torch.allclose(model.weight, expected)
    assert torch.equal(model.weight, history[-1])


def test_the_average_is_the_result(data: ImageData) -> None:
    plain, averaged = new_supernet(), new_supernet()
    train(plain, data, replace(ALL, epochs=0.3))
    made: list[WeightAverage] = []
    with mock.patch("supernets.training.WeightAverage", side_effect=lambda *a: made.append(WeightAverage(*a)) or made[0]):
        train(averaged, data, replace(ALL, epochs=0.3, ema=0.9))
    assert all(torch.equal(p, made[0].tensors[name]) for name, p in averaged.named_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), averaged.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_full_precision(data: ImageData, precision: str) -> None:
    full, half = gradients(data, ALL), gradients(data, replace(ALL, precision=precision))
    a, b = (torch.cat([g.flatten() for g in found.values()]) for found in (full, half))
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    assert F.cosine_similarity(a, b, dim=0) > 0.95
    assert not torch.equal(a, b)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_fused_optimiser_is_the_plain_one(data: ImageData, kind: str) -> None:
    recipe = replace(ALL, optimiser=kind, weight_decay=0.01)
    fused, plain = new_supernet(), new_supernet()
    phase = plan_phases(recipe, fused.space, steps=100)[-1]
    optimisers = [make_optimiser(net, recipe, lr=0.01) for net in (fused, plain)]
    for group in optimisers[1].param_groups:
        group["fused"] = False
    for step in range(3):
        list(steps_of(fused, data, recipe).gradients(step, phase))
        for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
            b.grad = None if a.grad is None else a.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(fused.parameters(), plain.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(fused.parameters(), new_supernet().parameters(), strict=True))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_trains(data: ImageData, name: str) -> None:
    recipe = load_recipe(name, epochs=0.4, batch=32)
    assert Recipe.from_dict(recipe.to_dict(), source=name) == recipe
    net = new_supernet()
    if list(recipe.phases) == ["full"]:  # for one network
        net = Supernet(net.space.restrict({gene.name: [gene.options[-1]] for gene in net.space.genes}))
    trained = train(net, data, recipe)
    assert np.isfinite([row["loss"] for row in trained.log]).all()


def test_a_rich_recipe_goes_on_to_the_same_bits(data: ImageData, tmp_path: Path) -> None:
    unbroken = new_supernet()
    log = train(unbroken, data, RICH, seed=5).log
    path = tmp_path / "c.safetensors"
    for stop_at in (2, 3):
        asked = iter(range(1, 100))
        with pytest.raises(Interrupted):
            train(new_supernet(), data, RICH, seed=5, checkpoint=path, stop=lambda at=stop_at, a=asked: next(a) == at)
    resumed = new_supernet()
    assert train(resumed, data, RICH, seed=5, checkpoint=path).log == log
    assert all(torch.equal(a, b) for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_a_checkpoint_of_version_1_is_read(data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    recipe = replace(ALL, distill=0.0, epochs=0.5)
    asked = iter(range(1, 100))
    with pytest.raises(Interrupted):
        train(new_supernet(), data, recipe, checkpoint=path, stop=lambda: next(asked) == 5)
    unbroken, resumed = new_supernet(), new_supernet()
    train(unbroken, data, recipe)
    tensors, meta = load_tensors(path, "training-checkpoint", 2, make="m")
    old_fields = {"name", "epochs", "batch", "momentum", "weight_decay", "decay_kernel_maps", "label_smoothing", "distill"}
    old_fields |= {"sandwich", "one_schedule", "phases"}
    identity = meta["identity"] | {"recipe": {k: v for k, v in meta["identity"]["recipe"].items() if k in old_fields}}
    old = {name.replace("optimiser.momentum_buffer.", "momentum."): tensor for name, tensor in tensors.items()}
    save_tensors(path, old, "training-checkpoint", 1, {"identity": identity, "step": meta["step"], "log": meta["log"]})
    train(resumed, data, recipe, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_the_identity_of_a_run_names_its_difference(tmp_path: Path) -> None:
    begun = {"recipe": ALL.to_dict(), "seed": 1, "data": {"name": "cats", "hash": "1"}}
    mine = CheckpointFile(tmp_path / "c.safetensors", begun)
    mine.save({"supernet": {"w": torch.ones(2)}}, torch.zeros(1), {"step": 3, "log": []})
    assert mine.load()[2]["step"] == 3
    other = CheckpointFile(mine.path, {"recipe": replace(ALL, ema=0.5).to_dict(), "seed": 1})
    with pytest.raises(UserError, match=r"another recipe: ema was 0.0, now 0.5"):
        other.load()
    # Images are known by their content: a folder may be called otherwise by now.
    assert CheckpointFile(mine.path, begun | {"data": {"name": "pets", "hash": "1"}}).load()[2]["step"] == 3
    with pytest.raises(UserError, match=r"another data: hash was 1, now 2"):
        CheckpointFile(mine.path, begun | {"data": {"name": "cats", "hash": "2"}}).load()
    assert value_hash(ALL.to_dict()) != value_hash(RICH.to_dict())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser = 'adm'\n[phases.full]", "one of: sgd, adamw"),
        ("precision = 'fp8'\n[phases.full]", "one of: fp32, bf16, fp16"),
        ("ema = 1.0\n[phases.full]", "ema is 0 to below 1"),
        ("accumulate = 0\n[phases.full]", "at least 1"),
        ("labels = 0\ndistill = 0\n[phases.full]", "nothing would be learned"),
        ("clip_norm = nan\n[phases.full]", "clip_norm is at least 0"),
        ("[phases.all]\n[phases.depth]", "phases 'all' and 'depth'"),
        ("candidates = 1\n[phases.all]", "2 to 64"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Recipe.read(path)


def test_a_batch_that_cannot_be_divided_is_named(data: ImageData) -> None:
    with pytest.raises(UserError, match=r"accumulate = 3.*Use a batch of 33"):
        train(new_supernet(), data, replace(ALL, accumulate=3))
    with pytest.raises(UserError, match="2 images or more"):
        train(new_supernet(), data, replace(ALL, accumulate=32))


def test_images_smaller_than_the_networks_stride_are_named() -> None:
    space = search_spaces.build("ofa-mobilenet-v3", resolution=[16, 64], classes=4)
    with pytest.raises(UserError, match=r"images of 16 px .* shrink them 32 times"):
        train(Supernet(space), load_data("fake:28x3x4"), ALL)
