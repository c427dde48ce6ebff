"""Kill every verb at random moments and run it again, until it ends; then compare with a run that nobody killed.

``python scripts/fault_drill.py`` prints the table of ``docs/reliability.md``. Commands run in forks of one process that has
imported everything: what is killed is the verb, not two seconds of imports. Half of the kills come after a random time, half
at a random operation on files (a file opened for writing, renamed, removed; a folder made).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nas.cli
from latency_tables import LatencyTable
from nas.archive import Archive
from nas.exporting import read_export
from nas.runs import Run
from nas.verification import Verification
from search_spaces.artifacts import PARTIAL, file_hash, read_json
from supernets import load_tensors
from tests.faults.killing import Killer

__all__ = ["VERBS", "Drill", "Outcome", "Verb", "main"]

LIMIT_S = 300.0
DEVICE = "simulated"
PRELOADED = (
    "torch",
    "onnxruntime",
    "optuna",
    "pandas",
    "sklearn.ensemble",
    "plotly",
    "supernets",
    "predictors",
    "nas.api",
    "nas.cli.commands",
    "nas.searching",
    "nas.exporting",
    "nas.verifying",
    "nas.quantising",
    "latency_tables.onnxruntime_cpu",
    "latency_tables.simulated",
    "torch.utils.data",
    "pymoo.algorithms.moo.nsga2",
    "scipy.stats",
)


@dataclass(frozen=True)
class Verb:
    """A command under test.

    Attributes:
        command: its words; ``{}`` is the run folder.
        kept: what must never be lost nor change once it is there, from a run folder: name -> value.
        result: what must be equal to that of an unbroken run; nothing where times are measured.
        refusal: what it says, with exit code 2, where its result is complete: it was killed after that was written.
    """

    name: str
    command: tuple[str, ...]
    kept: Callable[[Path], dict[str, Any]]
    result: Callable[[Path], Any]
    start: str
    refusal: str | None = None


@dataclass
class Outcome:
    """What became of a verb's kills."""

    name: str
    kills: int = 0
    at_files: int = 0
    finished: int = 0
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def row(self) -> str:
        bad = (len(self.lost), len(self.corrupt), len(self.differing), len(self.failed))
        return f"{self.name:<24}{self.kills:>6}{self.at_files:>10}{self.finished:>10}" + "".join(f"{n:>10}" for n in bad)


HEAD = f"{'verb':<24}{'kills':>6}{'at files':>10}{'finished':>10}{'lost':>10}{'corrupt':>10}{'differing':>10}{'failed':>10}"


# ---- what a folder holds --------------------------------------------------------------------------------------------


def _phases(folder: Path) -> dict[str, Any]:
    path = folder / "training" / "checkpoint.safetensors"
    if not path.exists():
        return {}
    _, meta = load_tensors(path, "training-checkpoint", 2, make="")
    return {f"phase {row['phase']}": row for row in meta["log"]}


def _weights(folder: Path) -> Any:
    return file_hash(folder / "supernet.safetensors"), read_json(folder / "training/log.json", "training-log", 1, make="")[
        "phases"
    ]


def _entries(folder: Path) -> dict[str, Any]:
    found = {}
    for path in (folder / "tables").glob("*.json"):
        table = LatencyTable.load(path)
        found |= {f"{path.stem} {key}": (entry.alone, entry.chain) for key, entry in table.entries.items()}  # type: ignore[union-attr]
    return found


def _estimates(folder: Path) -> Any:
    table = LatencyTable.load(folder / "tables" / f"{DEVICE}.json")
    # Whole networks and levels come in the same order; sums differ in the last digit where terms are added in another one.
    return [round(value, 9) for value in table.estimate(table.space.sample(50, seed=3)).tolist()]


def _scores(folder: Path) -> list[Any]:
    run = Run.open(folder)
    if not run.study.exists():
        return []
    archive = Archive(run.study, run.space, weights=run.weights_hash())
    try:
        return [(score.arch.id, score.accuracy, score.images, score.proposed) for score in archive.scores()]
    finally:
        archive.close()


def _by_id(folder: Path) -> dict[str, Any]:
    return {row[0]: row[1:] for row in _scores(folder)}


def _front(folder: Path) -> Any:
    value = read_json(folder / "front.json", "front", 3, make="")
    return {name: part for name, part in value.items() if name in ("points", "objectives", "limits", "parts")}, _scores(folder)


def _exports(folder: Path) -> dict[str, Any]:
    run = Run.open(folder)
    found = {}
    for path in sorted(run.exports.glob("*.json")):
        export = read_export(run, path.stem)
        assert export.torch_file is not None
        tensors, _ = load_tensors(run.exports / export.torch_file, "network", 1, make="")
        found[path.stem] = (export.file, export.sha256, export.proven, len(tensors))
    return found


def _verified(folder: Path) -> Any:
    return Verification.load(folder / "verified.json")


def _nothing(_folder: Path) -> Any:
    return None


def _each_file(folder: Path) -> list[str]:
    """Files that cannot be read, and why."""
    readers: list[tuple[str, Callable[[Path], Any]]] = [
        ("run.json", lambda path: Run.open(folder)),
        ("tables/*.json", LatencyTable.load),
        ("training/checkpoint*.safetensors", lambda path: load_tensors(path, "training-checkpoint", 2, make="")),
        ("supernet.safetensors", lambda path: load_tensors(path, "supernet", 1, make="")),
        ("exports/*.safetensors", lambda path: load_tensors(path, "network", 1, make="")),
        ("exports/*.json", lambda path: read_export(Run.open(folder), path.stem)),
        ("front.json", nas.ParetoFront.load),
        ("verified.json", Verification.load),
        ("study.db", lambda path: _scores(folder)),
    ]
    wrong = []
    for pattern, read in readers:
        for path in sorted(folder.glob(pattern)):
            try:
                read(path)
            except Exception as error:  # noqa: BLE001 (every failure is one)
                wrong.append(f"{path.relative_to(folder)}: {error!s:.200}")
    return wrong


_TRAIN = (
    "train-supernet",
    "--data",
    "fake:28x1x4",
    "--width",
    "0.25",
    "--resolution",
    "16",
    "--recipe",
    "quick",
    "--epochs",
    "1",
    "--out",
    "{}",
)
VERBS: tuple[Verb, ...] = (
    Verb("train-supernet", _TRAIN, _phases, _weights, "nothing"),
    Verb("profile, simulated", ("profile", "{}", "--device", DEVICE), _entries, _estimates, "train-supernet"),
    Verb("score", ("score", "{}", "--n", "24"), _by_id, _scores, "profile, simulated"),
    Verb(
        "search",
        ("search", "{}", "--device", DEVICE, "--samples", "24", "--budget", "32", "--points", "6"),
        _by_id,
        _front,
        "profile, simulated",
        "front.json is there already",
    ),
    Verb("export", ("export", "{}"), _exports, _exports, "search"),
    Verb("verify", ("verify", "{}", "--device", DEVICE), _exports, _verified, "export"),
    Verb("profile, onnxruntime-cpu", ("profile", "{}", "--device", "onnxruntime-cpu"), _entries, _nothing, "train-supernet"),
)


# ---- running and killing ---------------------------------------------------------------------------------------------


def _child(words: Sequence[str], folder: Path, at: int | None, log: Path) -> None:
    """Run the command line in this process; never returns."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # A lost evaluation is noticed after two signs of life: seconds here, not forty of them.
    Archive.__init__.__kwdefaults__["heartbeat"] = 1
    killer = Killer(folder, at)
    sys.argv = ["nas", *words, "--quiet"]
    code: Any = 1
    try:
        code = nas.cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001 (a traceback is a finding, and must not reach the parent's frames)
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(handle, f"\nFILES {killer.count}\n".encode())
    os._exit(0 if code is None else int(code))


def attempt(
    words: Sequence[str], folder: Path, *, after_s: float | None = None, at: int | None = None, log: Path
) -> int | None:
    """Run a command in a fork; its exit code, None where it was killed."""
    pid = os.fork()
    if pid == 0:
        _child(words, folder, at, log)
    deadline = time.monotonic() + (LIMIT_S if after_s is None else after_s)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


@dataclass
class Drill:
    """Folders of the drill: the states that unbroken commands leave, and the one in which commands are killed."""

    folder: Path
    rng: random.Random
    facts: dict[str, tuple[float, int]] = field(default_factory=dict)  # verb -> seconds, operations on files

    @property
    def run(self) -> Path:
        return self.folder / "run"  # always the same place: paths are part of some files

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def state(self, name: str) -> Path:
        return self.folder / f"after {name}"

    def begin(self, verb: Verb) -> None:
        """Put the run into the state before a verb."""
        shutil.rmtree(self.run, ignore_errors=True)
        if verb.start != "nothing":
            shutil.copytree(self.state(verb.start), self.run)

    def unbroken(self, verb: Verb) -> None:
        """The state after a verb that nobody kills, and how long it takes; made once."""
        if self.state(verb.name).exists():
            return
        for other in VERBS:
            if other.name == verb.start:
                self.unbroken(other)
        self.begin(verb)
        begun = time.monotonic()
        code = attempt(self.words(verb), self.run, log=self.log)
        if code not in (0, 1):  # 1: a limit is broken, which verify says
            raise RuntimeError(f"{verb.name} ends with {code}:\n{self.log.read_text()[-3000:]}")
        count = int(self.log.read_text().split("FILES ")[-1])
        self.facts[verb.name] = (time.monotonic() - begun, count)
        shutil.copytree(self.run, self.state(verb.name))

    def words(self, verb: Verb) -> list[str]:
        return [word.replace("{}", str(self.run)) for word in verb.command]

    def kill(self, verb: Verb, kills: int) -> Outcome:
        """Kill a verb so many times, over as many runs as that takes."""
        self.unbroken(verb)
        seconds, operations = self.facts[verb.name]
        wanted, outcome = verb.result(self.state(verb.name)), Outcome(verb.name)
        while outcome.kills < kills:
            self.begin(verb)
            known = verb.kept(self.run) if self.run.exists() else {}
            left = True
            while left:
                enough = outcome.kills >= kills
                by_file = self.rng.random() < 0.5
                at = self.rng.randint(1, operations) if by_file and not enough else None
                after = None if enough or by_file else self.rng.uniform(0, seconds)
                code = attempt(self.words(verb), self.run, after_s=after, at=at, log=self.log)
                if code is None:
                    outcome.kills += 1
                    outcome.at_files += by_file
                elif code not in (0, 1) and not self._refused(verb):
                    outcome.failed.append(f"exit {code}: {self.log.read_text()[-1500:]}")
                left = code is None
                known = self._judge(verb, known, outcome)
            if not outcome.failed:
                outcome.finished += 1
                found = verb.result(self.run)
                if found != wanted:
                    outcome.differing.append(f"{_difference(found, wanted)}")
            if len(outcome.failed) > 3:
                break
        return outcome

    def _refused(self, verb: Verb) -> bool:
        return verb.refusal is not None and verb.refusal in self.log.read_text()

    def _judge(self, verb: Verb, known: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Look at what is there after a kill; returns it."""
        if not (self.run / "run.json").exists():
            return known
        outcome.corrupt += _each_file(self.run)
        try:
            found = verb.kept(self.run)
        except Exception as error:  # noqa: BLE001 (every failure is one)
            outcome.corrupt.append(f"{error!s:.300}")
            return known
        outcome.lost += [
            f"{name}: {value!r:.100}, now {found.get(name)!r:.100}" for name, value in known.items() if found.get(name) != value
        ]
        partial = [path for path in self.run.rglob("*") if path.name.startswith(PARTIAL)]
        if len(partial) > 40:
            outcome.failed.append(f"{len(partial)} unfinished files are left")
        return found


def _difference(found: Any, wanted: Any) -> str:
    return f"found {found!r:.300}\n wanted {wanted!r:.300}"


def main() -> int:
    """Print a row per verb; exit code 1 where something was lost, corrupt or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each verb")
    parser.add_argument("--verb", action="append", default=[], choices=[verb.name for verb in VERBS], help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the rows to this file as JSON lines")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    folder, bad = Path(tempfile.mkdtemp(prefix="hwnas-drill-")), False
    try:
        drill = Drill(folder, random.Random(given.seed))
        print(HEAD, flush=True)
        for verb in [verb for verb in VERBS if not given.verb or verb.name in given.verb]:
            begun = time.monotonic()
            outcome = drill.kill(verb, given.kills)
            print(f"{outcome.row()}   {time.monotonic() - begun:.0f} s, unbroken {drill.facts[verb.name][0]:.1f} s", flush=True)
            for kind in ("lost", "corrupt", "differing", "failed"):
                for text in getattr(outcome, kind)[:3]:
                    print(f"  {kind}: {text}", file=sys.stderr, flush=True)
                bad = bad or bool(getattr(outcome, kind))
            if given.out is not None:
                with given.out.open("a") as stream:
                    stream.write(json.dumps(vars(outcome)) + "\n")
        return int(bad)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
