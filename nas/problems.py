"""The arguments of `nas.optimize`, checked and made into a task for strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from latency_tables import LatencyTable
from nas.objectives import KNOWN, kind_of
from nas.pareto import direction_of
from nas.strategies import Quantity, Task
from nas.strategies.task import Rows, Values
from search_spaces import Architecture, SearchSpace
from search_spaces.checks import check_space, check_whole
from search_spaces.costs import Cost
from search_spaces.errors import UserError
from search_spaces.rows import row_keys

__all__ = ["Known", "make_task", "takes_rows"]

RESERVED = ("architecture", "id", "measured")

Known = Callable[[list[Architecture]], Any]


def make_task(
    space: SearchSpace,
    objectives: Mapping[str, str],
    known: Mapping[str, Known],
    limits: Mapping[str, float | str],
    *,
    budget: int,
    batch: int,
    seed: int,
) -> Task:
    """See `nas.optimize`.

    Raises:
        UserError: a wrong argument, or known limits that no network meets.
    """
    _check(space, objectives, known, limits)
    for name, number, least in (("budget", budget, 1), ("batch", batch, 1), ("seed", seed, 0)):
        check_whole(name, number, least)
    bounds = {name: bound_of(name, bound, objectives) for name, bound in limits.items()}
    directions = {**{name: direction for name, (direction, _) in bounds.items()}, **objectives}
    names = list(dict.fromkeys([*objectives, *limits]))
    quantities = tuple(
        Quantity(
            name,
            maximise=directions[name] == "max",
            objective=name in objectives,
            bound=bounds[name][1] if name in bounds else None,
            known=_on_rows(space, name, known[name]) if name in known else None,
        )
        for name in names
    )
    task = Task(space, quantities, int(budget), int(batch), int(seed))
    _check_reachable(task)
    return task


def bound_of(name: str, bound: float | str, objectives: Mapping[str, str]) -> tuple[str, float]:
    """``"max"`` (at least) or ``"min"`` (at most) and the number of a limit: ``20.0``, ``"<= 20"`` or ``">= 0.8"``.

    Raises:
        UserError: neither a finite number nor such a text, or one that contradicts the objective of this name.
    """
    usual = direction_of(name, objectives)
    direction, number = usual, bound
    if isinstance(bound, str) and bound.strip()[:2] in (">=", "<="):
        direction, number = "max" if bound.strip()[0] == ">" else "min", bound.strip()[2:]
    try:
        value = math.nan if isinstance(number, bool) or (isinstance(number, str) and number is bound) else float(number)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"limit {name}={bound!r}",
            allowed='A finite number, or with its direction such as ">= 0.8"',
            next_step=f'Give for example: limits={{"{name}": {"0.8" if usual == "max" else "20.0"}}}',
        )
    if direction != usual and (name in objectives or kind_of(name) in KNOWN):
        large, lower = ("large", "a lower") if usual == "max" else ("small", "an upper")
        raise UserError(
            f"limit {name} {bound}",
            allowed=f"{name} is to be {large}, its limit is {lower} bound",
            next_step=f'Give for example: limits={{"{name}": {value:g}}}',
        )
    return direction, value


def _check(
    space: SearchSpace, objectives: Mapping[str, str], known: Mapping[str, Known], limits: Mapping[str, float | str]
) -> None:
    check_space(space)
    if not isinstance(objectives, Mapping) or not objectives or any(d not in ("max", "min") for d in objectives.values()):
        raise UserError(
            f"objectives {objectives!r}",
            allowed='One or more names with "max" or "min"',
            next_step='Give for example: objectives={"accuracy": "max", "latency_ms": "min"}',
        )
    for what, given in (("known", known), ("limits", limits)):
        if not isinstance(given, Mapping):
            raise UserError(f"{what}={given!r}", allowed="A dict by name, or None", next_step=f"Give {what}={{name: ...}}")
    for name in (*objectives, *known, *limits):
        if not isinstance(name, str) or not name or name in RESERVED:
            raise UserError(
                f"a quantity is named {name!r}",
                allowed=f"A text other than {', '.join(RESERVED)}, which are columns of the results",
                next_step="Choose another name",
            )
    for name, function in known.items():
        if not callable(function):
            raise UserError(
                f"known['{name}'] is a {type(function).__name__}",
                allowed="A function of a list of architectures that returns one number for each",
                next_step='Give for example: known={"macs": space.macs}',
            )


def _on_rows(space: SearchSpace, name: str, function: Known) -> Callable[[Rows], Values]:
    """A known cost as a function of canonical rows, its values checked.

    Methods of the space and of a latency table take rows as they are; any other function gets architectures, and no
    architecture twice, for it may be slow.
    """
    owner = getattr(function, "__self__", function)
    if isinstance(owner, Cost):
        _check_cost(space, name, owner)
    if isinstance(owner, Cost) or takes_rows(space, function):
        return lambda rows: _checked(space, name, function(rows), rows)  # type: ignore[arg-type]
    remembered: dict[bytes, float] = {}

    def values(rows: Rows) -> Values:
        keys = [key.tobytes() for key in row_keys(rows)]
        new = {key: at for at, key in enumerate(keys) if key not in remembered}
        if new:
            fresh = rows[list(new.values())]
            remembered.update(zip(new, _checked(space, name, function(space.from_array(fresh)), fresh).tolist(), strict=True))
        return np.array([remembered[key] for key in keys])

    return values


def takes_rows(space: SearchSpace, function: Callable[..., Any]) -> bool:
    """Whether a function of architectures is a method of the space, or of a latency table of it: these take rows as well."""
    owner = getattr(function, "__self__", function)
    of_space = owner.space if isinstance(owner, LatencyTable) else owner
    return isinstance(of_space, SearchSpace) and of_space == space


def _check_cost(space: SearchSpace, name: str, cost: Cost) -> None:
    """Refuse tables of look-ups whose options are not those of the space, such as those of the whole space for a part of it."""
    for factor in cost.factors:
        for gene, length in zip(factor.genes, factor.table.shape, strict=True):
            if gene >= len(space.genes) or space.lengths[gene] != length:
                raise UserError(
                    f"known['{name}'] is a cost of another space: it has {length} options where {space.key} has others",
                    allowed="A cost that this space, restrictions included, has made",
                    next_step="Make it with this space: space.cost(...), or give a function of architectures",
                )


def _checked(space: SearchSpace, name: str, returned: Any, rows: Rows) -> Values:
    try:
        values = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (len(rows),):
        raise UserError(
            f"known['{name}'] returned {type(returned).__name__} of shape {np.shape(returned)} for {len(rows)} architectures",
            allowed="One number for each architecture of the list",
            next_step="Return a numpy array",
        )
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        arch = space.from_array(rows[at : at + 1])[0]
        raise UserError(
            f"known['{name}'] is {values[at]} for architecture {arch.id} ({arch})",
            allowed="Known costs are finite for every network of the space",
            next_step="Mend the function, or restrict the space: space.restrict(...)",
        )
    return values


def _check_reachable(task: Task) -> None:
    """Refuse known limits that no network meets, with the smallest reachable values.

    Raises:
        UserError: as said.
    """
    limited = [q for q in task.quantities if q.known is not None and q.bound is not None]
    if not limited:
        return
    reachable = len(task.listed) if task.listed is not None else len(task.nearest.front)
    if reachable:
        return
    nearest = task.space.from_array(task.nearest.population[:1])[0]
    raise UserError(
        f"no network of {task.space.key} was found within all known limits: {_texts(limited)}",
        allowed=f"The nearest network is {nearest.id} with {_values(limited, task.nearest.population[:1])} ({nearest})",
        next_step="Relax the limits to what it has",
    )


def _texts(limited: Sequence[Quantity]) -> str:
    return ", ".join(f"{q.name} {'>=' if q.maximise else '<='} {q.bound:g}" for q in limited)


def _values(limited: Sequence[Quantity], rows: Rows) -> str:
    return ", ".join(f"{q.name} {float(q.known(rows)[0]):g}" for q in limited if q.known is not None)
