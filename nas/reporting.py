"""The report: one self-contained HTML file on what a run holds, promised against verified; Markdown and CSV beside it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.pages.contents import Contents, read_contents
from nas.pages.figure import payload
from nas.pages.plain import markdown, rows_of
from nas.pages.sections import sections
from nas.runs import Run
from search_spaces.artifacts import atomic_path
from search_spaces.records import reading

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report", "write_report"]

_PLACE = re.compile(r"@@([a-z_]+)@@")


@dataclass(frozen=True)
class Report(PathLike[str]):
    """A report that was written; as a path it is that of the page.

    Attributes:
        path: ``report.html``.
        markdown: ``report.md``, the same in words and tables.
        csv: ``networks.csv``, a row per network.
        rows: what the CSV holds.
    """

    path: Path
    markdown: Path
    csv: Path
    rows: tuple[dict[str, Any], ...]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def to_frame(self) -> pd.DataFrame:
        """One row per network, INT8 twin and baseline: id, kind, promised and verified values, proof, the command."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))


def write_report(run: Run) -> Report:
    """Write ``report.html``, ``report.md`` and ``networks.csv`` into the run folder, from whatever the run has so far.

    The page needs nothing beside it: style, script, plotly and all numbers are inside, and its content security policy
    forbids loading anything. Missing parts are named, with the command that makes each of them.
    """
    with reading(run.path, allowed="The files of a run as the toolkit writes them", next_step="Make the damaged one anew"):
        return _written(run)


def _written(run: Run) -> Report:
    contents = read_contents(run)
    report = Report(run.file("report.html"), run.file("report.md"), run.file("networks.csv"), tuple(rows_of(contents)))
    for path, text in ((report.path, _page(contents)), (report.markdown, markdown(contents, report.rows))):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_path(report.csv) as temporary:
        report.to_frame().to_csv(temporary, index=False)
    return report


def _page(contents: Contents) -> str:
    from plotly.offline import get_plotlyjs

    data = payload(contents)
    parts = sections(contents) | {
        "data": script_json(data),
        "plotly": get_plotlyjs() if data["figure"] else "",
        "hidden": "" if data["figure"] else "hidden",
        "no_networks": "" if data["networks"] else "hidden",
    }
    template = resources.files("nas").joinpath("pages/report.html").read_text(encoding="utf-8")
    # One pass: what was put in is never searched for places again.
    return _PLACE.sub(lambda match: parts[match[1]], template)


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever text it holds."""
    dumped = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return dumped.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
