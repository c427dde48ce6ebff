"""The search of a run: score subnets, propose and score more, predict the rest, keep the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from latency_tables import LatencyTable
from nas.archive import Archive, Score, accuracies
from nas.fronts import Pool, hypervolumes
from nas.goals import Goal, View, make_goal
from nas.objectives import KNOWN, kind_of, nearest
from nas.pareto import ParetoFront
from nas.resuming import Request
from nas.runs import Run
from nas.scoring import choose_subnets
from nas.strategies import Quantity, Task, make_strategy
from nas.working import Crew, Jobs
from predictors import ArchitecturePredictor, build, report_card
from predictors.card import FEWEST_JUDGED
from search_spaces import Architecture
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

__all__ = ["FIRST", "Scoring", "score_run", "search_run"]

FEWEST_SAMPLES = 20
USELESS = 0.9  # of the spread of accuracies: a predictor with such an error has learnt next to nothing
FIRST = 100  # scores chosen to learn from, before a strategy proposes
BATCH = 20  # proposals at a time
STALLED = 1e-3  # the search ends when hypervolume grows by less than this share in so many rounds
STALLED_ROUNDS = 3
VERIFICATIONS = 3  # times that predicted networks of the front are scored and the front is made anew


@dataclass(frozen=True)
class Scoring:
    """How subnets of a run are scored, and where the scores are.

    Attributes:
        images: validation images per subnet, at most.
        jobs: see `nas.working.Crew`.
        storage: URL of a database that workers share; None for the run's own file.
        seed: of the choice of subnets.
    """

    run: Run
    images: int
    jobs: Jobs = 1
    storage: str | None = None
    seed: int = 0
    progress: Progress = SILENT

    @cached_property
    def _own(self) -> Archive:
        return Archive(self.run.study, self.run.space, weights=self.run.weights_hash())

    @cached_property
    def archive(self) -> Archive:
        """Where networks are queued and scores are; a shared one begins with those of the run's own file."""
        found = self._own
        if self.storage is not None:
            found = Archive(self.storage, self.run.space, weights=self.run.weights_hash())
            found.add_missing(self._own.scores())
        found.lead()
        found.complete()
        return found

    def __enter__(self) -> Scoring:
        if self.storage is not None:  # one that cannot be opened says so before anything is measured
            try:
                _ = self.archive
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened."""
        for name in {"_own", "archive"} & vars(self).keys():
            vars(self)[name].close()

    def scores(self) -> list[Score]:
        """All scores; the run's own file keeps a copy of those in a shared archive, should it be lost."""
        found = self.archive.scores()
        if self.archive is not self._own:
            self._own.add_missing(found)
        return found

    def score(self, archs: Sequence[Architecture], label: str, *, proposed: bool) -> list[Score]:
        """Score networks, and whatever else is queued; returns all scores.

        Raises:
            UserError: a network could not be scored.
        """
        self.archive.enqueue(archs, images=self.images, proposed=proposed)
        self.progress.start(label, self.archive.waiting() + self.archive.running())
        try:
            Crew(self.run, self.archive, self.jobs, progress=self.progress).drain()
        finally:
            self.progress.stop()
        for network, reason in self.archive.failures(archs).items():
            raise UserError(
                f"network {network} could not be scored ({reason})",
                allowed="Every other score is kept",
                next_step="Mend the cause, then run the same command again",
            )
        return self.scores()


def score_run(
    scoring: Scoring, goal: Goal, *, samples: int, first: int = FIRST, until_stalled: bool = False, most: int | None = None
) -> list[Score]:
    """Make sure that the run's archive holds ``samples`` scores, and return all of them.

    What is proposed depends on the scores alone, so that a search that was killed proposes what it would have proposed.

    Args:
        goal: the first device's latency, or MACs, stratifies the first choice; all of it guides the proposals.
        first: so many are chosen over all costs, to learn from; the strategy ``default`` proposes the others.
        until_stalled: fewer, if the hypervolume stalls.
        most: so many scores in all are wanted later; what a killed search has queued of them is scored. Default: ``samples``.
    """
    samples, least = min(samples, goal.space.count()), min(FEWEST_SAMPLES, goal.space.count())
    if samples < least:
        raise UserError(
            f"{samples} scored subnets",
            allowed=f"At least {least}: a predictor learns nothing from fewer",
            next_step=f"Give {least} or more",
        )
    known = _first_scores(scoring, goal, samples, first, samples if most is None else most)
    begun, fruitless = len(known), 0
    while len(known) < samples and fruitless < STALLED_ROUNDS:
        if until_stalled and _stalled(goal, known, begun):
            scoring.progress.say(f"search      ends after {len(known)} scores: the front has stopped growing")
            break
        rounds = -(-sum(score.proposed for score in known) // BATCH) + fruitless
        view = goal.views[rounds % len(goal.views)]
        archs = _propose(goal, view, known, min(BATCH, samples - len(known)), samples, scoring.seed)
        before = len(known)
        if archs:
            known = scoring.score(archs, f"score {len(archs)} proposals", proposed=True)
        fruitless = fruitless + 1 if len(known) == before else 0
    if len(images := {score.images for score in known}) > 1:
        scoring.progress.say(f"scores      of {min(images)} to {max(images)} validation images each stand side by side")
    return known


def _first_scores(scoring: Scoring, goal: Goal, samples: int, first: int, most: int) -> list[Score]:
    archive, known = scoring.archive, scoring.scores()
    if scoring.storage is None:
        archive.withdraw(most - len(known) - archive.running())  # left behind by a search that wanted more
    queued = archive.waiting() + archive.running()
    missing = min(samples, first) - len(known) - queued
    if missing <= 0 and not queued:
        return known
    archs: list[Architecture] = []
    if missing > 0:
        cost = goal.known["latency" if goal.tables else "macs"].values
        rng = np.random.default_rng([scoring.seed, 0])
        archs = choose_subnets(goal.space, min(samples, first) - queued, cost, rng, known=[score.arch for score in known])
    return scoring.score(archs, "score subnets", proposed=False)


def _propose(goal: Goal, view: View, scores: Sequence[Score], n: int, budget: int, seed: int) -> list[Architecture]:
    """Up to n networks that the default strategy wants to know; the same for the same scores, whoever asks."""
    bounds = {limit.objective: limit.bound for limit in goal.searched(view.limits)}
    names = list(dict.fromkeys([*view.objectives, *bounds]))
    quantities = tuple(
        Quantity(
            name,
            maximise=KNOWN[kind_of(name)][1],
            objective=name in view.objectives,
            bound=bounds.get(name),
            known=None if name == "accuracy" else goal.known[name].values,
        )
        for name in names
    )
    mixed = int(np.random.SeedSequence([seed, len(scores)]).generate_state(1)[0])
    task = Task(goal.space, quantities, budget, n, mixed)
    rows = goal.space.to_array([score.arch for score in scores])
    values = task.known(rows)
    if "accuracy" in names:
        values[:, names.index("accuracy")] = -accuracies(scores)
    strategy = make_strategy("default", task)
    strategy.tell(rows, values)
    return goal.space.from_array(strategy.ask(n))


def _stalled(goal: Goal, scores: Sequence[Score], begun: int) -> bool:
    """Whether the last rounds of proposals, one for every view at least, added next to nothing to the measured front."""
    span = STALLED_ROUNDS * len(goal.views) * BATCH
    if len(scores) - begun < span:
        return False
    volumes = hypervolumes(goal, scores)
    before = volumes[-1 - span]  # 0: no network within the limits was found yet, and looking for one is no stall
    return before > 0 and volumes[-1] - before <= STALLED * volumes[-1]


def search_run(
    scoring: Scoring,
    request: Request,
    tables: Mapping[str, LatencyTable],
    *,
    samples: int,
    budget: int | None,
    points: int,
    generations: int,
    seed: int,
    predictor: str,
) -> ParetoFront:
    """See `nas.search`; the tables are those of the request's devices."""
    amount = {"samples": samples, "budget": budget, "images": scoring.images, "points": points, "generations": generations}
    goal = make_goal(scoring.run.space, tables, request.objectives, request.limits)
    goal.check()
    progress = scoring.progress
    small = goal.space.count() < FEWEST_JUDGED  # too few to learn from: every network is scored, nothing is predicted
    first = samples if budget is None else min(samples, max(FEWEST_SAMPLES, budget // 2))
    # What the strategy proposes tells most about the front; what the front then promises is scored at the end.
    kept = 0 if budget is None else min(points, max(0, budget - first) // 3)
    total = samples if budget is None else budget - kept
    scores = score_run(scoring, goal, samples=total, first=first, until_stalled=True, most=budget)
    fitted = None if small else _fit(predictor, goal, scores)
    _say_margins(goal, progress)

    def pool() -> Pool:
        if fitted is None:
            return Pool(goal, None, scores, goal.space.to_array([score.arch for score in scores]))
        measured = scores if any(score.proposed for score in scores) else []
        return Pool.search(goal, fitted, measured, seed=seed, generations=generations, progress=progress)

    found = pool()
    for _ in range(VERIFICATIONS if budget is not None else 0):
        open_points = found.unscored(points)[: max(0, (budget or 0) - len(scores))]
        if not open_points:
            break
        scores = scoring.score(open_points, f"score {len(open_points)} networks of the front", proposed=True)
        fitted = _fit(predictor, goal, scores)
        found = pool()
    found = replace(found, settled=small or budget is not None)
    card = {} if fitted is None else {"predictor": _card(fitted, scores, progress)}
    front = found.front(points, _provenance(scoring, goal, scores, card, seed, generations, len(found.rows)))
    if not len(front):
        raise UserError(
            f"no network was found within {', '.join(str(limit) for limit in goal.loosest)}",
            allowed=f"The nearest one has {nearest(goal.loosest, found.values, len(found.rows))}",
            next_step="Relax the limit on accuracy; all scores are kept",
        )
    asked = {"request": request.to_dict(), "amount": {**amount, "predictor": predictor}}
    records = {"hypervolume": hypervolumes(goal, scores), **asked}
    front = replace(front, records=front.records | records)
    front.save(scoring.run.file("front.json"))
    return front


def _provenance(
    scoring: Scoring, goal: Goal, scores: Sequence[Score], card: dict[str, Any], seed: int, generations: int, candidates: int
) -> dict[str, Any]:
    device = goal.devices[0]
    return {
        "device": device,
        "devices": ", ".join(goal.devices),
        "table": scoring.run.table(device).name,
        **card,
        "latency_margin": goal.margin(device),
        # Of each device now, against when its table was measured: promises are the table's estimates times this.
        "latency_levels": {name: 1.0 if t.anchor is None else t.anchor.factor for name, t in goal.tables.items()},
        "seed": seed,
        "generations": generations,
        "candidates": candidates,
        "scores": len(scores),
        "validation_images": min(score.images for score in scores),
        "largest_validated": max(s.accuracy for s in scores),
    }


def _say_margins(goal: Goal, progress: Progress) -> None:
    kinds = [(goal.device_of(limit.objective), kind_of(limit.objective)) for limit in goal.loosest]
    for device, kind in dict.fromkeys((device, "energy" if kind == "energy" else "latency") for device, kind in kinds):
        if device is not None:
            where = f" on {device}" if len(goal.tables) > 1 else ""
            progress.say(
                f"limit       searched {goal.margin(device, kind):.0%} below the {kind} limit{where}: "
                "three times the table's median error"
            )


def _fit(kind: str, goal: Goal, scores: Sequence[Score]) -> ArchitecturePredictor:
    rows = goal.space.to_array([score.arch for score in scores])
    return build(kind, goal.space, shares=True).fit(rows, accuracies(scores))


def _card(predictor: ArchitecturePredictor, scores: Sequence[Score], progress: Progress) -> dict[str, Any]:
    """The predictor's report card, said and returned."""
    rows = predictor.space.to_array([score.arch for score in scores])
    card = report_card(predictor, rows, accuracies(scores)).to_dict()
    progress.say(
        f"predictor   {card['kind']}, {card['networks']} scored subnets: Spearman {_number(card['spearman'])} "
        f"and RMSE {card['rmse']:.2%} on held-out subnets (they vary by {card['spread']:.2%})"
    )
    if card["spearman"] is None or card["rmse"] > USELESS * card["spread"]:
        progress.say(
            f"note        the predictor is hardly better than the mean of its {card['networks']} scores: longer training, more "
            "images to score or more scores (--samples) must come first; a --budget scores what is on the front"
        )
    return card


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
