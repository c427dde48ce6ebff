"""What a search of a run is for: devices, objectives, limits, and the fronts that follow from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from latency_tables import LatencyTable
from nas.feasibility import check_together, reachable
from nas.objectives import KNOWN, OF_DEVICES, Limit, Objective, check_feasible, kind_of, objectives_of, on_device, parse_budgets
from search_spaces import SearchSpace
from search_spaces.errors import UserError, unknown_name

__all__ = ["Goal", "View", "make_goal"]


@dataclass(frozen=True)
class View:
    """The objectives and limits of one front.

    Attributes:
        name: of the front among others; empty for the main one.
        device: whose own front it is; None for networks that serve all devices.
    """

    name: str
    objectives: tuple[str, ...]
    limits: tuple[Limit, ...]
    device: str | None = None


@dataclass(frozen=True)
class Goal:
    """Devices, objectives and limits of one search.

    Attributes:
        tables: by device; the first one's quantities are called ``latency`` and ``throughput``, those of the others
            ``latency@DEVICE``.
        objectives: what is optimised.
        cases: every combination of the budgets, each a list of limits; one without limits where there are none.
    """

    space: SearchSpace
    tables: Mapping[str, LatencyTable]
    objectives: tuple[str, ...]
    cases: tuple[tuple[Limit, ...], ...]

    @property
    def devices(self) -> list[str]:
        return list(self.tables)

    @cached_property
    def known(self) -> dict[str, Objective]:
        """Everything but accuracy."""
        first = next(iter(self.tables), "")
        names = {device: on_device("latency", device, first) for device in self.tables}
        batches = {names[d]: int(t.fingerprint["batch"]) for d, t in self.tables.items() if "batch" in t.fingerprint}
        costs = {names[device]: table.cost(self.space) for device, table in self.tables.items()}
        joules = {on_device("energy", device, first): table.energy_cost(self.space) for device, table in self.tables.items()}
        energy = {name: cost for name, cost in joules.items() if cost is not None}
        return objectives_of(self.space, latency=costs, energy=energy, batches=batches)

    @cached_property
    def loosest(self) -> tuple[Limit, ...]:
        """Of all cases."""
        found: dict[str, Limit] = {}
        for limit in (limit for case in self.cases for limit in case):
            best = found.setdefault(limit.objective, limit)
            if (limit.bound < best.bound) == limit.maximised:
                found[limit.objective] = limit
        return tuple(found.values())

    @property
    def shared(self) -> View:
        """Of the main front: networks that keep all limits, on all devices."""
        return View("", self.objectives, self.loosest)

    @property
    def views(self) -> list[View]:
        """What the search covers: the main front, and with several devices each one's own."""
        if len(self.tables) <= 1:
            return [self.shared]
        return [self.shared, *(self._own(device, self.loosest, device) for device in self.devices)]

    @property
    def parts(self) -> list[View]:
        """The fronts that are reported beside the main one: of each combination of budgets, and of each device alone."""
        varying = {limit.objective for case in self.cases for limit in case if limit not in self.cases[0]}
        found: dict[str, View] = {}
        for case in self.cases:
            varied = [limit for limit in case if limit.objective in varying]
            name = ", ".join(map(str, varied))
            name = name if name not in found else ", ".join(limit.exact for limit in varied)  # budgets that print alike
            if name:
                found[name] = View(name, self.objectives, case)
        for device in self.devices if len(self.tables) > 1 else []:
            for case in self.cases:
                own = self._own(device, case, device)
                label = ", ".join([device, *(str(limit) for limit in own.limits if limit.objective in varying)])
                found[label] = replace(own, name=label)
        return list(found.values())

    def _own(self, device: str, limits: Sequence[Limit], name: str) -> View:
        """A device's own front: the other devices' latencies neither count nor bound."""
        common = [objective for objective in self.objectives if kind_of(objective) not in OF_DEVICES]
        mine = [o for o in self.objectives if kind_of(o) in OF_DEVICES and self.device_of(o) == device]
        mine = mine or [on_device("latency", device, self.devices[0])]
        kept = tuple(limit for limit in limits if self.device_of(limit.objective) in (None, device))
        return View(name, (*common, *mine), kept, device)

    def device_of(self, name: str) -> str | None:
        """The device that a quantity is of; None for accuracy and counts."""
        if kind_of(name) not in OF_DEVICES:
            return None
        return name.partition("@")[2] or next(iter(self.tables), None)

    def searched(self, limits: Sequence[Limit]) -> tuple[Limit, ...]:
        """Limits with the latency tables' margins, but never beyond what some network reaches."""
        return tuple(self._with_margin(limit) for limit in limits) if self._margins_kept else tuple(limits)

    @cached_property
    def _margins_kept(self) -> bool:
        """Whether networks keep all margins together, in every case."""
        cases = [[self._with_margin(limit) for limit in case] for case in self.cases]
        return all(reachable(self.space, self.known, case) for case in cases)

    def check(self) -> None:
        """Refuse limits that no network of the space meets; nothing has to be scored for it.

        Raises:
            UserError: names the best reachable values.
        """
        for limit in self.loosest:
            if limit.objective == "accuracy" and limit.bound > 1:
                raise UserError(
                    f"limit {limit}",
                    allowed="An accuracy is at most 1, or 100%",
                    next_step=f"Write for example: --limit accuracy={limit.bound:g}%",
                )
        for case in self.cases:
            check_feasible(self.space, self.known, case)
        for case in self.cases:
            check_together(self.space, self.known, case)

    def margin(self, device: str, kind: str = "latency") -> float:
        """How far within a limit on a device's quantity the search stays, as a fraction: estimates err, limits are hard.

        Three times the table's median error on networks that it had not seen, about two standard deviations; at most a
        quarter. 0 for a table without such networks.
        """
        quality, energy = self.tables[device].quality, self.tables[device].energy
        if kind == "energy":
            return 0.0 if energy is None else min(0.25, 3 * energy.error)
        return 0.0 if quality is None else min(0.25, 3 * quality.corrected.median)

    def _with_margin(self, limit: Limit) -> Limit:
        device = self.device_of(limit.objective)
        if device is None:
            return limit
        best = self.known[limit.objective].best
        assert best is not None
        edge, margin = best()[0], 1 + self.margin(device, kind_of(limit.objective))
        if limit.maximised:
            return Limit(limit.objective, max(limit.bound, min(limit.bound * margin, edge * (1 - 1e-9))))
        return Limit(limit.objective, min(limit.bound, max(limit.bound / margin, edge * (1 + 1e-9))))


def make_goal(
    space: SearchSpace, tables: Mapping[str, LatencyTable], objectives: Sequence[str] | None, limits: Mapping[str, Any]
) -> Goal:
    """Check and complete what a user wants.

    A quantity with several budgets becomes an objective: its fronts are slices of one.

    Args:
        objectives: default accuracy, and latency on every device.

    Raises:
        UserError: an unknown quantity or device, a quantity that nobody measured, or a wrong limit.
    """
    first = next(iter(tables), "")
    names = ["accuracy", *(on_device("latency", device, first) for device in tables)] if objectives is None else objectives
    names = [_resolved(name, tables) for name in names]
    cases = parse_budgets({_resolved(name, tables): bound for name, bound in limits.items()})
    varying = [limit.objective for limit in cases[-1] if limit not in cases[0]]
    wanted = tuple(dict.fromkeys([*names, *varying]))
    if len(wanted) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"objectives {list(names)}",
            allowed=f"Two or more different ones of {', '.join(KNOWN)}",
            next_step="Give for example: --objective accuracy --objective latency",
        )
    goal = Goal(space, tables, wanted, tuple(tuple(case) for case in cases))
    for name in [*wanted, *(limit.objective for limit in cases[0])]:
        if name != "accuracy" and name not in goal.known:
            raise _unmeasured(goal, name)
    return goal


def check_names(devices: Sequence[str], objectives: Sequence[str] | None, limits: Mapping[str, Any]) -> None:
    """Refuse quantities, devices and bounds that there are not; nothing has to be measured for it.

    Raises:
        UserError: as `make_goal`.
    """
    for name in objectives or ():
        _resolved(name, devices)
    parse_budgets({_resolved(name, devices): bound for name, bound in limits.items()})


def _unmeasured(goal: Goal, name: str) -> UserError:
    """What a table lacks, and why."""
    what = "no batch size" if kind_of(name) == "throughput" else "no energy: nothing that may be read counted it"
    again = "nas profile RUN --force, as a user who may read /sys/class/powercap, or: --limit latency=5ms"
    return UserError(
        f"nobody measured {name}",
        allowed=f"The latency table of {goal.device_of(name)} names {what}; it has: {', '.join(goal.known)}",
        next_step="Limit the latency instead: --limit latency=5ms"
        if kind_of(name) == "throughput"
        else f"Profile with {again}",
    )


def _resolved(name: str, tables: Collection[str]) -> str:
    """A quantity's one name: the first device's goes without device."""
    kind, at, device = name.partition("@")
    if kind not in KNOWN:
        raise unknown_name("objective", name, KNOWN, command="nas search --help")
    if not at:
        return name
    if kind not in OF_DEVICES:
        raise UserError(f"{name}", allowed=f"{kind} is the same on every device", next_step=f"Write: {kind}, without a device")
    if device not in tables:
        raise UserError(
            f"{name}: '{device}' is not among the devices of this search",
            allowed=f"They are: {', '.join(tables) or 'none'}",
            next_step=f"Add: --device {device}",
        )
    return on_device(kind, device, next(iter(tables), ""))
