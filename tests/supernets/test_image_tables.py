"""Parquet tables of images: what belongs together, what is read, and which table is wrong."""

from __future__ import annotations

import io
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
    write_table(tmp_path / "c" / "train.parquet", 9, label=[1, 2, 3] * 3)
    bad("c", "training labels are")
    write_table(tmp_path / "d" / "train.parquet", 9, label=["a", "b", "c"] * 3)
    bad("d", "column label is not an integer")
    write_table(tmp_path / "e" / "train.parquet", 3, jpeg=[None, b"x", b"y"])
    bad("e", "row 0 holds no encoded image")
    write_table(tmp_path / "f" / "train.parquet", 3, jpeg=[b"x", b"y", b"z"])
    bad("f", "row 0 of .*train.parquet cannot be read as an image")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "train.parquet").write_bytes(b"text")
    bad("g", "it cannot be read")


def test_tables_name_the_extra_when_pyarrow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'hwnas\[parquet\]'"):
        load_data(f"parquet:{tmp_path}")
