"""Measure a space's layers on a device, then some whole networks, and say how good the estimate is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from latency_tables.correction import Correction, Quality, errors, fit_baseline, fit_correction
from latency_tables.device import Device
from latency_tables.onnx_graph import build_onnx, empty_onnx
from latency_tables.stopwatch import SYSTEM_CLOCK, Clock, Failure, Measurement, Run, measure
from latency_tables.table import CHAIN, Entry, LatencyTable, NetworkTiming, sums
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError
from search_spaces.layers import Layer
from search_spaces.progress import SILENT, Progress
from search_spaces.rows import Rows
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    import onnx

__all__ = ["Writer", "profile"]

T = TypeVar("T")

CHUNK_LAYERS = 32  # layers, each up to two models, in memory at once
CHUNK_NETWORKS = 16
POOL = 2000  # candidates from which whole networks are chosen
BUSY = 1.05  # wall by CPU time from which the machine counts as busy


class Writer(Protocol):
    """Makes the ONNX models that are timed, with random weights, for ``batch`` images."""

    def layers(self, layers: Sequence[Layer], *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto | None:
        """A chain of layers that fit one another; None for a layer that is nothing to run."""

    def network(self, arch: Architecture, *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto:
        """A whole network."""


@dataclass(frozen=True)
class _LayerWriter:
    """Layers that have an ONNX form here; a network is the chain of its layers."""

    space: SearchSpace

    def layers(self, layers: Sequence[Layer], *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto | None:
        return build_onnx(layers, metadata=metadata)  # open for any batch

    def network(self, arch: Architecture, *, metadata: Mapping[str, str], batch: int) -> onnx.ModelProto:
        return build_onnx(self.space.lower(arch), metadata=metadata)


def profile(
    space: SearchSpace,
    device: Device,
    *,
    out: Path | None = None,
    writer: Writer | None = None,
    seed: int = 0,
    networks: int = 20,
    held_out: int = 16,
    rounds: int = 20,
    warmup: int = 10,
    sample_ms: float = 0.5,
    progress: Progress = SILENT,
    clock: Clock = SYSTEM_CLOCK,
    force: bool = False,
) -> LatencyTable:
    """Measure the layers of a space that the file does not have yet, then fit and judge the correction.

    Results are saved after every few dozen layers, so an interrupted profile resumes where it was. A complete
    table of the same space is returned as it is.

    Args:
        out: the table's file; None keeps the table in memory only.
        writer: makes the models of layers that have no ONNX form here (blocks of a user's own network).
        seed: of the order of measurements and the choice of whole networks.
        networks: whole networks that the correction is fitted on.
        held_out: further whole networks that it is judged on.
        rounds: samples per layer, and per whole network in each of two passes.
        sample_ms: least duration of a sample.
        clock: what is read; the table records whether it uses wall or CPU time.
        force: start anew, replacing the file.

    Raises:
        UserError: the file is a table of another device, of other conditions or of another space; or the device
            cannot run a layer (the others are kept).
    """
    made_by = writer or _LayerWriter(space)
    job = _Job(space, device, out, made_by, np.random.default_rng(seed), rounds, warmup, sample_ms, progress, clock)
    found = None if force or out is None or not out.exists() else _existing(out, space, device)
    missing = [layer for layer in space.layers() if found is None or layer.key not in found.entries]
    if found is not None and found.correction is not None and found.covers(space) and not missing:
        return found.bind(space)
    table = job.layers(job.resume(found) if found else job.begin(), missing)
    # A generator of its own: a resumed profile chooses the same networks.
    rows, is_held_out = choose_networks(table, networks, held_out, np.random.default_rng([seed, 1]))
    table = finish(replace(table, networks=job.networks(space.from_array(rows), is_held_out)), single=device.threads == 1)
    if out is not None:
        table.save(out)
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


@dataclass(frozen=True)
class _Job:
    """What all the steps of one profile share."""

    space: SearchSpace
    device: Device
    out: Path | None
    writer: Writer
    rng: np.random.Generator
    rounds: int
    warmup: int
    sample_ms: float
    progress: Progress
    clock: Clock

    def begin(self) -> LatencyTable:
        """A table with the empty network only."""
        overhead = self.time([lambda: self.device.load(empty_onnx()).run])[0]
        if isinstance(overhead, Failure):
            raise self.refused("an empty network", overhead, "Nothing was measured")
        return LatencyTable(self.device.name, self.device.fingerprint(), self.conditions(), self.space, overhead, {})

    def resume(self, found: LatencyTable) -> LatencyTable:
        """A table from a file, ready to take more layers."""
        table = replace(found, space=self.space, networks=(), correction=None, quality=None)
        return replace(table, conditions=self.conditions())

    def conditions(self) -> dict[str, Any]:
        return {"clock": "wall", "rounds": self.rounds, "warmup": self.warmup, "sample_ms": self.sample_ms}

    def layers(self, table: LatencyTable, missing: Sequence[Layer]) -> LatencyTable:
        """The table with the missing layers measured and saved, chunk by chunk, in random order against drift."""
        order = [missing[i] for i in self.rng.permutation(len(missing))]
        chunks = _chunks(order, CHUNK_LAYERS)
        models = sum(1 + _chains(layer) for layer in missing)
        failed: dict[str, Failure] = {}
        self.progress.start("timing layers", models + self.rounds * len(chunks))
        try:
            for chunk in chunks:
                entries, failures = self.entries(chunk)
                failed |= failures
                table = replace(table, entries={**table.entries, **entries})
                if self.out is not None:
                    table.save(self.out)
        finally:
            self.progress.stop()
        for key, failure in failed.items():
            others = f" ({len(failed) - 1} more layers failed)" if len(failed) > 1 else ""
            raise self.refused(f"layer {key}{others}", failure, f"The other {len(table.entries)} layers are kept")
        return table

    def entries(self, chunk: Sequence[Layer]) -> tuple[dict[str, Entry], dict[str, Failure]]:
        sequences = [[layer] * copies for layer in chunk for copies in ((1, CHAIN) if _chains(layer) else (1,))]
        timed = iter(self.time([self.loader(sequence) for sequence in sequences]))
        entries, failures = {}, {}
        for layer in chunk:
            alone, chain = next(timed), next(timed) if _chains(layer) else None
            if isinstance(alone, Failure) or isinstance(chain, Failure):
                failures[layer.key] = alone if isinstance(alone, Failure) else chain
            else:
                entries[layer.key] = Entry(alone, chain)
        return entries, {key: failure for key, failure in failures.items() if isinstance(failure, Failure)}

    def networks(self, archs: Sequence[Architecture], is_held_out: Sequence[bool]) -> tuple[NetworkTiming, ...]:
        """Whole networks, two passes, each from fresh sessions in another order."""
        passes: list[dict[int, Measurement]] = [{}, {}]
        chunk_count = -(-len(archs) // CHUNK_NETWORKS)
        self.progress.start("timing whole networks", 2 * (len(archs) + self.rounds * chunk_count))
        try:
            for found in passes:
                for chunk in _chunks(self.rng.permutation(len(archs)).tolist(), CHUNK_NETWORKS):
                    timed = self.time([self.whole(archs[i]) for i in chunk])
                    for index, timing in zip(chunk, timed, strict=True):
                        if isinstance(timing, Failure):
                            raise self.refused(f"network {archs[index].id}", timing, "All layers are kept")
                        found[index] = timing
        finally:
            self.progress.stop()
        first, second = passes
        return tuple(
            NetworkTiming(arch.to_dict(), held, first[i], second[i])
            for i, (arch, held) in enumerate(zip(archs, is_held_out, strict=True))
        )

    def loader(self, layers: Sequence[Layer]) -> Callable[[], Run]:
        """Loads a sequence of layers; the model names them, for whoever looks at it later."""
        metadata = {"layers": "\n".join(layer.key for layer in layers)}

        def load() -> Run:
            model = self.writer.layers(layers, metadata=metadata, batch=self.device.batch)
            return self.device.load(model or empty_onnx()).run

        return load

    def whole(self, arch: Architecture) -> Callable[[], Run]:
        """Loads a whole network."""
        metadata = {"architecture": arch.id, "layers": "\n".join(layer.key for layer in self.space.lower(arch))}
        return lambda: self.device.load(self.writer.network(arch, metadata=metadata, batch=self.device.batch)).run

    def time(self, loaders: Sequence[Callable[[], Run]]) -> list[Measurement | Failure]:
        return measure(
            loaders,
            rng=self.rng,
            rounds=self.rounds,
            warmup=self.warmup,
            sample_ms=self.sample_ms,
            pin=self.device.threads == 1,
            clock=self.clock,
            progress=self.progress,
        )

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


def choose_networks(table: LatencyTable, fit: int, held_out: int, rng: np.random.Generator) -> tuple[Rows, list[bool]]:
    """Whole networks by design: the fastest and the slowest by plain sum, and random ones from equal shares of its quantiles.

    Returns: rows (N, genes), those to fit first, and which are held out. A space with few networks gives fewer.
    """
    space = table.space
    plain = table.cost(corrected=False)
    ends = np.stack([plain.minimum(len(space.genes))[1], plain.maximum(len(space.genes))[1]])
    ends = space.canonical(ends)[space.unique(ends)]
    # Half uniform over networks, half uniform per gene: the first alone holds few shallow networks.
    halves = [space.sample_rows(POOL // 2, rng, per_gene=per_gene) for per_gene in (False, True)]
    rows = np.concatenate([ends, *halves])
    pool = rows[space.unique(rows)][len(ends) :]
    pool = pool[np.argsort(plain(pool), kind="stable")]
    wanted = max(0, fit - len(ends))
    if len(pool) < wanted + held_out:  # a tiny space: share it out
        wanted = min(wanted, -(-len(pool) // 2))
        held_out = min(held_out, len(pool) - wanted)
    judged = _stratified(len(pool), held_out, rng)
    rest = np.setdiff1d(np.arange(len(pool)), judged)
    fitted = rest[_stratified(len(rest), wanted, rng)]
    chosen = np.concatenate([ends, pool[fitted], pool[judged]])
    return chosen, [False] * (len(chosen) - len(judged)) + [True] * len(judged)


def _stratified(total: int, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """``count`` distinct indices below ``total``, one at random from each of as many equal shares."""
    edges = np.linspace(0, total, count + 1).astype(np.intp)
    return np.array([rng.integers(low, high) for low, high in itertools.pairwise(edges)], dtype=np.intp)


def finish(table: LatencyTable, *, single: bool) -> LatencyTable:
    """The table with the clock chosen and the correction fitted and judged on its whole networks.

    Args:
        single: the device runs on one thread; else the thread's CPU time does not tell.
    """
    # Short networks dodge the scheduler, long ones do not: the upper end tells whether any were disturbed.
    ratios = [timing.busy for network in table.networks for timing in (network.first, network.second)]
    busy = float(np.quantile(ratios, 0.9))
    clock = "cpu" if single and busy > BUSY else "wall"
    table = replace(table, conditions={**table.conditions, "clock": clock, "wall_by_cpu": busy})
    held = np.array([network.held_out for network in table.networks])
    rows = table.space.to_array([table.space.architecture(**network.choices) for network in table.networks])
    total, count = sums(table, rows)
    measured = np.array([network.ms(clock) for network in table.networks])
    fit = ~held
    correction = fit_correction(total[fit], count[fit], measured[fit], overhead_ms=table.overhead_ms)
    table = replace(table, correction=correction)
    return replace(table, quality=_quality(table, rows, measured, held)) if held.any() else table


def _quality(table: LatencyTable, rows: Rows, measured: NDArray[Any], held: NDArray[np.bool_]) -> Quality:
    total, count = sums(table, rows)
    macs = table.space.macs(rows).astype(np.float64)
    offset, slope = fit_baseline(macs[~held], measured[~held])
    plain = Correction("none", table.overhead_ms, 1.0, 0.0)
    judged = [network for network in table.networks if network.held_out]
    first, second = (np.array([getattr(n, name).ms(table.clock) for n in judged]) for name in ("first", "second"))
    return Quality(
        networks=int(held.sum()),
        fitted_on=int((~held).sum()),
        corrected=errors(table.terms()(total, count)[held], measured[held]),
        plain=errors(plain(total, count)[held], measured[held]),
        baseline=errors(offset + slope * macs[held], measured[held]),
        noise=errors(second, first),
    )
