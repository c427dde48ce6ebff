"""The training recipes that ship, as TOML files beside this module."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from search_spaces.errors import unknown_name
from supernets import Recipe

__all__ = ["load_recipe", "recipe_names"]

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_recipe(name: str, *, epochs: float | None = None, batch: int | None = None) -> Recipe:
    """A recipe by name, or from a TOML file of the user's own.

    Args:
        epochs: of all phases together, instead of the recipe's.
        batch: images per step, instead of the recipe's.

    Raises:
        UserError: neither a known name nor a file, or a bad file.
    """
    path = Path(name)
    if name in recipe_names():
        path = _FOLDER / f"{name}.toml"
    elif path.suffix != ".toml":
        raise unknown_name("recipe", name, recipe_names(), command="nas train-supernet --help")
    recipe = Recipe.read(path)
    changes = {key: value for key, value in (("epochs", epochs), ("batch", batch)) if value is not None}
    return Recipe.from_dict(
        {**recipe.to_dict(), **changes, "phases": {k: dataclasses.asdict(v) for k, v in recipe.phases.items()}}, source=name
    )
