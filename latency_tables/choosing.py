"""Which whole networks are measured: chosen by design, before any of them is."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from search_spaces.costs import Cost
from search_spaces.rows import Rows
from search_spaces.space import SearchSpace

__all__ = ["choose_networks", "reference_row"]

POOL = 2000  # candidates from which whole networks are chosen


def choose_networks(
    space: SearchSpace, cost: Cost, fit: int, held_out: int, rng: np.random.Generator
) -> tuple[Rows, list[bool]]:
    """Whole networks by design: the cheapest and the dearest by a cost, and random ones from equal shares of its quantiles.

    Returns: rows (N, genes), those to fit first, and which are held out. A space with few networks gives fewer.
    """
    ends = np.stack([cost.minimum(len(space.genes))[1], cost.maximum(len(space.genes))[1]])
    ends = space.canonical(ends)[space.unique(ends)]
    # Half uniform over networks, half uniform per gene: the first alone holds few shallow networks.
    halves = [space.sample_rows(POOL // 2, rng, per_gene=per_gene) for per_gene in (False, True)]
    rows = np.concatenate([ends, *halves])
    pool = rows[space.unique(rows)][len(ends) :]
    pool = pool[np.argsort(cost(pool), kind="stable")]
    wanted = max(0, fit - len(ends))
    if len(pool) < wanted + held_out:  # a tiny space: share it out
        wanted = min(wanted, -(-len(pool) // 2))
        held_out = min(held_out, len(pool) - wanted)
    judged = _stratified(len(pool), held_out, rng)
    rest = np.setdiff1d(np.arange(len(pool)), judged)
    fitted = rest[_stratified(len(rest), wanted, rng)]
    chosen = np.concatenate([ends, pool[fitted], pool[judged]])
    return chosen, [False] * (len(chosen) - len(judged)) + [True] * len(judged)


def _stratified(total: int, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """``count`` distinct indices below ``total``, one at random from each of as many equal shares."""
    edges = np.linspace(0, total, count + 1).astype(np.intp)
    return np.array([rng.integers(low, high) for low, high in itertools.pairwise(edges)], dtype=np.intp)


def reference_row(space: SearchSpace) -> Rows:
    """The network whose time tells a device's level, (1, genes): the one of least work, exact without search."""
    row = space.cost(lambda layer: float(layer.macs)).minimum(len(space.genes))[1]
    return space.canonical(row[None, :])
