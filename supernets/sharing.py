"""Which part of the largest network's tensors a smaller network of the user's own takes, matched by name and shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from search_spaces.errors import UserError
from supernets.construct import is_statistic
from supernets.slicing import Move, cuts_between

__all__ = ["Fused", "Rule", "fused", "shared_moves"]

Rule = Callable[[Tensor, tuple[int, ...]], Tensor]  # the largest network's tensor and the shape wanted -> the part of it


@dataclass(frozen=True)
class Fused:
    """A rule for tensors that hold several parts one after the other; see `fused`. The other dimensions are cut before it."""

    groups: int | tuple[int, ...]
    dim: int = 0

    def __repr__(self) -> str:
        return f"Fused(groups={self.groups}{f', dim={self.dim}' if self.dim else ''})"

    @property
    def shares(self) -> tuple[int, ...]:
        """Of each part, in units of the smallest common one."""
        return (1,) * self.groups if isinstance(self.groups, int) else self.groups

    def __call__(self, large: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The prefix of each part: n * sum(shares) of N * sum(shares) along ``dim``; all of a tensor without that dimension."""
        if large.ndim <= self.dim or large.shape[self.dim] == shape[self.dim]:
            return large
        whole = sum(self.shares)
        (have, over), (want, left) = divmod(large.shape[self.dim], whole), divmod(shape[self.dim], whole)
        if over or left:
            parts = ":".join(map(str, self.shares))
            raise ValueError(f"{large.shape[self.dim]} and {shape[self.dim]} along dimension {self.dim} are not parts {parts}")
        starts = itertools.accumulate(self.shares, initial=0)
        return torch.cat(
            [large.narrow(self.dim, n * have, share * want) for n, share in zip(starts, self.shares, strict=False)], self.dim
        )


def fused(groups: int | Sequence[int], *, dim: int = 0) -> Fused:
    """The rule for tensors that hold several parts along one dimension: each part is cut to its own prefix.

    For example ``rules={"*.in_proj_*": nas.fused(3)}`` for the query, key and value weights of torch's attention, and
    ``nas.fused(2, dim=1)`` for the weight of a convolution that reads two concatenated tensors of equal width.

    Args:
        groups: number of equal parts, or the ratio of unequal ones: ``(2, 1)`` when the first has twice the channels.
        dim: the dimension that holds them: 0 outputs (and biases, normalisations), 1 inputs. Tensors without it have none.

    Raises:
        UserError: no parts, or a negative number.
    """
    counts = (groups,) if isinstance(groups, int) else tuple(groups)
    if not counts or not all(type(n) is int and n > 0 for n in counts) or type(dim) is not int or dim < 0:
        raise UserError(
            f"fused({groups!r}, dim={dim!r})",
            allowed="A number of equal parts or a list of their ratios, whole numbers from 1; dim from 0",
            next_step="Write for example: nas.fused(3), nas.fused((2, 1), dim=1)",
        )
    return Fused(groups if isinstance(groups, int) else counts, dim)


def shared_moves(small: nn.Module, large: nn.Module, rules: Mapping[str, Rule], *, names: tuple[str, str]) -> list[Move]:
    """One move per tensor of the smaller network; its own constants are moved too, as copies.

    Args:
        rules: name pattern (as of files) -> rule, instead of the prefix of every dimension.
        names: of the smaller and of the largest network, for messages.

    Raises:
        UserError: a tensor that the largest network lacks, that is not nested in it, or that is missing although its module
            is there; the message names it and both networks.
    """
    owners = dict(large.named_modules())
    moves = []
    for path, module in small.named_modules():
        owner = owners.get(path)
        if owner is None:
            if any(True for _ in _tensors(module)):
                raise _unshared(f"module '{path}' is in {names[0]} and not in {names[1]}")
            continue
        if not any(True for part in module.modules() for _ in _tensors(part)):
            continue  # nothing is shared: a shortcut may be an nn.Identity where the largest network has a convolution
        _same_kind(path, module, owner, names)
        for target, source, leaf, tensor in _tensors(module):
            name = f"{path}.{leaf}" if path else leaf
            if target is module._buffers and not is_statistic(module):
                # A copy: a forward pass may write to a constant (a counter, a cache), and nothing may be left behind by it.
                moves.append(Move(name, target, {leaf: tensor}, leaf, rule=torch.clone))
                continue
            held = owner._parameters if source == "parameter" else owner._buffers
            moves.append(_move(name, target, leaf, tensor, held, owner, rules, names))
    return moves


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str, str, Tensor]]:
    for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
        for leaf, tensor in tensors.items():
            if tensor is not None:
                yield tensors, kind, leaf, tensor  # type: ignore[misc]


def _kind(module: nn.Module) -> str:
    """By name: a class that is defined inside the constructor is another object at every call."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _same_kind(path: str, module: nn.Module, owner: nn.Module, names: tuple[str, str]) -> None:
    if _kind(module) != _kind(owner):
        raise _unshared(
            f"'{path}' is a {type(module).__name__} in {names[0]} and a {type(owner).__name__} in {names[1]}",
        )
    for kind, have in (("_parameters", module._parameters), ("_buffers", module._buffers)):
        wanted = getattr(owner, kind)
        own = is_statistic(module) or kind == "_parameters"
        gone = [leaf for leaf, tensor in wanted.items() if own and tensor is not None and have.get(leaf) is None]
        if gone:
            name = f"{path}.{gone[0]}" if path else gone[0]
            raise _unshared(f"'{name}' is in {names[1]} and missing in {names[0]}, which has the rest of that module")


def _move(
    name: str,
    target: dict[str, Tensor | None],
    leaf: str,
    small: Tensor,
    held: dict[str, Tensor | None],
    owner: nn.Module,
    rules: Mapping[str, Rule],
    names: tuple[str, str],
) -> Move:
    large = held.get(leaf)
    want, have = tuple(small.shape), None if large is None else tuple(large.shape)
    if large is None or have is None or len(have) != len(want):
        raise _unshared(f"'{name}' is {want} in {names[0]} and {have or 'absent'} in {names[1]}")
    rule = next((rule for pattern, rule in rules.items() if fnmatchcase(name, pattern)), None)
    if rule is not None and not isinstance(rule, Fused):
        move = Move(name, target, held, leaf, rule=lambda tensor: rule(tensor, want))
        _try_rule(move, want, names)
        return move
    if any(h < w for h, w in zip(have, want, strict=True)):
        raise _unshared(f"'{name}' is {want} in {names[0]}, larger than {have} in {names[1]}")
    filters = isinstance(owner, _ConvNd) and leaf in ("weight", "weight_v")  # the latter under weight normalisation
    for w, h in zip(want[2:], have[2:], strict=True):
        if filters and (h - w) % 2:
            raise _unshared(f"'{name}' has a kernel of {w} in {names[0]} and of {h} in {names[1]}: no centre")
    cuts = cuts_between(want, have, filters=filters)
    if rule is None:
        return Move(name, target, held, leaf, cuts)
    rest = tuple(cut for cut in cuts if cut[0] != rule.dim)
    move = Move(name, target, held, leaf, rest, rule=lambda tensor: rule(tensor, want))
    _try_rule(move, want, names)
    return move


def _try_rule(move: Move, want: tuple[int, ...], names: tuple[str, str]) -> None:
    name = move.name
    try:
        value = move.value()
        assert value is not None
        found = tuple(value.shape)
    except UserError:
        raise
    except Exception as error:
        raise _unshared(f"the rule for '{name}' raised {type(error).__name__}: {error} ({names[0]}, {names[1]})") from error
    if found != want:
        raise _unshared(f"the rule for '{name}' gives {found} where {names[0]} has {want}")


def _unshared(problem: str) -> UserError:
    return UserError(
        problem,
        allowed="Every tensor of every network lies inside the largest network's tensor of the same name "
        "(every choice at its last option); a smaller network may lack whole modules",
        next_step="Order the options from small to large, give what stays the same name, or give a rule for the tensor",
    )
