"""What a run's predictor of accuracy is worth, and whether zero-cost proxies tell as much as the sizes of networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.archive import Score, accuracies, run_scores
from nas.runs import Run
from predictors import (
    FeatureGain,
    LearningCurve,
    ReportCard,
    build,
    feature_gain,
    learning_curve,
    rank_correlations,
    report_card,
)
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from supernets import proxy_scores, resolution_of

__all__ = ["AccuracyCard", "ProxyRank", "judge"]

FEWEST = 30
BATCHES, BATCH = 3, 64
_DRAW = 6  # the purpose of these draws; others are in `supernets.steps`

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ProxyRank:
    """How a number that needs no training orders networks, against their scored accuracies; None: it does not vary."""

    name: str
    kendall: float | None
    spearman: float | None


@dataclass(frozen=True)
class AccuracyCard:
    """The accuracy predictor of a run on held-out scores.

    Attributes:
        curve: how its rank correlation grew with scores.
        tau: the rank correlation (Kendall) that was asked for.
        more: scores missing to reach it; 0: reached, None: the curve cannot tell.
        ranks: params, MACs and the proxies that were asked for.
        gain: what these proxies add to a ridge regression on encodings; None without proxies.
    """

    card: ReportCard
    curve: LearningCurve
    tau: float
    more: int | None
    ranks: tuple[ProxyRank, ...]
    gain: FeatureGain | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def judge(run: Run, *, predictor: str, proxies: Sequence[str], tau: float, progress: Progress) -> AccuracyCard:
    """See `nas.accuracy_card`."""
    scores = run_scores(run)
    if len(scores) < FEWEST:
        raise UserError(
            f"{run.path} has {len(scores)} scored subnets",
            allowed=f"{FEWEST} or more, to learn from some and to judge by others",
            next_step=f"Score more: nas score {run.path} --n 100",
        )
    archs, values = [score.arch for score in scores], accuracies(scores)
    rows = run.space.to_array(archs)
    model = build(predictor, run.space, shares=True).fit(rows, values)
    table = _proxy_table(run, scores, proxies, progress)
    curve = learning_curve(model, rows, values)
    numbers = {"params": run.space.params(archs), "macs": run.space.macs(archs)}
    numbers |= dict(zip(proxies, table.T, strict=True))
    ranks = tuple(ProxyRank(name, *rank_correlations(np.asarray(n, np.float64), values)) for name, n in numbers.items())
    gain = feature_gain(run.space, rows, values, table) if len(proxies) else None
    return AccuracyCard(report_card(model, rows, values), curve, tau, curve.more_for(tau), ranks, gain)


def _proxy_table(run: Run, scores: Sequence[Score], proxies: Sequence[str], progress: Progress) -> Values:
    """The proxies of scored networks on the same training images for all of them, (networks, proxies).

    On the processor wherever the run's supernet is: they draw from its generators, the same numbers on every machine.
    """
    table = np.empty((len(scores), len(proxies)))
    if not len(proxies):
        return table
    data, supernet, seed = run.data(), run.supernet(), run.settings["seed"]
    drawn = np.random.default_rng([seed, _DRAW]).permutation(len(data.train))[: BATCHES * BATCH]
    parts = np.array_split(drawn, BATCHES)
    progress.start("proxies", len(scores))
    try:
        for at, score in enumerate(scores):
            resolution = resolution_of(score.arch, data)
            batches = [(data.train.batch(part, resolution).cpu(), data.train.labels[part].cpu()) for part in parts]
            found = proxy_scores(supernet.extract(score.arch).cpu(), batches, proxies, seed=seed)
            table[at] = list(found.values())
            progress.advance()
    finally:
        progress.stop()
    return table
