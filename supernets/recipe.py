"""Training recipes as data, and the phases that a recipe makes of a space."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search_spaces import SearchSpace
from search_spaces.architecture import Value
from search_spaces.errors import UserError

__all__ = ["Phase", "PhaseSettings", "Recipe", "plan_phases"]


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """How one kind of phase trains."""

    weight: float = 1.0  # share of all epochs, relative to the other phases
    lr: float = 0.05  # peak learning rate, for gradients summed over the step's subnets
    warmup: float = 0.05  # share of the phase's steps with a linearly rising learning rate
    subnets: int = 1  # architectures per step
    stepwise: bool = False  # open one option at a time, from the largest down
    sort: bool = False  # sort hidden channels by importance first


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run besides space, data and seed.

    Attributes:
        epochs: of all phases together.
        batch: images per step.
        decay_kernel_maps: weight decay on the kernel maps too, as the reference implementation has it (it pulls them
            to zero, not to the identity).
        distill: weight of the teacher's soft labels beside the true ones; 0 trains without a teacher.
        sandwich: every step after the full phase also trains the largest network, which teaches the others in place, and
            the smallest one (Yu and Huang, ICCV 2019); otherwise the teacher is the largest network as it was after its
            own phase (Once-for-all). Costs more per step, and leaves the largest network no worse than alone.
        one_schedule: warm-up and cosine run once over the whole training instead of once per phase.
        phases: settings by what the phase opens: ``full`` (the largest network alone) or the name of a choice;
            ``other`` serves choices that are not named.
    """

    name: str
    epochs: float = 60.0
    batch: int = 64
    momentum: float = 0.9
    weight_decay: float = 3e-5
    decay_kernel_maps: bool = False
    label_smoothing: float = 0.1
    distill: float = 1.0
    sandwich: bool = False
    one_schedule: bool = False
    phases: Mapping[str, PhaseSettings] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

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
        _check(recipe, source)
        return recipe

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a TOML file; the recipe's name is the file's unless it names itself."""
        if not path.is_file():
            raise UserError(f"recipe {path} does not exist", allowed="A TOML file", next_step="See: nas train-supernet --help")
        try:
            value = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {error}", allowed="A TOML file", next_step="Correct that line") from None
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


def _check(recipe: Recipe, source: str) -> None:
    ranges: list[tuple[str, float, bool, str]] = [
        ("epochs", recipe.epochs, recipe.epochs > 0, "above 0"),
        ("batch", recipe.batch, recipe.batch >= 2, "at least 2 (batch normalisation needs more than one image)"),
        ("momentum", recipe.momentum, 0 <= recipe.momentum < 1, "0 to below 1"),
        ("weight_decay", recipe.weight_decay, recipe.weight_decay >= 0, "at least 0"),
        ("label_smoothing", recipe.label_smoothing, 0 <= recipe.label_smoothing < 1, "0 to below 1"),
        ("distill", recipe.distill, recipe.distill >= 0, "at least 0"),
    ]
    for name, phase in recipe.phases.items():
        ranges += [
            (f"phases.{name}.weight", phase.weight, phase.weight > 0, "above 0"),
            (f"phases.{name}.lr", phase.lr, phase.lr > 0, "above 0"),
            (f"phases.{name}.warmup", phase.warmup, 0 <= phase.warmup < 1, "0 to below 1"),
            (f"phases.{name}.subnets", phase.subnets, 1 <= phase.subnets <= 64, "1 to 64"),
        ]
    for name, value, good, allowed in ranges:
        if not good:
            raise UserError(f"{source}: {name} = {value}", allowed=f"{name} is {allowed}", next_step="Correct it")


@dataclass(frozen=True)
class Phase:
    """One phase of a run: steps ``start`` to ``stop`` sample architectures of ``space``.

    Attributes:
        opens: the choice that this phase opens, or ``full``.
        trained: the part of the space that earlier phases trained.
    """

    name: str
    opens: str
    space: SearchSpace
    trained: SearchSpace
    start: int
    stop: int
    settings: PhaseSettings


def plan_phases(recipe: Recipe, space: SearchSpace, *, steps: int) -> list[Phase]:
    """Progressive shrinking: the largest network, then the space's choices opened one after the other.

    The order is the space's own (``space.shrink``); choices with one option need no phase. A stepwise choice gets one
    phase per option, the last one twice as long as the others.

    Args:
        steps: of the whole run; divided among the phases by weight, at least one step each.

    Raises:
        UserError: the recipe has no settings for a choice of the space, or there are fewer steps than phases.
    """
    stages = _stages(recipe, space)
    if steps < len(stages):
        raise UserError(
            f"{steps} training steps for {len(stages)} phases",
            allowed="At least one step per phase",
            next_step="Raise the epochs, or lower the batch size",
        )
    weights = [weight for *_, weight in stages]
    bounds = [round(sum(weights[:i]) / sum(weights) * steps) for i in range(len(stages) + 1)]
    for i in range(1, len(bounds)):  # a phase that rounding left without a step takes one
        bounds[i] = max(bounds[i], bounds[i - 1] + 1)
    for i in range(len(bounds) - 1, 0, -1):
        bounds[i] = min(bounds[i], steps - (len(bounds) - 1 - i))
    phases, trained = [], space.restrict({gene.name: [gene.options[-1]] for gene in space.genes})
    for (name, opens, part, settings, _), start, stop in zip(stages, bounds, bounds[1:], strict=False):
        phases.append(Phase(name, opens, part, trained, start, stop, settings))
        trained = part
    return phases


def _stages(recipe: Recipe, space: SearchSpace) -> list[tuple[str, str, SearchSpace, PhaseSettings, float]]:
    """(name, choice opened, part of the space, settings, weight) of every phase."""
    closed: dict[str, list[Value]] = {gene.name: [gene.options[-1]] for gene in space.genes}
    stages: list[tuple[str, str, SearchSpace, PhaseSettings, float]] = []
    if "full" in recipe.phases:
        settings = recipe.phases["full"]
        stages.append(("full", "full", space.restrict(closed), settings, settings.weight))
    for choice in space.shrink:
        genes = [gene for gene in space.genes if gene.choice == choice]
        most = max(len(gene.options) for gene in genes)
        if most == 1:
            continue
        named = choice if choice in recipe.phases else "other"
        if named not in recipe.phases:
            raise UserError(
                f"recipe '{recipe.name}' has no phase for the choice '{choice}' of {space.key}",
                allowed=f"Its phases: {', '.join(recipe.phases)}",
                next_step=f"Add a table [phases.{choice}] or [phases.other]",
            )
        settings = recipe.phases[named]
        counts = range(2, most + 1) if settings.stepwise else [most]
        for number, kept in enumerate(counts):
            closed |= {gene.name: list(gene.options[-kept:]) for gene in genes}
            label = f"{choice} {number + 1}/{len(counts)}" if len(counts) > 1 else choice
            share = (2 if number == len(counts) - 1 else 1) / (len(counts) + 1)
            stages.append((label, choice, space.restrict(closed), settings, settings.weight * share))
    return stages
