"""From stored images or image files to normalised batches, with and without training augmentation.

Two kinds of image sets with one interface (`Pixels`). Small images are kept decoded in memory and shifted by a few
pixels; larger ones are decoded for every batch and cropped at random. Pixels are (B, H, W, C) arrays: as a tensor
that is the channels_last format without a copy, and windows of single images are plain slices.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from search_spaces.errors import UserError

__all__ = ["FilePixels", "ImageFile", "ImageHeader", "Pixels", "StoredPixels", "normalise", "read_header", "resize"]

CENTRE = 0.875  # of the shorter side: what evaluation sees of photographs
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what files of these formats have at their end
_TAIL = 4096  # bytes in which it is looked for
_HEAD = 1 << 16  # bytes at both ends that a fingerprint sees
_CHECKED = 512  # images at a time
_SAYS_MORE = frozenset({"exif", "xmp", "Raw profile type exif"})
_ORIENTATIONS = 8
_TURNED = 5  # EXIF orientations from here on change width and height
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)  # what PIL raises
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_COMPRESSED = frozenset({"JPEG", "PNG", "WEBP"})  # of others a change may leave all but its own place as it was


class Pixels(Protocol):
    """A set of images that can be read in batches."""

    def __len__(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def flip(self) -> bool:
        """Whether half of the images are mirrored in training."""
        ...

    @property
    def preparation(self) -> dict[str, Any]:
        """How an image becomes R x R where nothing is random.

        ``share`` of the shorter side, in the centre, is scaled; before it the whole square to ``stored`` px, where given.
        """
        ...

    def take(self, indices: NDArray[np.int64]) -> Pixels:
        """The images at these positions, as a set of their own."""
        ...

    def unmirrored(self) -> Pixels:
        """The same images, never mirrored."""
        ...

    def read(self, indices: NDArray[np.int64], resolution: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """(B, R, R, C), augmented with draws from ``rng`` when it is given, otherwise always the same."""
        ...


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Decoded images in memory.

    Training: each image moves by up to an eighth of its side in each direction (4 px for 32, the usual "pad and crop"),
    black comes in at the edges, and half of them are mirrored where ``flip``. Evaluation: the whole image.

    Attributes:
        array: (N, S, S, C) uint8.
        flip: whether a mirrored image still is one of its class.
    """

    array: NDArray[np.uint8]
    flip: bool

    def __len__(self) -> int:
        return len(self.array)

    @property
    def channels(self) -> int:
        return int(self.array.shape[3])

    @property
    def preparation(self) -> dict[str, Any]:
        return {"share": 1.0, "stored": self.array.shape[1]}

    def take(self, indices: NDArray[np.int64]) -> StoredPixels:
        return StoredPixels(self.array[indices], self.flip)

    def unmirrored(self) -> StoredPixels:
        return replace(self, flip=False)

    def read(self, indices: NDArray[np.int64], resolution: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        images = self.array[indices]
        return resize(images if rng is None else _shift(images, self.flip, rng), resolution)


def _shift(images: NDArray[np.uint8], flip: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Move each (S, S, C) image by its own offset and mirror about half of them."""
    count, side, _, channels = images.shape
    pad = max(1, round(side / 8))
    canvas = np.zeros((count, side + 2 * pad, side + 2 * pad, channels), np.uint8)
    canvas[:, pad:-pad, pad:-pad] = images
    tops, lefts = rng.integers(0, 2 * pad + 1, size=(2, count)).tolist()
    mirrored = _mirrored(count, flip, rng)
    moved = np.empty_like(images)
    for k in range(count):  # slices of single images: 1.3 to 1.9 times as fast as one gather over an unfolded view
        window = canvas[k, tops[k] : tops[k] + side, lefts[k] : lefts[k] + side]
        moved[k] = window[:, ::-1] if mirrored[k] else window
    return moved


def _mirrored(count: int, flip: bool, rng: np.random.Generator) -> list[bool]:
    draws: list[bool] = (rng.random(count) < 0.5).tolist() if flip else [False] * count
    return draws


def resize(images: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """(B, H, W, C) to (B, R, R, C), bilinear, with antialiasing when it shrinks.

    On uint8: within about one grey level of the float result, and 3 to 10 times as fast for three channels.
    """
    if images.shape[1:3] == (resolution, resolution):
        return images
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)  # (B, C, H, W)
    resized = F.interpolate(planes, (resolution, resolution), mode="bilinear", antialias=True)
    result: NDArray[np.uint8] = resized.permute(0, 2, 3, 1).numpy()
    return result


def normalise(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(B, R, R, C) uint8 to (B, C, R, R) float32 in channels_last; mean and std per channel on the 0..1 scale."""
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    channels, width = planes.shape[1], planes.shape[3]

    def row(values: list[float]) -> torch.Tensor:  # a whole row per factor: 5 times as fast as one number per channel
        wide = torch.tensor(values).view(1, channels, 1, 1).expand(1, channels, 1, width)
        return wide.contiguous(memory_format=torch.channels_last)

    scale = row([1 / (255 * s) for s in std])
    offset = row([-m / s for m, s in zip(mean, std, strict=True)])
    return planes.mul_(scale).add_(offset)


class ImageFile(NamedTuple):
    """One encoded image: its bytes, or a file that is read each time.

    Attributes:
        origin: the path, or for bytes where they are from; messages name it.
        content: the encoded bytes; absent for a file.
    """

    origin: str
    content: bytes | None = None


class ImageHeader(NamedTuple):
    """What is known of an image without decoding it: size in px (upright), colour, a fingerprint of its encoded bytes."""

    width: int
    height: int
    grey: bool
    fingerprint: str


def read_header(file: ImageFile) -> ImageHeader:
    """The header of one image.

    The fingerprint is the length in bytes and a checksum of the first and of the last 64 KiB (of everything, where the format
    does not compress): photographs need not be read whole. One that does not end as its format does may have been cut
    off, and is decoded to find out: training must not find it hours later.

    Raises:
        UserError: not an image, one that was cut off, or more than 8 bits a channel.
    """
    with _opened(file) as (image, stream):
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise UserError(
                f"{file.origin} has more than 8 bits a pixel (mode {image.mode})",
                allowed="Images have 8 bits a channel, grey or colour",
                next_step="Convert it to 8 bits, or remove it",
            )
        width, height = image.size if _orientation(image) < _TURNED else image.size[::-1]
        grey = image.mode in _GREY_MODES
        length = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        fingerprint = f"{length}:{zlib.crc32(stream.read(_HEAD)):08x}"
        if length > _HEAD:
            if image.format in _COMPRESSED:
                stream.seek(max(_HEAD, length - _HEAD))
            fingerprint += f":{zlib.crc32(stream.read()):08x}"
        if _orientation(image) != 1 or image.has_transparency_data:
            fingerprint += ":shown"  # earlier versions showed these otherwise: their runs are not to go on with other pixels
        stream.seek(max(0, length - _TAIL))
        if _ENDS.get(image.format or "", b"") not in stream.read():
            image.load()  # others put something of their own behind the end
        return ImageHeader(width, height, grey, fingerprint)


def _orientation(image: Image.Image) -> int:
    """How the camera was held, as EXIF counts it: 1 upright, 5 and more on its side. PIL turns TIFF files itself."""
    if image.format == "TIFF" or not _SAYS_MORE & image.info.keys():  # without any, PIL would decode a PNG to its end for it
        return 1
    try:
        said = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 (the picture may be fine where what is said of it is not)
        return 1
    return said if type(said) is int and 1 <= said <= _ORIENTATIONS else 1


@contextmanager
def _opened(file: ImageFile) -> Iterator[tuple[Image.Image, Any]]:
    """The image and its byte stream; whatever is wrong with them becomes a UserError that names the file."""
    try:
        with (
            Path(file.origin).open("rb") if file.content is None else BytesIO(file.content) as stream,
            Image.open(stream) as image,
        ):
            yield image, stream
    except _BROKEN as error:
        raise UserError(
            f"{file.origin} cannot be read as an image ({error})",
            allowed="Every image of a data set can be decoded",
            next_step="Restore it from a copy, or remove it",
        ) from None


def _decode(
    file: ImageFile, box: NDArray[np.float64], resolution: int, channels: int, *, coarse: bool = False
) -> NDArray[np.uint8]:
    """(R, R, C): the part of an image inside box = (left, top, right, bottom) in px, resized with antialiasing.

    Args:
        coarse: a JPEG may be decoded at a half, a quarter or an eighth of its size, no smaller than needed: up to 4 times as
            fast for photographs, and 1 to 3 grey levels away from what any other program makes of it.
    """
    mode = "RGB" if channels == 3 else "L"
    with _opened(file) as (image, _):
        turned = _orientation(image) >= _TURNED
        full = np.array(image.size[::-1] if turned else image.size)
        if coarse:
            wanted = np.ceil(full * resolution / (box[2:] - box[:2])).astype(int).tolist()
            image.draft(mode, (wanted[1], wanted[0]) if turned else (wanted[0], wanted[1]))
        upright = _upright(image, mode)
        left, top, right, bottom = np.minimum(box * np.tile(upright.size / full, 2), [*upright.size] * 2).tolist()
        resized = upright.resize((resolution, resolution), Image.Resampling.BILINEAR, (left, top, right, bottom))
        return np.asarray(resized).reshape(resolution, resolution, channels)


def _upright(image: Image.Image, mode: str) -> Image.Image:
    """The image as a viewer shows it on white paper, in a mode."""
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        image = paper
    return image if image.mode == mode else image.convert(mode)


@dataclass(frozen=True, eq=False)
class FilePixels:
    """Images that are decoded for every batch, in a few threads.

    Training: a random part of the image, 8 % to 100 % of its area with sides between 3:4 and 4:3 (Szegedy et al. 2015,
    "Going deeper with convolutions"), half of them mirrored where ``flip``. Evaluation: shorter side to R / 0.875, the
    centre R x R.

    Attributes:
        files: N encoded images.
        sides: (N, 2) width and height in px.
        channels: 1 or 3; other images are converted.
        flip: whether a mirrored image still is one of its class.
    """

    files: tuple[ImageFile, ...]
    sides: NDArray[np.int64]
    channels: int
    flip: bool

    def __len__(self) -> int:
        return len(self.files)

    @property
    def preparation(self) -> dict[str, Any]:
        return {"share": CENTRE}

    def take(self, indices: NDArray[np.int64]) -> FilePixels:
        return FilePixels(tuple(self.files[i] for i in indices.tolist()), self.sides[indices], self.channels, self.flip)

    def unmirrored(self) -> FilePixels:
        return replace(self, flip=False)

    def read(self, indices: NDArray[np.int64], resolution: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        sides = self.sides[indices]
        if rng is None:
            return self._decoded(indices, _centre(sides, resolution / math.ceil(resolution / CENTRE)), resolution)
        images = self._decoded(indices, _random_parts(sides, rng), resolution, coarse=True)
        mirrored = np.array(_mirrored(len(indices), self.flip, rng), dtype=bool)
        images[mirrored] = images[mirrored, :, ::-1]
        return images

    def check(self) -> None:
        """Decode every image once.

        Raises:
            UserError: one is damaged.
        """
        for start in range(0, len(self), _CHECKED):
            indices = np.arange(start, min(start + _CHECKED, len(self)))
            self._decoded(indices, _centre(self.sides[indices], 1.0), 8, coarse=True)

    def stored(self, side: int) -> StoredPixels:
        """All images decoded once: shorter side to ``side`` px, the centre square.

        In one thread: with images as small as the stored ones, several threads only wait for Python's lock (2 x slower).
        """
        images = np.empty((len(self), side, side, self.channels), np.uint8)
        for k, (file, box) in enumerate(zip(self.files, _centre(self.sides, 1.0), strict=True)):
            images[k] = _decode(file, box, side, self.channels)
        return StoredPixels(images, self.flip)

    def _decoded(
        self, indices: NDArray[np.int64], boxes: NDArray[np.float64], resolution: int, *, coarse: bool = False
    ) -> NDArray[np.uint8]:
        decode = partial(_decode, resolution=resolution, channels=self.channels, coarse=coarse)
        images = np.empty((len(indices), resolution, resolution, self.channels), np.uint8)
        files = [self.files[i] for i in indices.tolist()]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # a pool costs far less than a batch: none is kept
            for k, image in enumerate(pool.map(decode, files, boxes)):
                images[k] = image
        return images


def _centre(sides: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """(B, 4) centre squares whose side is a share of the shorter side."""
    length = sides.min(axis=1, keepdims=True) * share  # (B, 1)
    return np.hstack([(sides - length) / 2, (sides + length) / 2])


def _random_parts(sides: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(B, 4) boxes: the first of ten draws that fits in the image, else the largest centre part within the side ratios."""
    draws = (10, len(sides))
    areas = sides.prod(axis=1) * rng.uniform(0.08, 1.0, draws)
    ratios = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), draws))
    candidates = np.sqrt(np.stack([areas * ratios, areas / ratios], axis=-1))  # (10, B, 2) width and height
    places = rng.random((len(sides), 2))
    fits = (candidates <= sides).all(axis=-1)  # (10, B)
    chosen = candidates[fits.argmax(axis=0), np.arange(len(sides))]
    largest = np.minimum(sides, sides[:, ::-1] * 4 / 3)
    none = ~fits.any(axis=0)[:, None]
    lengths = np.where(none, largest, chosen)
    start = np.where(none, 0.5, places) * (sides - lengths)
    return np.hstack([start, start + lengths])
