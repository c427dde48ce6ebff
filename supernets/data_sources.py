"""Where images come from: one reader per kind of data set, each giving one `ImagePool`."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.artifacts import value_hash
from search_spaces.errors import UserError, unknown_name
from supernets.augment import FilePixels, ImageFile, Pixels, StoredPixels, read_header, resize
from supernets.image_tables import read_tables
from supernets.packed import gunzip

__all__ = ["PARTS", "ImagePool", "located", "read_pool", "row_hashes"]

PARTS = ("train", "val", "test")
WITH_PATH = ("cifar10", "cifar100", "fashion-mnist", "folder", "npz", "parquet")
WITHOUT_PATH = ("digits", "fake", "fashion-mnist")
SPLIT_NAMES = {  # of folders, in any case: what common layouts call them
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
HOLD_OUT = {"val": 0.1, "test": 0.2}  # shares of the given training images, where a split is not given
STORED_SIDE = 96  # px: larger images gain from random crops of the original, so they are decoded per batch
STORED_BYTES = 2 << 30
LARGEST_SIDE = 256  # px: networks rarely see more, and photographs come in any size
SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, eq=False)
class ImagePool:
    """All images of a data set, before training images are held out.

    Attributes:
        name: short name of the data set.
        pixels: the N images.
        labels: (N,) int64, each below the number of classes.
        part: (N,) index into `PARTS`, as the source gives it.
        hold_out: the splits that the source does not give, and their share of the given training images.
        class_names: one name per label.
        size: native side in px.
        content: hash of images and labels.
        keys: (N,) the same number for images that are the same, within this process.
        notes: what was left out, in words.
    """

    name: str
    pixels: Pixels
    labels: NDArray[np.int64]
    part: NDArray[np.int64]
    hold_out: Mapping[str, float]
    class_names: tuple[str, ...]
    size: int
    content: str
    keys: NDArray[np.int64]
    notes: tuple[str, ...] = ()


def located(source: str) -> str:
    """The source with its path written out: it is kept with a run, which may be used from any folder."""
    name, _, rest = source.partition(":")
    if name in WITH_PATH and rest:
        return f"{name}:{Path(rest).expanduser().resolve()}"
    given = Path(source).expanduser()
    return f"folder:{given.resolve()}" if not rest and name not in WITHOUT_PATH and given.is_dir() else source


def read_pool(source: str, seed: int) -> ImagePool:
    """Read the data set that a source names; see `supernets.data.load_data`.

    Raises:
        UserError: an unknown name, a missing path, or files that are not what the source says.
    """
    name, colon, rest = source.partition(":")
    if name == "digits" and not colon:
        return _digits()
    if name == "fake":
        return _fake(rest if colon else "28x1x10", seed)
    if name == "fashion-mnist":
        return _fashion_mnist(Path(rest if colon else "/usr/share/datasets/fashion-mnist"))
    readers: dict[str, Callable[[Path], ImagePool]] = {
        "cifar10": _cifar10,
        "cifar100": _cifar100,
        "folder": _folder,
        "parquet": _parquet,
    }
    if name in readers and rest:
        return readers[name](Path(rest).expanduser())
    if Path(source).expanduser().is_dir():
        return _folder(Path(source).expanduser())
    known = ["digits", "fake", "fake:SIZExCHANNELSxCLASSES", "fashion-mnist", "fashion-mnist:PATH", "npz:PATH"]
    raise unknown_name("data set", source, [*known, *(f"{r}:PATH" for r in readers)], command="nas train-supernet --help")


def _stored(
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    part: NDArray[np.int64],
    *,
    hold_out: Mapping[str, float],
    class_names: Sequence[str],
    flip: bool,
) -> ImagePool:
    """A pool of decoded square images (N, S, S, C)."""
    digest = hashlib.sha256(str(images.shape).encode())
    for array in (images, labels, part):
        digest.update(np.ascontiguousarray(array).data)
    pixels, keys = StoredPixels(np.ascontiguousarray(images), flip), row_hashes(images)
    return ImagePool(name, pixels, labels, part, hold_out, tuple(class_names), images.shape[1], digest.hexdigest(), keys)


def row_hashes(rows: NDArray[np.generic]) -> NDArray[np.int64]:
    """(N,) the same number for rows with the same bytes, within this process."""
    return np.array([hash(row.tobytes()) for row in rows], np.int64)


def _digits() -> ImagePool:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    labels = bunch.target.astype(np.int64)
    names = [str(digit) for digit in range(10)]
    part = np.zeros(len(labels), np.int64)
    hold_out = {"val": 0.15, "test": 0.25}
    return _stored("digits", resize(grey, 28), labels, part, hold_out=hold_out, class_names=names, flip=False)


def _fake(shape: str, seed: int) -> ImagePool:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape)
    size, channels, classes = (int(text) for text in match.groups()) if match else (0, 0, 0)
    if not (8 <= size <= 256 and channels in (1, 3) and 2 <= classes <= 100):
        raise UserError(
            f"'fake:{shape}' is not a shape of images",
            allowed="It is fake:SIZExCHANNELSxCLASSES with a size of 8 to 256 px, 1 or 3 channels and 2 to 100 classes",
            next_step="Use for example fake:32x3x10",
        )
    rng = np.random.default_rng(seed)
    labels = np.arange(1000, dtype=np.int64) % classes
    templates = resize(rng.integers(64, 192, (classes, 4, 4, channels), np.uint8), size)
    images = np.empty((len(labels), size, size, channels), np.uint8)
    for k, label in enumerate(labels):
        images[k] = np.clip(templates[label] + rng.normal(0.0, 32.0, templates.shape[1:]), 0, 255)
    names = [f"pattern {label}" for label in range(classes)]
    part = np.zeros(len(labels), np.int64)
    return _stored(f"fake-{shape}", images, labels, part, hold_out=HOLD_OUT, class_names=names, flip=False)


def _fashion_mnist(folder: Path) -> ImagePool:
    images, labels, part = [], [], []
    for number, prefix in ((0, "train"), (2, "t10k")):
        images.append(_idx(folder.expanduser() / f"{prefix}-images-idx3-ubyte.gz", 3))
        labels.append(_idx(folder.expanduser() / f"{prefix}-labels-idx1-ubyte.gz", 1).astype(np.int64))
        part.append(np.full(len(labels[-1]), number, np.int64))
        if len(images[-1]) != len(labels[-1]) or images[-1].shape[1] != images[-1].shape[2] or labels[-1].max(initial=0) > 9:
            raise _damaged(folder / f"{prefix}-labels-idx1-ubyte.gz", "it does not fit to the images beside it")
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    pixels = np.concatenate(images)[..., None]
    given = np.concatenate(labels), np.concatenate(part)
    return _stored("fashion-mnist", pixels, *given, hold_out={"val": 0.1}, class_names=names, flip=True)


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """One array of unsigned bytes in the gzipped IDX format: 0, 0, 8, rank, the shape as big-endian uint32, the data."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist",
            allowed="Fashion-MNIST is a folder with the four IDX .gz files, given as fashion-mnist or fashion-mnist:PATH",
            next_step="Get it with: apt-get install dataset-fashion-mnist",
        )
    try:
        raw = gunzip(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, str(error)) from None
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise _damaged(path, f"it is not an IDX file of bytes with {dimensions} dimensions")
    shape = np.frombuffer(raw[4:start], ">u4").astype(np.int64)
    if len(raw) - start != shape.prod():
        raise _damaged(path, f"{len(raw) - start} bytes do not fill the shape {shape.tolist()}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is damaged: {why}", allowed="Its content fits to its format", next_step="Restore it from its origin"
    )


def _cifar10(path: Path) -> ImagePool:
    files = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
    return _cifar("CIFAR10", path, ("cifar-10-batches-bin", "batches.meta.txt", files))


def _cifar100(path: Path) -> ImagePool:
    files = {"train": ["train.bin"], "test": ["test.bin"]}
    return _cifar("CIFAR100", path, ("cifar-100-binary", "fine_label_names.txt", files))


def _cifar(kind: str, path: Path, binary: tuple[str, str, dict[str, list[str]]]) -> ImagePool:
    """The binary version where present, then image tables, then the Python version through torchvision."""
    folder, names_file, files = binary
    for place in (path, path / folder):
        if (place / files["train"][0]).is_file():
            return _cifar_binary(kind, place, names_file, files)
    if "*" not in path.name and not path.exists():
        raise _no_cifar(kind, path, "it does not exist")
    if path.is_dir() and any(path.glob(f"{kind.lower()}*.parquet")):  # the folder may hold other sets, too
        return _parquet(path / f"{kind.lower()}*.parquet", name=kind.lower())
    if not path.is_dir() or any(path.glob("*.parquet")):
        return _parquet(path, name=kind.lower())
    return _cifar_python(kind, path)


def _cifar_binary(kind: str, folder: Path, names_file: str, files: dict[str, list[str]]) -> ImagePool:
    """Records of one label byte (two for CIFAR-100, the fine one last) and 3 x 32 x 32 bytes."""
    classes, head = (10, 1) if kind == "CIFAR10" else (100, 2)
    records, part = [], []
    for number, split in ((0, "train"), (2, "test")):
        for name in files[split]:
            if not (folder / name).is_file():
                raise _no_cifar(kind, folder, f"{name} is missing")
            raw = np.fromfile(folder / name, np.uint8)
            if raw.size == 0 or raw.size % (head + 3072):
                raise _damaged(folder / name, f"{raw.size} bytes are no whole number of {head + 3072}-byte records")
            records.append(raw.reshape(-1, head + 3072))
            part.append(np.full(len(records[-1]), number, np.int64))
    table = np.concatenate(records)
    labels = table[:, head - 1].astype(np.int64)
    if labels.max() >= classes:
        raise _damaged(folder, f"label {labels.max()} in a set of {classes} classes")
    meta = folder / names_file
    names = [str(label) for label in range(classes)]
    if meta.is_file():
        names = meta.read_text(encoding="utf-8", errors="replace").split()[:classes]
        if len(set(names)) != classes:
            raise _damaged(meta, f"it names {len(set(names))} classes, not {classes}")
    images = table[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _stored(kind.lower(), images, labels, np.concatenate(part), hold_out={"val": 0.1}, class_names=names, flip=True)


def _cifar_python(kind: str, path: Path) -> ImagePool:
    """torchvision compares checksums of these pickles with the published ones before it opens them."""
    reader = getattr(importlib.import_module("torchvision.datasets"), kind)
    root = path.parent if path.name == reader.base_folder else path
    try:
        train, test = (reader(str(root), train=train, download=False) for train in (True, False))
    except RuntimeError as error:
        raise _no_cifar(kind, path, str(error).splitlines()[0].rstrip(".")) from None
    labels = np.array([*train.targets, *test.targets], np.int64)
    part = np.repeat(np.array([0, 2]), [len(train.targets), len(test.targets)])
    images = np.concatenate([train.data, test.data])
    return _stored(kind.lower(), images, labels, part, hold_out={"val": 0.1}, class_names=train.classes, flip=True)


def _no_cifar(kind: str, path: Path, why: str) -> UserError:
    number = kind.removeprefix("CIFAR")
    return UserError(
        f"no {kind} in {path}: {why}",
        allowed="The folder holds the binary version, the Python version, or image tables *train*.parquet, *test*.parquet",
        next_step=f"Unpack cifar-{number}-binary.tar.gz there and give that folder",
    )


def _folder(path: Path) -> ImagePool:
    """PATH/train/CLASS/*, with val and test where present, or PATH/CLASS/* alone."""
    if not path.is_dir():
        raise _bad_folder(path, "does not exist")
    left_out: Counter[str] = Counter()
    roots = _split_roots(path, left_out)
    names = _class_folders(roots["train"])
    if len(names) < 2:
        raise _bad_folder(roots["train"], f"has {len(names)} class folders, and two are the least")
    paths: list[Path] = []
    labels: list[int] = []
    part: list[int] = []
    for split, root in roots.items():
        if different := sorted(set(names) ^ set(_class_folders(root))):
            raise _bad_folder(root, f"has other classes than {roots['train']}: {', '.join(different[:5])} in one of them only")
        for label, name in enumerate(names):
            found = _images_in(root / name, left_out)
            if not found:
                raise _bad_folder(root / name, "has no images")
            paths += found
            labels += [label] * len(found)
            part += [PARTS.index(split)] * len(found)
    files = [ImageFile(str(file)) for file in paths]
    origins = [file.relative_to(path).as_posix() for file in paths]
    pool = _encoded(path.resolve().name, files, np.array(labels), np.array(part), class_names=names, origins=origins)
    notes = (f"left out of {path}: {', '.join(f'{n:,} {what}' for what, n in left_out.items())}",) if left_out else ()
    return replace(pool, notes=notes)


def _split_roots(path: Path, left_out: Counter[str]) -> dict[str, Path]:
    """The folders of the splits by their usual names, in any case; ``path`` itself where the classes lie in it.

    A folder ``train`` without class folders in it is a class like any other.
    """
    inside = {name: path / name for name in _class_folders(path)}
    found = {part: [inside[name] for name in inside if name.lower() in known] for part, known in SPLIT_NAMES.items()}
    holding = [part for part, places in found.items() if any(_class_folders(place) for place in places)]
    if not holding:
        return {"train": path}
    if "train" not in holding and found["train"]:
        raise _bad_folder(found["train"][0], "has 0 class folders, and two are the least")
    if "train" not in holding:
        raise _bad_folder(path, f"has {', '.join(place.name for part in holding for place in found[part])} and no train")
    for part, places in found.items():
        if len(places) > 1:
            raise _bad_folder(path, f"has {' and '.join(place.name for place in places)}, which are both {part}")
    used = {place.name for places in found.values() for place in places}
    left_out.update(f"folder {name}" for name in inside if name not in used)
    return {part: places[0] for part, places in found.items() if places}


def _images_in(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Files that are images by their suffix, in order. The rest is counted, but for what is hidden or systems leave."""
    found = []
    for place, folders, files in os.walk(folder):
        left_out.update("linked folder" for name in folders if Path(place, name).is_symlink() and not name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(place, name) for name in files if not name.startswith(".") and name not in SYSTEM_FILES):
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
                found.append(file)
            else:
                left_out[f"{file.suffix or 'other'} file"] += 1
    return sorted(found)


def _class_folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _bad_folder(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} {why}",
        allowed="An image folder is PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg with val and test of the same classes",
        next_step="Put each class in a folder of its own, rename the folders of the splits, and give folder:PATH",
    )


def _encoded(
    name: str,
    files: Sequence[ImageFile],
    labels: NDArray[np.int64],
    part: NDArray[np.int64],
    *,
    class_names: Sequence[str],
    origins: Sequence[str],
) -> ImagePool:
    """A pool of encoded images: decoded now when they are small, else per batch."""
    headers = [read_header(file) for file in files]
    sides = np.array([[header.width, header.height] for header in headers], np.int64)
    channels = 1 if all(header.grey for header in headers) else 3
    size = min(int(np.median(sides[part == 0].min(axis=1))), LARGEST_SIDE)
    encoded = FilePixels(tuple(files), sides, channels, flip=True)
    small = size <= STORED_SIDE and len(files) * size * size * channels <= STORED_BYTES
    pixels: Pixels = encoded.stored(size) if small else encoded
    content = value_hash([list(origins), [header.fingerprint for header in headers], labels.tolist(), part.tolist()])
    hold_out = {split: share for split, share in HOLD_OUT.items() if PARTS.index(split) not in part}
    keys = np.array([hash(header.fingerprint) for header in headers], np.int64)
    return ImagePool(name, pixels, labels, part, hold_out, tuple(class_names), size, content, keys)


def _parquet(path: Path, *, name: str | None = None) -> ImagePool:
    tables = read_tables(path)
    pool = _encoded(
        name or tables.name, tables.files, tables.labels, tables.part, class_names=tables.class_names, origins=tables.origins
    )
    return replace(pool, notes=tables.notes)
