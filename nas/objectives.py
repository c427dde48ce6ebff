"""What a search optimises and what bounds it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces import Architecture, SearchSpace
from search_spaces.costs import Cost
from search_spaces.errors import UserError, unknown_name

__all__ = [
    "OF_DEVICES",
    "Budgets",
    "Limit",
    "Objective",
    "check_feasible",
    "directions_of",
    "kind_of",
    "nearest",
    "objectives_of",
    "on_device",
    "parse_budgets",
    "parse_limits",
    "suggestion",
    "violations",
]

OF_DEVICES = ("latency", "throughput", "energy")
Rows = NDArray[np.int64]
Values = NDArray[np.float64]

# name -> (unit, larger is better); units scale what the user writes into what the toolkit stores.
KNOWN: Mapping[str, tuple[str, bool]] = {
    "accuracy": ("", True),
    "latency": ("ms", False),
    "throughput": ("images/s", True),
    "energy": ("J", False),
    "macs": ("", False),
    "params": ("", False),
    "size": ("bytes", False),
    "memory": ("bytes", False),
}
_SCALES: Mapping[str, Mapping[str, float]] = {
    "accuracy": {"": 1.0, "%": 0.01},
    "latency": {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3},
    "throughput": {"": 1.0, "k": 1e3, "m": 1e6},
    "energy": {"": 1.0, "j": 1.0, "mj": 1e-3, "uj": 1e-6},
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
        best: the best value in the whole space and a row (genes,) that has it, exact and without search; None where only
            a search could tell.
        worst: the other end, alike.
    """

    name: str
    unit: str
    maximise: bool
    values: Callable[[Rows], Values]
    best: Callable[[], tuple[float, Rows]] | None = None
    worst: Callable[[], tuple[float, Rows]] | None = None


@dataclass(frozen=True)
class Limit:
    """A bound on an objective: at least ``bound`` where larger is better, at most ``bound`` otherwise."""

    objective: str
    bound: float

    def excess(self, values: Values) -> Values:
        """How far values violate the limit, (N,); zero or negative is within it."""
        return self.bound - values if self.maximised else values - self.bound

    @property
    def maximised(self) -> bool:
        """Whether larger is better."""
        return KNOWN[kind_of(self.objective)][1]

    def __str__(self) -> str:
        sign = ">=" if self.maximised else "<="
        return f"{self.objective} {sign} {format_value(self.objective, self.bound)}"

    @property
    def exact(self) -> str:
        """With every digit, in the unit that is stored."""
        return f"{self.objective} {'>=' if self.maximised else '<='} {self.bound!r}"


def violations(limits: Sequence[Limit], values: Mapping[str, Values], n: int) -> Values:
    """How far n networks exceed limits, in shares of the bounds, so that limits of different units weigh alike, (n,).

    Args:
        values: of the networks, (n,) for every limited quantity.
    """
    total = np.zeros(n)
    for limit in limits:
        total += np.maximum(limit.excess(values[limit.objective]) / limit.bound, 0.0)
    return total


def nearest(limits: Sequence[Limit], values: Mapping[str, Values], n: int) -> str:
    """What the network that exceeds limits least has of the limited quantities, for people; see `violations`."""
    at = int(violations(limits, values, n).argmin())
    found = {limit.objective: format_value(limit.objective, float(values[limit.objective][at])) for limit in limits}
    return ", ".join(f"{name} {text}" for name, text in found.items())


Budgets = list[list[Limit]]


def kind_of(name: str) -> str:
    """What a quantity is, whatever device it is of: ``latency@phone`` is a latency."""
    return name.partition("@")[0]


def on_device(kind: str, device: str, first: str) -> str:
    """The name of a device's quantity: that of the first device of a search needs no device."""
    return kind if device == first else f"{kind}@{device}"


def format_value(name: str, value: float) -> str:
    """A value with its unit, for people."""
    kind = kind_of(name)
    if kind == "accuracy":
        return f"{value:.1%}"
    if kind == "latency":
        return f"{value:.3g} ms"
    if kind == "energy":
        return f"{1e3 * value:.3g} mJ"
    unit = "" if kind == "throughput" else KNOWN[kind][0] and "B"
    tail = " images/s" if kind == "throughput" else ""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {suffix}{unit}{tail}"
    return f"{value:.3g} {unit}{tail.strip()}".strip()


def parse_limits(given: Mapping[str, Any]) -> list[Limit]:
    """Limits from name -> number or text with a unit, e.g. ``{"latency": "5ms", "params": "4M", "accuracy": "90%"}``.

    Raises:
        UserError: an unknown objective, something that is not a positive number, or an unknown unit.
    """
    return [_limit(name, value) for name, value in given.items()]


def parse_budgets(given: Mapping[str, Any]) -> Budgets:
    """Every combination of the limits, where a quantity may have several budgets (a list, or text with commas).

    ``{"latency": "5ms,10ms", "params": "4M"}`` gives two combinations. Without limits there is one, which is empty.

    Raises:
        UserError: as for `parse_limits`, or more than 64 combinations.
    """
    listed = []
    for name, value in given.items():
        values = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]
        parts = [part for item in values for part in (item.split(",") if isinstance(item, str) else [item])]
        limits = {limit.bound: limit for limit in (_limit(name, part) for part in parts)}
        listed.append([limits[bound] for bound in sorted(limits)])
    found = [list(combination) for combination in itertools.product(*listed)]
    if len(found) > MOST_BUDGETS:
        raise UserError(
            f"{len(found)} combinations of budgets",
            allowed=f"At most {MOST_BUDGETS}, one front each",
            next_step="Give fewer budgets, or search again with others: the scores are kept",
        )
    return found


def _limit(name: str, value: Any) -> Limit:
    kind = kind_of(name)
    if kind not in KNOWN:
        raise unknown_name("objective", name, KNOWN, command="nas search --help")
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)\s*", str(value))
    number = float(match[1]) if match else 0.0
    unit = match[2].lower() if match else ""
    if not match or unit not in _SCALES[kind] or not 0 < number < 1e18:
        units = ", ".join(u for u in _SCALES[kind] if u) or "none"
        raise UserError(
            f"limit {name}={value}",
            allowed=f"A positive number, with or without a unit ({units})",
            next_step=f"Write for example: --limit {name}={_EXAMPLES[kind]}",
        )
    return Limit(name, number * _SCALES[kind][unit])


MOST_BUDGETS = 64
_EXAMPLES = {
    "accuracy": "90%",
    "latency": "5ms",
    "throughput": "500",
    "energy": "5mJ",
    "macs": "300M",
    "params": "4M",
    "size": "10MB",
    "memory": "2MB",
}


def objectives_of(
    space: SearchSpace,
    *,
    latency: Cost | Mapping[str, Cost] | None = None,
    energy: Mapping[str, Cost] | None = None,
    batches: Mapping[str, int] | None = None,
) -> dict[str, Objective]:
    """All objectives that can be computed: exact counts always, latency and energy where a source is given.

    Args:
        latency: ms, of one device or by name (``latency``, ``latency@phone``).
        energy: J, by name, of the devices that count it.
        batches: images per run by the latency's name; gives throughput.
    """
    costs = {
        "macs": space.cost(lambda layer: layer.macs),
        "params": space.cost(lambda layer: layer.params),
        "size": space.cost(lambda layer: layer.weight_bytes),
        "memory": space.cost(lambda layer: layer.activation_bytes, peak=True),
    }
    costs |= {} if latency is None else latency if isinstance(latency, Mapping) else {"latency": latency}
    costs |= energy or {}
    found = {name: _of_cost(name, cost, len(space.genes)) for name, cost in costs.items()}
    for name, batch in (batches or {}).items():
        inverse = _throughput(name.replace("latency", "throughput", 1), found[name], batch)
        found[inverse.name] = inverse
    return found


def _of_cost(name: str, cost: Cost, genes: int) -> Objective:
    return Objective(name, *KNOWN[kind_of(name)], cost, lambda: cost.minimum(genes), lambda: cost.maximum(genes))


def _throughput(name: str, latency: Objective, batch: int) -> Objective:
    """Images per second from the latency of one run."""

    def end(of: Callable[[], tuple[float, Rows]] | None) -> tuple[float, Rows]:
        assert of is not None
        value, row = of()
        return 1e3 * batch / value, row

    unit, maximise = KNOWN["throughput"]
    return Objective(
        name,
        unit,
        maximise,
        lambda rows: 1e3 * batch / latency.values(rows),
        lambda: end(latency.best),
        lambda: end(latency.worst),
    )


def directions_of(names: Sequence[str]) -> dict[str, str]:
    """``"max"`` or ``"min"`` for names of `KNOWN`, as fronts store them."""
    return {name: "max" if KNOWN[kind_of(name)][1] else "min" for name in names}


def check_feasible(space: SearchSpace, objectives: Mapping[str, Objective], limits: Sequence[Limit]) -> None:
    """Refuse a limit that no network of the space meets; needs no search, the extremes of costs are exact.

    Raises:
        UserError: names the best reachable value and the network that has it.
    """
    for limit in limits:
        ends = objectives[limit.objective].best if limit.objective in objectives else None
        if ends is None:  # a prediction has no exact extremes
            continue
        value, row = ends()
        if float(limit.excess(np.array(value))) > 0:
            best: Architecture = space.from_array(row[None, :])[0]
            word, verb = ("largest", "Lower") if limit.maximised else ("smallest", "Raise")
            raise UserError(
                f"no network of {space.key} meets {limit}",
                allowed=f"The {word} {limit.objective} is {format_value(limit.objective, value)}, network {best.id} ({best})",
                next_step=f"{verb} the limit to that: --limit {suggestion(limit, value)}",
            )


def suggestion(limit: Limit, value: float) -> str:
    """A limit, as the command line takes it, that a reachable value meets."""
    kind = kind_of(limit.objective)
    scale, unit, digits = {
        "latency": (1.0, "ms", 3),
        "energy": (1e-3, "mJ", 4),
        "size": (1e3, "kB", 0),
        "memory": (1e3, "kB", 0),
        "throughput": (1.0, "", 0),
    }.get(kind, (1e3, "k", 0))
    step = 10.0**-digits
    rounded = np.floor(value / scale / step) if limit.maximised else np.ceil(value / scale / step)
    return f"{limit.objective}={rounded * step:.{digits}f}{unit}"
