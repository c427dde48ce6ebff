"""A covariance between architectures that serves ordered options and plain categories alike, and learns which genes matter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search_spaces import SearchSpace

__all__ = ["GeneKernel", "Term"]

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """One way in which two networks can differ at one gene.

    Attributes:
        states: the gene's columns of `GeneKernel.one_hot`.
        distance: between the gene's states, (states, states), in 0..1.
    """

    states: slice
    distance: Values


class GeneKernel:
    """Distances between architectures as weighted sums over genes.

    A gene contributes up to two terms: whether two networks take different options, and, for three or more numbers,
    how many options lie between them. Where a gene has no effect is a state of its own. Weights decide which terms
    matter, so nothing has to be known about a space: kernel sizes, widths and the numbered operations of a cell are
    told apart by the data. Matrices over N and M architectures are products of one-hot rows with a small table.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

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
            found.append(Term(states, 1.0 - np.eye(count)))
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in gene.options)
            if numbers and options > 2:
                rank = np.argsort(np.argsort(np.array(gene.options, dtype=np.float64))) / (options - 1)
                place = np.concatenate([rank, np.full(count - options, 0.5)])
                found.append(Term(states, np.abs(place[:, None] - place[None, :])))
        return tuple(found)

    def one_hot(self, rows: NDArray[np.int64]) -> Values:
        """The state of every gene of canonical rows, (N, states), one 1 per gene."""
        active = self.space.active(rows)
        state = self._first[:-1] + np.where(active, rows, self.space.lengths)
        features = np.zeros((len(rows), int(self._first[-1])))
        np.put_along_axis(features, state, 1.0, axis=1)
        return features

    def table(self, weights: Values) -> Values:
        """The weighted distances between states, (states, states): ``one_hot(a) @ table @ one_hot(b).T`` is the distance."""
        table = np.zeros((int(self._first[-1]), int(self._first[-1])))
        for weight, term in zip(weights, self.terms, strict=True):
            table[term.states, term.states] += weight * term.distance
        return table

    def collect(self, pairs: Values) -> Values:
        """The derivative by the weights, (terms,), of a function whose derivative by the table is ``pairs``."""
        return np.array([np.sum(term.distance * pairs[term.states, term.states]) for term in self.terms])
