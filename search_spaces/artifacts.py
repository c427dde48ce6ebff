"""The one file format: JSON that says what it is, which version, who made it and from what; written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from search_spaces.errors import UserError
from search_spaces.records import parse_json, reading

__all__ = ["atomic_path", "file_hash", "first_difference", "made_by", "read_json", "value_hash", "write_json"]


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
    """The first place where two JSON values differ, as text."""
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
    """A temporary path beside ``path`` that replaces it when the block ends well; readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


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
    allowed = f"A {kind} file, format version 1 to {version}, is needed"
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
