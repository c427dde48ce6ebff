"""A run that is ready to be searched without any training or profiling: random weights, made-up tables of two devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import search_spaces
from latency_tables import LatencyTable, Measurement
from latency_tables.correction import Correction, Errors, Quality
from latency_tables.entries import Entry
from nas.recipes import load_recipe
from nas.runs import SUPERNET_VERSION, Run
from search_spaces import SearchSpace
from supernets import Supernet, load_data, save_tensors

DEVICES = ("desk", "phone")  # not devices of any machine: their tables are used as they lie in the run


def tiny_run(folder: Path, **options: Sequence[int]) -> Run:
    """Of a part of the small-image space; default: all of it at 16 px."""
    whole = search_spaces.build("small-mobilenet", width=0.25, image=28, channels=1)
    space = whole.restrict(**options or {"resolution": [16]})
    data = load_data("fake:28x1x4", seed=0)
    described = {"source": data.source, "name": data.name, "seed": data.seed, "hash": data.hash}
    recipe = load_recipe("quick", epochs=1.0).to_dict()
    settings = {"space": space.to_dict(), "data": described, "recipe": recipe, "seed": 0}
    run = Run.create(folder, settings, space=space)
    save_tensors(run.weights, Supernet(space, seed=0).state_dict(), "supernet", SUPERNET_VERSION, {"space": space.to_dict()})
    for device, per_kernel in zip(DEVICES, (0.0, 3e-4), strict=True):
        table(space, device, per_kernel).save(run.table(device))
    return run


def table(space: SearchSpace, device: str, per_kernel: float) -> LatencyTable:
    """Layers cost by their MACs, and on the second device also by their kernels."""

    def measured(value: float) -> Measurement:
        return Measurement(value, value, value, value, 5, 1)

    def errors(median: float) -> Errors:
        return Errors(median, median, 0.0, 0.8, 0.9, 0.99)

    entries = {}
    for layer in space.layers():
        kernel = getattr(layer, "kernel", 1)
        entries[layer.key] = Entry(measured(0.006 + 1e-7 * layer.macs + per_kernel * kernel**2))
    quality = Quality(10, 8, errors(0.01), errors(0.05), errors(0.19), errors(0.008))
    made = LatencyTable(device, {"batch": 1}, {"clock": "wall"}, space, measured(0.005), entries)
    return replace(made, correction=Correction("scale", 0.005, 1.0, 0.0), quality=quality)
