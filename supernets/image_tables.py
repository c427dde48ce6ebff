"""Image tables: parquet files with a column of encoded images and a column of labels."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import UserError
from supernets.augment import ImageFile
from supernets.packed import check_unpacked

__all__ = ["ImageTables", "read_tables"]

_WORDS = {"train": 0, "test": 2, "val": 1}  # word in the file's name -> index of the split; the first that fits
BATCH = 256  # rows in memory beside what is kept
_IMAGE_COLUMNS = ("jpeg", "image", "img", "bytes", "png")
_LABEL_COLUMNS = ("label", "fine_label")


@dataclass(frozen=True)
class ImageTables:
    """Encoded images with labels.

    Attributes:
        name: what the names of the files have in common.
        files: N encoded images.
        labels, part: (N,) int64; the part is 0 train, 1 val, 2 test.
        class_names: the labels as text.
        origins: file and row of each image, the same wherever the files lie.
    """

    name: str
    files: tuple[ImageFile, ...]
    labels: NDArray[np.int64]
    part: NDArray[np.int64]
    class_names: tuple[str, ...]
    origins: tuple[str, ...]


def read_tables(path: Path) -> ImageTables:
    """Read the tables of one data set into memory, images still encoded.

    Args:
        path: a folder with ``*train*.parquet`` and, where present, ``*val*.parquet`` and ``*test*.parquet``; or the
            training file, whose partners have the same name with another word; or a pattern such as ``photos_*.parquet``.
            Numbered shards (``-00000-of-00002``) belong together.

    Raises:
        UserError: no or several training tables, unsuitable columns, labels with gaps, or pyarrow is not installed.
    """
    tables = [(file, part) for part, group in _find(path).items() for file in group]
    files: list[ImageFile] = []
    origins: list[str] = []
    labels: list[NDArray[np.int64]] = []
    for file, _ in tables:
        images, numbers = _read(file)
        files += [ImageFile(f"row {row} of {file}", image) for row, image in enumerate(images)]
        origins += [f"{file.name}:{row}" for row in range(len(images))]
        labels.append(numbers)
    part = np.repeat(np.array([part for _, part in tables], np.int64), [len(group) for group in labels])
    joined = np.concatenate(labels)
    found = np.unique(joined[part == 0])
    if not np.array_equal(found, np.arange(len(found))) or len(found) < 2 or not np.isin(joined, found).all():
        raise _bad_table(path, f"the training labels are {found[:5].tolist()}.., or others have more")
    name = path.name if path.is_dir() else re.sub(r"train|\*", "", _base(path)).strip("_-. ")
    names = tuple(str(label) for label in found.tolist())
    return ImageTables(name or "images", tuple(files), joined, part, names, tuple(origins))


def _find(path: Path) -> dict[int, list[Path]]:
    """The files of each split."""
    if path.is_dir():
        candidates = path.glob("*.parquet")
    elif "*" in path.name:
        candidates = path.parent.glob(path.name)
    elif path.is_file() and "train" in path.name:
        candidates = path.parent.glob(path.name.replace("train", "*"))
    else:
        raise _bad_table(path, "there is no such folder or training table")
    groups: dict[int, list[Path]] = {}
    for file in sorted(candidates):
        if word := next((word for word in _WORDS if word in file.name.lower()), None):
            groups.setdefault(_WORDS[word], []).append(file)
    if 0 not in groups:
        raise _bad_table(path, "no file has 'train' in its name")
    for group in groups.values():
        if len(bases := {_base(file) for file in group}) > 1:
            raise _bad_table(path, f"it is not clear which of {', '.join(sorted(bases))} is meant")
    return dict(sorted(groups.items()))


def _base(file: Path) -> str:
    """The name without the number of a shard."""
    return re.sub(r"-\d+-of-\d+", "", file.stem)


def _read(file: Path) -> tuple[list[bytes], NDArray[np.int64]]:
    """The encoded images and the labels of one table."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
        arrow: Any = importlib.import_module("pyarrow")
    except ImportError:
        raise UserError(
            "image tables need pyarrow, which is not installed",
            allowed="pyarrow is an optional part of the toolkit",
            next_step="Install it with: pip install 'hwnas[parquet]'",
        ) from None
    try:
        with parquet.ParquetFile(file) as stored:
            columns = stored.schema_arrow.names
            image, label = _pick(file, columns, _IMAGE_COLUMNS), _pick(file, columns, _LABEL_COLUMNS)
            if not arrow.types.is_integer(stored.schema_arrow.field(label).type):
                raise _bad_table(file, f"column {label} is not an integer")
            return _rows(file, stored, image, label)
    except (arrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise _bad_table(file, f"it cannot be read ({error!s:.300})") from None


def _rows(file: Path, stored: Any, image: str, label: str) -> tuple[list[bytes], NDArray[np.int64]]:
    """Batch by batch: a table can name one large image a million times, and be small."""
    images: list[bytes] = []
    labels: list[int] = []
    unpacked, packed = 0, file.stat().st_size
    for batch in stored.iter_batches(BATCH, columns=[image, label]):
        for cell, number in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(content, bytes):
                raise _bad_table(file, f"column {image}, row {len(images)} holds no encoded image but {type(content).__name__}")
            if number is None:
                raise _bad_table(file, f"column {label} is empty in row {len(images)}")
            images.append(content)
            labels.append(number)
            unpacked += len(content)
        check_unpacked(unpacked, packed=packed)
    return images, np.array(labels, np.int64)


def _pick(file: Path, columns: Sequence[str], known: Sequence[str]) -> str:
    found = next((name for name in known if name in columns), None)
    if found is None:
        raise _bad_table(file, f"it has none of the columns {', '.join(known)}, only {', '.join(columns)}")
    return found


def _bad_table(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is no set of image tables: {why}",
        allowed="A table *train*.parquet has encoded images (jpeg, image or bytes) and labels 0, 1, 2.. (label); "
        "*val*.parquet and *test*.parquet are optional",
        next_step="Give the training table or the folder that holds one data set: parquet:PATH",
    )
