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
    """How far along each ray from the reference point (the origin) every network dominates: (networks, draws, rays).

    The mean over rays of the m-th power is the dominated hypervolume up to a constant (random hypervolume
    scalarisations, Zhang and Golovin 2020), so that the gain of a network is a difference to the best one on each ray.
    """
    better = np.maximum(-costs.transpose(1, 2, 0), 0.0).astype(np.float32)  # (networks, objectives, draws)
    slopes = (1.0 / rays.T).astype(np.float32)
    reach = np.empty((len(better), better.shape[2], len(rays)), dtype=np.float32)
    part = np.empty_like(reach[0])
    for of_network, parts in zip(reach, better, strict=True):  # one after the other: each fits the processor's cache
        np.outer(parts[0], slopes[0], out=of_network)
        for values, slope in zip(parts[1:], slopes[1:], strict=True):
            np.minimum(of_network, np.outer(values, slope, out=part), out=of_network)
        part[:] = of_network
        for _ in parts[1:]:
            of_network *= part
    return reach


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
    reach = _reach(np.where(within[..., None], costs, np.inf), rays)
    best, reach = reach[:known].max(axis=0, initial=0.0), reach[known:]  # (draws, rays), (candidates, draws, rays)
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
