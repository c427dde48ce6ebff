"""Devices elsewhere: a real sshd on this machine, a stand-in adb, and connections that break."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import search_spaces
from latency_tables import Amount, Candidate, LatencyTable, Measurement, Plan, open_device, profile
from latency_tables.onnx_graph import build_onnx
from latency_tables.standalone import runtime
from latency_tables.stopwatch import Failure
from search_spaces import UserError
from search_spaces.layers import Conv

FAST = Plan(rounds=3, least=3, warmup=1, sample_ms=0.02)
SPACE = search_spaces.build("small-mobilenet", width=0.25, resolution=[16]).restrict(kernel=[3], depth=[1], expand=[2, 4])
SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host for ssh:// whose home is a folder of its own; the server runs for one test."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd here: install openssh-server")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    (tmp_path / "home").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n"
        f"SetEnv HOME={tmp_path}/home HWNAS_PYTHON={sys.executable}\n"
    )
    with contextlib.suppress(PermissionError):  # root's server wants this folder, anybody else's does not
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.DEVNULL)
    real = shutil.which("ssh")
    script(
        tmp_path / "bin" / "ssh",
        f"exec {real} -F none -i {tmp_path}/user -o IdentitiesOnly=yes -o UserKnownHostsFile={tmp_path}/known "
        f'-o StrictHostKeyChecking=accept-new "$@"\n',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_a_table_over_ssh(place: str, tmp_path: Path) -> None:
    device = open_device(f"ssh://{place}/onnxruntime-cpu")
    assert device.fingerprint() == open_device("onnxruntime-cpu").fingerprint()
    table = profile(SPACE, device, amount=Amount(4, 3), plan=FAST, out=tmp_path / "t.json")
    assert table.device == f"ssh://{place}/onnxruntime-cpu"
    assert set(table.entries) == {layer.key for layer in SPACE.layers()}
    assert table.estimate(SPACE.largest) > 0
    assert LatencyTable.load(tmp_path / "t.json") == table
    left = [p.name for p in (tmp_path / "home" / ".cache" / "hwnas").iterdir()]
    assert left == ["describe"]  # kits are removed


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh here")
def test_a_host_that_does_not_answer() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    device = open_device(f"ssh://127.0.0.1:{free}/onnxruntime-cpu")
    object.__setattr__(device, "pause_s", 0.0)
    with pytest.raises(UserError, match="does not answer") as caught:
        device.fingerprint()
    assert "is kept" in caught.value.next_step


# ---- adb, and what can go wrong on any way --------------------------------------------------------------------

ADB = """
home={home}
[ "$1" = -s ] && serial=$2 && shift 2
echo "$serial $*" >> {home}/log
command=$1; shift
if [ "$command" = push ]; then
  for last; do :; done
  target=$(echo "$last" | sed "s|/data/local/tmp|$home|")
  while [ $# -gt 1 ]; do cp -r "$1" "$target" || exit 1; shift; done
  exit 0
fi
{trouble}
HWNAS_PYTHON={python} sh -c "$(echo "$*" | sed "s|/data/local/tmp|$home|g")"
"""


def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str = "") -> None:
    """A stand-in for adb whose phone is a folder here."""
    home = tmp_path / "phone"
    home.mkdir(exist_ok=True)
    script(tmp_path / "bin" / "adb", ADB.format(home=home, python=sys.executable, trouble=trouble.format(home=home)))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def candidates() -> list[Candidate]:
    good = build_onnx([Conv(8, 3, 32, 3, 1, "relu")], metadata={"weights": "random"})
    return [Candidate("good", lambda: good), Candidate("bad", lambda: b"not a model"), Candidate("again", lambda: good)]


def test_a_phone_over_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone(tmp_path, monkeypatch)
    device = open_device("adb://emulator-5554/onnxruntime-cpu:batch=2")
    first, second, third = device.time(candidates(), rng=np.random.default_rng(0), plan=FAST)
    assert isinstance(first, Measurement)
    assert isinstance(second, Failure)
    assert isinstance(third, Measurement)
    assert device.fingerprint()["batch"] == 2


def test_python_there_is_named_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone(tmp_path, monkeypatch)
    named = tmp_path / "an env" / "python"
    named.parent.mkdir()
    script(named, f'touch {tmp_path}/used; exec {sys.executable} "$@"')
    monkeypatch.setenv("HWNAS_PYTHON", str(named))
    assert open_device("adb://emulator-5554/onnxruntime-cpu").fingerprint()["runtime"] == "onnxruntime"
    assert (tmp_path / "used").exists()


@pytest.mark.parametrize(
    ("board", "lines", "found"),
    [
        ("Raspberry Pi 4 Model B Rev 1.1\0", "processor : 0\nHardware : BCM2835", "Raspberry Pi 4 Model B Rev 1.1"),
        ("", "processor : 0\nmodel name : A Processor 3000", "A Processor 3000"),
    ],
)
def test_boards_are_told_apart(monkeypatch: pytest.MonkeyPatch, board: str, lines: str, found: str) -> None:
    files = {"/proc/device-tree/model": board, "/proc/cpuinfo": lines}
    monkeypatch.setattr(runtime, "_text", lambda path: files.get(path, ""))
    assert runtime.machine()["processor"] == found


def test_a_shell_that_greets_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone(tmp_path, monkeypatch, trouble='echo "Welcome {{to}} this machine"')
    device = open_device("adb://emulator-5554/onnxruntime-cpu")
    first, *_ = device.time(candidates(), rng=np.random.default_rng(0), plan=FAST)
    assert isinstance(first, Measurement)


def test_a_lost_connection_is_tried_again_and_nothing_is_timed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose = '[ -e {home}/back ] || case "$*" in *cat*) touch {home}/back; echo "error: device offline" >&2; exit 1;; esac'
    phone(tmp_path, monkeypatch, trouble=lose)
    device = open_device("adb://emulator-5554/onnxruntime-cpu")
    object.__setattr__(device, "pause_s", 0.0)
    first, *_ = device.time(candidates(), rng=np.random.default_rng(0), plan=FAST)
    assert isinstance(first, Measurement)
    log = (tmp_path / "phone" / "log").read_text()
    assert log.count("results.json") == 2


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        (
            'case "$*" in *run_kit*) echo "ModuleNotFoundError: onnxruntime" >&2; exit 1;; esac',
            "ModuleNotFound",
        ),
        ('case "$*" in *cat*) echo "{{}}"; exit 0;; esac', "not results of a kit"),
        ('case "$*" in *--describe*) echo "[1]"; exit 0;; esac', "makes no sense"),
        ('echo "error: device unauthorized" >&2; exit 1', "does not answer"),
    ],
)
def test_trouble_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, problem: str) -> None:
    phone(tmp_path, monkeypatch, trouble=trouble)
    device = open_device("adb://emulator-5554/onnxruntime-cpu")
    object.__setattr__(device, "pause_s", 0.0)
    with pytest.raises(UserError, match=problem):
        device.time(candidates(), rng=np.random.default_rng(0), plan=FAST)


@pytest.mark.parametrize(
    "place",
    ["-oProxyCommand=x", "host:port", "host;rm", "a b", "$(x)", "host:99999", "user@", "@host", "[::1]x", "host/../x"],
)
@pytest.mark.parametrize("scheme", ["ssh", "adb"])
def test_places_that_a_shell_could_misread_are_refused(scheme: str, place: str) -> None:
    if scheme == "adb" and place in ("host:port", "host:99999"):
        return  # serial numbers of phones over the network look like this
    with pytest.raises(UserError):
        open_device(f"{scheme}://{place}/onnxruntime-cpu")
