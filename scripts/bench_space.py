"""Speed of spaces and supernets: OMP_NUM_THREADS=1 python scripts/bench_space.py [--part arrays|generation|supernet]

One core. Times are CPU seconds of this process, medians of interleaved repetitions: what is compared takes turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import nas

ROWS = 100_000
POPULATION = 1_000


def medians(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each job; they take turns, after one unmeasured turn."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def layer_ms(layer) -> float:
    """A price like a latency table's: any function of the layer costs the same to gather."""
    return 0.01 + layer.macs * 1e-7 + layer.weight_bytes * 1e-8


def array_jobs(space: nas.SearchSpace) -> dict[str, Callable[[], object]]:
    """What search does with whole arrays."""
    rng = np.random.default_rng(0)
    rows = space.sample_rows(ROWS, rng)
    table = space.cost(layer_ms)
    return {
        "one-hot": lambda: space.encode(rows),
        "ordinal": lambda: space.encode(rows, ordinal=True),
        "MACs": lambda: space.macs(rows),
        "table latency": lambda: space.price(table, rows),
        "canonical": lambda: space.canonical(rows),
        "sample": lambda: space.sample_rows(ROWS, rng),
        "mutate": lambda: space.mutate(rows, rng),
        "cross": lambda: space.crossover(rows, rows[::-1], rng),
        "unique": lambda: space.unique(rows),
    }


def arrays() -> None:
    """Rates of single operations, every space."""
    print(f"\nwhole arrays of {ROWS:,} architectures: million architectures a second")
    for number, name in enumerate(nas.spaces()):
        found = medians(array_jobs(nas.space(name)), 7)
        if not number:
            print(f"{'space':<20}" + "".join(f"{column:>15}" for column in found))
        print(f"{name:<20}" + "".join(f"{ROWS / seconds / 1e6:>15.2f}" for seconds in found.values()))


class Search:
    """NSGA-II's loop over two additive costs, the least that a search does."""

    def __init__(self) -> None:
        self.space, self.rng = nas.space("ofa-mobilenet-v3"), np.random.default_rng(0)
        worth = {layer: float(np.log1p(layer.macs) * self.rng.uniform(0.5, 1.5)) for layer in self.space.layers()}
        self.gain, self.table = self.space.cost(worth.__getitem__), self.space.cost(layer_ms)

    def price(self, rows: np.ndarray) -> np.ndarray:
        """(N, 2): latency, and the negative of what is to be high."""
        return np.column_stack([self.space.price(self.table, rows), -self.space.price(self.gain, rows)])

    def breed(self, parents: np.ndarray) -> np.ndarray:
        """Children by binary tournaments (parents are sorted, the best first), none twice, none a parent."""
        a, b = self.rng.integers(len(parents), size=(2, 2, len(parents))).min(axis=1)
        children = self.space.mutate(self.space.crossover(parents[a], parents[b], self.rng), self.rng)
        both = np.concatenate([parents, children])
        first = self.space.unique(both)
        return both[first[first >= len(parents)]]

    def step(self, parents: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next generation and its costs."""
        children = self.breed(parents)
        rows, values = np.concatenate([parents, children]), np.concatenate([costs, self.price(children)])
        best = nas.survivors(values, POPULATION)
        return rows[best], values[best]


def generation() -> None:
    """One generation and its parts."""
    print(f"\none generation at population {POPULATION:,}, ofa-mobilenet-v3")
    search = Search()
    parents = search.space.sample_rows(POPULATION, search.rng)
    costs = search.price(parents)
    for _ in range(30):  # an advanced population: many fronts have become few
        parents, costs = search.step(parents, costs)
    children = search.breed(parents)
    values = np.concatenate([costs, search.price(children)])
    jobs = {
        "whole step": lambda: search.step(parents, costs),
        "select (rank, crowding)": lambda: nas.survivors(values, POPULATION),
        "cross, mutate, deduplicate": lambda: search.breed(parents),
        "price (two tables)": lambda: search.price(children),
        "select by pymoo instead": lambda: pymoo_survival(values),
    }
    found = medians(jobs, 101)
    for name, seconds in found.items():
        print(f"{name:<30}{seconds * 1e3:>10.2f} ms{len(children) / seconds:>14,.0f} children/s")
    ratio = found["select by pymoo instead"] / found["select (rank, crowding)"]
    print(f"pymoo's selection takes {ratio:.1f} times as long")


def pymoo_survival(values: np.ndarray) -> object:
    """The same selection by pymoo."""
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    population = Population.new(F=values)
    problem = Problem(n_var=1, n_obj=values.shape[1])
    return RankAndCrowding().do(problem, population, n_survive=POPULATION, random_state=np.random.default_rng(0))


def supernet() -> None:
    """Weight sharing against plain networks."""
    import torch

    torch.set_num_threads(1)
    print("\nsupernet against the same extracted network, ofa-mobilenet-v3, 128 px, ms shared / alone")
    print(f"{'architecture':<14}{'forward, batch 1':>26}{'step, batch 32':>28}{'extraction':>14}")
    space = nas.space("ofa-mobilenet-v3", resolution=[128])
    shared = nas.Supernet(space)
    archs = {"smallest": space.smallest, "largest": space.largest}
    archs |= {f"random {i}": arch for i, arch in enumerate(space.sample(4, seed=0))}
    for name, arch in archs.items():
        forward, step, extraction = one_network(shared, arch)
        cells = [f"{f['shared'] * 1e3:.1f} / {f['alone'] * 1e3:.1f} = {f['shared'] / f['alone']:.2f}" for f in (forward, step)]
        print(f"{name:<14}{cells[0]:>26}{cells[1]:>28}{extraction * 1e3:>11.1f} ms")


def one_network(shared: nas.Supernet, arch: nas.Architecture) -> tuple[dict[str, float], dict[str, float], float]:
    """Forward at batch 1, forward and backward at batch 32, each shared and alone; extraction. Seconds."""
    import torch

    one, many = (torch.randn(n, 3, 128, 128).to(memory_format=torch.channels_last) for n in (1, 32))
    single = shared.eval().extract(arch)
    with torch.inference_mode():
        forward = medians({"shared": lambda: shared(one, arch), "alone": lambda: single(one)}, 31)
    extraction = medians({"extract": lambda: shared.extract(arch)}, 31)["extract"]
    trained = shared.train().extract(arch)

    def train(run: Callable[[], torch.Tensor], module: torch.nn.Module) -> None:
        module.zero_grad(set_to_none=True)
        run().square().mean().backward()

    jobs = {"shared": lambda: train(lambda: shared(many, arch), shared), "alone": lambda: train(lambda: trained(many), trained)}
    return forward, medians(jobs, 9), extraction


def main() -> None:
    """Run the parts asked for."""
    parts = {"arrays": arrays, "generation": generation, "supernet": supernet}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=parts, help="only this part")
    chosen = parser.parse_args().part
    for name, part in parts.items():
        if chosen in (None, name):
            part()


if __name__ == "__main__":
    main()
