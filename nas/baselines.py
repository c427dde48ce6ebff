"""Baselines: networks that were not found by search, shown and measured beside the front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from nas.exporting import onnx_model
from nas.finetuning import only
from nas.recipes import load_recipe
from nas.runs import Run
from search_spaces.artifacts import atomic_path, locked, read_json, write_json
from search_spaces.progress import Progress
from search_spaces.records import member, reading, record
from supernets import calibrated, resolution_of, train

__all__ = ["BASELINE_VERSION", "Baseline", "read_baselines", "train_largest_alone"]

BASELINE_VERSION = 2  # version 1 had none that came from elsewhere


@dataclass(frozen=True)
class Baseline:
    """A network that the search did not find.

    Attributes:
        file: its ONNX file, relative to the run folder.
        images: training images seen (times augmented); None where it was not trained here.
        seconds: that its training took, in one go; None likewise.
        source: the file that it is a copy of; None for one trained here.
    """

    name: str
    file: str
    resolution: int
    images: int | None = None
    seconds: float | None = None
    source: str | None = None


def train_largest_alone(run: Run, *, epochs: float, progress: Progress, stop: Callable[[], bool] = lambda: False) -> Baseline:
    """Train the space's largest network alone on the run's data for ``epochs``, and export it; resumes, and is done once."""
    name = "largest-alone"
    folder = run.path / "baselines"
    record = folder / f"{name}.json"
    if record.exists():
        return _read(record)
    data = run.data()
    largest = run.space.largest
    alone = only(run, largest)
    recipe = load_recipe("single", epochs=epochs)
    checkpoint = folder / f"{name}.safetensors"
    with locked(checkpoint, doing="training"):
        trained = train(
            alone, data, recipe, checkpoint=checkpoint, seed=run.settings["seed"], progress=progress, stop=stop, label="alone"
        )
    resolution = resolution_of(largest, data)
    network = calibrated(alone, largest, data, seed=run.settings["seed"]).cpu()
    model = onnx_model(network, data.test.batch([0, 1], resolution), {"space": run.space.key})
    path = folder / f"{name}.onnx"
    with atomic_path(path) as temporary:
        onnx.save_model(model, temporary)
    baseline = Baseline(name, str(Path("baselines") / path.name), resolution, trained.images, trained.seconds)
    write_json(record, "baseline", BASELINE_VERSION, asdict(baseline))
    return baseline


def read_baselines(run: Run) -> list[Baseline]:
    """The baselines of a run, by name."""
    return [_read(path) for path in sorted((run.path / "baselines").glob("*.json"))]


def _read(path: Path) -> Baseline:
    make = f"nas demo --out {path.parent.parent}"
    value = read_json(path, "baseline", BASELINE_VERSION, make=make)
    with reading(path, allowed="The record as nas demo or nas compare writes it", next_step=f"Remove it and run: {make}"):
        baseline = record(Baseline, value)
        member(path.parent.parent, baseline.file)
    return baseline
