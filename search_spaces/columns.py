"""Rows of option indices turned on their side: one short column of small integers per gene.

Work over many architectures is bound by memory traffic. As (genes, N) bytes an architecture takes an eighth of its row of
64-bit integers, and every step runs along contiguous memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Columns", "to_columns"]

Columns = NDArray[Any]  # (genes, N) uint8, or wider where a gene has more options than fit

BLOCK = 1024  # rows turned at a time: what is read and what is written stay in the cache


def to_columns(rows: NDArray[np.integer], dtype: np.dtype[Any]) -> Columns:
    """(N, genes) integers to (genes, N) of a smaller type, into which they must fit."""
    columns = np.empty((rows.shape[1], len(rows)), dtype)
    for start in range(0, len(rows), BLOCK):
        columns[:, start : start + BLOCK] = rows[start : start + BLOCK].astype(dtype).T
    return columns
