"""The latency table: times of single layers on one device, and from them the latency of every network of a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.correction import FEATURES, Correction, Quality
from latency_tables.curves import Curves
from latency_tables.energy import EnergyModel
from latency_tables.entries import Anchor, Entry, Given, NetworkTiming
from latency_tables.stopwatch import BUSY, SLOWED, Measurement, polished
from search_spaces.architecture import Architecture
from search_spaces.artifacts import read_json, write_json
from search_spaces.costs import Cost, Factor
from search_spaces.errors import UserError
from search_spaces.layers import Layer, parse_layer
from search_spaces.records import reading
from search_spaces.space import Archs, SearchSpace

if TYPE_CHECKING:
    import pandas

__all__ = ["CLOCKS", "LatencyTable", "features", "sums"]

KIND, VERSION = "latency-table", 3
MAKE = "nas profile"
CLOCKS = ("wall", "cpu")
DRIFT = 0.10  # of the level during a profile, from which it is worth a word
NOISY = 0.03  # the same for two measurements of one network


@dataclass(frozen=True)
class LatencyTable:
    """Times of layers on one device under recorded conditions, bound to a space.

    Attributes:
        device: name of the device.
        fingerprint: what times depend on (processor, runtime, precision, threads, batch, ...).
        conditions: how it was measured; ``clock`` ("wall" or "cpu") is the one that every figure uses.
        space: the space whose architectures `estimate` takes.
        overhead: an empty network, the price of calling the runtime; None for a table that was not measured here.
        entries: per layer's key.
        levels: a reference network, measured beside each chunk of layers: a machine's level moves, and entries measured at
            another level are brought to the middle one.
        networks: whole networks, measured; empty while the table is unfinished.
        correction: from the sum of layers to the network; None while the table is unfinished.
        quality: errors on networks that the correction has not seen; None where there are none.
        interpolated: keys of layers that stand between measured ones of other sizes.
        anchor: how the device's level has moved since; None while that is not known.
        level_at: when the device's level was last told, Unix time in s; None where it never was (another's table).
        energy: from the time and the work of a network to its energy; None where nothing counted it.
    """

    device: str
    fingerprint: Mapping[str, Any]
    conditions: Mapping[str, Any]
    space: SearchSpace
    overhead: Measurement | None
    entries: Mapping[str, Entry | Given]
    networks: tuple[NetworkTiming, ...] = field(default=(), repr=False)
    correction: Correction | None = None
    quality: Quality | None = None
    interpolated: frozenset[str] = field(default=frozenset(), repr=False)
    anchor: Anchor | None = None
    levels: tuple[Measurement, ...] = field(default=(), repr=False)
    level_at: float | None = field(default=None, compare=False)
    energy: EnergyModel | None = None

    # ---- times ----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> str:
        return str(self.conditions["clock"])

    @property
    def one_thread(self) -> bool:
        """Whether the device runs on one thread; else the thread's CPU time does not tell."""
        return bool(self.fingerprint.get("threads", 1) == 1)

    @property
    def overhead_ms(self) -> float:
        return 0.0 if self.overhead is None else self.overhead.ms(self.clock)

    def layer_ms(self, layer: Layer) -> float:
        """Time of a layer inside a network, uncorrected, ms; between measured sizes where the table was made so.

        Raises:
            UserError: the layer was not measured.
        """
        entry = self.entries.get(layer.key)
        if entry is not None:
            return self.level_factor(entry.level) * entry.layer_ms(self.overhead_ms, self.clock)
        if layer.key in self.interpolated:
            return self.curves.at(layer)
        raise UserError(
            f"layer {layer.key} is not in the latency table of {self.device}",
            allowed=f"The table has {len(self.entries)} layers, measured for {self.space.key}",
            next_step=f"Measure what is missing with: {MAKE}",
        )

    @cached_property
    def curves(self) -> Curves:
        """Times of measured layers over their sizes."""
        return Curves({parse_layer(key): self.layer_ms(parse_layer(key)) for key in self.entries})

    def level_factor(self, level: int | None) -> float:
        """From the level of an entry to the table's; 1 where the two do not differ by more than their intervals."""
        if level is None:
            return 1.0
        middle = float(np.median([timing.ms(self.clock) for timing in self.levels]))
        found = self.levels[level]
        moved = middle / found.ms(self.clock)
        return moved if abs(moved - 1) > found.uncertainty(self.clock) else 1.0

    @cached_property
    def _chunk_factors(self) -> Mapping[int, float]:
        """From each chunk of whole networks to the middle one: every network is in two, so they tell the levels apart."""
        chunks = sorted({chunk for network in self.networks for chunk in network.chunks or ()})
        logs = np.full((len(self.networks), len(chunks)), np.nan)
        for row, network in zip(logs, self.networks, strict=True):
            for chunk, timing in zip(network.chunks or (), (network.first, network.second), strict=False):
                row[chunks.index(chunk)] = np.log(timing.ms(self.clock))
        levels = polished(logs[np.isfinite(logs).any(axis=1)])[1] if chunks else np.zeros(0)
        return dict(zip(chunks, np.exp(np.median(levels) - levels).tolist(), strict=True)) if chunks else {}

    def passes_ms(self, network: NetworkTiming) -> tuple[float, float]:
        """The two times of a whole network, ms, at one level."""
        first, second = (self._chunk_factors[chunk] for chunk in network.chunks) if network.chunks else (1.0, 1.0)
        return first * network.first.ms(self.clock), second * network.second.ms(self.clock)

    def network_ms(self, network: NetworkTiming) -> float:
        """The time of a whole network, ms: the mean of its two at one level."""
        return sum(self.passes_ms(network)) / 2

    @property
    def drift(self) -> float:
        """How far the level moved among layers or among whole networks: largest over smallest, minus 1; 0 where unknown."""
        levels = [timing.ms(self.clock) for timing in self.levels], list(self._chunk_factors.values())
        return max(max(values) / min(values) - 1 if values else 0.0 for values in levels)

    def terms(self, *, corrected: bool = True) -> Correction:
        """The terms from a sum of layers to a latency; uncorrected: the call of the runtime is added, no more.

        Raises:
            UserError: the table is unfinished, it has no correction yet.
        """
        if not corrected:
            return Correction("none", self.overhead_ms, 1.0, 0.0)
        if self.correction is None:
            raise UserError(
                f"the latency table of {self.device} is unfinished",
                allowed=f"It has {len(self.entries)} layers and no whole networks",
                next_step=f"Resume it with: {MAKE}",
            )
        return self.correction if self.anchor is None else self.correction.times(self.anchor.factor)

    def cost(self, space: SearchSpace | None = None, *, corrected: bool = True) -> Cost:
        """Latency in ms as an additive, vectorised cost over the rows of a space (default: the table's own).

        Raises:
            UserError: the space can produce a layer that was not measured.
        """
        terms = self.terms(corrected=corrected)
        base = (space or self.space).cost(lambda layer: terms.of_layer(layer, self.layer_ms))
        return Cost([*base.factors, Factor((), np.array(terms.offset_ms))])

    def energy_cost(self, space: SearchSpace | None = None) -> Cost | None:
        """Energy of a run in J as an additive cost, like `cost`; None where nothing counted it."""
        if self.energy is None:
            return None
        space, batch = space or self.space, float(self.fingerprint.get("batch", 1))
        at_the_time = replace(self, anchor=None)  # a slower machine of today draws less power, not more
        return self.energy.cost(at_the_time.cost(space), space.cost(lambda layer: batch * layer.macs))

    @cached_property
    def _corrected(self) -> Cost:
        return self.cost()

    @cached_property
    def _plain(self) -> Cost:
        return self.cost(corrected=False)

    def estimate(self, archs: Archs, *, corrected: bool = True) -> Any:
        """Estimated latency of a run of ``batch`` images in ms: (N,) float64; a float for one Architecture.

        Args:
            archs: an Architecture, a list of them, or an (N, genes) array of option indices.
        """
        values = self.space.price(self._corrected if corrected else self._plain, archs)
        return float(values[0]) if isinstance(archs, Architecture) else values

    def fastest(self, space: SearchSpace | None = None) -> tuple[float, Architecture]:
        """The smallest estimate in a space (default: the table's own), ms, and a network that has it; exact."""
        space = space or self.space
        value, row = self.cost(space).minimum(len(space.genes))
        return value, space.from_array(row[None, :])[0]

    def slowest(self, space: SearchSpace | None = None) -> tuple[float, Architecture]:
        """The largest estimate in a space (default: the table's own), ms, and a network that has it; exact."""
        space = space or self.space
        value, row = self.cost(space).maximum(len(space.genes))
        return value, space.from_array(row[None, :])[0]

    def breakdown(self, arch: Architecture) -> pandas.DataFrame:
        """Where the time of a network goes.

        Returns: a row per layer and one for the rest (calling the runtime); columns ``position`` (name in the
        space), ``layer`` (key), ``ms`` (corrected; they add up to the estimate) and ``share`` (fraction of it).
        """
        import pandas  # only here

        terms = self.terms()
        rows: list[tuple[str, str, float]] = [
            (self.space.positions[index].name, layer.key, terms.of_layer(layer, self.layer_ms))
            for index, layer in self.space.placed(arch)
        ]
        frame = pandas.DataFrame([*rows, ("network", "call", terms.offset_ms)], columns=["position", "layer", "ms"])
        return frame.assign(share=frame["ms"] / frame["ms"].sum())

    def to_frame(self) -> pandas.DataFrame:
        """A row per layer; see `latency_tables.exchange.to_frame`. Its columns ``layer`` and ``ms`` can be imported again."""
        from latency_tables.exchange import to_frame

        return to_frame(self)

    def merged(self, other: LatencyTable) -> LatencyTable:
        """One table with what two have measured of one space on one device; see `latency_tables.exchange.merged`.

        Raises:
            UserError: another device, other conditions, or another space.
        """
        from latency_tables.exchange import merged

        return merged(self, other)

    def warnings(self) -> list[str]:
        """What was amiss while it was measured, each with what to do about it."""
        busy, lines = float(self.conditions.get("wall_by_cpu", 1.0)), []
        again = f"{MAKE} --force on a quiet machine"
        if busy > BUSY:
            used = "CPU time is used" if self.clock == "cpu" else "wall time is used all the same, it has several threads"
            lines.append(f"other processes took {1 - 1 / busy:.0%} of the core; {used}. For wall times: {again}")
        slowed = float(self.conditions.get("median_by_undisturbed", 1.0))
        if slowed > 1 + SLOWED:
            lines.append(
                f"half of the runs took at least {slowed - 1:.0%} longer than undisturbed ones, whose times the table holds: "
                f"something shares the caches, the memory or the hyper-thread, or it throttles. Where it always is, "
                f"expect it; else: {again}"
            )
        if self.drift > DRIFT:
            lines.append(
                f"the device's level moved by {self.drift:.0%} (a hot processor, or neighbours); all "
                f"are brought to one level. If the errors are large: let it cool, then {MAKE} --force"
            )
        noise = self.quality.noise.median if self.quality else 0.0
        if noise > NOISY:
            lines.append(f"measuring the same networks again differs by {noise:.1%}: no estimate can be closer. Try: {again}")
        return lines

    # ---- identity and file ----------------------------------------------------------------------------------

    def bind(self, space: SearchSpace) -> LatencyTable:
        """The same measurements for another space. Correction and quality stay where it is the same space or a part of it."""
        if self.covers(space):
            return replace(self, space=space)
        return replace(self, space=space, networks=(), correction=None, quality=None, anchor=None, energy=None)

    def covers(self, space: SearchSpace) -> bool:
        """Whether a space is the table's own or a restriction of it, so that architectures mean the same."""
        mine, other = ({gene.name: set(gene.options) for gene in s.genes} for s in (self.space, space))
        same = self.space.key == space.key and self.space.parameters == space.parameters and mine.keys() == other.keys()
        return same and all(other[name] <= mine[name] for name in mine)

    def check_same(self, device: str, fingerprint: Mapping[str, Any]) -> None:
        """Refuse to mix with measurements of another device or under other conditions.

        Raises:
            UserError: naming the first field that differs.
        """
        mine = {"device": self.device, **self.fingerprint}
        other = {"device": device, **fingerprint}
        for name in dict.fromkeys([*mine, *other]):
            if mine.get(name) != other.get(name):
                raise UserError(
                    f"this latency table was measured with {name} = {mine.get(name, 'unknown')}, "
                    f"now {name} = {other.get(name, 'unknown')}",
                    allowed="Only times of the same device under the same conditions can be mixed",
                    next_step=f"Measure a table of its own: {MAKE} --out ANOTHER, or replace this one with --force",
                )

    def save(self, path: Path) -> None:
        """Write the table, atomically."""
        body = {
            "device": self.device,
            "fingerprint": dict(self.fingerprint),
            "conditions": dict(self.conditions),
            "space": self.space.to_dict(),
            "overhead": None if self.overhead is None else self.overhead.to_dict(),
            "entries": {key: self.entries[key].to_dict() for key in sorted(self.entries)},
            "levels": [level.to_dict() for level in self.levels],
            "networks": [network.to_dict() for network in self.networks],
            "correction": None if self.correction is None else self.correction.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "interpolated": sorted(self.interpolated),
            "anchor": None if self.anchor is None else vars(self.anchor),
            "level_at": self.level_at,
            "energy": None if self.energy is None else self.energy.to_dict(),
        }
        write_json(path, KIND, VERSION, body)

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table, of this format or of an older one.

        Raises:
            UserError: not a latency table, damaged, or newer than this toolkit; a number that no clock shows.
        """
        from latency_tables.parsing import parse_table

        value = read_json(path, KIND, VERSION, make=MAKE)
        allowed = "A latency table holds finite, positive times of known layers"
        with reading(path, allowed=allowed, next_step=f"Restore it from a copy, or remove it and run: {MAKE}"):
            return parse_table(value)


def sums(table: LatencyTable, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum of layers, uncorrected and without the call, (N,) ms, and number of layers (N,), of canonical rows."""
    total = table.space.cost(table.layer_ms)(rows)
    count = table.space.cost(lambda layer: 1.0)(rows)
    return total, np.rint(count).astype(np.int64)


def features(space: SearchSpace, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of the layers' `FEATURES`, (N, F), of canonical rows."""
    return np.stack([space.cost(feature)(rows) for feature in FEATURES.values()], axis=1)
