"""Commands that train: supernets, and networks of the front."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.beginning import data_line, notes, space_line
from nas.cli.options import AsJson, Quiet, RunFolder, Seed, TorchDevice, check_one, finite, interruptible, seedable
from nas.cli.terminal import TerminalProgress, print_json, show_table
from search_spaces.errors import UserError
from search_spaces.progress import duration

if TYPE_CHECKING:
    from supernets import ImageData, Ranks, Recipe, Supernet

__all__ = ["finetune", "rank_check", "train_supernet"]


def train_supernet(
    out: Annotated[Path, typer.Option(help="Run folder to make or to resume; a run knows its own options.")],
    data: Annotated[
        str | None,
        typer.Option(help="digits, fashion-mnist, cifar10:PATH, cifar100:PATH, folder:PATH, parquet:PATH, npz:PATH, fake."),
    ] = None,
    space: Annotated[str | None, typer.Option(help="Search space, see nas spaces; default: small-mobilenet.")] = None,
    width: Annotated[float | None, typer.Option(callback=finite, help="Width multiplier of the space.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Input sizes, e.g. 24,28,32; default: the space's.")] = None,
    model: Annotated[str | None, typer.Option(help="Networks of your own: FILE.py:FUNCTION. The file is run.")] = None,
    choices: Annotated[Path | None, typer.Option(help="TOML file with the choices of --model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of the largest network to start from.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="progressive (default), quick, sandwich, attentive, alpha-divergence, or a TOML file."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(callback=finite, help="Epochs of all phases together; default: the recipe's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Images a step; default: the recipe's.")] = None,
    augment: Annotated[bool | None, typer.Option(help="Shift, crop and mirror images; not worth it for few epochs.")] = None,
    mirror: Annotated[bool | None, typer.Option(help="Mirror, too; not where left and right differ: text, signs.")] = None,
    torch_device: TorchDevice = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the phases, their time and memory.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="TensorBoard scalars beside the CSV log.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, callback=seedable, help="Of everything random; default: 0.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a supernet. Run it again to resume. Many devices: torchrun --nproc-per-node N -m nas train-supernet ..."""
    import nas
    from nas.cli.wanted import training_wanted
    from supernets import processes
    from supernets.checks import check_torch_device, check_training

    shape = {"space": space, "width": width, "resolution": resolution, "model": model, "choices": choices}
    shown: dict[str, Any] = {"augment": augment, "mirror": mirror}
    wanted = training_wanted(out, data=data, recipe=recipe, epochs=epochs, batch=batch, **shown, seed=seed, shape=shape)
    check_torch_device(torch_device)  # before images are read, which may take a while
    with processes(cuda=torch_device.startswith("cuda")) as ranks:
        progress = TerminalProgress(quiet=quiet or not ranks.first)
        images = nas.load_data(wanted.data, seed=wanted.seed, augment=wanted.augment, mirror=wanted.mirror)
        supernet = wanted.supernet(images).to(_own_device(torch_device, ranks))
        check_training(supernet, images, wanted.recipe, ranks)
        for line in (data_line(images), space_line(supernet.space), *notes(images, wanted.recipe)):
            progress.say(line)
        if dry_run:
            _show_estimate(supernet, images, wanted.recipe, wanted.seed, ranks, progress, as_json=as_json)
            return
        settings: dict[str, Any] = {"recipe": wanted.recipe, "weights": weights, "seed": wanted.seed}
        with interruptible(progress) as stop:
            run = nas.train(
                supernet, images, out=out, tensorboard=tensorboard, ranks=ranks, stop=stop, progress=progress, **settings
            )
        if as_json and ranks.first:
            print_json({"run": str(run.path), **run.settings})
        elif ranks.first:
            progress.say(f"trained: {run.path}. Next: nas search {run.path} --limit latency=...")


def _show_estimate(
    supernet: Supernet,
    images: ImageData,
    recipe: Recipe,
    seed: int,
    ranks: Ranks,
    progress: TerminalProgress,
    *,
    as_json: bool,
) -> None:
    """The phases as a table; what is measured on one process says nothing about several."""
    import nas

    if ranks.world > 1:
        raise UserError(
            f"--dry-run in {ranks.world} processes", allowed="It measures one", next_step="Start it without torchrun"
        )
    phases = nas.estimate_training(supernet, images, recipe=recipe, seed=seed, progress=progress)
    if as_json:
        print_json([{**asdict(phase), "seconds": phase.seconds} for phase in phases])
        return
    columns = ("phase", "epochs", "steps", "networks a step", "ms a step", "time", "peak memory MiB")
    rows = [
        (
            p.name,
            f"{p.epochs:.1f}",
            p.steps,
            p.networks,
            f"{1000 * p.step_s:.0f}",
            duration(p.seconds),
            p.peak_bytes // 2**20,
        )
        for p in phases
    ]
    total = ("all", f"{sum(p.epochs for p in phases):.1f}", sum(p.steps for p in phases), "", "")
    show_table(columns, [*rows, (*total, duration(sum(p.seconds for p in phases)), max(p.peak_bytes for p in phases) // 2**20)])
    typer.echo("Measured on a few steps of each phase; validations come on top. Nothing was written.")


def _own_device(name: str, ranks: Ranks) -> str:
    """Each process of a machine has a GPU of its own."""
    if ranks.world > 1 and name.startswith("cuda:"):
        raise UserError(
            f"--torch-device {name} in {ranks.world} processes",
            allowed="Each process takes a GPU of its own",
            next_step="Write --torch-device cuda; CUDA_VISIBLE_DEVICES says which ones there are",
        )
    return f"cuda:{ranks.local}" if name == "cuda" else name


def finetune(
    run: RunFolder,
    pick: Annotated[
        str | None, typer.Option(help="Of the front: knee (default), best, fastest, latency=5ms, or an id.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Instead of --pick: id of a scored network, largest or smallest.")] = None,
    epochs: Annotated[float | None, typer.Option(callback=finite, help="Default: the recipe's.")] = None,
    recipe: Annotated[str, typer.Option(help="finetune, finetune-distilled, or a TOML file.")] = "finetune",
    torch_device: TorchDevice = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a network of the front on, alone; the next export ships these weights. Run it again to resume."""
    import nas

    progress = TerminalProgress(quiet=quiet)
    with interruptible(progress) as stop:
        opened = nas.Run.open(run, torch_device=torch_device)
        check_one("--pick", pick, "--arch", arch)
        chosen: dict[str, Any] = {"pick": pick, "arch": arch}
        path = nas.finetune(opened, **chosen, epochs=epochs, recipe=recipe, stop=stop, progress=progress)
    if as_json:
        print_json({"weights": str(path), "network": path.stem})
    else:
        typer.echo(f"{path}\nNext: nas export {run} --arch {path.stem}")


def rank_check(
    run: RunFolder,
    epochs: Annotated[float, typer.Option(callback=finite, help="Epochs that each network is trained alone.")],
    k: Annotated[int, typer.Option("--k", help="Networks, from the smallest to the largest.")] = 8,
    images: Annotated[int, typer.Option(min=1, help="Validation images per score, at most.")] = 2000,
    torch_device: TorchDevice = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train some networks alone and compare their order with the supernet's scores. Run it again to resume."""
    import nas

    progress = TerminalProgress(quiet=quiet)
    with interruptible(progress) as stop:
        opened = nas.Run.open(run, torch_device=torch_device)
        check = nas.rank_check(opened, networks=k, epochs=epochs, images=images, seed=seed, stop=stop, progress=progress)
    if as_json:
        print_json(check.to_dict())
        return
    rows = [(p.id, f"{p.macs / 1e6:.2f}", f"{p.shared:.1%}", f"{p.alone:.1%}") for p in check.pairs]
    show_table(("network", "M MACs", "in the supernet", "alone"), rows)
    if check.tau is None or check.tau_low is None:
        typer.echo("Kendall's tau: all networks are equally good by one of both scores")
    else:
        typer.echo(f"Kendall's tau {check.tau:.2f}, 95 % interval {check.tau_low:.2f} to {check.tau_high:.2f}")
