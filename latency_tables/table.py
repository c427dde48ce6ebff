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
from latency_tables.stopwatch import BUSY, Measurement
from search_spaces.architecture import Architecture
from search_spaces.artifacts import read_json, write_json
from search_spaces.costs import Cost, Factor
from search_spaces.errors import UserError
from search_spaces.layers import Layer, parse_layer
from search_spaces.records import reading
from search_spaces.space import Archs, SearchSpace

if TYPE_CHECKING:
    import pandas

__all__ = ["CHAIN", "CLOCKS", "Anchor", "Entry", "Given", "LatencyTable", "NetworkTiming", "features", "sums"]

KIND, VERSION = "latency-table", 2
MAKE = "nas profile"
CHAIN = 3  # copies of a layer in a chain
FLOOR = 0.01  # of the time alone: no layer is free, however the differences fall
CLOCKS = ("wall", "cpu")
DRIFT = 0.10  # of the level during a profile, from which it is worth a word
NOISY = 0.03  # the same for two measurements of one network


@dataclass(frozen=True)
class Entry:
    """What was measured of a layer: a network of it alone and, where its output fits its input, of `CHAIN` copies."""

    alone: Measurement
    chain: Measurement | None = None
    level: int | None = None  # which of the table's levels was measured beside it

    def layer_ms(self, overhead_ms: float, clock: str) -> float:
        """Time of the layer inside a network.

        A chain tells more than the layer alone: what is paid once per network (the call, the conversion of the
        input to the runtime's own format) drops out of the difference.
        """
        alone = self.alone.ms(clock)
        if self.chain is not None:
            step = (self.chain.ms(clock) - alone) / (CHAIN - 1)
            if step > FLOOR * alone:
                return step
        return max(alone - overhead_ms, FLOOR * alone)

    def to_dict(self) -> dict[str, Any]:
        found = {"alone": self.alone, "chain": self.chain}
        timings: dict[str, Any] = {name: timing.to_dict() for name, timing in found.items() if timing is not None}
        return timings if self.level is None else {**timings, "level": self.level}


@dataclass(frozen=True)
class Given:
    """What another table says of a layer: its time inside a network, ms, and that table's spread where it has one."""

    ms: float
    std_ms: float | None = None
    samples: int | None = None

    def layer_ms(self, overhead_ms: float, clock: str) -> float:
        """The time as it was given."""
        return self.ms

    @property
    def level(self) -> None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return {"given": {name: value for name, value in vars(self).items() if value is not None}}


@dataclass(frozen=True)
class Anchor:
    """Where the device's level is now, against when the table was measured.

    Attributes:
        factor: a network takes this many times what it took then; every estimate is multiplied by it.
        spread: half the distance between the 10th and 90th percentile of the single factors, relative.
        networks: how many were measured again.
    """

    factor: float
    spread: float
    networks: int


@dataclass(frozen=True)
class NetworkTiming:
    """A whole network, measured twice from a fresh start; held out, or used to fit the correction."""

    choices: Mapping[str, Any]
    held_out: bool
    first: Measurement
    second: Measurement

    def ms(self, clock: str) -> float:
        """Mean of the two medians."""
        return (self.first.ms(clock) + self.second.ms(clock)) / 2

    def to_dict(self) -> dict[str, Any]:
        timings = {"first": self.first.to_dict(), "second": self.second.to_dict()}
        return {"choices": dict(self.choices), "held_out": self.held_out, **timings}


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

    # ---- times ----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> str:
        return str(self.conditions["clock"])

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

    @property
    def drift(self) -> float:
        """How far the level moved while layers were measured: largest over smallest, minus 1; 0 where unknown."""
        levels = [timing.ms(self.clock) for timing in self.levels]
        return max(levels) / min(levels) - 1 if levels else 0.0

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

    def warnings(self) -> list[str]:
        """What was amiss while it was measured, each with what to do about it."""
        busy, lines = float(self.conditions.get("wall_by_cpu", 1.0)), []
        again = f"{MAKE} --force on a quiet machine"
        if busy > BUSY:
            used = "CPU time is used" if self.clock == "cpu" else "wall time is used all the same, it has several threads"
            lines.append(f"other processes took {1 - 1 / busy:.0%} of the core; {used}. For wall times: {again}")
        if self.drift > DRIFT:
            lines.append(
                f"the device's level moved by {self.drift:.0%} while layers were timed (a hot processor, or neighbours); they "
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
        return replace(self, space=space, networks=(), correction=None, quality=None, anchor=None)

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
