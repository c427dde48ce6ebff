"""The commands; each one is thin: options in, a verb of `nas.api`, results out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.terminal import EXIT_BROKEN, EXIT_INTERRUPTED, Stop, TerminalProgress, print_json, show_table
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from nas.demo import DemoResult
    from search_spaces import SearchSpace

__all__ = ["app"]

app = typer.Typer(
    help="Hardware-aware neural architecture search: train one supernet, measure your device, get verified networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFolder = Annotated[Path, typer.Argument(help="Run folder, as nas train-supernet made it.")]
DeviceName = Annotated[str, typer.Option("--device", help="Device; see nas devices.")]
AsJson = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@contextmanager
def _interruptible(progress: TerminalProgress) -> Iterator[Stop]:
    """Long training inside: Ctrl-C finishes the step, saves, and exits with 130."""
    from supernets import Interrupted

    with Stop().listening() as stop:
        try:
            yield stop
        except Interrupted as event:
            progress.say(f"{event}; run the same command again to go on")
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _space(name: str, width: float | None, image: int | None, resolution: str | None) -> SearchSpace:
    import nas

    given: dict[str, Any] = {"width": width, "image": image}
    if resolution:
        try:
            given["resolution"] = sorted({int(part) for part in resolution.split(",")})
        except ValueError:
            raise UserError(
                f"--resolution {resolution}", allowed="Whole numbers with commas", next_step="Write: --resolution 24,28,32"
            ) from None
    return nas.space(name, **{key: value for key, value in given.items() if value is not None})


@app.command("train-supernet")
def train_supernet(
    data: Annotated[
        str, typer.Option(help="digits, fashion-mnist, cifar10:PATH, cifar100:PATH, folder:PATH, parquet:PATH, npz:PATH, fake.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make or to resume.")],
    space: Annotated[str, typer.Option(help="Search space; see nas spaces.")] = "small-mobilenet",
    width: Annotated[float | None, typer.Option(help="Width multiplier of the space.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Input sizes, e.g. 24,28,32; default: the space's.")] = None,
    model: Annotated[str | None, typer.Option(help="Networks of your own: FILE.py:FUNCTION. The file is run.")] = None,
    choices: Annotated[Path | None, typer.Option(help="TOML file with the choices of --model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of the largest network to start from.")] = None,
    recipe: Annotated[str, typer.Option(help="Training recipe, or a TOML file.")] = "progressive",
    epochs: Annotated[float | None, typer.Option(help="Epochs of all phases together; default: the recipe's.")] = None,
    torch_device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a supernet by progressive shrinking. Run it again to resume."""
    import nas

    images = nas.load_data(data, seed=seed)
    chosen: SearchSpace
    if model is None and choices is None:
        chosen = _space(space, width, _image(space, images.size), resolution)
        supernet = nas.Supernet(chosen, images.classes, channels=images.channels, seed=seed)
    else:
        chosen = _own_space(model, choices, images.input_shape, clash=width is not None or resolution is not None)
        supernet = nas.Supernet(chosen, images.classes, seed=seed)
    supernet = supernet.to(_torch_device(torch_device))
    progress = TerminalProgress(quiet=quiet)
    progress.say(f"{images.name}: {len(images.train)} training images; {chosen.key}: {chosen.count():.2e} networks")
    settings: dict[str, Any] = {"recipe": recipe, "epochs": epochs, "weights": weights, "seed": seed}
    with _interruptible(progress) as stop:
        run = nas.train(supernet, images, out=out, stop=stop, progress=progress, **settings)
    if as_json:
        print_json({"run": str(run.path), **run.settings})
    else:
        progress.say(f"trained: {run.path}. Next: nas search {run.path} --limit latency=...")


def _own_space(model: str | None, choices: Path | None, input_shape: tuple[int, ...], *, clash: bool) -> SearchSpace:
    import nas
    from nas.own_models import find_model, read_choices

    if model is None or choices is None or clash:
        raise UserError(
            "--model, --choices, --width, --resolution",
            allowed="--model and --choices together, and then neither --width nor --resolution",
            next_step="Write: --model my_model.py:build --choices my_choices.toml",
        )
    given = read_choices(choices)
    return nas.elastic(find_model(model), given.pop("choices"), **given, input_shape=input_shape)


def _image(space: str, size: int) -> int | None:
    """The small-image space is made for the data's own size, within its range."""
    return min(64, max(28, size)) if space == "small-mobilenet" else None


def _torch_device(name: str) -> str:
    import torch

    if name not in ("cpu", "cuda"):
        raise UserError(f"--torch-device {name}", allowed="cpu or cuda", next_step="Choose one of them")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--torch-device cuda, but torch sees no CUDA device",
            allowed="A CUDA build of torch and a GPU",
            next_step="Train with --torch-device cpu",
        )
    return name


@app.command()
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
    chosen = nas.Run.open(run).space if run is not None else _space(str(space), width, None, resolution)
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


@app.command()
def search(
    run: RunFolder,
    device: DeviceName = "onnxruntime-cpu",
    limit: Annotated[list[str] | None, typer.Option(help="Hard limit, e.g. latency=5ms or params=4M; may be repeated.")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="accuracy, latency, macs, params, size, memory; repeat.")] = None,
    samples: Annotated[int, typer.Option(help="Scored subnets that the accuracy predictor learns from.")] = 100,
    points: Annotated[int, typer.Option(help="Networks on the front.")] = 16,
    predictor: Annotated[str, typer.Option(help="auto, ridge, gaussian-process, svr, mlp ...")] = "auto",
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the Pareto front of a trained run on a device, under hard limits."""
    import nas

    limits: dict[str, str] = {}
    for text in limit or []:
        name, sign, value = text.partition("=")
        if not sign or name in limits:
            raise UserError(f"--limit {text}", allowed="NAME=VALUE, each name once", next_step="Write: --limit latency=5ms")
        limits[name] = value
    front = nas.search(
        run,
        device=device,
        objectives=tuple(objective or ("accuracy", "latency")),
        limits=limits,
        samples=samples,
        points=points,
        predictor=predictor,
        seed=seed,
        force=force,
        progress=TerminalProgress(quiet=quiet),
    )
    if as_json:
        print_json(front.to_frame().to_dict(orient="records"))
        return
    rows = [
        (
            point.arch.id,
            f"{point.values['accuracy']:.1%} ± {point.std['accuracy']:.1%}",
            f"{point.values['latency']:.3g}",
            f"{point.values['macs'] / 1e6:.2f}",
            f"{point.values['params'] / 1e6:.3f}",
        )
        for point in front
    ]
    show_table(["network", "accuracy (predicted)", "latency ms (estimated)", "MACs (M)", "params (M)"], rows)
    typer.echo(f"Next: nas export {run} --pick knee, or all of them: nas export {run}")


@app.command()
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


@app.command()
def finetune(
    run: RunFolder,
    pick: Annotated[str, typer.Option(help="knee, best, fastest, latency=5ms, or an id.")] = "knee",
    epochs: Annotated[float | None, typer.Option(help="Default: the recipe's.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a network of the front on, alone; the next export ships these weights. Run it again to resume."""
    import nas

    progress = TerminalProgress(quiet=quiet)
    with _interruptible(progress) as stop:
        path = nas.finetune(run, pick=pick, epochs=epochs, stop=stop, progress=progress)
    if as_json:
        print_json({"weights": str(path), "network": path.stem})
    else:
        typer.echo(f"{path}\nNext: nas export {run} --pick {path.stem}")


@app.command()
def verify(
    run: RunFolder, device: DeviceName = "onnxruntime-cpu", seed: Seed = 0, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Measure the exported networks on the device and on the test images: promised against verified."""
    import nas

    result = nas.verify(run, device=device, seed=seed, progress=TerminalProgress(quiet=quiet))
    if as_json:
        print_json({"summary": result.summary(), **dataclasses.asdict(result)})
    else:
        _show_verification(result)
    if not result.passed:
        typer.echo("error: a verified network breaks a limit; see the table", err=True)
        raise typer.Exit(EXIT_BROKEN)


def _show_verification(result: Any) -> None:
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


@app.command()
def report(run: RunFolder, as_json: AsJson = False) -> None:
    """Write report.html: the front, promised against verified, and the command that exports each network."""
    import nas

    path = nas.report(run)
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(str(path))


@app.command()
def spaces(name: Annotated[str | None, typer.Argument(help="One space in detail.")] = None, as_json: AsJson = False) -> None:
    """List the built-in search spaces, or show one."""
    import nas

    if name is None:
        known = nas.spaces()
        if as_json:
            print_json(known)
        else:
            show_table(["space", "about"], list(known.items()))
        return
    space = nas.space(name)
    facts = _space_facts(space)
    if as_json:
        print_json(facts)
        return
    typer.echo(f"{space.key}: {facts['networks']:.3e} networks\n")
    show_table(["choice", "positions", "options"], [(c["name"], c["positions"], c["options"]) for c in facts["choices"]])
    ends = [(label, f"{v['macs'] / 1e6:.2f}", f"{v['params'] / 1e6:.3f}") for label, v in facts["extremes"].items()]
    typer.echo("")
    show_table(["network", "MACs (M)", "params (M)"], ends)


def _space_facts(space: SearchSpace) -> dict[str, Any]:
    choices = [
        {"name": name, "positions": choice.length or 1, "options": list(choice.options)}
        for name, choice in space.choices.items()
    ]
    ends = {"smallest": space.smallest, "largest": space.largest}
    extremes = {label: {"macs": space.macs(arch), "params": space.params(arch)} for label, arch in ends.items()}
    return {
        "space": space.key,
        "parameters": space.parameters,
        "networks": space.count(),
        "choices": choices,
        "extremes": extremes,
    }


@app.command()
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


@app.command()
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
    with _interruptible(progress) as stop:
        result = run_demo(data, out=out, device=device, seed=seed, stop=stop, progress=progress)
    if as_json:
        print_json(result.to_dict())
    else:
        _show_demo(result, progress)
    if not result.passed:
        raise typer.Exit(EXIT_BROKEN)


def _show_demo(result: DemoResult, progress: TerminalProgress) -> None:
    progress.say("")
    _show_verification(result.verification)
    typer.echo("")
    for line in result.lines():
        typer.echo(line)
