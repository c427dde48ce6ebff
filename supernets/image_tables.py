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
from search_spaces.records import parse_json
from supernets.augment import ImageFile
from supernets.packed import check_unpacked

__all__ = ["ImageTables", "read_tables"]

_WORDS = {"train": 0, "test": 2, "val": 1}  # word in the file's name -> index of the split; the first that fits
BATCH = 256  # rows in memory beside what is kept
_SHARD = re.compile(r"-(?P<number>\d+)-of-(?P<count>\d+)")
_MOST_SHARDS = 10_000
_IMAGE_COLUMNS = ("jpeg", "image", "img", "bytes", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class ImageTables:
    """Encoded images with labels.

    Attributes:
        name: what the names of the files have in common.
        files: N encoded images.
        labels, part: (N,) int64; the part is 0 train, 1 val, 2 test.
        class_names: those that the table names its labels by, else the labels as text.
        origins: file and row of each image, the same wherever the files lie.
        notes: what was left out, in words.
    """

    name: str
    files: tuple[ImageFile, ...]
    labels: NDArray[np.int64]
    part: NDArray[np.int64]
    class_names: tuple[str, ...]
    origins: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_tables(path: Path) -> ImageTables:
    """Read the tables of one data set into memory, images still encoded.

    Args:
        path: a folder with ``*train*.parquet`` and, where present, ``*val*.parquet`` and ``*test*.parquet``; or the
            training file, whose partners have the same name with another word; or a pattern such as ``photos_*.parquet``.
            Numbered shards (``-00000-of-00002``) belong together, and none may be missing.

    Labels are whole numbers or text; each distinct one of the training images is a class.

    Raises:
        UserError: no or several training tables, unsuitable columns, a class that only other splits have, or pyarrow is
            not installed.
    """
    groups, left_out = _find(path)
    tables = [(file, part) for part, group in groups.items() for file in group]
    files: list[ImageFile] = []
    origins: list[str] = []
    labels: list[NDArray[Any]] = []
    for file, _ in tables:
        images, given = _read(file)
        files += [ImageFile(f"row {row} of {file}", image) for row, image in enumerate(images)]
        origins += [f"{file.name}:{row}" for row in range(len(images))]
        labels.append(given)
    part = np.repeat(np.array([part for _, part in tables], np.int64), [len(group) for group in labels])
    if len({given.dtype.kind for given in labels}) > 1:
        raise _bad_table(path, "the labels are numbers in one table and text in another")
    joined = np.concatenate(labels)
    found, first = np.unique(joined[part == 0]), len(groups[0])
    if len(found) < 2:
        raise _bad_table(path, f"the training table has {len(found)} classes, and two are the least")
    if len(odd := np.setdiff1d(joined, found)):
        raise _bad_table(path, f"label {odd[0]} is in another table than the training one only")
    name = path.name if path.is_dir() else re.sub(r"train|\*", "", _base(path)).strip("_-. ")
    names = _names(tables[first - 1][0], found)
    numbers = np.searchsorted(found, joined).astype(np.int64)
    notes = (f"left out of {path}: {', '.join(file.name for file in left_out)}",) if left_out else ()
    return ImageTables(name or "images", tuple(files), numbers, part, names, tuple(origins), notes)


def _find(path: Path) -> tuple[dict[int, list[Path]], list[Path]]:
    """The files of each split, and those that belong to none."""
    if path.is_dir():
        candidates = path.glob("*.parquet")
    elif "*" in path.name:
        candidates = path.parent.glob(path.name)
    elif path.is_file() and "train" in path.name:
        candidates = path.parent.glob(_SHARD.sub("-*-of-*", path.name).replace("train", "*"))
    else:
        raise _bad_table(path, "there is no such folder or training table")
    groups: dict[int, list[Path]] = {}
    left_out = []
    for file in sorted(candidates):
        if word := next((word for word in _WORDS if word in file.name.lower()), None):
            groups.setdefault(_WORDS[word], []).append(file)
        else:
            left_out.append(file)
    if 0 not in groups:
        raise _bad_table(path, "no file has 'train' in its name")
    for group in groups.values():
        if len(bases := {_base(file) for file in group}) > 1:
            raise _bad_table(path, f"it is not clear which of {', '.join(sorted(bases))} is meant")
        _check_shards(path, group)
    return dict(sorted(groups.items())), left_out


def _check_shards(path: Path, group: Sequence[Path]) -> None:
    """Refuse a split of which a shard is missing."""
    shards = [match for file in group if (match := _SHARD.search(file.stem))]
    for count in {int(shard["count"]) for shard in shards}:
        there = {int(shard["number"]) for shard in shards if int(shard["count"]) == count}
        if missing := sorted({*range(count)} - there) if count <= _MOST_SHARDS else []:
            raise _bad_table(path, f"shard {missing[0]} of {count} is missing beside {group[0].name}")


def _base(file: Path) -> str:
    """The name without the number of a shard."""
    return _SHARD.sub("", file.stem)


def _names(file: Path, labels: NDArray[Any]) -> tuple[str, ...]:
    """The classes' names: what the datasets library notes in a table's schema, else the labels as text."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    with parquet.ParquetFile(file) as stored:
        column = _pick(file, stored.schema_arrow.names, _LABEL_COLUMNS)
        noted = (stored.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = dict(enumerate(parse_json(noted.decode())["info"]["features"][column]["names"]))
        return tuple(str(names[label]) for label in labels.tolist())
    except (LookupError, TypeError, ValueError, RecursionError):  # of somebody else's making, or none
        return tuple(str(label) for label in labels.tolist())


def _read(file: Path) -> tuple[list[bytes], NDArray[Any]]:
    """The encoded images and the labels (integers or text) of one table."""
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
            kind = stored.schema_arrow.field(label).type
            kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
            if not (arrow.types.is_integer(kind) or arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise _bad_table(file, f"column {label} is {kind}, neither whole numbers nor text")
            return _rows(file, stored, image, label)
    except (arrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise _bad_table(file, f"it cannot be read ({error!s:.300})") from None


def _rows(file: Path, stored: Any, image: str, label: str) -> tuple[list[bytes], NDArray[Any]]:
    """Batch by batch: a table can name one large image a million times, and be small."""
    images: list[bytes] = []
    labels: list[Any] = []
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
    return images, np.array(labels, np.int64 if not labels or isinstance(labels[0], int) else np.str_)


def _pick(file: Path, columns: Sequence[str], known: Sequence[str]) -> str:
    found = next((name for name in known if name in columns), None)
    if found is None:
        raise _bad_table(file, f"it has none of the columns {', '.join(known)}, only {', '.join(columns)}")
    return found


def _bad_table(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is no set of image tables: {why}",
        allowed="A table *train*.parquet has encoded images (jpeg, image or bytes) and labels, numbers or text (label); "
        "*val*.parquet and *test*.parquet have the same classes and are optional",
        next_step="Correct that, and give the training table or the folder that holds one data set: parquet:PATH",
    )
