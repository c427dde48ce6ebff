"""The layers of a network of the user's own: its top blocks, found by running it without values and watching.

A block is a child of the root (or deeper, as the space says; containers are taken apart); each call of it is one layer, known
by the block's structure and its input's shape. What runs between the blocks is a layer of its own that nobody times: it
holds the parameters and multiply-accumulates that the blocks do not. Which choices change which block is found by
changing one choice at a time, and then checked on random networks, until every layer of them is right.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from search_spaces import Architecture, ElasticSpace
from search_spaces.errors import UserError
from search_spaces.layers import Block, Layer
from search_spaces.ops import FLOAT_BYTES
from search_spaces.rows import Rows
from search_spaces.space import Position
from supernets.construct import call_text, construct, is_statistic, shell

__all__ = ["REST", "calls_of", "check_last_layer", "forward", "outputs_of", "positions_of", "trace"]

REST = "(between blocks)"
MOST_LAYERS = 20_000  # options of one block, counted over all choices that it depends on
_CHECKED = 32  # random networks on which the lowering is checked

T = TypeVar("T")
Watch = AbstractContextManager[T]
Traced = Mapping[str, Block]


def outputs_of(space: ElasticSpace) -> int:
    """Classes that the largest network tells apart, in evaluation and in training alike.

    Raises:
        UserError: see `watched`.
    """
    for training in (False, True):
        output, _ = watched(space, space.largest, lambda network: nullcontext(network), training=training)
    return int(output.shape[1])


def watched(
    space: ElasticSpace, arch: Architecture, watch: Callable[[nn.Module], Watch[T]], *, training: bool = False
) -> tuple[Tensor, T]:
    """Run a network once without values, where that works, and watch it: its output (B, classes), and what ``watch`` saw.

    Raises:
        UserError: it raised with values too, or its output is not (B, classes).
    """
    network = shell(space, arch).to("meta")
    try:
        with watch(network) as seen:
            return forward(space, arch, network, training=training), seen
    except UserError:  # not every network runs without values; what was seen until then does not count
        network = construct(space, arch)
        with watch(network) as seen:
            return forward(space, arch, network, training=training), seen


def forward(space: ElasticSpace, arch: Architecture, network: nn.Module, *, batch: int = 1, training: bool = False) -> Tensor:
    """The output (B, classes) of a network, on fixed random input where the network has values; two examples in training.

    Raises:
        UserError: it raised, or its output is not (B, classes).
    """
    shape = (max(batch, 2 if training else 1), *space.shape_of(arch))
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.random.fork_rng([]):  # training draws
            output = network.train(training)(x)
    except Exception as error:
        raise UserError(
            f"{call_text(space, arch)} raised {type(error).__name__} on input {shape}: {error}",
            allowed="Every network takes a batch of examples of the input's shape",
            next_step="Correct its forward, or the input_shape",
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(x):
        found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UserError(
            f"{call_text(space, arch)} gives {found} for input {shape}{' in training mode' if training else ''}",
            allowed="One tensor (B, classes)",
            next_step="Return the logits alone" + (", without those of auxiliary heads" if training else ""),
        )
    return output


def check_last_layer(space: ElasticSpace) -> None:
    """Refuse networks whose classifier has the name of a hidden layer of the largest one, as in a plain `nn.Sequential`.

    Shapes alone do not show it: a small matrix lies inside a large one, whatever they are for.
    """
    largest = space.largest
    order = _weighted_calls(space, largest)
    for arch in (space.smallest, *space.neighbours(largest)):
        last = _weighted_calls(space, arch)[-1:]
        if last and last != order[-1:] and last[0] in order:
            raise UserError(
                f"'{last[0]}' is the last layer of {call_text(space, arch)} and a hidden layer of {call_text(space, largest)}",
                allowed="The layer that gives the logits has one name in all networks",
                next_step="Give it a name of its own: self.head = ..., not the last place in a list of blocks",
            )


def _weighted_calls(space: ElasticSpace, arch: Architecture) -> list[str]:
    """Names of the modules with weights of their own, in the order in which they are called."""

    @contextmanager
    def watch(network: nn.Module) -> Iterator[list[str]]:
        order: list[str] = []
        hooks = [
            module.register_forward_hook(lambda *_, path=path: order.append(path))
            for path, module in network.named_modules()
            if any(p is not None for p in module._parameters.values()) and not is_statistic(module)
        ]
        try:
            yield order
        finally:
            for hook in hooks:
                hook.remove()

    return watched(space, arch, watch)[1]


# ---- one network ----------------------------------------------------------------------------------------------


def trace(space: ElasticSpace, arch: Architecture) -> dict[str, Block]:
    """The layers of a network by name, in order of execution; a block that is called again has ``#2`` in its name."""
    with torch.inference_mode(False), torch.enable_grad():  # else operations that are counted do not show
        return watched(space, arch, lambda network: _traced(network, space.block_level))[1]


@contextmanager
def _traced(network: nn.Module, level: int) -> Iterator[dict[str, Block]]:
    """Fills the dictionary with the blocks that run meanwhile; what is not in them comes last."""
    counts = _Counts(network)
    found: dict[str, Block] = {}
    begun: list[tuple[int, int, Tensor | None]] = []

    def begin(_name: str, _module: nn.Module, args: Any) -> None:
        begun.append((counts.macs, len(counts.ran), next((a for a in tree_leaves(args) if isinstance(a, Tensor)), None)))
        counts.peak = 0

    def end(name: str, module: nn.Module, output: Any) -> None:
        macs, first, source = begun.pop()
        target = next((o for o in tree_leaves(output) if isinstance(o, Tensor)), None)
        params = 0 if "#" in name else sum(p.numel() for p in module.parameters())
        # What ran, too: a function or a configuration that the module holds does not show in its plain attributes.
        ran = ",".join(counts.ran[first:])
        kind, code = type(module).__name__, hashlib.sha256(f"{structure_code(module)}|{ran}".encode()).hexdigest()[:16]
        found[name] = Block(kind, code, _text(source), _text(target), counts.macs - macs, params, counts.peak)

    # Attention as its matrix products: the counters do not know every fused kernel.
    with calls_of(network, level, begin, end), sdpa_kernel(SDPBackend.MATH), counts:
        yield found
    params = sum(p.numel() for p in network.parameters()) - sum(block.params for block in found.values())
    macs = counts.macs - sum(block.macs for block in found.values())
    if params or macs:
        found[REST] = Block("rest", "rest", "", "", macs, params, 0)


def _text(tensor: Tensor | None) -> str:
    return "" if tensor is None else "x".join(str(n) for n in tensor.shape[1:])


@contextmanager
def calls_of(
    network: nn.Module,
    level: int,
    begin: Callable[[str, nn.Module, Any], None],
    end: Callable[[str, nn.Module, Any], None],
) -> Iterator[None]:
    """Hooks on the blocks of a network: told of every call's name, module and (args, kwargs), then of its output."""
    calls: Counter[str] = Counter()

    def name_of(path: str) -> str:
        return path if calls[path] == 1 else f"{path}#{calls[path]}"

    def before(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[path] += 1
            begin(name_of(path), module, (args, kwargs))

        return hook

    def after(path: str) -> Any:
        return lambda module, args, kwargs, output: end(name_of(path), module, output)

    hooks = []
    for path, module in _blocks(network, level):
        hooks.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        hooks.append(module.register_forward_hook(after(path), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _blocks(module: nn.Module, level: int, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        full = f"{path}.{name}" if path else name
        container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not container and (level == 1 or not any(True for _ in child.children())):
            yield full, child
        else:
            yield from _blocks(child, level if container else level - 1, full)


class _Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What runs inside: names of operations, multiply-accumulates, and the most bytes that one of them reads and writes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs, self.peak = 0, 0
        self.ran: list[str] = []
        self._weights = {id(t): t for t in (*network.parameters(), *network.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.ran.append(str(func))
        if func._overloadpacket in flop_registry:
            self.macs += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=output) // 2
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        data = [t for t in read if id(t) not in self._weights]
        written = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if read and not data:  # a view of a weight, or a weight made of weights
            self._weights |= {id(t): t for t in written}
        elif not getattr(func, "is_view", False):
            alive = {id(t): t.numel() for t in (*data, *written)}
            self.peak = max(self.peak, FLOAT_BYTES * sum(alive.values()))
        return output


def structure_code(block: nn.Module) -> str:
    """Sixteen digits that are equal for blocks that compute the same, whatever the values of their weights are."""
    digest = hashlib.sha256()
    for path, module in block.named_modules():
        cls = type(module)
        plain = sorted((k, v) for k, v in vars(module).items() if not k.startswith("_") and _is_plain(v) and k != "training")
        digest.update(f"{path}|{cls.__module__}.{cls.__qualname__}|{module.extra_repr()}|{plain}|".encode())
        if not cls.__module__.startswith("torch."):
            digest.update(_source(cls).encode())
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            digest.update(f"{name}:{None if tensor is None else tuple(tensor.shape)}|".encode())
        for name, tensor in module._buffers.items():
            if tensor is not None and not tensor.is_meta and not is_statistic(module):
                digest.update(f"{name}=".encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | type(None)) or (
        isinstance(value, tuple | list) and all(_is_plain(part) for part in value)
    )


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # typed in at a prompt, or compiled
        return ""


# ---- all networks of a space ------------------------------------------------------------------------------------


def positions_of(space: ElasticSpace) -> list[Position]:
    """The lowering: every block's layer as a function of the choices that change it.

    Raises:
        UserError: a block that depends on so many choices that its layers cannot be listed.
    """
    return _Lowering(space).positions()


class _Lowering:
    """The traces of a space's networks, kept by row, and what they say about the choices."""

    def __init__(self, space: ElasticSpace) -> None:
        self.space = space
        self.rng = np.random.default_rng(0)
        self.largest = space.to_array(space.largest)[0]
        self.traces: dict[bytes, Traced] = {}
        self.genes: defaultdict[str, set[int]] = defaultdict(set)

    def at(self, row: Rows) -> Traced:
        row = self.space.canonical(row[None])[0]
        key = row.tobytes()
        if key not in self.traces:
            self.traces[key] = trace(self.space, self.space.from_array(row[None])[0])
        return self.traces[key]

    def positions(self) -> list[Position]:
        order = list(self.at(self.largest))
        self._probe()
        while self._refine():
            pass
        extra = {name: None for found in self.traces.values() for name in found if name not in order}
        return [self._position(name) for name in (*order, *extra)]

    def _probe(self) -> None:
        """Which gene changes which block, seen from both ends and from two random networks."""
        ends = [self.largest, np.zeros_like(self.largest), *self.space.sample_rows(2, self.rng)]
        for base in ends:
            before = self.at(base)
            for gene, length in enumerate(self.space.lengths):
                for option in range(length):
                    row = base.copy()
                    row[gene] = option
                    for name in _differing(before, self.at(row)):
                        self.genes[name].add(gene)

    def _refine(self) -> bool:
        """Compare the lowering of random networks with their traces; True when a block turned out to need another gene."""
        halves = [self.space.sample_rows(_CHECKED // 2, np.random.default_rng(1), per_gene=flag) for flag in (False, True)]
        for row in np.concatenate(halves):
            found = self.at(row)
            for name in dict.fromkeys([*found, *self.genes]):
                start = self._with(name, row)
                if self.at(start).get(name) != found.get(name):
                    self.genes[name].add(self._culprit(name, start, row))
                    return True
        return False

    def _with(self, name: str, row: Rows) -> Rows:
        """The largest network with a row's options for the genes that a block depends on."""
        genes = sorted(self.genes[name])
        start: Rows = self.largest.copy()
        start[genes] = row[genes]
        return start

    def _culprit(self, name: str, start: Rows, row: Rows) -> int:
        """The first gene on the way from one row to another that changes the block."""
        at = start.copy()
        for gene in np.flatnonzero(start != row):
            before = self.at(at).get(name)
            at[gene] = row[gene]
            if self.at(at).get(name) != before:
                return int(gene)
        raise AssertionError(f"'{name}' differs between two networks with the same choices")

    def _position(self, name: str) -> Position:
        genes = sorted(self.genes[name])
        options = [self.space.genes[gene].options for gene in genes]
        if math.prod(map(len, options)) > MOST_LAYERS:
            names = ", ".join(self.space.genes[gene].name for gene in genes)
            raise UserError(
                f"block '{name}' depends on {len(genes)} choices ({names}): more than {MOST_LAYERS} different layers",
                allowed="A block is a part of the network that few choices change",
                next_step="Take the network apart deeper: nas.elastic(..., block_level=2), or offer fewer options",
            )

        def layer(*values: Any) -> Layer | None:
            row = self.largest.copy()
            for gene, known, value in zip(genes, options, values, strict=True):
                row[gene] = known.index(value)
            return cast(Layer | None, self.at(row).get(name))

        return Position(name, tuple(self.space.genes[gene].name for gene in genes), layer)


def _differing(first: Traced, second: Traced) -> list[str]:
    return [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
