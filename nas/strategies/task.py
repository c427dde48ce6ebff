"""What a strategy is given: the space, the quantities with their directions and limits, and networks to draw from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nas.evolution import Evolved, evolve
from search_spaces import SearchSpace

__all__ = ["Archive", "Quantity", "Rows", "Strategy", "Task", "Values"]

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

LISTED = 20_000  # a space of at most so many networks is listed when networks run out
WALK_AFTER = 20  # random draws, a walk from networks within the known limits begins
STRIDE = 1.03  # by which its steps grow, from one gene on average: tight limits bear no more, wide ones are left behind


@dataclass(frozen=True)
class Quantity:
    """A number per network. Inside strategies every quantity is minimised: those to be maximised change sign.

    Attributes:
        maximise: larger is better.
        objective: it is optimised; otherwise it is only limited.
        bound: at most (at least, where larger is better) this; None without limit.
        known: canonical rows (N, genes) to values (N,), exact and free; None where it has to be measured.
    """

    name: str
    maximise: bool
    objective: bool
    bound: float | None = None
    known: Callable[[Rows], Values] | None = None

    @property
    def sign(self) -> float:
        return -1.0 if self.maximise else 1.0


class Strategy(Protocol):
    """Decides what to evaluate next. One that is asked again without being told has lost nothing but time."""

    def ask(self, n: int) -> Rows:
        """At most n distinct canonical rows that were not told yet and meet all known limits; none: nothing is left."""
        ...

    def tell(self, rows: Rows, values: Values) -> None:
        """Evaluated rows (N, genes) and their quantities (N, quantities), all minimised."""
        ...


@dataclass(frozen=True)
class Task:
    """A search problem as strategies see it.

    Attributes:
        quantities: columns of all arrays of values.
        budget: evaluations in all.
        batch: evaluations at a time.
        seed: of everything random in a strategy.
    """

    space: SearchSpace
    quantities: tuple[Quantity, ...]
    budget: int
    batch: int
    seed: int

    @cached_property
    def objectives(self) -> NDArray[np.intp]:
        """Columns that are optimised."""
        return np.array([i for i, q in enumerate(self.quantities) if q.objective], dtype=np.intp)

    @cached_property
    def measured(self) -> list[int]:
        """Columns that only an evaluation tells."""
        return [i for i, q in enumerate(self.quantities) if q.known is None]

    @cached_property
    def priced(self) -> list[int]:
        """Columns that are known without an evaluation."""
        return [i for i, q in enumerate(self.quantities) if q.known is not None]

    @cached_property
    def bounds(self) -> Values:
        """Upper bounds of the minimised quantities, infinite without limit; (quantities,)."""
        return np.array([np.inf if q.bound is None else q.sign * q.bound for q in self.quantities])

    def known(self, rows: Rows) -> Values:
        """Quantities of canonical rows, all minimised, (N, quantities); 0 for those that have to be measured."""
        values = np.zeros((len(rows), len(self.quantities)))
        for column, quantity in enumerate(self.quantities):
            if quantity.known is not None:
                values[:, column] = quantity.sign * quantity.known(rows)
        return values

    def excess(self, values: Values, columns: Sequence[int] | None = None) -> Values:
        """How far values (..., quantities) exceed the limits (of these columns only), in shares of the bounds; (...,)."""
        total = np.zeros(values.shape[:-1])
        for column in range(len(self.quantities)) if columns is None else columns:
            bound = self.bounds[column]
            if np.isfinite(bound):
                total += np.maximum(values[..., column] - bound, 0.0) / (abs(bound) or 1.0)
        return total

    def allowed(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows meet all known limits, (N,)."""
        known = [i for i in self.priced if np.isfinite(self.bounds[i])]
        if not known:
            return np.ones(len(rows), dtype=bool)
        return self.excess(self.known(rows), known) <= 0

    @cached_property
    def nearest(self) -> Evolved:
        """An evolution towards the known limits, smallest known quantities first: networks that meet them, or ``least`` > 0."""

        def price(rows: Rows) -> tuple[Values, Values]:
            values = self.known(rows)
            return values[:, self.priced], self.excess(values, self.priced)

        ends = self.space.to_array([self.space.smallest, self.space.largest])
        rng = np.random.default_rng([self.seed, 1])
        found = evolve(self.space, price, start=ends, rng=rng, population=50, generations=40)
        return found if len(found.front) else self._descended(found)

    def _descended(self, found: Evolved) -> Evolved:
        """From the network that violates the known limits least, gene by gene to what violates them less, as far as it goes.

        Where every gene has a cost of its own the end is the least there is.
        """
        best, least = found.population[:1], found.least
        while least > 0:
            arch = self.space.from_array(best)[0]
            near = self.space.to_array(self.space.neighbours(arch))
            excess = self.excess(self.known(near), self.priced)
            if not len(near) or excess.min() >= least:
                break
            best, least = near[[excess.argmin()]], float(excess.min())
        front = best if least <= 0 else found.front
        return Evolved(front, np.concatenate([best, found.population]), least)

    @cached_property
    def listed(self) -> Rows | None:
        """All networks that meet the known limits, where the space is small enough to be listed; else None."""
        if self.space.count() > LISTED:
            return None
        rows = self.space.all_rows()
        return rows[self.allowed(rows)]

    def draw(self, n: int, archive: Archive, rng: np.random.Generator) -> Rows:
        """Up to n random networks that the archive does not hold and that meet the known limits; fewer: none are left."""
        if self.listed is not None:
            left = self.listed[archive.new(self.listed)]
            return left[rng.permutation(len(left))[:n]]
        found = np.empty((0, len(self.space.genes)), dtype=np.int64)
        for attempt in range(200):
            if attempt < WALK_AFTER or not len(self.nearest.front):
                drawn = self.space.sample_rows(4 * n, rng)
            else:  # the limits leave a sliver of the space: walk away from networks that are inside
                seeds = np.concatenate([self.nearest.front, found])
                rate = min(0.5, STRIDE ** (attempt - WALK_AFTER) / len(self.space.genes))
                drawn = self.space.mutate(seeds[rng.integers(len(seeds), size=4 * n)], rng, rate=rate)
            drawn = drawn[archive.new(drawn)]
            found = np.concatenate([found, drawn[self.allowed(drawn)]])
            found = found[self.space.unique(found)][:n]
            if len(found) == n:
                break
        return found


class Archive:
    """Every evaluated row with its values, in order of evaluation."""

    def __init__(self, genes: int, quantities: int) -> None:
        self.rows: Rows = np.empty((0, genes), dtype=np.int64)
        self.values: Values = np.empty((0, quantities))
        self._at: dict[bytes, int] = {}

    @classmethod
    def of(cls, task: Task) -> Archive:
        return cls(len(task.space.genes), len(task.quantities))

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: Rows, values: Values) -> None:
        for index, row in enumerate(rows):
            self._at[row.tobytes()] = len(self.rows) + index
        self.rows, self.values = np.concatenate([self.rows, rows]), np.concatenate([self.values, values])

    def new(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows are not here yet, (N,)."""
        return np.array([row.tobytes() not in self._at for row in np.ascontiguousarray(rows)], dtype=bool)

    def find(self, rows: Rows) -> Values:
        """Values of rows that are here, (N, quantities)."""
        return self.values[[self._at[row.tobytes()] for row in np.ascontiguousarray(rows)]]
