"""A run is a folder: what was trained, measured, searched and shipped, each in its own file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import search_spaces
from search_spaces import ElasticSpace, SearchSpace, completed
from search_spaces.artifacts import LOCK, PARTIAL, first_difference, locked, read_json, value_hash, write_json
from search_spaces.errors import UserError
from search_spaces.records import reading, record
from supernets.recipe import Recipe

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
        settings: what the run was made with (space, data, recipe, seed, weights if any), as in ``run.json``.
        own: the space as it was made, where it is at hand: a file holds no constructor, and not how a user's layers are made.
        images: the run's data, where they are at hand.
        torch_device: where networks are scored and trained on: ``cpu``, ``cuda``, ``cuda:1`` ...
    """

    path: Path
    settings: dict[str, Any]
    own: SearchSpace | None = field(default=None, repr=False, compare=False)
    images: ImageData | None = field(default=None, repr=False, compare=False)
    torch_device: str = field(default="cpu", repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, *, space: SearchSpace | None = None, torch_device: str = "cpu") -> Run:
        """Open a folder that `create` made.

        Args:
            space: of a run with networks or layers of your own, where the run cannot or should not find them itself; see
                `nas.own_models`.
            torch_device: where `nas.score`, `nas.search`, `nas.finetune` and `nas.rank_check` run networks.

        Raises:
            UserError: there is no run, its description is damaged, the space is another one, or torch has no such device.
        """
        if torch_device != "cpu":
            from supernets.checks import check_torch_device

            check_torch_device(torch_device)
        folder = Path(path)
        if not (folder / "run.json").exists():
            raise _no_run(folder)
        value = read_json(folder / "run.json", "run", RUN_VERSION, make=_TRAIN.replace("RUN", str(folder)))
        with reading(
            folder / "run.json", allowed="It names space, data, recipe and seed", next_step=f"Make a new run with: {_TRAIN}"
        ):
            settings = asdict(record(_Settings, value))
            if settings["weights"] is None:
                del settings["weights"]
            # The recipe of an older version lacks the newer fields: they had no other values then than their defaults now.
            settings["recipe"] = Recipe.from_dict(settings["recipe"], source=str(folder / "run.json")).to_dict()
            for name in ("source", "hash"):
                if not isinstance(settings["data"][name], str):
                    raise ValueError(f"the data's {name} is {settings['data'][name]!r:.40}")
        _refuse_links(folder)
        return cls(folder, settings, torch_device=torch_device)._with(space)

    def _with(self, space: SearchSpace | None) -> Run:
        """The run with its space at hand: what a file cannot hold of it."""
        if space is None:
            return self
        shaped = space
        if isinstance(space, ElasticSpace):
            known = self.settings["space"].get("parameters", {})
            shaped = space.made_with(input_shape=known.get("input_shape"), outputs=known.get("outputs"))
        if value_hash(shaped.to_dict()) != value_hash(completed(self.settings["space"], shaped.to_dict())):
            raise UserError(
                f"{self.path} holds a run of another space: {_brief(self.settings['space'])}, not {_brief(shaped.to_dict())}",
                allowed="The space that the run was made with",
                next_step="Give the same space: of a network of your own its constructor, choices, fixed arguments and rules",
            )
        return replace(self, own=shaped)

    def _at(self, source: str) -> Run:
        """The run with the place where its images are now, which is kept: they are known by their content."""
        data = self.settings["data"]
        if source == data["source"]:
            return self
        settings = {**self.settings, "data": {**data, "source": source}}
        write_json(self.path / "run.json", "run", RUN_VERSION, settings)
        return replace(self, settings=settings)

    @classmethod
    def of(cls, run: str | Path | Run) -> Run:
        """A run, or the one in a folder."""
        return run if isinstance(run, Run) else cls.open(run)

    @classmethod
    def create(cls, path: str | Path, settings: dict[str, Any], *, space: SearchSpace | None = None) -> Run:
        """Make the folder, or open it if it holds the same run already.

        Raises:
            UserError: the folder holds another run, or files that are not a run's. Nothing is overwritten.
        """
        folder = Path(path)
        if (folder / "run.json").exists():
            run = cls.open(folder)
            run = replace(run, settings={**run.settings, "space": completed(run.settings["space"], settings["space"])})
            for part in dict.fromkeys([*settings, *run.settings]):
                known, value = (_identity(part, given.get(part)) for given in (run.settings, settings))
                if value_hash(known) != value_hash(value):
                    raise UserError(
                        f"{folder} holds another run: its {part} differs ({first_difference(known, value)})",
                        allowed="A run goes on with the settings that it began with",
                        next_step="Choose another folder with --out, or leave that option out: a run knows its own",
                    )
            return run._at(settings["data"]["source"])._with(space)
        if folder.exists() and not _is_free(folder):
            raise UserError(
                f"{folder} exists and is not a run",
                allowed="A new or empty folder",
                next_step="Choose another one with --out",
            )
        with locked(folder / "run.json", doing="making"):
            if not (folder / "run.json").exists():
                write_json(folder / "run.json", "run", RUN_VERSION, settings)
                return cls(folder, settings)._with(space)
        return cls.create(folder, settings, space=space)  # another process has made it in between

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
        from latency_tables import file_name

        return self.path / "tables" / f"{file_name(device)}.json"

    # ---- contents ----

    @cached_property
    def space(self) -> SearchSpace:
        """The run's space; one of the user's own networks loads their file when a network is first built."""
        if self.own is not None:
            return self.own
        if "rules" in self.settings["space"]:
            from nas.own_models import recorded_space

            return recorded_space(self.path, self.settings["space"])
        return search_spaces.from_dict(self.settings["space"])

    def data(self) -> ImageData:
        """The run's data, checked against the hash that the run was trained with; read once."""
        return self._data

    @cached_property
    def _data(self) -> ImageData:
        from supernets import load_data, shown_to

        wanted = self.settings["data"]
        try:
            shown = {name: wanted.get(name, True) for name in ("augment", "mirror")}
            data = self.images or load_data(wanted["source"], seed=wanted["seed"], **shown)
        except UserError as error:
            raise UserError(
                f"the images of {self.path} are not where they were when it was trained: {error.problem}",
                allowed=f"The images of {wanted['source']}, at that place or at another one",
                next_step=f"Put them back, or say where they are: nas train-supernet --out {self.path} --data SOURCE",
            ) from None
        if data.hash != wanted["hash"]:
            raise UserError(
                f"{wanted['source']} has changed since {self.path} was trained",
                allowed=f"The images with hash {wanted['hash']}; found {data.hash}",
                next_step="Restore the images, or train anew in another folder",
            )
        return shown_to(data, self.space)

    def supernet(self) -> Supernet:
        """The trained supernet; read once, and not to be changed."""
        return self._supernet

    @cached_property
    def _supernet(self) -> Supernet:
        from supernets import Supernet, load_weights

        stored = sum(tensor.numel() for tensor in self._weights[0].values())
        if self.space.params(self.space.largest) > stored:  # else it would be built first, however large it is
            raise UserError(
                f"{self.weights} holds {stored:,} numbers, the largest network of {self.space.key} has more",
                allowed="The weights of the run's own space",
                next_step="Restore the run's files from a copy, or train anew in another folder",
            )
        supernet = Supernet(self.space)
        load_weights(supernet, self._weights[0], source=str(self.weights))
        return supernet.eval().to(self.torch_device)

    @cached_property
    def _weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The trained tensors and the description of their file."""
        from supernets import load_tensors

        return load_tensors(self.weights, "supernet", SUPERNET_VERSION, make=self.check_trained())

    def weights_hash(self) -> str:
        """Identifies the trained weights; scores of other weights do not belong to this run."""
        return str(self._weights[1]["checksum"])[:16]

    def check_trained(self) -> str:
        """The command that trains the run, for messages.

        Raises:
            UserError: it is not trained to the end.
        """
        make = f"nas train-supernet --out {self.path}"
        if not self.weights.exists():
            raise UserError(
                f"{self.path} is not trained to the end", allowed="A finished supernet", next_step=f"Resume it with: {make}"
            )
        return make


def _no_run(folder: Path) -> UserError:
    there = sorted(file.parent for file in folder.parent.glob("*/run.json"))[:5]
    return UserError(
        f"{folder} is no run: it has no run.json" if folder.exists() else f"there is no run {folder}",
        allowed=f"Runs beside it: {', '.join(map(str, there))}" if there else "A folder that nas train-supernet has made",
        next_step=f"Correct the name, or make it: nas train-supernet --out {folder} --data SOURCE",
    )


def _identity(part: str, value: Any) -> Any:
    """What must agree of a setting: images are known by their content, wherever they are."""
    if part != "data" or not value:
        return value
    return {name: item for name, item in value.items() if name not in ("source", "name")}


def _is_free(folder: Path) -> bool:
    """Whether a run may be made in a folder: it holds nothing but tables and what a killed process left."""
    names = {path.name for path in folder.iterdir()} - {"tables"} if folder.is_dir() else {""}
    return all(name.startswith(".") and (name.startswith(PARTIAL) or name.endswith(LOCK)) for name in names)


@dataclass(frozen=True)
class _Settings:
    """What ``run.json`` says."""

    space: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    weights: dict[str, Any] | None = None


def _refuse_links(folder: Path) -> None:
    """Nothing in a run folder may lead out of it: what is written there stays there, whoever made the folder.

    Raises:
        UserError: a symbolic link to something outside.
    """
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UserError(
                    f"{path} is a link out of the run folder",
                    allowed="Files and folders of the run's own, or links between them",
                    next_step="Replace it by a copy of what it points to, or remove it",
                )


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        named = [f"{k}={v}" for k, v in value.items() if not isinstance(v, (dict, list))]
        return f"{', '.join(named)} ({value_hash(value)})"
    return str(value)
