"""The package loads nothing before it is used, and torchvision can be imported after it, in workers too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, folder: Path) -> str:
    script = folder / "script.py"
    script.write_text(code)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, supernets; print([m for m in ('torch', 'torchvision', 'PIL', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    assert run(code, tmp_path).strip() == "[]"


def test_torchvision_works_after_the_package_in_every_kind_of_worker(tmp_path: Path) -> None:
    code = """
import supernets
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        loader = DataLoader(FakeData(4, (3, 8, 8), 2, ToTensor()), batch_size=2, num_workers=1, multiprocessing_context=method)
        print(method, [tuple(images.shape) for images, _ in loader])
"""
    lines = run(code, tmp_path).splitlines()
    assert lines == [f"{method} [(2, 3, 8, 8), (2, 3, 8, 8)]" for method in ("fork", "spawn", "forkserver")]


def test_the_hook_leaves_operators_that_exist_alone(tmp_path: Path) -> None:
    code = """
import sys, torch
from supernets.vision import install
install(); install()
own = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    own.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision
hooks = [finder for finder in sys.meta_path if type(finder).__name__ == "_MissingOperators"]
print(len(hooks), hooks[0]._declared)
"""
    assert run(code, tmp_path).split() == ["1", "None"]


def test_the_package_lists_what_it_exports() -> None:
    import supernets

    assert set(supernets.__all__) <= set(dir(supernets))
    for name in supernets.__all__:
        assert getattr(getattr(supernets, name), "__name__", name) == name  # values have no name
    with pytest.raises(AttributeError, match="no_such_name"):
        supernets.no_such_name  # noqa: B018
