"""Commands from the front to the device: export, verify, report."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from nas.cli.options import AsJson, DeviceName, Force, Quiet, RunFolder, Seed
from nas.cli.terminal import EXIT_BROKEN, TerminalProgress, print_json, show_table

__all__ = ["export", "report", "show_verification", "verify"]

Pick = Annotated[str | None, typer.Option(help="knee, best, fastest, latency=5ms, or an id; default: the whole front.")]


def export(
    run: RunFolder,
    pick: Pick = None,
    opset: Annotated[int, typer.Option(help="Of ONNX's operators; the default loads in runtimes of 2022 and later.")] = 17,
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

    exports = nas.export(
        run,
        pick=pick,
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
            ran = ", ".join(proof.runtime for proof in item.runtimes) or "onnxruntime-cpu"
            difference = "" if item.max_relative_difference is None else f"{item.max_relative_difference:.1e}"
            same = "" if item.top1_agreement is None else f"{item.top1_agreement:.1%}"
            rows.append((item.id, str(run / "exports" / item.file), difference, same, ran))
        show_table(["network", "file", "largest difference", "same top-1", "proven in"], rows)
    unproven = [item for item in exports if not item.proven]
    for item in unproven:
        why = "; ".join(item.problems) or "it differs from torch by more than 1e-4 or in a top-1 class"
        typer.echo(f"error: {run / 'exports' / item.file} is not proven: {why}", err=True)
    if unproven:
        raise typer.Exit(EXIT_BROKEN)


def verify(
    run: RunFolder, device: DeviceName = "onnxruntime-cpu", seed: Seed = 0, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Measure the exported networks on the device and on the test images: promised against verified."""
    import nas

    result = nas.verify(run, device=device, seed=seed, progress=TerminalProgress(quiet=quiet))
    if as_json:
        print_json({"summary": result.summary(), **dataclasses.asdict(result)})
    else:
        show_verification(result)
    if not result.passed:
        typer.echo("error: a verified network breaks a limit; see the table", err=True)
        raise typer.Exit(EXIT_BROKEN)


def show_verification(result: Any) -> None:
    """Promised and verified values of every network, as a table."""
    rows = []
    for item in [*result.networks, *result.baselines]:
        promised = item.promised
        half = 50 * (item.accuracy_high - item.accuracy_low)
        rows.append(
            (
                f"{item.id}*" if item.finetuned else item.id,
                f"{promised['accuracy']:.1%}" if promised else "",
                f"{item.accuracy:.1%} ±{half:.1f}",
                f"{promised['latency']:.3g}" if promised else "",
                f"{item.latency_ms:.3g}",
                "; ".join(item.broken) or ("kept" if promised else "baseline"),
            )
        )
    columns = ["network", "accuracy", "verified", "latency ms", "verified", "limits"]
    show_table(columns, rows, title="promised, then verified (* fine-tuned since)")


def report(run: RunFolder, as_json: AsJson = False) -> None:
    """Write report.html: the front, promised against verified, and the command that exports each network."""
    import nas

    path = nas.report(run)
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(str(path))
