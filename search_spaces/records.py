"""Values that come from files, checked: text to JSON values, JSON values to dataclasses, names to files of a folder."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, Union

from search_spaces.errors import UserError

__all__ = ["member", "parse_json", "parse_toml", "reading", "record"]

Made = TypeVar("Made")
MOST_BYTES = 64 << 20  # of a JSON or text file; a table of ten thousand layers has about ten
MOST_TOML_BYTES = 1 << 20
SHOWN = 300  # characters of what a parser said
_HALF_A_PAIR = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")  # of the codes for a character beyond 16 bits
# What parsers and constructors raise for values that they were not made for.
_BROKEN = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    EOFError,
    AssertionError,
)


@contextmanager
def reading(path: Path | str, *, allowed: str, next_step: str) -> Iterator[None]:
    """Turn what goes wrong while a file's content is parsed into one error for the user; a `UserError` passes.

    Raises:
        UserError: the file is damaged.
    """
    try:
        yield
    except _BROKEN as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error) or type(error).__name__
        raise UserError(f"{path} is damaged ({why:.{SHOWN}})", allowed=allowed, next_step=next_step) from None


def parse_json(source: Path | str) -> Any:
    """The value in a JSON file or text. NaN, infinities, numbers beyond a double and broken characters are refused.

    Raises:
        ValueError: not JSON, too large, or what is said above.
        RecursionError: nested too deeply.
    """
    if isinstance(source, Path):
        size = source.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{size} bytes are more than the {MOST_BYTES} that such a file can have")
        source = source.read_text(encoding="utf-8")
    value = json.loads(source, parse_constant=_no_number, parse_float=_number)
    if _HALF_A_PAIR.search(source):
        json.dumps(value, ensure_ascii=False).encode()  # fails where the other half is missing
    return value


def parse_toml(path: Path) -> dict[str, Any]:
    """The tables in a TOML file.

    Raises:
        ValueError: not TOML, or too large for what people write.
        RecursionError: nested too deeply.
    """
    size = path.stat().st_size
    if size > MOST_TOML_BYTES:
        raise ValueError(f"{size} bytes are more than the {MOST_TOML_BYTES} that such a file can have")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        _no_number(text)
    return value


def record(cls: type[Made], value: Any) -> Made:
    """A dataclass from a JSON object, every field of the type that the class declares; what the class lacks is ignored.

    Numbers are finite; a whole number serves as a float, a bool as neither. Lists become tuples where the field is one.

    Raises:
        ValueError: a field is missing or of another type.
    """
    return typing.cast(Made, _made(cls, value, cls.__name__))


def _made(kind: Any, value: Any, name: str) -> Any:
    """A value of a type, or ValueError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _of_union(arguments, value, name)
    if dataclasses.is_dataclass(kind):
        return _of_class(kind, value, name)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_made(arguments[0], item, f"{name}[{at}]") for at, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _made(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is float and _is_number(value):
        return value
    if origin is None and type(value) is kind and kind is not float:
        return value
    raise ValueError(f"{name} is {value!r:.60}, not {getattr(kind, '__name__', kind)}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # a whole number may have any length, NaN is not below


def _of_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not type(None))
    return _made(kind, value, name)


def _of_class(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r:.60}, not an object")
    hints = typing.get_type_hints(kind)
    given = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            given[field.name] = _made(hints[field.name], value[field.name], f"{name}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} has no {field.name}")
    return kind(**given)


def member(folder: Path, name: str) -> Path:
    """The file that a record names inside a folder.

    Raises:
        ValueError: the name leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"'{name:.60}' is not the name of a file in {folder}")
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"'{name:.60}' is a link that leads out of {folder}")
    return folder / path
