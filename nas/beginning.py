"""What a training begins with, in words: its images, its space, and what is too little of either."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from search_spaces import ElasticSpace, SearchSpace

if TYPE_CHECKING:
    from supernets import ImageData, Recipe

__all__ = ["data_line", "notes", "sides", "space_line"]

FEW_STEPS, ENOUGH_STEPS = 500, 1000  # of training: a supernet has its whole space to learn in them
NAMED = 5  # classes
FEW_IMAGES = 200  # to score a network on: the standard error at 50 % is 3.5 points then


def sides(space: SearchSpace) -> list[int]:
    """Input sizes to choose from, px; none where they are no choice."""
    return [int(side) for gene in space.genes if gene.choice == "resolution" for side in gene.options]


def data_line(images: ImageData) -> str:
    """How many images, and for what."""
    return (
        f"data        {images.name}: {len(images.train)} images to train, {len(images.val)} to score, "
        f"{len(images.test)} to test, {images.classes} classes"
    )


def space_line(space: SearchSpace) -> str:
    """How many networks, of how many layers; those of a network of the user's own are not known before it is measured."""
    at = f" at {', '.join(map(str, sides(space)))} px" if sides(space) else ""
    layers = "" if isinstance(space, ElasticSpace) else f", {len(space.layers())} different layers"
    return f"space       {space.key}{at}: {space.count():.2e} networks{layers}"


def notes(images: ImageData, recipe: Recipe) -> Iterator[str]:
    """What a user should know of the images, and what is likely to be too little, with what to do about it."""
    for line in images.notes:
        yield f"note        {line}"
    if images.source.partition(":")[0] in ("folder", "parquet"):
        shown = f"{', '.join(images.class_names[:NAMED])}{' ...' if images.classes > NAMED else ''}"
        drawn = " and ".join(name for name, _ in images.held_out)
        yield f"note        classes {shown}{f'; {drawn} are drawn from the training images' if drawn else ''}"
        if images.mirrored:
            yield "note        images are mirrored in training; --no-mirror where left and right differ (text, digits, signs)"
    steps = recipe.steps(len(images.train))
    if steps < FEW_STEPS:
        epochs = math.ceil(ENOUGH_STEPS * recipe.epochs / steps)
        yield f"note        {steps} training steps are few for a supernet; --epochs {epochs} makes {ENOUGH_STEPS:,}"
    if len(images.val) < FEW_IMAGES:
        error = 50 / math.sqrt(len(images.val))
        yield (
            f"note        a score on {len(images.val)} images is uncertain by {error:.0f} points; "
            "more to score are worth more than more to train"
        )
