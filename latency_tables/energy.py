"""Energy: counters of this machine, where it has any that may be read, and what networks will spend by them.

RAPL counts the processor's package, NVML an NVIDIA GPU; both with what they spend when idle.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.correction import rank_correlation
from search_spaces.costs import Cost, Factor
from search_spaces.records import record

__all__ = ["Energy", "EnergyModel", "Meter", "count_energy", "energy_meter", "fit_energy"]

RAPL = Path("/sys/class/powercap")
COUNTED_S = 1.0  # of runs between two readings of a counter, which moves about once a millisecond
MOST_RUNS = 100_000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Energy:
    """Joules of one run, and what counted them."""

    joules: float
    counter: str


@dataclass(frozen=True)
class Meter:
    """A counter of joules.

    Attributes:
        name: what it counts.
        read: its present value, J.
        range_j: where it starts again at 0; None where it does not.
    """

    name: str
    read: Callable[[], float]
    range_j: float | None = None

    def since(self, before: float) -> float:
        """Joules since an earlier reading."""
        spent = self.read() - before
        return spent + self.range_j if spent < 0 and self.range_j is not None else spent


def energy_meter(*, gpu: bool = False, root: Path = RAPL) -> Meter | None:
    """The counter of the processor's package, or of the first GPU; None where there is none or it may not be read."""
    return _nvml() if gpu else _rapl(root)


def _rapl(root: Path) -> Meter | None:
    for zone in sorted(root.glob("intel-rapl:[0-9]")):
        try:
            int((zone / "energy_uj").read_text())  # newer systems let only root read it
            largest = int((zone / "max_energy_range_uj").read_text())
            name = (zone / "name").read_text().strip()
        except (OSError, ValueError):
            continue
        return Meter(f"RAPL {name}", lambda counter=zone / "energy_uj": int(counter.read_text()) * 1e-6, largest * 1e-6)  # type: ignore[misc]
    return None


def _nvml() -> Meter | None:
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid) if (uuid := _first_gpu()) else pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return Meter("NVML GPU", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3)


def _first_gpu() -> str | None:
    """The identity of CUDA's first GPU: environments hide and reorder GPUs for CUDA, the counter numbers all of the machine."""
    import torch  # seconds; only where a GPU is used

    return f"GPU-{torch.cuda.get_device_properties(0).uuid}" if torch.cuda.is_available() else None


def count_energy(run: Callable[[], None], run_ms: float, meter: Meter, *, wait: Callable[[], None] = lambda: None) -> Energy:
    """The energy of one run, from a second of them after one that is not counted.

    Args:
        wait: returns when all runs have ended, for those that return before.
    """
    runs = int(np.clip(COUNTED_S * 1e3 / run_ms, 1, MOST_RUNS))
    run()
    wait()
    before = meter.read()
    for _ in range(runs):
        run()
    wait()
    return Energy(meter.since(before) / runs, meter.name)


@dataclass(frozen=True)
class EnergyModel:
    """The energy of a run, J: ``watts`` times its time, ``joules_per_mac`` times its multiply-accumulates, and ``joules``.

    Attributes:
        counter: what counted the energy of the networks that it was fitted to.
        fitted_on: so many of them.
        networks: that it has not seen; ``error`` is the median of its relative errors there, ``spearman`` its rank
            correlation (None where it cannot be told), ``noise`` the median by which counting twice differs.
    """

    counter: str
    watts: float
    joules_per_mac: float
    joules: float
    fitted_on: int
    networks: int
    error: float
    spearman: float | None
    noise: float

    def __call__(self, ms: Array, macs: Array) -> Array:
        """J of runs that take so many ms and MACs, (N,)."""
        return self.watts * 1e-3 * ms + self.joules_per_mac * macs + self.joules

    def cost(self, ms: Cost, macs: Cost) -> Cost:
        """J as an additive cost, from the costs of one run."""
        parts = ((self.watts * 1e-3, ms), (self.joules_per_mac, macs))
        scaled = [Factor(factor.genes, scale * factor.table) for scale, cost in parts for factor in cost.factors]
        return Cost([*scaled, Factor((), np.array(self.joules))])

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EnergyModel:
        """From JSON values.

        Raises:
            ValueError: a term that is negative or not finite, or terms that give no energy.
        """
        found = record(cls, value)
        terms = np.array([found.watts, found.joules_per_mac, found.joules])
        if not np.isfinite(terms).all() or (terms < 0).any() or not terms.any() or not 0 <= found.error < np.inf:
            raise ValueError(f"energy of {terms.tolist()} W, J per MAC and J, error {found.error}")
        return found


def fit_energy(ms: Array, macs: Array, counted: Array, held_out: NDArray[np.bool_], counter: str) -> EnergyModel | None:
    """The model with the least relative squares on the networks that are not held out; no term is negative.

    Args:
        ms, macs: (N,) estimated time and multiply-accumulates of a run.
        counted: (N, 2) J, twice each.
        held_out: (N,) networks that judge the model; None where they are fewer than two, or fewer than three others.
    """
    fit, joules = ~held_out, counted.mean(axis=1)
    if fit.sum() < 3 or held_out.sum() < 2:
        return None
    from scipy.optimize import nnls  # half a second; only where a table is made

    terms = np.column_stack([1e-3 * ms, macs, np.ones(len(ms))])
    scale = terms.max(axis=0)
    found = nnls((terms / scale / joules[:, None])[fit], np.ones(int(fit.sum())))[0] / scale
    guess, truth = (terms @ found)[held_out], joules[held_out]
    first, second = counted[held_out].T
    watts, per_mac, constant = (float(term) for term in found)
    return EnergyModel(
        counter,
        watts,
        per_mac,
        constant,
        fitted_on=int(fit.sum()),
        networks=int(held_out.sum()),
        error=float(np.median(np.abs(guess / truth - 1))),
        spearman=rank_correlation(guess, truth),
        noise=float(np.median(np.abs(second / first - 1))),
    )
