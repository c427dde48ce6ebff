"""Commands about devices: which there are, their latency tables, and what a model costs on one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import AsJson, DeviceName, Force, Quiet, Seed, check_one, chosen_space, finite
from nas.cli.terminal import EXIT_BROKEN, TerminalProgress, print_json, show_table
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from latency_tables import LatencyTable
    from nas.tables import Planned
    from search_spaces import Architecture, SearchSpace

__all__ = ["devices", "doctor", "kit_import", "kit_make", "measure", "profile", "table_import"]

OptionalRun = Annotated[Path | None, typer.Argument(help="Run folder; its space is used, its tables folder filled.")]
SpaceName = Annotated[str | None, typer.Option(help="A space without a run; see nas spaces.")]
Width = Annotated[float | None, typer.Option(callback=finite, help="Width multiplier of --space.")]
Resolution = Annotated[str | None, typer.Option(help="Input sizes of --space, e.g. 128,160,192,224.")]
Measured = Annotated[int | None, typer.Option("--measured-sizes", help="Input sizes to measure; the others are interpolated.")]
TableOut = Annotated[Path | None, typer.Option(help="Table file (.json) for --space.")]
TableName = Annotated[str, typer.Option("--name", help="Of the device; searched for as table://NAME.")]


def profile(
    run: OptionalRun = None,
    space: SpaceName = None,
    width: Width = None,
    resolution: Resolution = None,
    out: TableOut = None,
    device: DeviceName = "onnxruntime-cpu",
    measured_sizes: Measured = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, measure nothing.")] = False,
    like: Annotated[Path | None, typer.Option(help="Table (.json) of another device to fit to this one's networks.")] = None,
    networks: Annotated[int | None, typer.Option(min=3, help="Whole networks to fit the correction on; default 20.")] = None,
    breakdown: Annotated[str | None, typer.Option(help="Where the time of a network of the front goes: its id.")] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every layer of a space on a device: the latency table, with its error on whole networks."""
    import nas
    from nas.tables import planned_profile

    check_one("--dry-run", dry_run, "--breakdown", breakdown)
    chosen = _space_of(run, space, width, resolution, out, needs_out=not dry_run)
    arch = None if breakdown is None else _of_front(run, breakdown)  # before anything is measured
    target = run or out
    given: dict[str, Any] = {"resolutions": measured_sizes, "networks": networks}
    given |= {"like": None if like is None else nas.LatencyTable.load(like)}
    if dry_run:
        _show_plan(planned_profile(chosen, device=device, out=None if force else target, **given), as_json)
        return
    progress = TerminalProgress(quiet=quiet)
    table = nas.profile(chosen, device=device, out=target, seed=seed, force=force, progress=progress, **given)
    if arch is not None:
        _show_breakdown(table, arch, as_json)
    else:
        _show_profile(table, as_json)


def _space_of(
    run: Path | None,
    space: str | None,
    width: float | None,
    resolution: str | None,
    out: Path | None,
    *,
    needs_out: bool = True,
) -> SearchSpace:
    """The space of a run, or a named one."""
    import nas

    if (run is None) == (space is None) or (space is not None and out is None and needs_out):
        raise UserError(
            "this command needs a run, or --space and --out",
            allowed="One of the two",
            next_step="Write RUN, or: --space ofa-mobilenet-v3 --out table.json",
        )
    beside = {"--width": width, "--resolution": resolution, "--out": out}
    if run is not None and (given := [name for name, value in beside.items() if value is not None]):
        raise UserError(
            f"{', '.join(given)} beside the run {run}",
            allowed="A run has its own space, and its table goes to its own folder",
            next_step="Leave it out, or write --space and --out instead of the run",
        )
    return nas.Run.open(run).space if run is not None else chosen_space(str(space), width, None, resolution)


def _show_plan(plan: Planned, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(plan))
        return
    if plan.complete:
        typer.echo(f"{plan.device}: the table is complete, nothing would be measured; --force measures anew")
        return
    known = f", {plan.known} are known" if plan.known else ""
    between = f", {plan.interpolated} would be interpolated" if plan.interpolated else ""
    typer.echo(f"{plan.device}: {plan.layers} layers to measure{known}{between}, and {plan.networks} whole networks, twice")
    typer.echo(f"about {max(0.1, plan.minutes):.1f} minutes on a processor like this year's; a phone takes a few times as long")


def _show_profile(table: LatencyTable, as_json: bool) -> None:
    fastest, slowest = table.fastest()[0], table.slowest()[0]
    if as_json:
        print_json(
            {
                "device": table.device,
                "layers": len(table.entries),
                "fingerprint": dict(table.fingerprint),
                "clock": table.clock,
                "fastest_ms": fastest,
                "slowest_ms": slowest,
                "form": table.correction.form if table.correction else None,
                "quality": table.quality.to_dict() if table.quality else None,
                "energy": table.energy.to_dict() if table.energy else None,
                "interpolation_error": table.conditions.get("interpolation_error"),
                "anchor": dataclasses.asdict(table.anchor) if table.anchor else None,
                "warnings": table.warnings(),
            }
        )
        return
    typer.echo(
        f"{table.device}: {len(table.entries)} layers; networks from {fastest:.3g} to {slowest:.3g} ms ({table.clock} time)"
    )
    if table.interpolated:
        error = table.conditions.get("interpolation_error")
        said = "unknown" if error is None else f"{error:.1%} at most"
        typer.echo(f"{len(table.interpolated)} layers stand between measured sizes; median error {said}")
    if table.quality is not None:
        typer.echo(_quality_lines(table))
    if table.energy is not None:
        energy = table.energy
        typer.echo(
            f"energy by {energy.counter}: median error {energy.error:.1%} on {energy.networks} of them "
            f"(counted again: {energy.noise:.1%})"
        )


def _quality_lines(table: LatencyTable) -> str:
    """A table's errors on whole networks that its correction has not seen."""
    quality, form = table.quality, table.correction.form if table.correction else "none"
    assert quality is not None
    rows = [("layers, corrected" if form != "features" else "features alone", quality.corrected)]
    rows += [("layers, plain sum", quality.plain)]
    rows += [("features of networks", quality.learnt)] if quality.learnt and form != "features" else []
    rows += [("MACs and an offset", quality.baseline), ("the same networks again", quality.noise)]
    lines = [
        f"on {quality.networks} whole networks that were held out:",
        f"  {'':<24} {'median':>7} {'mean':>7} {'bias':>7} {'in 5 %':>7} {'in 10 %':>7} {'Spearman':>9}",
    ]
    for label, e in rows:
        rank = "-" if e.spearman is None else f"{e.spearman:.3f}"
        hits = f"{e.within_5_percent:>7.0%} {e.within_10_percent:>7.0%}"
        lines.append(f"  {label:<24} {e.median:>7.1%} {e.mean:>7.1%} {e.bias:>+7.1%} {hits} {rank:>9}")
    used = "features of whole networks alone" if form == "features" else f"layers with the terms {form}"
    return "\n".join([*lines, f"used: {used}, the best in cross-validation on {quality.fitted_on} others"])


def _of_front(run: Path | None, chosen: str) -> Architecture:
    """A network of a run's front."""
    import nas

    if run is None:
        raise UserError(
            "--breakdown without a run", allowed="A network of a run's front", next_step="Write: nas profile RUN --breakdown ID"
        )
    return nas.ParetoFront.load(run / "front.json").pick(chosen).arch


def _show_breakdown(table: LatencyTable, arch: Architecture, as_json: bool) -> None:
    frame = table.breakdown(arch)
    if as_json:
        print_json(frame.to_dict(orient="records"))
        return
    rows = [(row.position, row.layer, f"{row.ms:.4f}", f"{row.share:.1%}") for row in frame.itertuples()]
    show_table(["position", "layer", "ms", "share"], [*rows, ("network", "", f"{frame['ms'].sum():.4f}", "100.0%")])


def devices(as_json: AsJson = False) -> None:
    """List the devices that can be profiled here, and what is missing for the others."""
    from latency_tables import list_devices

    rows = list_devices()
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    show_table(
        ["device", "here", "version", "precisions", "otherwise"],
        [
            (row.name, "yes" if row.available else "no", row.version or "-", row.about, "" if row.available else row.install)
            for row in rows
        ],
    )
    typer.echo("\nOptions in the name: onnxruntime-cpu:precision=int8,threads=2,batch=8")
    typer.echo("Elsewhere: ssh://USER@HOST:PORT/onnxruntime-cpu, adb://SERIAL/onnxruntime-cpu; by hand: nas kit make --help")


def kit_make(
    run: OptionalRun = None,
    space: SpaceName = None,
    width: Width = None,
    resolution: Resolution = None,
    out: Annotated[Path, typer.Option(help="Folder for the kit; new or empty.")] = Path("kit"),
    device: DeviceName = "onnxruntime-cpu",
    measured_sizes: Measured = None,
    exports: Annotated[
        bool, typer.Option("--exports", help="Time the run's exported files instead, for nas verify --kit.")
    ] = False,
    of: Annotated[
        str | None, typer.Option("--for", help="With --exports: device of the front; default: its table://NAME.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write a folder that measures a space, or a run's exported files, on a machine that cannot be reached from here."""
    import nas

    if exports:
        if run is None:
            raise UserError(
                "--exports without a run", allowed="A run's exported files", next_step="Write: nas kit make RUN --exports"
            )
        beside = {"--space": space, "--width": width, "--resolution": resolution, "--measured-sizes": measured_sizes}
        for name, value in beside.items():
            check_one("--exports", exports, name, value is not None and value)
        kit = nas.make_verification_kit(run, out=out, device=of, on=None if device == "onnxruntime-cpu" else device)
    else:
        chosen = _space_of(run, space, width, resolution, None, needs_out=False)
        kit = nas.make_kit(chosen, out=out, device=device, seed=seed, resolutions=measured_sizes)
    if as_json:
        print_json({"kit": kit.id, "folder": str(out), "models": len(kit.names)})
        return
    typer.echo(f"{out}: {len(kit.names)} models")
    typer.echo(f"Copy it to the machine, run there: python3 run_kit.py, and bring results.json back into {out}.")
    after = f"nas verify {run} --kit {out}" if exports else f"nas kit import {out} {run or '--out table.json'} --name my-board"
    typer.echo(f"Next: {after}")


def kit_import(
    kit: Annotated[Path, typer.Argument(help="The kit's folder, with results.json in it.")],
    run: OptionalRun = None,
    name: TableName = "board",
    out: TableOut = None,
    results: Annotated[Path | None, typer.Option(help="Results elsewhere than in the kit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn the results of a kit into a latency table."""
    import nas

    if (run is None) == (out is None):
        raise UserError(
            "nas kit import needs a run or --out",
            allowed="One of the two",
            next_step="Write: nas kit import KIT RUN --name board",
        )
    space = nas.Run.open(run).space if run is not None else None
    table = nas.import_kit(kit, name=name, out=run or out, space=space, results=results)
    _show_profile(table, as_json)
    if not as_json and run is not None:
        typer.echo(f"Next: nas search {run} --device {table.device}")


def table_import(
    files: Annotated[list[Path], typer.Argument(help="CSV (layer, ms), or YAML as Once-for-all and ProxylessNAS publish it.")],
    space: SpaceName = None,
    run: Annotated[Path | None, typer.Option(help="Run folder that gets the table.")] = None,
    width: Width = None,
    resolution: Resolution = None,
    name: TableName = "imported",
    out: TableOut = None,
    as_json: AsJson = False,
) -> None:
    """Take a latency table that somebody else measured, to search for a device that is not at hand."""
    import nas

    table = nas.import_table(list(files), _space_of(run, space, width, resolution, out), name=name, out=run or out)
    _show_profile(table, as_json)
    if not as_json and run is not None:
        typer.echo(f"Next: nas search {run} --device {table.device}")


def measure(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    device: DeviceName = "onnxruntime-cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What one ONNX file costs on a device: time, throughput, memory, size, and energy where it is counted."""
    import nas

    cost = nas.measure(model, device=device, seed=seed, progress=TerminalProgress(quiet=quiet))
    if as_json:
        print_json(cost.to_dict())
        return
    time = cost.time
    rows = [("device", cost.device), ("median", f"{time.median_ms:.4g} ms")]
    if time.low_ms is not None and time.high_ms is not None:
        rows.append(("95 % interval", f"{time.low_ms:.4g} to {time.high_ms:.4g} ms"))
    rows += [("95th percentile", f"{time.p95_ms:.4g} ms")] if time.p95_ms is not None else []
    rows += [
        ("CPU time", f"{time.cpu_median_ms:.4g} ms"),
        ("throughput", f"{cost.images_per_s:.4g} images/s, {cost.batch} at a time"),
    ]
    rows.append(("file", f"{cost.file_bytes / 1e6:.2f} MB"))
    rows.append(("peak memory", "-" if cost.memory_bytes is None else f"{cost.memory_bytes / 1e6:.1f} MB beside the runtime"))
    energy = (
        f"{cost.energy_j * 1e3:.3g} mJ a run ({cost.energy_of}, idle included)"
        if cost.energy_j is not None
        else "not counted here"
    )
    rows.append(("energy", energy))
    show_table(["", ""], rows)


def doctor(as_json: AsJson = False) -> None:
    """Check whether this machine is fit to train and to measure, and say what to do where it is not."""
    import nas

    checks = nas.doctor()
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        show_table(["check", "status", "found", "what to do"], [(c.name, c.status, c.found, c.advice) for c in checks])
    if any(check.status == "broken" for check in checks):
        raise typer.Exit(EXIT_BROKEN)
