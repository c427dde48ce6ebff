"""Parquet tables of images: what belongs together, what is read, and which table is wrong."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import UserError
from supernets.data import ImageData, load_data


def pattern(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8))


def sizes(data: ImageData) -> list[int]:
    return [len(split) for split in (data.train, data.val, data.test)]


def write_table(path: Path, count: int, *, seed: int = 0, wrapped: bool = False, **columns: list[Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    images: list[Any] = []
    for k in range(count):
        stream = io.BytesIO()
        pattern(1000 * seed + k).save(stream, "png")
        images.append({"bytes": stream.getvalue(), "path": None} if wrapped else stream.getvalue())
    content = {"image" if wrapped else "jpeg": images, "label": [k % 3 for k in range(count)], **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(content), path)
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_tables_round_trip(tmp_path: Path, wrapped: bool) -> None:
    train = write_table(tmp_path / "set_train.parquet", 60, wrapped=wrapped)
    write_table(tmp_path / "set_test.parquet", 9, seed=1, wrapped=wrapped)
    data = load_data(f"parquet:{tmp_path}")
    assert sizes(data) == [54, 6, 9]
    assert data.size == 24
    assert data.class_names == ("0", "1", "2")
    expected = np.stack([np.asarray(pattern(1000 + k)) for k in range(9)])
    assert np.array_equal(data.test.pixels.read(np.arange(9), 24, None), expected)
    by_file, by_pattern = load_data(f"parquet:{train}"), load_data(f"parquet:{tmp_path}/set_*.parquet")
    assert by_file.hash == by_pattern.hash == data.hash
    assert by_file.name == by_pattern.name == "set"
    assert load_data(f"cifar10:{tmp_path}").name == "cifar10"


def test_tables_in_shards_and_with_a_validation_table(tmp_path: Path) -> None:
    for k in range(2):
        write_table(tmp_path / f"train-0000{k}-of-00002.parquet", 30, seed=k)
    write_table(tmp_path / "validation-00000-of-00001.parquet", 6, seed=5)
    data = load_data(f"parquet:{tmp_path}")
    assert sizes(data) == [48, 6, 12]
    assert data.held_out == (("test", 0.2),)


def test_bad_tables_are_named(tmp_path: Path) -> None:
    def bad(place: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_data(f"parquet:{tmp_path / place}")

    bad("nowhere", "there is no such folder")
    write_table(tmp_path / "a" / "other.parquet", 9)
    bad("a", "no file has 'train'")
    write_table(tmp_path / "b" / "x_train.parquet", 9)
    write_table(tmp_path / "b" / "y_train.parquet", 9)
    bad("b", "not clear which of x_train, y_train")
    write_table(tmp_path / "c" / "train.parquet", 9)
    write_table(tmp_path / "c" / "test.parquet", 9, label=[0, 1, 7] * 3)
    bad("c", "label 7 is in another table than the training one only")
    write_table(tmp_path / "d" / "train.parquet", 9, label=[0.5, 1.5, 2.5] * 3)
    bad("d", "column label is double, neither whole numbers nor text")
    write_table(tmp_path / "h" / "train.parquet", 9, label=[3] * 9)
    bad("h", "has 1 classes, and two are the least")
    write_table(tmp_path / "i" / "train-00001-of-00002.parquet", 9)
    bad("i", "shard 0 of 2 is missing")
    bad("i/train-00001-of-00002.parquet", "shard 0 of 2 is missing")
    write_table(tmp_path / "e" / "train.parquet", 3, jpeg=[None, b"x", b"y"])
    bad("e", "row 0 holds no encoded image")
    write_table(tmp_path / "f" / "train.parquet", 3, jpeg=[b"x", b"y", b"z"])
    bad("f", "row 0 of .*train.parquet cannot be read as an image")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "train.parquet").write_bytes(b"text")
    bad("g", "it cannot be read")


def test_classes_are_named_as_the_table_names_them(tmp_path: Path) -> None:
    """Labels are numbers with names in the schema, text, a dictionary of texts, or any numbers."""
    pq = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path / "text.train.parquet", 30, label=["cat", "dog", "fox"] * 10)
    assert load_data(f"parquet:{tmp_path / 'text.train.parquet'}").class_names == ("cat", "dog", "fox")
    write_table(tmp_path / "gaps.train.parquet", 30, label=[1, 5, 9] * 10)
    data = load_data(f"parquet:{tmp_path / 'gaps.train.parquet'}")
    assert data.class_names == ("1", "5", "9")
    assert data.train.labels.unique().tolist() == [0, 1, 2]
    table = pq.read_table(tmp_path / "text.train.parquet")
    coded = table.set_column(1, "label", table["label"].dictionary_encode())
    pq.write_table(coded, tmp_path / "coded.train.parquet")
    assert load_data(f"parquet:{tmp_path / 'coded.train.parquet'}").class_names == ("cat", "dog", "fox")
    numbers = pq.read_table(write_table(tmp_path / "n.train.parquet", 30)).rename_columns(["image", "labels"])
    names = {"info": {"features": {"labels": {"names": ["cat", "dog", "fox"], "_type": "ClassLabel"}}}}
    pq.write_table(numbers.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "n.train.parquet")
    assert load_data(f"parquet:{tmp_path / 'n.train.parquet'}").class_names == ("cat", "dog", "fox")


def test_a_table_that_belongs_to_no_split_is_said(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", 30)
    write_table(tmp_path / "other.parquet", 9)
    (note,) = load_data(f"parquet:{tmp_path}").notes
    assert note == f"left out of {tmp_path}: other.parquet"


def test_tables_name_the_extra_when_pyarrow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'hwnas\[parquet\]'"):
        load_data(f"parquet:{tmp_path}")
