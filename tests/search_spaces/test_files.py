"""The one file format, and layers' keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import search_spaces
from search_spaces import UserError
from search_spaces.artifacts import atomic_path, read_json, value_hash, write_json
from search_spaces.layers import Conv, make_divisible, out_size, parse_layer


def test_layer_keys_read_back() -> None:
    layers = [layer for name in search_spaces.FAMILIES for layer in search_spaces.build(name).layers()]
    layers = list(dict.fromkeys(layers))
    assert [parse_layer(layer.key) for layer in layers] == layers
    assert len({layer.key for layer in layers}) == len(layers)


def test_keys_of_older_versions_read_back() -> None:  # a convolution had no shortcut
    old = "conv(size=9,in_channels=3,out_channels=8,kernel=3,stride=2,act=relu,norm=True,bias=False)"
    assert parse_layer(old) == Conv(9, 3, 8, 3, 2, "relu")


@pytest.mark.parametrize(
    "key", ["", "conv", "conv(size=1)", "wave(size=1)", "pool(size=one,channels=2)", "pool(size=1,channels=2"]
)
def test_what_is_not_a_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_layer(key)


def test_rounding_rules() -> None:
    assert [make_divisible(v) for v in (3, 12, 16 * 1.2, 40 * 1.2, 960 * 1.2, 7.9, 100)] == [8, 16, 24, 48, 1152, 8, 104]
    assert [out_size(s, 2) for s in (1, 7, 8, 9)] == [1, 4, 4, 5]


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, "thing", 3, {"x": [1, 2.5, None, "ü"]})
    value = read_json(path, "thing", 3, make="nas thing")
    assert value["x"] == [1, 2.5, None, "ü"]
    assert value["made_by"].startswith("hwnas")
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, "thing", 1, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, "thing", 1, {"x": float("nan")})
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert read_json(path, "thing", 1, make="m")["x"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "damaged"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "holds 'list'"),
        (json.dumps({"kind": "other", "version": 1}), "holds 'other'"),
        (json.dumps({"kind": "thing", "version": "1"}), "format version '1'"),
        (json.dumps({"kind": "thing", "version": 0}), "format version 0"),
        (json.dumps({"kind": "thing", "version": 9, "made_by": "hwnas 7.0"}), "format version 9, made by hwnas 7.0"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_json(path, "thing", 1, make="nas thing")


def test_value_hash_ignores_the_order_of_keys() -> None:
    assert value_hash({"a": 1, "b": 2}) == value_hash({"b": 2, "a": 1}) != value_hash({"a": 1, "b": 3})
