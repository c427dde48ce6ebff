"""The conformance suite of a search space: what every family here keeps, and a space of your own should.

``from nas.testing import check_space; check_space(space)`` in a test of yours. It takes seconds for a small space: choose
few and small resolutions, and restrict wide choices. A failure is an ``AssertionError`` that says which law is broken.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import torch
from torch import Tensor, nn

import search_spaces
from latency_tables import open_device
from nas.exporting import onnx_model
from search_spaces import Architecture, ElasticSpace, SearchSpace
from search_spaces.errors import UserError
from supernets import Supernet, recalibrate

__all__ = ["check_export", "check_lowering", "check_rows", "check_space", "check_supernet"]

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit
BATCH = 4
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
