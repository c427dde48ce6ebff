"""Devices elsewhere, over ssh or adb: a kit goes there, runs, and its results come back.

Nothing listens on a port, nothing is installed, and only a folder of the user's cache is written there; it is removed at the
end. A lost connection is tried again, and what was timed by then is not timed twice. Names of hosts, users and files are
checked and quoted.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from latency_tables.device import Candidate, Optioned, Options, check_precision, full_name, serialised
from latency_tables.kit import SCRIPT, KitWriter, check_fingerprint, read_results, write_script
from latency_tables.standalone.runtime import PRECISIONS, SessionRunner, open_session
from latency_tables.stopwatch import Failure, Measurement, Plan
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx

__all__ = ["Adb", "Lost", "RemoteDevice", "Ssh", "Transport", "open_adb", "open_ssh"]

CACHE = ".cache/hwnas"  # in the user's home there
ANDROID = "/data/local/tmp/hwnas"
LONGEST_S = 3600.0  # of one command there
ATTEMPTS = 3
MOST_BYTES = 64 << 20  # read from there
PLACE = re.compile(r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*)(?::(?P<port>[0-9]{1,5}))?")
SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]*")


class Lost(Exception):
    """The connection failed, not the command."""


class Transport(Protocol):
    """A way to another machine."""

    @property
    def base(self) -> str:
        """The folder there that kits go to, quoted for the shell there."""

    def run(self, command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command line there. Raises `Lost`."""

    def send(self, folder: Path, target: str) -> None:
        """Copy a folder's files into a folder there (quoted). Raises `Lost`."""


@dataclass(frozen=True)
class Ssh:
    """The system's ssh, with the user's own configuration and keys; it never asks a question."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def base(self) -> str:
        return f'"$HOME"/{CACHE}'

    def _command(self, command: str) -> list[str]:
        options = ["BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4"]
        words = [word for option in options for word in ("-o", option)]
        words += ["-p", str(self.port)] if self.port else []
        return ["ssh", "-T", *words, "--", f"{self.user}@{self.host}" if self.user else self.host, command]

    def run(self, command: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = _run(self._command(command), content)
        if done.returncode == 255:
            raise Lost(_last_line(done.stderr))
        return done

    def send(self, folder: Path, target: str) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
        done = self.run(f"mkdir -p {target} && tar -xf - -C {target}", stream.getvalue())
        if done.returncode != 0:
            raise Lost(_last_line(done.stderr))


@dataclass(frozen=True)
class Adb:
    """An Android device over adb; Python must be on its path there, or be named in ``HWNAS_PYTHON``."""

    serial: str

    @property
    def base(self) -> str:
        return ANDROID

    def run(self, command: str) -> subprocess.CompletedProcess[bytes]:
        done = _run(["adb", "-s", self.serial, "shell", command])
        said = done.stderr.decode(errors="replace")
        if done.returncode != 0 and ("error: device" in said or "no devices" in said or "error: closed" in said):
            raise Lost(_last_line(done.stderr))
        return done

    def send(self, folder: Path, target: str) -> None:
        self.run(f"mkdir -p {target}")
        done = _run(["adb", "-s", self.serial, "push", *[str(path) for path in sorted(folder.iterdir())], f"{target}/"])
        if done.returncode != 0:
            raise Lost(_last_line(done.stderr))


def _run(words: Sequence[str], content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    if shutil.which(words[0]) is None:
        raise UserError(
            f"{words[0]} is not installed",
            allowed="The system's own client is used to reach devices elsewhere",
            next_step="Install it, or make a kit and run it there by hand: nas kit make --help",
        )
    try:
        return subprocess.run(words, input=content, capture_output=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        raise Lost(f"no answer within {LONGEST_S:.0f} s") from None


def _python() -> str:
    """Python there, quoted for the shell there: as ``HWNAS_PYTHON`` says here, else as it says there, else ``python3``."""
    named = os.environ.get("HWNAS_PYTHON")
    return shlex.quote(named) if named else '"${HWNAS_PYTHON:-python3}"'


def _answer(done: subprocess.CompletedProcess[bytes]) -> bytes:
    """The last line: a shell there may greet before it."""
    lines = done.stdout[-MOST_BYTES:].splitlines()
    return lines[-1] if lines else b""


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    return "".join(c for c in (lines[-1] if lines else "no message") if c.isprintable())[:500]


@dataclass(frozen=True)
class RemoteDevice(Optioned):
    """An ONNX Runtime device at another place.

    Only times come from there: `load` gives the runtime here, for results that do not depend on the machine.
    """

    url: str  # scheme and place
    transport: Transport
    kind: str
    options: Options
    pause_s: float = 2.0  # before a lost connection is tried again

    def __post_init__(self) -> None:
        check_precision(self.kind, self.options, PRECISIONS[self.kind])

    @property
    def name(self) -> str:
        return f"{self.url}/{full_name(self.kind, self.options)}"

    def fingerprint(self) -> dict[str, Any]:
        """What times there depend on."""
        return dict(self._described)

    @cached_property
    def _described(self) -> dict[str, Any]:
        target = f"{self.transport.base}/describe"
        words = [self.kind, self.precision, str(self.threads), str(self.batch)]
        with tempfile.TemporaryDirectory() as folder:
            write_script(Path(folder))
            done = self._kept(Path(folder), target, f"--describe {shlex.join(words)}", SILENT)
        try:
            return check_fingerprint(json.loads(_answer(done)), self.options)
        except ValueError as error:
            raise self._refused(f"it describes itself in a way that makes no sense ({error})"[:500]) from None

    def load(self, model: onnx.ModelProto | bytes) -> SessionRunner:
        """The model in ONNX Runtime here; see the class."""
        return SessionRunner(open_session(serialised(model), "onnxruntime-cpu", 1), self.batch)

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        """Time models there, as one kit; see `Device.time`.

        Raises:
            UserError: no connection, or the machine there cannot run a kit or is another one than before.
        """
        plan = plan or Plan()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "kit"
            writer = KitWriter(folder, self.kind, replace(self.options), plan, seed=int(rng.integers(1 << 31)))
            failures = writer.add(candidates)
            kit = writer.finish({})
            progress.advance(len(candidates))
            target = f"{self.transport.base}/kit-{kit.id}"
            self._kept(folder, target, "", progress)
            results = Path(temporary) / "results.json"
            results.write_bytes(_answer(self._again(f"cat {target}/results.json", progress)))
            fingerprint, found = read_results(results, kit, again="Run the same command again")
            self._again(f"rm -rf {target}", progress)
        if fingerprint != self._described:
            raise self._refused("it is another machine or runtime than at the beginning")
        progress.advance(plan.rounds)
        timed = iter(found[name] for name in kit.names)
        return [failure or next(timed) for failure in failures]

    def _kept(self, folder: Path, target: str, arguments: str, progress: Progress) -> subprocess.CompletedProcess[bytes]:
        """Copy a folder there and run its script; after a lost connection both again, the script goes on where it was."""

        def attempt() -> subprocess.CompletedProcess[bytes]:
            self.transport.send(folder, target)
            return self.transport.run(f"{_python()} {target}/{SCRIPT} {arguments}")

        done = self._tried(attempt, progress)
        if done.returncode == 0:
            return done
        said = _last_line(done.stderr)
        if "ModuleNotFoundError" in said or "ImportError" in said:
            raise UserError(
                f"{self.url} cannot run a kit: {said}",
                allowed="Python 3.8 or newer with numpy and onnxruntime there",
                next_step="Install them there, in a virtual environment, and name its Python here: HWNAS_PYTHON=PATH nas ...",
            )
        raise self._refused(said)

    def _again(self, command: str, progress: Progress) -> subprocess.CompletedProcess[bytes]:
        return self._tried(lambda: self.transport.run(command), progress)

    def _tried(
        self, attempt: Callable[[], subprocess.CompletedProcess[bytes]], progress: Progress
    ) -> subprocess.CompletedProcess[bytes]:
        reason = ""
        for number in range(ATTEMPTS):
            if number:
                progress.say(f"{self.url}: {reason}; trying again")
                time.sleep(self.pause_s)
            try:
                return attempt()
            except Lost as error:
                reason = str(error)
        raise UserError(
            f"{self.url} does not answer ({reason})",
            allowed="A place that the system's ssh or adb reaches without a question",
            next_step="Try it by hand, then run the same command again: what was measured is kept",
        )

    def _refused(self, problem: str) -> UserError:
        return UserError(
            f"{self.url}: {problem}",
            allowed="A machine that runs a kit and stays the same",
            next_step="Look there, then run the same command again: what was measured is kept",
        )


def open_ssh(place: str, kind: str, options: Options) -> RemoteDevice:
    """A device over ssh; ``place`` is ``[user@]host[:port]``."""
    found = PLACE.fullmatch(place)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise UserError(
            f"place '{place}'",
            allowed="[user@]host[:port]",
            next_step="Write for example: ssh://pi@raspberry:22/onnxruntime-cpu",
        )
    return RemoteDevice(f"ssh://{place}", Ssh(found["host"], found["user"], port), kind, options)


def open_adb(place: str, kind: str, options: Options) -> RemoteDevice:
    """A device over adb; ``place`` is its serial number as ``adb devices`` shows it."""
    if not SERIAL.fullmatch(place):
        raise UserError(f"serial '{place}'", allowed="A serial number as adb devices shows it", next_step="Run: adb devices")
    return RemoteDevice(f"adb://{place}", Adb(place), kind, options)
