"""The report without a browser: rows for tables, and Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas.pages.contents import Contents, Row
from nas.pages.history import artefacts
from nas.pages.sections import summary_lines
from nas.pages.words import percent, three_digits

__all__ = ["markdown", "rows_of"]


def rows_of(contents: Contents) -> Iterator[dict[str, Any]]:
    """A row per network, INT8 twin and baseline; what is not known is absent."""
    best = contents.verification.front() if contents.verification else set()
    for row in [*contents.rows, *contents.twins]:
        yield {"id": row.id, "kind": "int8" if row.quantised else "network", **_values(row), "on_front": row.id in best}
    for baseline in contents.verification.baselines if contents.verification else ():
        yield {"id": baseline.id, "kind": "baseline", **_verified(baseline)}
    for timed in contents.verification.timed if contents.verification else ():
        yield {"id": timed.id, "kind": "timed", "latency_ms": timed.latency_ms, "reason": timed.reason}


def _values(row: Row) -> dict[str, Any]:
    values = row.point.values
    found: dict[str, Any] = {}
    if row.quantised is None:
        found = {"promised_accuracy": values["accuracy"], "promised_latency_ms": row.promised_ms}
        found |= {"promised_energy_j": row.promised_j} if row.promised_j is not None else {}
    if row.verified is not None:
        found |= _verified(row.verified) | {"broken": "; ".join(row.verified.broken)}
    found |= {name: values[name] for name in ("macs", "params")}
    found["bytes"] = row.quantised.bytes if row.quantised else values["size"]
    if row.export is not None and row.quantised is None:
        found |= {"proven": row.export.proven, "max_relative_difference": row.export.max_relative_difference}
    return found | {"architecture": str(row.point.arch)}


def _verified(found: Any) -> dict[str, Any]:
    names = ("accuracy", "accuracy_low", "accuracy_high", "images", "latency_ms", "latency_p10_ms", "latency_p90_ms")
    energy = {"energy_j": found.energy_j} if found.energy_j is not None else {}
    return {name: getattr(found, name) for name in names} | energy


def markdown(contents: Contents, rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary, what is missing, the networks and the commands."""
    lines = [f"# {_plain(contents.run.settings['data'].get('name', 'networks'))}", ""]
    lines += [f"- {_plain(html.unescape(re.sub(r'<[^>]*>', '', line)))}" for line in summary_lines(contents)]
    if contents.missing:
        lines += ["", "## Still missing", ""]
        lines += [f"- {_plain(item.problem)}. Make it with `{item.command}`" for item in contents.missing]
    if rows:
        head = [
            "network",
            "kind",
            "accuracy promised",
            "verified",
            "95 % interval",
            "latency ms promised",
            "verified",
            "limits",
        ]
        lines += ["", "## Networks", "", _line(head), _line(["---"] * len(head)), *(_line(_cells(row)) for row in rows)]
    lines += ["", "## Every artefact", "", "| file | made by |", "| --- | --- |"]
    lines += [_line([f"`{name}`", f"`{command}`"]) for name, command in artefacts(contents)]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    def share(name: str) -> str:
        return percent(row[name]) if name in row else ""

    def time(name: str) -> str:
        return three_digits(row[name]) if name in row else ""

    interval = f"{share('accuracy_low')} to {share('accuracy_high')}" if "accuracy" in row else ""
    state = row.get("reason", "") or row.get("broken", "") or ("on the front" if row.get("on_front") else "")
    cells = [_plain(row["id"]), row["kind"], share("promised_accuracy"), share("accuracy"), interval]
    return [*(str(cell) for cell in cells), time("promised_latency_ms"), time("latency_ms"), _plain(state)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", str(value))
