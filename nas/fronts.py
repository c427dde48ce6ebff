"""From scores and predictions to fronts: of the whole search, of every budget, of every device, and the price of sharing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.archive import Score, accuracies
from nas.evolution import nsga2
from nas.goals import Goal, View
from nas.objectives import KNOWN, Limit, Objective, directions_of
from nas.pareto import ParetoFront, Point, hypervolume_trace, non_dominated, spread_out
from predictors import ArchitecturePredictor
from search_spaces import Architecture
from search_spaces.progress import Progress

__all__ = ["Pool", "hypervolumes"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]
REFERENCE = 20  # the first so many scores fix the worst accuracy that counts
MARGIN = 0.05  # the reference point lies so far, in shares of the range, beyond the worst cost


@dataclass(frozen=True)
class Pool:
    """The networks that fronts are taken from, with all their values.

    Attributes:
        scores: of networks whose values count as measured; empty where the front is made of predictions.
        rows: (N, genes) canonical, distinct.
        predictor: of accuracies; None where every row was scored.
        settled: nothing more will be scored. Where limits are kept by a network that was scored, a prediction has no place
            beside it: what evolution finds on predictions are those that err upwards.
    """

    goal: Goal
    predictor: ArchitecturePredictor | None
    scores: Sequence[Score]
    rows: Rows
    settled: bool = False

    @classmethod
    def search(
        cls,
        goal: Goal,
        predictor: ArchitecturePredictor,
        scores: Sequence[Score],
        *,
        seed: int,
        generations: int,
        progress: Progress,
    ) -> Pool:
        """Evolve on predictions, exact costs and table latencies: once for every view of the goal.

        Raises:
            UserError: no network within all limits was met.
        """
        known = {**goal.known, "accuracy": _objective(predictor)}
        found = [goal.space.to_array([score.arch for score in scores])] if scores else []
        for view in goal.views:
            wanted = [known[name] for name in view.objectives]
            limits = [(known[limit.objective], limit) for limit in goal.searched(view.limits)]
            found.append(nsga2(goal.space, wanted, limits, seed=seed, generations=generations, progress=progress))
        rows = np.concatenate(found)
        return cls(goal, predictor, scores, rows[goal.space.unique(rows)])

    @cached_property
    def values(self) -> dict[str, Values]:
        """Every quantity of the rows, (N,): measured accuracies where there are some, predicted ones elsewhere."""
        values = {name: objective.values(self.rows) for name, objective in self.goal.known.items()}
        predicted = self._measured[0] if self.predictor is None else self.predictor.mean(self.rows)
        return values | {"accuracy": np.where(self.is_measured, self._measured[0], predicted)}

    @cached_property
    def is_measured(self) -> NDArray[np.bool_]:
        return np.isfinite(self._measured[0])

    @cached_property
    def _measured(self) -> tuple[Values, Values]:
        """Accuracy and standard error of the rows that were scored, NaN elsewhere; (N,) each."""
        accuracy, error = np.full((2, len(self.rows)), np.nan)
        if self.scores:
            at = {row.tobytes(): index for index, row in enumerate(self.rows)}
            for row, score in zip(self.goal.space.to_array([s.arch for s in self.scores]), self.scores, strict=True):
                index = at[row.tobytes()]
                accuracy[index], error[index] = score.accuracy, score.standard_error
        return accuracy, error

    def front(self, points: int, provenance: dict[str, Any]) -> ParetoFront:
        """The main front with its parts, up to ``points`` networks each."""
        parts = {view.name: self._slice(view, points) for view in self.goal.parts}
        # A budget's front is a slice of the main one: whatever it shows is there, too; but no prediction beside scores.
        slices = [self._chosen(view, points) for view in self.goal.parts if view.device is None]
        chosen = np.unique(np.concatenate([self._chosen(self.goal.shared, points), *slices]))
        if self.settled and self.is_measured[chosen].any():
            chosen = chosen[self.is_measured[chosen]]
        main = self._made(self.goal.shared, chosen, provenance)
        records = {"sharing": self.sharing()} if len(self.goal.tables) > 1 else {}
        return replace(main, parts=parts, records=records)

    def unscored(self, points: int) -> list[Architecture]:
        """The networks of all fronts whose accuracy is a prediction."""
        views = [self.goal.shared, *self.goal.parts]
        chosen = np.unique(np.concatenate([self._chosen(view, points) for view in views]))
        return self.goal.space.from_array(self.rows[chosen[~self.is_measured[chosen]]])

    def sharing(self) -> list[dict[str, Any]]:
        """What it costs every device that one network has to serve all: accuracy lost at the device's budgets.

        Returns: for every combination of budgets and every device its ``limits``, the best network within its own limits
            (``accuracy``, ``id``), the best one within everybody's (``shared_accuracy``, ``shared_id``), and ``regret``, the
            difference. Combinations that nobody shares are left out.
        """
        found = []
        for case in self.goal.cases:
            shared = self._best(case)
            for device in self.goal.devices:
                own = [limit for limit in case if self.goal.device_of(limit.objective) in (None, device)]
                alone = self._best(own)
                if shared is None or alone is None:
                    continue
                accuracy, best = (float(self.values["accuracy"][index]) for index in (alone, shared))
                ids = [arch.id for arch in self.goal.space.from_array(self.rows[[alone, shared]])]
                row: dict[str, Any] = {"device": device, "limits": {limit.objective: limit.bound for limit in own}}
                row |= {"accuracy": accuracy, "id": ids[0], "shared_accuracy": best, "shared_id": ids[1]}
                found.append(row | {"regret": accuracy - best})
        return found

    def _best(self, limits: Sequence[Limit]) -> int | None:
        inside = np.flatnonzero(self._within(limits))
        return int(inside[self.values["accuracy"][inside].argmax()]) if len(inside) else None

    def _within(self, limits: Sequence[Limit]) -> NDArray[np.bool_]:
        inside = np.ones(len(self.rows), dtype=bool)
        for limit in self.goal.searched(limits):
            inside &= limit.excess(self.values[limit.objective]) <= 0
        scored = inside & self.is_measured
        return scored if self.settled and scored.any() else inside

    def _costs(self, view: View, indices: NDArray[np.intp]) -> Values:
        """(N, objectives), all minimised."""
        signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in directions_of(view.objectives).items()}
        return np.column_stack([sign * self.values[name][indices] for name, sign in signs.items()])

    def _chosen(self, view: View, points: int) -> NDArray[np.intp]:
        """A well-spread choice of a view's front, as indices of rows."""
        inside = np.flatnonzero(self._within(view.limits))
        if not len(inside):
            return inside
        costs = self._costs(view, inside)
        keep = non_dominated(costs)
        return inside[keep][spread_out(costs[keep], points)]

    def _slice(self, view: View, points: int) -> ParetoFront:
        own = {"device": view.device} if view.device is not None else {}
        return self._made(view, self._chosen(view, points), own)

    def _made(self, view: View, chosen: NDArray[np.intp], provenance: dict[str, Any]) -> ParetoFront:
        """Points with all their promised values, non-dominated; the cheapest first."""
        limits = {limit.objective: limit.bound for limit in view.limits}
        if not len(chosen):
            return ParetoFront(self.goal.space, (), directions_of(view.objectives), limits, provenance)
        chosen = chosen[non_dominated(self._costs(view, chosen))]
        chosen = chosen[np.argsort(self._costs(view, chosen)[:, 1], kind="stable")]
        std = self._measured[1][chosen]
        if self.predictor is not None:
            std = np.where(self.is_measured[chosen], std, self.predictor.predict(self.rows[chosen]).std)
        points = [
            Point(
                arch,
                {name: float(values[index]) for name, values in self.values.items()},
                {"accuracy": float(std[at])},
                ("accuracy",) if self.is_measured[index] else (),
            )
            for at, (index, arch) in enumerate(zip(chosen, self.goal.space.from_array(self.rows[chosen]), strict=True))
        ]
        return ParetoFront(self.goal.space, tuple(points), directions_of(view.objectives), limits, provenance)


def hypervolumes(goal: Goal, scores: Sequence[Score]) -> list[float]:
    """Hypervolume of the measured front after each score, in shares of the box between ideal and reference point.

    The ideal point has accuracy 1 and the best cost of the space; the reference point the lowest accuracy among the first
    scores, and every limit's bound or the worst cost of the space: fixed, so that figures of one search compare.
    """
    rows, measured = goal.space.to_array([score.arch for score in scores]), accuracies(scores)
    outside = np.zeros(len(rows), dtype=bool)
    for limit in goal.loosest:
        values = measured if limit.objective == "accuracy" else goal.known[limit.objective].values(rows)
        outside |= limit.excess(values) > 0
    bounds = {limit.objective: limit.bound for limit in goal.loosest}
    columns = []
    for name in goal.objectives:
        if name == "accuracy":
            values, ideal, worst = measured, 1.0, float(measured[:REFERENCE].min())
        else:
            objective = goal.known[name]
            assert objective.best is not None
            assert objective.worst is not None
            values, ideal, worst = objective.values(rows), objective.best()[0], objective.worst()[0]
        worst = bounds.get(name, worst) + MARGIN * (worst - ideal)
        columns.append((values - ideal) / (worst - ideal) if worst != ideal else np.zeros(len(rows)))
    costs = np.column_stack(columns)
    costs[outside] = np.inf
    return [round(float(value), 6) for value in hypervolume_trace(costs, np.ones(costs.shape[1]))]


def _objective(predictor: ArchitecturePredictor) -> Objective:
    return Objective("accuracy", *KNOWN["accuracy"], values=predictor.mean)
