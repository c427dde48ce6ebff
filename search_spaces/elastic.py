"""The space of a network of the user's own: plain choices, and the constructor that turns them into a module.

The constructor is carried, never called here: what it builds needs torch (`supernets.own_models`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from search_spaces.architecture import Architecture, Value
from search_spaces.errors import UserError
from search_spaces.rows import Choice, Gene
from search_spaces.space import Position, SearchSpace

__all__ = ["ElasticSpace"]

RESERVED = ("input_shape", "outputs")


class ElasticSpace(SearchSpace):
    """Choices and a constructor ``build(**choices, **fixed)``; made by `supernets.own_models.elastic`.

    Args:
        build: the constructor; None where it is not at hand (a space read from a file): everything but the networks works.
        choices: as for `SearchSpace`; the largest network has every choice at its last option. A choice ``resolution`` is
            the side of the input in pixels, and given to the constructor only where it takes it.
        name: of the space.
        fixed: further arguments of the constructor, the same for every network (JSON values).
        rules: name pattern -> how tensors with such names are cut, where a prefix of every dimension is wrong.
        input_shape: of one example, ``(3, 32, 32)``; None while it is not known.
        outputs: classes that the networks tell apart; None while it is not known.
        block_level: see `supernets.own_models.elastic`.
        positions: finds the lowering when it is first needed.
    """

    def __init__(
        self,
        build: Callable[..., Any] | None,
        choices: Mapping[str, Sequence[Value] | Choice],
        *,
        name: str,
        fixed: Mapping[str, Any] | None = None,
        rules: Mapping[str, Callable[..., Any]] | None = None,
        input_shape: Sequence[int] | None = None,
        outputs: int | None = None,
        block_level: int = 1,
        positions: Callable[[ElasticSpace], Sequence[Position]] | None = None,
    ) -> None:
        known = {"input_shape": None if input_shape is None else list(input_shape), "outputs": outputs}
        super().__init__(
            choices,
            name=name,
            parameters={**(fixed or {}), **known, "block_level": block_level},
            positions=(lambda: positions(self)) if positions is not None and input_shape is not None else (),
            shrink=tuple(choices),
            unkeyed=(*RESERVED, "block_level"),
        )
        self.build = build
        self.fixed = dict(fixed or {})
        self.rules = dict(rules or {})
        self.block_level = block_level
        self._find = positions

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example.

        Raises:
            UserError: it is not known yet.
        """
        shape = self.parameters["input_shape"]
        if shape is None:
            raise UserError(
                f"the input's shape of space '{self.name}' is not known",
                allowed="Layers, MACs, parameters and latency depend on it",
                next_step="Give it: nas.elastic(build, choices, input_shape=(3, 32, 32))",
            )
        return tuple(shape)

    def shape_of(self, arch: Architecture) -> tuple[int, ...]:
        """Of one example for this architecture: its resolution, where there is such a choice, decides the spatial size."""
        shape = self.input_shape
        if "resolution" not in self.choices:
            return shape
        return (shape[0], *[int(arch["resolution"])] * (len(shape) - 1))

    def arguments(self, arch: Architecture) -> dict[str, Any]:
        """What the constructor is called with."""
        given = arch.to_dict()
        if "resolution" in given and not self._takes_resolution:
            del given["resolution"]
        return {**self.fixed, **given}

    @cached_property
    def _takes_resolution(self) -> bool:
        assert self.build is not None
        try:
            parameters = inspect.signature(self.build).parameters
        except (TypeError, ValueError):
            return True
        return "resolution" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def _need_network(self) -> None:
        if self.build is not None and self.parameters["input_shape"] is None:
            _ = self.input_shape  # says what is missing
        super()._need_network()

    def made_with(self, build: Callable[..., Any] | None = None, **changes: Any) -> ElasticSpace:
        """The same space with another constructor, input shape or number of outputs; restrictions stay."""
        given: dict[str, Any] = {
            "name": self.name,
            "fixed": self.fixed,
            "rules": self.rules,
            "input_shape": self.parameters["input_shape"],
            "outputs": self.parameters["outputs"],
            "block_level": self.block_level,
            "positions": self._find,
        }
        twin = ElasticSpace(build or self.build, self.choices, **given | changes)
        twin.genes = self.genes
        return twin

    def _with_genes(self, genes: tuple[Gene, ...]) -> SearchSpace:
        twin = self.made_with()
        twin.genes = genes
        twin._positions = lambda: self.positions  # found once for the space and all its restrictions
        return twin

    # ---- JSON form ----

    def _own(self) -> dict[str, Any]:
        """The names of the fixed arguments and the rules; the constructor is code, and is not in it."""
        return {"fixed": list(self.fixed), "rules": {pattern: _named(rule) for pattern, rule in self.rules.items()}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ElasticSpace:
        """The space that `to_dict` wrote, without its constructor and rules; see `made_with`."""
        choices = {name: Choice.from_dict(part) for name, part in value["structure"].items()}
        parameters = value["parameters"]
        space = cls(
            None,
            choices,
            name=value["name"],
            fixed={name: parameters[name] for name in value["fixed"]},
            input_shape=parameters["input_shape"],
            outputs=parameters["outputs"],
            block_level=parameters["block_level"],
        )
        restricted = space.restrict(value["genes"])
        assert isinstance(restricted, ElasticSpace)
        return restricted


def _named(rule: Any) -> str:
    """A rule's name, the same whenever it is made; of a partial function with its arguments."""
    if isinstance(rule, functools.partial):
        given = [repr(value) for value in rule.args] + [f"{name}={value!r}" for name, value in rule.keywords.items()]
        return f"{_named(rule.func)}({', '.join(given)})"
    return str(getattr(rule, "__qualname__", repr(rule)))
