"""The one file format: JSON that says what it is, which version, who made it and from what; written atomically."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from search_spaces.errors import UserError
from search_spaces.records import parse_json, reading

__all__ = [
    "LOCK",
    "PARTIAL",
    "atomic_path",
    "file_hash",
    "first_difference",
    "locked",
    "made_by",
    "read_json",
    "value_hash",
    "write_json",
]


PARTIAL = ".partial-"  # what names of unfinished files begin with
LOCK = ".lock"  # what names of locks end with
YOUNG_S = 60.0


def made_by() -> str:
    """Name and version of the toolkit, as written into every file."""
    try:
        return f"hwnas {metadata.version('hwnas')}"
    except metadata.PackageNotFoundError:  # running from a source tree that was never installed
        return "hwnas (not installed)"


def value_hash(value: Any) -> str:
    """Sixteen hexadecimal digits that identify a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_difference(found: Any, wanted: Any, path: str = "") -> str:
    """The first place where two JSON values differ, as text; lists and tuples are the same."""
    if not path:
        found, wanted = (json.loads(json.dumps(value)) for value in (found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in found if k not in wanted)]:
            if found.get(key) != wanted.get(key):
                return first_difference(found.get(key), wanted.get(key), f"{path}.{key}" if path else str(key))
    return f"{path or 'value'} was {found}, now {wanted}"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to that replaces ``path`` when the block ends well; readers never see half a file.

    It lies in a hidden folder of its own beside ``path``, so that what a killed process leaves behind looks like nothing else;
    the next write in the same place removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=PARTIAL))
    try:
        with _held(folder):
            temporary = folder / path.name
            yield temporary
            if not temporary.stat().st_mode & 0o077:  # some writers keep theirs to themselves
                with suppress(OSError):  # on file systems that have no permissions
                    temporary.chmod(_usual_mode(folder))
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        if error.filename is None:  # a full disk is told without a name
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _usual_mode(folder: Path) -> int:
    """The permissions that a new file gets; asking for the process's mask would have to change it."""
    probe = folder / ".mode"
    probe.touch()
    return stat.S_IMODE(probe.stat().st_mode)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process; False: another process has it, or the file system has no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove what killed processes were writing."""
    for folder in parent.glob(f"{PARTIAL}*"):
        with suppress(OSError):  # another process sweeps, too
            if time.time() - folder.stat().st_mtime < YOUNG_S:
                continue  # perhaps its process does not hold it yet
            with _held(folder) as abandoned:
                if abandoned:
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(path: Path, *, doing: str) -> Iterator[None]:
    """Let no other process do the same to ``path`` while the block runs. A killed process holds no lock.

    Args:
        doing: what one process at a time does, for the message.

    Raises:
        UserError: another process does it now; or nothing can be written there.
    """
    lock = path.with_name(f".{path.name}{LOCK}")
    handle = _lock(lock, path, doing)
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lock(lock: Path, path: Path, doing: str) -> int:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.fstat(handle).st_ino == lock.stat().st_ino:
                        return handle
                os.close(handle)  # whoever held it has removed the file in between
            except BaseException:
                os.close(handle)
                raise
    except BlockingIOError:
        holder = ""  # who has let go in between has left nothing to read
        with suppress(OSError):
            holder = lock.read_text(encoding="utf-8", errors="replace")[:200]
        raise UserError(
            f"another process is {doing} {path} ({holder or 'just begun'})",
            allowed="One process at a time",
            next_step="Wait until it has ended, or stop it, then run the same command again",
        ) from None
    except OSError as error:
        raise UserError(
            f"{lock} cannot be written and locked ({error.strerror})",
            allowed="A folder that can be written to, on a file system with locks",
            next_step="Make it writable, or copy the folder to another place",
        ) from None


def write_json(path: Path, kind: str, version: int, body: Mapping[str, Any]) -> None:
    """Write a JSON file of one of the toolkit's kinds. NaN and infinities are refused: absent is absent."""
    value = {"kind": kind, "version": version, "made_by": made_by(), **body}
    text = json.dumps(value, indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, kind: str, version: int, *, make: str) -> dict[str, Any]:
    """Read a JSON file of the given kind.

    Args:
        version: the newest format version that this code reads.
        make: the command that makes such a file, for error messages.

    Raises:
        UserError: the file is missing, damaged, of another kind, or newer than this toolkit.
    """
    article = "An" if kind[0] in "aeiou" else "A"
    allowed = f"{article} {kind} file, format version 1 to {version}, is needed"
    if not path.is_file():
        raise UserError(f"{path} does not exist", allowed=allowed, next_step=f"Make it with: {make}")
    with reading(path, allowed=allowed, next_step=f"Restore it from a copy, or remove it and run: {make}"):
        value = parse_json(path)
    found = value.get("kind") if isinstance(value, dict) else type(value).__name__
    if found != kind:
        raise UserError(f"{path} holds '{found!s:.60}'", allowed=allowed, next_step=f"Make one with: {make}")
    number = value.get("version")
    if type(number) is not int or number < 1:
        raise UserError(f"{path} has format version {number!r:.60}", allowed=allowed, next_step=f"Make it anew with: {make}")
    if number > version:
        raise UserError(
            f"{path} has format version {number}, made by {value.get('made_by')!s:.60}",
            allowed=allowed,
            next_step=f"Install that version: pip install --upgrade '{str(value.get('made_by')).replace(' ', '>='):.60}'",
        )
    return dict(value)
