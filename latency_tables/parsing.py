"""Tables from their files: every number is checked, and older formats are brought to the present one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from latency_tables.correction import Correction, Quality
from latency_tables.energy import EnergyModel
from latency_tables.entries import Anchor, Entry, Given, NetworkTiming
from latency_tables.judging import finish
from latency_tables.stopwatch import Measurement
from latency_tables.table import CLOCKS, LatencyTable
from search_spaces import from_dict
from search_spaces.layers import parse_layer
from search_spaces.records import record

__all__ = ["parse_table"]

FITTED_TO_CALM = 3  # the first format whose correction is


def parse_table(value: Mapping[str, Any]) -> LatencyTable:
    """A table from its JSON; format 1 has neither levels nor interpolated layers nor an anchor.

    Up to format 2 the correction was fitted to medians: it is fitted anew, and the level is to be told again.

    Raises:
        KeyError, TypeError, AttributeError, ValueError, IndexError: it is damaged.
    """
    conditions = dict(value["conditions"])
    if conditions["clock"] not in CLOCKS:
        raise ValueError(f"clock is {conditions['clock']!r}, not one of {', '.join(CLOCKS)}")
    levels = tuple(Measurement.from_dict(level) for level in value.get("levels", ()))
    # A layer's own key has the fields that an older table lacks; what is not a layer is refused.
    entries = {parse_layer(key).key: _entry(timings, len(levels)) for key, timings in value["entries"].items()}
    overhead, correction, quality, anchor = (value.get(name) for name in ("overhead", "correction", "quality", "anchor"))
    table = LatencyTable(
        device=str(value["device"]),
        fingerprint=dict(value["fingerprint"]),
        conditions=conditions,
        space=from_dict(value["space"]),
        overhead=None if overhead is None else Measurement.from_dict(overhead),
        entries=entries,
        levels=levels,
        networks=tuple(_network(network) for network in value["networks"]),
        correction=None if correction is None else Correction.from_dict(correction),
        quality=None if quality is None else Quality.from_dict(quality),
        interpolated=frozenset(parse_layer(key).key for key in value.get("interpolated", ())),
        anchor=None if anchor is None else _anchor(anchor),
        level_at=None if value.get("level_at") is None else float(value["level_at"]),
        energy=None if value.get("energy") is None else EnergyModel.from_dict(value["energy"]),
    )
    if value["version"] >= FITTED_TO_CALM or not table.networks or table.correction is None:
        return table
    return replace(finish(table), anchor=None, level_at=None)


def _entry(timings: Mapping[str, Any], levels: int) -> Entry | Given:
    if "given" in timings:
        given = record(Given, timings["given"])
        if given.ms != 0:  # counted with another layer
            positive("given time", given.ms)
        return given
    chain, level = timings.get("chain"), timings.get("level")
    if level is not None and not 0 <= level < levels:
        raise ValueError(f"level {level!r} is not one of {levels}")
    return Entry(Measurement.from_dict(timings["alone"]), None if chain is None else Measurement.from_dict(chain), level)


def _network(value: Mapping[str, Any]) -> NetworkTiming:
    first, second = Measurement.from_dict(value["first"]), Measurement.from_dict(value["second"])
    chunks = None
    if "chunks" in value:
        one, other = (int(chunk) for chunk in value["chunks"])
        chunks = one, other
    joules = None
    if "joules" in value:
        one_j, other_j = (float(number) for number in value["joules"])
        positive("energy", one_j)
        positive("energy", other_j)
        joules = one_j, other_j
    return NetworkTiming(dict(value["choices"]), bool(value["held_out"]), first, second, chunks, joules)


def _anchor(value: Mapping[str, Any]) -> Anchor:
    anchor = record(Anchor, value)
    positive("anchor factor", anchor.factor)
    return anchor


def positive(name: str, number: Any) -> None:
    """ValueError for what is not a finite, positive number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
        raise ValueError(f"{name} is {number!r:.40}, not a finite, positive number")
