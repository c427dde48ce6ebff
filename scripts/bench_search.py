"""Share of the true hypervolume that search strategies reach against evaluations, on tabulated problems.

    python scripts/bench_search.py --data PATH --seeds 10 --strategies default linas random --problems all
    python scripts/bench_search.py --data PATH --strategies ceiling --seeds 2 --problems nb201/cifar100/help_pixel3
    python scripts/bench_search.py --speed

Problems (files of PATH): NASBench-201 accuracy against the latency of a device (``nb201/cifar100/help_pixel3``, any data
set and device of the tables; both measured) or an exact cost of the table (``nb201/cifar10/macs``), NAS-Bench-Macro
accuracy against exact MACs (``macro/flops``), and a published accuracy predictor of the AttentiveNAS space against exact
MACs (``attentive/macs``). The hypervolume of a table is the published one of ``true_pareto_summary.csv``: reference point
at accuracy 0 and the greatest cost of the table. Cells without a path to the output are no part of that table; a search
can propose them, they cost an evaluation and answer with accuracy 0 and their latency. ``--noise`` adds normal noise to
measured accuracies, in per cent; ``--proxy`` (NASBench-201) measures 12-epoch validation accuracies instead; shares are
always of the true values. Prints mean and smallest share over seeds. The strategy ``ceiling`` (NASBench-201 latencies) asks
what there is to reach: a search whose model of every network has learnt from all other rows of the table. ``--speed`` needs no
data: candidates a second of a search on predictions (ridge and MLP predictors, additive latency, OFA MobileNetV3, population
1,000, one process), and the CPU seconds of a proposal of the default strategy at 1,000 evaluations.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import nas

DEFAULT_PROBLEMS = [
    "nb201/cifar100/help_pixel3",
    "nb201/cifar100/help_titan_rtx_32",
    "nb201/cifar100/help_1080ti_256",
    "nb201/cifar100/help_gold_6226",
    "macro/flops",
    "attentive/macs",
]


@dataclass(frozen=True)
class Problem:
    """Two objectives, accuracy (larger is better, %) and a cost, with the hypervolume that there is to reach."""

    space: nas.SearchSpace
    truth: Callable[[list[nas.Architecture]], dict[str, np.ndarray]]
    measured: Callable[[list[nas.Architecture]], dict[str, np.ndarray]]
    known: dict[str, Callable[..., Any]]
    worst: tuple[float, float]  # accuracy, cost of the reference point
    hypervolume: float

    def shares(self, accuracy: np.ndarray, cost: np.ndarray, budgets: list[int]) -> list[float]:
        """Of the hypervolume, after so many evaluations; true values in the order of evaluation."""
        return [area(accuracy[:n], cost[:n], self.worst) / self.hypervolume for n in budgets]


def staircase(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Indices of the front in two objectives, the cheapest first."""
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(accuracy[order])
    return order[np.diff(best, prepend=-np.inf) > 0]


def area(accuracy: np.ndarray, cost: np.ndarray, worst: tuple[float, float]) -> float:
    """Hypervolume of points in two objectives."""
    inside = (accuracy > worst[0]) & (cost < worst[1])
    accuracy, cost = accuracy[inside], cost[inside]
    front = staircase(accuracy, cost)
    return float(np.diff(accuracy[front], prepend=worst[0]) @ (worst[1] - cost[front]))


# ---- tables ---------------------------------------------------------------------------------------------------------


def tabulated(
    choices: dict[str, list[int]],
    keys: np.ndarray,
    accuracy: np.ndarray,
    cost: np.ndarray,
    *,
    published: float,
    exact: bool,
    signal: np.ndarray | None = None,
) -> Problem:
    """A problem that is a table: rows of option values, their accuracy (%), their cost, and what a search sees of accuracy.

    Networks of accuracy 0 do not count. The published hypervolume has costs scaled to 0..1 and accuracies to 0..1.
    """
    space = nas.SearchSpace(choices, name="tabulated")
    at = {tuple(key): index for index, key in enumerate(keys.tolist())}
    names = list(choices)

    def look(archs: list[nas.Architecture]) -> np.ndarray:
        return np.array([at[tuple(arch[name] for name in names)] for arch in archs])

    def truth(archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        index = look(archs)
        return {"accuracy": accuracy[index], "cost": cost[index]}

    def measured(archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        return truth(archs) if signal is None else truth(archs) | {"accuracy": signal[look(archs)]}

    counted = cost[accuracy > 0]
    worst = (0.0, float(counted.max()))
    hypervolume = area(accuracy, cost, worst)
    assert np.isclose(hypervolume / (100 * np.ptp(counted)), published, rtol=1e-9)
    known = {"cost": lambda archs: cost[look(archs)]} if exact else {}
    return Problem(space, truth, measured, known, worst, hypervolume)


def published_hypervolume(data: Path, dataset: str, cost: str) -> float:
    """The published hypervolume of a table."""
    table = pd.read_csv(data / "true_pareto_summary.csv").set_index(["dataset", "cost"])
    return float(table.loc[(dataset, cost), "hv_norm"])


def nasbench201(data: Path, dataset: str, cost: str, *, proxy: bool) -> Problem:
    """Accuracy of a cell against its latency, both measured, or against an exact cost."""
    table = pd.read_parquet(data / "nb201_accuracy.parquet")
    exact = cost in table
    costs = table if exact else pd.read_parquet(data / "nb201_latency_help.parquet").add_prefix("help_")
    operations = ["op_01", "op_02", "op_12", "op_03", "op_13", "op_23"]
    accuracy = np.where(table["connected"], table[f"acc200_{dataset}_test"], 0.0)  # no path to the output: no use
    signal = np.where(table["connected"], table[f"acc12_{dataset}_val"], 0.0) if proxy else None
    return tabulated(
        {name: [0, 1, 2, 3, 4] for name in operations},
        table[operations].to_numpy(),
        accuracy,
        costs[cost].to_numpy(dtype=float),
        published=published_hypervolume(data, dataset, cost),
        exact=exact,
        signal=signal,
    )


def macro(data: Path, cost: str) -> Problem:
    """Accuracy of a chain against an exact cost."""
    table = pd.read_csv(data / "nasbench_macro_cifar10.csv", dtype={"arch": str})
    keys = np.array([[int(digit) for digit in arch] for arch in table["arch"]])
    choices = {f"block_{i}": [0, 1, 2] for i in range(keys.shape[1])}
    published = published_hypervolume(data, "macro_cifar10", cost)
    values = table["acc_mean"].to_numpy(), table[cost].to_numpy(dtype=float)
    return tabulated(choices, keys, *values, published=published, exact=True)


# ---- the AttentiveNAS space -----------------------------------------------------------------------------------------

WIDTHS = [[16, 24], [16, 24], [24, 32], [32, 40], [64, 72], [112, 120, 128], [192, 200, 208, 216], [216, 224], [1792, 1984]]
DEPTHS = [[1, 2], [3, 4, 5], [3, 4, 5, 6], [3, 4, 5, 6], [3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8], [1, 2]]
EXPANDS = [[1], [4, 5, 6], [4, 5, 6], [4, 5, 6], [4, 5, 6], [6], [6]]
STRIDES = [1, 2, 2, 2, 1, 2, 1]
EXCITED = [False, False, True, False, True, True, True]  # squeeze and excitation


def attentive_values(archs: list[nas.Architecture]) -> np.ndarray:
    """Resolution, 9 widths, 7 depths, 7 kernels, 7 expand ratios; (N, 31)."""
    return np.array([[value for _, value in arch.choices] for arch in archs], dtype=np.int64)


def divisible(channels: np.ndarray) -> np.ndarray:
    """The nearest multiple of eight that is not more than a tenth smaller."""
    nearest = np.maximum(8, (channels + 4) // 8 * 8)
    return np.where(nearest < 0.9 * channels, nearest + 8, nearest)


def attentive_macs(values: np.ndarray) -> np.ndarray:
    """Multiply-accumulates of convolutions and linear layers, (N,), from (N, 31) values."""
    resolution, width, depth = values[:, 0], values[:, 1:10], values[:, 10:17]
    kernel, expand = values[:, 17:24], values[:, 24:31]
    side, channels = (resolution + 1) // 2, width[:, 0]
    total = side * side * 27 * channels
    for stage in range(7):
        for block in range(max(DEPTHS[stage])):
            there = block < depth[:, stage]
            stride, out = STRIDES[stage] if block == 0 else 1, width[:, stage + 1]
            after, hidden = (side - 1) // stride + 1, divisible(channels * expand[:, stage])
            cost = np.where(expand[:, stage] > 1, side * side * channels * hidden, 0)
            cost = cost + after * after * hidden * (kernel[:, stage] ** 2 + out)
            cost = cost + (2 * hidden * divisible(hidden // 4) if EXCITED[stage] else 0)
            cost = cost + np.where((channels != out) | (stride > 1), after * after * channels * out, 0)
            total = total + np.where(there, cost, 0)
            side, channels = np.where(there, after, side), np.where(there, out, channels)
    head = divisible(6 * channels)
    return total + side * side * channels * head + head * width[:, 8] + width[:, 8] * 1000


class Forest:
    """A regression forest as arrays: all trees of all rows descend together."""

    def __init__(self, path: Path) -> None:
        arrays = np.load(path)
        self.first = arrays["tree_offset"][:-1].astype(np.int64)
        self.left, self.right = arrays["left"].astype(np.int64), arrays["right"].astype(np.int64)
        self.feature, self.threshold = arrays["feature"].astype(np.int64), arrays["threshold"]
        self.value = arrays["value"].ravel()

    def __call__(self, features: np.ndarray) -> np.ndarray:
        node = np.repeat(self.first[None, :], len(features), axis=0)  # (N, trees)
        row = np.arange(len(features))[:, None]
        inner = self.left[node] >= 0
        while inner.any():
            goes_left = features[row, np.where(inner, self.feature[node], 0)] <= self.threshold[node]
            child = np.where(goes_left, self.left[node], self.right[node]) + self.first
            node = np.where(inner, child, node)
            inner = self.left[node] >= 0
        return self.value[node].mean(axis=1)


# The best front known: NSGA-II, population 400, 3 x 100,000 evaluations, started with the smallest and largest network.
BEST_ACCURACY = (67.4887, 72.2045)
BEST_MACS = (203_389_568, 1_528_639_104)
BEST_HYPERVOLUME = 0.95153  # scaled to these ranges, reference point 1.05 in both


def attentive(data: Path) -> Problem:
    """A published accuracy predictor against exact MACs."""
    choices: dict[str, list[int]] = {"resolution": [192, 224, 256, 288]}
    for name, options in (("width", WIDTHS), ("depth", DEPTHS), ("kernel", [[3, 5]] * 7), ("expand", EXPANDS)):
        choices |= {f"{name}_{stage}": stage_options for stage, stage_options in enumerate(options)}
    forest = Forest(data / "attentivenas_forest.npz")

    def macs(archs: list[nas.Architecture]) -> np.ndarray:
        return attentive_macs(attentive_values(archs)).astype(float)

    def truth(archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        return {"accuracy": forest(attentive_values(archs)), "cost": macs(archs)}

    spans = BEST_ACCURACY[1] - BEST_ACCURACY[0], BEST_MACS[1] - BEST_MACS[0]
    worst = BEST_ACCURACY[0] - 0.05 * spans[0], BEST_MACS[1] + 0.05 * spans[1]
    space = nas.SearchSpace(choices, name="attentive")
    return Problem(space, truth, truth, {"cost": macs}, worst, BEST_HYPERVOLUME * spans[0] * spans[1])


def make(name: str, data: Path, proxy: bool = False) -> Problem:
    """A problem by name."""
    family, _, rest = name.partition("/")
    if family == "nb201":
        return nasbench201(data, *rest.split("/"), proxy=proxy)
    return macro(data, rest) if family == "macro" else attentive(data)


# ---- what there is to reach -----------------------------------------------------------------------------------------

INTERACTIONS = {1: 1.0, 2: 0.7, 3: 0.4}  # of so many genes, and their scale
PENALTIES = (0.1, 1.0, 10.0)
ALIKE = 20  # groups of predicted values, each with a spread of its own
CEILING_DRAWS = 32


def interactions(choices: np.ndarray) -> np.ndarray:
    """Indicators of every combination of options of up to three genes, (N, features), of option indices (N, genes)."""
    columns = []
    for size, scale in INTERACTIONS.items():
        for genes in itertools.combinations(range(choices.shape[1]), size):
            _, state = np.unique(choices[:, genes], axis=0, return_inverse=True)
            columns.append(scale * np.eye(state.max() + 1, dtype=np.float32)[state.ravel()])
    return np.concatenate(columns, axis=1)


def left_out(features: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction of each value by a ridge regression on all others, exactly, and the spread of errors, (N,) each."""
    gram, centred, found = (features.T @ features).astype(float), values - values.mean(), []
    for penalty in PENALTIES:
        inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
        error = centred - features @ (inverse @ (features.T @ centred))
        error /= 1 - np.einsum("ij,ij->i", features @ inverse.astype(np.float32), features)
        found.append((float(np.mean(error**2)), error))
    error = min(found, key=lambda one: one[0])[1]
    guess = values - error
    group = np.argsort(np.argsort(guess)) * ALIKE // len(guess)
    return guess, np.array([error[group == g].std() for g in range(ALIKE)])[group]


def single_gains(
    accuracy: np.ndarray, cost: np.ndarray, front: tuple[np.ndarray, np.ndarray], worst: tuple[float, float]
) -> np.ndarray:
    """Hypervolume that each point would add alone to a front of accuracies and costs, the cheapest first."""
    floors, starts, ends = np.append(worst[0], front[0]), np.append(-np.inf, front[1]), np.append(front[1], worst[1])
    gain = np.zeros(accuracy.shape)
    for floor, start, end in zip(floors, starts, ends, strict=True):
        gain += np.clip(accuracy - floor, 0, None) * np.clip(end - np.maximum(cost, start), 0, None)
    return gain


def ceiling(problem: Problem, budgets: list[int], batch: int) -> Callable[[int], tuple[list[float], float]]:
    """A search whose models of each network have learnt from all other networks of the table."""
    sizes = [len(gene.options) for gene in problem.space.genes]
    choices = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
    values = problem.truth(problem.space.from_array(choices))
    use = values["accuracy"] > 0
    accuracy, cost, features = values["accuracy"][use], values["cost"][use], interactions(choices[use])
    (missing, missing_spread), (costly, costly_spread) = (left_out(features, np.log(v)) for v in (101 - accuracy, cost))

    def trial(seed: int) -> tuple[list[float], float]:
        began, rng = time.perf_counter(), np.random.default_rng(seed)
        found = rng.permutation(len(cost))[:batch]
        while len(found) < max(budgets):
            front = found[staircase(accuracy[found], cost[found])]
            new = np.delete(np.arange(len(cost)), found)
            noise = rng.standard_normal((2, CEILING_DRAWS, len(new)))
            drawn_accuracy = 101 - np.exp(missing[new] + missing_spread[new] * noise[0])
            drawn_cost = np.exp(costly[new] + costly_spread[new] * noise[1])
            gains = single_gains(drawn_accuracy, drawn_cost, (accuracy[front], cost[front]), problem.worst)
            found = np.append(found, new[np.argsort(-gains.mean(axis=0))[:batch]])
        return problem.shares(accuracy[found], cost[found], budgets), time.perf_counter() - began

    return trial


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed() -> None:
    """Candidates a second on predictions, and the overhead of a proposal."""
    space = nas.space("ofa-mobilenet-v3")
    rng = np.random.default_rng(0)
    rows = space.sample_rows(300, rng)
    weights = rng.normal(size=space.encode(rows).shape[1])
    values = 0.7 + 0.01 * (space.encode(rows) @ weights)
    latency_ms = space.cost(lambda layer: 1e-8 * layer.macs + 0.01)
    for kind in ("ridge", "mlp"):
        predictor = nas.predictor(kind, space, shares=True).fit(rows, np.clip(values, 0.01, 0.99))
        priced = 0

        def price(rows: np.ndarray, predictor: nas.ArchitecturePredictor = predictor) -> tuple[np.ndarray, np.ndarray]:
            nonlocal priced
            priced += len(rows)
            return np.column_stack([-predictor.mean(rows), latency_ms(rows)]), np.zeros(len(rows))

        began = time.process_time()
        ends = space.to_array([space.smallest, space.largest])
        nas.evolve(space, price, start=ends, rng=np.random.default_rng(0), population=1000, generations=100)
        rate = priced / (time.process_time() - began)
        print(f"evolution on predictions ({kind} + additive latency, population 1,000): {rate:,.0f} candidates per CPU second")
    for measured in (1, 2, 3):
        seconds = proposals(space, measured)
        print(
            f"a proposal of 50 networks at 1,000 evaluations (default, OFA MobileNetV3, {measured} measured, MACs known): "
            f"{seconds[-1]:.2f} CPU s (all of the run: {statistics.median(seconds):.2f} s median, {max(seconds):.2f} s at most)"
        )


def proposals(space: nas.SearchSpace, measured: int) -> list[float]:
    """CPU seconds of every proposal of 50 networks up to 1,000 evaluations, with so many measured objectives beside MACs."""
    weights = np.random.default_rng(7).normal(size=(measured, int(space.lengths.sum())))
    marks: list[float] = []

    def evaluate(archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        marks.append(time.process_time())
        values = {f"value_{i}": np.exp(0.1 * space.encode(archs) @ row) for i, row in enumerate(weights)}
        marks.append(time.process_time())
        return values

    objectives = {**{f"value_{i}": "max" for i in range(measured)}, "macs": "min"}
    nas.optimize(space, evaluate, objectives=objectives, known={"macs": space.macs}, budget=1050, batch=50)
    return [after - before for before, after in zip(marks[1:-1:2], marks[2::2], strict=True)]


# ---- runs -----------------------------------------------------------------------------------------------------------


def run(problem: Problem, strategy: str, budgets: list[int], batch: int, noise: float, seed: int) -> tuple[list[float], float]:
    """Shares at the budgets, and the seconds spent outside of evaluations for each of them."""
    rng = np.random.default_rng([seed, 99])
    spent = 0.0

    def evaluate(archs: list[nas.Architecture]) -> dict[str, np.ndarray]:
        nonlocal spent
        began = time.perf_counter()
        values = problem.measured(archs)
        measured = values | {"accuracy": values["accuracy"] + noise * rng.normal(size=len(archs))}
        spent += time.perf_counter() - began
        return measured

    began = time.perf_counter()
    result = nas.optimize(
        problem.space,
        evaluate,
        objectives={"accuracy": "max", "cost": "min"},
        known=problem.known,
        budget=max(budgets),
        batch=batch,
        strategy=strategy,
        seed=seed,
    )
    seconds = time.perf_counter() - began - spent
    true = problem.truth(list(result.trials["architecture"]))
    return problem.shares(true["accuracy"], true["cost"], budgets), seconds


def main() -> None:
    """Run every strategy on every problem and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the tables")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="+", default=["default", "linas", "nsga2", "random"])
    parser.add_argument("--problems", nargs="+", default=["all"])
    parser.add_argument("--budgets", nargs="+", type=int, help="default: 100 200 500 (attentive), 60 100 150 400 (others)")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation added to measured accuracies, in %%")
    parser.add_argument("--proxy", action="store_true", help="measure 12-epoch accuracies (NASBench-201)")
    options = parser.parse_args()
    if options.speed:
        return speed()
    if options.data is None:
        parser.error("--data PATH is needed")
    names = DEFAULT_PROBLEMS if options.problems == ["all"] else options.problems
    if "ceiling" in options.strategies and not all("/help_" in name for name in names):
        parser.error("ceiling learns accuracy and latency of a table: only problems like nb201/cifar100/help_pixel3")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    print(f"{'problem':28} {'strategy':12} {'evaluations':>11} {'mean':>8} {'least':>8}   own seconds a run")
    for name in names:
        problem = make(name, options.data, options.proxy)
        budgets = options.budgets or ([100, 200, 500] if name.startswith("attentive") else [60, 100, 150, 400])
        for strategy in options.strategies:
            if strategy == "ceiling":
                trial = ceiling(problem, budgets, options.batch)
            else:
                trial = partial(run, problem, strategy, budgets, options.batch, options.noise)
            runs = [trial(seed) for seed in seeds]
            seconds = statistics.median(s for _, s in runs)
            for column, budget in enumerate(budgets):
                shares = [s[column] for s, _ in runs]
                tail = f"   {seconds:.1f}" if budget == budgets[-1] else ""
                print(f"{name:28} {strategy:12} {budget:11} {np.mean(shares):8.4f} {min(shares):8.4f}{tail}", flush=True)


if __name__ == "__main__":
    main()
