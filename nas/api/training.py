"""The verbs that train."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.api.defaults import DEFAULT_IMAGES
from nas.own_models import remember
from nas.runs import SUPERNET_VERSION, Run
from search_spaces import Architecture, ElasticSpace, SearchSpace
from search_spaces.artifacts import file_hash, locked, write_json
from search_spaces.checks import check_one, check_whole
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    from nas.fidelity import RankCheck
    from supernets import ImageData, PhaseEstimate, Ranks, Recipe, Supernet
    from supernets.training import Trained

__all__ = ["estimate_training", "finetune", "rank_check", "train"]

LOG_VERSION = 1


def train(
    supernet: Supernet,
    data: str | os.PathLike[str] | ImageData,
    *,
    out: str | Path,
    recipe: str | Path | Recipe = "progressive",
    epochs: float | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    tensorboard: bool = False,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> Run:
    """Train a supernet into a run folder; a folder that holds the same run, unfinished, is resumed.

    Args:
        data: a source for `nas.load_data` (``"digits"``, a folder ...) or its result.
        out: the run folder.
        recipe: a name, a TOML file, or a `Recipe`.
        epochs: of all phases together; default: the recipe's.
        weights: a checkpoint of the largest network to start from, see `nas.start_from`; becomes part of the run.
        seed: of everything random in training.
        tensorboard: losses, accuracies and speed as TensorBoard scalars too, in ``training/tensorboard``.
        ranks: the processes that train together, from `supernets.processes`; each of them calls this alike.
        stop: asked after every step; True saves a checkpoint and raises `supernets.Interrupted`.

    Raises:
        UserError: bad input, or ``out`` holds something else; nothing is overwritten.
    """
    from nas.recipes import load_recipe
    from supernets import ALONE, ImageData, load_data, start_from
    from supernets import train as run_training
    from supernets.checks import check_training

    ranks = ranks or ALONE
    images = data if isinstance(data, ImageData) else load_data(data, seed=seed)
    supernet.bind(images.input_shape)
    resolved = load_recipe(recipe, epochs=epochs)
    check_training(supernet, images, resolved, ranks)  # before there is a folder
    settings = _settings(supernet, images, resolved, seed)
    if weights is not None:
        progress.say(f"start from {start_from(supernet, weights)}")
        settings["weights"] = {"file": Path(weights).name, "sha256": file_hash(Path(weights))}
    if ranks.first and not (Path(out) / "run.json").exists():
        images.check(progress)
    run = replace(_made(out, settings, supernet.space, ranks), images=images)
    if run.weights.exists():
        progress.say(f"{run.path} is trained already")
        supernet.load_state_dict(run.supernet().state_dict())
        return run
    log, scalars = run.file("training/log.csv"), run.file("training/tensorboard") if tensorboard else None
    watched: dict[str, Any] = {"seed": seed, "ranks": ranks, "stop": stop, "progress": progress}
    with locked(run.path / "training", doing="training") if ranks.first else nullcontext():
        trained = run_training(supernet, images, resolved, checkpoint=run.checkpoint, log=log, scalars=scalars, **watched)
        if ranks.first:
            _keep(run, supernet, images, trained)
    ranks.wait()
    return run


def _keep(run: Run, supernet: Supernet, images: ImageData, trained: Trained) -> None:
    """Write the log, then the weights: a run that has them is trained."""
    from supernets import save_tensors

    done = {"phases": trained.log, "seconds": trained.seconds, "images": trained.images, "data": images.to_dict()}
    write_json(run.file("training/log.json"), "training-log", LOG_VERSION, done)
    save_tensors(run.weights, supernet.state_dict(), "supernet", SUPERNET_VERSION, {"space": run.settings["space"]})


def _settings(supernet: Supernet, images: ImageData, recipe: Recipe, seed: int) -> dict[str, Any]:
    return {
        "space": supernet.space.to_dict(),
        "data": {"source": images.source, "seed": images.seed, **images.identity()},
        "recipe": recipe.to_dict(),
        "seed": seed,
    }


def _made(out: str | Path, settings: dict[str, Any], space: SearchSpace, ranks: Ranks) -> Run:
    """The run's folder: the first process makes it, the others wait for it."""
    if ranks.first:
        run = Run.create(out, settings, space=space)
        if isinstance(space, ElasticSpace):
            remember(run.path, space)
    ranks.wait()
    return run if ranks.first else Run.create(out, settings, space=space)


def estimate_training(
    supernet: Supernet,
    data: str | os.PathLike[str] | ImageData,
    *,
    recipe: str | Path | Recipe = "progressive",
    epochs: float | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[PhaseEstimate]:
    """Time and memory of the phases that `train` would run, from a few steps of each; nothing is written or changed."""
    from nas.recipes import load_recipe
    from supernets import ImageData, load_data
    from supernets import estimate_training as run_estimate

    images = data if isinstance(data, ImageData) else load_data(data, seed=seed)
    return run_estimate(supernet, images, load_recipe(recipe, epochs=epochs), seed=seed, progress=progress)


def finetune(
    run: str | Path | Run,
    *,
    pick: str | None = None,
    arch: str | Architecture | None = None,
    epochs: float | None = None,
    recipe: str = "finetune",
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> Path:
    """Train a network on, alone; the next export ships these weights. Resumable, and done once.

    Args:
        pick: of the front, as for `export`; ``knee`` without it and without ``arch``.
        arch: instead of ``pick``: an architecture, the id of one that was scored, ``largest`` or ``smallest``.
        epochs: default: those of the recipe.
        recipe: a name or a TOML file. With ``distill`` above 0 (as in ``finetune-distilled``) the supernet's largest
            network teaches.

    Raises:
        UserError: nothing on the front fits ``pick``, or the network was fine-tuned otherwise before.
    """
    from nas.finetuning import find_network, finetune_network
    from nas.pareto import ParetoFront

    check_one(pick=pick, arch=arch)
    opened = Run.of(run)
    if arch is None:
        chosen = ParetoFront.load(opened.file("front.json")).pick(pick or "knee").arch
    else:
        chosen = find_network(opened, arch) if isinstance(arch, str) else arch
    with locked(opened.path / "finetuned" / f"{chosen.id}.safetensors", doing="fine-tuning"):
        return finetune_network(opened, chosen, epochs=epochs, recipe=recipe, stop=stop, progress=progress)


def rank_check(
    run: str | Path | Run,
    *,
    networks: int = 8,
    epochs: float,
    images: int = DEFAULT_IMAGES,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> RankCheck:
    """Train some subnets alone and compare their order with the supernet's: Kendall's tau, in ``rank_check.json``.

    Args:
        networks: how many, from the smallest to the largest.
        epochs: that each of them is trained, with the recipe ``single``.
        images: validation images per score, at most.

    Raises:
        UserError: fewer than 3 networks, a number out of range, or the run holds a check with others.
    """
    from nas.fidelity import check_ranks

    check_whole("seed", seed, 0)
    check_whole("images", images, 1)
    opened = Run.of(run)
    with locked(opened.path / "rank_check", doing="checking ranks in"):
        return check_ranks(opened, networks=networks, epochs=epochs, images=images, seed=seed, stop=stop, progress=progress)
