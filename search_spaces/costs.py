"""Costs of architectures as sums of table look-ups, exact and vectorised.

The layer at one position depends on few genes, so each position's cost is a small dense array indexed by those
genes: the price of N networks is a sum of gathers. The same arrays give the exact minimum and maximum over the
whole space, by eliminating one gene after the other (min-sum elimination on the positions as factors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search_spaces.columns import Columns, to_columns

__all__ = ["Cost", "Factor"]

CHUNK = 16384  # architectures priced at a time: indices and sums stay in the cache

Genes = tuple[int, ...]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Factor:
    """Cost of one or several positions: ``table[i, j, ...]`` for the option indices of ``genes``."""

    genes: Genes
    table: Array

    @cached_property
    def flat(self) -> Array:
        return np.ascontiguousarray(self.table).ravel()

    def aligned(self, genes: Genes) -> Array:
        """The table with its axes in the order of ``genes`` (a superset), length 1 where it does not depend."""
        order = sorted(range(len(self.genes)), key=lambda i: genes.index(self.genes[i]))
        moved = self.table.transpose(order)
        present = [self.genes[i] for i in order]
        shape = [moved.shape[present.index(g)] if g in present else 1 for g in genes]
        return moved.reshape(shape)


def _merge(factors: Sequence[Factor], combine: Callable[[Array, Array], Array]) -> list[Factor]:
    """Fold every factor into one whose genes include its own: fewer gathers, same total."""
    merged: list[Factor] = []
    for factor in sorted(factors, key=lambda f: -len(f.genes)):
        for index, host in enumerate(merged):
            if set(factor.genes) <= set(host.genes):
                table = combine(host.table, factor.aligned(host.genes))
                merged[index] = Factor(host.genes, np.asarray(table, order="C"))  # which keeps a table of no genes as it is
                break
        else:
            merged.append(factor)
    return merged


class Cost:
    """A cost that is a sum (or a maximum) over the positions of a network.

    Args:
        factors: one table per position.
        peak: combine positions by maximum instead of by sum (memory).
    """

    def __init__(self, factors: Sequence[Factor], *, peak: bool = False) -> None:
        self.peak = peak
        self.factors = _merge(factors, np.maximum if peak else np.add)

    def __call__(self, rows: NDArray[np.integer]) -> Array:
        """Cost of each architecture; ``rows`` is (N, genes) option indices, canonical. Returns (N,) float64."""
        most = max((max(f.table.shape, default=1) for f in self.factors), default=1)
        return self.of_columns(to_columns(rows, np.min_scalar_type(most)))

    def of_columns(self, columns: Columns) -> Array:
        """The same for (genes, N) option indices, one column of memory per gene."""
        total = np.zeros(columns.shape[1])
        for start in range(0, columns.shape[1], CHUNK):
            self._add(columns[:, start : start + CHUNK], total[start : start + CHUNK])
        return total

    def _add(self, columns: Columns, total: Array) -> None:
        """Add (or raise to) the cost of every factor, in place."""
        wide: dict[tuple[int, type], NDArray[np.signedinteger]] = {}
        for factor in self.factors:
            # Arithmetic on narrow indices is twice as fast.
            dtype: type[np.signedinteger] = np.int16 if factor.table.size < 2**15 else np.intp
            for gene in factor.genes:
                if (gene, dtype) not in wide:
                    wide[gene, dtype] = columns[gene].astype(dtype)
            index: NDArray[np.signedinteger] = np.zeros(columns.shape[1], dtype=dtype)
            for gene, length in zip(factor.genes, factor.table.shape, strict=True):
                index *= length
                index += wide[gene, dtype]
            part = factor.flat.take(index)
            if self.peak:
                np.maximum(total, part, out=total)
            else:
                total += part

    def minimum(self, gene_count: int) -> tuple[float, NDArray[np.int64]]:
        """The smallest cost in the space and a row that has it; exact, without search. (genes,) int64."""
        return self._extreme(gene_count, sign=1.0)

    def maximum(self, gene_count: int) -> tuple[float, NDArray[np.int64]]:
        """The largest cost in the space and a row that has it; exact, without search. (genes,) int64."""
        return self._extreme(gene_count, sign=-1.0)

    def _extreme(self, gene_count: int, sign: float) -> tuple[float, NDArray[np.int64]]:
        combine = np.maximum if self.peak and sign > 0 else np.minimum if self.peak else np.add
        pending = [Factor(f.genes, sign * f.table) for f in self.factors]
        chosen: list[tuple[int, Genes, NDArray[np.intp]]] = []
        remaining = {gene for f in pending for gene in f.genes}
        while remaining:
            # The gene whose neighbourhood is smallest keeps the intermediate tables small.
            gene = min(sorted(remaining), key=lambda g: _neighbourhood_size(pending, g))
            touching = [f for f in pending if gene in f.genes]
            scope = tuple(sorted({g for f in touching for g in f.genes} - {gene})) + (gene,)
            joint = touching[0].aligned(scope)
            for factor in touching[1:]:
                joint = combine(joint, factor.aligned(scope))
            joint = np.broadcast_to(joint, _shape(touching, scope))
            chosen.append((gene, scope[:-1], joint.argmin(axis=-1)))
            pending = [f for f in pending if gene not in f.genes] + [Factor(scope[:-1], joint.min(axis=-1))]
            remaining.remove(gene)
        value = pending[0].table
        for factor in pending[1:]:
            value = combine(value, factor.table)
        row = np.zeros(gene_count, dtype=np.int64)
        for gene, scope, best in reversed(chosen):
            row[gene] = best[tuple(row[list(scope)])]
        return sign * float(value), row


def _shape(factors: Sequence[Factor], scope: Genes) -> tuple[int, ...]:
    lengths = {g: n for f in factors for g, n in zip(f.genes, f.table.shape, strict=True)}
    return tuple(lengths[g] for g in scope)


def _neighbourhood_size(factors: Sequence[Factor], gene: int) -> int:
    touching = [f for f in factors if gene in f.genes]
    return math.prod(_shape(touching, tuple({g for f in touching for g in f.genes})))
