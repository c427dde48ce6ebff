"""Hostile versions of files: damaged bytes, and values where nobody expects them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

__all__ = ["HOSTILE_TEXTS", "damaged_bytes", "damaged_json", "damaged_text", "hostile_value"]

HOSTILE_TEXTS = (
    "",
    " ",
    "\0",
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "NaN",
    "inf",
    "1e999",
    "<script>alert(1)</script>",
    "\x1b]0;title\x07\x1b[2J",
    "ssh://-oProxyCommand=id/onnxruntime-cpu",
    "{0.__class__}",
    "%s%n",
    "__import__('os').system('id')",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{PILE OF POO}",
    "\ud800",
    "x" * 5000,
)
_NUMBERS = (0, -0.0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 1e-320, 1e308, -1e308, 0.5, 1e18)
_NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))


def hostile_value(rng: random.Random) -> Any:
    """A value of any kind."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(HOSTILE_TEXTS)
    if kind == 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return rng.choice(_NO_NUMBERS)
    if kind == 3:
        return rng.choice((None, True, False))
    if kind == 4:
        return rng.choice(([], {}, [[]], {"": {}}, [None], {"kind": []}))
    if kind == 5:
        deep: Any = 1
        for _ in range(rng.choice((3, 50, 400))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    if kind == 6:
        return [rng.choice(_NUMBERS)] * rng.choice((1, 2, 1000))
    return {rng.choice(HOSTILE_TEXTS): rng.choice(HOSTILE_TEXTS) for _ in range(3)}


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += _places(part, (*at, key))
    return found


def _parent(value: Any, at: tuple[Any, ...]) -> Any:
    for key in at[:-1]:
        value = value[key]
    return value


def damaged_json(value: Any, rng: random.Random) -> Any:
    """A copy with one to three values replaced, removed, repeated, swapped, or joined by unknown ones."""
    found = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(found)
        if not places:
            return hostile_value(rng)
        # Deep places are many: half of the time one of the first levels is taken.
        shallow = [place for place in places if len(place) <= 2]
        at = rng.choice(shallow if rng.random() < 0.5 else places)
        parent, key = _parent(found, at), at[-1]
        action = rng.randrange(6)
        if action <= 1:
            parent[key] = hostile_value(rng)
        elif action == 2:
            del parent[key]
        elif action == 3 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
        elif action == 3:
            parent[rng.choice(HOSTILE_TEXTS)] = hostile_value(rng)
        elif action == 4:
            other = rng.choice(places)
            parent[key] = copy.deepcopy(_parent(found, other)[other[-1]])
        elif isinstance(parent[key], bool) or not isinstance(parent[key], int | float):
            parent[key] = hostile_value(rng)
        else:
            number = parent[key]
            parent[key] = rng.choice(
                (-number, number * 1000 if abs(number) < 1e100 else 0, str(number), [number], 0, number + 1)
            )
    return found


def damaged_json_text(content: bytes, rng: random.Random) -> bytes:
    """A JSON file as text: damaged as a value, or beyond what a value can be."""
    if rng.random() < 0.1:
        depth = rng.choice((100, 3000, 100_000))
        return rng.choice((b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth, b"9" * 10_000, b"-", b'"\\ud800"'))
    return json.dumps(damaged_json(json.loads(content), rng)).encode()


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Truncated, bits flipped, parts overwritten, moved, repeated, removed or inserted; or something else altogether."""
    data = bytearray(content)
    size = max(1, len(data))
    action = rng.randrange(9)
    if action == 0:
        return bytes(data[: rng.randrange(size)])
    if action == 1:
        for _ in range(rng.choice((1, 1, 2, 16))):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    start = rng.randrange(size)
    length = rng.choice((1, 4, 16, 256))
    if action == 2:
        data[start : start + length] = rng.randbytes(length)
    elif action == 3:
        data[start : start + length] = bytes([rng.choice((0, 0xFF, 0x7F, 0x80))]) * length
    elif action == 4:
        del data[start : start + length]
    elif action == 5:
        data[start:start] = rng.randbytes(length)
    elif action == 6:
        other = rng.randrange(size)
        data[start : start + length] = data[other : other + length]
    elif action == 7:
        return rng.choice(
            (b"", b"\0" * 100, rng.randbytes(200), b"PK\x03\x04", b"[]", b"{}", b"\x80\x04.", bytes(data) + bytes(data))
        )
    else:
        # Lengths and offsets stand at the beginning of most formats.
        at = rng.randrange(min(64, size))
        data[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little"), rng.randbytes(8)))
    return bytes(data)


def damaged_text(content: bytes, rng: random.Random) -> bytes:
    """Lines and words of a text file replaced; structure mostly kept."""
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        action = rng.randrange(6)
        if action == 0:
            del lines[at]
        elif action == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        else:
            words = lines[at].replace(",", " , ").replace("=", " = ").replace(":", " : ").split(" ")
            value = hostile_value(rng)
            texts = (str(value), json.dumps(value), "[" * rng.choice((3, 2000)), str(rng.choice(_NUMBERS)))
            words[rng.randrange(len(words))] = rng.choice(texts)
            lines[at] = "".join(words)
        if not lines:
            break
    return "\n".join(lines).encode("utf-8", "surrogateescape" if rng.random() < 0.5 else "replace")
