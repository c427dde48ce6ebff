"""The guides' code runs as written, in order, in a fresh folder."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from supernets import load_data
from supernets.augment import FilePixels, ImageFile

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_guides_preparation_is_that_of_evaluation(tmp_path: Path) -> None:
    """Small images are stored first, photographs are not; both may lie on their side, and have transparent parts."""
    code = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    source = re.search(r"^from PIL import Image, ImageOps\n+def prepared.*?(?=^\()", code, re.MULTILINE | re.DOTALL)
    assert source is not None
    known: dict[str, Any] = {"np": np}
    exec(source[0], known)  # noqa: S102 (what a reader copies)
    for size, orientation, mode in ((60, 1, "RGB"), (60, 6, "L"), (300, 8, "RGB"), (300, 1, "RGBA"), (300, 3, "L")):
        folder = tmp_path / f"{size}{mode}{orientation}"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for k in range(6):
            noise = np.random.default_rng(k).integers(0, 256, (9, 9, len(mode)), np.uint8).squeeze()
            place = folder / f"c{k % 2}" / f"{k}.{'png' if mode == 'RGBA' else 'jpg'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).resize((size + 20 * k, size)).save(place, exif=exif)
        pixels = load_data(folder).test.pixels
        files = pixels.files if isinstance(pixels, FilePixels) else None
        for side in (32, 47):
            ours = pixels.read(np.arange(len(pixels)), side, None).astype(int)
            if files is None:  # decoded already: every file is tried
                files = [ImageFile(str(file)) for file in sorted(folder.rglob("*.*"))]
            theirs = [known["prepared"](Image.open(file.origin), side, pixels.channels, **pixels.preparation) for file in files]
            for image in ours:
                assert min(np.abs(image - other).max() for other in theirs) <= 1


@pytest.mark.slow
def test_the_readmes_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"__name__": "__readme__"}
    exec(first, known)  # noqa: S102 (what a reader copies)
    assert len(known["front"].to_frame()) == len(known["front"]) > 1
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()
    space = known["space"] = known["run"].space
    known["evaluate"] = lambda archs: {"accuracy": np.log(space.params(archs)), "latency_ms": 1e-6 * space.macs(archs)}
    exec(second, known)  # noqa: S102
    assert len(known["result"].trials) == 200


@pytest.mark.parametrize("guide", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_a_guides_code_runs(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script of its own, but in this process, which has everything heavy imported."""
    script = []
    for language, file, code in BLOCK.findall(guide.read_text(encoding="utf-8")):
        if file:
            (tmp_path / file).write_text(code, encoding="utf-8")
        elif language == "python":
            script.append(code)
    (tmp_path / "guide.py").write_text("\n".join(script), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["guide.py"])
    known = set(sys.modules)
    try:
        runpy.run_path("guide.py", run_name="__main__")
    finally:
        for name in set(sys.modules) - known:
            if Path(getattr(sys.modules[name], "__file__", None) or ROOT).is_relative_to(tmp_path):
                del sys.modules[name]  # the next guide may have a file of the same name
