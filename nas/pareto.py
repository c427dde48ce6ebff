"""The Pareto front: non-dominated architectures, what each of them promises, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import search_spaces
from nas.objectives import KNOWN, format_value, kind_of, parse_limits
from search_spaces import Architecture, SearchSpace
from search_spaces.artifacts import read_json, write_json
from search_spaces.errors import UserError
from search_spaces.records import reading, record

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = ["ParetoFront", "Point", "direction_of", "hypervolume_trace", "non_dominated", "spread_out"]

# Version 1 listed the objectives by name, all of them the toolkit's own; 2 had no parts, records and measured values.
FRONT_VERSION = 3
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A network of the front.

    Attributes:
        values: promised values by objective (accuracy a fraction, latency in ms), and exact counts.
        std: one standard deviation of the promised values that are predictions, the standard error of measured ones.
        measured: names of the values that were measured; the others are predicted, estimated, or exact counts.
    """

    arch: Architecture
    values: dict[str, float]
    std: dict[str, float]
    measured: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParetoFront:
    """Points in order of the second objective (the cheapest first), one per network; ties keep the first one found.

    Attributes:
        objectives: what was optimised: name -> ``"max"`` or ``"min"``.
        limits: name -> bound: at least for what is to be large, at most for everything else.
        provenance: device, predictor's report card, table quality, seed, evaluations.
        parts: further fronts of the same search by name: one per combination of budgets, and each device's own.
        records: what the search noted: hypervolume after every evaluation, the price of sharing a network, the request.
        at_least: limited quantities that are to be large, and are no objectives.
    """

    space: SearchSpace
    points: tuple[Point, ...]
    objectives: dict[str, str]
    limits: dict[str, float]
    provenance: dict[str, Any]
    parts: dict[str, ParetoFront] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    at_least: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        points: Iterable[Point],
        *,
        objectives: Mapping[str, str],
        limits: Mapping[str, float],
        provenance: Mapping[str, Any],
        at_least: Sequence[str] = (),
    ) -> ParetoFront:
        """The front of any points: those within the limits that no other one dominates."""
        front = cls(space, (), dict(objectives), dict(limits), dict(provenance), at_least=tuple(at_least))
        directions = {name: front.direction(name) for name in limits}
        inside = [p for p in points if all(_within(p.values[name], bound, directions[name]) for name, bound in limits.items())]
        if not inside:
            return front
        front = replace(front, points=tuple(inside))
        costs = front.costs()
        kept = sorted(non_dominated(costs).tolist(), key=lambda i: (costs[i, min(1, costs.shape[1] - 1)], inside[i].arch.id))
        return replace(front, points=tuple(inside[i] for i in kept))

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def costs(self) -> Values:
        """(points, objectives), every column to be minimised."""
        signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in self.objectives.items()}
        costs = [[sign * p.values[name] for name, sign in signs.items()] for p in self.points]
        return np.array(costs, dtype=np.float64).reshape(len(self.points), len(signs))

    def pick(self, what: str) -> Point:
        """One point: ``knee``, ``best`` (first in accuracy), ``fastest`` (in latency), an id, or a limit.

        Without accuracy (latency), the first (second) objective counts. A limit such as ``latency=5ms`` picks the best
        point within it, ``accuracy=90%`` the fastest one. ``latency@DEVICE=5ms`` looks at that device's own front, too.

        Raises:
            UserError: nothing on the front fits.
        """
        if self.points and what in ("best", "fastest", "knee"):
            return self._knee() if what == "knee" else min(self.points, key=self._cost_of(what))
        if "=" in what:
            name, _, value = what.rpartition("=")
            own = [p for part in self.parts.values() if part.provenance.get("device") == name.partition("@")[2] for p in part]
            name = self.own_name(name)
            bound, direction = self._bound(name, value)
            within = [p for p in [*self.points, *own] if name in p.values and _within(p.values[name], bound, direction)]
            if within:
                return min(within, key=self._cost_of("fastest" if name == "accuracy" else "best"))
            if known := [p.values[name] for p in [*self.points, *own] if name in p.values]:
                best = max(known) if direction == "max" else min(known)
                raise UserError(
                    f"no point of the front keeps {what}",
                    allowed=f"The best {name} on it is {format_value(name, best) if kind_of(name) in KNOWN else f'{best:g}'}",
                    next_step="Choose a looser limit, or search again with it",
                )
        for point in [*self.points, *(point for part in self.parts.values() for point in part)]:
            if point.arch.id == what:
                return point
        if not self.points:
            raise UserError(
                f"no point of the front is '{what}'",
                allowed="The front is empty: no network was within the limits",
                next_step="Search again with other limits",
            )
        raise UserError(
            f"no point of the front is '{what}'",
            allowed=f"knee, best, fastest, a limit such as latency=5ms, or an id: {', '.join(p.arch.id for p in self.points)}",
            next_step="Choose one of them",
        )

    def direction(self, name: str) -> str:
        """``"max"`` or ``"min"``: an objective's own, else that of the toolkit's quantities, else as the limit says."""
        return "max" if name in self.at_least else direction_of(name, self.objectives)

    def own_name(self, name: str) -> str:
        """A quantity as the points have it: that of the first device goes without device."""
        kind, _, device = name.partition("@")
        return kind if device and device == self.provenance.get("device") else name

    def _cost_of(self, what: str) -> Callable[[Point], float]:
        """What ``best`` and ``fastest`` minimise."""
        gains = [name for name, direction in self.objectives.items() if direction == "max"]
        costs = [name for name in self.objectives if name not in gains]
        if what == "best":
            wanted = ["accuracy", *gains, *costs]
        else:
            wanted = ["latency", *(name for name in costs if name.startswith("latency")), "macs", *costs, *gains]
        name = next(name for name in wanted if all(name in p.values for p in self.points))
        sign = -1.0 if self.direction(name) == "max" else 1.0
        return lambda point: sign * point.values[name]

    def _bound(self, name: str, value: str) -> tuple[float, str]:
        """A limit as `pick` takes it: with a unit for the toolkit's own quantities, a plain number for others."""
        direction = self.direction(name)
        if kind_of(name) in KNOWN:
            return parse_limits({name: value})[0].bound, direction
        try:
            return float(value), direction
        except ValueError:
            raise UserError(f"limit {name}={value}", allowed="A number", next_step=f"Write for example: {name}=1.5") from None

    def _knee(self) -> Point:
        """The point farthest from the line between the extremes, in objectives scaled to 0..1."""
        costs = self.costs()
        span = np.ptp(costs, axis=0)
        scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
        return self.points[int(scaled.sum(axis=1).argmin())]

    def to_frame(self) -> pd.DataFrame:
        """One row per network: id, promised values, spreads, architecture."""
        import pandas as pd

        rows = [
            {
                "id": p.arch.id,
                **p.values,
                **{f"{name}_std": s for name, s in p.std.items()},
                "measured": " ".join(p.measured),
                "architecture": str(p.arch),
            }
            for p in self.points
        ]
        columns = ["id", *dict.fromkeys([*self.objectives, *self.limits]), "measured", "architecture"]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)

    def plot(self) -> Figure:
        """The first two objectives as a plotly figure (accuracy upwards), for notebooks; hover names each network."""
        from nas.pages.plots import front_figure

        return front_figure(self)

    def save(self, path: str | Path) -> None:
        """Write the front as JSON, see `load`."""
        parts = {name: part._body() for name, part in self.parts.items()}
        body = {"space": self.space.to_dict(), **self._body(), "parts": parts, "records": self.records}
        write_json(Path(path), "front", FRONT_VERSION, body)

    def _body(self) -> dict[str, Any]:
        points = [
            {"id": p.arch.id, "architecture": p.arch.to_dict(), "values": p.values, "std": p.std, "measured": list(p.measured)}
            for p in self.points
        ]
        floors = {"at_least": list(self.at_least)} if self.at_least else {}
        return {"objectives": self.objectives, "limits": self.limits, "points": points, "provenance": self.provenance, **floors}

    @classmethod
    def load(cls, path: str | Path) -> ParetoFront:
        """Read ``front.json``.

        Raises:
            UserError: missing or damaged.
        """
        file = Path(path)
        value = read_json(file, "front", FRONT_VERSION, make=f"nas search {file.parent}")
        with reading(
            file, allowed="The file as nas search writes it", next_step=f"Remove it and run: nas search {file.parent}"
        ):
            space = search_spaces.from_dict(value["space"])
            parts = {name: cls._from(space, part) for name, part in value.get("parts", {}).items()}
            return replace(cls._from(space, value), parts=parts, records=dict(value.get("records", {})))

    @classmethod
    def _from(cls, space: SearchSpace, value: Mapping[str, Any]) -> ParetoFront:
        found = record(_Stored, value)
        points = tuple(Point(space.architecture(**p.architecture), p.values, p.std, tuple(p.measured)) for p in found.points)
        listed = found.objectives
        objectives = dict(listed) if isinstance(listed, dict) else {str(name): usual_direction(str(name)) for name in listed}
        if not objectives or not set(objectives.values()) <= {"max", "min"}:
            raise ValueError(f"the objectives are {listed!r:.60}")
        if any(not objectives.keys() <= point.values.keys() for point in points):
            raise ValueError("a network lacks the value of an objective")
        return cls(space, points, objectives, found.limits, found.provenance, at_least=tuple(found.at_least))


@dataclass(frozen=True)
class _StoredPoint:
    architecture: dict[str, Any]
    values: dict[str, float]
    std: dict[str, float]
    measured: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Stored:
    """A front as JSON has it."""

    points: list[_StoredPoint]
    objectives: Any
    limits: dict[str, float]
    provenance: dict[str, Any]
    at_least: list[str] = field(default_factory=list)


def direction_of(name: str, objectives: Mapping[str, str]) -> str:
    """``"max"`` or ``"min"``: an objective's own, else the usual one."""
    return objectives.get(name, usual_direction(name))


def usual_direction(name: str) -> str:
    """Of a quantity that is no objective: the toolkit's own know theirs, any other one is a cost."""
    return "max" if kind_of(name) in KNOWN and KNOWN[kind_of(name)][1] else "min"


def _within(value: float, bound: float, direction: str) -> bool:
    return value >= bound if direction == "max" else value <= bound


def non_dominated(costs: Values) -> NDArray[np.intp]:
    """Indices of the rows of (N, objectives) that no other row dominates (all minimised); of equal rows the first."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    _, first = np.unique(costs, axis=0, return_index=True)
    first = np.sort(first)
    front = NonDominatedSorting().do(costs[first], only_non_dominated_front=True)
    return np.sort(first[front])


def hypervolume_trace(costs: Values, worst: Values) -> Values:
    """Hypervolume of the front after each evaluation, (N,); costs (N, objectives) minimised, infinite outside limits."""
    from pymoo.indicators.hv import HV

    volume, front, found = HV(ref_point=worst), costs[:0], np.zeros(len(costs))
    for index, row in enumerate(costs):
        new = bool((row < worst).all()) and not (front <= row).all(axis=1).any()
        if new:
            front = np.concatenate([front, row[None]])
            front = front[non_dominated(front)]
        found[index] = volume(front) if new else (found[index - 1] if index else 0.0)
    return found


def spread_out(costs: Values, n: int) -> list[int]:
    """Up to n rows of a front (N, objectives), extremes first, then always the one farthest from those chosen."""
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
    chosen: list[int] = list(dict.fromkeys(int(i) for i in costs.argmin(axis=0)))[:n]
    distance = _distances(scaled, chosen)
    while len(chosen) < min(n, len(costs)) and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, _distances(scaled, chosen[-1:]))
    return sorted(chosen)


def _distances(scaled: Values, to: Sequence[int]) -> Values:
    return np.linalg.norm(scaled[:, None, :] - scaled[None, list(to), :], axis=2).min(axis=1)  # type: ignore[no-any-return]
