"""Requirements with hashes for this machine: ``python scripts/lock.py > lock.txt``.

pip resolves the constraints once, through whatever index it is set up with, and says which files it would take; ``pip install
--require-hashes -r lock.txt`` takes those and no others. A file for another system, Python or index has other hashes (torch's
CPU build is not the one on PyPI), so the list is made where it is used, kept there, and made anew on purpose only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def resolved(extras: str) -> list[dict[str, object]]:
    """What pip would install, from its own report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        words += ["-c", str(ROOT / "constraints.txt"), f"{ROOT}[{extras}]"]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, stdout=sys.stderr)
        found: list[dict[str, object]] = json.loads(report.read_text())["install"]
        return found


def lines(report: list[dict[str, object]]) -> list[str]:
    """``name==version --hash=sha256:...`` for everything but the toolkit itself."""
    found = []
    for item in report:
        about, origin = item["metadata"], item["download_info"]
        assert isinstance(about, dict)
        assert isinstance(origin, dict)
        digest = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is not None:
            found.append(f"{about['name'].lower()}=={about['version']} --hash=sha256:{digest}")
    return sorted(found)


def main() -> int:
    """Print the requirements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="dev,parquet")
    print("\n".join(lines(resolved(parser.parse_args().extras))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
