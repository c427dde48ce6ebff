"""Comparison: any ONNX file beside the front, copied into the run and measured the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx

from latency_tables import Device
from nas.baselines import BASELINE_VERSION, Baseline, read_baselines
from nas.onnx_files import Signature, check_batch
from nas.runs import Run
from search_spaces.artifacts import atomic_path, file_hash, write_json
from search_spaces.errors import UserError
from supernets import resolution_of

__all__ = ["add_files"]


def add_files(run: Run, files: Sequence[str | Path], device: Device, *, force: bool) -> list[Baseline]:
    """Copy ONNX files into the run's ``baselines``, each under its own name, so that verification measures them.

    Axes that a file leaves open (but the first) are closed: images have the size of the space's largest network. All files
    are tried on the device before the first one is copied.

    Args:
        force: replace another file of the same name.

    Raises:
        UserError: not an ONNX file, one that the device cannot run, or a name that is taken.
    """
    if not files:
        raise UserError("no file to compare", allowed="One or more ONNX files", next_step=f"nas compare {run.path} MODEL.onnx")
    known = {baseline.name: baseline for baseline in read_baselines(run)}
    prepared: list[tuple[Path, onnx.ModelProto, int]] = []
    for path in (Path(given).expanduser() for given in files):
        if not path.is_file():
            raise UserError(f"{path} does not exist", allowed="An ONNX file", next_step="Correct the path")
        _check_name(run, path, known.get(path.stem), force=force)
        if any(path.stem == other.stem for other, _, _ in prepared):
            raise UserError(f"two files named '{path.stem}'", allowed="One file per name", next_step=f"Rename {path}")
        check_batch(path, device.name, device.batch, again="your own exporter")
        side = resolution_of(run.space.largest, run.data())
        model = _closed(path, side, run.data().channels)
        try:
            device.load(model.SerializeToString()).run()
        except Exception as error:  # noqa: BLE001 (a runtime may refuse in any way)
            raise UserError(
                f"{device.name} cannot run {path} ({type(error).__name__}: {str(error).strip()[:300]})",
                allowed="A network whose operators and input the device's runtime has",
                next_step="Export it for another opset, or with float32 input",
            ) from None
        prepared.append((path, model, Signature.of(path).side(side)))
    return [_added(run, path, model, side) for path, model, side in prepared]


def _check_name(run: Run, path: Path, known: Baseline | None, *, force: bool) -> None:
    if (run.exports / f"{path.stem.removesuffix('-int8')}.json").exists():
        raise UserError(
            f"the name '{path.stem}' is the id of a network of {run.path}",
            allowed="A name of its own: ids are equal in all runs of a space",
            next_step=f"Rename {path}",
        )
    if known is None:
        return
    if known.source is None:
        raise UserError(
            f"the name '{path.stem}' belongs to a baseline that was trained here",
            allowed="A name of its own",
            next_step=f"Rename {path}",
        )
    if not force and Path(known.source) != path.resolve():
        raise UserError(
            f"{run.path} has another file named '{path.stem}' already, from {known.source}",
            allowed="One file per name",
            next_step=f"Rename {path}, or replace the other one with --force",
        )


def _closed(path: Path, side: int, channels: int) -> onnx.ModelProto:
    """The model in one piece with every axis of its input but the first known."""
    signature = Signature.of(path)
    model = onnx.load(path)
    if len(signature.shape) == 3:
        sizes = [side, side, channels] if signature.pixels == "nhwc" else [channels, side, side]
        constants = {tensor.name for tensor in model.graph.initializer}
        source = next(value for value in model.graph.input if value.name not in constants)
        for dim, size in zip(source.type.tensor_type.shape.dim[1:], sizes, strict=True):
            if dim.dim_value <= 0:
                dim.dim_value = size
    return model


def _added(run: Run, path: Path, model: onnx.ModelProto, side: int) -> Baseline:
    folder = run.path / "baselines"
    target = folder / f"{path.stem}.onnx"
    with atomic_path(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
    baseline = Baseline(path.stem, f"{folder.name}/{target.name}", side, source=str(path.resolve()))
    write_json(
        folder / f"{path.stem}.json", "baseline", BASELINE_VERSION, {**asdict(baseline), "source_sha256": file_hash(path)}
    )
    return baseline
