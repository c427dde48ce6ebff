"""Killed, starved, cut off: what was finished stays, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

import search_spaces
from latency_tables import Amount, Candidate, LatencyTable, Plan, profile
from latency_tables.device import Options
from latency_tables.simulated import Simulated, open_simulated
from latency_tables.stopwatch import Failure, Measurement
from nas.archive import Archive
from nas.cli import SYSTEM_ERRORS
from search_spaces import UserError
from search_spaces.progress import SILENT, Progress
from tests.nas.test_archive import Server, postgres, start_worker
from tests.nas.tiny import tiny_run

__all__ = ["postgres"]  # the fixture: a server of its own

ROOT = Path(__file__).resolve().parents[2]
SPACE = search_spaces.build("small-mobilenet", width=0.25, resolution=[16]).restrict(depth=[1, 2])
AMOUNT = Amount(networks=6, held_out=4)
DEVICE = open_simulated("simulated", Options())

# A profile in a process of its own that ends itself at an operation on files.
KILLED = """
import sys
from pathlib import Path
import search_spaces
from latency_tables import Amount, profile
from latency_tables.device import Options
from latency_tables.simulated import open_simulated
from tests.faults.killing import Killer
space = search_spaces.build("small-mobilenet", width=0.25, resolution=[16]).restrict(depth=[1, 2])
out = Path(sys.argv[1])
killer = Killer(out.parent, int(sys.argv[2]))
profile(space, open_simulated("simulated", Options()), out=out, amount=Amount(networks=6, held_out=4))
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def estimates(table: LatencyTable) -> list[float]:
    return [round(value, 9) for value in table.estimate(SPACE.sample(20)).tolist()]


def test_a_killed_profile_goes_on_and_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    """A few of the kills of ``scripts/fault_drill.py``."""
    whole, known = estimates(profile(SPACE, DEVICE, out=tmp_path / "whole.json", amount=AMOUNT)), 0
    out = tmp_path / "killed" / "table.json"
    for at in (3, 8, 14):  # of the operations of the run that goes on
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(out), str(at)], env=environment(), capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
        if out.exists():
            assert len(LatencyTable.load(out).entries) >= known
            known = len(LatencyTable.load(out).entries)
    assert known
    assert estimates(profile(SPACE, DEVICE, out=out, amount=AMOUNT)) == whole


@dataclass(frozen=True)
class Vanishing(Simulated):
    """A device that goes away after so many calls."""

    left: list[int] = field(default_factory=lambda: [3], kw_only=True)

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise UserError("simulated does not answer", allowed="A device", next_step="Plug it in")
        return super().time(candidates, rng=rng, plan=plan, progress=progress)


def test_a_device_that_vanishes_costs_one_chunk(tmp_path: Path) -> None:
    gone = Vanishing("simulated", Options(), ("fp32",))
    for _ in range(2):
        with pytest.raises(UserError, match="does not answer"):
            profile(SPACE, gone, out=tmp_path / "t.json", amount=AMOUNT)
        known = LatencyTable.load(tmp_path / "t.json").entries
        assert known
        gone.left[0] = 1
    table = profile(SPACE, DEVICE, out=tmp_path / "t.json", amount=AMOUNT)
    assert {key: table.entries[key] for key in known} == dict(known)


@pytest.mark.parametrize("step", [-1e9, -3600.0, 0.0, 3600.0, 1e9])
def test_a_clock_that_steps_changes_no_estimate(tmp_path: Path, step: float) -> None:
    """The level of a device is told anew when the clock says that time has passed, or has gone back."""
    out = tmp_path / "t.json"
    first = profile(SPACE, DEVICE, out=out, amount=AMOUNT, now=lambda: 2e9)
    again = profile(SPACE, DEVICE, out=out, amount=AMOUNT, now=lambda: 2e9 + step)
    assert estimates(again) == pytest.approx(estimates(first), rel=1e-6)
    assert estimates(LatencyTable.load(out)) == estimates(again)


@pytest.mark.parametrize("number", sorted(SYSTEM_ERRORS))
def test_what_the_system_refuses_is_one_error(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import nas.cli
    import nas.cli.commands

    def refused() -> None:
        raise OSError(number, os.strerror(number), "folder/file")

    monkeypatch.setattr(nas.cli.commands, "app", refused)
    with pytest.raises(SystemExit) as caught:
        nas.cli.main()
    assert caught.value.code == 2
    assert "folder/file" in capsys.readouterr().err


# ---- long ones: python -m pytest tests/faults --faults -----------------------------------------------------------------


def nas_command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nas", *words]
    return subprocess.run(command, env=environment(), cwd=cwd, capture_output=True, text=True, timeout=250, check=False)


PROFILE = ("profile", "--space", "small-mobilenet", "--width", "0.25", "--resolution", "16", "--device", "simulated", "--quiet")
TRAIN = (
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
    "--quiet",
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("words", [(*PROFILE, "--out", "t.json"), (*TRAIN, "--out", "run")])
def test_a_full_disk(small_disk: Path, words: tuple[str, ...]) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(390_000))
    done = nas_command(*words, cwd=small_disk)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert done.stderr.startswith("error: ")
    assert "No space left" in done.stderr
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    done = nas_command(*words, cwd=small_disk)
    assert done.returncode == 0, done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("words", [(*PROFILE, "--out", "t.json"), (*TRAIN, "--out", "run")])
def test_a_read_only_disk(small_disk: Path, words: tuple[str, ...]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = nas_command(*words, cwd=small_disk)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "ead-only" in done.stderr


# One of eight: takes networks until none is left, notes what it has done, and may die at any moment.
WORKER = """
import sys, time
import search_spaces
from nas.archive import Archive
url, log = sys.argv[1:]
space = search_spaces.build("small-mobilenet", width=0.25, resolution=[16]).restrict(depth=[1, 2])
archive = Archive(url, space, weights="scale", heartbeat=2, create=False)
since = time.monotonic()
while time.monotonic() - since < 8:
    claim = archive.claim()
    if claim is None:
        archive.recover()
        time.sleep(0.3)
        continue
    archive.finish(claim, int(claim.arch.id, 16) % 1000 / 1000, 100, seconds=0.0)
    with open(log, "a") as stream:
        stream.write(claim.arch.id + chr(10))
    since = time.monotonic()
"""
COUNT, WORKERS = int(os.environ.get("HWNAS_EVALUATIONS", "2000")), 8


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_eight_workers_that_are_killed_evaluate_every_network_once(postgres: Server, tmp_path: Path) -> None:
    archive = Archive(postgres.url, SPACE, weights="scale", heartbeat=2)
    archs = list({arch.id: arch for arch in SPACE.sample(3 * COUNT, seed=0)}.values())[:COUNT]
    archive.enqueue(archs, images=100, proposed=False)
    log, rng, killed = tmp_path / "log", random.Random(0), 0

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, postgres.url, str(log)], env=environment(), stderr=subprocess.PIPE
        )

    workers = [begin() for _ in range(WORKERS)]
    log.touch()
    while len(log.read_text().split()) < 0.95 * COUNT:  # the archive itself is slow to read
        time.sleep(rng.uniform(1, 4))
        at = rng.randrange(WORKERS)
        killed += workers[at].poll() is None
        workers[at].kill()
        workers[at].communicate()
        workers[at] = begin()
    for worker in workers:
        _, error = worker.communicate(timeout=300)
        assert worker.returncode == 0, error.decode()[-2000:]
    scores = archive.scores()
    assert [score.arch for score in scores] == archs
    assert all(score.accuracy == int(score.arch.id, 16) % 1000 / 1000 for score in scores)
    completed = Counter(trial.user_attrs["id"] for trial in archive._trials(TrialState.COMPLETE))
    assert set(completed.values()) == {1}
    assert (archive.waiting(), archive.running()) == (0, 0)
    print(json.dumps({"networks": len(scores), "workers": WORKERS, "killed": killed, "noted": len(log.read_text().split())}))


@pytest.mark.faults
def test_a_database_killed_under_a_worker(postgres: Server, tmp_path: Path) -> None:
    """The worker says so and ends; started again with the database, it goes on where it was."""
    run = tiny_run(tmp_path / "run")
    archs = run.space.sample(12, seed=4)
    archive = Archive(postgres.url, run.space, weights=run.weights_hash(), heartbeat=1)
    archive.lead()
    archive.enqueue(archs, images=50, proposed=False)
    worker = start_worker(run, postgres.url, "--idle", "60", "--heartbeat", "1")
    while len(archive.scores()) < 2:
        assert worker.poll() is None, worker.communicate()
    before = archive.scores()
    postgres.stop()
    try:
        _, error = worker.communicate(timeout=120)
        assert (worker.returncode, "Traceback" in error) == (2, False), error
        assert "cannot be reached" in error
        assert "secret" not in error
    finally:
        postgres.start()
    worker = start_worker(run, postgres.url, "--idle", "5", "--heartbeat", "1")
    _, error = worker.communicate(timeout=200)
    assert worker.returncode == 0, error
    scores = Archive(postgres.url, run.space, weights=run.weights_hash()).scores()
    assert [score.arch for score in scores] == archs
    assert scores[: len(before)] == before


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_few_kills_of_every_verb(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "fault_drill.py"), "--kills", "4", "--seed", "3"],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
