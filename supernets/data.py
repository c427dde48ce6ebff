"""Data sets of images (or arrays of any shape): three disjoint splits that give normalised batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces import ElasticSpace, SearchSpace
from search_spaces.artifacts import value_hash
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress
from supernets.arrays import Arrays, ArraySplit, array_statistics, read_arrays
from supernets.augment import FilePixels, Pixels, StoredPixels, normalise
from supernets.data_sources import PARTS, ImagePool, located, read_pool

__all__ = ["Examples", "ImageData", "Split", "layout_on", "load_data", "placed", "shown_to"]

_REPEATED = 0.01  # of a split, from where it is said; a few stray copies are in most large sets
_SAMPLED = 2000  # images decoded for mean and standard deviation, where images are not kept in memory


def layout_on(device: torch.device) -> torch.memory_format:
    """The memory format in which a supernet's convolutions are fast.

    Channels last on a CPU. On a GPU channels first: in channels last cuDNN compiles kernels for every new shape of a layer,
    and a supernet has hundreds (H200, cuDNN 9: a training step of four new networks 2,400 ms instead of 90).
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def placed(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A batch that a split gave, on a device; on a GPU without waiting for the copy, if it comes from pinned memory."""
    moved = batch.to(device, non_blocking=True)
    return moved.contiguous() if device.type == "cuda" else moved


class Examples(Protocol):
    """Examples with labels: images (`Split`) or arrays (`supernets.arrays.ArraySplit`)."""

    @property
    def labels(self) -> torch.Tensor:
        """(N,) int64."""
        ...

    def __len__(self) -> int: ...

    def batch(
        self,
        indices: Sequence[int] | NDArray[np.int64] | torch.Tensor,
        resolution: int,
        *,
        rng: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """The examples at B positions as float32 (B, ...); ``rng`` asks for training augmentation."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels.

    Attributes:
        pixels: the N images.
        labels: (N,) int64.
        mean, std: per channel on the 0..1 scale, for normalisation.
        repeat: how often the channels are given; 3 shows grey images to a network for colour.
        channels_last: memory format of the batches.
        augment: whether ``rng`` augments.
    """

    pixels: Pixels
    labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    repeat: int = 1
    channels_last: bool = True
    augment: bool = True

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(
        self,
        indices: Sequence[int] | NDArray[np.int64] | torch.Tensor,
        resolution: int,
        *,
        rng: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """The images at B positions as (B, C, R, R) float32, normalised, on the CPU.

        Args:
            indices: B positions in this split.
            resolution: R in px.
            rng: given: training augmentation, drawn from it alone, so that equal generators give equal bits; absent:
                evaluation, always the same. What augmentation is depends on the set: see `supernets.augment`.

        Raises:
            UserError: an image that is read from disk has been damaged or removed.
        """
        images = self.pixels.read(np.asarray(indices, np.int64), resolution, rng if self.augment else None)
        planes = normalise(images, self.mean, self.std)
        if self.repeat > 1:
            planes = planes.repeat(1, self.repeat, 1, 1)
        if not self.channels_last:  # a copy: with one channel both formats count as contiguous, whatever the strides
            return planes.clone(memory_format=torch.contiguous_format)
        return planes.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A data set in three disjoint splits.

    ``val`` is held out of the training images and scores candidates during search; ``test`` is seen by neither.

    Attributes:
        name: short name; for folders and tables their own.
        source: what `load_data` was given.
        seed: of the held-out splits (and of the images of ``fake``).
        class_names: one per label.
        channels: 1 (grey) or 3; of arrays their first axis.
        size: native side in px; the median shorter side of the training images, at most 256. Of arrays their last axis.
        mean, std: per channel, of the training images, on the 0..1 scale; of arrays on their own.
        held_out: the splits that the source does not give, and their share of its training images.
        hash: 16 hexadecimal digits that identify images, labels and splits, wherever the files lie.
        augment: whether training shifts, crops and mirrors images.
        mirror: False where mirroring was turned off; see `mirrored`.
        notes: what a user should know of it, in words: what was left out, images that are in several splits.
    """

    name: str
    source: str
    seed: int
    class_names: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Examples
    val: Examples
    test: Examples
    held_out: tuple[tuple[str, float], ...]
    hash: str
    augment: bool = True
    mirror: bool = True
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = ", ".join(f"{part} {len(getattr(self, part))}" for part in PARTS)
        return f"ImageData({self.source!r}: {counts}; {self.classes} classes, {'x'.join(map(str, self.input_shape))})"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example, (C, S, S) for images."""
        return self.train.shape if isinstance(self.train, ArraySplit) else (self.channels, self.size, self.size)

    def shown_as(self, channels: int) -> ImageData:
        """The same images for a network with that many input channels: grey ones are repeated.

        Raises:
            UserError: colour images, or arrays, for a network with another number of channels.
        """
        if channels == self.channels:
            return self
        if self.channels != 1 or isinstance(self.train, ArraySplit):
            raise UserError(
                f"{self.name} has {self.channels} channels, the network {channels}",
                allowed="The same number, or grey images",
                next_step=f"Make the supernet with channels={self.channels}",
            )
        parts = {name: replace(getattr(self, name), repeat=channels) for name in PARTS}
        return replace(self, channels=channels, mean=self.mean * channels, std=self.std * channels, **parts)

    def check(self, progress: Progress = SILENT) -> None:
        """Decode the validation and test images that are read from files: training would not meet a damaged one, export would.

        Raises:
            UserError: one cannot be decoded.
        """
        files = [
            part.pixels for part in (self.val, self.test) if isinstance(part, Split) and isinstance(part.pixels, FilePixels)
        ]
        if files:
            progress.start("read validation and test images", len(files))
            try:
                for pixels in files:
                    pixels.check()
                    progress.advance()
            finally:
                progress.stop()

    def plain(self) -> ImageData:
        """The same data, shown in training as they are."""
        train = replace(self.train, augment=False) if isinstance(self.train, Split) else self.train
        return replace(self, augment=False, train=train)

    @property
    def mirrored(self) -> bool:
        """Whether half of the images are mirrored in training."""
        return self.augment and isinstance(self.train, Split) and self.train.pixels.flip

    def unmirrored(self) -> ImageData:
        """The same data, never mirrored."""
        if not (isinstance(self.train, Split) and self.train.pixels.flip):
            return self
        train = replace(self.train, pixels=self.train.pixels.unmirrored())
        return replace(self, mirror=False, train=train)

    def identity(self) -> dict[str, Any]:
        """What must be the same where a run goes on, as JSON values; ``augment`` and ``mirror`` are named where off."""
        off = {name: False for name in ("augment", "mirror") if not getattr(self, name)}
        return {"name": self.name, "hash": self.hash, **off}

    def to_dict(self) -> dict[str, Any]:
        """JSON summary: everything but the images."""
        return {
            "name": self.name,
            "source": self.source,
            "seed": self.seed,
            "hash": self.hash,
            "augment": self.augment,
            "mirror": self.mirrored,
            "class_names": list(self.class_names),
            "channels": self.channels,
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "images": {"train": len(self.train), "val": len(self.val), "test": len(self.test)},
            "held_out": dict(self.held_out),
        }


def shown_to(data: ImageData, space: SearchSpace) -> ImageData:
    """The data as the networks of a space take it: channels, size and memory format.

    A network of the user's own gets contiguous batches: its forward may use ``view``, which channels_last does not allow.

    Raises:
        UserError: examples that the networks do not take.
    """
    if not isinstance(space, ElasticSpace):
        return data.shown_as(int(space.parameters["channels"]))
    wanted = space.input_shape
    shown = data.shown_as(wanted[0])
    square = len(wanted) == 3 and wanted[1] == wanted[2]
    if isinstance(data.train, ArraySplit) or not square:
        if shown.input_shape != wanted:
            raise UserError(
                f"{data.name} has examples of shape {shown.input_shape}, the networks of '{space.name}' take {wanted}",
                allowed="The same shape; only images are scaled, to squares",
                next_step="Make the space with the data's shape, or change the data",
            )
        return shown
    parts = {name: replace(getattr(shown, name), channels_last=False) for name in PARTS}
    return replace(shown, size=wanted[-1], **parts)


def load_data(source: str | os.PathLike[str], seed: int = 0, *, augment: bool = True, mirror: bool = True) -> ImageData:
    """Load a data set by name.

    Splits that a source does not give are drawn from its training images, the same share of each class.

    Args:
        source: one of

            - ``"digits"``: 1,797 grey digits that come with scikit-learn; val 15 %, test 25 %. The 8 x 8 images are enlarged
              once to 28 px, so that they behave like a set of small images;
            - ``"fashion-mnist"``, ``"fashion-mnist:PATH"``: IDX .gz files; val is 10 % of the training images;
            - ``"cifar10:PATH"``, ``"cifar100:PATH"``: the binary or the Python version, or image tables;
            - ``"folder:PATH"`` or the path alone: ``PATH/train/CLASS/*`` with val and test where present (or valid,
              validation, dev; training, testing; in any case), or ``PATH/CLASS/*``; missing: val 10 %, test 20 % of the
              training images;
            - ``"parquet:PATH"``: image tables, see `supernets.image_tables.read_tables`; missing splits as for folders;
            - ``"npz:PATH"``: arrays of any shape, see `supernets.arrays.read_arrays`; for networks of your own;
            - ``"fake"``, ``"fake:64x3x20"``: 1,000 seeded patterns, size x channels x classes; no files.
        seed: of the drawn splits, and of the images of ``fake``.
        augment: False shows images in training as they are. Better where each one is seen only a few times: what is
            learnt from shifted and mirrored images takes longer to learn. Arrays are never augmented.
        mirror: False leaves mirroring out of it: where left and right differ, as in text, signs and digits. The sets that
            come with digits or patterns never are mirrored.

    Raises:
        UserError: an unknown name, a missing path, a damaged file, fewer than two classes, or too few images of a class.
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(
            f"data is a {type(source).__name__}",
            allowed="The name of a data set, or the path of a folder: a run reads its images again by it",
            next_step="Keep arrays in a file: numpy.savez('images.npz', x=x, y=y), and give 'npz:images.npz'",
        )
    if type(seed) is not int or seed < 0:
        raise UserError(f"seed {seed!r}", allowed="A whole number from 0", next_step="Use for example seed 0")
    source = located(os.fspath(source))
    kind, _, path = source.partition(":")
    if kind == "npz" and path:
        data = _array_data(read_arrays(Path(path).expanduser()), source, seed)
    else:
        data = _image_data(source, seed)
    data = data if mirror else data.unmirrored()
    return data if augment else data.plain()


def _image_data(source: str, seed: int) -> ImageData:
    pool = read_pool(source, seed)
    rows = _split(pool, source, seed)
    train_pixels = pool.pixels.take(rows[0])
    mean, std = _channel_statistics(train_pixels, pool.size)
    labels = [torch.from_numpy(pool.labels[indices]) for indices in rows]
    pixels = [train_pixels, pool.pixels.take(rows[1]), pool.pixels.take(rows[2])]
    splits = [Split(images, numbers, mean, std) for images, numbers in zip(pixels, labels, strict=True)]
    return ImageData(
        name=pool.name,
        source=source,
        seed=seed,
        class_names=pool.class_names,
        channels=pool.pixels.channels,
        size=pool.size,
        mean=mean,
        std=std,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        held_out=tuple(pool.hold_out.items()),
        hash=value_hash([pool.content, list(pool.class_names), [indices.tolist() for indices in rows]]),
        notes=(*pool.notes, *_repeated(pool.keys, rows)),
    )


def _array_data(arrays: Arrays, source: str, seed: int) -> ImageData:
    rows = _split(arrays, source, seed)
    mean, std = array_statistics(arrays.values[rows[0]])
    splits = [ArraySplit(arrays.values[r], torch.from_numpy(arrays.labels[r]), mean, std) for r in rows]
    return ImageData(
        name=arrays.name,
        source=source,
        seed=seed,
        class_names=arrays.class_names,
        channels=splits[0].shape[0],
        size=splits[0].shape[-1],
        mean=mean,
        std=std,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        held_out=tuple(arrays.hold_out.items()),
        hash=value_hash([arrays.content, list(arrays.class_names), [indices.tolist() for indices in rows]]),
        notes=_repeated(arrays.keys, rows),
    )


def _repeated(keys: NDArray[np.int64], rows: Sequence[NDArray[np.int64]]) -> tuple[str, ...]:
    """Splits of which a notable part is in the training images, too."""
    found = []
    for name, indices in zip(PARTS[1:], rows[1:], strict=True):
        count = int(np.isin(keys[indices], keys[rows[0]]).sum())
        if count >= _REPEATED * len(indices):
            found.append(f"{count:,} of {len(indices):,} {name} images are training images, too: what they say is too good")
    return tuple(found)


def _split(pool: ImagePool | Arrays, source: str, seed: int) -> list[NDArray[np.int64]]:
    """Positions of the train, val and test images, ascending; each class is in each of them."""
    rng = np.random.default_rng(seed)
    part = pool.part.copy()
    for label, name in enumerate(pool.class_names):
        rows = rng.permutation(np.flatnonzero((pool.part == 0) & (pool.labels == label)))
        least = 1 + len(pool.hold_out)
        if len(rows) < least:
            raise UserError(
                f"class '{name}' of {source} has {len(rows)} training images",
                allowed=f"Each class needs {least} or more: one for each split that comes from the training images",
                next_step="Add images to the class, or remove it",
            )
        start = 0
        for split, share in pool.hold_out.items():
            count = max(1, round(share * len(rows)))
            part[rows[start : start + count]] = PARTS.index(split)
            start += count
    for number in (1, 2):
        counts = np.bincount(pool.labels[part == number], minlength=len(pool.class_names))
        if empty := [name for name, count in zip(pool.class_names, counts, strict=True) if not count]:
            raise UserError(
                f"class '{empty[0]}' of {source} has no {PARTS[number]} images",
                allowed="Each class is in each split",
                next_step="Add images of the class there, or remove that split: it is then drawn from the training images",
            )
    return [np.flatnonzero(part == number) for number in range(3)]


def _channel_statistics(pixels: Pixels, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the 0..1 scale: of every stored image, or of an even sample of files."""
    everything = np.arange(len(pixels))
    chosen = everything if isinstance(pixels, StoredPixels) else everything[:: -(-len(pixels) // _SAMPLED)]
    counts = np.zeros((pixels.channels, 256), np.int64)
    for start in range(0, len(chosen), 512):
        images = pixels.read(chosen[start : start + 512], size, None)  # (B, size, size, C)
        for channel in range(pixels.channels):
            counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)  # (C, 256)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())  # one grey level where a channel is constant
