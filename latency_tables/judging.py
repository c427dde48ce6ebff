"""From measured networks to a corrected table with its errors, and to the device's level on another occasion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.correction import Correction, Errors, Quality, errors, fit_baseline, fit_correction, fit_learnt
from latency_tables.device import Candidate, Device
from latency_tables.energy import EnergyModel, fit_energy
from latency_tables.entries import Anchor
from latency_tables.stopwatch import Failure, Measurement, Plan, busiest, clock_of
from latency_tables.table import LatencyTable, features, sums
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from search_spaces.rows import Rows

__all__ = ["anchored", "finish"]

ROUNDING = 1e-4  # of a clock that counts whole nanoseconds
ANCHORS = 8  # networks that tell the level again
SOUND = 0.5  # of the fastest measured network: a correction whose fastest estimate is below has run wild

Array = NDArray[np.float64]


def finish(table: LatencyTable) -> LatencyTable:
    """The table with the clock chosen and the correction fitted and judged on its whole networks."""
    timings = [timing for network in table.networks for timing in (network.first, network.second)]
    clock = clock_of(timings, one_thread=table.one_thread)
    slowed = float(np.median([timing.slowed(clock) for timing in timings]))
    found = {"clock": clock, "wall_by_cpu": busiest(timings), "median_by_undisturbed": slowed}
    table = replace(table, conditions={**table.conditions, **found})
    held = np.array([network.held_out for network in table.networks])
    rows = table.space.to_array([table.space.architecture(**network.choices) for network in table.networks])
    total, count = sums(table, rows)
    measured = np.array([table.network_ms(network) for network in table.networks])
    fit, parts = ~held, features(table.space, rows)

    def sound(correction: Correction) -> bool:
        return bool(replace(table, correction=correction).fastest()[0] > SOUND * measured.min())

    correction = fit_correction(
        total[fit], count[fit], measured[fit], overhead_ms=table.overhead_ms, features=parts[fit], sound=sound
    )
    table = replace(table, correction=correction)
    table = replace(table, energy=_energy(table, rows, held))
    return replace(table, quality=_quality(table, rows, measured, held)) if held.any() else table


def _energy(table: LatencyTable, rows: Rows, held: NDArray[np.bool_]) -> EnergyModel | None:
    """The model of energy, where every whole network's was counted."""
    counted = [network.joules for network in table.networks if network.joules is not None]
    if len(counted) < len(rows):
        return None
    macs = float(table.fingerprint.get("batch", 1)) * table.space.macs(rows)
    counter = str(table.conditions.get("energy_counter", ""))
    return fit_energy(table.estimate(rows), macs, np.array(counted), held, counter)


def _quality(table: LatencyTable, rows: Rows, measured: Array, held: NDArray[np.bool_]) -> Quality:
    total, count = sums(table, rows)
    parts = features(table.space, rows)
    macs = table.space.macs(rows).astype(np.float64)
    offset, slope = fit_baseline(macs[~held], measured[~held])
    plain = Correction("none", table.overhead_ms, 1.0, 0.0)
    learnt = fit_learnt(parts[~held], measured[~held])
    judged = [network for network in table.networks if network.held_out]
    first, second = np.array([table.passes_ms(network) for network in judged]).T

    def misses(correction: Correction) -> Errors:
        return errors(correction(total, count, parts)[held], measured[held])

    return Quality(
        networks=int(held.sum()),
        fitted_on=int((~held).sum()),
        corrected=misses(table.terms()),
        plain=misses(plain),
        baseline=errors(offset + slope * macs[held], measured[held]),
        noise=errors(second, first),
        learnt=None if learnt is None else misses(learnt),
    )


def anchored(
    table: LatencyTable,
    whole: Callable[[Architecture], Candidate],
    device: Device,
    *,
    rng: np.random.Generator,
    plan: Plan,
    progress: Progress,
) -> LatencyTable:
    """A table of another occasion, brought to the device's level of now by one factor from a few of its whole networks.

    The structure of a table is stable, its level is not: clocks, memory and neighbours move all times alike. The factor is
    the median of now against then; there is none where it differs from 1 by less than the single factors tell.

    Args:
        whole: makes a network of the table's space ready to be timed.

    Raises:
        UserError: the device cannot run a network that it ran before.
    """
    if len(table.networks) < 2:
        return table
    spread = np.linspace(0, len(table.networks) - 1, min(ANCHORS, len(table.networks))).round().astype(int)
    known = sorted(table.networks, key=table.network_ms)
    chosen = [known[i] for i in np.unique(spread).tolist()]
    candidates = [whole(table.space.architecture(**network.choices)) for network in chosen]
    progress.start("timing a few networks of the table again", len(candidates) + plan.rounds)
    try:
        timed = device.time(candidates, rng=rng, plan=plan, progress=progress)
    finally:
        progress.stop()
    clock = _clock(table, timed)
    then = replace(table, conditions={**table.conditions, "clock": clock})
    measured = _measured(device, timed)
    ratios = [now.ms(clock) / then.network_ms(network) for now, network in zip(measured, chosen, strict=True)]
    found = _anchor(ratios)
    if found is not None:
        progress.say(f"{table.device} takes {found.factor:.1%} of the times of its table now; estimates follow")
    return replace(table, anchor=found)


def _anchor(ratios: Sequence[float]) -> Anchor | None:
    low, factor, high = (float(v) for v in np.quantile(ratios, [0.1, 0.5, 0.9]))
    spread = (high - low) / (2 * factor)
    moved = abs(factor - 1) > max(ROUNDING, spread / np.sqrt(len(ratios)))
    return Anchor(factor, spread, len(ratios)) if moved else None


def _measured(device: Device, timed: Sequence[Any]) -> list[Measurement]:
    for failure in timed:
        if isinstance(failure, Failure):
            raise UserError(
                f"{device.name} no longer runs a network of its table: {failure.reason}",
                allowed="The device as it was when the table was made",
                next_step="Measure anew with: nas profile --force",
            )
    return list(timed)


def _clock(table: LatencyTable, timed: Sequence[Measurement | Failure]) -> str:
    """The table's clock, or CPU time where the machine is too busy now for wall times."""
    timings = [timing for timing in timed if isinstance(timing, Measurement)]
    return "cpu" if clock_of(timings, one_thread=table.one_thread) == "cpu" else table.clock
