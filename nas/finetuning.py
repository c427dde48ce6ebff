"""Fine-tuning: networks of the front trained on, alone, from the weights that they have in the supernet."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nas.archive import run_scores
from nas.pareto import ParetoFront
from nas.recipes import load_recipe
from nas.runs import Run
from search_spaces import Architecture
from search_spaces.artifacts import file_hash, value_hash
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from supernets import ImageData, Recipe, Supernet, calibrated, load_tensors, load_weights, save_tensors, train

__all__ = ["deployed_network", "find_network", "finetune_command", "finetune_network", "only", "weights_of"]

FINETUNED_VERSION = 1


def finetune_network(
    run: Run,
    arch: Architecture,
    *,
    epochs: float | None,
    recipe: str = "finetune",
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a subnet on, without its siblings; its weights go to the run's ``finetuned`` folder, done once.

    Args:
        epochs: default: the recipe's.
        recipe: a name or a TOML file; with ``distill`` the supernet's largest network teaches, on the subnet's images.

    Raises:
        UserError: the network was fine-tuned with another recipe.
    """
    path = _path(run, arch)
    chosen = load_recipe(recipe, epochs=epochs)
    if path.exists():
        _check_recipe(run, path, chosen)
        return path
    data, seed = run.data(), run.settings["seed"]
    alone = only(run, arch)
    alone.network.load_state_dict(run.supernet().extract(arch).state_dict())
    checkpoint = path.with_suffix(".checkpoint.safetensors")
    train(
        alone,
        data,
        chosen,
        checkpoint=checkpoint,
        seed=seed,
        teacher=calibrated(run.supernet(), _teacher(run, arch), data, seed=seed) if chosen.distill else None,
        stop=stop,
        progress=progress,
        label="fine-tune",
    )
    meta = {"architecture": arch.to_dict(), "supernet": run.weights_hash(), "recipe": chosen.to_dict()}
    save_tensors(path, alone.state_dict(), "finetuned", FINETUNED_VERSION, meta)
    checkpoint.unlink(missing_ok=True)
    return path


def finetune_command(run: Run, path: Path) -> str:
    """The command that made a file of the run's ``finetuned`` folder."""
    _, meta = load_tensors(path, "finetuned", FINETUNED_VERSION, make="nas finetune RUN")
    words = ["nas", "finetune", str(run.path), "--arch", path.stem]
    made = meta.get("recipe")
    if made is not None:
        recipe = Recipe.from_dict(made, source=str(path))
        words += ["--recipe", recipe.name] if recipe.name != "finetune" else []
        words += ["--epochs", repr(recipe.epochs)]
    return shlex.join(words)


def _teacher(run: Run, arch: Architecture) -> Architecture:
    """The largest network at the resolution of another one: its statistics must be those of the images it will see."""
    names = [gene.name for gene in run.space.genes]
    row = run.space.to_array(run.space.largest)[0].copy()
    if "resolution" in names:
        column = names.index("resolution")
        row[column] = run.space.to_array(arch)[0][column]
    return run.space.from_array(row[None])[0]


def _check_origin(run: Run, path: Path, meta: Mapping[str, Any]) -> None:
    """Refuse weights that began with those of another supernet."""
    if meta.get("supernet") not in (None, run.weights_hash()):
        raise UserError(
            f"{path} was fine-tuned from other weights than {run.weights} has now",
            allowed="Networks of the run's own supernet",
            next_step=f"Remove {path}, or fine-tune it anew after that: nas finetune {run.path} --arch {path.stem}",
        )


def _check_recipe(run: Run, path: Path, recipe: Recipe) -> None:
    _, meta = load_tensors(path, "finetuned", FINETUNED_VERSION, make="nas finetune RUN")
    _check_origin(run, path, meta)
    known = meta.get("recipe")  # files of the first version do not say
    if known is not None and value_hash(Recipe.from_dict(known, source=str(path)).to_dict()) != value_hash(recipe.to_dict()):
        raise UserError(
            f"{path} was fine-tuned with the recipe '{known['name']}' for {known['epochs']!r} epochs, "
            f"not '{recipe.name}' for {recipe.epochs!r}",
            allowed="A network is fine-tuned once",
            next_step=f"Give the same options, or remove {path} to train it anew",
        )


def find_network(run: Run, name: str) -> Architecture:
    """A network of a run by its id: one of the front or one that was scored; also ``largest`` and ``smallest``.

    Raises:
        UserError: none of them has this id.
    """
    ends = {"largest": run.space.largest, "smallest": run.space.smallest}
    if name in ends:
        return ends[name]
    known: list[Architecture] = []
    if run.file("front.json").exists():
        front = ParetoFront.load(run.file("front.json"))
        known += [point.arch for part in (front, *front.parts.values()) for point in part]
    if run.study.exists():
        known += [score.arch for score in run_scores(run)]
    for arch in known:
        if arch.id == name:
            return arch
    raise UserError(
        f"{run.path} knows no network '{name}'",
        allowed=f"largest, smallest, or the id of one of the {len({a.id for a in known})} networks scored or on the front",
        next_step=f"Make a front with: nas search {run.path}",
    )


def deployed_network(run: Run, arch: Architecture, data: ImageData) -> nn.Module:
    """The network that ships: fine-tuned weights where there are some, the supernet's otherwise; recalibrated, on the CPU."""
    path = _path(run, arch)
    seed = run.settings["seed"]
    if not path.exists():
        return calibrated(run.supernet(), arch, data, seed=seed).cpu()
    tensors, meta = load_tensors(path, "finetuned", FINETUNED_VERSION, make=f"nas finetune {run.path} --pick {arch.id}")
    _check_origin(run, path, meta)
    alone = only(run, arch)
    load_weights(alone, tensors, source=str(path))
    return calibrated(alone, arch, data, seed=seed).cpu()


def weights_of(run: Run, arch: Architecture) -> str:
    """Sixteen digits that identify the weights that `deployed_network` starts from."""
    path = _path(run, arch)
    return file_hash(path)[:16] if path.exists() else run.weights_hash()


def is_finetuned(run: Run, arch: Architecture) -> bool:
    """Whether `finetune_network` has run for an architecture."""
    return _path(run, arch).exists()


def _path(run: Run, arch: Architecture) -> Path:
    return run.path / "finetuned" / f"{arch.id}.safetensors"


def only(run: Run, arch: Architecture) -> Supernet:
    """A supernet of one network, with new weights: the same training serves it."""
    space = run.space
    row = space.to_array(arch)[0]
    single = {gene.name: [gene.options[index]] for gene, index in zip(space.genes, row, strict=True)}
    return Supernet(space.restrict(single), seed=run.settings["seed"]).to(run.torch_device)
