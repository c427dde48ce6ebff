"""Search strategies behind one ask/tell Protocol. Loaded when first used: ``import nas`` stays light."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nas.strategies.task import Archive, Quantity, Strategy, Task
from search_spaces.errors import unknown_name

__all__ = ["STRATEGIES", "Archive", "Quantity", "Strategy", "Task", "make_strategy"]


def _default(task: Task) -> Strategy:
    from nas.strategies.surrogate import Surrogate

    return Surrogate(task)


def _random(task: Task) -> Strategy:
    from nas.strategies.simple import RandomSearch

    return RandomSearch(task)


def _evolution(task: Task) -> Strategy:
    from nas.strategies.simple import Evolution

    return Evolution(task)


def _linas(task: Task) -> Strategy:
    from nas.strategies.linas import Linas

    return Linas(task)


def _pymoo(name: str) -> Callable[[Task], Strategy]:
    def make(task: Task) -> Strategy:
        from nas.strategies.outside import PymooSearch

        return PymooSearch(task, name=name)

    return make


def _optuna(name: str) -> Callable[[Task], Strategy]:
    def make(task: Task) -> Strategy:
        from nas.strategies.outside import OptunaSearch

        return OptunaSearch(task, name=name)

    return make


STRATEGIES: Mapping[str, Callable[[Task], Strategy]] = {
    "default": _default,
    "random": _random,
    "evolution": _evolution,
    "linas": _linas,
    "ga": _pymoo("ga"),
    "nsga2": _pymoo("nsga2"),
    "nsga3": _pymoo("nsga3"),
    "unsga3": _pymoo("unsga3"),
    "age-moea": _pymoo("age-moea"),
    "sms-emoa": _pymoo("sms-emoa"),
    "moead": _pymoo("moead"),
    "ctaea": _pymoo("ctaea"),
    "rvea": _pymoo("rvea"),
    "optuna-tpe": _optuna("optuna-tpe"),
    "optuna-gp": _optuna("optuna-gp"),
    "optuna-nsga2": _optuna("optuna-nsga2"),
}


def make_strategy(name: str, task: Task) -> Strategy:
    """A strategy by name.

    Raises:
        UserError: an unknown name, or one that does not suit the task.
    """
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES, command='python -c "import nas; help(nas.optimize)"')
    return STRATEGIES[name](task)
