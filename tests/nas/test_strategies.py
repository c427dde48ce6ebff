"""Every strategy passes one conformance suite; the default is worth its name on problems with a known front."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pymoo.indicators.hv import HV

import nas
from nas.pareto import non_dominated
from nas.strategies import STRATEGIES, Task
from nas.strategies.simple import RandomSearch
from nas.strategies.task import Rows
from nas.testing import check_strategy

SLOW = ("optuna-gp",)  # minutes: it fits and optimises anew for every single proposal


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STRATEGIES])
def test_a_strategy_conforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "age-moea":
        pytest.importorskip("numba", reason="needs the extra age-moea")
    monkeypatch.setattr("nas.strategies.linas.INNER_EVALUATIONS", 1000)
    check_strategy(STRATEGIES[name])


def test_age_moea_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    space = nas.SearchSpace({"a": [0, 1, 2], "b": [0, 1, 2]}, name="few")
    objectives = {"x": "min", "y": "min"}
    with pytest.raises(nas.UserError, match=r"hwnas\[age-moea\]"):
        nas.optimize(space, lambda archs: {}, objectives=objectives, budget=4, strategy="age-moea")


class _Repeats(RandomSearch):
    def ask(self, n: int) -> Rows:
        return np.concatenate([self.archive.rows[:1], super().ask(n)])[:n]


class _TooMany(RandomSearch):
    def ask(self, n: int) -> Rows:
        return super().ask(n + 1)


class _IgnoresLimits(RandomSearch):
    def ask(self, n: int) -> Rows:
        return self.task.space.sample_rows(1, self.rng)


class _GivesUp(RandomSearch):
    def ask(self, n: int) -> Rows:
        return super().ask(n)[: 5 if len(self.archive) < 5 else 0]


class _Unseeded(RandomSearch):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.rng = np.random.default_rng()


class _Refuses(RandomSearch):
    def __init__(self, task: Task) -> None:
        raise nas.UserError("no", allowed="nothing", next_step="none")


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (_Repeats, "told already"),
        (_TooMany, "where 10 were asked for"),
        (_IgnoresLimits, "outside the known limits|told already"),
        (_GivesUp, "networks are left"),
        (_Unseeded, "asks for other networks"),
        (_Refuses, "every task was refused"),
    ],
)
def test_the_suite_sees_broken_laws(make: type[RandomSearch], law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_strategy(make)


class Hills:
    """Accuracy with diminishing returns and interactions of neighbours, cost a sum; small enough to be listed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.space = nas.SearchSpace({f"gene_{i}": [0, 1, 2, 3] for i in range(8)}, name="hills")
        self.worth = np.sort(rng.random((8, 4)), axis=1)
        self.price = np.cumsum(rng.random((8, 4)), axis=1)
        self.together = 0.3 * rng.random((7, 4, 4))

    def __call__(self, archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        return self.of(self.space.to_array(archs))

    def of(self, rows: Rows) -> dict[str, np.ndarray]:
        genes = np.arange(8)
        single = self.worth[genes, rows].sum(axis=1) + self.together[genes[:-1], rows[:, :-1], rows[:, 1:]].sum(axis=1)
        return {"accuracy": np.tanh(single / 6), "cost": self.price[genes, rows].sum(axis=1)}


def share(hills: Hills, strategy: str, seed: int, *, noise: float = 0.0) -> float:
    """Share of the true hypervolume after 80 evaluations, by true values."""
    rng = np.random.default_rng(seed)

    def measured(archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        values = hills(archs)
        return values | {"accuracy": values["accuracy"] + noise * rng.normal(size=len(archs))}

    every = costs(hills.of(hills.space.all_rows()))
    volume = HV(ref_point=every.max(axis=0))
    objectives = {"accuracy": "max", "cost": "min"}
    result = nas.optimize(hills.space, measured, objectives=objectives, budget=80, batch=10, strategy=strategy, seed=seed)
    return float(volume(costs(hills(list(result.trials["architecture"])))) / volume(every[non_dominated(every)]))


def costs(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.column_stack([-values["accuracy"], values["cost"]])


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_default_finds_most_of_a_known_front(noise: float) -> None:
    """After 80 of 65,536 networks, a fraction of what random search leaves is left, with noisy accuracies too."""
    ours = [share(Hills(seed), "default", seed, noise=noise) for seed in range(3)]
    random = [share(Hills(seed), "random", seed, noise=noise) for seed in range(3)]
    assert np.mean(ours) > 0.95
    assert 1 - np.mean(ours) < 0.35 * (1 - np.mean(random))
