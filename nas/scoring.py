"""Scoring subnets: which ones, and their accuracy on validation images."""

from __future__ import annotations

import numpy as np

from nas.archive import Archive, Score
from search_spaces import Architecture, SearchSpace
from search_spaces.costs import Cost
from search_spaces.progress import SILENT, Progress
from supernets import ImageData, Supernet, calibrated, evaluate

__all__ = ["choose_subnets", "score_subnets"]

_POOL = 40  # random networks drawn per network chosen


def choose_subnets(space: SearchSpace, n: int, cost: Cost, rng: np.random.Generator) -> list[Architecture]:
    """Distinct architectures to score: the smallest, the largest, and one from each of n - 2 cost quantiles.

    Uniform samples of a space crowd around its middle; a predictor is asked for the whole range. Half of the pool is
    therefore drawn gene by gene with options skewed towards small or large ones.
    """
    ends = space.to_array([space.smallest, space.largest])
    skew = np.exp(rng.normal(size=(n * _POOL // 2, 1)))
    skewed = np.floor(rng.random((len(skew), len(space.genes))) ** skew * space.lengths).astype(np.int64)
    pool = np.concatenate([ends, space.sample_rows(n * _POOL // 2, rng), space.canonical(skewed)])
    pool = pool[space.unique(pool)]
    chosen = space.to_array(list(dict.fromkeys([space.smallest, space.largest])))
    keys = {row.tobytes() for row in chosen}
    rest = pool[[row.tobytes() not in keys for row in pool]]
    # Even steps between the extremes on a log scale: every size is represented, also where networks are rare.
    prices = np.log(cost(rest))
    taken: list[int] = []
    for target in rng.permutation(np.linspace(prices.min(), prices.max(), max(0, n - len(chosen)))):
        if len(taken) == len(rest):
            break
        distance = np.abs(prices - target)
        distance[taken] = np.inf
        taken.append(int(distance.argmin()))
    return space.from_array(np.concatenate([chosen, rest[taken]]))[:n]


def score_subnets(
    supernet: Supernet,
    data: ImageData,
    archive: Archive,
    archs: list[Architecture],
    *,
    images: int,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Score]:
    """Extract, recalibrate and validate each architecture that the archive does not hold yet; returns all their scores.

    Accuracy is taken on up to ``images`` of ``data.val``, which training did not see. Every score is on disk before the
    next one begins.
    """
    known = {score.arch.id: score for score in archive.scores()}
    progress.start("score subnets", len(archs))
    try:
        for arch in archs:
            if arch.id not in known:
                network = calibrated(supernet, arch, data, seed=seed)
                resolution = int(arch.to_dict().get("resolution", data.size))
                known[arch.id] = Score(arch, *evaluate(network, data.val, resolution, most=images))
                archive.add(known[arch.id])
            progress.advance()
    finally:
        progress.stop()
    return [known[arch.id] for arch in archs]
