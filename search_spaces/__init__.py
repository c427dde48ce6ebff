"""Search spaces: choices, exact counts, lowering to concrete layers. numpy only, no torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from search_spaces.architecture import Architecture
from search_spaces.attentive import attentive_nas
from search_spaces.elastic import ElasticSpace
from search_spaces.errors import UserError, unknown_name
from search_spaces.layers import Layer
from search_spaces.mobilenet import ofa_mobilenet_v3, ofa_proxyless, small_mobilenet
from search_spaces.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from search_spaces.records import reading, record
from search_spaces.resnet import ofa_resnet50
from search_spaces.rows import Choice
from search_spaces.space import SPACE_VERSION, SearchSpace

__all__ = [
    "FAMILIES",
    "Architecture",
    "Choice",
    "ElasticSpace",
    "Layer",
    "SearchSpace",
    "UserError",
    "build",
    "completed",
    "from_dict",
    "rebuild",
]

FAMILIES: dict[str, Callable[..., SearchSpace]] = {
    "ofa-mobilenet-v3": ofa_mobilenet_v3,
    "ofa-proxyless": ofa_proxyless,
    "ofa-resnet50": ofa_resnet50,
    "attentive-nas": attentive_nas,
    "mobilenet-v3-large": mobilenet_v3_large,
    "mobilenet-v3-small": mobilenet_v3_small,
    "small-mobilenet": small_mobilenet,
}


def build(name: str, **parameters: Any) -> SearchSpace:
    """A built-in space by name, e.g. ``build("ofa-mobilenet-v3", width=1.2)``.

    Raises:
        UserError: an unknown name or parameter, or a parameter of another kind or out of range.
    """
    if name not in FAMILIES:
        raise unknown_name("space", name, FAMILIES, command="nas spaces")
    known = inspect.signature(FAMILIES[name]).parameters
    for parameter, value in parameters.items():
        if parameter not in known:
            raise unknown_name(f"parameter of {name}", parameter, known, command=f"nas spaces {name}")
        if value is None and known[parameter].default is None:
            continue
        # A width of 1 is the width 1.0: the key of the space, and with it every id, has the number in one form.
        parameters[parameter] = _KINDS[known[parameter].annotation](name, parameter, value)
    return FAMILIES[name](**parameters)


def _ratio(name: str, parameter: str, value: Any, allowed: str = "A finite number") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name} with {parameter}={value!r}", allowed=allowed, next_step="Correct the parameter")
    return float(value)


def _count(name: str, parameter: str, value: Any, allowed: str = "A whole number") -> int:
    number = _ratio(name, parameter, value, allowed)
    if number != int(number):
        raise UserError(f"{name} with {parameter}={value!r}", allowed=allowed, next_step="Correct the parameter")
    return int(number)


def _counts(name: str, parameter: str, value: Any) -> list[int]:
    listed = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
    return [_count(name, parameter, size, "A list of whole numbers") for size in listed]


_KINDS: Mapping[str, Callable[[str, str, Any], Any]] = {
    "float": _ratio,
    "int": _count,
    "Sequence[int]": _counts,
    "Sequence[int] | None": _counts,
}


def rebuild(space: SearchSpace, **parameters: Any) -> SearchSpace:
    """The same space (restrictions too) with other family parameters; ``None`` leaves a parameter as it is.

    Raises:
        UserError: another parameter for a space that no family builds: its layers are code that nobody can call anew here.
    """
    changed = {key: value for key, value in parameters.items() if value is not None and space.parameters.get(key) != value}
    if not changed:
        return space
    if not space.built_in:
        asked = ", ".join(f"{name} = {value}" for name, value in changed.items())
        known = ", ".join(f"{name} = {space.parameters.get(name, 'not said')}" for name in changed)
        raise UserError(
            f"{asked} asked of space '{space.name}', which was built with {known}",
            allowed="A space that is not a built-in family has the classes and channels that it was built with",
            next_step=f"Build it with {asked}, in its layers and in parameters={{...}}",
        )
    value = space.to_dict()
    return from_dict(value | {"parameters": value["parameters"] | changed})


def from_dict(value: Mapping[str, Any]) -> SearchSpace:
    """The space that `SearchSpace.to_dict` wrote; without a network behind it if the space is not built in.

    Raises:
        UserError: not a space's JSON, or a family or option that this version does not have.
    """
    allowed = "The JSON of a search space has name, parameters and genes"
    with reading("a search space", allowed=allowed, next_step="Write one with space.to_dict()"):
        return _from_dict(value)


@dataclass(frozen=True)
class _Own:
    """What the JSON of a space that no family builds says of it, where it is not the default."""

    shrink: tuple[str, ...] = ()
    unkeyed: tuple[str, ...] = ()
    traits: dict[str, float] = field(default_factory=dict)


def _from_dict(value: Mapping[str, Any]) -> SearchSpace:
    name, parameters, genes = value["name"], value["parameters"], value["genes"]
    if not isinstance(name, str) or not isinstance(parameters, dict) or not isinstance(genes, dict):
        raise ValueError("name, parameters or genes are of another kind")
    if value.get("version", 1) > SPACE_VERSION:
        raise UserError(
            f"search space '{name}' has format version {value['version']}",
            allowed=f"This toolkit reads versions 1 to {SPACE_VERSION}",
            next_step="Install a newer one: pip install --upgrade hwnas",
        )
    if "rules" in value:
        return ElasticSpace.from_dict(value)
    structure = {key: Choice.from_dict(choice) for key, choice in value.get("structure", {}).items()}
    if name not in FAMILIES:
        own = record(_Own, value)
        return SearchSpace(
            structure or genes, name=name, parameters=parameters, shrink=own.shrink, unkeyed=own.unkeyed, traits=own.traits
        ).restrict(genes)
    sizes = structure["resolution"].options if structure else genes["resolution"]
    return build(name, **parameters, resolution=sizes).restrict(genes)


def completed(known: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """A stored JSON of a space; what older versions did not write of a space of one's own is that of the space at hand."""
    later = {name: present[name] for name in ("shrink", "unkeyed", "traits") if name in present}
    return dict(known) if later.keys() & known.keys() else {**known, **later}
