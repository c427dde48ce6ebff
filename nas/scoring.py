"""Scoring subnets: which ones, and their accuracy on validation images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.evolution import skewed_rows
from nas.runs import Run
from search_spaces import Architecture, SearchSpace
from supernets import calibrated, evaluate, resolution_of

__all__ = ["choose_subnets", "validate"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

_POOL = 40  # random networks drawn per network chosen


def choose_subnets(
    space: SearchSpace, n: int, cost: Callable[[Rows], Values], rng: np.random.Generator, *, known: Sequence[Architecture] = ()
) -> list[Architecture]:
    """Distinct architectures to score: the smallest, the largest, and one from each of n - 2 cost quantiles.

    Uniform samples of a space crowd around its middle; a predictor is asked for the whole range. Half of the pool is
    therefore drawn gene by gene with options skewed towards small or large ones.

    Args:
        cost: canonical rows to what the quantiles are of, above 0.
        known: scored already; they count among the n, each for the quantile nearest to it.
    """
    ends = space.to_array([space.smallest, space.largest])
    skewed = skewed_rows(space, n * _POOL // 2, rng)
    pool = np.concatenate([ends, space.sample_rows(n * _POOL // 2, rng), skewed])
    pool = pool[space.unique(pool)]
    there = {row.tobytes() for row in space.to_array(known)} if known else set()
    chosen = [arch for arch in dict.fromkeys([space.smallest, space.largest]) if arch not in known]
    keys = there | {row.tobytes() for row in ends}
    rest = pool[[row.tobytes() not in keys for row in pool]]
    if not len(rest):
        return chosen[: max(0, n - len(known))]
    # Even steps between the extremes on a log scale: every size is represented, also where networks are rare.
    prices = np.log(cost(rest))
    targets = np.linspace(prices.min(), prices.max(), max(0, n - len(dict.fromkeys([space.smallest, space.largest]))))
    targets = _uncovered(targets, np.log(cost(space.to_array(known))) if known else np.empty(0), n - len(known) - len(chosen))
    taken: list[int] = []
    for target in rng.permutation(targets):
        if len(taken) == len(rest):
            break
        distance = np.abs(prices - target)
        distance[taken] = np.inf
        taken.append(int(distance.argmin()))
    return [*chosen, *space.from_array(rest[taken])][: max(0, n - len(known))]


def _uncovered(targets: Values, prices: Values, most: int) -> Values:
    """The targets, in order, that are farthest from all prices; at most so many."""
    if not len(prices) or not len(targets):
        return targets
    far = np.abs(targets[:, None] - prices[None, :]).min(axis=1)
    return targets[np.sort(np.argsort(-far, kind="stable")[: max(0, most)])]


def validate(run: Run, arch: Architecture, images: int) -> tuple[float, int]:
    """Extract, recalibrate and validate a network: its accuracy (a fraction), and on how many images.

    Accuracy is taken on up to ``images`` of the run's validation images, which training did not see.
    """
    data = run.data()
    network = calibrated(run.supernet(), arch, data, seed=run.settings["seed"])
    return evaluate(network, data.val, resolution_of(arch, data), most=images)
