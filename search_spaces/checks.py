"""Refusals of what is given in place of architectures, rows and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import Architecture
from search_spaces.errors import UserError
from search_spaces.rows import Gene, RowSpace

__all__ = ["check_one", "check_own", "check_rows", "check_space", "check_whole"]


def check_space(space: Any) -> None:
    """Refuse what is no search space.

    Raises:
        UserError: as said.
    """
    if not isinstance(space, RowSpace):
        raise UserError(
            f"space is a {type(space).__name__}",
            allowed="A SearchSpace",
            next_step="Make one: nas.space(NAME) or nas.SearchSpace({choice: options})",
        )


def check_own(arch: Any, key: str, shape: tuple[tuple[str, int | None], ...]) -> None:
    """Refuse what is no architecture of a space.

    Args:
        key: of the space.
        shape: names of its choices and how many positions each has: spaces of plain choices may share a name.

    Raises:
        UserError: as said.
    """
    if not isinstance(arch, Architecture):
        raise UserError(
            f"{arch!r:.80} is a {type(arch).__name__}",
            allowed="Architectures, or an array of option indices",
            next_step="Make one with space.architecture(...), space.sample(n) or space.from_array(rows)",
        )
    own = tuple((name, len(value) if isinstance(value, tuple) else None) for name, value in arch.choices)
    if arch.space != key or own != shape:
        raise UserError(
            f"architecture {arch.id} belongs to {arch.space} with {', '.join(name for name, _ in own)}",
            allowed=f"This space is {key} with {', '.join(name for name, _ in shape)}",
            next_step="Build the architecture with this space, or use the space that it came from",
        )


def check_rows(rows: NDArray[Any], key: str, genes: Sequence[Gene], lengths: NDArray[np.int64]) -> None:
    """Refuse an array that is not (N, genes) of option indices.

    Raises:
        UserError: as said.
    """
    if rows.ndim != 2 or rows.shape[1] != len(genes) or not np.issubdtype(rows.dtype, np.integer):
        raise UserError(
            f"array of shape {rows.shape}, type {rows.dtype}",
            allowed=f"{key} takes (N, {len(genes)}) arrays of option indices, integers",
            next_step="Make one with space.to_array(archs)",
        )
    if rows.size and (rows.min() < 0 or (rows.max(axis=0) >= lengths).any()):
        at, gene = np.argwhere((rows < 0) | (rows >= lengths))[0]
        raise UserError(
            f"row {at} has {rows[at, gene]} for {genes[gene].name}",
            allowed=f"Indices of its options {list(genes[gene].options)}, from 0",
            next_step="Make rows with space.to_array(archs)",
        )


def check_one(**given: Any) -> None:
    """Refuse more than one of several arguments that exclude each other.

    Raises:
        UserError: as said.
    """
    both = [name for name, value in given.items() if value is not None]
    if len(both) > 1:
        raise UserError(
            f"{' and '.join(both)} together", allowed=f"One of {', '.join(given)}", next_step=f"Leave out {both[-1]}"
        )


def check_whole(name: str, number: Any, least: int = 0) -> None:
    """Refuse what is not a whole number, or too small.

    Raises:
        UserError: as said.
    """
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
        raise UserError(
            f"{name}={number!r}", allowed=f"A whole number, at least {least}", next_step=f"Give for example {name}=20"
        )
