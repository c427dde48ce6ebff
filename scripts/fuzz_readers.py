"""Feed damaged files to every reader: ``python scripts/fuzz_readers.py --inputs 20000``; see ``docs/reliability.md``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    runpy.run_module("tests.faults.fuzz", run_name="__main__")
