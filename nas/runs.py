"""A run is a folder: what was trained, measured, searched and shipped, each in its own file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import search_spaces
from search_spaces import SearchSpace
from search_spaces.artifacts import read_json, value_hash, write_json
from search_spaces.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from supernets import ImageData, Supernet

__all__ = ["Run"]

RUN_VERSION = 1
SUPERNET_VERSION = 1
_TRAIN = "nas train-supernet --out RUN"


@dataclass(frozen=True)
class Run:
    """An existing run folder.

    Attributes:
        path: the folder.
        settings: what the run was made with (space, data, recipe, seed), as in ``run.json``.
    """

    path: Path
    settings: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a folder that `create` made.

        Raises:
            UserError: there is no run, or its description is damaged.
        """
        folder = Path(path)
        value = read_json(folder / "run.json", "run", RUN_VERSION, make=_TRAIN.replace("RUN", str(folder)))
        settings: dict[str, Any] = {key: value[key] for key in ("space", "data", "recipe", "seed") if key in value}
        if len(settings) != 4:
            raise UserError(
                f"{folder / 'run.json'} is incomplete",
                allowed="It names space, data, recipe and seed",
                next_step=f"Make a new run with: {_TRAIN}",
            )
        return cls(folder, settings)

    @classmethod
    def create(cls, path: str | Path, settings: dict[str, Any]) -> Run:
        """Make the folder, or open it if it holds the same run already.

        Raises:
            UserError: the folder holds another run, or files that are not a run's. Nothing is overwritten.
        """
        folder = Path(path)
        if (folder / "run.json").exists():
            run = cls.open(folder)
            for part, value in settings.items():
                if value_hash(run.settings[part]) != value_hash(value):
                    raise UserError(
                        f"{folder} holds another run: its {part} is {_brief(run.settings[part])}, not {_brief(value)}",
                        allowed="A run goes on with the settings that it began with",
                        next_step="Choose another folder with --out, or give the run's own settings",
                    )
            return run
        if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {"tables"}):
            raise UserError(
                f"{folder} exists and is not a run",
                allowed="A new or empty folder",
                next_step="Choose another one with --out",
            )
        write_json(folder / "run.json", "run", RUN_VERSION, settings)
        return cls(folder, settings)

    # ---- files ----

    @property
    def checkpoint(self) -> Path:
        return self.path / "training" / "checkpoint.safetensors"

    @property
    def weights(self) -> Path:
        return self.path / "supernet.safetensors"

    @property
    def study(self) -> Path:
        return self.path / "study.db"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    def file(self, name: str) -> Path:
        """A file in the folder: ``front.json``, ``verified.json``, ``report.html`` ..."""
        return self.path / name

    def table(self, device: str) -> Path:
        return self.path / "tables" / f"{device}.json"

    # ---- contents ----

    @property
    def space(self) -> SearchSpace:
        return search_spaces.from_dict(self.settings["space"])

    def data(self) -> ImageData:
        """The run's images, checked against the hash that the run was trained with; read once."""
        return self._data

    @cached_property
    def _data(self) -> ImageData:
        from supernets import load_data

        wanted = self.settings["data"]
        data = load_data(wanted["source"], seed=wanted["seed"])
        if data.hash != wanted["hash"]:
            raise UserError(
                f"{wanted['source']} has changed since {self.path} was trained",
                allowed=f"The images with hash {wanted['hash']}; found {data.hash}",
                next_step="Restore the images, or train anew in another folder",
            )
        return data.shown_as(int(self.space.parameters["channels"]))

    def supernet(self) -> Supernet:
        """The trained supernet; read once, and not to be changed."""
        return self._supernet

    @cached_property
    def _supernet(self) -> Supernet:
        from supernets import Supernet, load_weights

        supernet = Supernet(self.space)
        load_weights(supernet, self._weights[0], source=str(self.weights))
        return supernet.eval()

    @cached_property
    def _weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The trained tensors and the description of their file."""
        from supernets import load_tensors

        make = f"nas train-supernet --out {self.path}"
        if not self.weights.exists() and self.checkpoint.exists():
            raise UserError(
                f"{self.path} is not trained to the end", allowed="A finished supernet", next_step=f"Resume it with: {make}"
            )
        return load_tensors(self.weights, "supernet", SUPERNET_VERSION, make=make)

    def weights_hash(self) -> str:
        """Identifies the trained weights; scores of other weights do not belong to this run."""
        return str(self._weights[1]["checksum"])[:16]


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        named = [f"{k}={v}" for k, v in value.items() if not isinstance(v, (dict, list))]
        return f"{', '.join(named)} ({value_hash(value)})"
    return str(value)
