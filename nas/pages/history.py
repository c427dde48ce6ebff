"""The page's sections on how the front came about: training, search, other devices, and the command for every artefact."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from nas.api.defaults import DEFAULT_IMAGES, DEFAULT_POINTS
from nas.finetuning import finetune_command
from nas.pages.charts import Line, line_chart
from nas.pages.contents import Contents, device_option, quoted, train_command
from nas.pages.words import percent, section, table, text, three_digits
from nas.resuming import Request, asked_for
from search_spaces.errors import UserError
from search_spaces.records import reading

__all__ = ["artefacts", "commands", "other_devices", "search_history", "training"]


def training(contents: Contents) -> str:
    """Phases as a table, accuracy and loss as curves; the curves alone while training is not at its end."""
    log = contents.log or {}
    phases = log.get("phases") or []
    if not phases and not contents.curves.get("loss"):
        return ""
    rows = [[text(p["phase"]), f"{p['step']:,}", f"{p['loss']:.3f}", _bar(p["largest"]), _bar(p["smallest"])] for p in phases]
    seconds, images = log.get("seconds"), log.get("images")
    words = f"{len(phases)} phases" if phases else "Not at its end yet"
    if images is not None and seconds is not None:
        words += f" on {images:,} images (times augmented); the last process took {seconds:,.0f} s"
    words += ". Accuracy is that on validation images."
    if contents.run.settings["recipe"].get("distill"):
        words += " Where smaller networks are trained, too, the loss has a teacher's soft labels in it."
    head = ["Phase", "Step", "Loss", "Largest network", "Smallest so far"]

    def points(name: str) -> Sequence[tuple[float, float]]:
        return contents.curves.get(name) or [(p["step"], p[name]) for p in phases]

    def in_percent(name: str) -> list[tuple[float, float]]:
        return [(step, 100 * value) for step, value in points(name)]

    accuracy = line_chart(
        [
            Line("largest network", in_percent("largest"), "verified", marks=True),
            Line("smallest so far", in_percent("smallest"), "promised", "6 3", marks=True),
        ],
        x="training step",
        y="validation accuracy, %",
    )
    drawn = bool(contents.curves.get("loss"))
    loss = line_chart([Line("training loss", points("loss"), "verified", marks=not drawn)], x="training step", y="loss")
    shown = table("Phases", head, rows) if rows else ""
    return section("Training", words, f'<div class="charts">{accuracy}{loss}</div>{shown}')


def search_history(contents: Contents) -> str:
    """Hypervolume of the measured front after every evaluation."""
    volume = contents.hypervolume()
    chart = line_chart(
        [Line("front of the scored subnets", list(enumerate(volume, 1)), "verified")], x="subnets scored", y="hypervolume"
    )
    if not chart:
        return ""
    reached = next(index for index, value in enumerate(volume, 1) if value >= 0.99 * volume[-1])
    words = (
        f"{len(volume)} subnets were scored; 99&nbsp;% of the final hypervolume was there after {reached}. Hypervolume is the "
        "share of the box between the ideal and the reference point that the measured front dominates."
    )
    return section("Search", words, chart)


def other_devices(contents: Contents) -> str:
    """Fronts of the same search for other devices or budgets."""
    parts = getattr(contents.front, "parts", {})
    rows = []
    for name, part in parts.items():
        points = list(part)
        own = contents.front.own_name(f"latency@{part.provenance.get('device')}") if contents.front else "latency"
        if not points or any(value not in point.values for point in points for value in ("accuracy", own)):
            continue
        accuracy, latency = ([point.values[value] for point in points] for value in ("accuracy", own))
        spans = [f"{percent(min(accuracy))} to {percent(max(accuracy))}"]
        spans.append(f"{three_digits(min(latency))} to {three_digits(max(latency))}")
        rows.append([text(name), text(part.provenance.get("device", "")), str(len(points)), *spans])
    if not rows:
        return ""
    head = ["Part", "Device", "Networks", "Accuracy promised", "Latency promised, ms"]
    return section("Other fronts of this search", "", table("Parts", head, rows))


def artefacts(contents: Contents) -> list[tuple[str, str]]:
    """Every file of the run and the command that makes it, in the order of the loop."""
    return list(_artefacts(contents))


def _artefacts(contents: Contents) -> Iterator[tuple[str, str]]:
    run, folder = contents.run, quoted(contents.run)
    option = device_option(contents.device)
    if run.weights.exists():
        yield "supernet.safetensors", train_command(run)
    if contents.table is not None:
        yield f"tables/{contents.table.device}.json", f"nas profile {folder}{option}"
    if contents.front is not None:
        yield "front.json", _search_command(contents, option)
    for path in sorted((run.path / "finetuned").glob("*.safetensors")):
        yield f"finetuned/{path.name}", _finetuned(contents, path)
    for row in [*contents.rows, *contents.twins]:
        file = row.quantised.file if row.quantised else row.export.file if row.export else None
        if file is not None:
            yield f"exports/{file}", contents.command(row)
    for baseline in contents.baselines:
        made = f"nas demo --out {folder}" if baseline.source is None else f"nas compare {folder} {shlex.quote(baseline.source)}"
        yield baseline.file, made
    if contents.verification is not None:
        yield "verified.json", f"nas verify {folder}{option}"
    yield "report.html, report.md, networks.csv", f"nas report {folder}"


def _finetuned(contents: Contents, path: Path) -> str:
    """The command of a fine-tuned network; without its recipe where the file cannot be read."""
    try:
        return finetune_command(contents.run, path)
    except UserError:
        return f"nas finetune {quoted(contents.run)} --arch {shlex.quote(path.stem)}"


def _search_command(contents: Contents, option: str) -> str:
    """As it was asked for, where the front says so; else from what came of it."""
    front = contents.front
    assert front is not None
    file = contents.run.file("front.json")
    request = asked_for(front, file) or Request(
        (),
        tuple(front.objectives) if list(front.objectives) != ["accuracy", "latency"] else None,
        {name: f"{bound:.6g}" for name, bound in front.limits.items()},
    )
    parts = ["nas", "search", str(contents.run.path)]
    parts += [word for name in request.devices for word in ("--device", name)] or shlex.split(option)
    parts += [word for name in request.objectives or () for word in ("--objective", name)]
    for name, bounds in request.limits.items():
        for bound in bounds if isinstance(bounds, list) else [bounds]:
            parts += ["--limit", f"{name}={bound}"]
    # Of an older front only the number of scores is known.
    with reading(file, allowed="The file as nas search writes it", next_step="Search anew with --force"):
        amount = dict(front.records.get("amount") or {"samples": front.provenance.get("scores")})
    usual = {"images": DEFAULT_IMAGES, "points": DEFAULT_POINTS, "predictor": "auto"}
    given = {**amount, "seed": front.provenance.get("seed")}
    for name in ("samples", "budget", "images", "points", "predictor", "seed"):
        if given.get(name) not in (None, usual.get(name)):
            parts += [f"--{name}", str(given[name])]
    return shlex.join(parts)


def commands(contents: Contents) -> str:
    """The section with a command per file."""
    rows = [[f"<code>{text(name)}</code>", f"<code>{text(command)}</code>"] for name, command in artefacts(contents)]
    words = "Each file and the command that makes it; files that exist already need <code>--force</code>."
    return section("Every artefact", words, f'<div class="commands">{table("Commands", ["File", "Made by"], rows)}</div>')


def _bar(share: float) -> str:
    return f'<span class="meter" style="--share:{share:.3f}">{percent(share)}</span>'
