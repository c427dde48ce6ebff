"""Compressed files: how much they may unpack to. A few kilobytes can become more than any memory holds."""

from __future__ import annotations

import gzip
from pathlib import Path

__all__ = ["check_unpacked", "gunzip"]

FREE = 256 << 20  # bytes that any file may unpack to
RATIO = 100  # beyond that: times its own size; images and arrays pack at most about ten times smaller


def check_unpacked(unpacked: int, *, packed: int) -> None:
    """ValueError for a file that unpacks to more than data of any use do."""
    if unpacked > max(FREE, RATIO * packed):
        raise ValueError(f"its {packed} bytes unpack to {unpacked} or more")


def gunzip(path: Path) -> bytes:
    """The content of a gzip file.

    Raises:
        ValueError: it unpacks to far too much; it is not read to its end then.
        OSError, EOFError, zlib.error: not a gzip file, or damaged.
    """
    packed = path.stat().st_size
    with gzip.open(path) as stream:
        content = stream.read(max(FREE, RATIO * packed) + 1)
    check_unpacked(len(content), packed=packed)
    return content
