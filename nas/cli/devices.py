"""Commands about devices: which there are, and their latency tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.options import AsJson, DeviceName, Force, Quiet, Seed, chosen_space
from nas.cli.terminal import TerminalProgress, print_json, show_table
from search_spaces.errors import UserError

__all__ = ["devices", "profile"]


def profile(
    run: Annotated[Path | None, typer.Argument(help="Run folder; its space is profiled, its tables folder filled.")] = None,
    space: Annotated[str | None, typer.Option(help="Profile a space without a run; see nas spaces.")] = None,
    width: Annotated[float | None, typer.Option(help="Width multiplier of --space.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Input sizes of --space, e.g. 128,160,192,224.")] = None,
    out: Annotated[Path | None, typer.Option(help="Table file (.json) for --space.")] = None,
    device: DeviceName = "onnxruntime-cpu",
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every layer of a space on a device: the latency table, with its error on whole networks."""
    import nas

    if (run is None) == (space is None) or (space is not None and out is None):
        raise UserError(
            "nas profile needs a run, or --space and --out",
            allowed="One of the two",
            next_step="Write: nas profile RUN, or: nas profile --space ofa-mobilenet-v3 --out table.json",
        )
    chosen = nas.Run.open(run).space if run is not None else chosen_space(str(space), width, None, resolution)
    table = nas.profile(chosen, device=device, out=run or out, seed=seed, force=force, progress=TerminalProgress(quiet=quiet))
    if as_json:
        quality = table.quality.to_dict() if table.quality else None
        print_json({"device": table.device, "layers": len(table.entries), "fingerprint": table.fingerprint, "quality": quality})
        return
    fastest, slowest = table.fastest()[0], table.slowest()[0]
    typer.echo(f"{table.device}: {len(table.entries)} layers; networks from {fastest:.3g} to {slowest:.3g} ms")
    if table.quality is not None:
        typer.echo(_quality_lines(table.quality))


def _quality_lines(quality: Any) -> str:
    """A table's errors on whole networks that its correction has not seen."""
    rows = [("layers, corrected", quality.corrected), ("layers, plain sum", quality.plain)]
    rows += [("MACs and an offset", quality.baseline), ("the same networks again", quality.noise)]
    lines = [f"on {quality.networks} whole networks that were held out (median error, Spearman):"]
    for label, errors in rows:
        rank = "-" if errors.spearman is None else f"{errors.spearman:.3f}"
        lines.append(f"  {label:<24} {errors.median:6.1%}  {rank}")
    return "\n".join(lines)


def devices(as_json: AsJson = False) -> None:
    """List the devices that can be profiled here, and what is missing for the others."""
    from latency_tables import list_devices

    rows = list_devices()
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    show_table(
        ["device", "here", "version", "otherwise"],
        [(row.name, "yes" if row.available else "no", row.version or "-", row.install or "-") for row in rows],
    )
