"""What is installed: the tested versions fit the declared ranges, and the wheel holds the packages and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nas", "supernets", "predictors", "latency_tables", "search_spaces")
# Releases that are too old, by what the toolkit needs of newer ones; the ranges must leave them out.
TOO_OLD = {"scipy": "1.14.1", "pymoo": "0.6.1.6"}
# What torch adds on machines with an accelerator; its versions follow from torch's.
ACCELERATOR = re.compile(r"nvidia-|cuda-|triton")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    found = {canonicalize_name(name): Version(version) for name, version in pins}
    assert len(found) == len(pins), "a package is pinned twice"
    return found


def installed() -> metadata.Distribution:
    try:
        return metadata.distribution("hwnas")
    except metadata.PackageNotFoundError:
        pytest.skip("hwnas is not installed in this environment")


def files_of(root: Path) -> set[str]:
    """The files of the five packages below a root, without caches and hidden files."""
    found = (path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not any(part.startswith((".", "__pycache__")) for part in path.parts)}


def test_constraints_are_inside_the_declared_ranges(project: dict[str, Any], constraints: dict[str, Version]) -> None:
    pinned = ("dev", "parquet")  # runtimes of other devices are each user's own choice
    texts = [*project["dependencies"], *(text for name in pinned for text in project["optional-dependencies"][name])]
    for requirement in map(Requirement, texts):
        assert requirement.specifier.contains(constraints[canonicalize_name(requirement.name)]), requirement


def test_the_declared_ranges_leave_out_what_does_not_work(project: dict[str, Any]) -> None:
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, project["dependencies"])}
    assert [name for name, version in TOO_OLD.items() if ranges[name].contains(version)] == []


def test_constraints_work_on_any_index(constraints: dict[str, Version]) -> None:
    assert not [name for name, version in constraints.items() if version.local], "a local version exists on one index only"


def test_constraints_cover_what_is_pulled_in(constraints: dict[str, Version]) -> None:
    installed()
    pending, seen = [("hwnas", ""), ("hwnas", "dev"), ("hwnas", "parquet")], set()
    while pending:
        name, extra = pending.pop()
        seen.add((name, extra))
        for requirement in map(Requirement, metadata.requires(name) or []):
            key = canonicalize_name(requirement.name)
            if ACCELERATOR.match(key) or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
                continue
            assert key in constraints, f"{name} needs {key}, which constraints.txt lacks"
            pending += [(key, wanted) for wanted in ("", *requirement.extras) if (key, wanted) not in seen]
    assert constraints.keys() == {name for name, _ in seen} - {"hwnas"}, "constraints.txt pins what nothing needs"


def test_what_continuous_integration_installs_has_the_versions_of_the_constraints(constraints: dict[str, Version]) -> None:
    text = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
    found = {}
    for line in text.splitlines()[1:]:
        name, version, _ = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line).groups()  # type: ignore[union-attr]
        found[canonicalize_name(name)] = Version(version).public
    assert found == {name: version.public for name, version in constraints.items()}, "python scripts/lock.py"


def test_the_version_is_written_once(project: dict[str, Any]) -> None:
    literal = re.compile(rf"""["']{re.escape(project["version"])}["']""")
    holders = [name for name in files_of(ROOT) if name.endswith(".py") and literal.search((ROOT / name).read_text("utf-8"))]
    assert not holders


def test_the_version_at_run_time_is_the_declared_one(project: dict[str, Any]) -> None:
    assert installed().version == project["version"]
    import nas

    assert nas.__version__ == project["version"]


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"  # a copy: building writes beside the sources
    source.mkdir()
    out.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = out.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        entry_points = archive.read(next(name for name in packed if name.endswith("entry_points.txt"))).decode()
    assert {name for name in packed if ".dist-info/" not in name} == files_of(ROOT)
    assert {f"{package}/py.typed" for package in PACKAGES} <= packed
    assert [name for name in packed if name.endswith(".dist-info/licenses/LICENSE")]
    assert "nas = nas.cli:main" in entry_points
