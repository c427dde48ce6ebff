"""What a run folder holds so far, read for the report; each part that is missing or damaged becomes a line, never a failure."""

from __future__ import annotations

import csv
import itertools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from latency_tables import LatencyTable
from nas.api.defaults import DEFAULT_DEVICE
from nas.archive import Score, run_scores
from nas.baselines import Baseline, read_baselines
from nas.beginning import sides
from nas.exporting import Export, read_export
from nas.pareto import ParetoFront, Point
from nas.quantising import Quantised, read_quantised
from nas.recipes import load_recipe
from nas.runs import Run
from nas.verification import Verification, Verified
from search_spaces.artifacts import read_json
from search_spaces.errors import UserError
from search_spaces.records import parse_json, reading, record

__all__ = ["Contents", "Missing", "Row", "device_option", "quoted", "read_contents", "train_command"]

LOG_VERSION = 1
Part = TypeVar("Part")


@dataclass(frozen=True)
class Missing:
    """A part that the run does not have.

    Attributes:
        problem: what is missing, or wrong with it.
        command: what makes it.
    """

    problem: str
    command: str


@dataclass(frozen=True)
class Row:
    """A network of the front with all that is known of it, or its INT8 twin.

    Attributes:
        quantised: of a twin; its promises are those of the network, and say nothing about it.
        device: after the name of a quantity, where it is that of another device than the search's first.
    """

    point: Point
    export: Export | None
    verified: Verified | None
    quantised: Quantised | None = None
    device: str = ""

    @property
    def promised_ms(self) -> float:
        """The latency that was promised on the page's device."""
        return self.point.values[f"latency{self.device}"]

    @property
    def promised_j(self) -> float | None:
        """The energy that was promised on the page's device."""
        return self.point.values.get(f"energy{self.device}")

    @property
    def is_measured(self) -> bool:
        """Whether the promised accuracy is a score, not a prediction."""
        return "accuracy" in self.point.measured

    @property
    def id(self) -> str:
        return self.quantised.id if self.quantised else self.point.arch.id

    @property
    def accuracy(self) -> float:
        """Verified, or as promised where it is not verified; a fraction."""
        return self.verified.accuracy if self.verified else self.point.values["accuracy"]

    @property
    def latency_ms(self) -> float:
        """Verified, or as promised where it is not verified."""
        return self.verified.latency_ms if self.verified else self.promised_ms


@dataclass(frozen=True)
class Contents:
    """A run's results; None or empty is what it does not have.

    Attributes:
        rows: the networks of the front; ``twins``: their INT8 twins that are verified.
        verification: of networks of this front only.
        verified_on: day of the verification (UTC).
        log: of training: phases, seconds, images, data.
        curves: of training, in its table: column -> (step, value) in order.
        makers: file -> version of the toolkit that wrote it.
    """

    run: Run
    front: ParetoFront | None = None
    rows: tuple[Row, ...] = ()
    twins: tuple[Row, ...] = ()
    verification: Verification | None = None
    verified_on: str | None = None
    baselines: tuple[Baseline, ...] = ()
    table: LatencyTable | None = None
    scores: tuple[Score, ...] = ()
    log: dict[str, Any] | None = None
    curves: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    makers: dict[str, str] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()

    @property
    def device(self) -> str | None:
        """The device that verification ran on, else the first of the search."""
        if self.verification is not None:
            return self.verification.device
        if self.front is not None:
            return str(self.front.provenance["device"])
        return None if self.table is None else self.table.device

    def named(self, kind: str) -> str:
        """The front's name for a quantity of the page's device."""
        assert self.front is not None
        return self.front.own_name(f"{kind}@{self.device}")

    @property
    def knee(self) -> str | None:
        """Id of the front's knee."""
        return self.front.pick("knee").arch.id if self.front else None

    def alone(self) -> Verified | None:
        """The largest network trained alone, as verified."""
        found = self.verification.baselines if self.verification else []
        return next((baseline for baseline in found if baseline.id == "largest-alone"), None)

    def hypervolume(self) -> list[float]:
        """Of the measured front after each evaluation of the search, where the search recorded it."""
        records = getattr(self.front, "records", {})
        return [float(value) for value in records.get("hypervolume", [])]

    def command(self, row: Row) -> str:
        """What makes a network's file."""
        verb = "quantize" if row.quantised else "export"
        made = row.quantised or row.export
        return f"nas {verb} {quoted(self.run)} --pick {shlex.quote(row.point.arch.id)}{made.options if made else ''}"


class _Reader:
    """Reads part after part and notes what is missing."""

    def __init__(self) -> None:
        self.missing: list[Missing] = []

    def lacks(self, problem: str, command: str) -> None:
        self.missing.append(Missing(problem, command))

    def read(self, what: str, path: Path, load: Callable[[], Part], command: str) -> Part | None:
        """The part, or None and a line about it."""
        if not path.exists():
            self.lacks(f"No {what} yet", command)
            return None
        try:
            return load()
        except UserError as error:
            self.lacks(f"The {what} cannot be read: {error.problem}", command)
        except (KeyError, TypeError, ValueError) as error:
            self.lacks(f"The {what} cannot be read: {path} is damaged ({error!r})", command)
        return None


def read_contents(run: Run) -> Contents:
    """Everything that a report shows. A missing or damaged part is noted, with the command that makes it."""
    reader, folder = _Reader(), quoted(run)
    log = _training(run, reader)
    front = reader.read("front", run.file("front.json"), lambda: _front(run.file("front.json")), f"nas search {folder}")
    first = str(front.provenance["device"]) if front else None
    of_exports, of_verification = _Reader(), _Reader()
    exports = _exports(run, front, of_exports)
    verification = _verification(run, front, of_verification, first, exports)
    device = verification.device if verification else first
    option = device_option(device)
    path = run.table(device) if device else next(iter(sorted((run.path / "tables").glob("*.json"))), run.table(DEFAULT_DEVICE))
    table = reader.read("latency table", path, lambda: _table(run, path), f"nas profile {folder}{option}")
    scores = reader.read("scored subnets", run.study, lambda: _scores(run), f"nas search {folder}")
    reader.missing += [*of_exports.missing, *of_verification.missing]
    record = next((run.path / "baselines").glob("*.json"), run.path / "baselines" / "largest-alone.json")
    baselines = reader.read("baseline", record, lambda: read_baselines(run), f"nas compare {folder} MODEL.onnx")
    verified = {network.id: network for network in verification.networks} if verification else {}
    other = front.own_name(f"latency@{device}").removeprefix("latency") if front else ""
    rows = [Row(p, exports.get(p.arch.id), verified.get(p.arch.id), device=other) for p in front or ()]
    twins = _twins(run, rows, verification, reader, f"nas verify {folder}{option}")
    return Contents(
        run=run,
        front=front,
        rows=tuple(rows),
        twins=tuple(twins),
        verification=verification,
        verified_on=_day(run.file("verified.json")) if verification else None,
        baselines=tuple(baselines or ()),
        table=table,
        scores=tuple(scores or ()),
        log=log,
        curves=_curves(run.file("training/log.csv")),
        makers=_makers(run.path, ["run.json", "training/log.json", f"tables/{path.name}", "front.json", "verified.json"]),
        missing=tuple(reader.missing),
    )


def _table(run: Run, path: Path) -> LatencyTable:
    """With the run's own space, which knows its networks.

    Raises:
        UserError: damaged, or of another space.
    """
    table = LatencyTable.load(path)
    if not table.covers(run.space):
        raise UserError(
            f"it is of {table.space.key}",
            allowed=f"A table of {run.space.key}",
            next_step=f"Profile again: nas profile {run.path}",
        )
    return table.bind(run.space)


def _training(run: Run, reader: _Reader) -> dict[str, Any] | None:
    command = f"nas train-supernet --out {quoted(run)}"
    path = run.file("training/log.json")
    if not run.weights.exists():
        reader.lacks("The supernet is not trained to the end", command)
        if not path.exists():
            return None
    return reader.read("training log", path, lambda: _log(path, command), command)


def train_command(run: Run) -> str:
    """What trains the run's supernet: every option where options say it all, else what goes by the run's own record."""
    space, recipe = run.settings["space"], run.settings["recipe"]
    if "rules" in space or run.settings.get("weights") or not _built_in(recipe):
        return f"nas train-supernet --out {quoted(run)}"
    width = space.get("parameters", {}).get("width")
    sizes = ",".join(map(str, sides(run.space))) or None
    options = [("data", run.settings["data"].get("source")), ("out", run.path), ("space", space.get("name")), ("width", width)]
    options += [("resolution", sizes)]
    options += [("recipe", recipe.get("name")), ("epochs", recipe.get("epochs")), ("seed", run.settings["seed"])]
    given = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options if value is not None)
    off = [f" --no-{name}" for name in ("augment", "mirror") if not run.settings["data"].get(name, True)]
    return f"nas train-supernet {given}{''.join(off)}"


def _built_in(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe is the toolkit's own of that name."""
    try:
        return load_recipe(recipe["name"], epochs=recipe["epochs"]).to_dict() == recipe
    except UserError:
        return False


def _log(path: Path, command: str) -> dict[str, Any]:
    log = read_json(path, "training-log", LOG_VERSION, make=command)
    with reading(path, allowed="The file as nas train-supernet writes it", next_step=f"Run: {command}"):
        record(_Log, log)
    return log


@dataclass(frozen=True)
class _Phase:
    """A row of the training log."""

    phase: str
    step: int
    loss: float
    largest: float
    smallest: float


@dataclass(frozen=True)
class _Log:
    """The training log, as far as the page shows it."""

    phases: list[_Phase]
    seconds: float | None = None
    images: int | None = None


def _need(value: dict[str, Any], *names: str) -> None:
    """KeyError where a name is missing."""
    for name in names:
        value[name]


def _front(path: Path) -> ParetoFront:
    front = ParetoFront.load(path)
    if not front.points:
        raise ValueError("it has no networks")
    _need(front.provenance, "device")
    if "predictor" in front.provenance:
        _need(front.provenance["predictor"], "kind", "networks", "rmse", "spread", "covered_90")
    for point in front:
        _need(point.values, "accuracy", "latency", "macs", "params", "size")
    return front


def _scores(run: Run) -> list[Score]:
    return run_scores(run) if run.weights.exists() else []


def _exports(run: Run, front: ParetoFront | None, reader: _Reader) -> dict[str, Export]:
    found: dict[str, Export] = {}
    absent = []
    for point in front or ():
        arch_id = point.arch.id
        if not (run.exports / f"{arch_id}.json").exists():
            absent.append(arch_id)
            continue
        command = f"nas export {quoted(run)} --pick {shlex.quote(arch_id)} --force"
        export = reader.read(f"export of {arch_id}", run.exports, lambda name=arch_id: read_export(run, name), command)  # type: ignore[misc]
        if export is not None:
            found[arch_id] = export
    if front is None or len(absent) == len(front):
        reader.lacks("No exported networks yet", f"nas export {quoted(run)}")
    elif absent:
        reader.lacks(f"{len(absent)} of {len(front)} networks are not exported", f"nas export {quoted(run)}")
    return found


def _verification(
    run: Run, front: ParetoFront | None, reader: _Reader, first: str | None, exports: Mapping[str, Export]
) -> Verification | None:
    """What was verified of this front's networks, as they are exported now, on a device that it is for.

    Args:
        first: the first of the front's devices.
    """
    path = run.file("verified.json")
    command = f"nas verify {quoted(run)}{device_option(first)}"
    found = reader.read("verification", path, lambda: Verification.load(path), command)
    if found is None or front is None:
        return None
    if any(front.own_name(f"latency@{found.device}") not in point.values for point in front):
        reader.lacks(f"The verification is of {found.device}, which this front is not for", command)
        return None
    command = f"nas verify {quoted(run)}{device_option(found.device)}"
    # After a new search the file may still be that of the front before.
    ids = {point.arch.id for point in front}
    # Or that of a file which was exported again since.
    now = {name: export.sha256 for name, export in exports.items()}
    networks = [n for n in found.networks if n.id in ids and n.sha256 in (None, now.get(n.id, n.sha256))]
    if len(networks) < len(ids):
        reader.lacks(f"{len(ids) - len(networks)} of {len(ids)} networks of this front are not verified", command)
    excess = found.excess if len(networks) == len(found.networks) else None  # it is of all that were verified together
    return replace(found, networks=networks, excess=excess) if networks else None


def _twins(run: Run, rows: Sequence[Row], verification: Verification | None, reader: _Reader, command: str) -> list[Row]:
    """INT8 twins of the rows, with what verification found; those that it has not seen are missing."""
    measured = {twin.id: twin for twin in verification.quantised} if verification else {}
    found, unseen = [], []
    for row in rows:
        if row.export is None or not (run.exports / f"{row.id}-int8.json").exists():
            continue
        remake = f"nas quantize {quoted(run)} --pick {shlex.quote(row.id)} --force"
        load = partial(read_quantised, run, row.export)
        quantised = reader.read(f"INT8 twin of {row.id}", run.exports, load, remake)
        twin = measured.get(quantised.id) if quantised is not None else None
        if quantised is not None and twin is not None and twin.sha256 in (None, quantised.sha256):
            found.append(replace(row, verified=twin, quantised=quantised))
        elif quantised is not None:
            unseen.append(quantised.id)
    if unseen:
        reader.lacks(f"{len(unseen)} INT8 twins are not verified", command)
    return found


def _curves(path: Path) -> dict[str, tuple[tuple[float, float], ...]]:
    """Columns of the training log's table, where training wrote one; what a crash cut off is left out."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("loss", "largest", "smallest")}
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as stream:
            for row, name in itertools.product(csv.DictReader(stream), found):
                try:
                    point = float(row["step"]), float(row[name])
                except (KeyError, TypeError, ValueError):
                    continue
                if all(map(math.isfinite, point)):
                    found[name].append(point)
    return {name: tuple(points) for name, points in found.items()}


def _makers(folder: Path, names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = str(parse_json(folder / name)["made_by"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the page has a line about it already
            continue
    return found


def _day(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d")


def device_option(device: str | None) -> str:
    """What a command needs for a device that is not the usual one."""
    return "" if device in (None, DEFAULT_DEVICE) else f" --device {shlex.quote(str(device))}"


def quoted(run: Run) -> str:
    """The run folder as a shell takes it."""
    return shlex.quote(str(run.path))
