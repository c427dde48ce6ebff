"""`nas.optimize`: search over anything that can be evaluated, with hard limits and a budget that is never exceeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.evaluations import Evaluations
from nas.pareto import ParetoFront, Point, hypervolume_trace
from nas.problems import Known, make_task
from nas.strategies import Archive, Strategy, Task, make_strategy
from nas.strategies.task import Rows, Values
from search_spaces import Architecture, SearchSpace
from search_spaces.checks import check_whole
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OptimizeResult", "optimize"]

STALL = 0.001  # of the hypervolume
MARGIN = 0.05  # of the spans, from the worst values met to the reference point: an end of the front counts, too

Evaluate = Callable[[list[Architecture]], Mapping[str, Any]]


@dataclass(frozen=True)
class OptimizeResult:
    """What `optimize` found.

    Attributes:
        trials: one row per evaluated network, in order of evaluation: ``architecture`` (an `Architecture`), then the
            objectives and the limited quantities.
        front: the networks within the limits that no other one dominates; empty when none was within them.
    """

    trials: pd.DataFrame
    front: ParetoFront

    def hypervolume(self, reference: Mapping[str, float]) -> Values:
        """Hypervolume of the front after each evaluation, (trials,), in the product of the objectives' units.

        Args:
            reference: the worst value of every objective that still counts.

        Raises:
            UserError: an objective without a reference value.
        """
        objectives = self.front.objectives
        if set(reference) != set(objectives):
            raise UserError(
                f"reference point of {sorted(reference)}",
                allowed=f"One worst value for each of {', '.join(objectives)}",
                next_step="Give them as {objective: value}",
            )
        signs = np.array([-1.0 if direction == "max" else 1.0 for direction in objectives.values()])
        worst = signs * [float(reference[name]) for name in objectives]
        costs = signs * self.trials[list(objectives)].to_numpy(dtype=np.float64)
        costs[~self._within()] = np.inf
        return hypervolume_trace(costs, worst)

    def _within(self) -> Any:
        inside = np.ones(len(self.trials), dtype=bool)
        for name, bound in self.front.limits.items():
            values = self.trials[name].to_numpy(dtype=np.float64)
            inside &= values >= bound if self.front.direction(name) == "max" else values <= bound
        return inside


def optimize(
    space: SearchSpace,
    evaluate: Evaluate,
    *,
    objectives: Mapping[str, str],
    known: Mapping[str, Known] | None = None,
    limits: Mapping[str, float | str] | None = None,
    budget: int = 200,
    batch: int = 20,
    strategy: str | Callable[[Task], Strategy] = "default",
    seed: int = 0,
    patience: int | None = None,
    callback: Callable[[OptimizeResult], None] | None = None,
    archive: str | Path | None = None,
    progress: Progress = SILENT,
) -> OptimizeResult:
    """The Pareto front of a space from few evaluations.

    Args:
        evaluate: a list of N `Architecture` to ``{name: (N,) values}`` with every objective and limited quantity that is
            not known. Every network counts against the budget and none is evaluated twice.
        objectives: name -> ``"max"`` or ``"min"``, one or more.
        known: name -> exact cost of a list of architectures, (N,) values; free, so it is called for many thousands of
            networks. Methods of the space and of a `LatencyTable` work on arrays and are the fastest.
        limits: name -> bound: at least for objectives to be maximised, ``accuracy`` and ``throughput``, else at most; for
            another quantity that is to be large, ``{"top5": ">= 0.9"}``.
        budget: evaluations in all, the archive's included; a smaller space (within known limits) is evaluated completely.
        batch: networks per call of ``evaluate``, at most.
        strategy: a name of `nas.strategies.STRATEGIES`: ``default`` models what is measured with Gaussian processes and
            proposes batches by expected gain of hypervolume; the others are for comparison. Or your own: a function of a
            `Task` that makes a `Strategy`; `nas.testing.check_strategy` checks it.
        seed: of everything random; the same seed and values give the same result.
        patience: stop early when so many evaluations in a row added less than 0.1 % to the front's hypervolume (measured
            from the worst values met); None spends the whole budget.
        callback: called with the result so far after every batch.
        archive: a JSON file that keeps every evaluation. One that is there is gone on with: an interrupted run as if it had
            not been, another one (more budget, other limits, objectives or strategy) from all that is known.

    Raises:
        UserError: bad arguments, known limits that no network meets, an archive that does not fit, or values from
            ``evaluate`` that are missing, of wrong length or not finite.

    An exception that ends the run during an evaluation, of whatever type, carries the finished trials as ``.result``.
    """
    task = make_task(space, objectives, known or {}, limits or {}, budget=budget, batch=batch, seed=seed)
    if patience is not None:
        check_whole("patience", patience, 1)
    with Evaluations.opened(space, archive) as evaluations:
        run = _Run(task, evaluate, strategy, evaluations)
        progress.start(f"optimize ({run.name})", budget)
        try:
            for _ in run.batches(patience, progress):
                if callback is not None:
                    callback(run.result())
        except BaseException as error:
            run.attach_to(error)
            raise
        finally:
            progress.stop()
        return run.result()


class _Run:
    """A strategy at work on a task."""

    def __init__(
        self, task: Task, evaluate: Evaluate, strategy: str | Callable[[Task], Strategy], evaluations: Evaluations
    ) -> None:
        if not callable(evaluate):
            raise UserError(
                f"evaluate is a {type(evaluate).__name__}",
                allowed="A function of a list of architectures that returns a dict with one number for each",
                next_step='Give for example: lambda archs: {"accuracy": [score(arch) for arch in archs]}',
            )
        self.task = task
        self.evaluate = evaluate
        self.name = strategy if isinstance(strategy, str) else getattr(strategy, "__name__", "own")
        self._make = strategy if callable(strategy) else partial(make_strategy, strategy)
        self.strategy = self._begin()
        self.archive = Archive.of(task)
        self.evaluations = evaluations
        rows, values = evaluations.told(task)
        self._before = {row.tobytes(): known for row, known in zip(rows, values, strict=True)}  # not yet told

    def attach_to(self, error: BaseException) -> None:
        """Hand out what is finished with what ends the run."""
        with suppress(AttributeError, TypeError):  # a class with slots has no room; the callback has seen every batch
            error.result = self.result()  # type: ignore[attr-defined]

    def _begin(self) -> Strategy:
        made = self._make(self.task)
        return _Everything(self.task) if self.task.space.count() <= self.task.budget else made

    def batches(self, patience: int | None, progress: Progress) -> Iterator[None]:
        """Evaluate batch by batch until the budget is spent, nothing is left or it stalls; a turn after each new batch."""
        task = self.task
        while len(self.archive) < task.budget or self._before:
            done, going_on, kept = len(self.archive), bool(self._before), len(self.evaluations.trials)
            n = min(task.batch, task.budget - done)
            rows = self.strategy.ask(n) if n > 0 else self.archive.rows[:0]
            if going_on and not (len(rows) and self._as_before(rows)):
                self._tell_at_once()
            elif len(rows):
                self._check_proposals(rows, n)
                self._take(rows)
            else:
                progress.say(f"stopped: after {done} evaluations no network within the known limits is left")
                return
            progress.advance(len(self.archive) - done)
            if len(self.evaluations.trials) > kept:
                yield
            if patience is not None and not self._before and self.stalls(patience):
                progress.say(f"stopped: {patience} evaluations added less than {STALL:.1%} to the hypervolume")
                return

    def _as_before(self, rows: Rows) -> bool:
        """Whether these proposals are the next networks that were evaluated before, or have all that are left among them."""
        proposed = {row.tobytes() for row in rows}
        following = set(list(self._before)[: len(rows)])
        return following <= proposed and len(proposed & self._before.keys()) == len(following)

    def _tell_at_once(self) -> None:
        """Tell all that was evaluated before to a strategy that has proposed none of it."""
        rows, values = self.evaluations.told(self.task)
        self._before.clear()
        self.strategy, self.archive = self._begin(), Archive.of(self.task)
        self.archive.add(rows, values)
        self.strategy.tell(rows, values)

    def _take(self, rows: Rows) -> None:
        """Evaluate proposals, those that were evaluated before excepted, and tell the strategy."""
        task, columns = self.task, self.task.measured
        values = np.full((len(rows), len(task.quantities)), np.nan)
        keys = [row.tobytes() for row in rows]
        for at, key in enumerate(keys):
            values[at] = self._before.pop(key, values[at])
        new, failure = np.isnan(values).any(axis=1), None
        try:
            if new.any():
                values[new], failure = _evaluated(task, self.evaluate, rows[new])
        finally:
            finished = np.isfinite(values).all(axis=1)
            self.archive.add(rows[finished], values[finished])
            fresh = new & finished
            plain = {task.quantities[c].name: (task.quantities[c].sign * values[fresh, c]).tolist() for c in columns}
            self.evaluations.add(task.space.from_array(rows[fresh]), plain)
        if failure is not None:
            raise failure
        self.strategy.tell(rows, values)

    def _check_proposals(self, rows: Rows, n: int) -> None:
        """Refuse what breaks a strategy's contract: it would cost evaluations, and the result would be wrong."""
        broken = {
            f"{len(rows)} networks where {n} were asked for": len(rows) > n,
            "one network twice": len(self.task.space.unique(rows)) < len(rows),
            "a network that was evaluated already": not self.archive.new(rows).all(),
            "a network outside the known limits": not self.task.allowed(rows).all(),
        }
        for what, found in broken.items():
            if found:
                raise UserError(
                    f"strategy '{self.name}' proposed {what}",
                    allowed="New networks within the known limits, each once, as many as asked for or fewer",
                    next_step="Check the strategy with nas.testing.check_strategy",
                )

    def stalls(self, patience: int) -> bool:
        """Whether the last evaluations, ``patience`` of them, added next to nothing to the hypervolume."""
        within = self.task.excess(self.archive.values) <= 0
        costs = self.archive.values[:, self.task.objectives]
        if len(costs) <= patience or not within[:-patience].any():
            return False
        found, span = costs[within], np.ptp(costs[within], axis=0)
        worst = found.max(axis=0) + MARGIN * np.where(span > 0, span, 1.0)
        growth = hypervolume_trace(np.where(within[:, None], costs, np.inf), worst)
        return bool(growth[-1] - growth[-1 - patience] <= STALL * growth[-1])

    def result(self) -> OptimizeResult:
        """The trials so far and their front."""
        import pandas as pd

        task, archive = self.task, self.archive
        archs = task.space.from_array(archive.rows)
        plain = archive.values * [quantity.sign for quantity in task.quantities]
        columns = {quantity.name: plain[:, at] for at, quantity in enumerate(task.quantities)}
        trials = pd.DataFrame({"architecture": pd.Series(archs, dtype=object), **columns})
        points = [
            Point(arch, dict(zip(columns, values, strict=True)), {}) for arch, values in zip(archs, plain.tolist(), strict=True)
        ]
        provenance = {"strategy": self.name, "seed": task.seed, "budget": task.budget, "evaluations": len(archive)}
        front = ParetoFront.of(
            task.space,
            points,
            objectives={q.name: "max" if q.maximise else "min" for q in task.quantities if q.objective},
            limits={q.name: q.bound for q in task.quantities if q.bound is not None},
            provenance=provenance,
            at_least=[q.name for q in task.quantities if q.maximise and not q.objective],
        )
        return OptimizeResult(trials, front)


class _Everything:
    """All networks within the known limits in random order, where they are no more than the budget."""

    def __init__(self, task: Task) -> None:
        rows = task.space.all_rows()
        rows = rows[task.allowed(rows)]
        self.rows = rows[np.random.default_rng(task.seed).permutation(len(rows))]
        self.archive = Archive.of(task)

    def ask(self, n: int) -> Rows:
        return self.rows[self.archive.new(self.rows)][:n]

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)


def _evaluated(task: Task, evaluate: Evaluate, rows: Rows) -> tuple[Values, UserError | None]:
    """Quantities of rows, all minimised; NaN where a value is missing, with the error that says so."""
    archs = task.space.from_array(rows)
    returned = evaluate(list(archs))
    values = task.known(rows)
    failure = None
    for column in task.measured:
        quantity = task.quantities[column]
        given, problem = _column(returned, quantity.name, len(rows))
        values[:, column] = quantity.sign * given
        broken = np.flatnonzero(~np.isfinite(given))
        if problem is None and len(broken):
            at = broken[0]
            problem = f"evaluate returned {quantity.name} = {given[at]} for architecture {archs[at].id} ({archs[at]})"
        if problem is not None and failure is None:
            failure = UserError(
                problem,
                allowed=f"A dict with one finite number per architecture for {', '.join(_names(task, task.measured))}",
                next_step="Mend evaluate; the finished trials are in this error's .result",
            )
    return values, failure


def _column(returned: Any, name: str, count: int) -> tuple[Values, str | None]:
    """One quantity's values, (count,), or NaN with what is wrong."""
    missing = np.full(count, np.nan)
    if not hasattr(returned, "__getitem__") or not hasattr(returned, "keys"):
        return missing, f"evaluate returned a {type(returned).__name__}"
    if name not in returned:
        return missing, f"evaluate did not return '{name}', only {list(returned.keys())}"
    try:
        given = returned[name]
        given = given.detach() if hasattr(given, "detach") else given  # of torch, outside of no_grad
        values = np.ma.filled(np.ma.asarray(given, dtype=np.float64), np.nan) if np.ma.isMaskedArray(given) else given
        values = np.asarray(values)
        if values.dtype.kind in "cmMSU":
            return missing, f"evaluate returned no numbers for {name} but {values.dtype}"
        values = values.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        return missing, f"evaluate returned no numbers for {name} ({error})"
    if values.shape != (count,):
        return missing, f"evaluate returned {name} of shape {values.shape} for {count} architectures"
    return values, None


def _names(task: Task, columns: Sequence[int]) -> list[str]:
    return [task.quantities[column].name for column in columns]
