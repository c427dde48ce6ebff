"""Bring your own model: any constructor ``build(**choices)`` whose networks nest becomes a space and a supernet.

Weights are matched by name and cut by shape, so nothing of the user's code has to change. Every architecture is the
user's own module, built by the user's own constructor; it runs on slices of the largest network's tensors.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from search_spaces import Architecture, Choice, ElasticSpace
from search_spaces.architecture import Value
from search_spaces.elastic import RESERVED
from search_spaces.errors import UserError, unknown_name
from search_spaces.rows import genes_of
from supernets.construct import call_text, construct, is_statistic, shell
from supernets.sharing import Rule, shared_moves
from supernets.slicing import SlicePlan
from supernets.supernet import Supernet

__all__ = ["ElasticSupernet", "bound", "elastic", "elastic_space"]

_CACHED_ARCHITECTURES = 256
_TRIED = 8  # random networks that are compared with the largest one, beside those at the ends


def elastic(
    build: Callable[..., nn.Module],
    choices: Mapping[str, Sequence[Value] | Choice],
    *,
    input_shape: Sequence[int] | None = None,
    rules: Mapping[str, Rule] | None = None,
    fixed: Mapping[str, Any] | None = None,
    name: str | None = None,
    block_level: int = 1,
) -> ElasticSpace:
    """A search space of the networks that a constructor of your own builds; `Supernet` of it shares their weights.

    Args:
        build: ``build(**choices, **fixed) -> nn.Module``: one tensor in, logits (B, classes) out. Its largest network has
            every choice at its last option; the tensors of all others must lie inside it, name by name: a prefix of every
            dimension, the centre of a convolution's kernel. Whole modules may be missing in smaller networks.
        choices: name -> options, or a `Choice` for a list of them (positions without effect are given as None). The
            order is the one in which progressive shrinking opens them. ``resolution`` is the side of square input; the
            constructor gets it only if it takes it.
        input_shape: of one example, e.g. (3, 32, 32); training takes it from the data. Needed for MACs and latency.
        rules: name pattern -> ``rule(large, shape) -> part`` for tensors that are cut otherwise; see `fused`.
        fixed: further arguments of the constructor (JSON values).
        name: of the space; default: the constructor's.
        block_level: how deep the network is taken apart for MACs and latency: 1 the root's children, 2 their children,
            and so on; `nn.Sequential` and `nn.ModuleList` are always taken apart.

    Raises:
        UserError: choices that the constructor does not take, a constructor that raises, tensors that do not nest.
    """
    _check_choices(build, choices, fixed or {})
    space = elastic_space(
        build,
        choices,
        rules=rules,
        fixed=fixed,
        name=name or getattr(build, "__name__", type(build).__name__),
        block_level=block_level,
    )
    check_nesting(space)
    return space if input_shape is None else bound(space, input_shape)


def elastic_space(build: Callable[..., nn.Module], choices: Mapping[str, Any], **settings: Any) -> ElasticSpace:
    """An `ElasticSpace` that is lowered by tracing; nothing is checked."""
    from supernets.tracing import positions_of

    return ElasticSpace(build, choices, positions=positions_of, **settings)


def bound(space: ElasticSpace, input_shape: Sequence[int]) -> ElasticSpace:
    """The space for examples of a shape; runs the largest network once without values to count its outputs.

    Raises:
        UserError: the network cannot take such input, or does not give (B, classes).
    """
    from supernets.tracing import check_last_layer, outputs_of

    shaped = space.made_with(input_shape=list(input_shape))
    outputs = outputs_of(shaped)
    check_last_layer(shaped)
    return shaped.made_with(outputs=outputs)


def _check_choices(build: Any, choices: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    if not callable(build):
        raise UserError(f"build is {build!r}", allowed="A function or class", next_step="Give build(**choices) -> nn.Module")
    genes_of({name: Choice((0,)) for name in choices})  # refuses a space without any
    for name, options in choices.items():
        if not isinstance(options, Choice | list | tuple | range | np.ndarray):
            raise UserError(
                f"choice '{name}' is {options!r}", allowed="A list of options", next_step=f"Write: {{'{name}': [..., ...]}}"
            )
    for name, value in fixed.items():
        if name in (*RESERVED, "block_level"):
            raise UserError(
                f"fixed argument '{name}'",
                allowed="Any name but those that elastic has itself",
                next_step="Rename that argument",
            )
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise UserError(
                f"fixed argument '{name}' is {value!r:.80}",
                allowed="Numbers, texts, True, False, None, and lists and dicts of them: they are kept with every run",
                next_step="Give a name, and translate it in the constructor",
            ) from None
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # compiled constructors do not tell
        return
    takes = [p for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    given = {*choices, *fixed}
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for name in given - {p.name for p in takes} - {"resolution"}:
            raise unknown_name("argument of the constructor", name, [p.name for p in takes], command="help(build)")
    for parameter in takes:
        if parameter.default is parameter.empty and parameter.name not in given:
            raise UserError(
                f"the constructor needs '{parameter.name}'",
                allowed=f"Given: {', '.join(sorted(given))}",
                next_step=f"Make it a choice, or give it a value: fixed={{'{parameter.name}': ...}}",
            )


def _check_constants(space: ElasticSpace) -> None:
    """Refuse what belongs to each network and is not the same whenever it is built, and statistics that are never taken."""
    first = construct(space, space.largest)
    constants: dict[str, Tensor] = {}
    for path, module in first.named_modules():
        if isinstance(module, _InstanceNorm) and module.running_mean is not None:
            raise UserError(
                f"'{path}' is a {type(module).__name__} that tracks statistics",
                allowed="Batch normalisation's statistics are taken anew for every network, others are not",
                next_step="Write track_running_stats=False, which is also its default",
            )
        if not is_statistic(module):
            own = module.named_buffers(recurse=False)
            constants |= {f"{path}.{leaf}" if path else leaf: buffer for leaf, buffer in own}
    if not constants:
        return
    again = dict(construct(space, space.largest, seed=1).named_buffers())
    for name, buffer in constants.items():
        if name not in again or not torch.equal(buffer, again[name]):
            raise UserError(
                f"buffer '{name}' is another one whenever the network is built",
                allowed="A constant that the constructor computes without chance, or a parameter, which is shared",
                next_step="Make it an nn.Parameter (requires_grad=False if it is not trained), or draw it from a seed",
            )


def check_nesting(space: ElasticSpace) -> None:
    """Compare networks with the largest one: both ends, all that differ from an end in one choice, and a few at random.

    Raises:
        UserError: see `shared_moves`.
    """
    _check_constants(space)
    largest = shell(space, space.largest)
    tensors = [name for name, _ in itertools.chain(largest.named_parameters(), largest.named_buffers())]
    for pattern in space.rules:
        if not any(fnmatchcase(name, pattern) for name in tensors):
            raise unknown_name("tensor of a rule", pattern, tensors, command="print(dict(network.named_parameters()).keys())")
    archs = [space.smallest, *space.neighbours(space.largest), *space.neighbours(space.smallest), *space.sample(_TRIED)]
    for arch in dict.fromkeys(archs):
        names = (call_text(space, arch), call_text(space, space.largest))
        shared_moves(shell(space, arch), largest, space.rules, names=names)


class ElasticSupernet(Supernet):
    """The supernet of an `ElasticSpace`: the largest network's tensors, and any architecture run on slices of them.

    What `Supernet` says holds here too: ``supernet(x, arch)`` equals ``supernet.extract(arch)(x)`` bit for bit, and a call
    leaves nothing behind. Channels are not sorted by importance: which ones belong together is the user's code to say.

    Attributes:
        network: the largest network, as its constructor made it; a checkpoint of it fits (`load_pretrained`).
    """

    def __init__(
        self,
        space: ElasticSpace,
        classes: int | None = None,
        *,
        channels: int | None = None,
        seed: int = 0,
    ) -> None:
        nn.Module.__init__(self)
        self.space: ElasticSpace = space
        for name, wanted, own in (("classes", classes, space.parameters["outputs"]), ("channels", channels, self._channels())):
            if None not in (wanted, own) and wanted != own:
                raise UserError(
                    f"{name}={wanted} for space '{space.name}', whose networks have {own}",
                    allowed="The constructor decides",
                    next_step=f"Build the networks for {wanted} {name}",
                )
        self.network: nn.Module = construct(space, space.largest, seed=seed)
        self._runs: dict[tuple[Architecture, bool, torch.device], SlicePlan] = {}

    def _channels(self) -> int | None:
        shape = self.space.parameters["input_shape"]
        return None if shape is None else int(shape[0])

    @property
    def classes(self) -> int:
        _ = self.space.input_shape  # says what is missing
        return int(self.space.parameters["outputs"])

    @property
    def channels(self) -> int:
        return self.space.input_shape[0]

    def largest_tensors(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    @property
    def occupied(self) -> list[int]:
        """None: no position of the space has channels that could be sorted."""
        return []

    def bind(self, input_shape: Sequence[int]) -> None:
        """Take the input's shape from the data, where the space does not know it yet."""
        if self.space.parameters["input_shape"] is None:
            self.space = bound(self.space, input_shape)

    def _run(self, arch: Architecture) -> SlicePlan:
        """The plan of an architecture, kept for those used last."""
        tensor = next(self.parameters(), None)
        key = (arch, self.training, torch.device("cpu") if tensor is None else tensor.device)
        if key not in self._runs:
            self.space.to_array(arch)  # refuses one of another space
            if len(self._runs) >= _CACHED_ARCHITECTURES:
                del self._runs[next(iter(self._runs))]
            plain = self._placed(arch).train(self.training)
            for module in plain.modules():
                if is_statistic(module):
                    setattr(module, "track_running_stats", False)  # noqa: B010 (see supernets.slicing: never an update)
            self._runs[key] = SlicePlan(plain, tuple(self._moves(plain, arch)))
        return self._runs[key]

    def _placed(self, arch: Architecture) -> nn.Module:
        """The shell of an architecture, its constants on the supernet's device."""
        plain = shell(self.space, arch)
        tensor = next(self.parameters(), None)
        for module in plain.modules():
            for leaf, buffer in module._buffers.items():
                if tensor is not None and buffer is not None and not buffer.is_meta:
                    module._buffers[leaf] = buffer.to(tensor.device)
        return plain

    def _moves(self, plain: nn.Module, arch: Architecture) -> list[Any]:
        names = (call_text(self.space, arch), call_text(self.space, self.space.largest))
        return shared_moves(plain, self.network, self.space.rules, names=names)

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """Logits of one architecture: (B, *input_shape) to (B, classes)."""
        return self._run(arch).run(x)

    @torch.no_grad()
    def extract(self, arch: Architecture) -> nn.Module:
        """The user's own plain network with its own copy of the slices; nothing of the supernet is needed to run it."""
        self.space.to_array(arch)
        plain = self._placed(arch)
        tied: dict[int, nn.Parameter] = {}
        for move in self._moves(plain, arch):
            empty, value = move.target[move.leaf], move.value()
            assert empty is not None
            assert value is not None
            copy: Tensor = value.detach().clone(memory_format=torch.preserve_format)
            if isinstance(empty, nn.Parameter):
                copy = tied.setdefault(id(empty), nn.Parameter(copy, empty.requires_grad))
            move.target[move.leaf] = copy
        return plain.train(self.training)
