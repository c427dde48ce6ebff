"""The archive as a queue: every network once, nothing lost, whoever comes and goes."""

from __future__ import annotations

import copy
import gc
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import nas
import search_spaces
from nas.archive import Archive, Claim, Score, run_scores
from nas.runs import Run
from nas.scoring import validate
from nas.searching import Scoring
from nas.storage import Place
from nas.working import Crew
from search_spaces import Architecture, SearchSpace, UserError
from tests.nas.tiny import tiny_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return search_spaces.build("small-mobilenet", width=0.25, image=28, channels=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(made, tmp_path / "run"))


def archive(where: Path | str, space: SearchSpace, weights: str = "w", **options: int) -> Archive:
    return Archive(where, space, weights=weights, **options)


def states(path: Path) -> list[str]:
    with sqlite3.connect(path, timeout=1) as connection:
        return [row[0] for row in connection.execute("select state from trials order by number")]


def silence(path: Path, *, seconds: int) -> None:
    """Move all signs of life into the past; a database's clock cannot be injected."""
    with sqlite3.connect(path, timeout=5) as connection:
        connection.execute("update trial_heartbeats set heartbeat = datetime(heartbeat, ?)", (f"-{seconds} seconds",))


def take_all(place: Path | str, space: SearchSpace) -> list[Claim]:
    mine, taken = archive(place, space), []
    while (claim := mine.claim()) is not None:
        taken.append(claim)
        mine.finish(claim, 0.5, 100, seconds=0.0)
    return taken


def check_each_network_once(place: Path | str, space: SearchSpace) -> None:
    """Three at a time take what waits."""
    archs = space.sample(24, seed=0)
    leader = archive(place, space)
    leader.enqueue([*archs, *archs[:5]], images=100, proposed=False)
    assert leader.waiting() == 24
    with ThreadPoolExecutor(3) as pool:
        taken = [claim for part in pool.map(lambda _: take_all(place, space), range(3)) for claim in part]
    assert sorted(claim.arch.id for claim in taken) == sorted(arch.id for arch in archs)
    assert [score.arch for score in leader.scores()] == archs  # in the order of the queue
    leader.enqueue(archs, images=100, proposed=False)
    assert leader.waiting() == 0  # nothing that is known is queued again


def test_each_network_is_taken_once(tmp_path: Path, space: SearchSpace) -> None:
    check_each_network_once(tmp_path / "study.db", space)


def test_what_is_interrupted_fails_or_is_lost_keeps_its_place(tmp_path: Path, space: SearchSpace) -> None:
    archs = space.sample(4, seed=0)
    mine = archive(tmp_path / "study.db", space, heartbeat=1)
    mine.enqueue(archs, images=50, proposed=True)
    first, second, third = (mine.claim() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    mine.give_back(first, "interrupted", counted=False)
    mine.give_back(second, "RuntimeError: out of memory", counted=True)
    assert (mine.waiting(), mine.running()) == (3, 1)
    silence(tmp_path / "study.db", seconds=60)  # the third one shows no sign of life
    other = archive(tmp_path / "study.db", space, heartbeat=1)
    other.recover()
    other.recover()
    assert (other.waiting(), other.running()) == (4, 0)
    mine.finish(third, 0.25, 50, seconds=9.0)  # it was not lost after all: its score counts, and is not made again
    while (claim := other.claim()) is not None:
        assert claim.arch != third.arch
        assert (claim.images, claim.proposed) == (50, True)
        other.finish(claim, 0.25, 50, seconds=0.1)
    assert [score.arch for score in mine.scores()] == archs


def test_a_network_that_always_fails_is_given_up(tmp_path: Path, space: SearchSpace) -> None:
    (arch,) = space.sample(1, seed=0)
    mine = archive(tmp_path / "study.db", space)
    mine.enqueue([arch], images=50, proposed=False)
    for attempt in range(4):
        claim = mine.claim()
        assert claim is not None, attempt
        mine.give_back(claim, "RuntimeError: no", counted=True)
    assert mine.claim() is None
    assert mine.failures([arch]) == {arch.id: "RuntimeError: no"}


def test_of_two_trials_of_one_network_the_older_counts(tmp_path: Path, space: SearchSpace) -> None:
    """Two searches that queue at the same moment do not see each other's networks."""
    archs = space.sample(3, seed=0)
    mine = archive(tmp_path / "study.db", space)
    mine.enqueue(archs, images=50, proposed=False)
    study = optuna.load_study(study_name="scores", storage=f"sqlite:///{tmp_path / 'study.db'}")
    for trial in study.get_trials():
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=trial.user_attrs))
    assert sorted(claim.arch.id for claim in take_all(tmp_path / "study.db", space)) == sorted(a.id for a in archs)
    assert mine.waiting() == 0


@pytest.mark.parametrize("change", [{"id": {}}, {"id": "other"}, {"architecture": "[]"}, {"images": 0}, {"images": "x"}])
def test_a_trial_that_is_none_of_ours_is_one_error(tmp_path: Path, space: SearchSpace, change: dict[str, Any]) -> None:
    (arch,) = space.sample(1, seed=0)
    mine = archive(tmp_path / "study.db", space)
    mine.add(Score(arch, 0.5, 100))
    study = optuna.load_study(study_name="scores", storage=f"sqlite:///{tmp_path / 'study.db'}")
    study.add_trial(optuna.create_trial(value=0.5, user_attrs={**study.get_trials()[0].user_attrs, **change}))
    with pytest.raises(UserError, match=r"is damaged"):
        mine.scores()


def test_a_closed_archive_holds_no_file_open_and_can_be_used_again(run: Run) -> None:
    def handles() -> list[str]:
        return [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]

    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not list open files")
    gc.disable()  # which closes them sooner or later
    try:
        with Scoring(run, 50) as scoring:
            known = scoring.score(run.space.sample(2, seed=0), "score", proposed=False)
            assert str(run.study) in handles()
        assert run_scores(run) == known
        assert str(run.study) not in handles()
        assert scoring.scores() == known
    finally:
        gc.enable()


def test_archives_of_before_are_read(tmp_path: Path, space: SearchSpace) -> None:
    path = tmp_path / "study.db"
    study = optuna.create_study(study_name="scores", storage=f"sqlite:///{path}", direction="maximize")
    for key, value in {"space": space.key, "weights": "w"}.items():
        study.set_user_attr(key, value)
    (arch,) = space.sample(1, seed=0)
    attributes = {"architecture": str(arch.to_dict()).replace("'", '"').replace("None", "null"), "id": arch.id, "images": 10}
    study.add_trial(optuna.create_trial(value=0.5, user_attrs=attributes))
    study.add_trial(optuna.create_trial(value=0.1))  # somebody else's
    assert archive(path, space).scores() == [Score(arch, 0.5, 10)]


def test_a_driver_or_a_folder_that_is_missing_is_named(
    tmp_path: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        archive(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}", space)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match="needs the package psycopg") as told:
        archive("postgresql://bob:s3cret@localhost:1/x", space)
    assert told.value.next_step == "Install it: pip install 'hwnas[postgres]'"
    assert "s3cret" not in str(told.value)
    with pytest.raises(UserError, match=r"psycopg with its library \(no pq wrapper"), Place.of("postgresql://h/x").opening():
        raise ImportError("no pq wrapper available")  # there is psycopg, but no libpq


def test_a_worker_says_what_it_does_and_a_search_how_to_start_one(run: Run, tmp_path: Path) -> None:
    said: list[str] = []

    class Told:
        def start(self, *_: object) -> None: ...
        def advance(self, *_: object) -> None: ...
        def stop(self) -> None: ...
        def say(self, text: str) -> None:
            said.append(text)
            if text.startswith("waiting"):
                raise InterruptedError

    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with Archive(url, run.space, weights=run.weights_hash()) as shared:
        shared.lead()
        shared.enqueue(run.space.sample(21, seed=0), images=10, proposed=False)
        waiting = Crew(run, shared, 0, progress=Told())
        with pytest.raises(InterruptedError):  # it says so at once
            waiting.drain()
        assert said.pop().endswith(f": nas worker {run.path} --storage {url}")
    with Archive(run.study, run.space, weights=run.weights_hash()) as own:
        assert Crew(run, own, 0)._worker() == f"nas worker {run.path}"
    assert nas.worker(run, storage=url, idle=0.0, progress=Told()) == 21
    assert said[0].startswith("worker      ")
    assert "21 networks to score; ends after 0 s without any" in said[0]
    assert said[1] == "worker      20 networks scored"


def test_it_is_plain_optuna(tmp_path: Path, space: SearchSpace) -> None:
    mine = archive(tmp_path / "study.db", space)
    arch = space.sample(1, seed=0)[0]
    mine.enqueue([arch], images=100, proposed=False)
    take_all(tmp_path / "study.db", space)
    (trial,) = optuna.load_study(study_name="scores", storage=f"sqlite:///{tmp_path / 'study.db'}").trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
    assert trial.user_attrs["standard_error"] == pytest.approx(0.05, rel=0.02)
    assert trial.user_attrs["macs"] == space.macs(arch)
    assert set(trial.params) == {gene.name for gene in space.genes}


def test_what_does_not_belong_is_refused(tmp_path: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.db"
    archive(path, space).lead()
    # What to do about it depends on whose it is: only the run's own file is ever said to be in the way.
    for where, options, advice in (
        (path, {}, f"Remove {path}"),
        (f"sqlite:///{path}", {}, "Name another database"),
        (f"sqlite:///{path}", {"create": False}, "Copy the run folder of the machine that searches"),
    ):
        with pytest.raises(UserError, match="weights w") as told:
            archive(where, space, weights="other", **options)
        assert advice in told.value.next_step
    with pytest.raises(UserError, match="holds scores of small-mobilenet"):
        archive(path, search_spaces.build("small-mobilenet", width=0.5, image=28, channels=1))
    monkeypatch.setattr("nas.archive.made_by", lambda: "hwnas 99.0")
    with pytest.raises(UserError, match=r"this worker is hwnas 99\.0") as caught:
        archive(path, space).check_version()
    assert "pip install" in caught.value.next_step
    with pytest.raises(UserError, match="no archive of this run's weights"):
        Archive(f"sqlite:///{tmp_path / 'none.db'}", space, weights="w", create=False)
    assert not (tmp_path / "none.db").exists()
    for url in ("mysql://u:secret@host/db", "nonsense", "sqlite://"):
        with pytest.raises(UserError, match="storage") as caught:
            archive(url, space)
        assert "secret" not in str(caught.value)


def test_a_lost_database_is_one_error(tmp_path: Path, space: SearchSpace) -> None:
    path = tmp_path / "study.db"
    mine = archive(path, space)
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(UserError, match="cannot be reached"):
        mine.scores()
    with pytest.raises(UserError, match="cannot be read as an archive"):
        archive(path, space)


def test_an_error_survives_the_way_between_processes() -> None:
    error = copy.copy(UserError("a", allowed="b", next_step="c"))  # by the parts that pickle would send
    assert (error.problem, error.allowed, error.next_step) == ("a", "b", "c")


class Interrupted(KeyboardInterrupt):
    pass


class Stops:
    """Progress of a user who presses Ctrl-C after so many networks."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, label: str, total: int) -> None: ...

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left <= 0:
            raise Interrupted

    def stop(self) -> None: ...

    def say(self, text: str) -> None: ...


def test_scores_are_the_same_however_they_are_made(run: Run, made: Path, tmp_path: Path) -> None:
    """In one process, in two, and with an interruption: same networks, same accuracies, same order."""
    alone = nas.score(run, samples=20, images=50)
    assert len({score.arch for score in alone}) == 20
    assert {score.images for score in alone} == {50}
    assert {run.space.smallest, run.space.largest} <= {score.arch for score in alone}
    stopped = shutil.copytree(made, tmp_path / "stopped")
    with pytest.raises(Interrupted):
        nas.score(stopped, samples=20, images=50, progress=Stops(7))
    assert states(stopped / "study.db").count("COMPLETE") == 7
    assert nas.score(stopped, samples=20, images=50, jobs=2) == alone
    assert states(stopped / "study.db").count("COMPLETE") == 20
    assert nas.score(run, samples=20, images=50) == alone
    with ThreadPoolExecutor(2) as pool:
        more = nas.score(run, samples=23, images=50, jobs=pool)
    assert more[:20] == alone
    assert len(more) == 23


class Failing:
    """An evaluation that fails at some of its calls, counted from 1."""

    def __init__(self, *at: int) -> None:
        self.at, self.calls, self._lock = at, 0, threading.Lock()

    def __call__(self, run: Run, arch: Architecture, images: int) -> tuple[float, int]:
        with self._lock:
            self.calls += 1
            call = self.calls
        if call in self.at:
            raise RuntimeError(f"call {call}")
        return validate(run, arch, images)


class Told(Stops):
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_that_passes_ends_nothing(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    wanted = nas.score(shutil.copytree(made, tmp_path / "sound"), samples=20, images=50)
    monkeypatch.setattr("nas.working.validate", Failing(3, 4, 9))
    told = Told()
    with ThreadPoolExecutor(jobs) as pool:
        found = nas.score(run, samples=20, images=50, jobs=1 if jobs == 1 else pool, progress=told)
    assert found == wanted  # in the same order
    assert [line for line in told.lines if "try again" in line and "RuntimeError: call" in line] == told.lines[-3:]
    assert states(run.study).count("FAIL") == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_that_stays_ends_a_search_after_three_more_tries(
    run: Run, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    failing = Failing(*range(1, 1000))
    monkeypatch.setattr("nas.working.validate", failing)
    (arch,) = run.space.sample(1, seed=4)
    with ThreadPoolExecutor(jobs) as pool:
        scoring = Scoring(run, 50, jobs=1 if jobs == 1 else pool)
        with pytest.raises(RuntimeError, match="call 4"):
            scoring.score([arch], "score", proposed=False)
    assert failing.calls == 4
    assert scoring.archive.waiting() == scoring.archive.running() == 0


def test_a_machine_on_which_everything_fails_leaves_the_networks_to_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(*range(1, 1000))
    monkeypatch.setattr("nas.working.validate", failing)
    scoring = Scoring(run, 50)
    archs = run.space.sample(6, seed=4)
    with pytest.raises(RuntimeError, match="call 4"):
        scoring.score(archs, "score", proposed=False)
    assert (failing.calls, scoring.archive.waiting()) == (4, 6)
    monkeypatch.setattr("nas.working.validate", validate)
    assert [score.arch for score in scoring.score(archs, "score", proposed=False)] == archs


def test_what_the_user_can_mend_is_not_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> tuple[float, int]:
        raise UserError("the images are gone", allowed="Images", next_step="Bring them back")

    monkeypatch.setattr("nas.working.validate", refuse)
    scoring = Scoring(run, 50)
    with pytest.raises(UserError, match="the images are gone"):
        scoring.score(run.space.sample(2, seed=4), "score", proposed=False)
    assert scoring.archive.waiting() == 2


def test_a_storage_that_cannot_be_opened_is_refused_before_the_device_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def profile(*_: object, **__: object) -> None:
        pytest.fail("the device was measured")

    monkeypatch.setattr("nas.api.searching.profile", profile)
    with pytest.raises(UserError, match="storage 'nonsense'"):
        nas.search(run, device="onnxruntime-cpu", storage="nonsense", force=True)


def test_the_first_queued_stay_when_networks_are_withdrawn(tmp_path: Path, space: SearchSpace) -> None:
    mine, archs = archive(tmp_path / "study.db", space), space.sample(4, seed=1)
    mine.enqueue(archs, images=50, proposed=False)
    claim = mine.claim()
    assert claim is not None
    mine.give_back(claim, "interrupted", counted=False)  # it has a new number and its old place
    mine.withdraw(2)
    left = [found.arch for found in (mine.claim(), mine.claim()) if found is not None]
    assert {arch.id for arch in left} == {arch.id for arch in archs[:2]}
    assert mine.claim() is None


def test_a_worker_goes_on_after_a_failure_that_passes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    scoring = Scoring(run, 50, storage=storage)
    archs = run.space.sample(3, seed=5)
    scoring.archive.enqueue(archs, images=50, proposed=False)
    monkeypatch.setattr("nas.working.validate", Failing(2))
    assert nas.worker(run, storage=storage, idle=0.5) == 3
    assert [score.arch for score in scoring.scores()] == archs


def start_worker(run: Run, storage: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nas", "worker", str(run.path), "--storage", storage, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_while_it_scores(process: subprocess.Popen[str], database: Path) -> None:
    """SIGKILL while the worker holds a network."""
    for _ in range(2000):
        process.send_signal(signal.SIGSTOP)
        try:
            if "RUNNING" in states(database):
                process.kill()
                process.communicate()
                return
        except sqlite3.OperationalError:
            pass  # stopped while it was writing
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("the worker took nothing")


def test_real_workers_share_and_a_killed_one_is_replaced(run: Run, tmp_path: Path) -> None:
    database = tmp_path / "shared.db"
    storage = f"sqlite:///{database}"
    scoring = Scoring(run, 50, storage=storage)
    archs = run.space.sample(8, seed=5)
    scoring.archive.enqueue(archs, images=50, proposed=False)
    kill_while_it_scores(start_worker(run, storage), database)
    workers = [start_worker(run, storage, "--idle", "4", "--heartbeat", "1") for _ in range(2)]
    ended = [worker.communicate(timeout=250) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ended
    found = scoring.scores()
    assert [score.arch for score in found] == archs
    known = states(database)
    assert known.count("COMPLETE") == 8
    assert known.count("FAIL") >= 1
    assert len(known) == 8 + known.count("FAIL")  # each lost one was queued again, once
    assert {s.arch for s in Archive(run.study, run.space, weights=run.weights_hash()).scores()} == set(archs)  # the copy


# ---- PostgreSQL ---------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A PostgreSQL server of its own, in a temporary folder."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self.programs, self.folder, self.user = programs, folder, user
        self.port = _free_port()
        self.url = f"postgresql://tester:secret@127.0.0.1:{self.port}/postgres"

    def call(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        # Its output goes to a file: the server inherits it, and a pipe would stay open as long as it runs.
        with (self.folder / "output").open("w") as out:
            done = subprocess.run(command, user=self.user, cwd=self.folder, timeout=60, stdout=out, stderr=out, check=False)
        assert done.returncode == 0, (self.folder / "output").read_text()

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        self.call("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    found = shutil.which("initdb") or next(iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))), None)
    if found is None:
        pytest.skip("no PostgreSQL server installed")
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = "postgres"
    folder = Path(tempfile.mkdtemp(prefix="hwnas-postgres-"))
    server = Server(Path(found).resolve().parent, folder, user)
    try:
        if user is not None:
            shutil.chown(folder, user)
        (folder / "password").write_text("secret")
        (folder / "password").chmod(0o644)
        server.call("initdb", "-U", "tester", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync")
        server.start()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_postgres_each_network_is_taken_once(postgres: Server, space: SearchSpace) -> None:
    check_each_network_once(postgres.url, space)


def test_postgres_holds_many_runs(postgres: Server, space: SearchSpace) -> None:
    (arch,) = space.sample(1, seed=7)
    archive(postgres.url, space, weights="one").add(Score(arch, 0.5, 10))
    assert archive(postgres.url, space, weights="two").scores() == []
    assert len(archive(postgres.url, space, weights="one").scores()) == 1
    with pytest.raises(UserError, match="no archive of this run's weights") as caught:
        Archive(postgres.url, space, weights="three", create=False)
    assert "secret" not in str(caught.value)


def test_postgres_lost_and_found(postgres: Server, run: Run) -> None:
    """A server that dies during a search: one error, and the finished scores are in the run's own file."""
    archs = run.space.sample(3, seed=3)
    scoring = Scoring(run, 50, storage=postgres.url)
    scores = scoring.score(archs[:2], "score", proposed=False)
    postgres.stop()
    try:
        with pytest.raises(UserError, match="cannot be reached") as caught:
            scoring.score(archs, "score", proposed=False)
        assert "secret" not in str(caught.value)
        with pytest.raises(UserError, match="cannot be reached"):
            Scoring(run, 50, storage=postgres.url).scores()
        assert Scoring(run, 50).scores() == scores
    finally:
        postgres.start()
    assert Scoring(run, 50, storage=postgres.url).scores() == scores


@pytest.mark.slow
def test_postgres_workers_by_command(postgres: Server, run: Run) -> None:
    scoring = Scoring(run, 50, storage=postgres.url)
    archs: list[Architecture] = run.space.sample(8, seed=9)
    worker = start_worker(run, postgres.url, "--idle", "200", "--heartbeat", "1")
    try:
        scoring.archive.enqueue(archs, images=50, proposed=False)
        Crew(run, scoring.archive, jobs=0).drain()  # leaves everything to the worker
    finally:
        worker.send_signal(signal.SIGINT)
        out, err = worker.communicate(timeout=60)
    assert worker.returncode == 130, err
    assert "8 subnets scored" in out
    assert {score.arch for score in scoring.scores()} >= set(archs)
