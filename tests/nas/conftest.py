"""One small run through the whole loop, shared by the tests of the verbs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nas.baselines import read_baselines
from nas.demo import Budget, DemoResult, run_demo
from nas.pareto import ParetoFront
from nas.runs import Run
from nas.verification import Verification
from tests.sharing import made_once

PLAIN = ("exports", "table_quality", "training_seconds", "supernet_images", "finetune_images")  # of a result, not in its run


@pytest.fixture(scope="session")
def budget() -> Budget:
    """Seconds instead of minutes: two input sizes, 1600 images."""
    amount = {"samples": 24, "scores": 32, "validation_images": 200, "points": 8, "generations": 15}
    return Budget(macs=2.9e9, largest_macs=2e6, width=0.25, **amount)


@pytest.fixture(scope="session")
def demo(budget: Budget, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """The demo's own path on the digits, with a small budget; each process has a copy of the run, which tests may add to."""

    def make(folder: Path) -> None:
        result = run_demo("digits", out=folder / "run", seed=0, budget=budget)
        (folder / "result.json").write_text(json.dumps({name: getattr(result, name) for name in PLAIN}))

    made = made_once(tmp_path_factory, "demo", make)
    run = Run.open(shutil.copytree(made / "run", tmp_path_factory.mktemp("runs") / "demo"))
    return DemoResult(
        run=run.path,
        report=run.file("report.html"),
        front=ParetoFront.load(run.file("front.json")),
        verification=Verification.load(run.file("verified.json")),
        baseline=read_baselines(run)[0],
        **json.loads((made / "result.json").read_text()),
    )


@pytest.fixture
def finished(demo: DemoResult, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    folder = tmp_path / "run"
    shutil.copytree(demo.run, folder)
    return folder
