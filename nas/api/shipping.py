"""The verbs from the front to the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nas.api.defaults import DEFAULT_DEVICE
from nas.runs import Run
from search_spaces.artifacts import locked
from search_spaces.checks import check_one, check_whole
from search_spaces.errors import UserError
from search_spaces.onnx_versions import DEFAULT_OPSET
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import nn

    from latency_tables import Device
    from latency_tables.kit import Kit
    from nas.exporting import Export
    from nas.quantising import Quantised
    from nas.reporting import Report
    from nas.verification import Verification
    from search_spaces import Architecture

__all__ = ["compare", "export", "make_verification_kit", "network", "quantize", "report", "verify"]


def network(run: str | Path | Run, arch: Architecture) -> nn.Module:
    """The plain network of an architecture of a run's space, as `export` ships it, in evaluation mode.

    It has its fine-tuned weights where there are some, else the supernet's, and its own batch-normalisation statistics.
    """
    from nas.finetuning import deployed_network

    opened = Run.of(run)
    return deployed_network(opened, arch, opened.data())


def export(
    run: str | Path | Run,
    *,
    pick: str | None = None,
    arch: str | Architecture | None = None,
    opset: int = DEFAULT_OPSET,
    ir_version: int | None = None,
    batch: int | None = None,
    pixels: str | None = None,
    softmax: bool = False,
    pt2: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> list[Export]:
    """Export networks of the front as ONNX and prove them: onnx's checker, and parity with torch in every installed runtime.

    A plain PyTorch file stands beside each one, see `nas.load_network`. A file that is not proven is called
    ``ID.unproven.onnx``; nothing is deleted.

    Args:
        pick: ``knee``, ``best``, ``fastest``, a limit such as ``latency=5ms``, or an id; None exports the whole front.
        arch: instead of ``pick``: an architecture, the id of one that was scored, ``largest`` or ``smallest``, on the front or
            not. Of what is not on the front nothing is promised, and `verify` leaves it out.
        opset: of ONNX's operators; 17 loads in runtimes of 2022 and later.
        ir_version: of the file; None: the oldest that knows the opset.
        batch: images per run; None leaves it open.
        pixels: ``"nhwc"`` or ``"nchw"``: the file takes uint8 pixels and normalises them itself.
        softmax: the file gives probabilities instead of logits.
        pt2: write what `torch.export` makes of each network, too.
        force: export again what is exported already.

    Raises:
        UserError: an option that ONNX does not have, or an export that is there in another format.
    """
    from nas.exporting import export_points
    from nas.finetuning import find_network
    from nas.onnx_files import Format
    from nas.pareto import ParetoFront, Point

    check_one(pick=pick, arch=arch)
    form = Format(opset, ir_version, batch, pixels, softmax)
    opened = Run.of(run)
    front = ParetoFront.load(opened.file("front.json")) if arch is None or opened.file("front.json").exists() else None
    points = [] if front is None else list(front)
    if arch is not None:
        chosen = find_network(opened, arch) if isinstance(arch, str) else arch
        parts = [] if front is None else [point for part in front.parts.values() for point in part]
        points = [point for point in [*points, *parts] if point.arch == chosen][:1] or [Point(chosen, {}, {})]
    elif pick is not None and front is not None:
        points = [front.pick(pick)]
    device = None if front is None else str(front.provenance["device"])
    with locked(opened.exports, doing="exporting to"):
        return export_points(opened, points, device=device, form=form, program=pt2, force=force, progress=progress)


def quantize(
    run: str | Path | Run,
    *,
    pick: str | None = None,
    images: int | None = None,
    max_loss: float | None = None,
    sensitivity: bool = False,
    aware: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> list[Quantised]:
    """Make INT8 twins of exported networks: static post-training quantisation, calibrated on training images.

    Their accuracy on test images and their latency are measured by the next `verify`, beside the float networks.

    Args:
        pick: as for `export`; None takes the whole front.
        images: training images for calibration, at most; default 512, and whatever a twin that is there was made with.
        max_loss: accuracy (a fraction of validation images) that INT8 may cost; where it costs more, the most sensitive
            layers stay in float. Default 0.01, as above.
        sensitivity: measure what each layer costs alone, also where INT8 loses nothing.
        aware: where INT8 costs more, train the network on with INT8's rounding before layers are left in float.
        force: quantise again what is quantised already.

    Raises:
        UserError: a network is not exported, an option out of range, or a twin that was made with another one.
    """
    from nas.pareto import ParetoFront
    from nas.quantising import quantise_points

    opened = Run.of(run)
    front = ParetoFront.load(opened.file("front.json"))
    points = list(front) if pick is None else [front.pick(pick)]
    with locked(opened.exports, doing="exporting to"):
        return quantise_points(
            opened,
            points,
            images=images,
            max_loss=max_loss,
            sensitivity=sensitivity,
            aware=aware,
            force=force,
            progress=progress,
        )


def verify(
    run: str | Path | Run,
    *,
    device: str | None = None,
    kit: str | Path | None = None,
    results: str | Path | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Verification:
    """Run every exported network of the front on the device's clock and on the test images; writes ``verified.json``.

    INT8 twins, baselines and files of `compare` are measured in the same rounds. ``.to_frame()`` is a pandas table.

    Args:
        device: that the front was searched for; default: the first one of them, of a kit its own.
        kit: a folder of `make_verification_kit` that was run on the device, where that can only be reached by hand.
        results: of the kit; default: ``results.json`` in it.

    Raises:
        UserError: a network that is not exported, a device that the front is not for or that cannot be reached.
    """
    from nas.verifying import verify_by_kit, verify_run

    check_whole("seed", seed, 0)
    if results is not None and kit is None:
        raise UserError(
            f"results {results} without a kit",
            allowed="Results that a kit brought back",
            next_step=f"Name the kit, too: nas verify RUN --kit FOLDER --results {results}",
        )
    opened = Run.of(run)
    with locked(opened.file("verified.json"), doing="verifying for"):
        if kit is not None:
            answers = None if results is None else Path(results)
            return verify_by_kit(opened, Path(kit), device=device, results=answers, seed=seed, progress=progress)
        return verify_run(opened, _reached(opened, device or _devices(opened)[0]), seed=seed, progress=progress)


def _reached(run: Run, device: str) -> Device:
    """The device, opened."""
    from latency_tables import open_device
    from nas.tables import STORED

    if device.startswith(STORED):
        raise UserError(
            f"nothing here can reach {device}",
            allowed="A kit with the exported files, run there by hand",
            next_step=f"Make it: nas kit make {run.path} --exports --for {device} --out FOLDER, run it there, then: "
            f"nas verify {run.path} --kit FOLDER",
        )
    return open_device(device)


def make_verification_kit(run: str | Path | Run, *, out: str | Path, device: str | None = None, on: str | None = None) -> Kit:
    """Write a folder that times a run's exported files on a machine that nothing here can reach; see `nas.make_kit`.

    Run it there like any kit, bring ``results.json`` back, and give the folder to `verify`.

    Args:
        device: of the front; default: its first ``table://NAME``.
        on: what the kit runs on there, with options: ``onnxruntime-cpu:threads=4``. Default: ONNX Runtime with the options that
            the device's table was measured with.

    Raises:
        UserError: a network that is not exported, a folder that is not empty, or no kit runs on such a device.
    """
    from nas.tables import STORED
    from nas.verifying import verification_kit

    opened = Run.of(run)
    known = _devices(opened)
    chosen = device or next((name for name in known if name.startswith(STORED)), known[0])
    return verification_kit(opened, Path(out), device=chosen, on=on)


def _devices(run: Run) -> list[str]:
    """The devices that a run's front is for; before there is a front the usual one."""
    from nas.pareto import ParetoFront

    path = run.file("front.json")
    if not path.exists():
        return [DEFAULT_DEVICE]
    known = ParetoFront.load(path).provenance
    return str(known.get("devices", known["device"])).split(", ")


def compare(
    run: str | Path | Run,
    *files: str | Path,
    device: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
) -> Verification:
    """Put any ONNX files beside the front: copied into the run, then everything is verified in the same rounds.

    A file has an accuracy where it takes the run's images (float input: normalised as the run's; uint8 input: pixels) and
    gives a score per class; any other file is timed only.

    Raises:
        UserError: not an ONNX file, one that the device cannot run, or a name that is taken.
    """
    from nas.comparing import add_files

    check_whole("seed", seed, 0)
    opened = Run.of(run)
    device = device or _devices(opened)[0]
    with locked(opened.path / "baselines", doing="adding to"):
        add_files(opened, files, _reached(opened, device), force=force)
    return verify(opened, device=device, seed=seed, progress=progress)


def report(run: str | Path | Run) -> Report:
    """Write ``report.html``, ``report.md`` and ``networks.csv`` from whatever the run has so far; they say what is missing.

    Returns: the files' paths and, as ``.to_frame()``, the table of networks.
    """
    from nas.reporting import write_report

    return write_report(Run.of(run))
