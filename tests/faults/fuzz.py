"""Damaged inputs for every reader, in one process: each must be accepted, or refused with one error of three parts.

``python scripts/fuzz_readers.py --inputs 20000`` prints the table of ``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from search_spaces import UserError
from tests.faults.readers import _CANARY, READERS, Reader
from tests.faults.samples import make_samples

__all__ = ["Bench", "Tally", "main"]

HANG_S = 5.0
MEMORY = 6 << 30  # bytes of address space beyond what the libraries have taken


@dataclass
class Tally:
    """What became of a reader's inputs."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    missed: int = 0
    slowest_ms: float = 0.0
    failures: list[str] = field(default_factory=list)

    def row(self) -> str:
        return (
            f"{self.name:<18}{self.inputs:>7}{self.accepted:>10}{self.refused:>9}{self.missed:>8}"
            f"{len(self.failures):>12}{self.slowest_ms:>12.0f}"
        )


class Hang(BaseException):
    """Raised by the alarm; no reader's `except Exception` swallows it."""


class Breach(BaseException):
    """Something was written outside the samples, run, or connected to."""


class Watch:
    """An audit hook: a reader writes nothing outside the folder, starts no process, connects to nothing."""

    FORBIDDEN = frozenset(
        {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class"}
    )

    def __init__(self, folder: Path) -> None:
        self.inside, self.on, self.seen = str(folder.resolve()), False, []  # type: ignore[var-annotated]
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in self.FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            flags = arguments[2] or 0
            path = os.path.realpath(os.fsdecode(arguments[0]))  # a hook must not import
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith((self.inside, "/dev/")):
                self.seen.append(f"write {path}")


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise Hang


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Bench:
    """A folder of samples in which one file at a time is damaged and read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.watch = Watch(folder)
        Path(_CANARY).unlink(missing_ok=True)
        self._contents: dict[Path, bytes] = {}

    def files(self, reader: Reader) -> list[Path]:
        return sorted(path for path in self.folder.glob(reader.files) if path.is_file())

    def feed(self, reader: Reader, rng: random.Random, tally: Tally) -> None:
        """One damaged input."""
        path = rng.choice(self.files(reader))
        content = self._contents.setdefault(path, path.read_bytes())
        damage = rng.choice(reader.damage)
        try:
            hostile = damage(content, rng)
        except Exception:  # noqa: BLE001
            return  # this damage does not suit the file
        if hostile == content:
            return
        path.write_bytes(hostile)
        try:
            self._read(reader, hostile, tally)
        finally:
            path.write_bytes(content)
            if path.name == "study.db":
                for leftover in path.parent.glob("study.db-*"):
                    leftover.unlink()

    def _read(self, reader: Reader, hostile: bytes, tally: Tally) -> None:
        tally.inputs += 1
        begun = time.perf_counter()
        self.watch.on = True
        try:
            with warnings.catch_warnings(), _time_limit(2 * HANG_S), open(os.devnull, "w") as nowhere:  # noqa: PTH123
                warnings.simplefilter("ignore")
                with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                    reader.read(self.folder)
            tally.accepted += 1
            if reader.whole:
                tally.missed += 1
        except UserError as error:
            tally.refused += 1
            if not (error.problem and error.allowed and error.next_step):
                tally.failures.append(f"an error without its three parts: {error}")
            if len(str(error)) > 20_000:
                tally.failures.append(f"an error of {len(str(error))} characters")
        except Hang:
            tally.failures.append("a hang\n" + traceback.format_exc(limit=-4) + self._keep(hostile))
        except Exception:  # noqa: BLE001 (that is what is looked for)
            tally.failures.append(traceback.format_exc(limit=-4) + self._keep(hostile))
        finally:
            self.watch.on = False
            took = 1000 * (time.perf_counter() - begun)
            tally.slowest_ms = max(tally.slowest_ms, took)
        if took > 1000 * HANG_S:
            tally.failures.append(f"took {took:.0f} ms" + self._keep(hostile))
        if self.watch.seen or Path(_CANARY).exists():
            tally.failures.append(f"BREACH {self.watch.seen} {Path(_CANARY).exists()}" + self._keep(hostile))
            self.watch.seen.clear()
            Path(_CANARY).unlink(missing_ok=True)

    def _keep(self, hostile: bytes) -> str:
        return f"input: {hostile[:160]!r}"


def fuzz(folder: Path, inputs: int, *, seed: int, only: Sequence[str] = (), show: int = 0) -> list[Tally]:
    """Feed damaged inputs to the readers, the same number to each, fewer to slow ones."""
    bench = Bench(folder)
    chosen = [READERS[name] for name in only] or list(READERS.values())
    shares = {reader.name: 1 if reader.slow else 10 for reader in chosen}
    tallies = []
    for reader in chosen:
        rng, tally = random.Random(f"{seed} {reader.name}"), Tally(reader.name)
        each = -(-inputs * shares[reader.name] // sum(shares.values()))
        attempts = 0
        while tally.inputs < each and attempts < 4 * each:
            attempts += 1
            with mock.patch("nas.storage.time.sleep"):  # an archive that fails is tried again after a while
                bench.feed(reader, rng, tally)
        tallies.append(tally)
        print(tally.row(), flush=True)
        for failure in list({_place(text): text for text in tally.failures}.values())[:show]:
            print(f"\n--- {tally.name}\n{failure}", file=sys.stderr, flush=True)
    return tallies


def _place(failure: str) -> str:
    """Where a failure came from: its last line of ours and what was raised."""
    lines = [line for line in failure.splitlines() if line.startswith(("  File", "input:")) is False]
    files = [line for line in failure.splitlines() if line.startswith("  File") and "site-packages" not in line]
    return f"{files[-1:]}{[line[:40] for line in lines if 'Error' in line][-1:]}"


def main() -> int:
    """Print a row per reader; exit code 1 where something got through."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", default=[], choices=sorted(READERS), help="only these")
    parser.add_argument("--show", type=int, default=3, help="failures shown of each reader")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hwnas-fuzz-"))
    try:
        make_samples(folder / "samples")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        begun = time.perf_counter()
        print(f"{'reader':<18}{'inputs':>7}{'accepted':>10}{'refused':>9}{'missed':>8}{'tracebacks':>12}{'slowest ms':>12}")
        found = fuzz(folder / "samples", given.inputs, seed=given.seed, only=given.reader, show=given.show)
        total = Tally("all")
        for tally in found:
            total.inputs += tally.inputs
            total.accepted += tally.accepted
            total.refused += tally.refused
            total.missed += tally.missed
            total.failures += tally.failures
            total.slowest_ms = max(total.slowest_ms, tally.slowest_ms)
        print(total.row())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{time.perf_counter() - begun:.0f} s, peak memory {peak:.0f} MiB, seed {given.seed}")
        return int(bool(total.failures or total.missed))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
