"""Options, skips and determinism shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# One thread: sums do not depend on how many cores a machine has, and tests side by side do not slow each other down.
# Set before numpy and torch are imported, and inherited by the processes that tests start.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

hypothesis.settings.register_profile("hwnas", derandomize=True, database=None, deadline=None, max_examples=50)
hypothesis.settings.load_profile("hwnas")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--faults", action="store_true", help="run the long fault tests as well")


def _shared_data() -> Path:
    named = os.environ.get("HWNAS_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def _has_gpu() -> bool:
    import torch  # only when a test asks for a GPU

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("shared_data")
    missing = {
        "slow": None if config.getoption("--slow") else "slow: runs with --slow",
        "faults": None if config.getoption("--faults") else "faults: runs with --faults",
        "shared_data": None if _shared_data().is_dir() else "reference data not found: name its folder in HWNAS_DATA",
        "gpu": "no CUDA device" if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu() else None,
    }
    for item in items:
        for name, reason in missing.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def shared_data() -> Path:
    """The folder of the reference data sets; a test that asks for it is skipped where it is missing."""
    return _shared_data()


@pytest.fixture(autouse=True)
def _torch_as_new() -> Iterator[None]:
    """Every test starts from the same seed and leaves the thread count as it was, in whatever order tests run."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_waiting_for_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that time real models need the rounds, not the seconds."""
    monkeypatch.setattr("latency_tables.profiling.WHOLE_SECONDS", 0.0)
    monkeypatch.setattr("nas.verifying.SECONDS", 0.0)
