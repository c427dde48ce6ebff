"""The command that runs the whole loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import AsJson, DeviceName, Quiet, Seed, interruptible
from nas.cli.shipping import show_verification
from nas.cli.terminal import EXIT_BROKEN, TerminalProgress, print_json

if TYPE_CHECKING:
    from nas.demo import DemoResult

__all__ = ["demo"]


def demo(
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, cifar10:PATH, folder:PATH ...")] = "digits",
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/demo-DATA. Run it again to resume.")] = None,
    device: DeviceName = "onnxruntime-cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The whole loop on real images in minutes: train, profile, search under a latency limit, export, verify, report."""
    from nas.demo import run_demo

    progress = TerminalProgress(quiet=quiet)
    with interruptible(progress) as stop:
        result = run_demo(data, out=out, device=device, seed=seed, stop=stop, progress=progress)
    if as_json:
        print_json(result.to_dict())
    else:
        _show_demo(result, progress)
    if not result.passed:
        raise typer.Exit(EXIT_BROKEN)


def _show_demo(result: DemoResult, progress: TerminalProgress) -> None:
    progress.say("")
    show_verification(result.verification)
    typer.echo("")
    for line in result.lines():
        typer.echo(line)
