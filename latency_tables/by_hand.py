"""Tables of machines that nothing here can reach: a kit is made here, run there by hand, and its results are brought back.

Making a kit is a profile on a device that only writes its models down; importing it is the same profile on a device that reads
the answers. So a kit measures what a profile does, by construction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_tables.device import Candidate, Device, LocalDevice, Model, Options, serialised
from latency_tables.kit import SCRIPT, Kit, KitWriter, read_kit, read_results
from latency_tables.profiling import Amount, Writer, profile
from latency_tables.standalone.runtime import PRECISIONS, PROVIDERS, SessionRunner, open_session
from latency_tables.stopwatch import Failure, Measurement, Plan
from search_spaces import from_dict
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress
from search_spaces.records import reading, record
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from latency_tables.table import LatencyTable

__all__ = ["import_kit", "make_kit", "replayed", "timing_kit"]

MOST_NETWORKS = 1000


@dataclass(frozen=True)
class _Recorder(LocalDevice):
    """Writes down what would be timed."""

    writer: KitWriter = field(kw_only=True)

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def energy(self, model: Model, run_ms: float) -> None:
        """Nothing counts it."""

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        nothing_known = Measurement.of([1e6], [1e6], 1)
        return [failure or nothing_known for failure in self.writer.add(candidates)]


@dataclass(frozen=True)
class _Replay(LocalDevice):
    """Answers with what was measured there, model by model in the order of the kit."""

    place: str = field(kw_only=True)
    facts: Mapping[str, Any] = field(kw_only=True)
    kit: Kit = field(kw_only=True)
    found: Mapping[str, Measurement | Failure] = field(kw_only=True)
    done: list[str] = field(default_factory=list, kw_only=True)

    @property
    def name(self) -> str:
        return self.place

    def fingerprint(self) -> dict[str, Any]:
        return dict(self.facts)

    def load(self, model: Model) -> SessionRunner:
        """The model in ONNX Runtime here: what it computes does not depend on the place."""
        return SessionRunner(open_session(serialised(model), "onnxruntime-cpu", 1), self.batch)

    def energy(self, model: Model, run_ms: float) -> None:
        """Nothing counts it."""

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        names = self.kit.names[len(self.done) : len(self.done) + len(candidates)]
        if [self.kit.labels[name] for name in names] != [candidate.label for candidate in candidates]:
            raise UserError(
                f"the kit {self.kit.id} does not hold what this version measures",
                allowed="A kit of the same space (or of the same files), made by this version",
                next_step="Make the kit anew: nas kit make",
            )
        self.done.extend(names)
        return [self.found[name] for name in names]


def make_kit(
    space: SearchSpace,
    folder: Path,
    *,
    kind: str = "onnxruntime-cpu",
    options: Options | None = None,
    seed: int = 0,
    amount: Amount | None = None,
    plan: Plan | None = None,
    writer: Writer | None = None,
) -> Kit:
    """Write a kit that measures a space: layers, reference networks and whole networks.

    Raises:
        UserError: the folder is there already, or a device that no kit runs on.
    """
    options, plan = options or Options(), plan or Plan()
    kit_writer = _writer(folder, kind, options, plan, seed)
    # Nothing is measured yet that could tell the fast from the slow.
    amount = dataclasses.replace(amount or Amount(), by_work=True)
    recorder = _Recorder(kind, options, PRECISIONS[kind], writer=kit_writer)
    profile(space, recorder, writer=writer, seed=seed, amount=amount, plan=plan)
    return kit_writer.finish({"space": space.to_dict(), "seed": seed, "amount": dataclasses.asdict(amount)})


def timing_kit(
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    kind: str,
    options: Options,
    plan: Plan,
    about: Mapping[str, Any],
    seed: int = 0,
) -> Kit:
    """Write a kit that times models against each other, such as exported networks; see `replayed`.

    Args:
        about: JSON values that say which models they are, for whoever reads the answers.

    Raises:
        UserError: the folder is not empty, a device that no kit runs on, or a model that cannot be made.
    """
    writer = _writer(folder, kind, options, plan, seed)
    for candidate, failure in zip(candidates, writer.add(candidates), strict=True):
        if failure is not None:
            raise UserError(
                f"{candidate.label} cannot be put in a kit ({failure.reason})",
                allowed="Models that can be written as ONNX",
                next_step="Leave it out, or choose another device",
            )
    return writer.finish(about)


def replayed(kit: Kit, results: Path, name: str) -> Device:
    """A device that answers with what a kit brought back, once.

    Args:
        results: the file, ``results.json`` in the kit's folder where it was run.
        name: of the device.

    Raises:
        UserError: results that are missing, half-written, of another kit, or make no sense.
    """
    again = f"Run the kit there to its end: python3 {SCRIPT}, and bring results.json back"
    facts, found = read_results(results, kit, again=again)
    return _Replay(kit.device, kit.options, PRECISIONS[kit.device], place=name, facts=facts, kit=kit, found=found)


def _writer(folder: Path, kind: str, options: Options, plan: Plan, seed: int) -> KitWriter:
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty", allowed="A new folder for a kit", next_step="Choose another one with --out")
    if kind not in PROVIDERS:
        raise UserError(
            f"a kit for '{kind}'", allowed=f"A kit runs: {', '.join(PROVIDERS)}", next_step="Choose one with --device"
        )
    return KitWriter(folder, kind, options, plan, seed)


@dataclass(frozen=True)
class _About:
    """What a kit is for."""

    space: dict[str, Any]
    seed: int
    amount: Amount

    def __post_init__(self) -> None:
        if self.seed < 0 or min(self.amount.networks, self.amount.held_out) < 0:
            raise ValueError("a number is below 0")
        if max(self.amount.networks, self.amount.held_out) > MOST_NETWORKS:
            raise ValueError(f"more than {MOST_NETWORKS} networks")


def _as_made(folder: Path) -> AbstractContextManager[None]:
    return reading(folder / "kit.json", allowed="The file as nas kit make wrote it", next_step="Make the kit anew")


def import_kit(
    folder: Path,
    name: str,
    *,
    space: SearchSpace | None = None,
    results: Path | None = None,
    out: Path | None = None,
    writer: Writer | None = None,
) -> LatencyTable:
    """The table of the machine that a kit was run on.

    Args:
        folder: the kit as it was made here; only the results are taken from elsewhere.
        name: of the device, ``table://...``.
        space: needed for networks of one's own; default: what the kit was made for.
        results: default: ``results.json`` in the folder.
        out: the table's file; it must not exist.
        writer: what made the kit's models, where the space's layers have no ONNX form here.

    Raises:
        UserError: results that are missing, half-written, of another kit, or make no sense; nothing is written then.
    """
    if out is not None and out.exists():
        raise UserError(
            f"{out} is there already", allowed="A new file", next_step="Choose another --out or --name, or remove it"
        )
    kit = read_kit(folder)
    device = replayed(kit, results or folder / "results.json", name)
    with _as_made(folder):
        about = record(_About, kit.about)
    space = space or from_dict(about.space)
    table = profile(space, device, writer=writer, seed=about.seed, amount=about.amount, plan=kit.plan)
    if out is not None:
        table.save(out)
    return table
