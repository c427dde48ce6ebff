"""The search of a run: score subnets, fit the accuracy predictor, evolve on predictions and table latency, keep the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latency_tables import LatencyTable
from nas.archive import Archive, Score, accuracies
from nas.evolution import nsga2
from nas.objectives import KNOWN, Limit, Objective, check_feasible, directions_of, objectives_of, parse_limits
from nas.pareto import ParetoFront, Point, non_dominated, spread_out
from nas.runs import Run
from nas.scoring import choose_subnets, score_subnets
from predictors import ArchitecturePredictor, build, report_card
from search_spaces import SearchSpace
from search_spaces.costs import Cost
from search_spaces.errors import UserError, unknown_name
from search_spaces.progress import Progress

__all__ = ["score_run", "search_run"]

FEWEST_SAMPLES = 20


def score_run(run: Run, table: LatencyTable | None, *, samples: int, images: int, seed: int, progress: Progress) -> list[Score]:
    """Make sure that the run's archive holds ``samples`` scores, and return all of them.

    Args:
        table: whose latency stratifies the choice of subnets; MACs without one.
        images: validation images per subnet, at most.
    """
    if samples < FEWEST_SAMPLES:
        raise UserError(
            f"{samples} scored subnets",
            allowed=f"At least {FEWEST_SAMPLES}: a predictor learns nothing from fewer",
            next_step=f"Give --samples {FEWEST_SAMPLES} or more",
        )
    space = run.space
    archive = Archive(run.study, space, weights=run.weights_hash())
    known = archive.scores()
    if len(known) < samples:
        cost = table.cost(space) if table else space.cost(lambda layer: layer.macs)
        archs = choose_subnets(space, samples, cost, np.random.default_rng([seed, 0]))
        score_subnets(run.supernet(), run.data(), archive, archs, images=images, seed=run.settings["seed"], progress=progress)
        known = archive.scores()
    return known


def search_run(
    run: Run,
    table: LatencyTable,
    *,
    objectives: Sequence[str],
    limits: Mapping[str, Any],
    samples: int,
    images: int,
    points: int,
    generations: int,
    seed: int,
    predictor: str,
    progress: Progress,
) -> ParetoFront:
    """See `nas.search`; the table is the device's."""
    bounds = parse_limits(limits)
    _check_objectives(objectives)
    space = run.space
    latency = table.cost(space)
    check_feasible(space, objectives_of(space, latency=latency), bounds)
    scores = score_run(run, table, samples=samples, images=images, seed=seed, progress=progress)
    fitted, card = _fit(predictor, space, scores)
    progress.say(
        f"predictor   {card['kind']}, {card['networks']} scored subnets: Spearman {_number(card['spearman'])} "
        f"and RMSE {card['rmse']:.2%} on held-out subnets (they vary by {card['spread']:.2%})"
    )
    if any(bound.objective == "latency" for bound in bounds):
        progress.say(
            f"limit       searched {safety_margin(table):.0%} below the latency limit: three times the table's median error"
        )
    known = objectives_of(space, accuracy=lambda rows: fitted.predict(rows).mean, latency=latency)
    wanted = [known[name] for name in objectives]
    margin = safety_margin(table)
    searched = [_within(bound, margin, latency, space) for bound in bounds]
    rows = nsga2(
        space, wanted, [(known[b.objective], b) for b in searched], seed=seed, generations=generations, progress=progress
    )
    front = _front(space, rows, wanted, known, fitted, points)
    provenance = {
        "device": table.device,
        "table": run.table(table.device).name,
        "predictor": card,
        "latency_margin": margin,
        "seed": seed,
        "generations": generations,
        "candidates": len(rows),
        "scores": len(scores),
        "validation_images": scores[0].images,
        "largest_validated": max(s.accuracy for s in scores),
    }
    result = ParetoFront(space, tuple(front), directions_of(objectives), {b.objective: b.bound for b in bounds}, provenance)
    result.save(run.file("front.json"))
    return result


def safety_margin(table: LatencyTable) -> float:
    """How far below a latency limit the search stays, as a fraction: estimates err, limits are hard.

    Three times the table's median error on networks that it had not seen, about two standard deviations; at most a
    quarter. 0 for a table without such networks.
    """
    return 0.0 if table.quality is None else min(0.25, 3 * table.quality.corrected.median)


def _within(limit: Limit, margin: float, latency: Cost, space: SearchSpace) -> Limit:
    """A latency limit with its margin, but never below what the fastest network needs."""
    if limit.objective != "latency":
        return limit
    fastest, _ = latency.minimum(len(space.genes))
    return Limit("latency", min(limit.bound, max(limit.bound / (1 + margin), fastest * (1 + 1e-9))))


def _check_objectives(objectives: Sequence[str]) -> None:
    for name in objectives:
        if name not in KNOWN:
            raise unknown_name("objective", name, KNOWN, command="nas search --help")
    if not 2 <= len(set(objectives)) == len(objectives):
        raise UserError(
            f"objectives {list(objectives)}",
            allowed=f"Two or more different ones of {', '.join(KNOWN)}",
            next_step="Give for example: --objective accuracy --objective latency",
        )


def _fit(kind: str, space: SearchSpace, scores: list[Score]) -> tuple[ArchitecturePredictor, dict[str, Any]]:
    rows, values = space.to_array([score.arch for score in scores]), accuracies(scores)
    predictor = build(kind, space, shares=True).fit(rows, values)
    return predictor, report_card(predictor, rows, values).to_dict()


def _front(
    space: SearchSpace,
    rows: np.ndarray[Any, np.dtype[np.int64]],
    wanted: Sequence[Objective],
    known: Mapping[str, Objective],
    predictor: ArchitecturePredictor,
    points: int,
) -> list[Point]:
    """A well-spread choice of the networks found, as points with all their promised values; the cheapest first."""
    costs = np.column_stack([-o.values(rows) if o.maximise else o.values(rows) for o in wanted])
    rows, costs = rows[keep := non_dominated(costs)], costs[keep]
    chosen = rows[spread_out(costs, points)]
    values = {name: objective.values(chosen) for name, objective in known.items()}
    std = predictor.predict(chosen).std
    made = [
        Point(arch, {name: float(values[name][i]) for name in values}, {"accuracy": float(std[i])})
        for i, arch in enumerate(space.from_array(chosen))
    ]
    return sorted(made, key=lambda point: (point.values[wanted[1].name], point.arch.id))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def limit_texts(limits: Mapping[str, float]) -> list[str]:
    """Limits as people read them."""
    return [str(Limit(name, bound)) for name, bound in limits.items()]
