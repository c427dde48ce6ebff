"""What a training is to be made of: the options given, and for a run that exists its own for those that were not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.cli.options import chosen_space
from search_spaces import ElasticSpace
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from nas.runs import Run
    from search_spaces import SearchSpace
    from supernets import ImageData, Recipe, Supernet

__all__ = ["Wanted", "training_wanted"]


@dataclass(frozen=True)
class Wanted:
    """Options of a training, complete.

    Attributes:
        shape: ``space``, ``width``, ``resolution``, ``model`` and ``choices`` as given.
        run: that exists already; its space is taken where none was given.
    """

    data: str
    recipe: Recipe
    augment: bool
    mirror: bool
    seed: int
    shape: Mapping[str, Any]
    run: Run | None

    def supernet(self, images: ImageData) -> Supernet:
        """A new supernet for the images."""
        import nas

        space = self._space(images)
        channels = None if isinstance(space, ElasticSpace) else images.channels
        return nas.Supernet(space, images.classes, channels=channels, seed=self.seed)

    def _space(self, images: ImageData) -> SearchSpace:
        given = self.shape
        if self.run is not None and all(value is None for value in given.values()):
            return self.run.space
        if given["model"] is None and given["choices"] is None:
            name = given["space"] or "small-mobilenet"
            return chosen_space(name, given["width"], _image(name, images.size), given["resolution"])
        return _own_space(given["model"], given["choices"], images, clash=bool(given["width"] or given["resolution"]))


def training_wanted(
    out: Path,
    *,
    data: str | None,
    recipe: str | None,
    epochs: float | None,
    batch: int | None,
    augment: bool | None,
    mirror: bool | None,
    seed: int | None,
    shape: Mapping[str, Any],
) -> Wanted:
    """Complete the options; everything that can be checked without reading images is checked.

    Raises:
        UserError: no data for a new run, or a recipe that there is not.
    """
    from nas.recipes import load_recipe
    from nas.runs import Run
    from supernets import Recipe

    run = Run.open(out) if (out / "run.json").exists() else None
    if data is None and run is None:
        raise UserError(
            f"{out} is no run yet, and there are no images for it",
            allowed="A new run needs --data; one that exists knows its own",
            next_step="Write for example: --data folder:PATH, or --data digits",
        )
    known: dict[str, Any] = run.settings if run is not None else {"data": {}, "seed": 0}
    own = "progressive" if run is None else Recipe.from_dict(known["recipe"], source=str(out / "run.json"))
    chosen = load_recipe(recipe or own, epochs=epochs, batch=batch)
    shown = {
        name: known["data"].get(name, True) if value is None else value
        for name, value in (("augment", augment), ("mirror", mirror))
    }
    source = data if data is not None else str(known["data"]["source"])
    return Wanted(source, chosen, **shown, seed=int(known["seed"]) if seed is None else seed, shape=shape, run=run)


def _own_space(model: str | None, choices: Path | None, images: ImageData, *, clash: bool) -> SearchSpace:
    import nas
    from nas.own_models import find_model, read_choices

    if model is None or choices is None or clash:
        raise UserError(
            "--model, --choices, --width, --resolution",
            allowed="--model and --choices together, and then neither --width nor --resolution",
            next_step="Write: --model my_model.py:build --choices my_choices.toml",
        )
    given = read_choices(choices, model)
    return nas.elastic(find_model(model), given.pop("choices"), **given, input_shape=images.input_shape)


def _image(space: str, size: int) -> int | None:
    """The small-image space is made for the data's own size, within its range."""
    return min(64, max(28, size)) if space == "small-mobilenet" else None
