"""Speed of spaces and supernets: python scripts/bench_space.py [--part arrays|generation|supernet]

One core. Times are CPU seconds of this process, medians of interleaved repetitions: what is compared takes turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

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


def arrays() -> None:
    print(f"\nwhole arrays of {ROWS:,} architectures, million architectures a second")
    columns = ("one-hot", "ordinal", "MACs", "table latency", "canonical", "sample", "mutate", "cross", "unique")
    print(f"{'space':<20}" + "".join(f"{name:>15}" for name in columns))
    for name in nas.spaces():
        space = nas.space(name)
        rng = np.random.default_rng(0)
        rows = space.sample_rows(ROWS, rng)
        table = space.cost(layer_ms)
        jobs = {
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
        found = medians(jobs, 7)
        print(f"{name:<20}" + "".join(f"{ROWS / found[column] / 1e6:>15.2f}" for column in columns))


def generation() -> None:
    print(f"\none generation at population {POPULATION:,}: milliseconds, and children a second")
    space = nas.space("ofa-mobilenet-v3")
    rng = np.random.default_rng(0)
    worth = {layer: float(np.log1p(layer.macs) * rng.uniform(0.5, 1.5)) for layer in space.layers()}
    gain, table = space.cost(worth.__getitem__), space.cost(layer_ms)

    def price(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([space.price(table, rows), -space.price(gain, rows)])

    rows = space.sample_rows(POPULATION, rng)
    parents, costs = rows, price(rows)

    def breed(parents: np.ndarray) -> np.ndarray:
        """Children by binary tournaments (parents are sorted, the best first), none twice, none a parent."""
        a, b = rng.integers(len(parents), size=(2, 2, len(parents))).min(axis=1)
        children = space.mutate(space.crossover(parents[a], parents[b], rng), rng)
        both = np.concatenate([parents, children])
        first = space.unique(both)
        return both[first[first >= len(parents)]]

    def step(parents: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        children = breed(parents)
        rows, values = np.concatenate([parents, children]), np.concatenate([costs, price(children)])
        best = nas.survivors(values, POPULATION)
        return rows[best], values[best], len(children)

    for _ in range(30):  # an advanced population: many fronts have become few
        parents, costs, _ = step(parents, costs)
    children = breed(parents)
    values = np.concatenate([costs, price(children)])
    found = medians(
        {
            "whole step": lambda: step(parents, costs),
            "select (rank, crowding)": lambda: nas.survivors(values, POPULATION),
            "cross, mutate, deduplicate": lambda: breed(parents),
            "price (two tables)": lambda: price(children),
            "select by pymoo": lambda: pymoo_survival(values),
        },
        41,
    )
    for name, seconds in found.items():
        print(f"{name:<30}{seconds * 1e3:>10.2f} ms{len(children) / seconds:>14,.0f} /s")
    print(f"pymoo's selection takes {found['select by pymoo'] / found['select (rank, crowding)']:.1f} times as long as ours")


def pymoo_survival(values: np.ndarray) -> object:
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    population = Population.new(F=values)
    problem = Problem(n_var=1, n_obj=values.shape[1])
    return RankAndCrowding().do(problem, population, n_survive=POPULATION, random_state=np.random.default_rng(0))


def supernet() -> None:
    import torch

    torch.set_num_threads(1)
    print("\nsupernet against the same extracted network, ofa-mobilenet-v3, 128 px")
    print(f"{'architecture':<14}{'forward, batch 1':>22}{'step, batch 32':>22}{'extraction':>14}")
    space = nas.space("ofa-mobilenet-v3", resolution=[128])
    shared = nas.Supernet(space)
    archs = {"smallest": space.smallest, "largest": space.largest}
    archs |= {f"random {i}": arch for i, arch in enumerate(space.sample(4, seed=0))}
    for name, arch in archs.items():
        one, many = (torch.randn(n, 3, 128, 128).to(memory_format=torch.channels_last) for n in (1, 32))
        shared.eval()
        single = shared.extract(arch)
        with torch.inference_mode():
            forward = medians({"shared": lambda: shared(one, arch), "alone": lambda: single(one)}, 31)
        extraction = medians({"extract": lambda: shared.extract(arch)}, 15)["extract"]
        shared.train()
        single = shared.extract(arch)

        def train(run: Callable[[], torch.Tensor], module: torch.nn.Module) -> None:
            module.zero_grad(set_to_none=True)
            run().square().mean().backward()

        jobs = {
            "shared": lambda: train(lambda: shared(many, arch), shared),
            "alone": lambda: train(lambda: single(many), single),
        }
        step = medians(jobs, 7)
        cells = [f"{f['shared'] * 1e3:.1f} / {f['alone'] * 1e3:.1f} = {f['shared'] / f['alone']:.2f}" for f in (forward, step)]
        print(f"{name:<14}{cells[0]:>22}{cells[1]:>22}{extraction * 1e3:>11.1f} ms")


def main() -> None:
    parts = {"arrays": arrays, "generation": generation, "supernet": supernet}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=parts, help="only this part")
    chosen = parser.parse_args().part
    for name, part in parts.items():
        if chosen in (None, name):
            part()


if __name__ == "__main__":
    main()
