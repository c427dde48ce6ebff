"""Examples of any shape from NumPy arrays in one file: signals, feature maps, images that are arrays already."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import UserError
from supernets.data_sources import HOLD_OUT, PARTS, row_hashes
from supernets.packed import check_unpacked

__all__ = ["ArraySplit", "Arrays", "array_statistics", "read_arrays"]

_CHUNK = 1 << 20  # numbers at a time


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Examples with labels, as `Split` but of any shape, and never augmented.

    Attributes:
        values: (N, ...) as stored.
        labels: (N,) int64.
        mean, std: per channel (axis 1; one number for examples without channels), for normalisation.
    """

    values: NDArray[np.generic]
    labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.values.shape[1:]

    def batch(
        self,
        indices: Sequence[int] | NDArray[np.int64] | torch.Tensor,
        resolution: int,
        *,
        rng: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """The examples at B positions as (B, ...) float32, normalised; ``rng`` is not used: nothing is augmented.

        Raises:
            UserError: a resolution that the arrays do not have.
        """
        if resolution != self.shape[-1]:
            raise UserError(
                f"examples at resolution {resolution}",
                allowed=f"Arrays are not scaled: these have the shape {self.shape}",
                next_step="Leave the choice 'resolution' out of the space",
            )
        chosen = torch.from_numpy(self.values[np.asarray(indices, np.int64)].astype(np.float32))
        wide = (-1, *[1] * (chosen.ndim - 2))
        return (chosen - torch.tensor(self.mean).view(wide)) / torch.tensor(self.std).view(wide)


@dataclass(frozen=True, eq=False)
class Arrays:
    """All examples of a file: values (N, ...), labels (N,), the split of each, the splits to draw, a hash of everything.

    ``keys`` (N,) are the same for examples that are the same, within this process.
    """

    name: str
    values: NDArray[np.generic]
    labels: NDArray[np.int64]
    part: NDArray[np.int64]
    hold_out: dict[str, float]
    class_names: tuple[str, ...]
    content: str
    keys: NDArray[np.int64]


def read_arrays(path: Path) -> Arrays:
    """Read a .npz file with ``x`` (N, ...) and ``y`` (N,), and where given ``x_val`` and ``y_val``, ``x_test`` and ``y_test``.

    Labels are whole numbers or text; each distinct one is a class. Missing: val 10 %, test 20 % of the given examples.

    Raises:
        UserError: missing or damaged, arrays that do not fit one another, values that single precision does not hold, fewer
            than two classes.
    """
    if not path.is_file():
        raise _bad(path, "does not exist")
    try:
        with zipfile.ZipFile(path) as packed:  # no more is read of a part than what is declared here
            check_unpacked(sum(part.file_size for part in packed.infolist()), packed=path.stat().st_size)
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
            if odd := [name for name, value in found.items() if not isinstance(value, np.ndarray)]:
                raise ValueError(f"'{odd[0]}' is not an array")
    except Exception as error:  # noqa: BLE001 (a damaged archive raises whatever the reader happens to come across)
        raise _bad(path, f"cannot be read ({error!s:.300})") from None
    parts = {part: (f"x{end}", f"y{end}") for part, end in zip(PARTS, ("", "_val", "_test"), strict=True)}
    if missing := [name for name in parts["train"] if name not in found]:
        raise _bad(path, f"has no array '{missing[0]}'")
    if odd := sorted(found.keys() - {name for pair in parts.values() for name in pair}):
        raise _bad(path, f"has an array '{odd[0]}'")
    if halves := [pair for pair in parts.values() if (pair[0] in found) != (pair[1] in found)]:
        raise _bad(path, f"has only one of '{halves[0][0]}' and '{halves[0][1]}'")
    pairs = {part: (found[x], found[y]) for part, (x, y) in parts.items() if x in found}
    for part, (x, y) in pairs.items():
        _check(path, part, x, y, found["x"])
    values = np.concatenate([x for x, _ in pairs.values()])
    names, labels = np.unique(np.concatenate([y for _, y in pairs.values()]), return_inverse=True)
    if len(names) < 2:
        raise _bad(path, f"has {len(names)} classes, and two are the least")
    digest = hashlib.sha256(f"{values.shape} {values.dtype}".encode())
    numbers = np.concatenate([np.full(len(y), PARTS.index(split), np.int64) for split, (_, y) in pairs.items()])
    for array in (values, labels.astype(np.int64), numbers):
        digest.update(np.ascontiguousarray(array).data)
    return Arrays(
        name=path.stem,
        values=values,
        labels=labels.astype(np.int64),
        part=numbers,
        hold_out={split: share for split, share in HOLD_OUT.items() if split not in pairs},
        class_names=tuple(str(name) for name in names),
        content=digest.hexdigest(),
        keys=row_hashes(values),
    )


def _check(path: Path, part: str, x: NDArray[np.generic], y: NDArray[np.generic], first: NDArray[np.generic]) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iuUSb" or x.ndim < 2 or len(x) != len(y):
        raise _bad(path, f"has x of shape {x.shape} and y of shape {y.shape}, {y.dtype}, for {part}")
    if x.shape[1:] != first.shape[1:]:
        raise _bad(path, f"has examples of shape {x.shape[1:]} for {part} and {first.shape[1:]} to train")
    if x.dtype.kind not in "iufb" or (x.dtype.kind == "f" and not all(np.isfinite(some).all() for some in _single(x))):
        raise _bad(path, f"has x for {part} that is not all finite numbers in single precision ({x.dtype})")


def _single(values: NDArray[np.generic]) -> Iterator[NDArray[np.float32]]:
    """The values in single precision, some examples at a time: all at once would take several times the array."""
    step = max(1, _CHUNK // max(1, math.prod(values.shape[1:])))
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        for start in range(0, len(values), step):
            yield values[start : start + step].astype(np.float32)


def _bad(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} {why}",
        allowed="A .npz file with x (N, ...) of numbers and y (N,) of labels, and optionally x_val, y_val, x_test, y_test",
        next_step="Write it with: numpy.savez(PATH, x=x, y=y)",
    )


def array_statistics(values: NDArray[np.generic]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel (axis 1), of everything for examples without channels."""
    axes = tuple(axis for axis in range(values.ndim) if axis != 1) if values.ndim > 2 else None
    count = values.size / (1 if axes is None else values.shape[1])
    mean = np.asarray(sum(some.sum(axis=axes, dtype=np.float64) for some in _single(values)) / count)
    middle = mean if axes is None else mean.reshape(-1, *[1] * (values.ndim - 2))
    squares = sum(((some - middle) ** 2).sum(axis=axes) for some in _single(values))
    std = np.sqrt(np.asarray(squares) / count)
    return tuple(np.atleast_1d(mean).tolist()), tuple(np.atleast_1d(np.where(std > 0, std, 1.0)).tolist())
