"""The training recipes that ship, as TOML files beside this module."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from search_spaces.errors import unknown_name
from supernets.recipe import Recipe, check_recipe

__all__ = ["load_recipe", "recipe_names"]

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_recipe(recipe: str | Path | Recipe, *, epochs: float | None = None, batch: int | None = None) -> Recipe:
    """A recipe by name, from a TOML file of the user's own, or one that is made already; with other epochs or another batch.

    Args:
        epochs: of all phases together, instead of the recipe's.
        batch: images per step, instead of the recipe's.

    Raises:
        UserError: neither a known name nor a file, or a bad file, or numbers out of range.
    """
    found = recipe if isinstance(recipe, Recipe) else _read(str(recipe))
    changes: dict[str, Any] = {k: value for k, value in (("epochs", epochs), ("batch", batch)) if value is not None}
    found = dataclasses.replace(found, **changes)
    check_recipe(found, found.name if isinstance(recipe, Recipe) else str(recipe))
    return found


def _read(name: str) -> Recipe:
    if name in recipe_names():
        return Recipe.read(_FOLDER / f"{name}.toml")
    if not name.endswith(".toml"):
        raise unknown_name("recipe", name, recipe_names(), command="nas train-supernet --help")
    return Recipe.read(Path(name))
