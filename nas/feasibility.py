"""Limits that exclude each other, found before anything is scored, with the best reachable value of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.evolution import Evolved, evolve
from nas.objectives import Limit, Objective, format_value, suggestion, violations
from search_spaces import SearchSpace
from search_spaces.errors import UserError

__all__ = ["check_together", "reachable"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]
POPULATION, GENERATIONS = 80, 60


def reachable(space: SearchSpace, objectives: Mapping[str, Objective], limits: Sequence[Limit]) -> bool:
    """Whether a network was found that meets all limits on exact quantities (the others are left out)."""
    limits = [limit for limit in limits if _exact(objectives, limit)]
    ends = _ends(space, objectives, limits)
    if not limits or (_excess(objectives, limits, ends) <= 0).any():
        return True
    return len(_towards(space, objectives, limits, limits, ends).front) > 0


def check_together(space: SearchSpace, objectives: Mapping[str, Objective], limits: Sequence[Limit]) -> None:
    """Refuse limits that no network meets together.

    Every limit alone can be met (`nas.objectives.check_feasible`); whether all can is searched for, from the networks
    that are best in each, on exact values and table latencies: nothing has to be scored for it.

    Raises:
        UserError: names for every limit the best value that is reachable under the others.
    """
    limits = [limit for limit in limits if _exact(objectives, limit)]
    if reachable(space, objectives, limits):
        return
    ends, texts, ways = _ends(space, objectives, limits), [], []
    for limit in limits:
        others = [other for other in limits if other is not limit]
        front = _towards(space, objectives, [limit], others, ends).front
        if not len(front):
            continue  # the others exclude each other already
        values = objectives[limit.objective].values(front)
        best = int(values.argmax() if limit.maximised else values.argmin())
        network = space.from_array(front[best : best + 1])[0]
        rest = " and ".join(str(other) for other in others)
        texts.append(f"under {rest}, {limit.objective} reaches {format_value(limit.objective, values[best])} ({network.id})")
        ways.append(f"--limit {suggestion(limit, float(values[best]))}")
    raise UserError(
        f"no network of {space.key} was found within all limits together: {', '.join(str(limit) for limit in limits)}",
        allowed=_sentence("; ".join(texts)) or "Even with one of them left out none was found",
        next_step=f"Relax one of them: {', or '.join(ways)}" if ways else "Relax several of them",
    )


def _exact(objectives: Mapping[str, Objective], limit: Limit) -> bool:
    return limit.objective in objectives and objectives[limit.objective].best is not None


def _ends(space: SearchSpace, objectives: Mapping[str, Objective], limits: Sequence[Limit]) -> Rows:
    """The networks that are best in each limited quantity, and both ends of the space."""
    rows = [space.to_array([space.smallest, space.largest])]
    for limit in limits:
        best = objectives[limit.objective].best
        assert best is not None
        rows.append(space.canonical(best()[1][None, :]))
    found = np.concatenate(rows)
    return found[space.unique(found)]


def _excess(objectives: Mapping[str, Objective], limits: Sequence[Limit], rows: Rows) -> Values:
    """See `violations`."""
    return violations(limits, {limit.objective: objectives[limit.objective].values(rows) for limit in limits}, len(rows))


def _towards(
    space: SearchSpace, objectives: Mapping[str, Objective], best: Sequence[Limit], within: Sequence[Limit], start: Rows
) -> Evolved:
    """An evolution towards the best values of some quantities, within the limits on others."""

    def price(rows: Rows) -> tuple[Values, Values]:
        columns = [limit.excess(objectives[limit.objective].values(rows)) for limit in best]
        return np.column_stack(columns), _excess(objectives, within, rows)

    rng = np.random.default_rng(0)  # an answer, not a draw: the same for every seed
    return evolve(space, price, start=start, rng=rng, population=POPULATION, generations=GENERATIONS)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
