"""Fine-tuning: networks of the front trained on, alone, from the weights that they have in the supernet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from nas.recipes import load_recipe
from nas.runs import Run
from search_spaces import Architecture
from search_spaces.progress import Progress
from supernets import ImageData, Supernet, calibrated, load_tensors, save_tensors, train

__all__ = ["deployed_network", "finetune_network"]

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
    """
    path = _path(run, arch)
    if path.exists():
        return path
    data, seed = run.data(), run.settings["seed"]
    alone = _only(run, arch)
    alone.network.load_state_dict(run.supernet().extract(arch).state_dict())
    checkpoint = path.with_suffix(".checkpoint.safetensors")
    train(
        alone,
        data,
        load_recipe(recipe, epochs=epochs),
        checkpoint=checkpoint,
        seed=seed,
        stop=stop,
        progress=progress,
        label="fine-tune",
    )
    meta = {"architecture": arch.to_dict(), "supernet": run.weights_hash()}
    save_tensors(path, alone.state_dict(), "finetuned", FINETUNED_VERSION, meta)
    checkpoint.unlink(missing_ok=True)
    return path


def deployed_network(run: Run, arch: Architecture, data: ImageData) -> nn.Module:
    """The network that ships: fine-tuned weights where there are some, the supernet's otherwise; recalibrated."""
    path = _path(run, arch)
    seed = run.settings["seed"]
    if not path.exists():
        return calibrated(run.supernet(), arch, data, seed=seed)
    tensors, _ = load_tensors(path, "finetuned", FINETUNED_VERSION, make=f"nas finetune {run.path} --pick {arch.id}")
    alone = _only(run, arch)
    alone.load_state_dict(tensors)
    return calibrated(alone, arch, data, seed=seed)


def is_finetuned(run: Run, arch: Architecture) -> bool:
    """Whether `finetune_network` has run for an architecture."""
    return _path(run, arch).exists()


def _path(run: Run, arch: Architecture) -> Path:
    return run.path / "finetuned" / f"{arch.id}.safetensors"


def _only(run: Run, arch: Architecture) -> Supernet:
    """A supernet of one network: the same training serves it."""
    space = run.space
    row = space.to_array(arch)[0]
    single = {gene.name: [gene.options[index]] for gene, index in zip(space.genes, row, strict=True)}
    return Supernet(space.restrict(single), seed=run.settings["seed"])
