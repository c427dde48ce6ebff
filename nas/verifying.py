"""Verification: every exported network on images that nothing else has seen, and on the device's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from latency_tables import Device, Measurement, measure
from latency_tables.stopwatch import Failure
from nas.baselines import Baseline, read_baselines
from nas.exporting import read_export
from nas.objectives import Limit
from nas.onnx_files import outputs
from nas.pareto import ParetoFront
from nas.runs import Run
from search_spaces.artifacts import read_json, write_json
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from supernets import Examples

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Verification", "Verified", "verify_run", "wilson_interval"]

VERIFIED_VERSION = 1
ROUNDS = 40


@dataclass(frozen=True)
class Verified:
    """One network: what was promised, and what a test set and a clock said.

    Attributes:
        promised: accuracy (fraction) and latency (ms) as the front has them; empty for a baseline.
        accuracy: on the test images; ``accuracy_low`` and ``accuracy_high`` bound its 95 % interval.
        latency_ms: median; ``latency_p10_ms`` and ``latency_p90_ms`` over the samples.
        broken: limits that the verified values break, as text.
        finetuned: trained on after the promise was made.
    """

    id: str
    promised: dict[str, float]
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    images: int
    latency_ms: float
    latency_p10_ms: float
    latency_p90_ms: float
    broken: list[str] = field(default_factory=list)
    finetuned: bool = False


@dataclass(frozen=True)
class Verification:
    """All networks of a front, and the baselines measured beside them.

    Attributes:
        clock: ``wall``, or ``cpu`` where the machine was too busy for wall times.
    """

    device: str
    clock: str
    networks: list[Verified]
    baselines: list[Verified]

    @property
    def passed(self) -> bool:
        return not any(network.broken for network in self.networks)

    def summary(self) -> dict[str, Any]:
        """Promised against verified over all networks: figures for people and for the report."""
        promised = np.array([n.promised["latency"] for n in self.networks])
        measured = np.array([n.latency_ms for n in self.networks])
        error = np.abs(promised - measured) / measured
        spearman = float(spearmanr(promised, measured).statistic) if len(measured) > 2 else None
        return {
            "networks": len(self.networks),
            "latency_span": float(measured.max() / measured.min()),
            "latency_median_error": float(np.median(error)),
            "latency_spearman": None if spearman is None or np.isnan(spearman) else spearman,
            "best_accuracy": max(n.accuracy for n in self.networks),
            "accuracy_bias": float(np.mean([n.promised["accuracy"] - n.accuracy for n in self.networks])),
            "broken_limits": sum(bool(n.broken) for n in self.networks),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per network, baselines last."""
        import pandas as pd

        rows = []
        for network in [*self.networks, *self.baselines]:
            row = asdict(network)
            promised = row.pop("promised")
            rows.append({"id": row.pop("id"), **{f"promised_{k}": v for k, v in promised.items()}, **row})
        return pd.DataFrame(rows)

    def save(self, path: Path) -> None:
        write_json(path, "verification", VERIFIED_VERSION, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Verification:
        """Read ``verified.json``.

        Raises:
            UserError: missing or damaged.
        """
        make = f"nas verify {path.parent}"
        value = read_json(path, "verification", VERIFIED_VERSION, make=make)
        try:
            parts = {name: [Verified(**row) for row in value[name]] for name in ("networks", "baselines")}
            return cls(value["device"], value["clock"], parts["networks"], parts["baselines"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error!r})", allowed="The file as nas verify writes it", next_step=f"Run: {make}"
            ) from None


@dataclass(frozen=True)
class _Candidate:
    """An ONNX file to verify."""

    id: str
    path: Path
    resolution: int
    promised: dict[str, float]
    finetuned: bool = False


def verify_run(run: Run, device: Device, *, seed: int, progress: Progress) -> Verification:
    """Time all networks against each other on the device, and test them on the test images; writes ``verified.json``.

    Raises:
        UserError: a network of the front is not exported, or its file was changed; the device cannot run one.
    """
    front = ParetoFront.load(run.file("front.json"))
    if front.provenance["device"] != device.name:
        raise UserError(
            f"the front of {run.path} was searched for {front.provenance['device']}",
            allowed=f"A front for {device.name}",
            next_step=f"Verify on that device, or search again: nas search {run.path} --device {device.name}",
        )
    networks = []
    for point in front:
        export = read_export(run, point.arch.id)
        promised = {name: point.values[name] for name in ("accuracy", "latency")}
        file = run.exports / export.file
        networks.append(_Candidate(point.arch.id, file, export.resolution, promised, export.finetuned))
    baselines = [_baseline(run, baseline) for baseline in read_baselines(run)]
    everyone = [*networks, *baselines]
    times = _times(device, everyone, seed, progress)
    clock = "wall" if np.median([m.busy for m in times]) < BUSY else "cpu"
    test = run.data().test
    limits = [Limit(name, bound) for name, bound in front.limits.items()]
    progress.start("test", len(everyone))
    try:
        rows = []
        for candidate, measured in zip(everyone, times, strict=True):
            rows.append(_verified(device, candidate, measured, clock, test, limits))
            progress.advance()
    finally:
        progress.stop()
    result = Verification(device.name, clock, rows[: len(networks)], rows[len(networks) :])
    result.save(run.file("verified.json"))
    return result


BUSY = 1.1  # wall time over CPU time beyond which the machine, not the network, decides the wall time


def _baseline(run: Run, baseline: Baseline) -> _Candidate:
    return _Candidate(baseline.name, run.path / baseline.file, baseline.resolution, {})


def _times(device: Device, candidates: Sequence[_Candidate], seed: int, progress: Progress) -> list[Measurement]:
    def loader(path: Path) -> Any:
        return lambda: device.load(path.read_bytes()).run

    progress.start("time on the device", len(candidates) + ROUNDS)
    try:
        found = measure(
            [loader(c.path) for c in candidates], rng=np.random.default_rng([seed, 7]), rounds=ROUNDS, progress=progress
        )
    finally:
        progress.stop()
    for candidate, result in zip(candidates, found, strict=True):
        if isinstance(result, Failure):
            raise UserError(
                f"{device.name} cannot run {candidate.path} ({result.reason})",
                allowed="A network that the device's runtime supports",
                next_step=f"Export it again: nas export {candidate.path.parent.parent} --pick {candidate.id} --force",
            )
    return [result for result in found if isinstance(result, Measurement)]


def _verified(
    device: Device, candidate: _Candidate, measured: Measurement, clock: str, test: Examples, limits: Sequence[Limit]
) -> Verified:
    logits = outputs(device, candidate.path, test, candidate.resolution)
    right = int((logits.argmax(1) == test.labels.numpy()).sum())
    low, high = wilson_interval(right, len(test))
    scale = measured.ms(clock) / measured.median_ms
    values: Mapping[str, float] = {"accuracy": right / len(test), "latency": measured.ms(clock)}
    broken = [
        str(limit)
        for limit in limits
        if candidate.promised and limit.objective in values and limit.excess(np.array(values[limit.objective])) > 0
    ]
    return Verified(
        id=candidate.id,
        promised=candidate.promised,
        accuracy=values["accuracy"],
        accuracy_low=low,
        accuracy_high=high,
        images=len(test),
        latency_ms=values["latency"],
        latency_p10_ms=measured.p10_ms * scale,
        latency_p90_ms=measured.p90_ms * scale,
        broken=broken,
        finetuned=candidate.finetuned,
    )


def wilson_interval(right: int, images: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of ``right`` out of ``images`` (Wilson 1927); holds up near 0 and 1."""
    share = right / images
    centre = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * np.sqrt(share * (1 - share) / images + z * z / (4 * images**2))
    return float(centre - half), float(centre + half)
