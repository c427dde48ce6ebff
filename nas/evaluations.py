"""The file in which `nas.optimize` keeps what was evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.strategies import Task
from nas.strategies.task import Rows, Values
from search_spaces import Architecture, SearchSpace
from search_spaces.artifacts import first_difference, locked, read_json, value_hash, write_json
from search_spaces.errors import UserError
from search_spaces.records import reading, record

__all__ = ["Evaluations"]

EVALUATIONS_VERSION = 1
MAKE = "nas.optimize(..., archive=PATH)"


@dataclass(frozen=True)
class _Trial:
    """One evaluation as JSON has it; values as they were returned."""

    architecture: dict[str, Any]
    values: dict[str, float]


@dataclass(frozen=True)
class _Stored:
    trials: list[_Trial]


class Evaluations:
    """Evaluations of a space in order, in memory and, if there is a path, in a file that is written anew after every batch."""

    def __init__(
        self, space: SearchSpace, path: Path | None, trials: Sequence[tuple[Architecture, dict[str, float]]] = ()
    ) -> None:
        self.space = space
        self.path = path
        self.trials = list(trials)

    @classmethod
    @contextmanager
    def opened(cls, space: SearchSpace, path: str | Path | None) -> Iterator[Evaluations]:
        """Those of a file, if it is there; no other process can open it meanwhile.

        Raises:
            UserError: it is damaged, of another space, or in use.
        """
        if path is None:
            yield cls(space, None)
            return
        file = Path(path)
        if file.is_dir():
            raise UserError(
                f"archive {file} is a folder", allowed="A file", next_step=f"Give for example {file / 'search.json'}"
            )
        with locked(file, doing="adding to"):
            yield cls(space, file, cls._read(space, file) if file.exists() else ())

    @staticmethod
    def _read(space: SearchSpace, file: Path) -> list[tuple[Architecture, dict[str, float]]]:
        value = read_json(file, "evaluations", EVALUATIONS_VERSION, make=MAKE)
        with reading(
            file, allowed="The file as nas.optimize writes it", next_step="Restore it from a copy, or name another file"
        ):
            known = dict(value["space"])
            if value_hash(known) != value_hash(space.to_dict()):
                raise UserError(
                    f"{file} holds evaluations of another space ({first_difference(known, space.to_dict())})",
                    allowed="One file for each space, restrictions included",
                    next_step="Search the space of the file, or name another file",
                )
            return [(space.architecture(**trial.architecture), trial.values) for trial in record(_Stored, value).trials]

    def told(self, task: Task) -> tuple[Rows, Values]:
        """What strategies are told of them: rows (N, genes) and quantities (N, quantities), all minimised.

        Raises:
            UserError: an evaluation lacks a quantity that has to be measured now.
        """
        rows = self.space.to_array([arch for arch, _ in self.trials])
        values = task.known(rows)
        for column in task.measured:
            quantity = task.quantities[column]
            for at, (arch, known) in enumerate(self.trials):
                if quantity.name not in known:
                    raise UserError(
                        f"{self.path} has no {quantity.name} of architecture {arch.id}, only {', '.join(known)}",
                        allowed="Every quantity that is not known has to be measured for every network",
                        next_step=f"Leave {quantity.name} out, add it to the file, or name another file",
                    )
                values[at, column] = quantity.sign * known[quantity.name]
        first = self.space.unique(rows)  # a file by hand may have a network twice
        return rows[first], values[first]

    def add(self, archs: Sequence[Architecture], values: Mapping[str, Sequence[float]]) -> None:
        """Keep evaluations: N architectures, N values of every measured quantity."""
        for at, arch in enumerate(archs):
            self.trials.append((arch, {name: float(column[at]) for name, column in values.items()}))
        if self.path is not None and len(archs):
            trials = [asdict(_Trial(arch.to_dict(), known)) for arch, known in self.trials]
            write_json(self.path, "evaluations", EVALUATIONS_VERSION, {"space": self.space.to_dict(), "trials": trials})
