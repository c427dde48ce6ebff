"""Genes, and what can be done with many architectures at once: operations on (N, genes) arrays of option indices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import Value
from search_spaces.columns import Columns, to_columns
from search_spaces.errors import UserError

__all__ = ["Choice", "Gene", "RowSpace", "Rows", "as_choice", "genes_of"]

Rows = NDArray[np.int64]  # (N, genes)
MOST_POSITIONS = 10_000  # of a choice that a file describes


@dataclass(frozen=True)
class Choice:
    """A named choice: one value (``length`` None) or a list of ``length`` values, from ``options``.

    Attributes:
        active_if: per position, None (always has an effect) or (gene name, the values of it under which this
            position has an effect), e.g. ``("depth[0]", (3, 4))`` for a stage's third block.
        at: per position, its own options, where positions differ; see `each`.
    """

    options: tuple[Value, ...]
    length: int | None = None
    active_if: tuple[tuple[str, tuple[Value, ...]] | None, ...] | None = None
    at: tuple[tuple[Value, ...], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(map(_plain, self.options)))
        if self.at is not None:
            object.__setattr__(self, "at", tuple(tuple(map(_plain, options)) for options in self.at))

    @classmethod
    def each(
        cls, options: Sequence[Sequence[Value]], active_if: Sequence[tuple[str, tuple[Value, ...]] | None] | None = None
    ) -> Choice:
        """A list choice from the options of every position; ``options`` becomes all of them, numbers ascending."""
        at = tuple(tuple(values) for values in options)
        every = tuple(dict.fromkeys(value for values in at for value in values))
        if all(isinstance(value, int | float) for value in every):
            every = tuple(sorted(every))
        same = all(values == every for values in at)
        return cls(every, len(at), None if active_if is None else tuple(active_if), None if same else at)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Choice:
        """The inverse of `dataclasses.asdict`, from JSON."""
        rules, at, length = value["active_if"], value["at"], value["length"]
        if length is not None and (type(length) is not int or not 0 < length <= MOST_POSITIONS):
            raise ValueError(f"a choice has {length!r:.40} positions")
        if any(part is not None and len(part) != length for part in (rules, at)):
            raise ValueError("a choice has other rules or options than positions")
        return cls(
            tuple(value["options"]),
            length,
            None if rules is None else tuple(None if rule is None else (rule[0], tuple(rule[1])) for rule in rules),
            None if at is None else tuple(tuple(options) for options in at),
        )

    def options_at(self, position: int) -> tuple[Value, ...]:
        """The options of one position (0 for a scalar choice)."""
        return self.options if self.at is None else self.at[position]


@dataclass(frozen=True)
class Gene:
    """One integer of a row: a scalar choice, or one position of a list choice."""

    name: str
    choice: str
    options: tuple[Value, ...]
    parent: int | None = None
    enabling: tuple[Value, ...] = ()


class RowSpace:
    """The genes of a space as an array machine; a row is canonical when its genes without effect are 0.

    Attributes:
        genes: one per column, in order.
    """

    genes: tuple[Gene, ...]

    # ---- canonical form -------------------------------------------------------------------------------------

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of options of each gene, (genes,)."""
        return np.array([len(gene.options) for gene in self.genes], dtype=np.int64)

    @cached_property
    def _families(self) -> list[tuple[int, NDArray[np.intp], NDArray[np.bool_]]]:
        """Per parent gene, parents first: its children's columns and the table (parent's options, children) of activity."""
        children: dict[int, list[int]] = {}
        for index, gene in enumerate(self.genes):
            if gene.parent is not None:
                children.setdefault(gene.parent, []).append(index)
        families = []
        for parent in sorted(children, key=self._generation):
            columns = children[parent]
            table = [[value in self.genes[c].enabling for c in columns] for value in self.genes[parent].options]
            families.append((parent, np.array(columns), np.array(table)))
        return families

    def _generation(self, index: int) -> int:
        parent = self.genes[index].parent
        return 0 if parent is None else 1 + self._generation(parent)

    @cached_property
    def _switches(self) -> list[tuple[int, NDArray[np.bool_]]]:
        """Per parent gene, parents first: which genes its options leave on, (options, genes) bool."""
        switches = []
        for parent, columns, table in self._families:
            keeps = np.ones((len(table), len(self.genes)), dtype=bool)
            keeps[:, columns] = table
            switches.append((parent, keeps))
        return switches

    def active(self, rows: Rows) -> NDArray[np.bool_]:
        """Which genes have an effect, (N, genes) bool."""
        active = np.ones(rows.shape, dtype=bool)
        for parent, keeps in self._switches:
            active &= keeps.take(rows[:, parent], axis=0)
        for parent, columns, _ in self._families:
            if self.genes[parent].parent is not None:  # else it is on itself
                active[:, columns] &= active[:, parent, None]
        return active

    @cached_property
    def _small(self) -> np.dtype[Any]:
        """A type that holds every option index and, as its largest value, a mark for genes without effect."""
        return np.min_scalar_type(int(self.lengths.max()))

    def columns(self, rows: Rows, *, mark: bool = False) -> Columns:
        """Rows turned to (genes, N), genes without effect 0, or the type's largest value with ``mark``."""
        columns = to_columns(rows, self._small)
        off = np.iinfo(self._small).max
        for parent, children, table in self._families:
            for enabled in {tuple(column) for column in table.T.tolist()}:
                drop = columns[parent] == off
                for option, keeps in enumerate(enabled):
                    if not keeps:
                        drop |= columns[parent] == option
                mask = np.multiply(drop, off, dtype=self._small)
                for child, column in zip(children, table.T.tolist(), strict=True):
                    if tuple(column) == enabled:
                        columns[child] |= mask
        if not mark and self._families:
            columns *= columns != off
        return columns

    def canonical(self, rows: Rows) -> Rows:
        """Rows with 0 for every gene without effect; equal networks have equal rows."""
        if not self._families:
            return rows
        return rows * self.active(rows)

    def count(self) -> int:
        """Number of distinct networks, exact."""
        roots = [index for index, gene in enumerate(self.genes) if gene.parent is None]
        total = 1
        for index in roots:
            total *= sum(self._subtree_counts(index))
        return total

    def _subtree_counts(self, index: int) -> list[int]:
        """Per option of a gene: how many settings of the genes below it are distinct."""
        children = [i for i, gene in enumerate(self.genes) if gene.parent == index]
        counts = []
        for value in self.genes[index].options:
            product = 1
            for child in children:
                if value in self.genes[child].enabling:
                    product *= sum(self._subtree_counts(child))
            counts.append(product)
        return counts

    def all_rows(self) -> Rows:
        """Every network of the space once, (count, genes); only for spaces small enough to be listed."""
        rows = np.zeros((1, len(self.genes)), dtype=np.int64)
        for index in sorted(range(len(self.genes)), key=self._generation):
            options = np.where(self.active(rows)[:, index], self.lengths[index], 1)
            first = np.repeat(np.cumsum(options) - options, options)
            rows = np.repeat(rows, options, axis=0)
            rows[:, index] = np.arange(len(rows)) - first
        return rows

    # ---- random variation -----------------------------------------------------------------------------------

    @cached_property
    def _thresholds(self) -> list[NDArray[np.float64]]:
        thresholds = []
        for index in range(len(self.genes)):
            counts = self._subtree_counts(index)
            total = sum(counts)
            thresholds.append(np.cumsum([count / total for count in counts])[:-1])
        return thresholds

    def sample_rows(self, n: int, rng: np.random.Generator, *, per_gene: bool = False) -> Rows:
        """N random canonical rows.

        Args:
            per_gene: draw every gene uniformly (Once-for-all's sampling) instead of every distinct network with
                equal probability.
        """
        if per_gene:
            return self.canonical(_below(np.broadcast_to(self.lengths, (n, len(self.genes))), rng))
        draws = rng.random((len(self.genes), n))
        rows = np.stack([np.searchsorted(t, u, side="right") for t, u in zip(self._thresholds, draws, strict=True)], axis=1)
        return self.canonical(rows.astype(np.int64))

    def mutate(self, rows: Rows, rng: np.random.Generator, rate: float | None = None) -> Rows:
        """Each gene takes another of its options with probability ``rate`` (default: one gene in expectation).

        Genes that a mutation switches on start from a random option.
        """
        rate = 1 / len(self.genes) if rate is None else rate
        active = self.active(rows)
        hit = (rng.random(rows.shape, dtype=np.float32) < rate) & active & (self.lengths > 1)
        at, gene = np.divmod(np.flatnonzero(hit), len(self.genes))  # a tenth of the time of np.nonzero on two dimensions
        length = self.lengths[gene]
        mutated = rows.copy()
        mutated[at, gene] = (rows[at, gene] + 1 + _below(length - 1, rng)) % length
        return self._switched_on(mutated, active, rng)

    def _switched_on(self, rows: Rows, known: NDArray[np.bool_], rng: np.random.Generator) -> Rows:
        """Canonical rows in which every gene that has an effect without being known is drawn at random."""
        active = self.active(rows)
        while (new := active & ~known).any():  # what is drawn may switch on more, one generation of genes a round
            at, gene = np.divmod(np.flatnonzero(new), len(self.genes))
            rows[at, gene] = _below(self.lengths[gene], rng)
            known = known | new
            active = self.active(rows)
        rows *= active  # in place: for a few thousand rows new memory costs more than the work on it
        return rows

    def crossover(self, first: Rows, second: Rows, rng: np.random.Generator) -> Rows:
        """Uniform crossover, row by row: each gene from either parent, from the one where it is active if only one is."""
        bits = np.frombuffer(rng.bytes(-(-first.size // 8)), dtype=np.uint8)
        pick = np.unpackbits(bits, count=first.size).view(bool).reshape(first.shape)
        mine, other = self.active(first), self.active(second)
        # Either parent by arithmetic: a choice by a random mask is what processors predict worst (five times the time).
        child = first ^ second
        child *= pick ^ ((mine ^ other) & (pick ^ mine))  # where both parents have the gene or neither has: the draw
        child ^= second
        child *= self.active(child)
        return child

    def unique(self, rows: Rows) -> NDArray[np.intp]:
        """Indices of the first occurrence of each distinct network, ascending."""
        return np.sort(np.unique(row_keys(self.canonical(rows)), return_index=True)[1])

    # ---- encodings ------------------------------------------------------------------------------------------

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    def encode_rows(self, rows: Rows, *, ordinal: bool = False) -> NDArray[np.float32]:
        """Features of rows: one-hot (N, sum of options), or ordinal (N, genes) in (0, 1]; inactive genes are 0.

        In memory the features of one column follow each other: writing them so takes a third of the time.
        """
        columns = self.columns(rows, mark=True)
        if ordinal:
            codes = np.zeros((len(self.genes), np.iinfo(self._small).max + 1), np.float32)
            for code, length in zip(codes, self.lengths.tolist(), strict=True):
                code[:length] = np.arange(1, length + 1) / length
            return np.stack([code.take(column) for code, column in zip(codes, columns, strict=True)]).T
        features = np.empty((int(self.lengths.sum()), len(rows)), np.float32)
        for offset, length, column in zip(self._offsets.tolist(), self.lengths.tolist(), columns, strict=True):
            for option in range(length):
                np.equal(column, option, out=features[offset + option])
        return features.T

    def feature_names(self, *, ordinal: bool = False) -> list[str]:
        """Names of the columns of `encode_rows`."""
        if ordinal:
            return [gene.name for gene in self.genes]
        return [f"{gene.name}={value}" for gene in self.genes for value in gene.options]


def _below(bounds: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random integer from 0 to below each bound; several times as fast as asking the generator bound by bound."""
    return (rng.random(bounds.shape) * bounds).astype(np.int64)


def row_keys(rows: Rows) -> NDArray[Any]:
    """One comparable, sortable key per row: (N,) of raw bytes."""
    small = np.ascontiguousarray(rows.astype(np.uint8) if rows.size == 0 or rows.max() < 256 else rows)
    return small.view(np.dtype((np.void, small.dtype.itemsize * small.shape[1]))).ravel()


def _plain(option: Any) -> Any:
    """A number of numpy's as Python's own: files and ids are made of these."""
    return option.item() if isinstance(option, np.generic) else option


def as_choice(name: str, value: Sequence[Value] | Choice) -> Choice:
    """A choice from a plain list of options.

    Raises:
        UserError: what is no name, no list in order (a set has none), an empty list, options that repeat or are no plain
            values, or rules of another number than positions.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"a choice is named {name!r}", allowed="Names are texts", next_step="Write {name: options}")
    if isinstance(value, (str, Set, Mapping)) or not isinstance(value, (Choice, Iterable)):
        raise UserError(
            f"choice '{name}' is {value!r}, a {type(value).__name__}",
            allowed="A list of options, in order, or a nas.Choice",
            next_step=f"Write for example: {[value] if isinstance(value, str) else [1, 2, 3]}",
        )
    choice = value if isinstance(value, Choice) else Choice(tuple(value))
    _check_positions(name, choice)
    for position, options in enumerate(choice.at or (choice.options,)):
        if strange := [option for option in options if not isinstance(option, (int, float, str)) or option != option]:
            raise UserError(
                f"choice '{name}' has the option {strange[0]!r}, a {type(strange[0]).__name__}",
                allowed="Options are numbers, texts, True or False (nan is no number)",
                next_step="Name the options, and translate the names where networks are built",
            )
        if not options or len(set(options)) != len(options):
            place = name if choice.at is None else f"{name}[{position}]"
            raise UserError(
                f"choice '{place}' has the options {list(options)}",
                allowed="A choice needs at least one option, each once",
                next_step="Correct the list",
            )
    return choice


def _check_positions(name: str, choice: Choice) -> None:
    length = choice.length
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 1):
        raise UserError(f"choice '{name}' has length {length!r}", allowed="At least 1", next_step="Correct the Choice")
    for what, parts in (("active_if", choice.active_if), ("at", choice.at)):
        if parts is not None and len(parts) != (length or 1):
            raise UserError(
                f"choice '{name}' has {len(parts)} entries in {what}",
                allowed=f"One for each of its positions, {length or 1}",
                next_step="Correct the Choice",
            )


def genes_of(choices: Mapping[str, Choice]) -> tuple[Gene, ...]:
    """The columns of a space's rows: one gene per scalar choice, one per position of a list choice.

    Raises:
        UserError: no choice, or a position that depends on a gene that does not exist, on values that this gene does not
            have, or in the end on itself.
    """
    if not choices:
        raise UserError("a space without choices", allowed="At least one choice is needed", next_step="Give {name: options}")
    named: list[tuple[str, str, Choice, int]] = []
    for name, choice in choices.items():
        if choice.length is None:
            named.append((name, name, choice, 0))
        named += [(f"{name}[{at}]", name, choice, at) for at in range(choice.length or 0)]
    column = {gene: index for index, (gene, *_) in enumerate(named)}
    genes = []
    for gene, name, choice, at in named:
        rule = choice.active_if[at] if choice.active_if else None
        if rule is not None and rule[0] not in column:
            raise UserError(
                f"{gene} depends on '{rule[0]}'",
                allowed=f"Genes: {', '.join(column)}",
                next_step="Name one of them in active_if",
            )
        parent, enabling = (None, ()) if rule is None else (column[rule[0]], tuple(map(_plain, rule[1])))
        genes.append(Gene(gene, name, choice.options_at(at), parent, enabling))
    for found in genes:
        _check_rule(found, genes)
    return tuple(genes)


def _check_rule(gene: Gene, genes: Sequence[Gene]) -> None:
    if gene.parent is None:
        return
    parent = genes[gene.parent]
    if not gene.enabling or any(value not in parent.options for value in gene.enabling):
        raise UserError(
            f"{gene.name} has an effect where {parent.name} is one of {list(gene.enabling)}",
            allowed=f"One or more of its options {list(parent.options)}",
            next_step="Correct active_if",
        )
    above = [gene, parent]
    while above[-1].parent is not None and len(above) <= len(genes) + 1:  # a circle above is for others to tell
        if above[-1] == gene:
            raise UserError(
                f"whether {gene.name} has an effect depends on itself: {' <- '.join(one.name for one in above)}",
                allowed="Conditions lead from one choice to others, and never back",
                next_step="Correct active_if",
            )
        above.append(genes[above[-1].parent])
