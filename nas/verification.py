"""What verification found: promised against verified, for networks, their INT8 twins, baselines and other files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.correction import rank_correlation
from nas.pareto import non_dominated
from search_spaces.artifacts import read_json, write_json
from search_spaces.records import reading, record

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Excess", "Timed", "Verification", "Verified", "excess_of", "wilson_interval"]

VERIFIED_VERSION = 2  # version 1 had neither INT8 twins nor files that were only timed
NORMAL_95 = 1.96
TIMES = (1e-9, 1e12)  # ms: shorter or longer ones no clock has measured
ROUNDING = 1e-9  # of bounds: those of 0 and 1 are not exact
FEW = 3  # of fewer networks nobody can tell a device that is slower today from promises that are wrong


@dataclass(frozen=True)
class Verified:
    """One network: what was promised, and what a test set and a clock said.

    Attributes:
        promised: accuracy (fraction) and latency (ms) as the front has them; empty where nothing was promised.
        accuracy: on the test images; ``accuracy_low`` and ``accuracy_high`` bound its 95 % interval.
        latency_ms: undisturbed, which is what tables promise; ``latency_p10_ms`` and ``latency_p90_ms`` over the samples.
        broken: limits that the verified values break, as text.
        finetuned: trained on after the promise was made.
        precision: ``"fp32"`` or ``"int8"``.
        energy_j: of one run; None where the device does not count it, or nobody promised any.
        network: id of the front's network that this is; empty for a baseline.
        sha256: of the file that was measured; None in a file of an older version.
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
    precision: str = "fp32"
    network: str = ""
    energy_j: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Timed:
    """A file that was timed but does not take the test images, or does not give their classes.

    Attributes:
        reason: why it has no accuracy.
    """

    id: str
    latency_ms: float
    latency_p10_ms: float
    latency_p90_ms: float
    reason: str


@dataclass(frozen=True)
class Excess:
    """How much the promised accuracies of the picked networks exceed the verified ones, on average (winner's curse).

    A search picks what looks best, so what looks best by chance is picked more often than it deserves.

    Attributes:
        networks: that were not trained on after the promise.
        mean: promised minus verified, a fraction; ``low`` and ``high`` bound its 95 % interval. The interval is that of the
            test images: all networks see the same ones, so their errors are counted image by image, not network by network.
    """

    networks: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verification:
    """All networks of a front, and everything else measured beside them.

    Attributes:
        clock: ``wall``, or ``cpu`` where the machine was too busy for wall times.
        quantised: INT8 twins of networks.
        timed: files with a latency only.
        excess: winner's curse; None where no promise is left to judge.
    """

    device: str
    clock: str
    networks: list[Verified]
    baselines: list[Verified]
    quantised: list[Verified] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    excess: Excess | None = None

    @property
    def passed(self) -> bool:
        """No network of the front breaks a limit. An INT8 twin was never promised: it is left out of the front instead."""
        return not any(network.broken for network in self.networks)

    def front(self) -> set[str]:
        """Ids of the networks and twins within the limits that no other one beats in verified accuracy and latency."""
        inside = [found for found in [*self.networks, *self.quantised] if not found.broken]
        if not inside:
            return set()
        costs = np.array([[-found.accuracy, found.latency_ms] for found in inside])
        return {inside[int(index)].id for index in non_dominated(costs)}

    def best(self) -> Verified | None:
        """Of the networks within the limits the one that was promised best: test images must not choose what they judge."""
        return max(
            (network for network in self.networks if not network.broken), key=lambda n: n.promised["accuracy"], default=None
        )

    def summary(self) -> dict[str, Any]:
        """Promised against verified over all networks: figures for people and for the report."""
        promised = np.array([n.promised["latency"] for n in self.networks])
        measured = np.array([n.latency_ms for n in self.networks])
        ratios = measured / promised
        level = float(np.median(ratios)) if len(ratios) >= FEW else None
        best = self.best()
        return {
            "networks": len(self.networks),
            "latency_span": float(measured.max() / measured.min()),
            "latency_median_error": float(np.median(np.abs(1 / ratios - 1))),
            "latency_level": level,
            "latency_error_beside_level": None if level is None else float(np.median(np.abs(level / ratios - 1))),
            "latency_spearman": rank_correlation(promised, measured),
            "best_accuracy": None if best is None else best.accuracy,
            "accuracy_bias": float(np.mean([n.promised["accuracy"] - n.accuracy for n in self.networks])),
            "winners_curse": None if self.excess is None else asdict(self.excess),
            "broken_limits": sum(bool(n.broken) for n in self.networks),
            "verified_front": sorted(self.front()),
            "int8": self.gains(),
        }

    def latency_in_words(self) -> str:
        """How promised and measured latency differ, and how much of that is the device's own speed on the two occasions."""
        found = self.summary()
        words = f"median error {found['latency_median_error']:.1%}"
        if found["latency_spearman"] is not None:
            words += f", Spearman {found['latency_spearman']:.3f}"
        if found["latency_level"] is not None:
            words += f"; the device took {found['latency_level']:.2f} of the promised times throughout, "
            words += f"beside that the error is {found['latency_error_beside_level']:.1%}"
        return words

    def gains(self) -> dict[str, float] | None:
        """INT8 against float over the networks that have both: median latency ratio, mean accuracy lost."""
        known = {network.id: network for network in self.networks}
        pairs = [(known[twin.network], twin) for twin in self.quantised if twin.network in known]
        if not pairs:
            return None
        return {
            "networks": len(pairs),
            "latency_ratio": float(np.median([twin.latency_ms / network.latency_ms for network, twin in pairs])),
            "accuracy_loss": float(np.mean([network.accuracy - twin.accuracy for network, twin in pairs])),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per network: those of the front, INT8 twins, baselines, then what was only timed.

        Columns: ``id``, ``kind``, ``promised_accuracy``, ``promised_latency`` (missing where nothing was promised), the fields
        of `Verified`, ``on_front``.
        """
        import pandas as pd

        best, rows = self.front(), []
        kinds = {"network": self.networks, "int8": self.quantised, "baseline": self.baselines}
        for kind, found in kinds.items():
            for network in found:
                row = asdict(network)
                promised = {f"promised_{name}": value for name, value in row.pop("promised").items()}
                rows.append({"id": row.pop("id"), "kind": kind, **promised, **row, "on_front": network.id in best})
        rows += [{"id": row.id, "kind": "timed", **asdict(row), "on_front": False} for row in self.timed]
        return pd.DataFrame(rows)

    def save(self, path: Path) -> None:
        """Write ``verified.json``."""
        write_json(path, "verification", VERIFIED_VERSION, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Verification:
        """Read ``verified.json``, that of an older version too.

        Raises:
            UserError: missing or damaged.
        """
        make = f"nas verify {path.parent}"
        value = read_json(path, "verification", VERIFIED_VERSION, make=make)
        with reading(path, allowed="The file as nas verify writes it", next_step=f"Run: {make}"):
            found = record(cls, value)
            for row in found.networks:
                _check(row, promised=True)
            for row in [*found.baselines, *found.quantised]:
                _check(row)
            for timed in found.timed:
                _check_times(timed)
        return found


def _check(row: Verified, *, promised: bool = False) -> None:
    """ValueError for what no test set and no clock says, and for a network of the front of which nothing was promised."""
    ascending = [0.0, row.accuracy_low, row.accuracy, row.accuracy_high, 1.0]
    if row.images < 1 or not 0 <= row.accuracy <= 1 or any(b < a - ROUNDING for a, b in itertools.pairwise(ascending)):
        raise ValueError(f"{row.id}: accuracy {row.accuracy} of {row.images} images")
    if (row.promised or promised) and not row.promised.keys() >= {"accuracy", "latency"}:
        raise ValueError(f"{row.id}: neither accuracy nor latency was promised")
    if row.energy_j is not None and not 0 < row.energy_j < np.inf:
        raise ValueError(f"{row.id}: {row.energy_j} J")
    _check_times(row)


def _check_times(row: Verified | Timed) -> None:
    times = (row.latency_ms, row.latency_p10_ms, row.latency_p90_ms)
    if row.latency_p10_ms > row.latency_p90_ms or not all(TIMES[0] <= time <= TIMES[1] for time in times):
        raise ValueError(f"{row.id}: {row.latency_ms} ms")


def excess_of(promised: Sequence[float], right: NDArray[np.bool_]) -> Excess | None:
    """Mean of promised minus verified accuracy with its 95 % interval; None without networks.

    Args:
        promised: (networks,) fractions.
        right: (networks, images) whether the image was classified correctly.
    """
    if not len(promised):
        return None
    share = right.mean(axis=0)  # (images,): of the networks that are right
    mean = float(np.mean(promised) - share.mean())
    # Two images right and two wrong beside those seen (Agresti and Coull 1998): all right is no certainty.
    half = NORMAL_95 * float(np.std([*share, 0.0, 0.0, 1.0, 1.0])) / np.sqrt(len(share) + 4)
    return Excess(len(promised), mean, mean - half, mean + half)


def wilson_interval(right: int, images: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The 95 % interval of a share of ``right`` out of ``images`` (Wilson 1927); holds up near 0 and 1."""
    share = right / images
    centre = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * np.sqrt(share * (1 - share) / images + z * z / (4 * images**2))
    return float(centre - half), float(centre + half)
