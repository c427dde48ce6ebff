"""The Pareto front: non-dominated architectures, what each of them promises, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import search_spaces
from nas.objectives import KNOWN, parse_limits
from search_spaces import Architecture, SearchSpace
from search_spaces.artifacts import read_json, write_json
from search_spaces.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ParetoFront", "Point", "non_dominated", "spread_out"]

FRONT_VERSION = 1
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A network of the front.

    Attributes:
        values: promised values by objective (accuracy a fraction, latency in ms), and exact counts.
        std: one standard deviation of the promised values that are predictions.
    """

    arch: Architecture
    values: dict[str, float]
    std: dict[str, float]


@dataclass(frozen=True)
class ParetoFront:
    """Points in order of the second objective (the cheapest first), one per network; ties keep the first one found.

    Attributes:
        objectives: names, the ones that were optimised.
        limits: objective -> bound.
        provenance: device, predictor's report card, table quality, seed, evaluations.
    """

    space: SearchSpace
    points: tuple[Point, ...]
    objectives: tuple[str, ...]
    limits: dict[str, float]
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def costs(self) -> Values:
        """(points, objectives), every column to be minimised."""
        signs = [-1.0 if KNOWN[name][1] else 1.0 for name in self.objectives]
        return np.array(
            [[sign * p.values[name] for name, sign in zip(self.objectives, signs, strict=True)] for p in self.points]
        )

    def pick(self, what: str) -> Point:
        """One point: ``knee``, ``fastest``, ``best`` (accuracy), an id, or ``latency=5ms`` (the most accurate within it).

        Raises:
            UserError: nothing on the front fits.
        """
        by_name = {
            "best": lambda: max(self.points, key=lambda p: p.values.get("accuracy", 0.0)),
            "fastest": lambda: min(self.points, key=lambda p: p.values.get("latency", p.values["macs"])),
            "knee": self._knee,
        }
        if what in by_name:
            return by_name[what]()
        if "=" in what:
            name, _, value = what.partition("=")
            limit = parse_limits({name: value})[0]
            within = [p for p in self.points if name in p.values and limit.excess(np.array(p.values[name])) <= 0]
            if within:
                return max(within, key=lambda p: p.values.get("accuracy", 0.0))
        for point in self.points:
            if point.arch.id == what:
                return point
        raise UserError(
            f"no point of the front is '{what}'",
            allowed=f"knee, best, fastest, a limit such as latency=5ms, or an id: {', '.join(p.arch.id for p in self.points)}",
            next_step="Choose one of them",
        )

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
            {"id": p.arch.id, **p.values, **{f"{name}_std": s for name, s in p.std.items()}, "architecture": str(p.arch)}
            for p in self.points
        ]
        return pd.DataFrame(rows)

    def save(self, path: Path) -> None:
        points = [{"id": p.arch.id, "architecture": p.arch.to_dict(), "values": p.values, "std": p.std} for p in self.points]
        body = {
            "space": self.space.to_dict(),
            "objectives": list(self.objectives),
            "limits": self.limits,
            "points": points,
            "provenance": self.provenance,
        }
        write_json(path, "front", FRONT_VERSION, body)

    @classmethod
    def load(cls, path: str | Path) -> ParetoFront:
        """Read ``front.json``.

        Raises:
            UserError: missing or damaged.
        """
        file = Path(path)
        value = read_json(file, "front", FRONT_VERSION, make=f"nas search {file.parent}")
        try:
            space = search_spaces.from_dict(value["space"])
            points = tuple(
                Point(space.architecture(**p["architecture"]), dict(p["values"]), dict(p["std"])) for p in value["points"]
            )
            return cls(space, points, tuple(value["objectives"]), dict(value["limits"]), dict(value["provenance"]))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({error!r})",
                allowed="The file as nas search writes it",
                next_step=f"Remove it and run: nas search {file.parent}",
            ) from None


def non_dominated(costs: Values) -> NDArray[np.intp]:
    """Indices of the rows of (N, objectives) that no other row dominates (all minimised); of equal rows the first."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    _, first = np.unique(costs, axis=0, return_index=True)
    first = np.sort(first)
    front = NonDominatedSorting().do(costs[first], only_non_dominated_front=True)
    return np.sort(first[front])


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
