"""The files of a training run's state: the latest one, and the last one that was known to be good."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from search_spaces import completed
from search_spaces.artifacts import atomic_path, first_difference, value_hash
from search_spaces.errors import UserError
from search_spaces.records import reading, record
from supernets.checkpoint import load_tensors, save_tensors
from supernets.recipe import Recipe

__all__ = ["CheckpointFile"]

CHECKPOINT_VERSION = 2  # version 1 kept SGD's momentum only, under that name
KIND = "training-checkpoint"
GROUPS = ("supernet", "teacher", "optimiser", "average")

Groups = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class _State:
    """What a state says of itself, as far as training goes on with it; older versions lack the later fields."""

    step: int
    log: list[dict[str, Any]]
    noted: int = 0
    good_step: int = 0
    parts: int = 1
    lr_scale: float = 1.0
    best: float = 0.0
    scaler: dict[str, Any] | None = None
    averaged: int = 0


class CheckpointFile:
    """Where a training run keeps its state.

    Args:
        path: of the latest state; the last good one lies beside it while training runs. None keeps nothing.
        identity: what must agree between a state and the run that goes on from it, by its parts' names.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path, self._identity = path, identity
        self._good = None if path is None else path.with_suffix(f".good{path.suffix}")

    @property
    def exists(self) -> bool:
        return self.path is not None and self.path.exists()

    @property
    def has_good(self) -> bool:
        """Whether there is a state to go back to."""
        return self._good is not None and self._good.exists()

    def save(self, groups: Mapping[str, Mapping[str, Tensor]], losses: Tensor, meta: Mapping[str, Any]) -> None:
        """Replace the latest state; the old one stays until the new one is complete."""
        if self.path is None:
            return
        tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
        header = {"identity": self._identity, **meta}
        save_tensors(self.path, tensors | {"losses": losses}, KIND, CHECKPOINT_VERSION, header)

    def keep(self) -> None:
        """The latest state is good: go back to it if training fails from here on."""
        if self.path is not None and self._good is not None:
            with atomic_path(self._good) as temporary:
                shutil.copyfile(self.path, temporary)

    def forget(self) -> None:
        """Training is over: nobody goes back any more."""
        if self._good is not None:
            self._good.unlink(missing_ok=True)

    def load(self, *, good: bool = False) -> tuple[Groups, Tensor, dict[str, Any]]:
        """The latest state, or the last good one: tensors by group, the losses of the phase so far, the description.

        Raises:
            UserError: a damaged file, or the state of another run; the first difference is named.
        """
        path = self._good if good else self.path
        assert path is not None
        tensors, meta = load_tensors(path, KIND, CHECKPOINT_VERSION, make="nas train-supernet")
        with reading(path, allowed="A state as training saves it", next_step="Restore it from a copy, or train anew"):
            self._same_run(path, meta)
            if record(_State, meta).step < 0:
                raise ValueError(f"step {meta['step']}")
            losses = tensors.pop("losses")
            groups: Groups = {group: {} for group in GROUPS}
            for label, tensor in tensors.items():
                group, name = label.split(".", 1)
                if group == "momentum":
                    group, name = "optimiser", f"momentum_buffer.{name}"
                groups[group][name] = tensor
        return groups, losses, meta

    def _same_run(self, path: Path, meta: dict[str, Any]) -> None:
        found = dict(meta.get("identity", {}))
        if "recipe" in found:  # one of an older version lacks the newer fields
            found["recipe"] = Recipe.from_dict(found["recipe"], source=str(path)).to_dict()
        if "space" in found:
            found["space"] = completed(found["space"], self._identity.get("space", {}))
        if isinstance(found.get("data"), dict) and "name" in found["data"]:  # images are known by content, wherever they are
            found["data"] = {**found["data"], "name": self._identity.get("data", {}).get("name")}
        for part, value in self._identity.items():
            if value_hash(found.get(part)) != value_hash(value):
                raise UserError(
                    f"{path} belongs to a run with another {part}: {first_difference(found.get(part), value)}",
                    allowed="A run goes on with the space, recipe, data and seed that it began with",
                    next_step="Give the original settings, or another --out folder",
                )
