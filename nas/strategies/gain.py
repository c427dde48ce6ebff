"""Batches by expected gain of hypervolume, for any number of objectives, with limits that are only predicted."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc

__all__ = ["choose_batch", "directions"]

Values = NDArray[np.float64]


def directions(count: int, objectives: int, rng: np.random.Generator) -> Values:
    """Directions spread over the positive part of the unit sphere, (count, objectives)."""
    points = qmc.Sobol(objectives, rng=rng).random(1 << (count - 1).bit_length())[:count]
    rays = np.abs(norm.ppf(np.clip(points, 1e-9, 1 - 1e-9))) + 1e-9
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)  # type: ignore[no-any-return]


def _reach(costs: Values, rays: Values) -> NDArray[np.float32]:
    """How far along each ray from the reference point (the origin) a network dominates: (..., rays).

    The mean over rays of the m-th power is the dominated hypervolume up to a constant (random hypervolume
    scalarisations, Zhang and Golovin 2020), so that the gain of a network is a difference to the best one on each ray.
    """
    reach = np.full((*costs.shape[:-1], len(rays)), np.inf, dtype=np.float32)
    for column, part in enumerate(np.moveaxis(costs, -1, 0)):
        np.minimum(reach, np.maximum(-part, 0.0)[..., None].astype(np.float32) / rays[:, column].astype(np.float32), out=reach)
    return reach ** costs.shape[-1]  # type: ignore[no-any-return]


def choose_batch(costs: Values, within: NDArray[np.bool_], known: int, n: int, rays: Values) -> list[int]:
    """Greedily the n candidates whose evaluation adds most hypervolume in expectation over joint draws.

    The gain of a set is submodular, so the greedy choice is near the best set and old gains bound new ones: only the
    candidates that could still be first are looked at again.

    Args:
        costs: draws of the objectives minus the reference point, scaled, (draws, networks, objectives).
        within: whether a draw meets all limits, (draws, networks).
        known: the first so many networks are evaluated already; the rest are the candidates.
        n: size of the batch.

    Returns:
        Chosen candidates, counted from ``known``; of equal gains the first.
    """
    reach = _reach(costs, rays) * within[..., None]
    best = reach[:, :known].max(axis=1, initial=0.0)  # (draws, rays)
    reach = np.ascontiguousarray(reach[:, known:].swapaxes(0, 1))  # (candidates, draws, rays)
    gains = np.array([np.maximum(candidate - best, 0.0).mean() for candidate in reach])
    queue = [(-gain, index) for index, gain in enumerate(gains.tolist())]
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < n:
        _, index = heapq.heappop(queue)
        gain = float(np.maximum(reach[index] - best, 0.0).mean())
        if queue and gain < -queue[0][0]:
            heapq.heappush(queue, (-gain, index))
            continue
        chosen.append(index)
        best = np.maximum(best, reach[index])
    return chosen
