"""What a search was asked for, so that the next one can go on from it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.api.defaults import DEFAULT_DEVICE
from nas.goals import check_names
from nas.objectives import OF_DEVICES, kind_of
from nas.pareto import ParetoFront
from nas.tables import STORED
from search_spaces.errors import UserError
from search_spaces.records import reading, record

__all__ = ["Request", "asked_for", "wanted"]


@dataclass(frozen=True)
class Request:
    """Devices, objectives and limits of a search, as given.

    Attributes:
        objectives: None for the usual ones.
        limits: name -> bound or bounds; latencies with their device.
    """

    devices: tuple[str, ...]
    objectives: tuple[str, ...] | None
    limits: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "devices": list(self.devices),
            "objectives": None if self.objectives is None else list(self.objectives),
            "limits": {name: list(bound) if isinstance(bound, tuple) else bound for name, bound in self.limits.items()},
        }


@dataclass(frozen=True)
class _Stored:
    """A request as JSON has it."""

    devices: list[str]
    objectives: list[str] | None
    limits: dict[str, Any]


def wanted(
    before: Path,
    devices: Sequence[str],
    objectives: Sequence[str] | None,
    limits: Mapping[str, Any] | None,
    *,
    resume: bool,
    force: bool,
) -> Request:
    """What is to be searched: what was given, and with ``resume`` the rest from the front before, if there is one.

    Limits on devices that are no longer searched are left out.

    Raises:
        UserError: a quantity, a device or a bound that there is not; or there is a front already, and neither ``resume`` nor
            ``force``.
    """
    usual = Request((DEFAULT_DEVICE,), None, {})
    there = _of(before) if before.exists() and (resume or not force) else usual
    check_names(tuple(devices) or there.devices, objectives, limits or {})
    if before.exists() and not (resume or force):
        raise UserError(
            f"{before} is there already",
            allowed="One front per run; its exports and its report belong to it",
            next_step="Continue its search with --resume, search anew with --force (exports stay), or use it as it is",
        )
    old = there if resume else usual
    chosen = tuple(dict.fromkeys(devices)) or old.devices
    if not devices and (far := [name for name in chosen if "://" in name and not name.startswith(STORED)]):
        raise UserError(
            f"{before} was searched for {', '.join(far)}",
            allowed="A file opens no connection: a device elsewhere is named with the command",
            next_step="Name it again: " + " ".join(f"--device {shlex.quote(name)}" for name in chosen),
        )
    kept = old.objectives
    if kept is not None:  # those of devices that are no longer searched end with them
        kept = tuple(name for name in kept if "@" not in name or name.partition("@")[2] in chosen)
    if limits is None:
        gone = {name for name in old.limits if "@" in name and name.partition("@")[2] not in chosen}
        limits = {name: bound for name, bound in old.limits.items() if name not in gone}
    return Request(chosen, tuple(objectives) if objectives is not None else kept, _named(limits, chosen[0]))


def asked_for(front: ParetoFront, path: Path) -> Request | None:
    """The request that a front notes; None: it is older than such notes.

    Args:
        path: of the front, for the error.

    Raises:
        UserError: the note makes no sense.
    """
    request = front.records.get("request")
    if request is None:
        return None
    with reading(path, allowed="The file as nas search writes it", next_step="Search anew with --force"):
        found = record(_Stored, request)
    return Request(tuple(found.devices), None if found.objectives is None else tuple(found.objectives), found.limits)


def _of(path: Path) -> Request:
    front = ParetoFront.load(path)
    if (request := asked_for(front, path)) is not None:
        return request
    device = str(front.provenance.get("device", DEFAULT_DEVICE))
    return Request((device,), tuple(front.objectives), _named(front.limits, device))


def _named(limits: Mapping[str, Any], first: str) -> dict[str, Any]:
    """With the device in every name that is of one, so that another order of devices means the same."""
    return {f"{name}@{first}" if kind_of(name) in OF_DEVICES and "@" not in name else name: b for name, b in limits.items()}
