"""Files of every version that was released, loaded for ever.

``0.1.0/`` was written with ``python -m tests.faults.samples FOLDER``; without the data sets and the models of the kit. A new
format gets a new folder beside it, and none is ever changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import nas
from latency_tables.kit import read_kit, read_results
from nas.runs import Run
from tests.faults.readers import READERS

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "run").is_dir())
READ = (
    "run",
    "latency table",
    "table CSV",
    "front",
    "verified",
    "export record",
    "baseline",
    "rank check",
    "predictor",
    "search space",
    "recipe TOML",
    "choices TOML",
    "supernet",
    "checkpoint",
    "network",
    "archive",
    "report",
)
KNOWN_MS, KNOWN_PARAMETERS = 0.06481024, 33084  # of the samples of 0.1.0


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "files"))


def test_there_are_samples() -> None:
    assert {path.name for path in VERSIONS} >= {"0.1.0"}


@pytest.mark.parametrize("name", READ)
def test_files_of_before_are_read(files: Path, name: str) -> None:
    READERS[name].read(files)


def test_a_kit_of_before_is_read(files: Path) -> None:
    """To import it takes the version that made it: another one measures other models, and says so."""
    kit = read_kit(files / "kit")
    _, found = read_results(files / "kit" / "results.json", kit, again="")
    assert set(found) == set(kit.names)


def test_a_run_of_before_is_complete(files: Path) -> None:
    """What the files say is still what they said."""
    run = Run.open(files / "run")
    front = nas.ParetoFront.load(files / "run" / "front.json")
    assert len(front) == 3
    assert front.pick("knee").arch.id in {path.stem for path in (files / "run" / "exports").glob("*.onnx")}
    table = nas.LatencyTable.load(run.table("onnxruntime-cpu"))
    assert table.estimate(run.space.largest) == pytest.approx(KNOWN_MS, rel=1e-9)
    network = nas.load_network(next((files / "run" / "exports").glob("*.safetensors")))
    assert sum(parameter.numel() for parameter in network.parameters()) == KNOWN_PARAMETERS
