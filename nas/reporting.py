"""The report: one self-contained HTML file that shows what a run holds, promised against verified."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from nas.pages.contents import read_contents
from nas.pages.figure import payload
from nas.pages.sections import sections
from nas.runs import Run
from search_spaces.artifacts import atomic_path

__all__ = ["write_report"]

_PLACE = re.compile(r"@@([a-z_]+)@@")


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run folder, from whatever the run has so far.

    The page needs nothing beside it: style, script, plotly and all numbers are inside, and its content security policy
    forbids loading anything. Missing parts are named, with the command that makes each of them.

    Returns: the page's path.
    """
    from plotly.offline import get_plotlyjs

    contents = read_contents(run)
    data = payload(contents)
    parts = sections(contents) | {
        "data": script_json(data),
        "plotly": get_plotlyjs() if data["figure"] else "",
        "hidden": "" if data["figure"] else "hidden",
        "no_networks": "" if data["networks"] else "hidden",
    }
    template = resources.files("nas").joinpath("pages/report.html").read_text(encoding="utf-8")
    # One pass: what was put in is never searched for places again.
    page = _PLACE.sub(lambda match: parts[match[1]], template)
    path = run.file("report.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever text it holds."""
    dumped = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return dumped.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
