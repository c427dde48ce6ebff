"""Requirements with hashes, for continuous integration: ``python scripts/lock.py > .ci/requirements.txt``.

pip resolves the constraints for this system and Python, and says which files it would take, what builds the toolkit among them;
``pip install --require-hashes -r .ci/requirements.txt`` takes those files and no others, on any machine of this system and
Python. torch's CPU build is the one on PyTorch's own index, not on PyPI.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def resolved(extras: str) -> list[dict[str, Any]]:
    """What pip would install, from its own report."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        words += ["-c", str(ROOT / "constraints.txt"), f"{ROOT}[{extras}]", *build]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, stdout=sys.stderr)
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return found


def lines(report: list[dict[str, Any]]) -> list[str]:
    """``name==version --hash=sha256:...`` for everything but the toolkit itself."""
    found = []
    for item in report:
        about, archive = item["metadata"], item["download_info"].get("archive_info")
        if archive is not None:  # else the toolkit: a folder
            found.append(f"{about['name'].lower()}=={about['version']} --hash=sha256:{archive['hashes']['sha256']}")
    return sorted(found)


def main() -> int:
    """Print the requirements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="dev,parquet")
    extras = parser.parse_args().extras
    python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
    print(f"# Made by scripts/lock.py: the files of constraints.txt, extras {extras}, for {python} on {sys.platform}.")
    print("\n".join(lines(resolved(extras))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
