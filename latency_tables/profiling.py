"""Measure a space's layers on a device, then some whole networks, and say how good the estimate is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from latency_tables.choosing import choose_networks, reference_row
from latency_tables.device import Candidate, Device
from latency_tables.entries import CHAIN, Entry, Given, NetworkTiming
from latency_tables.judging import anchored, finish
from latency_tables.onnx_graph import build_onnx, empty_onnx
from latency_tables.standalone.timing import CALM
from latency_tables.stopwatch import Failure, Measurement, Plan
from latency_tables.table import LatencyTable
from search_spaces.architecture import Architecture
from search_spaces.artifacts import locked
from search_spaces.errors import UserError
from search_spaces.layers import Layer
from search_spaces.progress import SILENT, Progress
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    import onnx

__all__ = ["Amount", "LayerWriter", "Writer", "measured_part", "profile"]

T = TypeVar("T")

CHUNK_LAYERS = 32  # layers, each up to two models, in memory at once
CHUNK_NETWORKS = 16
WHOLE_SECONDS = 1.5  # for each chunk of whole networks, at least: neighbours come and go within a second
PROBE_MS = 1e6  # of a run, so that one is enough to know whether anything counts it
OCCASION_S = 3600.0  # as long as a device's level is trusted: one search, and the next, see the same estimates


class Writer(Protocol):
    """Makes the ONNX models that are timed, with random weights, for ``batch`` images."""

    def layers(self, layers: Sequence[Layer], *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto | None:
        """A chain of layers that fit one another; None for a layer that is nothing to run."""

    def network(self, arch: Architecture, *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto:
        """A whole network."""


@dataclass(frozen=True)
class LayerWriter:
    """Layers that have an ONNX form here; a network is the chain of its layers."""

    space: SearchSpace

    def layers(self, layers: Sequence[Layer], *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto | None:
        return build_onnx(layers, metadata=metadata)  # open for any batch

    def network(self, arch: Architecture, *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto:
        return build_onnx(self.space.lower(arch), metadata=metadata)


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        networks: whole networks that the correction is fitted on.
        held_out: further whole networks that it is judged on.
        resolutions: of the space's input sizes, how many are measured; the layers of the others stand between them. None: all.
        by_work: choose whole networks by their multiply-accumulates, known before anything is measured; else by the estimate.
    """

    networks: int = 20
    held_out: int = 16
    resolutions: int | None = None
    by_work: bool = False


def profile(
    space: SearchSpace,
    device: Device,
    *,
    out: Path | None = None,
    writer: Writer | None = None,
    seed: int = 0,
    amount: Amount | None = None,
    plan: Plan | None = None,
    like: LatencyTable | None = None,
    progress: Progress = SILENT,
    force: bool = False,
    now: Callable[[], float] = time.time,
) -> LatencyTable:
    """Measure the layers of a space that the file does not have yet, then fit and judge the correction.

    Results are saved after every few dozen layers, so an interrupted profile resumes where it was. A complete
    table of the same space is not measured again: on another occasion, an hour or more later, a few of its whole networks
    are, to tell how the device's level has moved. Within the hour the same table gives the same estimates.

    Args:
        out: the table's file; None keeps the table in memory only.
        writer: makes the models of layers that have no ONNX form here (blocks of a user's own network).
        seed: of the order of measurements and the choice of whole networks.
        amount: how much is measured.
        plan: how it is timed.
        like: the table of another device. No layer is measured then: its times are taken, and fitted to whole networks of
            this device (10 to 30 are enough).
        force: start anew, replacing the file.
        now: Unix time, s.

    Raises:
        UserError: the file is a table of another device, of other conditions or of another space; or the device
            cannot run a layer (the others are kept).
    """
    made_by, amount, plan = writer or LayerWriter(space), amount or Amount(), plan or Plan()
    job = _Job(space, device, out, made_by, np.random.default_rng(seed), plan, progress)
    wanted = measured_part(space, amount.resolutions).layers() if like is None else []

    def known() -> tuple[LatencyTable | None, list[Layer]]:
        found = None if force or out is None or not out.exists() else _existing(out, space, device)
        keys = set() if found is None else {*found.entries, *found.interpolated}
        return found, [layer for layer in wanted if layer.key not in keys]

    found, missing = known()
    if found is not None and found.correction is not None and found.covers(space) and not missing:
        return _at_present_level(found, job, writer or LayerWriter(found.space), now()).bind(space)
    with nullcontext() if out is None else locked(out, doing="measuring for"):
        found, missing = known()  # another process may have gone on in between
        table = job.resume(found) if found else job.begin()
        table = _interpolated(job.layers(table, missing)) if like is None else _taken(table, like)
        table = job.finished(table, amount, seed, now)
    for line in table.warnings():
        progress.say(line)
    return table


def _at_present_level(found: LatencyTable, job: _Job, writer: Writer, now: float) -> LatencyTable:
    """A complete table, its level told anew and kept with it if the last time was on another occasion."""
    if found.level_at is not None and 0 <= now - found.level_at < OCCASION_S:
        return found
    whole = replace(job, space=found.space, writer=writer).whole
    table = anchored(found, whole, job.device, rng=job.rng, plan=job.plan, progress=job.progress)
    table = replace(table, level_at=now)
    assert job.out is not None
    table.save(job.out)
    return table


def _existing(out: Path, space: SearchSpace, device: Device) -> LatencyTable:
    table = LatencyTable.load(out)
    table.check_same(device.name, device.fingerprint())
    if table.space.key != space.key:
        raise UserError(
            f"{out} is the latency table of {table.space.key}, not of {space.key}",
            allowed="A file holds the table of one space",
            next_step="Choose another --out, or replace it with --force",
        )
    return table


def _taken(table: LatencyTable, like: LatencyTable) -> LatencyTable:
    """The table with another device's times of all layers that it has no times of."""
    taken = {layer.key: Given(like.layer_ms(layer)) for layer in table.space.layers()}
    return replace(table, entries={**taken, **table.entries}, conditions={**table.conditions, "like": like.device})


def measured_part(space: SearchSpace, resolutions: int | None) -> SearchSpace:
    """The space with some of its input sizes only: the ends, and others at equal distances."""
    sizes = next((gene.options for gene in space.genes if gene.name == "resolution"), ())
    if resolutions is None or resolutions >= len(sizes) > 0:
        return space
    if resolutions < 2 or not sizes:
        raise UserError(
            f"{resolutions} measured resolutions for a space with {len(sizes)}",
            allowed="At least 2, for a space with elastic resolution",
            next_step="Leave the option out to measure all layers",
        )
    chosen = np.unique(np.linspace(0, len(sizes) - 1, resolutions).round().astype(int))
    return space.restrict(resolution=[sizes[i] for i in chosen.tolist()])


def _interpolated(table: LatencyTable) -> LatencyTable:
    """The table with the layers that are between measured sizes; the error of that is among its conditions."""
    missing = [layer for layer in table.space.layers() if layer.key not in table.entries]
    between = frozenset(layer.key for layer in missing if table.curves.covers(layer))
    if not between:
        return replace(table, interpolated=between)
    conditions = {**table.conditions, "interpolation_error": table.curves.error()}
    return replace(table, interpolated=between, conditions=conditions)


@dataclass(frozen=True)
class _Job:
    """What all the steps of one profile share."""

    space: SearchSpace
    device: Device
    out: Path | None
    writer: Writer
    rng: np.random.Generator
    plan: Plan
    progress: Progress

    def begin(self) -> LatencyTable:
        """A table with the empty network only."""
        overhead = self.time([Candidate("an empty network", empty_onnx)])[0]
        if isinstance(overhead, Failure):
            raise self.refused("an empty network", overhead, "Nothing was measured")
        return LatencyTable(self.device.name, self.device.fingerprint(), self.conditions(), self.space, overhead, {})

    def resume(self, found: LatencyTable) -> LatencyTable:
        """A table from a file, ready to take more layers."""
        table = replace(found, space=self.space, networks=(), correction=None, quality=None, anchor=None, energy=None)
        return replace(table, interpolated=frozenset(), conditions=self.conditions())

    def conditions(self) -> dict[str, Any]:
        return {"clock": "wall", "quantile": CALM, **dataclasses.asdict(self.plan)}

    def layers(self, table: LatencyTable, missing: Sequence[Layer]) -> LatencyTable:
        """The table with the missing layers measured and saved, chunk by chunk, in random order against drift."""
        order = [missing[i] for i in self.rng.permutation(len(missing))]
        chunks = _chunks(order, CHUNK_LAYERS)
        models = len(chunks) + sum(1 + _chains(layer) for layer in missing)
        failed: dict[str, Failure] = {}
        self.progress.start("timing layers", models + self.plan.rounds * len(chunks))
        try:
            for chunk in chunks:
                level, entries, failures = self.entries(chunk, len(table.levels))
                failed |= failures
                table = replace(table, entries={**table.entries, **entries}, levels=(*table.levels, level))
                if self.out is not None:
                    table.save(self.out)
        finally:
            self.progress.stop()
        for key, failure in failed.items():
            others = f" ({len(failed) - 1} more layers failed)" if len(failed) > 1 else ""
            raise self.refused(f"layer {key}{others}", failure, f"The other {len(table.entries)} layers are kept")
        return table

    def entries(self, chunk: Sequence[Layer], level: int) -> tuple[Measurement, dict[str, Entry], dict[str, Failure]]:
        """The reference network's time beside a chunk of layers, what was measured of them, and what failed."""
        sequences = [[layer] * copies for layer in chunk for copies in ((1, CHAIN) if _chains(layer) else (1,))]
        reference = self.space.from_array(reference_row(self.space))[0]
        first, *rest = self.time([self.whole(reference), *[self.piece(sequence) for sequence in sequences]])
        if isinstance(first, Failure):
            raise self.refused(f"network {reference.id}", first, "All layers so far are kept")
        timed = iter(rest)
        entries: dict[str, Entry] = {}
        failures: dict[str, Failure] = {}
        for layer in chunk:
            alone, chain = next(timed), next(timed) if _chains(layer) else None
            if isinstance(alone, Failure):
                failures[layer.key] = alone
            elif isinstance(chain, Failure):
                failures[layer.key] = chain
            else:
                entries[layer.key] = Entry(alone, chain, level)
        return first, entries, failures

    def finished(self, table: LatencyTable, amount: Amount, seed: int, now: Callable[[], float]) -> LatencyTable:
        """The table of all layers with its correction, judged on whole networks; saved."""
        # A generator of its own: a resumed profile chooses the same networks.
        rng, space = np.random.default_rng([seed, 1]), self.space
        cost = space.cost(lambda layer: float(layer.macs)) if amount.by_work else table.cost(corrected=False)
        rows, held_out = choose_networks(space, cost, amount.networks, amount.held_out, rng)
        archs = space.from_array(rows)
        timed = replace(table, networks=self.networks(archs, held_out), level_at=now())
        table = finish(self.counted(timed, archs))
        if self.out is not None:
            table.save(self.out)
        return table

    def networks(self, archs: Sequence[Architecture], is_held_out: Sequence[bool]) -> tuple[NetworkTiming, ...]:
        """Whole networks, two passes, each from fresh sessions in another order."""
        passes: list[dict[int, tuple[Measurement, int]]] = [{}, {}]
        orders = [_chunks(self.rng.permutation(len(archs)).tolist(), CHUNK_NETWORKS) for _ in passes]
        work = [(found, chunk) for found, order in zip(passes, orders, strict=True) for chunk in order]
        longer = dataclasses.replace(self.plan, seconds=WHOLE_SECONDS)
        self.progress.start("timing whole networks", sum(len(chunk) + self.plan.rounds for _, chunk in work))
        try:
            for number, (found, chunk) in enumerate(work):
                timed = self.time([self.whole(archs[i]) for i in chunk], longer)
                for index, timing in zip(chunk, timed, strict=True):
                    if isinstance(timing, Failure):
                        raise self.refused(f"network {archs[index].id}", timing, "All layers are kept")
                    found[index] = timing, number
        finally:
            self.progress.stop()
        networks = []
        for index, (arch, held) in enumerate(zip(archs, is_held_out, strict=True)):
            (first, one), (second, other) = (found[index] for found in passes)
            networks.append(NetworkTiming(arch.to_dict(), held, first, second, (one, other)))
        return tuple(networks)

    def counted(self, table: LatencyTable, archs: Sequence[Architecture]) -> LatencyTable:
        """The table with the energy of its whole networks, twice in random order, where the device counts it."""
        if self.device.energy(self.whole(archs[0]).model(), PROBE_MS) is None:
            return table
        order = [int(index) for _ in range(2) for index in self.rng.permutation(len(archs))]
        found: dict[int, list[float]] = {index: [] for index in order}
        counter = ""
        self.progress.start("energy of whole networks", len(order))
        try:
            for index in order:
                run_ms = table.network_ms(table.networks[index])
                energy = self.device.energy(self.whole(archs[index]).model(), run_ms)
                if energy is None or not energy.joules > 0:
                    return table
                found[index].append(energy.joules)
                counter = energy.counter
                self.progress.advance()
        finally:
            self.progress.stop()
        networks = [replace(n, joules=(found[i][0], found[i][1])) for i, n in enumerate(table.networks)]
        return replace(table, networks=tuple(networks), conditions={**table.conditions, "energy_counter": counter})

    def piece(self, layers: Sequence[Layer]) -> Candidate:
        """A sequence of layers; the model names them, for whoever looks at it later, and says that its weights are random."""
        metadata = {"layers": "\n".join(layer.key for layer in layers), "weights": "random"}

        def model() -> onnx.ModelProto:
            return self.writer.layers(layers, metadata=metadata, batch=self.device.batch) or empty_onnx()

        return Candidate(f"{layers[0].key} x {len(layers)}", model)

    def whole(self, arch: Architecture) -> Candidate:
        """A whole network."""
        layers = "\n".join(layer.key for layer in self.space.lower(arch))
        metadata = {"architecture": arch.id, "layers": layers, "weights": "random"}
        return Candidate(f"network {arch.id}", lambda: self.writer.network(arch, metadata=metadata, batch=self.device.batch))

    def time(self, candidates: Sequence[Candidate], plan: Plan | None = None) -> list[Measurement | Failure]:
        return self.device.time(candidates, rng=self.rng, plan=plan or self.plan, progress=self.progress)

    def refused(self, what: str, failure: Failure, kept: str) -> UserError:
        return UserError(
            f"{self.device.name} cannot run {what}: {failure.reason}",
            allowed=kept,
            next_step="Restrict the space to what the device can run, or try again with: nas profile",
        )


def _chains(layer: Layer) -> bool:
    return layer.in_shape == layer.out_shape


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
