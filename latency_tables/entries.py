"""What a latency table holds: times of layers, of whole networks, and of how the device's level has moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latency_tables.stopwatch import Measurement

__all__ = ["CHAIN", "Anchor", "Entry", "Given", "NetworkTiming"]

CHAIN = 3  # copies of a layer in a chain
FLOOR = 0.01  # of the time alone: no layer is free, however the differences fall


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
    """A whole network, measured twice from a fresh start; held out, or used to fit the correction.

    Attributes:
        chunks: which of the table's chunks of networks, timed against each other, the two were in; None in older tables.
        joules: of a run, counted twice; None where nothing counts them.
    """

    choices: Mapping[str, Any]
    held_out: bool
    first: Measurement
    second: Measurement
    chunks: tuple[int, int] | None = None
    joules: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        timings = {"first": self.first.to_dict(), "second": self.second.to_dict()}
        pairs = {"chunks": self.chunks, "joules": self.joules}
        known = {name: list(pair) for name, pair in pairs.items() if pair is not None}
        return {"choices": dict(self.choices), "held_out": self.held_out, **timings, **known}
