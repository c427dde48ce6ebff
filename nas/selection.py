"""Survival of NSGA-II over whole arrays: who lives on, by non-dominated rank and crowding distance."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["survivors"]

Values = NDArray[np.float64]


def survivors(costs: Values, n: int, *, violation: Values | None = None) -> NDArray[np.intp]:
    """Indices of the n best rows, best first: by non-dominated rank, within a rank by falling crowding distance.

    The selection of NSGA-II (Deb et al. 2002), the same that pymoo makes, without its objects. Equal rows share a rank;
    all but the first have no crowding distance.

    Args:
        costs: (N, objectives), all minimised.
        n: how many survive; all rows if there are fewer.
        violation: (N,) how far each row breaks limits, 0 where it keeps them. Rows that keep them come first, the others
            follow by rising violation.

    Returns: (min(n, N),) int.
    """
    kept = np.ones(len(costs), dtype=bool) if violation is None else violation <= 0
    good, bad = np.flatnonzero(kept), np.flatnonzero(~kept)
    order: NDArray[np.intp] = np.empty(0, dtype=np.intp)
    if len(good):
        line = np.lexsort(costs[good].T[::-1])
        ordered = costs[good[line]]
        new = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))  # the first of equal rows
        ranks = _ranks(ordered[new])
        distance, rank = np.zeros(len(good)), np.empty(len(good), dtype=np.intp)
        distance[line[new]] = _crowding(ordered[new], ranks)
        rank[line] = ranks[np.cumsum(new) - 1]
        order = good[np.lexsort((-distance, rank))]
    if violation is not None:
        order = np.concatenate([order, bad[np.argsort(violation[bad], kind="stable")]])
    return order[:n]


def _ranks(values: Values) -> NDArray[np.intp]:
    """Number of the non-dominated front of each row; rows are distinct and sorted by their first column, then the next."""
    if values.shape[1] != 2:
        return _ranks_by_peeling(values)
    # In this order only earlier rows dominate, and a front does so exactly if its last second value is not larger.
    last: list[float] = []
    rank = np.empty(len(values), dtype=np.intp)
    for index, value in enumerate(values[:, 1].tolist()):
        front = bisect_right(last, value)
        rank[index] = front
        last[front : front + 1] = [value]
    return rank


def _ranks_by_peeling(values: Values) -> NDArray[np.intp]:
    beats: NDArray[Any] = np.ones((len(values), len(values)), dtype=bool)  # rows are distinct: nowhere worse is enough
    for column in values.T:
        beats &= column[:, None] <= column[None, :]
    np.fill_diagonal(beats, False)
    beaten = beats.sum(axis=0)
    rank = np.full(len(values), -1, dtype=np.intp)
    front = 0
    while (found := np.flatnonzero((beaten == 0) & (rank < 0))).size:
        rank[found] = front
        beaten -= beats[found].sum(axis=0)
        front += 1
    return rank


def _crowding(values: Values, rank: NDArray[np.intp]) -> Values:
    """Mean over the objectives of the gap between both neighbours in a front, in shares of the front's span.

    Infinite at the ends of a front.
    """
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.lexsort((column, rank))
        fronts, line = rank[order], column[order]
        edge = np.flatnonzero(np.diff(fronts, prepend=-1, append=-1))  # where fronts begin, and the end
        starts, stops = edge[:-1], edge[1:] - 1
        span = np.repeat(line[stops] - line[starts], stops - starts + 1)
        gap = np.empty(len(line))
        gap[1:-1] = line[2:] - line[:-2]
        gap[starts] = gap[stops] = np.inf
        distance[order] += np.divide(gap, span, out=np.zeros(len(line)), where=span > 0)
    few = np.bincount(rank)[rank] <= 2
    return np.where(few, np.inf, distance / values.shape[1])
