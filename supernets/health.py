"""How a training run is doing: validated networks, a log of it, and when to say that it has failed."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.artifacts import atomic_path
from search_spaces.errors import UserError
from search_spaces.progress import duration
from supernets.calibration import calibrated, evaluate, resolution_of
from supernets.data import ImageData
from supernets.phases import Phase
from supernets.supernet import Supernet

__all__ = ["Diverged", "TrainingLog", "collapsed", "validate"]

VALIDATION_IMAGES = 2000
_RANDOM = 2  # random networks validated beside the smallest and the largest
_DRAW = 5  # the purpose of these draws; others are in `supernets.steps`
COLUMNS = (
    "step", "epoch", "phase", "lr", "loss", "images_per_s", "seconds",
    "largest", "smallest", *(f"random_{n + 1}" for n in range(_RANDOM)), "event",
)  # fmt: skip


class Diverged(Exception):
    """Training has failed: a loss that is not finite, or a network that has forgotten what it knew."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"training diverged at step {step}: {reason}")


def validate(supernet: Supernet, phase: Phase, data: ImageData, *, seed: int, randoms: bool = True) -> dict[str, float]:
    """Validation accuracy (a fraction) of the phase's largest and smallest network, and of two random ones.

    Extracted and recalibrated, on up to 2,000 validation images; the random ones are the same throughout a phase.
    """
    archs = {"largest": phase.space.largest, "smallest": phase.space.smallest}
    if randoms:
        drawn = phase.space.sample(_RANDOM, np.random.default_rng([seed, _DRAW]))
        archs |= {f"random_{n + 1}": arch for n, arch in enumerate(drawn)}
    known: dict[str, float] = {}
    for arch in dict.fromkeys(archs.values()):
        network = calibrated(supernet, arch, data, seed=seed)
        known[arch.id], _ = evaluate(network, data.val, resolution_of(arch, data), most=VALIDATION_IMAGES)
    return {name: known[arch.id] for name, arch in archs.items()}


def collapsed(now: float, best: float, classes: int) -> bool:
    """Whether the largest network lost nine tenths of what it knew beyond chance.

    Only where it once knew something: 20 points above chance. Swings at the beginning are not meant.
    """
    chance = 1 / classes
    return best - chance > 0.2 and now - chance < (best - chance) / 10


class TrainingLog:
    """A CSV file with one row per some steps, per validation and per end of a phase; TensorBoard scalars beside it.

    Args:
        path: of the CSV file; None writes none.
        scalars: folder for TensorBoard; None writes none.

    Raises:
        UserError: ``scalars`` without TensorBoard.
    """

    def __init__(self, path: Path | None, scalars: Path | None = None) -> None:
        self.path, self._scalars = path, scalars
        self._writer: Any = None
        self._since, self._images, self.seconds = time.monotonic(), 0, 0.0
        if scalars is not None:
            self._writer_class = _summary_writer()

    def begin(self, step: int) -> None:
        """Go on from a step: rows of later steps belong to work that was lost and is done again."""
        if self._scalars is not None:
            self._writer = self._writer_class(str(self._scalars), purge_step=step)
        self._since = time.monotonic()
        if self.path is None:
            return
        rows = self._rows()
        turned = max((n for n, row in enumerate(rows) if row["event"]), default=-1)  # rows before a turn back stay
        kept = rows[: turned + 1] + [row for row in rows[turned + 1 :] if int(row["step"]) <= step]
        self.seconds = float(kept[-1]["seconds"]) if kept else 0.0
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
        with atomic_path(self.path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    def _rows(self) -> list[dict[str, str]]:
        if self.path is None or not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as stream:
            return [row for row in csv.DictReader(stream) if _is_whole(row)]

    def seen(self, images: int) -> None:
        """Count training images of the step that was just made."""
        self._images += images

    def write(self, step: int, *, epoch: float, phase: str, **values: float | str) -> dict[str, Any]:
        """One row; returns it. The speed is of the images since the last row."""
        passed = time.monotonic() - self._since
        self.seconds += passed
        row: dict[str, Any] = {"step": step, "epoch": round(epoch, 4), "phase": phase, "seconds": round(self.seconds, 2)}
        if self._images and passed > 0:
            row["images_per_s"] = round(self._images / passed, 1)
        row |= {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
        if self.path is not None:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, COLUMNS).writerow(row)
        if self._writer is not None:
            for name in (*_SCALARS, *values):
                if isinstance(row.get(name), int | float):
                    self._writer.add_scalar(name, row[name], step)
        self._since, self._images = time.monotonic(), 0
        return row

    def close(self) -> None:
        """Write out what TensorBoard holds back."""
        if self._writer is not None:
            self._writer.close()


def _is_whole(row: dict[str, str]) -> bool:
    """Whether a row is one that was written here: a crash may leave half of one."""
    try:
        return row.keys() == set(COLUMNS) and None not in row.values() and int(row["step"]) >= 0 <= float(row["seconds"])
    except ValueError:
        return False


_SCALARS: Sequence[str] = ("images_per_s",)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "TensorBoard is not installed",
            allowed="Its scalars are an extra; training writes a CSV log in any case",
            next_step="Install it with: pip install 'hwnas[tensorboard]'",
        ) from None
    return SummaryWriter


def status_line(row: Mapping[str, Any], *, epochs: float, left_s: float) -> str:
    """A validation in words."""
    accuracies = ", ".join(f"{name.replace('_', ' ')} {row[name]:.1%}" for name in COLUMNS[7:-1] if name in row)
    speed = f"   {row['images_per_s']:.0f} images/s" if "images_per_s" in row else ""
    return (
        f"epoch {row['epoch']:.1f} of {epochs:g}   loss {row['loss']:.3f}   {accuracies}{speed}, about {duration(left_s)} left"
    )
