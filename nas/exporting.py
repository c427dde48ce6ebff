"""From a point of the front to an ONNX file, with proof that the file computes what the network computes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latency_tables import build_onnx, open_device
from nas.finetuning import deployed_network, is_finetuned
from nas.pareto import Point
from nas.runs import Run
from search_spaces.artifacts import atomic_path, file_hash, made_by, read_json, write_json
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from supernets import Examples, ImageData, Network, export_onnx

__all__ = ["Export", "export_points", "read_export", "test_logits"]

EXPORT_VERSION = 1
TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit
_BATCH = 256


@dataclass(frozen=True)
class Export:
    """An exported network and its proof.

    Attributes:
        file: the ONNX file's name, in the run's ``exports`` folder.
        sha256: of the file.
        images: test images on which ONNX Runtime and torch were compared.
        max_relative_difference: largest difference of any logit over the largest logit.
        top1_agreement: share of the images with the same top-1 class.
        proven: checker passed, difference within 1e-4, agreement complete.
        finetuned: the network was trained on after it was extracted.
    """

    id: str
    file: str
    sha256: str
    resolution: int
    images: int
    max_relative_difference: float
    top1_agreement: float
    proven: bool
    finetuned: bool


def export_points(run: Run, points: Sequence[Point], *, force: bool, progress: Progress) -> list[Export]:
    """Export points of the front that are not exported yet (all of them with ``force``), and those fine-tuned since."""
    done: list[Export] = []
    progress.start("export and prove", len(points))
    try:
        for point in points:
            existing = None if force else _existing(run, point.arch.id)
            if existing is None or existing.finetuned != is_finetuned(run, point.arch):
                existing = _export(run, point, run.data())
            done.append(existing)
            progress.advance()
    finally:
        progress.stop()
    return done


def read_export(run: Run, arch_id: str) -> Export:
    """The record of an export.

    Raises:
        UserError: not exported, or the ONNX file is missing or was changed.
    """
    make = f"nas export {run.path} --pick {arch_id}"
    value = read_json(run.exports / f"{arch_id}.json", "export", EXPORT_VERSION, make=make)
    export = Export(**{name: value[name] for name in Export.__dataclass_fields__})
    path = run.exports / export.file
    if not path.is_file() or file_hash(path) != export.sha256:
        raise UserError(
            f"{path} is missing or was changed since it was exported",
            allowed=f"The file with SHA-256 {export.sha256[:16]}...",
            next_step=f"Export it again with: {make} --force",
        )
    return export


def _existing(run: Run, arch_id: str) -> Export | None:
    if not (run.exports / f"{arch_id}.json").exists():
        return None
    return read_export(run, arch_id)


def _export(run: Run, point: Point, data: ImageData) -> Export:
    arch = point.arch
    network = deployed_network(run, arch, data)
    resolution = int(arch.to_dict().get("resolution", data.size))
    model = onnx_model(network, data.test.batch([0, 1], resolution), _metadata(run, point, data, resolution))
    onnx.checker.check_model(model, full_check=True)
    path = run.exports / f"{arch.id}.onnx"
    with atomic_path(path) as temporary:
        onnx.save_model(model, temporary)
    difference, agreement = _compare(network, path, data.test, resolution)
    export = Export(
        id=arch.id,
        file=path.name,
        sha256=file_hash(path),
        resolution=resolution,
        images=len(data.test),
        max_relative_difference=difference,
        top1_agreement=agreement,
        proven=difference <= TOLERANCE and agreement == 1.0,
        finetuned=is_finetuned(run, arch),
    )
    body = asdict(export) | {"architecture": arch.to_dict(), "promised": point.values}
    write_json(run.exports / f"{arch.id}.json", "export", EXPORT_VERSION, body)
    return export


def onnx_model(network: nn.Module, example: Tensor, metadata: dict[str, str]) -> onnx.ModelProto:
    """A network as ONNX, batch normalisation folded, dynamic batch; the same writer makes the layers that are profiled.

    Networks of our own layers are written from them, any other one through torch's exporters.

    Args:
        example: a few inputs (B, ...); only their shape matters.
    """
    if not isinstance(network, Network):
        return export_onnx(network, example, metadata=metadata)
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return build_onnx(network.layers, weights=weights, eps=network.traits["norm_eps"], metadata=metadata)


def _metadata(run: Run, point: Point, data: ImageData, resolution: int) -> dict[str, str]:
    """What a user of the file needs to know; every value is text (JSON where it has parts)."""
    return {
        "made_by": made_by(),
        "architecture_id": point.arch.id,
        "architecture": json.dumps(point.arch.to_dict()),
        "space": run.space.key,
        "classes": json.dumps(list(data.class_names)),
        "input": json.dumps({"size": resolution, "channels": data.channels, "mean": list(data.mean), "std": list(data.std)}),
        "promised": json.dumps(point.values),
    }


def test_logits(device_name: str, path: Path, split: Examples, resolution: int) -> NDArray[np.float32]:
    """Logits of an ONNX file on all images of a split through a device's runtime, (N, classes)."""
    runner = open_device(device_name).load(path.read_bytes())
    parts = np.array_split(np.arange(len(split)), max(1, len(split) // _BATCH))
    return np.concatenate([runner.infer(split.batch(part, resolution).numpy()) for part in parts])


def _compare(network: nn.Module, path: Path, split: Examples, resolution: int) -> tuple[float, float]:
    """Largest relative difference of the file, read back from disk, to torch, and the share of equal top-1 classes."""
    theirs = test_logits("onnxruntime-cpu", path, split, resolution)
    parts = np.array_split(np.arange(len(split)), max(1, len(split) // _BATCH))
    with torch.inference_mode():
        ours = np.concatenate([network(split.batch(part, resolution)).numpy() for part in parts])
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    return difference, float((ours.argmax(1) == theirs.argmax(1)).mean())


def exports_summary(exports: Sequence[Export]) -> dict[str, Any]:
    """Worst figures over several exports."""
    return {
        "networks": len(exports),
        "proven": sum(export.proven for export in exports),
        "max_relative_difference": max(export.max_relative_difference for export in exports),
        "top1_agreement": min(export.top1_agreement for export in exports),
    }
