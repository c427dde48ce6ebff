"""Damaged files: one error of three parts, whatever is in them. The long version: ``python scripts/fuzz_readers.py``."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nas
from nas.runs import Run
from search_spaces import UserError
from search_spaces.records import member
from supernets import load_data
from tests.faults.fuzz import Bench, Tally, fuzz
from tests.faults.readers import READERS
from tests.faults.samples import make_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_samples(tmp_path_factory.mktemp("samples") / "all")


@pytest.fixture(scope="module")
def bench(samples: Path) -> Iterator[Bench]:
    found = Bench(samples)
    yield found
    found.watch.on = False


def without(name: str) -> bool:
    """Whether a reader's library is not installed."""
    if name != "image tables":
        return False
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return True
    return False


@pytest.mark.parametrize("name", READERS)
def test_every_sample_is_read(samples: Path, name: str) -> None:
    if without(name):
        pytest.skip("pyarrow is not installed")
    READERS[name].read(samples)


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("report", "training log", "archive")])
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_damaged_files_are_refused_or_read(bench: Bench, name: str, rng: random.Random) -> None:
    if without(name):
        pytest.skip("pyarrow is not installed")
    tally = Tally(name)
    bench.feed(READERS[name], rng, tally)
    assert tally.failures == []
    assert tally.missed == 0


@pytest.mark.faults
def test_many_damaged_files(samples: Path) -> None:
    found = fuzz(samples, 3000, seed=7)
    assert [failure for tally in found for failure in tally.failures] == []
    assert sum(tally.missed for tally in found) == 0


@pytest.mark.parametrize("name", ["exports", "training", "study.db", "report.html", "tables/board.json"])
def test_a_link_out_of_a_run_is_refused(samples: Path, tmp_path: Path, name: str) -> None:
    """Whoever made the folder: what is written into it stays in it."""
    run = Path(shutil.copytree(samples / "run", tmp_path / "run"))
    outside = tmp_path / "outside"
    if name in ("exports", "training"):
        shutil.rmtree(run / name)
        outside.mkdir()
    else:
        (run / name).unlink(missing_ok=True)
        outside.write_text("mine")
    (run / name).symlink_to(outside)
    with pytest.raises(UserError, match="link out of the run folder"):
        Run.open(run)


def test_links_inside_a_run_and_to_it_are_fine(samples: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(samples / "run", tmp_path / "run"))
    (run / "best.onnx").symlink_to(next((run / "exports").glob("*.onnx")).relative_to(run))
    (tmp_path / "link").symlink_to(run)
    assert Run.open(tmp_path / "link").path == tmp_path / "link"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "a/../../x", "a\0b", "link/x"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        member(tmp_path / "folder", name)


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open("x.npy", "w") as stream:
        for _ in range(300):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match="unpack to"):
        load_data(f"npz:{path}")


def test_a_front_from_elsewhere_connects_to_nothing(samples: Path, tmp_path: Path) -> None:
    """A device over the network is named by the user, not by a file."""
    run = Path(shutil.copytree(samples / "run", tmp_path / "run"))
    front = json.loads((run / "front.json").read_text())
    front["records"]["request"]["devices"] = ["ssh://somewhere/onnxruntime-cpu"]
    (run / "front.json").write_text(json.dumps(front))
    with pytest.raises(UserError, match="--device"):
        nas.search(run, resume=True, samples=20)


def test_what_files_say_stays_text_in_the_report(samples: Path, tmp_path: Path) -> None:
    """Every text in a run's files that is not checked otherwise, as markup: the page shows it and does not run it."""
    run, markup = Path(shutil.copytree(samples / "run", tmp_path / "run")), "</script><script>alert(1)</script>"
    checked = ("kind", "made_by", "id", "hash", "file", "sha256", "form", "clock", "network", "torch_file")
    whole = ("space", "format", "points", "objectives")

    def spoilt(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: spoilt(part, key) for key, part in value.items()}
        if isinstance(value, list):
            return [spoilt(part, name) for part in value]
        return value + markup if isinstance(value, str) and name not in checked else value

    for path in (run / "front.json", run / "verified.json", run / "training/log.json", *(run / "exports").glob("*.json")):
        known = json.loads(path.read_text())
        spoiled = {name: spoilt(part, name) for name, part in known.items() if name not in whole}
        path.write_text(json.dumps(known | spoiled))
    nas.report(run)
    page = (run / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
