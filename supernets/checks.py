"""What can be said against a training run before it begins."""

from __future__ import annotations

import math

import torch

from search_spaces.errors import UserError
from supernets.arrays import ArraySplit
from supernets.data import ImageData
from supernets.distributed import ALONE, Ranks
from supernets.phases import plan_phases
from supernets.recipe import Recipe, check_recipe
from supernets.supernet import Supernet

__all__ = ["check_torch_device", "check_training"]


def check_training(supernet: Supernet, data: ImageData, recipe: Recipe, ranks: Ranks = ALONE, *, teacher: bool = False) -> None:
    """Raise a `UserError` unless these can train together; ``teacher``: one is given."""
    check_recipe(recipe, f"recipe '{recipe.name}'")
    if recipe.distill and not (teacher or recipe.sandwich or "full" in recipe.phases):
        raise UserError(
            f"recipe '{recipe.name}': distill = {recipe.distill:g}, and nothing teaches",
            allowed="A teacher is the largest network after the phase 'full', or in every step with sandwich = true",
            next_step="Add [phases.full] or sandwich = true, or set distill = 0",
        )
    parts = ranks.world * recipe.accumulate
    if supernet.classes != data.classes:
        raise UserError(
            f"{data.name} has {data.classes} classes, the supernet {supernet.classes}",
            allowed="Both must agree",
            next_step=f"Make the supernet with classes={data.classes}",
        )
    if len(data.train) < recipe.batch:
        raise UserError(
            f"{data.name} has {len(data.train)} training images for batches of {recipe.batch}",
            allowed="At least one full batch",
            next_step=f"Use a smaller batch (--batch {1 << max(1, len(data.train).bit_length() - 2)}) or more images",
        )
    if recipe.batch % parts or recipe.batch // parts < 2:
        raise UserError(
            f"a batch of {recipe.batch} images for {ranks.world} processes with accumulate = {recipe.accumulate}",
            allowed=f"The batch is {parts} equal parts of 2 images or more (batch normalisation needs more than one)",
            next_step=f"Use a batch of {max(2, math.ceil(recipe.batch / parts)) * parts}, or another number of processes",
        )
    _check_sizes(supernet)
    _check_arrays(supernet, data)
    plan_phases(recipe, supernet.space, steps=recipe.steps(len(data.train)))


def _check_sizes(supernet: Supernet) -> None:
    """Refuse resolutions at which a built-in network has less than a pixel left before its end."""
    space = supernet.space
    if not supernet.occupied or "resolution" not in space.smallest.to_dict():
        return
    resolution = int(space.smallest["resolution"])
    total = math.prod(getattr(layer, "stride", 1) for layer in space.lower(space.largest))
    if resolution < total:
        raise UserError(
            f"images of {resolution} px for {space.key}, whose networks shrink them {total} times",
            allowed=f"At least {total} px",
            next_step=f"Use larger resolutions: --resolution {total},{2 * total}, or the space small-mobilenet",
        )


def _check_arrays(supernet: Supernet, data: ImageData) -> None:
    """Refuse input sizes that arrays, which are not scaled, do not have."""
    sides = {int(side) for gene in supernet.space.genes if gene.choice == "resolution" for side in gene.options}
    if isinstance(data.train, ArraySplit) and sides and sides != {data.size}:
        shape = data.train.shape
        behind = len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3)
        raise UserError(
            f"examples of shape {shape} for input sizes {', '.join(map(str, sorted(sides)))}",
            allowed="Arrays are not scaled: every size is their last axis",
            next_step="Write them channels first: x.transpose(0, 3, 1, 2)"
            if behind
            else f"Restrict the space to it: --resolution {data.size}; image folders are scaled",
        )


def check_torch_device(name: str) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        UserError: neither ``cpu`` nor a CUDA device of this machine.
    """
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UserError(
            f"torch device '{name}'", allowed="cpu, cuda, or one GPU of several: cuda:1", next_step="Choose one of them"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"torch device '{name}', but torch sees no CUDA device",
            allowed="A CUDA build of torch and a GPU",
            next_step="Use the torch device cpu",
        )
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(
            f"torch device '{name}' on a machine with {torch.cuda.device_count()} GPUs",
            allowed=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            next_step="Choose one of them",
        )
