"""One small run through the whole loop, shared by the tests of the verbs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nas.demo import Budget, DemoResult, run_demo


@pytest.fixture(scope="session")
def budget() -> Budget:
    """Seconds instead of minutes."""
    return Budget(macs=5.4e9, width=0.25, samples=24, scores=32, validation_images=200, points=8, generations=15)


@pytest.fixture(scope="session")
def demo(budget: Budget, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """The demo's own path on the digits, with a small budget."""
    return run_demo("digits", out=tmp_path_factory.mktemp("runs") / "demo", seed=0, budget=budget)


@pytest.fixture
def finished(demo: DemoResult, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    folder = tmp_path / "run"
    shutil.copytree(demo.run, folder)
    return folder
