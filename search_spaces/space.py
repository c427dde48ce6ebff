"""A search space: the choices, their options, and the lowering of an architecture to concrete layers.

An architecture is also a row of small integers, the index of the option taken for each gene; N architectures are
an (N, genes) array. A row is canonical when the genes without effect (those of skipped blocks) are 0. Everything
that search does in bulk works on such arrays without a Python loop over architectures.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import Architecture, Value
from search_spaces.checks import check_own, check_rows, check_whole
from search_spaces.costs import Cost, Factor
from search_spaces.errors import UserError, unknown_name
from search_spaces.layers import Layer
from search_spaces.rows import Choice, Gene, Rows, RowSpace, as_choice, genes_of

__all__ = ["SPACE_VERSION", "Archs", "Position", "SearchSpace"]

SPACE_VERSION = 1  # of `SearchSpace.to_dict`

Archs = Architecture | Sequence[Architecture] | Rows


@dataclass(frozen=True)
class Position:
    """A place in the network: the layer there as a function of the values of a few genes, None where it is skipped."""

    name: str
    genes: tuple[str, ...]
    layer: Callable[..., Layer | None]


class SearchSpace(RowSpace):
    """The choices of a family of networks.

    ``SearchSpace({"op_1": [0, 1, 2], "op_2": [0, 1, 2]}, name="cells")`` makes a space of plain choices with no
    network behind it, for `nas.optimize`; the built-in families come from `search_spaces.build`.

    Args:
        choices: name -> list of options, or a `Choice`.
        name: the family's name.
        parameters: what the family was built with (JSON values); part of the key, except those in ``unkeyed``.
        positions: the lowering, in order of execution; or a function that finds it when it is first needed.
        shrink: names of the choices in the order in which progressive shrinking opens them.
        unkeyed: parameters that do not change an architecture's identity (classes, input channels).
        traits: how networks of the family are built and trained: ``norm_eps``, ``norm_momentum``, ``dropout``,
            ``kernel_maps`` (1: small filters come from large ones through learned maps, 0: they are the centres),
            ``residual_gamma`` (scale at the end of residual branches at first, default 1).
        published: networks of the space that have a name elsewhere, by their choices.
        built_in: `search_spaces.build` makes the space, so that its JSON needs no ``shrink``, ``unkeyed`` and ``traits``.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[Value] | Choice],
        *,
        name: str = "custom",
        parameters: Mapping[str, Any] | None = None,
        positions: Sequence[Position] | Callable[[], Sequence[Position]] = (),
        shrink: Sequence[str] = (),
        unkeyed: Sequence[str] = (),
        traits: Mapping[str, float] | None = None,
        published: Mapping[str, Mapping[str, Any]] | None = None,
        built_in: bool = False,
    ) -> None:
        self.name = name
        self.parameters = dict(parameters or {})
        self.choices = {key: as_choice(key, value) for key, value in choices.items()}
        self._positions = positions
        self.shrink = tuple(shrink)
        self.unkeyed = tuple(unkeyed)
        self.traits = dict(traits or {})
        self._published = dict(published or {})
        self.built_in = built_in
        self.genes = genes_of(self.choices)
        self._column = {gene.name: index for index, gene in enumerate(self.genes)}

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """The places of a network, in order of execution; empty where there is no network behind the space."""
        return tuple(self._positions() if callable(self._positions) else self._positions)

    # ---- identity -------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """Name and the parameters that decide what a choice means; restrictions and class count are not in it."""
        inside = ", ".join(f"{k}={v}" for k, v in self.parameters.items() if k not in self.unkeyed)
        return f"{self.name}({inside})" if inside else self.name

    def __repr__(self) -> str:
        return f"<SearchSpace {self.key}: {len(self.genes)} genes, {self.count():.3g} networks>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.key, tuple(gene.options for gene in self.genes)))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: name, parameters, choices and the options of every gene; `search_spaces.from_dict` reads it back.

        The network of a space that is not built in is code, and is not in it.
        """
        return {
            "name": self.name,
            "version": SPACE_VERSION,
            "parameters": self.parameters,
            "genes": {gene.name: list(gene.options) for gene in self.genes},
            "structure": {name: asdict(choice) for name, choice in self.choices.items()},
            **self._own(),
        }

    def _own(self) -> dict[str, Any]:
        """What only the JSON says of a space that no family builds, where it is not the default."""
        own = {"shrink": list(self.shrink), "unkeyed": list(self.unkeyed), "traits": self.traits}
        return {} if self.built_in else {name: value for name, value in own.items() if value}

    def restrict(self, positions: Mapping[str, Sequence[Value]] | None = None, /, **choices: Sequence[Value]) -> SearchSpace:
        """The same space with fewer options: ``space.restrict(kernel=[3, 5])``, ``space.restrict({"depth[0]": [2]})``.

        By choice, every position keeps those of the options that it has; by position, it must have them all.

        Raises:
            UserError: an unknown choice, an option that the space does not have, or no option left.
        """
        wanted: dict[str, Sequence[Value]] = {}
        known = {gene.name: gene.options for gene in self.genes}
        for name, options in choices.items():
            if name not in self.choices:
                raise unknown_name("choice", name, self.choices, command=f"nas spaces {self.name}")
            for gene in (gene for gene in self.genes if gene.choice == name):
                wanted[gene.name] = options
                known[gene.name] = self.choices[name].options  # positions that differ keep those that they have
        for name, options in (positions or {}).items():
            if name not in self._column:
                raise unknown_name("position", name, self._column, command=f"nas spaces {self.name}")
            wanted[name] = options
            known[name] = self.genes[self._column[name]].options
        genes = list(self.genes)
        for name, options in wanted.items():
            if isinstance(options, str) or not isinstance(options, Iterable):
                raise UserError(
                    f"{name} cannot be restricted to {options!r}, a {type(options).__name__}",
                    allowed="A list of options",
                    next_step=f"Write for example: [{options!r}]",
                )
            gene = genes[self._column[name]]
            kept = tuple(value for value in gene.options if value in options)
            if not kept or any(value not in known[name] for value in options):
                raise UserError(
                    f"{name} cannot be restricted to {list(options)}",
                    allowed=f"Its options are {list(gene.options)}",
                    next_step="Choose at least one of them",
                )
            genes[self._column[name]] = replace(gene, options=kept)
        return self._with_genes(tuple(genes))

    def _with_genes(self, genes: tuple[Gene, ...]) -> SearchSpace:
        twin = SearchSpace(
            self.choices,
            name=self.name,
            parameters=self.parameters,
            positions=lambda: self.positions,
            shrink=self.shrink,
            unkeyed=self.unkeyed,
            traits=self.traits,
            published=self._published,
            built_in=self.built_in,
        )
        twin.genes = genes
        return twin

    # ---- architectures and rows -----------------------------------------------------------------------------

    def architecture(self, /, **values: Any) -> Architecture:
        """An architecture from the values of all choices; a list choice takes a full-length list, or one value for all.

        Values at inactive positions are dropped (``None`` is accepted there).

        Raises:
            UserError: a missing or unknown choice, a wrong length, or a value that is not an option.
        """
        for name in values:
            if name not in self.choices:
                raise unknown_name("choice", name, self.choices, command=f"nas spaces {self.name}")
        row = np.zeros((1, len(self.genes)), dtype=np.int64)
        missing_at: list[int] = []
        for name, choice in self.choices.items():
            if name not in values:
                raise UserError(
                    f"choice '{name}' was not given",
                    allowed=f"{self.key} needs: {', '.join(self.choices)}",
                    next_step=f"Give {name}, one of {list(choice.options)}",
                )
            for index, value in zip(self._columns_of(name), self._listed(name, choice, values[name]), strict=True):
                if value is None:
                    missing_at.append(index)
                else:
                    row[0, index] = self._option_index(index, value)
        active = self.active(row)[0]
        for index in missing_at:
            if active[index]:
                raise UserError(
                    f"{self.genes[index].name} is None, but that position is active",
                    allowed=f"Its options are {list(self.genes[index].options)}",
                    next_step="Give one of them",
                )
        return self.from_array(row)[0]

    def _listed(self, name: str, choice: Choice, value: Any) -> list[Any]:
        if choice.length is None:
            return [value]
        if not isinstance(value, (list, tuple, np.ndarray)):
            return [value] * choice.length
        if len(value) != choice.length:
            raise UserError(
                f"{name} has {len(value)} values",
                allowed=f"{self.key} has {choice.length} positions for {name}",
                next_step=f"Give {choice.length} values (those of skipped blocks are ignored), or one value for all",
            )
        return list(value)

    def _columns_of(self, choice: str) -> list[int]:
        return [index for index, gene in enumerate(self.genes) if gene.choice == choice]

    def _option_index(self, index: int, value: Any) -> int:
        gene = self.genes[index]
        try:
            return gene.options.index(value)
        except ValueError:
            raise UserError(
                f"{gene.name} = {value!r} is not an option",
                allowed=f"Its options are {list(gene.options)}",
                next_step=f"Choose one of them, or see: nas spaces {self.name}",
            ) from None

    def to_array(self, archs: Architecture | Sequence[Architecture]) -> Rows:
        """Canonical rows of option indices, (N, genes) int64.

        Raises:
            UserError: an architecture of another space, or with an option that this (restricted) space lacks.
        """
        listed = [archs] if isinstance(archs, Architecture) else list(archs)
        rows = np.zeros((len(listed), len(self.genes)), dtype=np.int64)
        for at, arch in enumerate(listed):
            check_own(arch, self.key, self._shape)
            flat = (v for _, value in arch.choices for v in (value if isinstance(value, tuple) else (value,)))
            for index, value in enumerate(flat):
                if value is not None:
                    rows[at, index] = self._option_index(index, value)
        return rows

    @cached_property
    def _shape(self) -> tuple[tuple[str, int | None], ...]:
        """Names of the choices and how many positions each has, as an architecture tells them."""
        return tuple((name, choice.length) for name, choice in self.choices.items())

    def from_array(self, rows: Rows) -> list[Architecture]:
        """Architectures of rows (N, genes) of option indices; they are canonicalised first.

        Raises:
            UserError: an array of another shape or type, or with an index that is not an option's.
        """
        rows = self.canonical(self._checked(np.asarray(rows)))
        active = self.active(rows)
        return [self._architecture(row, on) for row, on in zip(rows.tolist(), active.tolist(), strict=True)]

    def _architecture(self, row: list[int], active: list[bool]) -> Architecture:
        values = [g.options[i] if on else None for g, i, on in zip(self.genes, row, active, strict=True)]
        taken = iter(values)
        choices: list[tuple[str, Any]] = []
        for name, choice in self.choices.items():
            choices.append((name, next(taken) if choice.length is None else tuple(itertools.islice(taken, choice.length))))
        return Architecture(self.key, tuple(choices))

    def rows(self, archs: Archs) -> Rows:
        """Canonical rows of an architecture, a list of them, or an (N, genes) array.

        Raises:
            UserError: an array of another shape or type, or with an index that is not an option's.
        """
        return self.canonical(self._checked(archs))

    def _checked(self, archs: Archs) -> Rows:
        """Rows that are in the space, perhaps not canonical."""
        if not isinstance(archs, np.ndarray) or archs.dtype == object:
            return self.to_array(archs)  # type: ignore[arg-type]
        check_rows(archs, self.key, self.genes, self.lengths)
        return archs

    def price(self, cost: Cost, archs: Archs) -> NDArray[np.float64]:
        """A cost of the space (see `cost`) for an architecture, a list of them, or rows: (N,) float64."""
        return cost.of_columns(self.columns(self._checked(archs)))

    # ---- architectures at random, neighbours, ends ----

    def sample(self, n: int, seed: int | np.random.Generator = 0, *, per_gene: bool = False) -> list[Architecture]:
        """N independent random architectures, uniform over distinct networks (see `sample_rows` for ``per_gene``)."""
        check_whole("n", n)
        if not isinstance(seed, np.random.Generator):
            check_whole("seed", seed)
        return self.from_array(self.sample_rows(n, np.random.default_rng(seed), per_gene=per_gene))

    def neighbours(self, arch: Architecture) -> list[Architecture]:
        """All architectures that differ in one active gene (genes switched on take their first option)."""
        row = self.to_array(arch)
        active = self.active(row)[0]
        found = []
        for index in np.flatnonzero(active):
            for option in range(self.lengths[index]):
                if option != row[0, index]:
                    twin = row.copy()
                    twin[0, index] = option
                    found.append(twin)
        return self.from_array(np.concatenate(found)) if found else []

    @property
    def largest(self) -> Architecture:
        """Every gene at its last option."""
        return self.from_array(self.lengths[None, :] - 1)[0]

    @property
    def smallest(self) -> Architecture:
        """Every gene at its first option."""
        return self.from_array(np.zeros((1, len(self.genes)), dtype=np.int64))[0]

    @property
    def published(self) -> dict[str, Architecture]:
        """Networks that have a name elsewhere, as far as this (restricted) space contains them."""
        found = {}
        for name, values in self._published.items():
            with contextlib.suppress(UserError):
                found[name] = self.architecture(**values)
        return found

    def encode(self, archs: Archs, *, ordinal: bool = False) -> NDArray[np.float32]:
        """Features for predictors of an architecture, a list of them, or rows; see `encode_rows`."""
        return self.encode_rows(self._checked(archs), ordinal=ordinal)

    # ---- lowering -------------------------------------------------------------------------------------------

    def _need_network(self) -> None:
        if not self.positions:
            raise UserError(
                f"space '{self.name}' has no network behind it",
                allowed="Layers, MACs, parameters and latency exist where a space says which layers stand where; a file cannot",
                next_step="Choose a built-in family (nas spaces), or open a run of your own with nas.Run.open(RUN, space=...)",
            )

    def placed(self, arch: Architecture) -> list[tuple[int, Layer]]:
        """The layers of an architecture with the index of the position that each one has in the space."""
        self._need_network()
        row = self.to_array(arch)[0]
        placed = []
        for index, position in enumerate(self.positions):
            values = (self.genes[c].options[row[c]] for c in map(self._column.__getitem__, position.genes))
            layer = position.layer(*values)
            if layer is not None:
                placed.append((index, layer))
        return placed

    def lower(self, arch: Architecture) -> tuple[Layer, ...]:
        """The concrete layers of an architecture, in order of execution."""
        return tuple(layer for _, layer in self.placed(arch))

    def layers_at(self, position: Position) -> Iterator[Layer | None]:
        """The layer at a position for every combination of the options of its genes, the last gene fastest."""
        options = [self.genes[self._column[name]].options for name in position.genes]
        return (position.layer(*values) for values in itertools.product(*options))

    def structures_at(self, position: Position) -> list[Layer]:
        """The distinct layers that can stand at a position whatever the size of the image; the largest one is the last."""
        layers = (layer.structure() for layer in self.layers_at(position) if layer is not None)
        return list(dict.fromkeys(layers))

    def layers(self) -> list[Layer]:
        """Every distinct layer that the space can produce, in order of first appearance."""
        self._need_network()
        found = (layer for position in self.positions for layer in self.layers_at(position))
        return list(dict.fromkeys(layer for layer in found if layer is not None))

    # ---- costs ----------------------------------------------------------------------------------------------

    def cost(self, price: Callable[[Layer], float], *, peak: bool = False) -> Cost:
        """A vectorised cost from the price of a single layer; skipped layers are free.

        Args:
            peak: combine by maximum instead of by sum.
        """
        self._need_network()
        prices: dict[Layer, float] = {}
        factors = []
        for position in self.positions:
            table = []
            for layer in self.layers_at(position):
                if layer is not None and layer not in prices:
                    prices[layer] = float(price(layer))
                table.append(0.0 if layer is None else prices[layer])
            columns = tuple(self._column[name] for name in position.genes)
            factors.append(Factor(columns, np.array(table).reshape([len(self.genes[c].options) for c in columns])))
        return Cost(factors, peak=peak)

    @cached_property
    def _macs(self) -> Cost:
        return self.cost(lambda layer: layer.macs)

    @cached_property
    def _params(self) -> Cost:
        return self.cost(lambda layer: layer.params)

    @cached_property
    def _weight_bytes(self) -> Cost:
        return self.cost(lambda layer: layer.weight_bytes)

    @cached_property
    def _activation_bytes(self) -> Cost:
        return self.cost(lambda layer: layer.activation_bytes, peak=True)

    def macs(self, archs: Archs) -> Any:
        """Multiply-accumulates of convolutions and linear layers for one image: (N,) int64; an int for one Architecture."""
        return self._count(self._macs, archs)

    def params(self, archs: Archs) -> Any:
        """Parameters (with the affine part of batch normalisation): (N,) int64; an int for one Architecture."""
        return self._count(self._params, archs)

    def weight_bytes(self, archs: Archs) -> Any:
        """Bytes of the deployed float32 weights: (N,) int64; an int for one Architecture."""
        return self._count(self._weight_bytes, archs)

    def activation_bytes(self, archs: Archs) -> Any:
        """Peak bytes of float32 activations for one image: (N,) int64; an int for one Architecture."""
        return self._count(self._activation_bytes, archs)

    def _count(self, cost: Cost, archs: Archs) -> Any:
        values = np.rint(self.price(cost, archs)).astype(np.int64)
        return int(values[0]) if isinstance(archs, Architecture) else values
