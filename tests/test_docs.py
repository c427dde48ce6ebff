"""The guides' code runs as written, in order, in a fresh folder."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_a_guides_code_runs(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script of its own, but in this process, which has everything heavy imported."""
    script = []
    for language, file, code in BLOCK.findall(guide.read_text(encoding="utf-8")):
        if file:
            (tmp_path / file).write_text(code, encoding="utf-8")
        elif language == "python":
            script.append(code)
    (tmp_path / "guide.py").write_text("\n".join(script), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["guide.py"])
    known = set(sys.modules)
    try:
        runpy.run_path("guide.py", run_name="__main__")
    finally:
        for name in set(sys.modules) - known:
            if Path(getattr(sys.modules[name], "__file__", None) or ROOT).is_relative_to(tmp_path):
                del sys.modules[name]  # the next guide may have a file of the same name
