"""Commands from the front to the device: export, verify, report."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from nas.cli.options import AsJson, DeviceName, Force, Quiet, RunFolder, Seed
from nas.cli.terminal import EXIT_BROKEN, TerminalProgress, print_json, show_table

__all__ = ["export", "report", "show_verification", "verify"]


def export(
    run: RunFolder,
    pick: Annotated[
        str | None, typer.Option(help="knee, best, fastest, latency=5ms, or an id; default: the whole front.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export networks of the front as ONNX files, and prove each one against torch on the test images."""
    import nas

    exports = nas.export(run, pick=pick, force=force, progress=TerminalProgress(quiet=quiet))
    if as_json:
        print_json([dataclasses.asdict(item) for item in exports])
    else:
        rows = [
            (item.id, str(run / "exports" / item.file), f"{item.max_relative_difference:.1e}", f"{item.top1_agreement:.1%}")
            for item in exports
        ]
        show_table(["network", "file", "largest difference", "same top-1"], rows)
    if not all(item.proven for item in exports):
        typer.echo("error: a network differs from torch by more than 1e-4 or in a top-1 class; its file is marked", err=True)
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
