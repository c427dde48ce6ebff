"""Strategies of other libraries: pymoo's evolutionary algorithms and Optuna's samplers, over our rows."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from pymoo.algorithms.moo.ctaea import CTAEA
from pymoo.algorithms.moo.moead import ParallelMOEAD
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.algorithms.moo.rvea import RVEA
from pymoo.algorithms.moo.sms import SMSEMOA
from pymoo.algorithms.moo.unsga3 import UNSGA3
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling
from pymoo.problems.static import StaticProblem
from pymoo.util.ref_dirs import get_reference_directions

from nas.optuna_logs import quiet_optuna
from nas.strategies.task import Archive, Rows, Task, Values
from search_spaces import SearchSpace
from search_spaces.errors import UserError

__all__ = ["PYMOO", "SAMPLERS", "OptunaSearch", "PymooSearch"]

POPULATION = 50
GENERATIONS_WITHOUT_NEWS = 50


class _Start(Sampling):  # type: ignore[misc]
    """Distinct random networks within the known limits."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def _do(self, _problem: Problem, n_samples: int, *, random_state: np.random.Generator, **_kwargs: Any) -> Rows:
        return self.task.draw(n_samples, Archive.of(self.task), random_state)


class _UniformCrossover(Crossover):  # type: ignore[misc]
    def __init__(self, space: SearchSpace) -> None:
        super().__init__(2, 2)
        self.space = space

    def _do(self, _problem: Problem, parents: Rows, *, random_state: np.random.Generator, **_kwargs: Any) -> Rows:
        first, second = parents.astype(np.int64)  # each (matings, genes)
        children = [self.space.crossover(first, second, random_state), self.space.crossover(second, first, random_state)]
        return np.stack(children)


class _GeneMutation(Mutation):  # type: ignore[misc]
    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, _problem: Problem, rows: Rows, *, random_state: np.random.Generator, **_kwargs: Any) -> Rows:
        return self.space.mutate(rows.astype(np.int64), random_state)


class _Distinct(DuplicateElimination):  # type: ignore[misc]
    """Rows are canonical, so equal networks have equal bytes."""

    def _do(self, population: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        seen = set() if other is None else {row.tobytes() for row in other.get("X").astype(np.int64)}
        for index, row in enumerate(population.get("X").astype(np.int64)):
            key = row.tobytes()
            is_duplicate[index] |= key in seen
            seen.add(key)
        return is_duplicate


def _directions(task: Task) -> Any:
    """Evenly spaced directions (Das and Dennis 1998), as many as fit a population."""
    objectives, partitions = len(task.objectives), 1
    while math.comb(partitions + objectives, objectives - 1) <= POPULATION:
        partitions += 1
    return get_reference_directions("das-dennis", objectives, n_partitions=partitions)


def _age_moea(own: dict[str, Any]) -> Any:
    if importlib.util.find_spec("numba") is None:
        raise UserError(
            "strategy 'age-moea' without numba, which compiles parts of it",
            allowed="The other strategies need nothing more",
            next_step="Install it with: pip install 'hwnas[age-moea]'",
        )
    from pymoo.algorithms.moo.age import AGEMOEA

    return AGEMOEA(pop_size=POPULATION, **own)


# name -> (algorithm of (task, operators), least and most objectives)
PYMOO: Mapping[str, tuple[Callable[[Task, dict[str, Any]], Any], int, int | None]] = {
    "ga": (lambda _task, own: GA(pop_size=POPULATION, **own), 1, 1),
    "nsga2": (lambda _task, own: NSGA2(pop_size=POPULATION, **own), 1, None),
    "nsga3": (lambda task, own: NSGA3(_directions(task), pop_size=POPULATION, **own), 2, None),
    "unsga3": (lambda task, own: UNSGA3(_directions(task), pop_size=POPULATION, **own), 2, None),
    "age-moea": (lambda _task, own: _age_moea(own), 2, None),
    "sms-emoa": (lambda _task, own: SMSEMOA(pop_size=POPULATION, **own), 2, None),
    "moead": (lambda task, own: ParallelMOEAD(_directions(task), n_neighbors=20, **_without_duplicates(own)), 2, None),
    "ctaea": (lambda task, own: CTAEA(_directions(task), **own), 2, None),
    "rvea": (lambda task, own: RVEA(_directions(task), **own), 2, None),
}


def _without_duplicates(own: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if name != "eliminate_duplicates"}


def _penalised(task: Task, values: Values, archive: Archive) -> Values:
    """Objectives, (N, objectives); outside the limits worse than everything evaluated, by the more the farther outside."""
    costs = values[:, task.objectives]
    known = archive.values[:, task.objectives] if len(archive) else costs
    worst, span = known.max(axis=0), np.ptp(known, axis=0) + 1e-9
    excess = task.excess(values)[:, None]
    return np.where(excess > 0, worst + (1.0 + excess) * span, costs)


class PymooSearch:
    """An evolutionary algorithm of pymoo with uniform crossover and per-gene mutation over options.

    Members of a generation that were evaluated before are answered from memory, those outside the known limits by a
    penalty; an algorithm that has nothing new for many generations is given random networks to evaluate instead.
    """

    def __init__(self, task: Task, *, name: str) -> None:
        make, least, most = PYMOO[name]
        count = len(task.objectives)
        if count < least or (most is not None and count > most):
            raise UserError(
                f"strategy '{name}' with objectives: {', '.join(q.name for q in task.quantities if q.objective)}",
                allowed="Only one" if most == 1 else f"{least} or more",
                next_step="Use strategy='default' or 'nsga2'",
            )
        self.task = task
        self.archive = Archive.of(task)
        self.rng = np.random.default_rng([task.seed, 2])
        space = task.space
        operators = {
            "sampling": _Start(task),
            "crossover": _UniformCrossover(space),
            "mutation": _GeneMutation(space),
            "eliminate_duplicates": _Distinct(),
        }
        self.algorithm = make(task, operators)
        problem = Problem(n_var=len(space.genes), n_obj=len(task.objectives), xl=0, xu=np.maximum(space.lengths - 1, 0))
        self.algorithm.setup(problem, termination=("n_gen", 10**9), seed=task.seed, verbose=False)
        self._members: Any = None
        # Where there are hardly more networks than a population has, algorithms starve (one of them loops for ever).
        self._few = len(task.draw(2 * POPULATION, self.archive, self.rng)) < 2 * POPULATION

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)

    def ask(self, n: int) -> Rows:
        for _ in range(0 if self._few else GENERATIONS_WITHOUT_NEWS):
            if self._members is None:
                self._members = self.algorithm.ask()
            if self._members is None:  # it found no child that it had not made before
                break
            rows = self.task.space.canonical(self._members.get("X").astype(np.int64))
            new = rows[self.archive.new(rows)]
            new = new[self.task.allowed(new)]
            if len(new):
                return new[self.task.space.unique(new)][:n]
            known = StaticProblem(self.algorithm.problem, F=self._costs(rows))
            self.algorithm.evaluator.eval(known, self._members)
            self.algorithm.tell(infills=self._members)
            self._members = None
        return self.task.draw(n, self.archive, self.rng)

    def _costs(self, rows: Rows) -> Values:
        seen = ~self.archive.new(rows)
        values = self.task.known(rows)
        if len(self.archive):
            values[:, self.task.measured] = self.archive.values[:, self.task.measured].max(axis=0)
        values[seen] = self.archive.find(rows[seen])
        return _penalised(self.task, values, self.archive)


SAMPLERS: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "optuna-tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True),
    "optuna-gp": lambda seed: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True),
    "optuna-nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION),
}


class OptunaSearch:
    """A sampler of Optuna; numbered options are integers to it, other options categories."""

    TRIES = 10

    def __init__(self, task: Task, *, name: str) -> None:
        self.task = task
        self.archive = Archive.of(task)
        self.rng = np.random.default_rng([task.seed, 2])
        with quiet_optuna(ignored=Warning):
            directions = [optuna.study.StudyDirection.MINIMIZE] * len(task.objectives)
            self.study = optuna.create_study(sampler=SAMPLERS[name](task.seed), directions=directions)
        self._open: dict[bytes, optuna.Trial] = {}
        self._distributions = [_distribution(gene.options) for gene in task.space.genes]

    def ask(self, n: int) -> Rows:
        named = {gene.name: d for gene, d in zip(self.task.space.genes, self._distributions, strict=True)}
        found: dict[bytes, Rows] = {}
        with quiet_optuna(ignored=Warning):
            misses = 0  # in a row: a sampler that is sure of what it has seen already is not asked for ever
            while len(found) < n and misses < self.TRIES:
                trial = self.study.ask(named)
                row = self.task.space.canonical(np.array([[trial.params[name] for name in named]], dtype=np.int64))
                key = row.tobytes()
                misses += 1
                if not self.archive.new(row)[0]:
                    self.study.tell(trial, list(_penalised(self.task, self.archive.find(row), self.archive)[0]))
                elif key in found or key in self._open or not self.task.allowed(row)[0]:
                    self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                else:
                    self._open[key] = trial
                    found[key] = row
                    misses = 0
        rows = np.concatenate([self.archive.rows[:0], *found.values()])
        if len(rows) < n:
            rows = np.concatenate([rows, self.task.draw(n, self.archive, self.rng)])
            rows = rows[self.task.space.unique(rows)][:n]
        return rows

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)
        costs = _penalised(self.task, values, self.archive)
        with quiet_optuna(ignored=Warning):
            for row, cost in zip(rows, costs, strict=True):
                trial = self._open.pop(row.tobytes(), None)
                if trial is not None:
                    self.study.tell(trial, list(cost))
                    continue
                names = [gene.name for gene in self.task.space.genes]
                self.study.add_trial(
                    optuna.trial.create_trial(
                        values=list(cost),
                        params=dict(zip(names, row.tolist(), strict=True)),
                        distributions=dict(zip(names, self._distributions, strict=True)),
                    )
                )


def _distribution(options: Sequence[Any]) -> optuna.distributions.BaseDistribution:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in options):
        return optuna.distributions.IntDistribution(0, len(options) - 1)
    return optuna.distributions.CategoricalDistribution(list(range(len(options))))
