"""The phases that a recipe makes of a space."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces import SearchSpace
from search_spaces.architecture import Value
from search_spaces.errors import UserError
from supernets.recipe import PhaseSettings, Recipe

__all__ = ["Phase", "plan_phases"]


@dataclass(frozen=True)
class Phase:
    """One phase of a run: steps ``start`` to ``stop`` sample architectures of ``space``.

    Attributes:
        opens: the choice that this phase opens, ``full`` or ``all``.
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
    phase per option, the last one twice as long as the others. A recipe with the phase ``all`` opens everything at once.

    Args:
        steps: of the whole run; divided among the phases by weight, at least one step each.

    Raises:
        UserError: the recipe has no settings for a choice of the space, or there are fewer steps than phases.
    """
    stages = _stages(recipe, space)
    if not stages:
        raise UserError(
            f"recipe '{recipe.name}' has nothing to train in a space of one network",
            allowed="The phase that trains one network is 'full'",
            next_step="Add a table [phases.full], or use the recipe 'single'",
        )
    if steps < len(stages):
        raise UserError(
            f"{steps} training steps for {len(stages)} phases",
            allowed="At least one step per phase",
            next_step=f"Take {-(-len(stages) // steps)} times as many epochs or more, or a smaller batch",
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
    if "all" in recipe.phases:
        settings = recipe.phases["all"]
        return [*stages, ("all", "all", space, settings, settings.weight)]
    for choice in space.shrink:
        genes = [gene for gene in space.genes if gene.choice == choice]
        most = max(len(gene.options) for gene in genes)
        if most == 1:
            continue
        named = choice if choice in recipe.phases else "other"
        if named not in recipe.phases:
            alone = set(recipe.phases) == {"full"}
            instead = "; or take a recipe for a whole space: progressive, quick, sandwich" if alone else ""
            raise UserError(
                f"recipe '{recipe.name}' has no phase for the choice '{choice}' of {space.key}",
                allowed=f"Its phases: {', '.join(recipe.phases)}{', which trains one network alone' if alone else ''}",
                next_step=f"Add a table [phases.{choice}] or [phases.other]{instead}",
            )
        settings = recipe.phases[named]
        counts = range(2, most + 1) if settings.stepwise else [most]
        for number, kept in enumerate(counts):
            closed |= {gene.name: list(gene.options[-kept:]) for gene in genes}
            label = f"{choice} {number + 1}/{len(counts)}" if len(counts) > 1 else choice
            share = (2 if number == len(counts) - 1 else 1) / (len(counts) + 1)
            stages.append((label, choice, space.restrict(closed), settings, settings.weight * share))
    return stages
