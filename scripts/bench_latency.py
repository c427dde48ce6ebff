"""Latency tables, predictors and few-shot transfer: OMP_NUM_THREADS=1 python scripts/bench_latency.py --part PART [--data DIR]

Parts: machine (OFA MobileNetV3 in the runtimes of this machine, or in --devices; needs a quiet machine, three minutes each;
           with --busy another process computes on the same core all the while),
       sizes (all 25 input sizes from 7, and the table on another occasion; needs a quiet machine, three minutes),
       predictors (latency learnt from 100 and 500 networks, against baselines; needs --data),
       transfer (a new device from 10 and 20 networks, every device left out once; needs --data).
--data is the folder of nb201_*.parquet, fbnet_latency_help.parquet and baseline_predictors.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

import nas

DEVICES = ("onnxruntime-cpu", "openvino-cpu", "openvino-cpu:precision=bf16")
RESOLUTIONS = (128, 152, 176, 200, 224)
CELLS = ("op_01", "op_02", "op_12", "op_03", "op_13", "op_23")
BLOCKS = tuple(f"op{i}" for i in range(1, 23))
HELD_OUT = 100
TESTED = 2000
SEEDS = (0, 1, 2)
SOURCE_NETWORKS = 900  # measured on every known device


class Stretches:
    """Seconds of each stretch of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def start(self, label: str, total: int) -> None:
        self._label, self._begun = label, time.perf_counter()

    def advance(self, n: int = 1) -> None:
        return None

    def stop(self) -> None:
        self.seconds[self._label] = time.perf_counter() - self._begun

    def say(self, text: str) -> None:
        print(f"  {text}")


# ---- this machine -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """Another process that computes without a pause, on the core that measurements are pinned to."""
    if not wanted:
        yield
        return
    core = max(os.sched_getaffinity(0))
    loop = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def machine(devices: list[str], held_out: int, tables: Path) -> None:
    """Tables of this machine's runtimes: seconds, errors on held-out networks, ranks within one resolution."""
    space = nas.space("ofa-mobilenet-v3", resolution=list(RESOLUTIONS))
    print(f"\nOFA MobileNetV3, {RESOLUTIONS} px, 1 thread: {held_out} whole networks that were held out")
    errors = f"{'median':>8}{'mean':>8}{'in 5%':>7}{'in 10%':>7}{'rho':>8}"
    print(f"{'device':<30}{'layers':>7}{'s':>7}  {'estimate':<20}{errors}")
    for device in devices:
        spent = Stretches()
        table = nas.profile(space, device=device, held_out=held_out, out=tables, progress=spent)
        seconds = spent.seconds["timing layers"]
        quality = table.quality
        rows = {"corrected": quality.corrected, "plain sum": quality.plain, "MACs and an offset": quality.baseline}
        rows |= {"features alone": quality.learnt} if quality.learnt else {}
        for label, e in (rows | {"noise floor": quality.noise}).items():
            print(
                f"{device:<30}{len(table.entries):>7}{seconds:>7.1f}  {label:<20}{e.median:>8.1%}{e.mean:>8.1%}"
                f"{e.within_5_percent:>7.0%}{e.within_10_percent:>7.0%}{e.spearman:>8.3f}",
                flush=True,
            )
        whole, form = spent.seconds["timing whole networks"], table.correction.form
        print(f"  whole networks {whole:.1f} s; form {form}; {table.clock} clock; level moved {table.drift:.1%}")
        told, noise = within_resolutions(table)
        print(f"  Spearman within one resolution: {told:.3f}, of a second measurement {noise:.3f}")


def within_resolutions(table: nas.LatencyTable) -> tuple[float, float]:
    """Mean rank correlation over the input sizes that have four networks or more, held out: estimates with measurements, and a
    second measurement with the first."""
    judged = [network for network in table.networks if network.held_out]
    choices = [network.choices for network in judged]
    told = table.estimate([table.space.architecture(**choice) for choice in choices])
    measured = np.array([table.network_ms(network) for network in judged])
    first, second = np.array([table.passes_ms(network) for network in judged]).T
    sizes = np.array([choice["resolution"] for choice in choices])

    def ranks(one: np.ndarray, other: np.ndarray) -> float:
        parts = [sizes == size for size in set(sizes.tolist()) if (sizes == size).sum() >= 4]
        return float(np.mean([spearmanr(one[part], other[part]).statistic for part in parts])) if parts else float("nan")

    return ranks(told, measured), ranks(first, second)


def sizes(held_out: int, tables: Path) -> None:
    """All 25 input sizes from 7 measured ones; and the table on another occasion."""
    space = nas.space("ofa-mobilenet-v3")
    path = tables / "sizes.json"
    start = time.perf_counter()
    table = nas.profile(space, resolutions=7, held_out=held_out, out=path)
    seconds = time.perf_counter() - start
    told, e, noise = table.conditions["interpolation_error"], table.quality.corrected, table.quality.noise
    counts = f"{len(table.entries)} layers measured, {len(table.interpolated)} interpolated"
    print(f"\nall 25 sizes from 7: {counts}, {seconds:.1f} s with whole networks")
    print(f"interpolation's own error {told:.1%} (upper bound)")
    print(f"{table.quality.networks} networks of all sizes: median {e.median:.1%}, ", end="")
    print(f"within 10% {e.within_10_percent:.0%}, rho {e.spearman:.3f}")
    print(f"the same networks again: median {noise.median:.1%}")
    replace(table, level_at=0.0).save(path)  # as if it were of long ago
    start = time.perf_counter()
    again = nas.profile(space, out=path, resolutions=7)
    factor = again.anchor.factor if again.anchor else 1.0
    print(f"the same table on another occasion: level {factor:.3f}, told in {time.perf_counter() - start:.1f} s")


# ---- learnt from networks -----------------------------------------------------------------------------------


def read(data: Path, name: str) -> tuple[nas.SearchSpace, np.ndarray, pd.DataFrame]:
    """Space, rows (N, genes) and latencies by device of a published set."""
    if name == "fbnet_help":
        frame = pd.read_parquet(data / "fbnet_latency_help.parquet")
        columns, options = list(BLOCKS), 9
        latency = frame.filter(like="lat_ms_").rename(columns=lambda c: c.removeprefix("lat_ms_"))
    else:
        accuracy = pd.read_parquet(data / "nb201_accuracy.parquet")
        frame = pd.read_parquet(data / "nb201_latency_help.parquet").merge(accuracy, on="arch_index")
        frame = frame[frame["connected"]]  # the others compute nothing
        columns, options = list(CELLS), 5
        latency = frame[[c for c in pd.read_parquet(data / "nb201_latency_help.parquet").columns if c != "arch_index"]]
    space = nas.SearchSpace({column: list(range(options)) for column in columns}, name=name)
    return space, frame[columns].to_numpy().astype(np.int64), latency.reset_index(drop=True)


def predictors(data: Path, only: list[str] | None) -> None:
    """`nas.LatencyPredictor` against ridge and boosted trees, the better of the two in each figure."""
    known = pd.read_csv(data / "baseline_predictors.csv")
    print("\nlatency learnt from n networks: Kendall's tau and mean error; the best baseline of the file; means of 3 draws")
    print(f"{'set':<12}{'device':<16}{'n':>5}{'tau':>8}{'baseline':>10}{'error':>9}{'baseline':>10}{'ratio':>7}  form   better")
    lost = 0
    for name in ("fbnet_help", "nb201_help"):
        space, rows, latency = read(data, name)
        for target in known[known["set"] == name]["target"].unique():
            values = latency[target].to_numpy()
            for n in (100, 500):
                if only and not any(part in f"{name}/{target}/{n}" for part in only):
                    continue
                found = [learnt(space, rows, values, n, seed) for seed in SEEDS]
                tau, error = np.mean([f[:2] for f in found], axis=0)
                bar = known[(known["set"] == name) & (known["target"] == target) & (known["n_train"] == n)]
                best_tau, best_error = bar["kendall"].max(), bar["mape"].min() / 100
                better = tau >= best_tau and error <= best_error
                lost += not better
                print(
                    f"{name:<12}{target:<16}{n:>5}{tau:>8.3f}{best_tau:>10.3f}{error:>9.2%}{best_error:>10.2%}"
                    f"{error / best_error:>7.2f}  {found[0][2]:<5}  {'yes' if better else 'NO'}",
                    flush=True,
                )
    print(f"behind a baseline in either figure: {lost} rows")


def learnt(space: nas.SearchSpace, rows: np.ndarray, values: np.ndarray, n: int, seed: int) -> tuple[float, float, str]:
    """Kendall's tau and mean relative error on networks that were not learnt from, and the form that was chosen."""
    order = np.random.default_rng(seed).permutation(len(rows))
    train, test = order[:n], order[n : n + TESTED]
    predictor = nas.LatencyPredictor(space).fit(rows[train], values[train])
    told = predictor.predict(rows[test]).mean
    return kendalltau(told, values[test]).statistic, float(np.mean(np.abs(told / values[test] - 1))), predictor.form_


def transfer(data: Path) -> None:
    """`nas.FewShotLatency`: each device of FBNet from a few networks and the others; the best published mean is .93 (HELP)."""
    space, rows, latency = read(data, "fbnet_help")
    order = np.random.default_rng(0).permutation(len(rows))
    train, pool, test = order[:SOURCE_NETWORKS], order[SOURCE_NETWORKS:2900], order[2900:]
    known = {}
    for name in latency:
        values = latency[name].to_numpy()
        known[name] = nas.LatencyPredictor(space, kind="ridge").fit(rows[train], values[train]).predict(rows).mean
    ceiling = {name: spearmanr(known[name][test], latency[name].to_numpy()[test]).statistic for name in latency}
    place = {row.tobytes(): index for index, row in enumerate(rows)}

    def source(name: str) -> Callable[[np.ndarray], np.ndarray]:
        """What a known device's predictor says, computed once."""
        return lambda archs: known[name][[place[row.tobytes()] for row in archs]]

    print(f"\na new device from a few networks and 26 others ({SOURCE_NETWORKS} networks each), FBNet: Spearman, mean error")
    print(f"{'device':<16}{'10: rho':>9}{'error':>8}{'20: rho':>9}{'error':>8}{f'{SOURCE_NETWORKS} of its own':>15}")
    totals = []
    for name in latency:
        values = latency[name].to_numpy()
        sources = [source(other) for other in latency if other != name]
        line = []
        for n in (10, 20):
            few = nas.FewShotLatency(space, sources)
            chosen = few.choose(n, among=rows[pool])
            measured = values[[place[row.tobytes()] for row in space.to_array(chosen)]]
            told = few.fit(chosen, measured).predict(rows[test]).mean
            line += [spearmanr(told, values[test]).statistic, float(np.mean(np.abs(told / values[test] - 1)))]
        totals.append([*line, ceiling[name]])
        print(f"{name:<16}{line[0]:>9.3f}{line[1]:>8.1%}{line[2]:>9.3f}{line[3]:>8.1%}{ceiling[name]:>15.3f}", flush=True)
    mean = np.mean(totals, axis=0)
    print(f"{'mean':<16}{mean[0]:>9.3f}{mean[1]:>8.1%}{mean[2]:>9.3f}{mean[3]:>8.1%}{mean[4]:>15.3f}")


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["machine", "sizes", "predictors", "transfer"], required=True)
    parser.add_argument("--data", type=Path, help="folder of the published tables, for predictors and transfer")
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), help="for machine")
    parser.add_argument("--busy", action="store_true", help="beside a process that computes on the same core; machine, sizes")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="whole networks to judge on; machine, sizes")
    parser.add_argument("--tables", type=Path, help="folder that keeps the tables, to go on where a run ended; machine, sizes")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="names or parts of names of rows, for predictors: set/device/n"
    )
    given = parser.parse_args()
    if given.part in ("machine", "sizes"):
        with tempfile.TemporaryDirectory() as folder, neighbour(given.busy):
            tables = given.tables or Path(folder)
            machine(given.devices, given.held_out, tables) if given.part == "machine" else sizes(given.held_out, tables)
    elif given.data is None:
        parser.error("this part needs --data")
    elif given.part == "predictors":
        predictors(given.data, given.only)
    else:
        transfer(given.data)


if __name__ == "__main__":
    main()
