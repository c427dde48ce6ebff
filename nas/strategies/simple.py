"""Strategies without a model: uniform random networks, and Once-for-all's evolution."""

from __future__ import annotations

import numpy as np

from nas.selection import survivors
from nas.strategies.task import Archive, Rows, Task, Values

__all__ = ["Evolution", "RandomSearch"]


class RandomSearch:
    """Distinct networks, each with equal probability."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.archive = Archive.of(task)
        self.rng = np.random.default_rng([task.seed, 2])

    def ask(self, n: int) -> Rows:
        return self.task.draw(n, self.archive, self.rng)

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)


class Evolution:
    """Once-for-all's evolution (Cai et al. 2020): mutants and crossovers of the best quarter of a population.

    As published: population 100, parents a quarter of it, half of the children mutants with one gene in ten redrawn,
    half uniform crossovers. Different: "best" is by non-dominated fronts, so that several objectives work; no network
    is evaluated twice; children outside the limits are redrawn a bounded number of times, then replaced by random ones;
    the population is what was evaluated so far, so that the last generation counts.
    """

    POPULATION = 100
    PARENTS = 25
    RATE = 0.1

    def __init__(self, task: Task) -> None:
        self.task = task
        self.archive = Archive.of(task)
        self.rng = np.random.default_rng([task.seed, 2])
        self.first = min(self.POPULATION, max(2, task.budget // 4))

    def ask(self, n: int) -> Rows:
        if len(self.archive) < self.first:
            return self.task.draw(min(n, self.first - len(self.archive)), self.archive, self.rng)
        space = self.task.space
        costs = self.archive.values[:, self.task.objectives]
        parents = self.archive.rows[survivors(costs, self.PARENTS, violation=self.task.excess(self.archive.values))]
        found = parents[:0]
        for _ in range(20):
            first, second = parents[self.rng.integers(len(parents), size=(2, n))]
            mutants = space.mutate(first[: (n + 1) // 2], self.rng, rate=self.RATE)
            made = np.concatenate([mutants, space.crossover(first[(n + 1) // 2 :], second[(n + 1) // 2 :], self.rng)])
            made = made[self.archive.new(made)]
            found = np.concatenate([found, made[self.task.allowed(made)]])
            found = found[space.unique(found)][:n]
            if len(found) == n:
                return found
        found = np.concatenate([found, self.task.draw(n, self.archive, self.rng)])
        return found[space.unique(found)][:n]

    def tell(self, rows: Rows, values: Values) -> None:
        self.archive.add(rows, values)
