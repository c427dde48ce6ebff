"""Built-in search spaces."""

from __future__ import annotations

from typing import Any

import search_spaces
from search_spaces import SearchSpace

__all__ = ["space", "spaces"]


def space(name: str, **parameters: Any) -> SearchSpace:
    """A built-in search space, e.g. ``nas.space("ofa-mobilenet-v3", width=1.2)``; `nas.spaces` lists them."""
    return search_spaces.build(name, **parameters)


def spaces() -> dict[str, str]:
    """Built-in search spaces: name -> one line about it."""
    return {name: (family.__doc__ or "").strip().splitlines()[0] for name, family in search_spaces.FAMILIES.items()}
