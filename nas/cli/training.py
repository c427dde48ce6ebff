"""Commands that train: supernets, and networks of the front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import AsJson, Quiet, RunFolder, Seed, chosen_space, interruptible
from nas.cli.terminal import TerminalProgress, print_json
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from search_spaces import SearchSpace

__all__ = ["finetune", "train_supernet"]


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
        chosen = chosen_space(space, width, _image(space, images.size), resolution)
        supernet = nas.Supernet(chosen, images.classes, channels=images.channels, seed=seed)
    else:
        chosen = _ownchosen_space(model, choices, images.input_shape, clash=width is not None or resolution is not None)
        supernet = nas.Supernet(chosen, images.classes, seed=seed)
    supernet = supernet.to(_torch_device(torch_device))
    progress = TerminalProgress(quiet=quiet)
    progress.say(f"{images.name}: {len(images.train)} training images; {chosen.key}: {chosen.count():.2e} networks")
    settings: dict[str, Any] = {"recipe": recipe, "epochs": epochs, "weights": weights, "seed": seed}
    with interruptible(progress) as stop:
        run = nas.train(supernet, images, out=out, stop=stop, progress=progress, **settings)
    if as_json:
        print_json({"run": str(run.path), **run.settings})
    else:
        progress.say(f"trained: {run.path}. Next: nas search {run.path} --limit latency=...")


def _ownchosen_space(model: str | None, choices: Path | None, input_shape: tuple[int, ...], *, clash: bool) -> SearchSpace:
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
    with interruptible(progress) as stop:
        path = nas.finetune(run, pick=pick, epochs=epochs, stop=stop, progress=progress)
    if as_json:
        print_json({"weights": str(path), "network": path.stem})
    else:
        typer.echo(f"{path}\nNext: nas export {run} --pick {path.stem}")
