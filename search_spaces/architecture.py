"""One point of a search space."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["Architecture", "Value"]

Value = int | float | str | bool


@dataclass(frozen=True)
class Architecture:
    """A network by its choices; frozen, hashable, the same ``id`` wherever the same network is described.

    Made by a `SearchSpace`, which drops the choices that have no effect (those of a skipped block are ``None``).

    Attributes:
        space: key of the space, e.g. ``"ofa-mobilenet-v3(width=1.0)"``; restrictions of a space do not change it.
        choices: (name, value) pairs in the space's order; a value is a scalar, or a tuple with one entry per
            position and ``None`` where the position is inactive.
    """

    space: str
    choices: tuple[tuple[str, Value | tuple[Value | None, ...]], ...]

    def __getitem__(self, name: str) -> Any:
        """The value of a choice as it was given: a scalar, or a list with ``None`` at inactive positions."""
        for known, value in self.choices:
            if known == name:
                return list(value) if isinstance(value, tuple) else value
        raise KeyError(f"'{name}' is not a choice of {self.space}; choices: {', '.join(n for n, _ in self.choices)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``space.architecture(**arch.to_dict())`` gives the architecture back."""
        return {name: self[name] for name, _ in self.choices}

    @cached_property
    def id(self) -> str:
        """Ten hexadecimal digits, a hash of the space's key and the active choices."""
        text = json.dumps([self.space, self.to_dict()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def __str__(self) -> str:
        parts = []
        for name, value in self.choices:
            if isinstance(value, tuple):
                parts.append(f"{name}=" + " ".join("-" if v is None else str(v) for v in value))
            else:
                parts.append(f"{name}={value}")
        return ", ".join(parts)
