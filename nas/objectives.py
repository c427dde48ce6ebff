"""What a search optimises and what bounds it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces import Architecture, SearchSpace
from search_spaces.costs import Cost
from search_spaces.errors import UserError, unknown_name

__all__ = ["Limit", "Objective", "check_feasible", "directions_of", "objectives_of", "parse_limits"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

# name -> (unit, larger is better); units scale what the user writes into what the toolkit stores.
KNOWN: Mapping[str, tuple[str, bool]] = {
    "accuracy": ("", True),
    "latency": ("ms", False),
    "macs": ("", False),
    "params": ("", False),
    "size": ("bytes", False),
    "memory": ("bytes", False),
}
_SCALES: Mapping[str, Mapping[str, float]] = {
    "accuracy": {"": 1.0, "%": 0.01},
    "latency": {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3},
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "size": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "memory": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
}


@dataclass(frozen=True)
class Objective:
    """A number per architecture that a search makes large or small.

    Attributes:
        unit: as it is stored ("" for fractions and counts).
        maximise: larger is better.
        values: (N, genes) canonical rows to (N,) values.
        cost: the same as an exact additive cost, where it is one: its extremes are known without search.
    """

    name: str
    unit: str
    maximise: bool
    values: Callable[[Rows], Values]
    cost: Cost | None = None


@dataclass(frozen=True)
class Limit:
    """A bound on an objective: at least ``bound`` where larger is better, at most ``bound`` otherwise."""

    objective: str
    bound: float

    def excess(self, values: Values) -> Values:
        """How far values violate the limit, (N,); zero or negative is within it."""
        return self.bound - values if KNOWN[self.objective][1] else values - self.bound

    def __str__(self) -> str:
        sign = ">=" if KNOWN[self.objective][1] else "<="
        return f"{self.objective} {sign} {format_value(self.objective, self.bound)}"


def format_value(name: str, value: float) -> str:
    """A value with its unit, for people."""
    if name == "accuracy":
        return f"{value:.1%}"
    if name == "latency":
        return f"{value:.3g} ms"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {suffix}{'B' if KNOWN[name][0] else ''}"
    return f"{value:.3g} {'B' if KNOWN[name][0] else ''}".strip()


def parse_limits(given: Mapping[str, Any]) -> list[Limit]:
    """Limits from name -> number or text with a unit, e.g. ``{"latency": "5ms", "params": "4M", "accuracy": "90%"}``.

    Raises:
        UserError: an unknown objective, something that is not a positive number, or an unknown unit.
    """
    limits = []
    for name, value in given.items():
        if name not in KNOWN:
            raise unknown_name("objective", name, KNOWN, command="nas search --help")
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)\s*", str(value))
        number = float(match[1]) if match else 0.0
        unit = match[2].lower() if match else ""
        if not match or unit not in _SCALES[name] or not 0 < number < 1e18:
            units = ", ".join(u for u in _SCALES[name] if u) or "none"
            raise UserError(
                f"limit {name}={value}",
                allowed=f"A positive number, with or without a unit ({units})",
                next_step=f"Write for example: --limit {name}={_EXAMPLES[name]}",
            )
        limits.append(Limit(name, number * _SCALES[name][unit]))
    return limits


_EXAMPLES = {"accuracy": "90%", "latency": "5ms", "macs": "300M", "params": "4M", "size": "10MB", "memory": "2MB"}


def objectives_of(
    space: SearchSpace, *, accuracy: Callable[[Rows], Values] | None = None, latency: Cost | None = None
) -> dict[str, Objective]:
    """All objectives that can be computed: exact counts always, accuracy and latency where a source is given."""
    costs = {
        "macs": space.cost(lambda layer: layer.macs),
        "params": space.cost(lambda layer: layer.params),
        "size": space.cost(lambda layer: layer.weight_bytes),
        "memory": space.cost(lambda layer: layer.activation_bytes, peak=True),
    }
    if latency is not None:
        costs["latency"] = latency
    found = {name: Objective(name, *KNOWN[name], values=cost, cost=cost) for name, cost in costs.items()}
    if accuracy is not None:
        found["accuracy"] = Objective("accuracy", *KNOWN["accuracy"], values=accuracy)
    return found


def directions_of(names: Sequence[str]) -> dict[str, str]:
    """``"max"`` or ``"min"`` for names of `KNOWN`, as fronts store them."""
    return {name: "max" if KNOWN[name][1] else "min" for name in names}


def check_feasible(space: SearchSpace, objectives: Mapping[str, Objective], limits: list[Limit]) -> None:
    """Refuse a limit that no network of the space meets; needs no search, the extremes of costs are exact.

    Raises:
        UserError: names the smallest reachable value and the network that has it.
    """
    for limit in limits:
        cost = objectives[limit.objective].cost if limit.objective in objectives else None
        if cost is None:  # a prediction has no exact extremes
            continue
        least, row = cost.minimum(len(space.genes))
        if least > limit.bound:
            best: Architecture = space.from_array(row[None, :])[0]
            raise UserError(
                f"no network of {space.key} meets {limit}",
                allowed=f"The smallest {limit.objective} is {format_value(limit.objective, least)}, network {best.id} ({best})",
                next_step=f"Raise the limit to at least that: --limit {limit.objective}={_suggest(limit.objective, least)}",
            )


def _suggest(name: str, least: float) -> str:
    scale, unit = {"latency": (1.0, "ms"), "size": (1e3, "kB"), "memory": (1e3, "kB")}.get(name, (1e3, "k"))
    digits = 3 if name == "latency" else 0
    step = 10.0**-digits
    return f"{np.ceil(least / scale / step) * step:.{digits}f}{unit}"
