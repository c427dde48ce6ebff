"""Energy counters of this machine, where it has any that may be read: RAPL of the processor, NVML of an NVIDIA GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "energy_meter"]

RAPL = Path("/sys/class/powercap")


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
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return Meter("NVML GPU 0", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3)
