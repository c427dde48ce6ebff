"""Numbers as people read them; the page's script has the same rules for what it shows."""

from __future__ import annotations

import math
from html import escape
from typing import Any

__all__ = ["cells", "count", "ms", "percent", "section", "signed", "table", "text", "three_digits", "tiny"]


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent."""
    return f"{fraction:.{digits}%}"


def signed(fraction: float) -> str:
    """A difference in percent with its sign; what rounds to zero has none."""
    rounded = round(100 * fraction, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def three_digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(float(f"{value:.2e}")))))
    return f"{value:.{digits}f}"


def tiny(value: float) -> str:
    """One significant digit: 2e-7."""
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"


def ms(value: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{three_digits(value)} ms"


def count(value: float, unit: str = "") -> str:
    """A count with three significant digits: 12.3 M."""
    rounded = float(f"{value:.3g}")  # first: 999,700 is 1 M
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= scale:
            return f"{rounded / scale:.3g} {prefix}{unit}"
    return f"{rounded:.3g} {unit}".strip()


def text(value: Any) -> str:
    """Escaped for HTML; whatever comes from files or from the user passes through here."""
    return escape(str(value))


def cells(row: list[str], *, head: bool = False) -> str:
    """A table's row of ready HTML; the first cell is the row's header."""
    if head:
        return "<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in row) + "</tr>"
    return f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    """A table of ready HTML in a box that scrolls sideways on narrow screens."""
    body = "".join(cells(row) for row in rows)
    inner = f"<table><caption>{title}</caption><thead>{cells(head, head=True)}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{inner}</div>'


def section(title: str, words: str, body: str) -> str:
    """A part of the page with a heading, of ready HTML."""
    paragraph = f"<p>{words}</p>" if words else ""
    return f"<section><h2>{title}</h2>{paragraph}{body}</section>"
