"""A covariance between architectures that serves ordered options and plain categories alike, and learns which genes matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces import SearchSpace
from search_spaces.architecture import Value

__all__ = ["GeneKernel", "Sample", "Term", "option_effects"]

Values = NDArray[np.float64]
Options = tuple[Value, ...]

MOST_SHARED = 100


@dataclass(frozen=True)
class Term:
    """One way in which two networks can differ at one gene.

    Attributes:
        gene: its place in the space.
        states: the gene's columns of `GeneKernel.one_hot`.
        distance: between the gene's states, (states, states), in 0..1.
    """

    gene: int
    states: slice
    distance: Values


class GeneKernel:
    """Distances between architectures as weighted sums over genes.

    A gene contributes up to three terms: whether two networks take different options; for three or more numbers, how
    many options lie between them; and how far apart the options are in effect, where many genes share their options.
    Where a gene has no effect is a state of its own. Weights decide which terms matter, so nothing has to be known
    about a space: kernel sizes, widths and the numbered operations of a cell are told apart by the data. Distances of
    N and M architectures are a product: how far each of the N is from every state, by the one-hot rows of the M.

    Args:
        effects: options -> the place of each one on a line, as `option_effects` finds it.
    """

    def __init__(self, space: SearchSpace, effects: Mapping[Options, Values] | None = None) -> None:
        self.space = space
        self.effects = effects or {}

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The first state column of every gene, and their total at the end; (genes + 1,)."""
        inactive = np.array([gene.parent is not None for gene in self.space.genes], dtype=np.int64)
        return np.concatenate([[0], np.cumsum(self.space.lengths + inactive)])

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """All terms, in order of genes."""
        found = []
        for index, gene in enumerate(self.space.genes):
            states = slice(int(self._first[index]), int(self._first[index + 1]))
            count, options = states.stop - states.start, len(gene.options)
            if count < 2:
                continue
            found.append(Term(index, states, 1.0 - np.eye(count)))
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in gene.options)
            if numbers and options > 2:
                places = np.argsort(np.argsort(np.array(gene.options, dtype=np.float64)))
                found.append(Term(index, states, _along(places, count)))
            if gene.options in self.effects:
                found.append(Term(index, states, _along(self.effects[gene.options], count)))
        return tuple(found)

    def states(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The state of every gene of canonical rows, counted from the gene's first, (N, genes)."""
        return np.where(self.space.active(rows), rows, self.space.lengths)

    def one_hot(self, rows: NDArray[np.int64]) -> Values:
        """The states of canonical rows, (N, states), one 1 per gene."""
        features = np.zeros((len(rows), int(self._first[-1])))
        np.put_along_axis(features, self._first[:-1] + self.states(rows), 1.0, axis=1)
        return features

    @cached_property
    def counts(self) -> Values:
        """``one_hot(rows) @ counts``: which share of the genes with the same options takes each option, (states, options).

        Networks that take an option equally often, at whatever places, are alike in much that options do everywhere.
        """
        columns = []
        for options, genes in shared_options(self.space).items():
            for option in range(len(options)):
                column = np.zeros(int(self._first[-1]))
                column[self._first[genes] + option] = 1.0 / len(genes)
                columns.append(column)
        return np.stack(columns, axis=1) if columns else np.zeros((int(self._first[-1]), 0))

    def reach(self, rows: NDArray[np.int64], weights: Values) -> Values:
        """How far rows are from every state, (N, states): ``reach(a) @ one_hot(b).T`` are the weighted distances."""
        states, found = self.states(rows), np.zeros((len(rows), int(self._first[-1])))
        for weight, term in zip(weights, self.terms, strict=True):
            found[:, term.states] += weight * term.distance[states[:, term.gene]]
        return found

    def sample(self, rows: NDArray[np.int64]) -> Sample:
        """Rows (N, genes) whose distances from each other are asked for under many weights."""
        hot, states = self.one_hot(rows), self.states(rows)
        seen = hot.max(axis=0, initial=0.0) > 0
        column = np.cumsum(seen)
        parts = []
        for term in self.terms:
            first, stop = (int(column[at - 1]) if at else 0 for at in (term.states.start, term.states.stop))
            parts.append((slice(first, stop), term.distance[states[:, term.gene]][:, seen[term.states]]))
        return Sample(hot[:, seen], hot @ self.counts, tuple(parts))


@dataclass(frozen=True)
class Sample:
    """Rows among themselves: what does not depend on weights, and only the states that occur.

    Attributes:
        hot: which state each gene has, (N, states that occur).
        counts: which share of genes takes an option, (N, options): see `GeneKernel.counts`.
        parts: of every term, its columns of ``hot`` and how far each row is from those states.
    """

    hot: Values
    counts: Values
    parts: tuple[tuple[slice, Values], ...]

    def distances(self, weights: Values) -> Values:
        """Weighted distances of the rows, (N, N)."""
        reach = np.zeros_like(self.hot)
        for weight, (columns, part) in zip(weights, self.parts, strict=True):
            reach[:, columns] += weight * part
        return reach @ self.hot.T

    def collect(self, slopes: Values) -> Values:
        """The derivative by the weights, (terms,), of a function whose derivative by the distances is ``slopes`` (N, N)."""
        along = slopes @ self.hot
        return np.array([np.vdot(along[:, columns], part) for columns, part in self.parts])


def _along(places: NDArray[Any], count: int) -> Values:
    """Distances on a line scaled to 0..1, (count, count); states beyond the places (no effect) are in its middle."""
    scaled = (places - places.min()) / (np.ptp(places) or 1.0)
    scaled = np.concatenate([scaled, np.full(count - len(places), 0.5)])
    return np.abs(scaled[:, None] - scaled[None, :])  # type: ignore[no-any-return]


def shared_options(space: SearchSpace) -> dict[Options, list[int]]:
    """Two or more options that several genes have in common, and these genes.

    Not of hundreds of options: each is taken too rarely for its effects or its number to say anything.
    """
    shared: dict[Options, list[int]] = {}
    for index, gene in enumerate(space.genes):
        if len(gene.options) > 1:
            shared.setdefault(gene.options, []).append(index)
    return {options: genes for options, genes in shared.items() if len(genes) > 1 and len(options) <= MOST_SHARED}


def option_effects(space: SearchSpace, rows: NDArray[np.int64], values: Values) -> dict[Options, Values]:
    """What options do wherever they are taken: for three or more options that several genes share, their common effects.

    The effects are the coefficients of a ridge regression of the values (N,) on how many genes take an option: a few
    numbers from all the data, which tell early that two operations of a cell, or of all 22 blocks, are alike.
    """
    shared = {options: genes for options, genes in shared_options(space).items() if len(options) > 2}
    if not shared:
        return {}
    active = space.active(rows)
    counts = [
        ((rows[:, genes] == option) & active[:, genes]).sum(axis=1)
        for options, genes in shared.items()
        for option in range(len(options))
    ]
    features = np.column_stack(counts).astype(np.float64)
    features -= features.mean(axis=0)
    target = (values - values.mean()) / (values.std() or 1.0)
    penalty = 0.1 * len(rows) * max(float(features.var(axis=0).mean()), 1e-9)
    effects = np.linalg.solve(features.T @ features + penalty * np.eye(features.shape[1]), features.T @ target)
    ends = np.cumsum([len(options) for options in shared])[:-1]
    return dict(zip(shared, np.split(effects, ends), strict=True))
