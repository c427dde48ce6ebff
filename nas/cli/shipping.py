"""Commands from the front to the device: export, verify, report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.options import AsJson, Force, Quiet, RunFolder, Seed, check_one, finite
from nas.cli.terminal import EXIT_BROKEN, TerminalProgress, print_json, show_table
from search_spaces.onnx_versions import DEFAULT_OPSET

__all__ = ["export", "report", "show_verification", "verify"]

FrontDevice = Annotated[str | None, typer.Option("--device", help="Device; default: the (first) one of the front.")]
Pick = Annotated[str | None, typer.Option(help="knee, best, fastest, latency=5ms, or an id; default: the whole front.")]


def export(
    run: RunFolder,
    pick: Pick = None,
    everything: Annotated[bool, typer.Option("--all", help="Every network of the front; the default without --pick.")] = False,
    arch: Annotated[str | None, typer.Option(help="A network that may be off the front: id, largest or smallest.")] = None,
    opset: Annotated[
        int, typer.Option(help="Of ONNX's operators; the default loads in runtimes of 2022 and later.")
    ] = DEFAULT_OPSET,
    ir_version: Annotated[int | None, typer.Option(help="Of the file; default: the oldest that knows the opset.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per run; default: any number.")] = None,
    pixels: Annotated[str | None, typer.Option(help="nhwc or nchw: take uint8 pixels and normalise them inside.")] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="Give probabilities instead of logits.")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Write torch.export's program, too.")] = False,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export networks of the front as ONNX and plain PyTorch files, and prove each one against torch on the test images."""
    import nas

    check_one("--all", everything, "--pick", pick)
    check_one("--all", everything, "--arch", arch)
    check_one("--pick", pick, "--arch", arch)
    exports = nas.export(
        run,
        pick=pick,
        arch=arch,
        opset=opset,
        ir_version=ir_version,
        batch=batch,
        pixels=pixels,
        softmax=softmax,
        pt2=pt2,
        force=force,
        progress=TerminalProgress(quiet=quiet),
    )
    if as_json:
        print_json([dataclasses.asdict(item) for item in exports])
    else:
        rows = []
        for item in exports:
            ran = ", ".join(proof.runtime for proof in item.runtimes if proof.failure is None)
            difference = "" if item.max_relative_difference is None else f"{item.max_relative_difference:.1e}"
            same = "" if item.top1_agreement is None else f"{item.top1_agreement:.1%}"
            rows.append((item.file, difference, same, ran))
        show_table([f"in {run / 'exports'}", "largest difference", "same top-1", "ran in"], rows)
    unproven = [item for item in exports if not item.proven]
    for item in unproven:
        why = "; ".join(item.problems) or "it differs from torch by more than 1e-4 or in a top-1 class"
        typer.echo(f"error: {run / 'exports' / item.file} is not proven: {why}", err=True)
    if unproven:
        raise typer.Exit(EXIT_BROKEN)
    typer.echo(f"Next: {_towards_verify(run, exports[0].id)}", err=True)


def _towards_verify(run: Path, exported: str) -> str:
    """The command that comes next when this network, and perhaps others, are exported."""
    from nas import Run
    from nas.verifying import next_command

    return next_command(Run.open(run), exported)


def quantize(
    run: RunFolder,
    pick: Pick = None,
    images: Annotated[int | None, typer.Option(help="Training images for calibration, at most; default 512.")] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(callback=finite, help="Accuracy in % that INT8 may cost; beyond it layers stay in float. Default 1."),
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Measure what each layer costs alone.")] = False,
    aware: Annotated[
        bool, typer.Option("--aware", help="Beyond --max-loss, train with INT8's rounding before layers stay in float.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make INT8 twins of exported networks, calibrated on training images; nas verify then measures both."""
    import nas

    made = nas.quantize(
        run,
        pick=pick,
        images=images,
        max_loss=None if max_loss is None else max_loss / 100,
        sensitivity=sensitivity,
        aware=aware,
        force=force,
        progress=TerminalProgress(quiet=quiet),
    )
    if as_json:
        print_json([dataclasses.asdict(item) for item in made])
        return
    columns = [f"in {run / 'exports'}", "float accuracy", "INT8 accuracy", "size", "kept in float"]
    rows = [
        (
            item.file,
            f"{item.float_accuracy:.1%}",
            f"{item.accuracy:.1%}",
            f"{item.bytes / item.float_bytes:.0%}",
            ", ".join(item.kept) + (" (trained with rounding)" if item.steps else ""),
        )
        for item in made
    ]
    show_table(columns, rows, title=f"on {made[0].images} validation images" if made else "")
    for item in made if sensitivity else ():
        losses = [(loss.layer, f"{loss.error:.2%}", f"{100 * loss.accuracy_loss:+.1f}") for loss in item.sensitivity]
        show_table(["layer", "change of the logits", "points lost"], losses, title=f"{item.network}: each layer alone in INT8")
    if made:
        after = _towards_verify(run, made[0].network)
        typer.echo(f"INT8 latency is not known yet; measure it with: {after}", err=True)


def verify(
    run: RunFolder,
    device: FrontDevice = None,
    kit: Annotated[
        Path | None, typer.Option(help="Folder of nas kit make --exports that was run on the device by hand.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Results elsewhere than in the kit.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the exported networks on the device and on the test images: promised against verified."""
    import nas

    progress = TerminalProgress(quiet=quiet)
    _finish(run, nas.verify(run, device=device, kit=kit, results=results, seed=seed, progress=progress), as_json)


def compare(
    run: RunFolder,
    files: Annotated[list[Path], typer.Argument(help="ONNX files.")],
    device: FrontDevice = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put any ONNX files beside the front: measured in the same rounds, shown in the same report."""
    import nas

    result = nas.compare(run, *files, device=device, seed=seed, force=force, progress=TerminalProgress(quiet=quiet))
    _finish(run, result, as_json)


def _finish(run: Path, result: Any, as_json: bool) -> None:
    """Show a verification; exit 1 where a limit is broken."""
    if as_json:
        print_json({"summary": result.summary(), **dataclasses.asdict(result)})
    else:
        show_verification(result)
    if not result.passed:
        typer.echo(
            "error: a verified network breaks a limit; see the table\n"
            "  Promises and limits hold for the device as it was when its table was measured.\n"
            f"  Verify again when it is quiet; if it stays: nas search {run} --resume --limit ... with a lower one",
            err=True,
        )
        raise typer.Exit(EXIT_BROKEN)


def show_verification(result: Any) -> None:
    """Promised and verified values of every network, as a table, and the winner's curse."""
    rows, best = [], result.front()
    for item in [*result.networks, *result.quantised, *result.baselines]:
        promised = item.promised
        half = 50 * (item.accuracy_high - item.accuracy_low)
        if item.network:
            state = f"BROKEN: {'; '.join(item.broken)}" if item.broken else "kept"
            state += ", on the front" if item.id in best else ", dominated" if not item.broken else ""
        else:
            state = "baseline"
        rows.append(
            (
                f"{item.id}*" if item.finetuned else item.id,
                f"{promised['accuracy']:.1%}" if promised else "",
                f"{item.accuracy:.1%} ±{half:.1f}",
                f"{promised['latency']:.3g}" if promised else "",
                f"{item.latency_ms:.3g}",
                f"{item.latency_p10_ms:.3g} to {item.latency_p90_ms:.3g}",
                state,
            )
        )
    rows += [
        (item.id, "", "", "", f"{item.latency_ms:.3g}", f"{item.latency_p10_ms:.3g} to {item.latency_p90_ms:.3g}", item.reason)
        for item in result.timed
    ]
    columns = ["network", "accuracy", "verified", "latency ms", "verified", "10 to 90 %", "limits"]
    show_table(columns, rows, title="promised, then verified (* fine-tuned since)")
    for line in _conclusions(result):
        typer.echo(line)


def _conclusions(result: Any) -> list[str]:
    lines = [f"latency: promised against measured: {result.latency_in_words()}"]
    if result.excess is not None:
        excess = result.excess
        lines.append(
            f"winner's curse: promised accuracy is {100 * excess.mean:+.1f} points above verified on average "
            f"(95 % interval {100 * excess.low:+.1f} to {100 * excess.high:+.1f}, {excess.networks} networks)"
        )
    gains = result.gains()
    if gains is not None:
        lines.append(
            f"INT8 takes {gains['latency_ratio']:.2f} of the float time (median of {gains['networks']}), "
            f"and loses {100 * gains['accuracy_loss']:.1f} points on average"
        )
    return lines


def report(run: RunFolder, as_json: AsJson = False) -> None:
    """Write report.html, report.md and networks.csv: promised against verified, and the command for every file."""
    import nas

    made = nas.report(run)
    if as_json:
        print_json({"report": str(made), "markdown": str(made.markdown), "csv": str(made.csv)})
    else:
        typer.echo(str(made))
