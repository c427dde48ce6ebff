"""The latency table: times of single layers on one device, and from them the latency of every network of a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.correction import Correction, Quality
from latency_tables.stopwatch import Measurement
from search_spaces import from_dict
from search_spaces.architecture import Architecture
from search_spaces.artifacts import read_json, write_json
from search_spaces.costs import Cost, Factor
from search_spaces.errors import UserError
from search_spaces.layers import Layer, parse_layer
from search_spaces.space import Archs, SearchSpace

if TYPE_CHECKING:
    import pandas

__all__ = ["CHAIN", "Entry", "LatencyTable", "NetworkTiming"]

KIND, VERSION = "latency-table", 1
MAKE = "nas profile"
CHAIN = 3  # copies of a layer in a chain
FLOOR = 0.01  # of the time alone: no layer is free, however the differences fall
CLOCKS = ("wall", "cpu")


@dataclass(frozen=True)
class Entry:
    """What was measured of a layer: a network of it alone and, where its output fits its input, of `CHAIN` copies."""

    alone: Measurement
    chain: Measurement | None = None

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
        return {name: timing.to_dict() for name, timing in found.items() if timing is not None}


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
        overhead: an empty network, the price of calling the runtime.
        entries: per layer's key.
        networks: whole networks, measured; empty while the table is unfinished.
        correction: from the sum of layers to the network; None while the table is unfinished.
        quality: errors on networks that the correction has not seen; None where there are none.
    """

    device: str
    fingerprint: Mapping[str, Any]
    conditions: Mapping[str, Any]
    space: SearchSpace
    overhead: Measurement
    entries: Mapping[str, Entry]
    networks: tuple[NetworkTiming, ...] = field(default=(), repr=False)
    correction: Correction | None = None
    quality: Quality | None = None

    # ---- times ----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> str:
        return str(self.conditions["clock"])

    @property
    def overhead_ms(self) -> float:
        return self.overhead.ms(self.clock)

    def layer_ms(self, layer: Layer) -> float:
        """Time of a layer inside a network, uncorrected, ms.

        Raises:
            UserError: the layer was not measured.
        """
        entry = self.entries.get(layer.key)
        if entry is None:
            raise UserError(
                f"layer {layer.key} is not in the latency table of {self.device}",
                allowed=f"The table has {len(self.entries)} layers, measured for {self.space.key}",
                next_step=f"Measure what is missing with: {MAKE}",
            )
        return entry.layer_ms(self.overhead_ms, self.clock)

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
        return self.correction

    def cost(self, space: SearchSpace | None = None, *, corrected: bool = True) -> Cost:
        """Latency in ms as an additive, vectorised cost over the rows of a space (default: the table's own).

        Raises:
            UserError: the space can produce a layer that was not measured.
        """
        terms = self.terms(corrected=corrected)
        base = (space or self.space).cost(lambda layer: terms.scale * self.layer_ms(layer) + terms.per_layer_ms)
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
            (self.space.positions[index].name, layer.key, terms.scale * self.layer_ms(layer) + terms.per_layer_ms)
            for index, layer in self.space.placed(arch)
        ]
        frame = pandas.DataFrame([*rows, ("network", "call", terms.offset_ms)], columns=["position", "layer", "ms"])
        return frame.assign(share=frame["ms"] / frame["ms"].sum())

    # ---- identity and file ----------------------------------------------------------------------------------

    def bind(self, space: SearchSpace) -> LatencyTable:
        """The same measurements for another space. Correction and quality stay where it is the same space or a part of it."""
        if self.covers(space):
            return replace(self, space=space)
        return replace(self, space=space, networks=(), correction=None, quality=None)

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
            "overhead": self.overhead.to_dict(),
            "entries": {key: self.entries[key].to_dict() for key in sorted(self.entries)},
            "networks": [network.to_dict() for network in self.networks],
            "correction": None if self.correction is None else self.correction.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
        }
        write_json(path, KIND, VERSION, body)

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table.

        Raises:
            UserError: not a latency table, damaged, or newer than this toolkit; a number that no clock shows.
        """
        value = read_json(path, KIND, VERSION, make=MAKE)
        try:
            return _parse(value)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({error})",
                allowed="A latency table holds finite, positive times of known layers",
                next_step=f"Restore it from a copy, or remove it and run: {MAKE}",
            ) from None


def _parse(value: Mapping[str, Any]) -> LatencyTable:
    conditions = dict(value["conditions"])
    if conditions["clock"] not in CLOCKS:
        raise ValueError(f"clock is {conditions['clock']!r}, not one of {', '.join(CLOCKS)}")
    entries = {}
    for key, timings in value["entries"].items():
        chain = timings.get("chain")
        layer = parse_layer(key)  # refuses what is not a layer; its key has the fields that an older table lacks
        entries[layer.key] = Entry(
            Measurement.from_dict(timings["alone"]), None if chain is None else Measurement.from_dict(chain)
        )
    networks = [
        NetworkTiming(
            dict(n["choices"]), bool(n["held_out"]), Measurement.from_dict(n["first"]), Measurement.from_dict(n["second"])
        )
        for n in value["networks"]
    ]
    correction, quality = value["correction"], value["quality"]
    return LatencyTable(
        device=str(value["device"]),
        fingerprint=dict(value["fingerprint"]),
        conditions=conditions,
        space=from_dict(value["space"]),
        overhead=Measurement.from_dict(value["overhead"]),
        entries=entries,
        networks=tuple(networks),
        correction=None if correction is None else Correction.from_dict(correction),
        quality=None if quality is None else Quality.from_dict(quality),
    )


def sums(table: LatencyTable, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum of layers, uncorrected and without the call, (N,) ms, and number of layers (N,), of canonical rows."""
    total = table.space.cost(table.layer_ms)(rows)
    count = table.space.cost(lambda layer: 1.0)(rows)
    return total, np.rint(count).astype(np.int64)
