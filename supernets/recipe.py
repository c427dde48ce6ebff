"""Training recipes as data."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search_spaces.errors import UserError
from search_spaces.records import parse_toml, reading

__all__ = ["PhaseSettings", "Recipe", "check_recipe"]


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """How one kind of phase trains."""

    weight: float = 1.0  # share of all epochs, relative to the other phases
    lr: float = 0.05  # peak learning rate, for gradients summed over the step's subnets
    warmup: float = 0.05  # share of the phase's steps with a linearly rising learning rate
    subnets: int = 1  # architectures per step
    stepwise: bool = False  # open one option at a time, from the largest down
    sort: bool = False  # sort hidden channels by importance first

    def __post_init__(self) -> None:
        _with_floats(self)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run besides space, data and seed.

    Attributes:
        epochs: of all phases together.
        batch: images per optimiser step, over all devices together: a recipe means the same on any number of them.
        accumulate: parts that each device runs its share of the batch in, one after the other. Less memory, and batch
            normalisation sees the images of one part only. The same training as on so many devices.
        norm: images that batch normalisation sees: ``part``, or ``batch``, those of all devices together. One exchange
            more per normalisation; for parts of few images.
        optimiser: ``sgd`` (Nesterov's momentum), the published recipes' choice; ``adamw`` for networks with attention.
        momentum: of SGD; AdamW's first decay rate.
        weight_decay: on weights, not on biases and normalisations.
        decay_kernel_maps: weight decay on the kernel maps too, as the reference implementation has it (it pulls them
            to zero, not to the identity).
        clip_norm: longest gradient of a step, over all parameters together; 0 does not clip.
        clip_value: largest entry of a gradient; AlphaNet's loss needs it (1.0); 0 does not clip.
        ema: how much of the averaged weights each step keeps; the average is what is validated, teaches and is saved.
            It follows more quickly at first, and starts anew where channels are sorted. 0 keeps no average.
        precision: of forward and backward passes: ``fp32``; ``bf16``; ``fp16`` with a loss scale that adapts itself.
            Weights, losses and statistics are float32 in all of them. Half precision pays on GPUs; on most CPUs it is slower.
        label_smoothing: share of every label that is spread over all classes.
        subnet_loss: what moves the weights: the ``sum`` or the ``mean`` over the networks of a step, once, or ``each`` one by
            itself, one after the other. A sum makes the gradient grow with their number (Once-for-all's learning rates
            include that); moving for each learns more from the same images and takes as long.
        distill: weight of the teacher's soft labels; 0 trains without a teacher.
        distill_loss: ``cross-entropy``, or ``alpha-divergence`` (AlphaNet, arXiv 2102.07954), which also punishes a
            student that is surer than its teacher.
        labels: weight of the true labels for networks that have a teacher; 0 leaves them to the teacher alone.
        teacher: mode of a teacher that is not trained: ``eval`` normalises by its own statistics, ``train`` by the batch's
            (as the reference implementation of Once-for-all does).
        sandwich: every step after the full phase also trains the largest network, which teaches the others in place, and
            the smallest one (Yu and Huang, ICCV 2019); otherwise the teacher is the largest network as it was after its
            own phase (Once-for-all). Costs more per step, and leaves the largest network no worse than alone.
        one_schedule: warm-up and cosine run once over the whole training instead of once per phase.
        sample: ``uniform`` draws every choice uniformly; ``best-up`` and ``worst-up`` draw ``candidates`` networks of like
            MACs and train the one with the lowest or highest loss on the batch (AttentiveNAS, arXiv 2011.09011).
        candidates: networks compared for each one trained, unless ``sample`` is uniform.
        validate_every: epochs between validations of the smallest, the largest and two random networks; ends of phases
            are validated anyway. 0 validates there only.
        phases: settings by what the phase opens: ``full`` (the largest network alone), ``all`` (every choice at once,
            instead of one after the other), or the name of a choice; ``other`` serves choices that are not named.
    """

    name: str
    epochs: float = 60.0
    batch: int = 64
    accumulate: int = 1
    norm: str = "part"
    optimiser: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 3e-5
    decay_kernel_maps: bool = False
    clip_norm: float = 0.0
    clip_value: float = 0.0
    ema: float = 0.0
    precision: str = "fp32"
    label_smoothing: float = 0.1
    subnet_loss: str = "sum"
    distill: float = 1.0
    distill_loss: str = "cross-entropy"
    labels: float = 1.0
    teacher: str = "eval"
    sandwich: bool = False
    one_schedule: bool = False
    sample: str = "uniform"
    candidates: int = 3
    validate_every: float = 1.0
    phases: Mapping[str, PhaseSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _with_floats(self)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def steps(self, images: int) -> int:
        """Optimiser steps of all phases together, for so many training images; an epoch has full batches only."""
        return max(1, round(self.epochs * (images // self.batch)))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, source: str) -> Recipe:
        """A recipe from plain values.

        Raises:
            UserError: an unknown key, a value of the wrong type or out of range.
        """
        given = dict(value)
        raw = given.pop("phases", {})
        if not isinstance(raw, Mapping) or not raw:
            raise UserError(
                f"{source}: no [phases.*] tables", allowed="A recipe has at least one phase", next_step="Add [phases.full]"
            )
        phases = {name: _typed(PhaseSettings, settings, f"{source}: phases.{name}") for name, settings in raw.items()}
        recipe: Recipe = _typed(cls, given | {"phases": phases}, source)
        check_recipe(recipe, source)
        return recipe

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a TOML file; the recipe's name is the file's unless it names itself."""
        if not path.is_file():
            raise UserError(f"recipe {path} does not exist", allowed="A TOML file", next_step="See: nas train-supernet --help")
        with reading(path, allowed="A recipe is a TOML file", next_step="Correct that line"):
            value = parse_toml(path)
        return cls.from_dict({"name": path.stem} | value, source=str(path))


def _typed(cls: type, value: Any, source: str) -> Any:
    """A dataclass from a mapping, with types checked and unknown keys refused."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if not isinstance(value, Mapping):
        raise UserError(f"{source} is {value!r}", allowed=f"A table with {', '.join(fields)}", next_step="Correct it")
    kinds = {"float": (float, int), "int": (int,), "bool": (bool,), "str": (str,)}
    for name, given in value.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise UserError(
                f"{source}: unknown key '{name}'{hint}", allowed=f"Keys: {', '.join(fields)}", next_step="Correct it"
            )
        kind = str(fields[name].type)
        if kind in kinds and (not isinstance(given, kinds[kind]) or (kind != "bool" and isinstance(given, bool))):
            raise UserError(f"{source}: {name} = {given!r}", allowed=f"{name} is a {kind}", next_step="Correct it")
    return cls(**value)


def _with_floats(settings: PhaseSettings | Recipe) -> None:
    """60 and 60.0 are the same recipe, whoever wrote it."""
    for field_ in dataclasses.fields(settings):
        if str(field_.type) == "float" and type(getattr(settings, field_.name)) is int:
            object.__setattr__(settings, field_.name, float(getattr(settings, field_.name)))


_WORDS = {
    "optimiser": ("sgd", "adamw"),
    "norm": ("part", "batch"),
    "precision": ("fp32", "bf16", "fp16"),
    "subnet_loss": ("sum", "mean", "each"),
    "distill_loss": ("cross-entropy", "alpha-divergence"),
    "teacher": ("eval", "train"),
    "sample": ("uniform", "best-up", "worst-up"),
}


def check_recipe(recipe: Recipe, source: str) -> None:
    """Raise a `UserError` that begins with ``source`` for a value out of its range."""
    ranges: list[tuple[str, Any, bool, str]] = [
        ("epochs", recipe.epochs, 0 < recipe.epochs < math.inf, "above 0"),
        ("batch", recipe.batch, recipe.batch >= 2, "at least 2 (batch normalisation needs more than one image)"),
        ("accumulate", recipe.accumulate, recipe.accumulate >= 1, "at least 1"),
        ("accumulate", recipe.accumulate, recipe.accumulate == 1 or recipe.norm == "part", "1 where norm is 'batch'"),
        ("momentum", recipe.momentum, 0 <= recipe.momentum < 1, "0 to below 1"),
        ("weight_decay", recipe.weight_decay, 0 <= recipe.weight_decay < math.inf, "at least 0"),
        ("clip_norm", recipe.clip_norm, 0 <= recipe.clip_norm < math.inf, "at least 0"),
        ("clip_value", recipe.clip_value, 0 <= recipe.clip_value < math.inf, "at least 0"),
        ("ema", recipe.ema, 0 <= recipe.ema < 1, "0 to below 1"),
        ("label_smoothing", recipe.label_smoothing, 0 <= recipe.label_smoothing < 1, "0 to below 1"),
        ("distill", recipe.distill, 0 <= recipe.distill < math.inf, "at least 0"),
        ("labels", recipe.labels, 0 <= recipe.labels < math.inf, "at least 0"),
        ("labels", recipe.labels, recipe.labels + recipe.distill > 0, "above 0 where distill is 0: nothing would be learned"),
        ("candidates", recipe.candidates, 2 <= recipe.candidates <= 64, "2 to 64"),
        ("validate_every", recipe.validate_every, 0 <= recipe.validate_every < math.inf, "at least 0"),
    ]
    for name, words in _WORDS.items():
        value = getattr(recipe, name)
        ranges.append((name, repr(value), value in words, f"one of: {', '.join(words)}"))
    for name, phase in recipe.phases.items():
        ranges += [
            (f"phases.{name}.weight", phase.weight, 0 < phase.weight < math.inf, "above 0"),
            (f"phases.{name}.lr", phase.lr, 0 < phase.lr < math.inf, "above 0"),
            (f"phases.{name}.warmup", phase.warmup, 0 <= phase.warmup < 1, "0 to below 1"),
            (f"phases.{name}.subnets", phase.subnets, 1 <= phase.subnets <= 64, "1 to 64"),
        ]
    for name, value, good, allowed in ranges:
        if not good:
            raise UserError(f"{source}: {name} = {value}", allowed=f"{name} is {allowed}", next_step="Correct it")
    others = [name for name in recipe.phases if name not in ("full", "all")]
    if "all" in recipe.phases and others:
        raise UserError(
            f"{source}: phases 'all' and '{others[0]}'",
            allowed="'all' opens every choice: beside it there is only 'full'",
            next_step="Remove one of them",
        )
