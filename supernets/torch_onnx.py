"""Networks of the user's own to ONNX, through torch's exporters: whole ones to ship, and single blocks to be timed.

torch's TorchScript exporter comes first: it needs no further package, is many times faster than the other one and folds
batch normalisation. The other one (``dynamo``) takes over where it fails and onnxscript is installed.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from search_spaces import Architecture, ElasticSpace
from search_spaces.errors import UserError
from search_spaces.layers import Layer
from search_spaces.onnx_versions import DEFAULT_OPSET
from supernets.construct import construct
from supernets.tracing import REST, calls_of, forward

__all__ = ["ElasticWriter", "export_onnx"]

DYNAMO_OPSET = 18  # the oldest that this exporter writes
INPUT, OUTPUT = "image", "logits"


def export_onnx(
    network: nn.Module, example: Tensor, *, metadata: Mapping[str, str], open_batch: bool = True, opset: int | None = None
) -> onnx.ModelProto:
    """A network as ONNX in one piece, in evaluation mode, batch normalisation folded.

    Args:
        example: an input (B, ...); its values do not matter.
        metadata: text stored in the model.
        open_batch: leave the first axis open; else it is that of the example.
        opset: of the operators; None: the usual one of the exporter that succeeds.

    Raises:
        UserError: no exporter can write it; both reasons are given.
    """
    failures = []
    writers = [_by_script, *([_by_dynamo] if importlib.util.find_spec("onnxscript") else [])]
    for writer in writers:
        try:
            with warnings.catch_warnings(), _plain_attention(), _evaluating(network):
                warnings.simplefilter("ignore")
                model = writer(network, example, open_batch, opset)
        except Exception as error:  # noqa: BLE001 (anything that the user's forward or the exporter raises)
            failures.append(f"{writer.__name__.removeprefix('_by_')}: {type(error).__name__}: {str(error).strip()[:300]}")
        else:
            onnx.helper.set_model_props(model, dict(metadata))
            return model
    hint = "" if len(writers) > 1 else "Install onnxscript for torch's second exporter, or change"
    raise UserError(
        f"{type(network).__name__} cannot be written as ONNX ({'; '.join(failures)})",
        allowed="The forward uses operations that torch can export",
        next_step=f"{hint or 'Change'} what it names",
    )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _plain_attention() -> Iterator[None]:
    """torch's attention takes a fused path in evaluation mode that neither exporter can write."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _by_script(network: nn.Module, example: Tensor, open_batch: bool, opset: int | None) -> onnx.ModelProto:
    stream: Any = io.BytesIO()  # torch's own annotation leaves streams out
    with torch.no_grad():
        torch.onnx.export(
            network,
            (example,),
            stream,
            dynamo=False,
            opset_version=opset or DEFAULT_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}} if open_batch else None,
        )
    return onnx.load_from_string(stream.getvalue())


def _by_dynamo(network: nn.Module, example: Tensor, open_batch: bool, opset: int | None) -> onnx.ModelProto:
    if opset is not None and opset < DYNAMO_OPSET:
        raise ValueError(f"it writes opset {DYNAMO_OPSET} or newer, not {opset}")
    program: Any = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        external_data=False,
        opset_version=opset or DYNAMO_OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("N")},) if open_batch else None,
        verbose=False,
    )
    model: onnx.ModelProto = program.model_proto
    return model


class ElasticWriter:
    """ONNX models of an elastic space's blocks and networks with fresh weights, for profiling.

    A block gets the very inputs that it has inside a network; all but the first tensor are constants of its model.
    """

    def __init__(self, space: ElasticSpace) -> None:
        self.space = space
        self._homes: dict[str, tuple[Architecture, str]] = {}

    def layers(self, layers: Sequence[Layer], *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto | None:
        """A chain of blocks that fit one another; None for what runs between the blocks: it has no model of its own."""
        pieces = [self._piece(layer, batch) for layer in layers if self._home(layer)[1] != REST]
        if not pieces:
            return None
        chain = nn.Sequential(*[module for module, _ in pieces])
        return export_onnx(chain, pieces[0][1], metadata=metadata, open_batch=False)

    def network(self, arch: Architecture, *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto:
        """A whole network of an architecture."""
        example = torch.randn(batch, *self.space.shape_of(arch), generator=torch.Generator().manual_seed(0))
        return export_onnx(construct(self.space, arch), example, metadata=metadata, open_batch=False)

    def _piece(self, layer: Layer, batch: int) -> tuple[nn.Module, Tensor]:
        """A block on its own, and its input."""
        arch, name = self._home(layer)
        network = construct(self.space, arch)
        found: list[tuple[nn.Module, Any]] = []

        def begin(called: str, module: nn.Module, args: Any) -> None:
            if called == name:
                leaves, spec = tree_flatten(args)
                kept = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                found.append((module, tree_unflatten(kept, spec)))

        with torch.no_grad(), calls_of(network, self.space.block_level, begin, lambda *_: None):
            forward(self.space, arch, network, batch=batch)
        module, arguments = found[0]
        alone = _Alone(copy.deepcopy(module), arguments)
        return alone, alone.example

    def _home(self, layer: Layer) -> tuple[Architecture, str]:
        """An architecture that has the layer, and the layer's name in it."""
        if not self._homes:
            space = self.space
            columns = {gene.name: index for index, gene in enumerate(space.genes)}
            for position in space.positions:
                named = [columns[name] for name in position.genes]
                for options in itertools.product(*(range(space.lengths[c]) for c in named)):
                    found = position.layer(*(space.genes[c].options[o] for c, o in zip(named, options, strict=True)))
                    if found is not None and found.key not in self._homes:
                        row = space.to_array(space.largest)
                        row[0, named] = options
                        self._homes[found.key] = (space.from_array(row)[0], position.name)
        return self._homes[layer.key]


class _Alone(nn.Module):
    """A block as a network of its own: one tensor in, one out."""

    def __init__(self, block: nn.Module, arguments: Any) -> None:
        super().__init__()
        self.block = block
        leaves, self._spec = tree_flatten(arguments)
        self._at = next(at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        self.example: Tensor = leaves[self._at]
        self._leaves = leaves

    def forward(self, x: Tensor) -> Tensor:
        leaves = [x if at == self._at else leaf for at, leaf in enumerate(self._leaves)]
        args, kwargs = tree_unflatten(leaves, self._spec)
        output = self.block(*args, **kwargs)
        return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
