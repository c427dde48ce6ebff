"""The conformance suites of search spaces and of search strategies: what those here keep, and your own should.

``from nas.testing import check_space; check_space(space)`` in a test of yours. It takes seconds for a small space: choose
few and small resolutions, and restrict wide choices. `check_strategy` does the same for a strategy. A failure is an
``AssertionError`` that says which law is broken.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import search_spaces
from latency_tables import open_device
from nas.exporting import onnx_model
from nas.strategies import Archive, Quantity, Strategy, Task
from search_spaces import Architecture, Choice, ElasticSpace, SearchSpace
from search_spaces.errors import UserError
from supernets import Supernet, recalibrate

__all__ = ["check_export", "check_lowering", "check_rows", "check_space", "check_strategy", "check_supernet"]

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit
BATCH = 4
SEEDED = ("two measured objectives", "one objective")  # tasks of strategies that are run twice
MOST_STEPS = 100  # architectures trained at most until every parameter has had a gradient


def check_space(space: SearchSpace, *, samples: int = 300, seed: int = 0) -> None:
    """Every check below, one after the other.

    Args:
        samples: random architectures for the cheap checks; those that run networks take a few.

    Raises:
        AssertionError: a law is broken.
        UserError: a space that `nas.elastic` made: that checks its networks itself.
    """
    _refuse_blocks(space)
    check_rows(space, samples=samples, seed=seed)
    check_lowering(space, samples=samples, seed=seed)
    check_supernet(space, seed=seed)
    check_export(space, seed=seed)


def check_rows(space: SearchSpace, *, samples: int = 300, seed: int = 0) -> None:
    """Architectures, rows and JSON say the same; variation stays in the space; equal networks are equal everywhere."""
    rng = np.random.default_rng(seed)
    halves = [space.sample_rows(samples, rng, per_gene=per_gene) for per_gene in (False, True)]
    rows = np.concatenate(halves)
    archs = space.from_array(rows)
    assert (space.to_array(archs) == rows).all(), "to_array does not invert from_array"
    plain = [json.loads(json.dumps(arch.to_dict())) for arch in archs]
    assert [space.architecture(**values) for values in plain] == archs, "architecture does not invert to_dict"
    twin = search_spaces.from_dict(json.loads(json.dumps(space.to_dict())))
    assert twin == space, "from_dict does not invert to_dict"
    assert [arch.id for arch in twin.from_array(rows)] == [arch.id for arch in archs], "ids change with to_dict"
    distinct = len(space.unique(rows))
    assert distinct == len({arch.id for arch in archs}) <= space.count(), "equal networks have different ids, or the reverse"
    for ordinal in (False, True):
        features = space.encode(rows, ordinal=ordinal)
        assert features.shape == (len(rows), len(space.feature_names(ordinal=ordinal))), "features without a name"
        assert len(np.unique(features, axis=0)) == distinct, "the encoding does not tell networks apart"
    for varied in (space.mutate(rows, rng), space.crossover(halves[0], halves[1], rng)):
        assert ((varied >= 0) & (varied < space.lengths)).all(), "variation leaves the space"
        assert (space.canonical(varied) == varied).all(), "variation is not canonical"


def check_lowering(space: SearchSpace, *, samples: int = 300, seed: int = 0) -> None:
    """Layers fit one another, distinct architectures are distinct networks, vectorised counts are those of the layers."""
    _refuse_blocks(space)
    archs = [space.smallest, space.largest, *space.sample(samples, seed), *space.sample(samples, seed, per_gene=True)]
    lowered = [space.lower(arch) for arch in archs]
    known = set(space.layers())
    for arch, layers in zip(archs, lowered, strict=True):
        for before, after in itertools.pairwise(layers):
            assert before.out_shape == after.in_shape, f"{arch.id}: {before.key} does not fit {after.key}"
        assert known.issuperset(layers), f"{arch.id} has layers that space.layers() lacks"
    assert len(set(lowered)) == len(set(archs)), "two architectures are the same network: merge the options that do nothing"
    for name, peak in (("macs", False), ("params", False), ("weight_bytes", False), ("activation_bytes", True)):
        slow = [(max if peak else sum)(getattr(layer, name) for layer in layers) for layers in lowered]
        assert getattr(space, name)(archs).tolist() == slow, f"space.{name} differs from the layers' own"
    cost = space.cost(lambda layer: layer.macs)
    for extreme, best in ((cost.minimum, min), (cost.maximum, max)):
        value, row = extreme(len(space.genes))
        assert round(value) == int(space.macs(row[None, :])[0]), "an extreme is not that of its own row"
        assert best([value, *cost(space.to_array(archs))]) == value, "an extreme is beaten by a sample"


def check_supernet(space: SearchSpace, *, seed: int = 0) -> None:
    """A supernet equals what is extracted from it, and trains all of its parameters but none that a network does not use."""
    _refuse_blocks(space)
    supernet = Supernet(space, seed=seed)
    _shake(supernet, seed)
    for training in (False, True):
        supernet.train(training)
        for arch in [space.smallest, space.largest, *space.sample(3, seed)]:
            images, network = _images(supernet, arch), supernet.extract(arch)
            torch.manual_seed(0)  # dropout draws
            shared = supernet(images, arch)
            torch.manual_seed(0)
            assert torch.equal(shared, network(images)), f"{arch.id}: extraction is not exact (training: {training})"
            count = sum(parameter.numel() for parameter in network.parameters())
            assert count == space.params(arch), f"{arch.id}: {count} parameters, but space.params says {space.params(arch)}"
    waiting = {name for name, _ in supernet.named_parameters()}
    draws = np.random.default_rng(seed)
    for step in range(MOST_STEPS):
        arch = space.largest if step == 0 else space.from_array(space.sample_rows(1, draws, per_gene=True))[0]
        waiting -= _trained(supernet, arch)
        if not waiting:
            return
    raise AssertionError(f"{len(waiting)} parameters never get a gradient, e.g. {min(waiting)}")


def _refuse_blocks(space: SearchSpace) -> None:
    if isinstance(space, ElasticSpace):
        raise UserError(
            f"'{space.name}' is a space of networks of your own, whose layers the checks cannot see into",
            allowed="Spaces that are lowered to layers; nas.elastic checks the others when it makes them",
            next_step="check_rows and check_export work for both",
        )


def _trained(supernet: Supernet, arch: Architecture) -> set[str]:
    """Parameters that one step on an architecture reaches; refuses gradients outside what the architecture uses."""
    supernet.zero_grad(set_to_none=True)
    supernet(_images(supernet, arch), arch).square().mean().backward()
    slots = {position: slot for slot, position in enumerate(supernet.occupied)}
    used: dict[str, tuple[int, ...]] = {}
    for position, layer in supernet.space.placed(arch):
        used |= {f"network.blocks.{slots[position]}.{name}": shape for name, shape in layer.tensors().items()}
    reached = set()
    for name, parameter in supernet.named_parameters():
        if parameter.grad is None:
            continue
        if name.startswith("network."):
            assert name in used, f"{arch.id}: {name} gets a gradient but is not used"
            part = tuple(slice(length) for length in used[name][:2])
            outside = parameter.grad.clone()
            outside[part] = 0
            assert not outside.any(), f"{arch.id}: {name} gets a gradient outside {used[name]}"
        if parameter.grad.any():
            reached.add(name)
    return reached


def check_export(space: SearchSpace, *, seed: int = 0) -> None:
    """ONNX files of some networks compute what torch computes: to 1e-4 of the largest logit, and the same top-1 class."""
    supernet = Supernet(space, seed=seed)
    _shake(supernet, seed)
    device = open_device("onnxruntime-cpu")
    for arch in [space.smallest, space.largest, *space.sample(2, seed)]:
        network = supernet.extract(arch)
        images = _images(supernet, arch, 4 * BATCH)
        recalibrate(network, [images])
        with torch.inference_mode():
            ours = network(images).numpy()
        model = onnx_model(network, images, {}).SerializeToString()
        theirs = device.load(model).infer(images.contiguous().numpy())
        difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
        assert difference <= TOLERANCE, f"{arch.id}: the ONNX file differs by {difference:.1e} of the largest logit"
        assert (ours.argmax(1) == theirs.argmax(1)).all(), f"{arch.id}: the ONNX file has another top-1 class"


def _shake(module: nn.Module, seed: int) -> None:
    """Move every tensor from its initial value: a wrong slice would not show on zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3 if tensor.ndim == 1 else 0.01)


def _images(supernet: Supernet, arch: Architecture, n: int = BATCH) -> Tensor:
    """(n, C, R, R) random images at the size that the architecture is for."""
    shape = supernet.space.lower(arch)[0].in_shape
    generator = torch.Generator().manual_seed(shape[-1])
    return torch.randn(n, *shape, generator=generator).to(memory_format=torch.channels_last)


# ---- strategies -----------------------------------------------------------------------------------------------------


def check_strategy(make: Callable[[Task], Strategy], *, seed: int = 0) -> None:
    """What every search strategy here keeps, and one of your own should: ``check_strategy(MyStrategy)``.

    On problems with one to three objectives, with known and measured limits, on large, conditional and tiny spaces: at
    most as many networks as asked for, each once, canonical, within the known limits, never one that it was told, its
    own or another's; the same seed asks for the same networks; a space is used up without repetition.

    Args:
        make: a task (`nas.strategies.Task`) to a strategy. It may refuse a task with a `UserError`, but not all of them.

    Raises:
        AssertionError: a law is broken.
    """
    tasks = _strategy_tasks(seed)
    refused = 0
    for name, task in tasks.items():
        try:
            make(task)
        except UserError:
            refused += 1
            continue
        asked = _asked_until_done(name, make(task), task)
        if name in SEEDED:
            again = _asked_until_done(name, make(task), task)
            assert np.array_equal(asked, again), f"{name}: the same seed asks for other networks"
    assert refused < len(tasks), "every task was refused"


def _asked_until_done(name: str, strategy: Strategy, task: Task) -> NDArray[np.int64]:
    """All rows that a strategy asked for, checked batch by batch, until the budget is spent or nothing is left."""
    archive = Archive.of(task)
    weights = np.random.default_rng(task.seed).normal(size=(len(task.space.genes), len(task.quantities)))

    def tell(rows: NDArray[np.int64]) -> None:
        values = task.known(rows)
        values[:, task.measured] = (rows @ weights + np.sin(rows**2 @ weights))[:, task.measured]
        archive.add(rows, values)
        strategy.tell(rows, values)

    asked: list[NDArray[np.int64]] = []
    while len(archive) < task.budget:
        n = min(task.batch, task.budget - len(archive))
        for attempt in range(2 if len(asked) == 1 else 1):  # asked again without being told
            rows = strategy.ask(n)
            again = " when asked again" if attempt else ""
            assert rows.shape == (len(rows), len(task.space.genes)), f"{name}: rows of shape {rows.shape}{again}"
            assert len(rows) <= n, f"{name}: {len(rows)} networks where {n} were asked for{again}"
            assert np.array_equal(task.space.canonical(rows), rows), f"{name}: rows are not canonical{again}"
            assert len(task.space.unique(rows)) == len(rows), f"{name}: a network twice in a batch{again}"
            assert archive.new(rows).all(), f"{name}: a network that it was told already{again}"
            assert task.allowed(rows).all(), f"{name}: a network outside the known limits{again}"
        if not len(rows):
            break
        asked.append(rows)
        tell(rows)
        if len(asked) == 1 and task.listed is None:  # results of another worker
            tell(task.draw(3, archive, np.random.default_rng(5)))
    left = 0 if task.listed is None else int(archive.new(task.listed).sum())
    assert len(archive) == task.budget or not left, f"{name}: nothing more although {left} networks are left"
    return np.concatenate(asked)


def _strategy_tasks(seed: int) -> dict[str, Task]:
    """Small tasks of every kind, by what is special about them."""
    plain = SearchSpace({f"gene_{i}": [1, 2, 3, 4] for i in range(12)}, name="plain")
    words = SearchSpace({f"op_{i}": ["none", "skip", "conv"] for i in range(10)}, name="words")
    tiny = SearchSpace({"a": [0, 1, 2], "b": [0, 1, 2], "c": [0]}, name="tiny")
    stages = {
        "depth": Choice((1, 2, 3), 2),
        "kernel": Choice(
            (3, 5, 7), 6, tuple(None if i == 0 else (f"depth[{s}]", (2, 3)[i - 1 :]) for s in (0, 1) for i in range(3))
        ),
    }
    conditional = SearchSpace(stages, name="conditional")

    def size(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        total: NDArray[np.float64] = rows.sum(axis=1).astype(np.float64)
        return total

    gain = Quantity("gain", maximise=True, objective=True)
    cost = Quantity("cost", maximise=False, objective=True)
    known = Quantity("size", maximise=False, objective=True, known=size)
    third = Quantity("power", maximise=False, objective=True)
    floor = Quantity("margin", maximise=True, objective=False, bound=1.0)
    few = Quantity("size", maximise=False, objective=False, bound=4.0, known=size)
    kinds = {
        "two measured objectives": (plain, (gain, cost), 25),
        "one objective": (words, (gain,), 25),
        "three objectives": (conditional, (gain, known, third), 25),
        "a measured limit": (words, (gain, known, floor), 25),
        "a sliver within a known limit": (plain, (gain, cost, few), 25),
        "one objective within a known limit": (conditional, (gain, few), 15),
        "a tiny space": (tiny, (gain, cost), 15),
        "a tiny space with one objective": (tiny, (gain,), 15),
    }
    return {name: Task(space, quantities, budget, 10, seed) for name, (space, quantities, budget) in kinds.items()}
