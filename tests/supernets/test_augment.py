"""Batches from stored pixels and from image files: what augmentation does, and that evaluation does nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from supernets import augment
from supernets.augment import FilePixels, ImageFile, StoredPixels, normalise, read_header, resize


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pattern(seed: int, width: int, height: int) -> Image.Image:
    """A smooth coloured image of its own."""
    return Image.fromarray(generator(seed).integers(0, 256, (5, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def test_each_image_is_shifted_by_its_own_offset_and_never_more_than_the_margin() -> None:
    image = generator().integers(1, 256, (16, 16, 1), np.uint8)  # never black, so that the margin shows
    pixels = StoredPixels(np.repeat(image[None], 200, axis=0), flip=False)
    moved = pixels.read(np.arange(200), 16, generator())
    canvas = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {canvas[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)}
    seen = {one.tobytes() for one in moved}
    assert seen <= windows
    assert len(seen) == 25


def test_images_are_mirrored_only_where_that_makes_sense() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 200  # bright left half
    for flip in (False, True):
        moved = StoredPixels(np.repeat(image[None], 400, axis=0), flip=flip).read(np.arange(400), 8, generator())
        bright_right = (moved[:, :, 4:].sum((1, 2, 3)) > moved[:, :, :4].sum((1, 2, 3))).mean()
        assert bright_right == 0 if not flip else 0.4 < bright_right < 0.6


def test_evaluation_of_stored_images_is_the_whole_image() -> None:
    images = generator().integers(0, 256, (4, 24, 24, 3), np.uint8)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    pixels = StoredPixels(images, flip=True)
    assert np.array_equal(pixels.read(np.arange(4), 24, None), images)
    for resolution in (11, 17, 40):
        exact = F.interpolate(planes, (resolution, resolution), mode="bilinear", antialias=resolution < 24)
        read = torch.from_numpy(pixels.read(np.arange(4), resolution, None)).permute(0, 3, 1, 2).float()
        assert (read - exact).abs().max() <= 1.01  # rounded once per direction


def test_normalise_is_the_textbook_formula() -> None:
    images = generator().integers(0, 256, (3, 6, 6, 3), np.uint8)
    mean, std = (0.1, 0.5, 0.6), (0.2, 0.3, 0.05)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    assert np.allclose(normalise(images, mean, std).permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_random_parts_lie_in_the_image_and_cover_what_is_published() -> None:
    sides = np.array([[200, 100], [90, 300], [128, 128]]).repeat(2000, axis=0)
    boxes = augment._random_parts(sides, generator())
    lengths = boxes[:, 2:] - boxes[:, :2]
    assert (boxes[:, :2] >= -1e-9).all()
    assert (boxes[:, 2:] <= sides + 1e-9).all()
    share, ratio = lengths.prod(axis=1) / sides.prod(axis=1), lengths[:, 0] / lengths[:, 1]
    assert 0.08 - 1e-9 <= share.min() < 0.1
    assert share[4000:].max() > 0.95
    assert 0.75 - 1e-9 <= ratio.min() < 0.8
    assert 1.3 < ratio.max() <= 4 / 3 + 1e-9
    long = augment._random_parts(np.array([[4000, 10]]), generator())  # no draw fits: the centre within the ratios
    assert np.allclose(long, [[2000 - 20 / 3, 0, 2000 + 20 / 3, 10]])


def test_evaluation_of_files_is_resize_and_centre_crop(tmp_path: Path) -> None:
    image = pattern(5, 320, 240)
    image.save(tmp_path / "a.png")
    pixels = FilePixels((ImageFile(str(tmp_path / "a.png")),), np.array([[320, 240]]), 3, flip=True)
    resized = image.resize((128 * 4 // 3, 128), Image.Resampling.BILINEAR)  # 128 = 112 / 0.875
    left = (resized.width - 112) / 2
    expected = np.asarray(resized.crop((round(left), 8, round(left) + 112, 120))).astype(int)
    read = pixels.read(np.array([0]), 112, None)[0].astype(int)
    assert np.abs(read - expected).mean() < 1.5


def test_a_jpeg_that_decodes_smaller_gives_nearly_the_same_pixels(tmp_path: Path) -> None:
    image = pattern(6, 640, 480)
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.png")
    sides = np.array([[640, 480]])
    jpeg, png = (FilePixels((ImageFile(str(tmp_path / name)),), sides, 3, flip=True) for name in ("a.jpg", "a.png"))
    for seed in (None, 0, 1, 2):
        a, b = (p.read(np.array([0]), 56, None if seed is None else generator(seed)) for p in (jpeg, png))
        assert np.abs(a.astype(int) - b.astype(int)).mean() < 3


def test_header_of_bytes_and_file_agree(tmp_path: Path) -> None:
    pattern(1, 30, 20).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert read_header(ImageFile(str(tmp_path / "a.png"))) == read_header(ImageFile("row 0", content))


def test_resize_keeps_what_has_the_right_size() -> None:
    images = generator().integers(0, 256, (2, 10, 10, 1), np.uint8)
    assert resize(images, 10) is images
    assert resize(images, 5).shape == (2, 5, 5, 1)
