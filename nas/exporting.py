"""From a point of the front to an ONNX file, with proof that the file computes what the network computes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from latency_tables import build_onnx
from latency_tables.torch_devices import torch_threads
from nas.finetuning import deployed_network, is_finetuned, weights_of
from nas.onnx_files import Format, wrapped
from nas.pareto import Point
from nas.plain_networks import save_network, save_program
from nas.proving import Proof, RuntimeProof, prove
from nas.runs import Run
from search_spaces import Architecture
from search_spaces.artifacts import atomic_path, file_hash, made_by, read_json, write_json
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from search_spaces.records import member, reading, record
from supernets import ImageData, Network, Split, export_onnx, resolution_of

__all__ = ["Export", "export_points", "read_export", "write_onnx"]

EXPORT_VERSION = 2  # version 1 had one format only, and proofs in one runtime


@dataclass(frozen=True)
class Export:
    """An exported network and its proof.

    Attributes:
        file: the ONNX file's name, in the run's ``exports`` folder.
        sha256: of the file.
        images: test images on which ONNX Runtime and torch were compared.
        max_relative_difference: largest difference of any output over the largest output; None where it did not run.
        top1_agreement: share of the images with the same top-1 class.
        proven: checker passed, ONNX Runtime within 1e-4 and in full agreement, no installed runtime computes something else.
        finetuned: the network was trained on after it was extracted.
        format: how it was written.
        runtimes: the comparison in each installed runtime.
        problems: what the proof found; empty where it is proven.
        torch_file: the plain PyTorch file beside it, see `nas.load_network`; None for a record of an older version.
        program: the ``.pt2`` file, where one was asked for.
        weights: identifies what the network was made of, see `weights_of`; None for a record of an older version.
    """

    id: str
    file: str
    sha256: str
    resolution: int
    images: int
    max_relative_difference: float | None
    top1_agreement: float | None
    proven: bool
    finetuned: bool
    format: Format = field(default_factory=Format)
    runtimes: tuple[RuntimeProof, ...] = ()
    problems: tuple[str, ...] = ()
    torch_file: str | None = None
    program: str | None = None
    weights: str | None = None

    @property
    def options(self) -> str:
        """What `nas export` needs to make it as it is, beginning with a space."""
        return self.format.options + (" --pt2" if self.program else "")


def export_points(
    run: Run,
    points: Sequence[Point],
    *,
    device: str | None,
    form: Format,
    program: bool = False,
    force: bool,
    progress: Progress,
) -> list[Export]:
    """Export points of the front that are not exported yet (all of them with ``force``), and those with other weights since.

    Args:
        device: that the points were promised for, if any; written into the files.
        program: write what `torch.export` makes of each network, too.

    Raises:
        UserError: one is exported already in another format.
    """
    found = {} if force else {point.arch.id: _existing(run, point.arch, form) for point in points}
    done = {name: export for name, export in found.items() if export and (export.program or not program)}
    missing = [point for point in points if point.arch.id not in done]
    data = run.data()
    progress.start("export and prove", len(missing))
    try:
        # The next network is recalibrated while this one is proven: neither keeps two cores busy all the time. One core is left
        # to ONNX Runtime.
        with torch_threads(max(1, torch.get_num_threads() - 1)), ThreadPoolExecutor(1) as beside:
            networks = [beside.submit(deployed_network, run, point.arch, data) for point in missing[:1]]
            for index, point in enumerate(missing):
                networks += [beside.submit(deployed_network, run, other.arch, data) for other in missing[index + 1 : index + 2]]
                network = networks.pop(0).result()
                done[point.arch.id] = _export(run, point, network, data, form, device=device, program=program)
                progress.advance()
    finally:
        progress.stop()
    return [done[point.arch.id] for point in points]


def read_export(run: Run, arch_id: str) -> Export:
    """The record of an export.

    Raises:
        UserError: not exported, or the ONNX file is missing or was changed.
    """
    export = _read(run, arch_id)
    _check_file(run, export)
    return export


def _read(run: Run, arch_id: str) -> Export:
    make = f"nas export {run.path} --arch {arch_id}"
    value = read_json(run.exports / f"{arch_id}.json", "export", EXPORT_VERSION, make=make)
    with reading(
        run.exports / f"{arch_id}.json", allowed="The record as nas export writes it", next_step=f"Run: {make} --force"
    ):
        export = record(Export, value)
        for file in filter(None, (export.file, export.torch_file, export.program)):
            member(run.exports, file)
    return export


def _check_file(run: Run, export: Export) -> None:
    path = run.exports / export.file
    if not path.is_file() or file_hash(path) != export.sha256:
        raise UserError(
            f"{path} is missing or was changed since it was exported",
            allowed=f"The file with SHA-256 {export.sha256[:16]}...",
            next_step=f"Export it again with: nas export {run.path} --arch {export.id}{export.options} --force",
        )


def _existing(run: Run, arch: Architecture, form: Format) -> Export | None:
    """The record of an export that is still that of the network as it is now, with all its files."""
    if not (run.exports / f"{arch.id}.json").exists():
        return None
    export = _read(run, arch.id)
    if export.format != form:
        raise UserError(
            f"{run.exports / export.file} is exported already, as {_words(export.format)}",
            allowed=f"One file per network; asked for is {_words(form)}",
            next_step=f"Replace it with: nas export {run.path} --arch {arch.id}{form.options} --force",
        )
    if export.finetuned != is_finetuned(run, arch) or export.weights not in (None, weights_of(run, arch)):
        return None  # whatever its file is: an export that was killed may have replaced it
    _check_file(run, export)
    files = [run.exports / name for name in (export.torch_file, export.program) if name is not None]
    return export if all(file.is_file() for file in files) else None


def _words(form: Format) -> str:
    return ", ".join(f"{name} {value}" for name, value in form.to_dict().items() if value is not None)


def _export(
    run: Run, point: Point, network: nn.Module, data: ImageData, form: Format, *, device: str | None, program: bool
) -> Export:
    arch = point.arch
    resolution = resolution_of(arch, data)
    example, about = data.test.batch([0, 1], resolution), _about(run, point, data, resolution, device)
    model = wrapped(onnx_model(network, example, _as_text(about, form), form=form), form, data)
    # A file that is not proven keeps the name that says so, and never replaces one that is.
    path = run.exports / f"{arch.id}.unproven.onnx"
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    proof = prove(path, network, data.test, resolution, form)
    if not proof.problems:
        path = path.replace(run.exports / f"{arch.id}.onnx")
    torch_file, program_file = (run.exports / f"{arch.id}{suffix}" for suffix in (".safetensors", ".pt2"))
    save_network(torch_file, network, about)
    program = program or program_file.exists()  # one that stayed as it was would be of other weights
    if program:
        save_program(program_file, network, example, batch=form.batch)
    export = replace(
        _record(arch.id, path, resolution, proof, form, finetuned=about["finetuned"]),
        torch_file=torch_file.name,
        program=program_file.name if program else None,
        weights=about["weights"],
    )
    body = asdict(export) | {"architecture": arch.to_dict(), "promised": about["promised"]}
    write_json(run.exports / f"{arch.id}.json", "export", EXPORT_VERSION, body)
    return export


def _record(arch_id: str, path: Path, resolution: int, proof: Proof, form: Format, *, finetuned: bool) -> Export:
    first = proof.first
    return Export(
        id=arch_id,
        file=path.name,
        sha256=file_hash(path),
        resolution=resolution,
        images=first.images,
        max_relative_difference=first.max_relative_difference,
        top1_agreement=first.top1_agreement,
        proven=not proof.problems,
        finetuned=finetuned,
        format=form,
        runtimes=proof.runtimes,
        problems=proof.problems,
    )


def onnx_model(
    network: nn.Module, example: Tensor, metadata: Mapping[str, str], *, form: Format | None = None
) -> onnx.ModelProto:
    """A network as ONNX, batch normalisation folded; the same writer makes the layers that are profiled.

    Networks of our own layers are written from them, any other one through torch's exporters.

    Args:
        example: a few inputs (B, ...); only their shape matters.
        form: opset and batch; default: the format's own defaults.
    """
    form = form or Format()
    if not isinstance(network, Network):
        inputs = example if form.batch is None else example[:1].repeat(form.batch, *[1] * (example.ndim - 1))
        model = export_onnx(network, inputs, metadata=metadata, open_batch=form.batch is None, opset=form.opset)
        model.ir_version = form.ir
        return model
    return build_onnx(
        network.layers,
        weights={name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()},
        eps=network.traits["norm_eps"],
        metadata=metadata,
        batch=form.batch,
        opset=form.opset,
        ir_version=form.ir,
    )


def write_onnx(
    network: nn.Module,
    path: str | Path,
    *,
    example: Tensor | None = None,
    opset: int = 17,
    ir_version: int | None = None,
    batch: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write any network as one ONNX file, without a run and without proof: a subnet, or what `nas.load_network` gave.

    Args:
        path: replaced where it exists.
        example: inputs (B, ...), B two or more; networks made of layers know their own.
        opset, ir_version, batch: as for `nas.export`.
        metadata: text stored in the file.

    Raises:
        UserError: an option that ONNX does not have, or a network that cannot be written.
    """
    if example is None:
        if not isinstance(network, Network):
            raise UserError(
                f"the input of {type(network).__name__} is not known",
                allowed="Networks made of layers know it; any other one needs an example",
                next_step="Give example=torch.randn(2, ...)",
            )
        example = torch.zeros(2, *network.layers[0].in_shape)
    model = onnx_model(network, example, metadata or {}, form=Format(opset, ir_version, batch))
    target = Path(path)
    with atomic_path(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return target


def _about(run: Run, point: Point, data: ImageData, resolution: int, device: str | None) -> dict[str, Any]:
    """What a user of the file needs to know; promises are those of the front of today, for its first device."""
    return {
        "made_by": made_by(),
        "architecture_id": point.arch.id,
        "architecture": point.arch.to_dict(),
        "space": run.space.key,
        "weights": weights_of(run, point.arch),
        "finetuned": is_finetuned(run, point.arch),
        "data": data.hash,
        "classes": list(data.class_names),
        "input": {
            "size": resolution,
            "channels": data.channels,
            "mean": list(data.mean),
            "std": list(data.std),
            **({"preparation": data.test.pixels.preparation} if isinstance(data.test, Split) else {}),
        },
        "promised": {"device": device, **point.values} if point.values else {},
    }


def _as_text(about: Mapping[str, Any], form: Format) -> dict[str, str]:
    """ONNX metadata is text: JSON where a value has parts."""
    given = {**about, "format": form.to_dict()}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}


def exports_summary(exports: Sequence[Export]) -> dict[str, Any]:
    """Worst figures over several exports."""
    differences = [export.max_relative_difference for export in exports if export.max_relative_difference is not None]
    agreements = [export.top1_agreement for export in exports if export.top1_agreement is not None]
    return {
        "networks": len(exports),
        "proven": sum(export.proven for export in exports),
        "max_relative_difference": max(differences, default=None),
        "top1_agreement": min(agreements, default=None),
        "runtimes": sorted({runtime.runtime for export in exports for runtime in export.runtimes}),
    }
