"""Two processes on one run: one at a time where they would disturb each other, and never half a file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import nas
import search_spaces
from latency_tables import profile
from latency_tables.device import Options
from latency_tables.simulated import open_simulated
from nas.recipes import load_recipe
from nas.runs import Run
from search_spaces import UserError
from search_spaces.artifacts import PARTIAL, atomic_path, locked, read_json, write_json
from supernets import Interrupted
from tests.nas.tiny import tiny_run

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from search_spaces.artifacts import atomic_path, locked
with locked(Path(sys.argv[1]), doing="holding"), atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds a path's lock and is writing it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_ends_with_its_process_and_what_it_was_writing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    process = holder(path)
    try:
        with (
            pytest.raises(UserError, match=rf"another process is doing .*process {process.pid} on"),
            locked(path, doing="doing"),
        ):
            pass
        monkeypatch.setattr("search_spaces.artifacts.YOUNG_S", 0.0)
        write_json(tmp_path / "y.json", "test", 1, {})
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(PARTIAL)]  # it is written still
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with locked(path, doing="doing"):
        pass
    write_json(tmp_path / "y.json", "test", 1, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["y.json"]


def test_a_lock_that_cannot_be_had_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written and locked"), locked(tmp_path / "file" / "x", doing="doing"):
        pass
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS):

        def refused(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", refused)
            with pytest.raises(UserError, match=os.strerror(number)), locked(tmp_path / "x", doing="doing"):
                pass


def test_files_are_written_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refused)
    write_json(tmp_path / "x.json", "test", 1, {"a": 1})
    assert read_json(tmp_path / "x.json", "test", 1, make="")["a"] == 1


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, over, wrong = tmp_path / "x.json", threading.Event(), []
    write_json(path, "test", 1, {"values": [0] * 5000})

    def read() -> None:
        while not over.is_set():
            values = read_json(path, "test", 1, make="")["values"]
            wrong.extend([] if len(values) == 5000 and len(set(values)) == 1 else [values])

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(60):
        write_json(path, "test", 1, {"values": [number] * 5000})
    over.set()
    thread.join()
    assert wrong == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, "test", 1, {"a": 1})

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.json'"), atomic_path(path) as temporary:
        temporary.write_text("new")
    assert read_json(path, "test", 1, make="")["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("runs") / "run")


def test_a_verb_at_a_time(run: Run, tmp_path: Path) -> None:
    """Locks of one process against itself are those of two processes: they belong to the open file."""
    with locked(run.file("front.json"), doing="searching for"), pytest.raises(UserError, match="another process is searching"):
        nas.search(run, device="desk", samples=20)
    with locked(run.exports, doing="exporting to"), pytest.raises(UserError, match="does not exist"):
        nas.export(run)  # no front: said before anything is locked
    space = search_spaces.build("small-mobilenet", width=0.25, resolution=[16])
    table = tmp_path / "table.json"
    with locked(table, doing="measuring for"), pytest.raises(UserError, match="another process is measuring"):
        profile(space, open_simulated("simulated", Options()), out=table)
    with locked(tmp_path / "new" / "run.json", doing="making"), pytest.raises(UserError, match="another process is making"):
        Run.create(tmp_path / "new", run.settings)
    Run.create(tmp_path / "new", run.settings)


def test_what_killed_processes_leave_does_not_block_a_new_run(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    (folder / f"{PARTIAL}x").mkdir(parents=True)
    (folder / f"{PARTIAL}x" / "run.json").write_text("{")
    (folder / ".run.json.lock").write_text("process 1 on nowhere")
    assert Run.create(folder, run.settings).settings == run.settings
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".hidden").write_text("")
    with pytest.raises(UserError, match="is not a run"):
        Run.create(tmp_path / "other", run.settings)


def test_training_at_the_same_time_is_refused(tmp_path: Path) -> None:
    space = search_spaces.build("small-mobilenet", width=0.25, resolution=[16], channels=1, classes=4)
    given = {"out": tmp_path / "run", "recipe": load_recipe("quick", epochs=1.0)}
    with pytest.raises(Interrupted):
        nas.train(nas.Supernet(space, seed=0), "fake:28x1x4", **given, stop=lambda: True)
    supernet = nas.Supernet(space, seed=0)
    with locked(tmp_path / "run" / "training", doing="training"), pytest.raises(UserError, match="another process is training"):
        nas.train(supernet, "fake:28x1x4", **given)
