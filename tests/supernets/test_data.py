"""Image data sets: disjoint splits, batches that depend on nothing but their arguments, bad input named."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.errors import UserError
from supernets import data_sources
from supernets.augment import FilePixels, ImageFile, StoredPixels, read_header
from supernets.data import ImageData, Split, load_data


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pattern(seed: int, width: int, height: int, channels: int = 3) -> Image.Image:
    """A smooth coloured (or grey) image of its own."""
    small = generator(seed).integers(0, 256, (5, 5, channels), np.uint8)
    return Image.fromarray(small.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


def write_images(
    folder: Path, count: int, *, seed: int = 0, size: tuple[int, int] = (40, 32), grey: bool = False, suffix: str = ".png"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pattern(seed * 1000 + k, *size, channels=1 if grey else 3).save(folder / f"{k:03d}{suffix}")


def make_folder(path: Path, *, parts: tuple[str, ...] = (), count: int = 10, classes: int = 2, **options: Any) -> Path:
    for p, part in enumerate(parts or ("",)):
        for label in range(classes):
            write_images(path / part / f"class_{label}", count, seed=10 * p + label, **options)
    return path


def splits(data: ImageData) -> list[Split]:
    return [data.train, data.val, data.test]


def everything(split: Split, resolution: int) -> torch.Tensor:
    return split.batch(range(len(split)), resolution)


SOURCES: dict[str, Callable[[Path], str]] = {
    "digits": lambda path: "digits",
    "fake": lambda path: "fake",
    "fake-colour": lambda path: "fake:20x3x7",
    "small-folder": lambda path: f"folder:{make_folder(path / 'small')}",
    "large-folder": lambda path: str(make_folder(path / "large", size=(150, 120), suffix=".jpg")),
}


@pytest.fixture(params=SOURCES)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> ImageData:
    return load_data(SOURCES[request.param](tmp_path), seed=3)


# ---- laws of every data set


def test_splits_hold_every_class_and_no_image_twice(data: ImageData) -> None:
    images = [everything(split, data.size) for split in splits(data)]
    distinct = torch.cat(images).flatten(1).unique(dim=0)
    assert len(distinct) == sum(len(split) for split in splits(data))  # none of these sources holds an image twice
    for split in splits(data):
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == (len(split),)
        assert split.labels.unique().tolist() == list(range(data.classes))


def test_batches_are_float_channels_last_at_any_resolution(data: ImageData) -> None:
    for resolution in (9, data.size, 41):
        for rng in (None, generator()):
            batch = data.train.batch([0, 3, 1], resolution, rng=rng)
            assert batch.shape == (3, data.channels, resolution, resolution)
            assert batch.dtype == torch.float32
            assert batch.is_contiguous(memory_format=torch.channels_last)
            assert batch.isfinite().all()


def test_equal_generators_give_equal_bits_and_others_do_not(data: ImageData) -> None:
    indices = np.arange(12)
    for resolution in (data.size, 24):
        first, again, other = (data.train.batch(indices, resolution, rng=generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_plain_data_are_shown_as_they_are_and_say_so(data: ImageData) -> None:
    plain = data.plain()
    for resolution in (16, 20):
        assert torch.equal(plain.train.batch([0, 3, 1], resolution, rng=generator()), data.train.batch([0, 3, 1], resolution))
    assert plain.hash == data.hash
    assert plain.identity() == {**data.identity(), "augment": False}
    assert "augment" not in data.identity()
    assert plain.to_dict()["augment"] is False


def test_no_global_generator_is_used(data: ImageData) -> None:
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002 (watched, not drawn from)
    data.train.batch([0, 1], 16, rng=generator())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002


def test_evaluation_does_not_depend_on_the_rest_of_the_batch(data: ImageData) -> None:
    whole = data.val.batch(torch.arange(len(data.val)), 20)
    assert torch.equal(whole, everything(data.val, 20))
    assert torch.equal(whole[1:2], data.val.batch([1], 20))


def test_training_images_are_normalised(data: ImageData) -> None:
    batch = everything(data.train, data.size)
    tolerance = 1e-3 if isinstance(data.train.pixels, StoredPixels) else 0.02
    assert batch.mean(dim=(0, 2, 3)).abs().max() < tolerance
    assert (batch.std(dim=(0, 2, 3)) - 1).abs().max() < tolerance


def test_the_same_call_gives_the_same_data_and_another_seed_other_splits(tmp_path: Path) -> None:
    for make in SOURCES.values():
        source = make(tmp_path)
        first, again, other = (load_data(source, seed=seed) for seed in (3, 3, 4))
        assert first.to_dict() == again.to_dict()
        assert first.hash != other.hash
        for split, repeated in zip(splits(first), splits(again), strict=True):
            assert torch.equal(split.labels, repeated.labels)
            assert torch.equal(everything(split, 12), everything(repeated, 12))


def test_summary_is_json_and_complete(data: ImageData) -> None:
    import json

    summary = json.loads(json.dumps(data.to_dict()))
    assert summary["images"] == {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    assert summary["hash"] == data.hash
    assert summary["seed"] == 3
    assert summary["source"] == data.source
    assert len(data.mean) == len(data.std) == data.channels
    assert data.classes == len(data.class_names)


# ---- the built-in sets


def test_digits_have_the_promised_shares() -> None:
    data = load_data("digits")
    assert (data.name, data.size, data.channels, data.classes) == ("digits", 28, 1, 10)
    assert [len(split) for split in splits(data)] == [1078, 269, 450]
    assert isinstance(data.train.pixels, StoredPixels)
    assert not data.train.pixels.flip  # a mirrored 2 is no digit
    for split, share in ((data.val, 0.15), (data.test, 0.25)):
        counts = torch.bincount(split.labels)
        whole = sum(torch.bincount(part.labels) for part in splits(data))
        assert ((counts / whole) - share).abs().max() < 0.005


def test_fake_images_can_be_told_apart_by_their_class() -> None:
    data = load_data("fake:16x3x5")
    assert (data.size, data.channels, data.classes) == (16, 3, 5)
    assert sum(map(len, splits(data))) == 1000
    train, test = everything(data.train, 16).flatten(1), everything(data.test, 16).flatten(1)
    centres = torch.stack([train[data.train.labels == label].mean(0) for label in range(5)])
    assert (torch.cdist(test, centres).argmin(1) == data.test.labels).float().mean() > 0.95


@pytest.mark.parametrize("shape", ["", "x", "4x1x10", "28x2x10", "28x1x1", "28x1", "999x3x10"])
def test_fake_refuses_other_shapes(shape: str) -> None:
    with pytest.raises(UserError, match="fake:SIZExCHANNELSxCLASSES"):
        load_data(f"fake:{shape}")


@pytest.mark.parametrize(("name", "hint"), [("digit", "digits"), ("cifar10", "cifar10:PATH"), ("folder:", "folder:PATH")])
def test_unknown_names_offer_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{hint}'"):
        load_data(name)


# ---- IDX and CIFAR files


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    for prefix, count in (("train", 200), ("t10k", 30)):
        images = generator(count).integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_idx_round_trip(fashion: Path) -> None:
    data = load_data(f"fashion-mnist:{fashion}")
    assert [len(split) for split in splits(data)] == [180, 20, 30]
    assert data.class_names[9] == "Ankle boot"
    assert data.held_out == (("val", 0.1),)
    official = generator(30).integers(0, 256, (30, 28, 28), np.uint8)
    assert np.array_equal(data.test.pixels.read(np.arange(30), 28, None)[..., 0], official)
    assert data.test.labels.tolist() == [k % 10 for k in range(30)]


def test_idx_errors(fashion: Path, tmp_path: Path) -> None:
    labels = fashion / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    for content in (whole[:20], b"not gzip", gzip.compress(b"\0\0\x08\x01\0\0"), gzip.compress(b"\0\0\x08\x03" + bytes(40))):
        labels.write_bytes(content)
        with pytest.raises(UserError, match=r"t10k-labels.* is damaged"):
            load_data(f"fashion-mnist:{fashion}")
    for wrong in (np.zeros(7, np.uint8), np.full(30, 11, np.uint8)):
        write_idx(labels, wrong)
        with pytest.raises(UserError, match="does not fit"):
            load_data(f"fashion-mnist:{fashion}")
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist"):
        load_data(f"fashion-mnist:{tmp_path / 'nowhere'}")


def cifar_arrays(count: int, classes: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return generator(seed).integers(0, 256, (count, 32, 32, 3), np.uint8), (np.arange(count) % classes).astype(np.uint8)


def write_cifar(path: Path, images: np.ndarray[Any, Any], *labels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    path.write_bytes(np.hstack([*(column[:, None] for column in labels), planes]).astype(np.uint8).tobytes())


def test_cifar10_binary_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    for k in range(1, 6):
        write_cifar(folder / f"data_batch_{k}.bin", *cifar_arrays(20, 10, k))
    images, labels = cifar_arrays(20, 10, 99)
    write_cifar(folder / "test_batch.bin", images, labels)
    (folder / "batches.meta.txt").write_text("\n".join(f"name{k}" for k in range(10)) + "\n\n")
    data = load_data(f"cifar10:{tmp_path}")
    assert load_data(f"cifar10:{folder}").hash == data.hash
    assert [len(split) for split in splits(data)] == [90, 10, 20]
    assert data.class_names[3] == "name3"
    assert np.array_equal(data.test.pixels.read(np.arange(20), 32, None), images)
    assert data.test.labels.tolist() == labels.tolist()
    write_cifar(folder / "test_batch.bin", images, labels + 100)
    with pytest.raises(UserError, match="label 109"):
        load_data(f"cifar10:{tmp_path}")
    (folder / "test_batch.bin").write_bytes(bytes(3074))
    with pytest.raises(UserError, match="no whole number"):
        load_data(f"cifar10:{tmp_path}")
    (folder / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"test_batch.bin is missing"):
        load_data(f"cifar10:{tmp_path}")


def test_cifar100_binary_reads_the_fine_label(tmp_path: Path) -> None:
    for name, seed in (("train.bin", 1), ("test.bin", 2)):
        images, labels = cifar_arrays(300, 100, seed)
        write_cifar(tmp_path / name, images, labels // 5, labels)
    data = load_data(f"cifar100:{tmp_path}")
    assert data.classes == 100
    assert data.test.labels.tolist() == [k % 100 for k in range(300)]


def test_cifar_python_version_is_read_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    train, test = cifar_arrays(100, 10, 1), cifar_arrays(20, 10, 2)

    class Reader:
        base_folder = "cifar-10-batches-py"

        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert Path(root) == tmp_path
            assert not download
            self.data, self.targets = parts[train][0], parts[train][1].tolist()
            self.classes = list("abcdefghij")

    parts = {True: train, False: test}
    with pytest.raises(UserError, match=r"no CIFAR10 in .*binary version"):  # the real reader: nothing there
        load_data(f"cifar10:{tmp_path}")
    monkeypatch.setattr(datasets, "CIFAR10", Reader)
    (tmp_path / Reader.base_folder).mkdir()
    for path in (tmp_path, tmp_path / Reader.base_folder):
        data = load_data(f"cifar10:{path}")
        assert data.class_names == tuple("abcdefghij")
        assert [len(split) for split in splits(data)] == [90, 10, 20]
        assert np.array_equal(data.test.pixels.read(np.arange(20), 32, None), test[0])


# ---- image folders


@pytest.mark.parametrize(
    ("parts", "sizes", "held_out"),
    [
        ((), [14, 2, 4], {"val": 0.1, "test": 0.2}),
        (("train",), [14, 2, 4], {"val": 0.1, "test": 0.2}),
        (("train", "val"), [16, 20, 4], {"test": 0.2}),
        (("train", "test"), [18, 2, 20], {"val": 0.1}),
        (("train", "val", "test"), [20, 20, 20], {}),
    ],
)
def test_folder_layouts(tmp_path: Path, parts: tuple[str, ...], sizes: list[int], held_out: dict[str, float]) -> None:
    data = load_data(str(make_folder(tmp_path / "photos", parts=parts)))
    assert [len(split) for split in splits(data)] == sizes
    assert data.to_dict()["held_out"] == held_out
    assert (data.name, data.size, data.channels, data.class_names) == ("photos", 32, 3, ("class_0", "class_1"))


def test_what_editors_and_systems_leave_is_no_image(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    before = load_data(str(folder))
    image = next((folder / "class_0").glob("*.png"))
    (folder / "class_0" / ".checkpoints").mkdir()
    shutil.copy(image, folder / "class_0" / ".checkpoints" / image.name)
    (folder / "class_0" / f"._{image.name}").write_bytes(b"no image")
    assert load_data(str(folder)).hash == before.hash


@pytest.mark.parametrize("names", [("train", "valid", "testing"), ("Train", "VAL", "Test"), ("training", "validation", "test")])
def test_splits_have_their_usual_names_in_any_case(tmp_path: Path, names: tuple[str, str, str]) -> None:
    usual = load_data(make_folder(tmp_path / "usual", parts=("train", "val", "test")))
    folder = make_folder(tmp_path / "photos", parts=("train", "val", "test"))
    for part, name in zip(("train", "val", "test"), names, strict=True):
        (folder / part).rename(folder / f"{name}_")
        (folder / f"{name}_").rename(folder / name)
    data = load_data(folder)
    assert data.class_names == usual.class_names
    assert not data.held_out
    for ours, theirs in zip(splits(data), splits(usual), strict=True):
        assert np.array_equal(ours.pixels.array, theirs.pixels.array)


def test_folders_that_are_no_splits_and_splits_that_are_no_data(tmp_path: Path) -> None:
    twice = make_folder(tmp_path / "twice", parts=("train", "val", "valid"))
    with pytest.raises(UserError, match="has val and valid, which are both val"):
        load_data(twice)
    without = make_folder(tmp_path / "without", parts=("val", "Test"))
    with pytest.raises(UserError, match="has val, Test and no train"):
        load_data(without)
    railway = make_folder(tmp_path / "railway", classes=2)
    (railway / "class_1").rename(railway / "train")
    assert load_data(railway).class_names == ("class_0", "train")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", parts=("train", "val"))
    assert not load_data(folder).notes
    make_folder(folder / "holdout")
    image = next((folder / "train" / "class_0").glob("*.png"))
    for name in ("a.gif", "b.gif", "c.heic"):
        shutil.copy(image, image.with_name(name))
    (folder / "train" / "class_1" / "more").symlink_to(folder / "holdout" / "class_1")
    (note,) = load_data(folder).notes
    assert note == f"left out of {folder}: 1 folder holdout, 2 .gif file, 1 .heic file, 1 linked folder"


def test_test_images_that_are_training_images_are_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", parts=("train",), count=20)
    shutil.copytree(folder / "train", folder / "test")
    notes = load_data(folder).notes
    assert notes == ("36 of 40 test images are training images, too: what they say is too good",)  # 4 of them score


def test_transparent_and_turned_images_are_what_a_viewer_shows(tmp_path: Path) -> None:
    """A black glyph on nothing is a black glyph on white; a portrait is upright, in training and in evaluation."""
    from PIL import ExifTags, ImageOps

    glyph = np.zeros((120, 160, 4), np.uint8)
    glyph[40:80, 40:80, 3] = 255
    for mode in ("RGBA", "LA"):
        for label in (0, 1):
            for k in range(6):
                place = tmp_path / mode / f"c{label}" / f"{k}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.roll(glyph, k, axis=1)).convert(mode).save(place)
        data = load_data(tmp_path / mode)
        assert data.channels == (3 if mode == "RGBA" else 1)
        pixels = data.train.pixels.read(np.arange(2), 64, None)
        assert pixels[:, 0, 0].min() == 255
        assert pixels.min() == 0
    scene = pattern(3, 160, 120)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for suffix, options in ((".jpg", {"quality": 95}), (".png", {})):
            file = tmp_path / f"{orientation}{suffix}"
            scene.save(file, exif=exif, **options)
            header = read_header(ImageFile(str(file)))
            shown = ImageOps.exif_transpose(Image.open(file))
            assert (header.width, header.height) == shown.size
            pixels = FilePixels((ImageFile(str(file)),), np.array([[header.width, header.height]]), 3, flip=False)
            square = pixels.stored(60).array[0].astype(int)
            side = min(shown.size)
            left, top = (shown.width - side) / 2, (shown.height - side) / 2
            wanted = shown.resize((60, 60), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
            assert np.array_equal(square, np.asarray(wanted))
            coarse = pixels.read(np.array([0]), 16, generator(orientation))
            assert coarse.shape == (1, 16, 16, 3)
            assert header.fingerprint.endswith(":shown") == (orientation != 1)


@pytest.mark.parametrize("tag", [9, 0, "upright", b"\x06", ValueError("damaged")])
def test_what_is_no_orientation_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: Any) -> None:
    from PIL import ExifTags

    def said(_image: Image.Image) -> dict[int, Any]:
        if isinstance(tag, Exception):
            raise tag
        return {ExifTags.Base.Orientation: tag}

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    monkeypatch.setattr(Image.Image, "getexif", said)
    pattern(1, 60, 40).save(tmp_path / "a.jpg", exif=exif)
    header = read_header(ImageFile(str(tmp_path / "a.jpg")))
    assert (header.width, header.height) == (60, 40)
    pixels = FilePixels((ImageFile(str(tmp_path / "a.jpg")),), np.array([[60, 40]]), 3, flip=False)
    assert pixels.read(np.array([0]), 16, None).shape == (1, 16, 16, 3)


def test_without_mirroring_left_stays_left(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    data, plain = load_data(folder), load_data(folder, mirror=False)
    assert data.mirrored
    assert not plain.mirrored
    assert plain.identity() == data.identity() | {"mirror": False}
    assert plain.hash == data.hash
    assert not plain.train.pixels.flip
    digits = load_data("digits", mirror=False)
    assert digits.identity() == load_data("digits").identity()  # they never are


@pytest.mark.parametrize(("source", "seed", "message"), [(np.zeros(3), 0, "data is a ndarray"), ("fake", -1, "seed -1")])
def test_what_is_no_source(source: object, seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(source, seed)


def test_a_change_behind_the_head_of_an_uncompressed_image_is_seen(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", size=(200, 200), suffix=".bmp")
    before = load_data(folder).hash
    file = next((folder / "class_0").glob("*.bmp"))
    content = bytearray(file.read_bytes())
    content[90_000] ^= 255
    file.write_bytes(content)
    assert load_data(folder).hash != before


def test_folder_agrees_with_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    make_folder(tmp_path, parts=("train", "val", "test"), classes=3, size=(32, 32))
    data, reference = load_data(f"folder:{tmp_path}"), ImageFolder(str(tmp_path / "train"))
    assert list(data.class_names) == reference.classes
    assert data.train.labels.tolist() == reference.targets
    images = np.stack([np.asarray(image) for image, _ in reference])
    assert np.array_equal(data.train.pixels.read(np.arange(len(data.train)), 32, None), images)


def test_small_images_are_stored_and_large_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", size=(300, 270), count=4)
    assert isinstance(load_data(str(small)).train.pixels, StoredPixels)
    data = load_data(str(large))
    assert isinstance(data.train.pixels, FilePixels)
    assert data.size == 256
    monkeypatch.setattr(data_sources, "STORED_BYTES", 1000)
    assert isinstance(load_data(str(small)).train.pixels, FilePixels)


def test_grey_folders_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    make_folder(tmp_path, grey=True)
    assert load_data(str(tmp_path)).channels == 1
    pattern(7, 40, 32).convert("RGBA").save(tmp_path / "class_0" / "colour.png")
    data = load_data(str(tmp_path))
    assert data.channels == 3
    assert everything(data.train, 16).shape[1] == 3


def test_hash_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first, copy = (load_data(str(make_folder(tmp_path / place))) for place in ("a", "b"))
    assert first.hash == copy.hash
    pattern(1234, 40, 32).save(tmp_path / "b" / "class_1" / "003.png")
    assert load_data(str(tmp_path / "b")).hash != first.hash
    (tmp_path / "a" / "class_1").rename(tmp_path / "a" / "renamed")
    assert load_data(str(tmp_path / "a")).hash != first.hash


def spoil_missing(path: Path) -> str:
    for file in (path / "test" / "class_1").iterdir():
        file.unlink()
    return "class_1 has no images"


def spoil_extra_class(path: Path) -> str:
    write_images(path / "val" / "another", 2)
    return "has other classes than .*: another"


def spoil_one_class(path: Path) -> str:
    for part in ("train", "val", "test"):
        (path / part / "class_1").rename(path / f"{part}_aside")
    return "has 1 class folders"


def spoil_no_classes(path: Path) -> str:
    (path / "train").rename(path / "val" / "class_0" / "aside")
    (path / "train").mkdir()
    return "has 0 class folders"


def spoil_header(path: Path) -> str:
    (path / "train" / "class_0" / "002.png").write_bytes(b"this is text")
    return "002.png cannot be read as an image"


def spoil_body(path: Path) -> str:
    file = path / "val" / "class_0" / "001.png"
    file.write_bytes(file.read_bytes()[:-60])
    return "001.png cannot be read as an image"


def spoil_depth(path: Path) -> str:
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(path / "test" / "class_0" / "004.png")
    return "004.png has more than 8 bits"


@pytest.mark.parametrize(
    "spoil",
    [spoil_missing, spoil_extra_class, spoil_one_class, spoil_no_classes, spoil_header, spoil_body, spoil_depth],
)
def test_bad_folders_are_named(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    message = spoil(make_folder(tmp_path, parts=("train", "val", "test")))
    with pytest.raises(UserError, match=message):
        load_data(f"folder:{tmp_path}")


def test_too_few_images_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class 'class_0' of .* has 2 training images.*3 or more"):
        load_data(str(make_folder(tmp_path / "few", count=2)))
    assert [len(s) for s in splits(load_data(str(make_folder(tmp_path / "enough", count=3))))] == [2, 2, 2]
    with pytest.raises(UserError, match="does not exist"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"no CIFAR100 in .*nowhere: it does not exist"):
        load_data(f"cifar100:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_large_images_that_were_cut_off_are_found_at_once(tmp_path: Path, suffix: str) -> None:
    load_data(str(make_folder(tmp_path, size=(200, 150), suffix=suffix)))
    file = sorted(tmp_path.rglob(f"*{suffix}"))[3]
    whole = file.read_bytes()
    file.write_bytes(whole + bytes(10_000))  # what some phones add behind the picture
    load_data(str(tmp_path))
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{file.name} cannot be read as an image"):
        load_data(str(tmp_path))


def test_damage_that_training_would_not_meet_is_found_before_it(tmp_path: Path) -> None:
    """In the middle of a test image that is decoded when it is needed: `nas.train` looks before it makes a folder."""
    import nas
    from nas.recipes import load_recipe

    folder = make_folder(tmp_path / "photos", parts=("train", "val", "test"), size=(150, 120), count=20)
    file = sorted((folder / "test" / "class_1").glob("*.png"))[3]
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 600] = bytes(600)
    file.write_bytes(content)
    data = load_data(folder)
    space = nas.space("small-mobilenet", width=0.25, image=64, classes=2).restrict(resolution=[40])
    with pytest.raises(UserError, match=f"{file.name} cannot be read as an image"):
        nas.train(nas.Supernet(space), data, out=tmp_path / "run", recipe=load_recipe("quick", epochs=8, batch=16))
    assert not (tmp_path / "run").exists()


def test_an_image_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path, size=(200, 150), suffix=".jpg")))
    for file in tmp_path.rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"\.jpg cannot be read as an image"):
        everything(data.train, 32)
