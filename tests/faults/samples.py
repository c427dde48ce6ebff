"""A small sample of every file that the toolkit reads, made in seconds: nothing is trained and nothing is timed."""

from __future__ import annotations

import gzip
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import nas
import search_spaces
from latency_tables import Amount, Plan
from latency_tables.by_hand import make_kit
from latency_tables.table import Anchor
from nas.archive import QUEUEING, Archive, Score
from nas.baselines import BASELINE_VERSION, Baseline
from nas.fidelity import RANK_CHECK_VERSION
from nas.recipes import load_recipe
from nas.runs import SUPERNET_VERSION, Run
from nas.verification import Excess, Timed, Verification, Verified
from search_spaces import Choice, SearchSpace
from search_spaces.artifacts import write_json
from supernets import Supernet, load_data, save_tensors, train
from tests.nas.tiny import table

__all__ = ["CELLS", "SPACE", "make_samples", "priced"]

SPACE = search_spaces.build("small-mobilenet", width=0.25, resolution=[16], channels=1, classes=4).restrict(
    kernel=[3, 5], depth=[1], expand=[2, 4]
)
CELLS = SearchSpace(
    {
        "depth": Choice((1, 2), 2, (None, ("width", (8,)))),
        "width": [4, 8],
        "mode": ["a", "b"],
        "share": [0.5, 1.0],
    },
    name="cells",
    parameters={"size": 3},
)
DEVICE = "onnxruntime-cpu"
CSV_ROWS = 12


def make_samples(folder: Path) -> Path:
    """Write the samples into a new folder: ``run/`` with everything that a run has, and files beside it."""
    run = _run(folder / "run")
    _searched(run)
    _shipped(run)
    _beside(folder, run)
    _data(folder)
    return folder


def _run(folder: Path) -> Run:
    data = load_data("fake:28x1x4", seed=0)
    recipe = load_recipe("quick", epochs=0.5)
    described = {"source": data.source, "seed": data.seed, **data.identity()}
    run = Run.create(folder, {"space": SPACE.to_dict(), "data": described, "recipe": recipe.to_dict(), "seed": 0})
    supernet = Supernet(SPACE, seed=0)
    trained = train(supernet, data, recipe, checkpoint=run.checkpoint, log=run.file("training/log.csv"), seed=0)
    log = {"phases": trained.log, "seconds": trained.seconds, "images": trained.images, "data": data.to_dict()}
    write_json(run.file("training/log.json"), "training-log", 1, log)
    save_tensors(run.weights, supernet.state_dict(), "supernet", SUPERNET_VERSION, {"space": SPACE.to_dict()})
    made = table(SPACE, DEVICE, 1e-4)
    replace(made, anchor=Anchor(1.1, 0.02, 3), level_at=1.7e9).save(run.table(DEVICE))
    return run


def _searched(run: Run) -> None:
    archive = Archive(run.study, run.space, weights=run.weights_hash())
    archs = run.space.sample(24, seed=1)
    for number, arch in enumerate({arch.id: arch for arch in archs}.values()):
        archive.add(Score(arch, 0.5 + 0.4 * run.space.macs(arch) / run.space.macs(run.space.largest) * 0.9, 50, number > 10))
    archive.enqueue(run.space.sample(3, seed=9), images=50, proposed=True)
    # The table is used as it lies there: its device's name says what it is, nothing is measured.
    run.table("desk").write_text(run.table(DEVICE).read_text().replace(f'"device": "{DEVICE}"', '"device": "desk"'))
    front = nas.search(run, device="desk", samples=20, points=3, generations=5, predictor="ridge")
    front = replace(front, provenance={**front.provenance, "device": DEVICE}, parts={"desk": replace(front, records={})})
    front.save(run.file("front.json"))
    begun = {"networks": [arch.to_dict() for arch in archs[:2]], "images": 50, "proposed": True}
    archive._study.set_user_attr(QUEUEING, begun)


def _shipped(run: Run) -> None:
    (export, *_) = nas.export(run, pick="knee")
    point = nas.ParetoFront.load(run.file("front.json")).pick("knee")
    nas.quantize(run, pick="knee", images=8)
    row = Verified(export.id, dict(point.values), 0.75, 0.7, 0.8, 100, 0.5, 0.4, 0.6, network=export.id)
    alone = Verified("largest-alone", {}, 0.9, 0.85, 0.95, 100, 0.7, 0.6, 0.8)
    timed = [Timed("other", 0.3, 0.2, 0.4, "it gives no class scores")]
    found = Verification(DEVICE, "wall", [row], [alone], [], timed, Excess(1, 0.1, 0.05, 0.15))
    found.save(run.file("verified.json"))
    onnx = run.exports / export.file
    folder = run.path / "baselines"
    folder.mkdir()
    (folder / "largest-alone.onnx").write_bytes(onnx.read_bytes())
    baseline = Baseline("largest-alone", "baselines/largest-alone.onnx", 16, 1000, 3.5)
    write_json(folder / "largest-alone.json", "baseline", BASELINE_VERSION, vars(baseline))
    pair = {"id": point.arch.id, "macs": 1000, "shared": 0.5, "alone": 0.6, "epochs": 1.0, "images": 50}
    write_json(run.path / "rank_check" / f"{point.arch.id}.json", "rank-pair", RANK_CHECK_VERSION, pair)


def priced(archs: list[nas.Architecture]) -> dict[str, list[float]]:
    return {"cost": [float(arch["width"] * arch["share"]) for arch in archs]}


def _beside(folder: Path, run: Run) -> None:
    predictor = nas.predictor("ridge", SPACE, shares=True)
    archs = SPACE.sample(16, seed=2)
    predictor.fit(archs, np.linspace(0.3, 0.9, 16)).save(folder / "predictor.json")
    (folder / "space.json").write_text(json.dumps(CELLS.to_dict(), indent=1))
    nas.optimize(CELLS, priced, objectives={"cost": "min"}, budget=6, batch=3, archive=folder / "evaluations.json")
    make_kit(SPACE.restrict(kernel=[3]), folder / "kit", amount=Amount(4, 3), plan=Plan(rounds=3, least=3, warmup=1))
    _results(folder / "kit")
    weights = run.supernet().extract(SPACE.largest).state_dict()
    torch.save({"state_dict": weights}, folder / "pretrained.pt")
    (folder / "choices.toml").write_text(
        'width = [8, 16, 24]\nnames = ["a", "b"]\n\n[kernel]\noptions = [3, 5]\nlength = 4\n\n'
        '[fixed]\nclasses = 10\nact = "relu"\n\n[rules]\n"*.in_proj_*" = {fused = 3}\n'
    )
    (folder / "recipe.toml").write_text(
        'name = "mine"\nepochs = 2.5\nbatch = 32\ndistill = 0.5\nema = 0.99\noptimiser = "adamw"\n\n'
        "[phases.full]\nweight = 1.0\nlr = 0.05\n\n[phases.other]\nlr = 0.01\nsubnets = 2\nstepwise = true\n"
    )
    made = nas.LatencyTable.load(run.table(DEVICE))
    rows = [(layer.key, made.layer_ms(layer)) for layer in SPACE.layers()]
    (folder / "table.csv").write_text("layer,ms\n" + "".join(f'"{key}",{ms!r}\n' for key, ms in rows))
    (folder / "lookup.yaml").write_text(
        "".join(
            f"expanded_conv-input:{n}x{n}x8-se:1-hs:1:\n  count: 10\n  mean: 0.{n}\n  std: 0.01\n" for n in range(1, CSV_ROWS)
        )
    )


def _results(folder: Path) -> None:
    """What the kit's script would have written, with made-up times."""
    kit = json.loads((folder / "kit.json").read_text())
    fingerprint = {"processor": "board", "runtime": "onnxruntime", "threads": 1, "batch": 1, "precision": "fp32"}
    names = [name for chunk in kit["chunks"] for name in chunk]
    items = {name: {"wall_ns": [1000 + 10 * at] * 3, "cpu_ns": [900 + 10 * at] * 3, "runs": 4} for at, name in enumerate(names)}
    value = {"kind": "latency-kit-results", "version": 1, "kit": kit["id"], "fingerprint": fingerprint, "items": items}
    (folder / "results.json").write_text(json.dumps(value))


def _data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 8, 8), np.uint8)
    labels = np.arange(20) % 2
    np.savez(folder / "arrays.npz", x=pixels[:, None].astype(np.float32), y=labels)
    for at, suffix in enumerate(("png", "jpg", "bmp", "gif", "webp", "png", "jpg", "tiff")):
        path = folder / "photos" / ("cat", "dog")[at % 2] / f"{at}.{'png' if suffix == 'gif' else suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([pixels[at]] * 3, axis=-1)).save(path)
    mnist = folder / "mnist"
    mnist.mkdir()
    for prefix, count in (("train", 40), ("t10k", 10)):
        images, digits = rng.integers(0, 255, (count, 8, 8), np.uint8), np.arange(count, dtype=np.uint8) % 10
        head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 8, 8))
        _zip(mnist / f"{prefix}-images-idx3-ubyte.gz", head + images.tobytes())
        _zip(mnist / f"{prefix}-labels-idx1-ubyte.gz", bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + digits.tobytes())
    cifar = folder / "cifar"
    cifar.mkdir()
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 255, (10, 3073), np.uint8)
        records[:, 0] = np.arange(10)
        (cifar / name).write_bytes(records.tobytes())
    (cifar / "batches.meta.txt").write_text("\n".join(f"class{n}" for n in range(10)))
    _parquet(folder, pixels, labels)


def _zip(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, mtime=0))


def _parquet(folder: Path, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:  # an optional part
        return
    encoded = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": "x.png"})
    (folder / "tables").mkdir()
    rows = pyarrow.table({"image": encoded, "label": labels})
    parquet.write_table(rows, folder / "tables" / "photos_train.parquet")


if __name__ == "__main__":  # the samples that tests/formats keeps of a version
    make_samples(Path(sys.argv[1]))
