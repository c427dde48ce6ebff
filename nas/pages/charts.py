"""Small charts as SVG, drawn here so that they are there without a script and on paper; colours are the page's roles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nas.pages.words import text, three_digits

__all__ = ["Line", "line_chart"]

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 34
MOST_POINTS = 400  # a line's; more are thinned evenly


@dataclass(frozen=True)
class Line:
    """A named line.

    Attributes:
        role: of its colour in the page's style.
        dash: SVG dash pattern, so that lines differ without colour, too.
        marks: draw a dot at each point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    role: str
    dash: str = ""
    marks: bool = False


def line_chart(lines: Sequence[Line], *, x: str, y: str) -> str:
    """An SVG figure of lines over common axes with a legend; empty text where there is nothing to draw.

    Args:
        x, y: what the axes show.
    """
    drawn = [line for line in lines if len(line.points) > 1]
    if not drawn:
        return ""
    xs, ys = ([point[axis] for line in drawn for point in line.points] for axis in (0, 1))
    low, high = min(ys), max(ys)
    spare = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    frame = _Frame(min(xs), max(xs), low - spare, high + spare)
    parts = [frame.grid()]
    for line in drawn:
        step = max(1, -(-len(line.points) // MOST_POINTS))
        kept = [*line.points[:-1:step], line.points[-1]]
        places = [frame.place(*point) for point in kept]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--{line.role})" stroke-width="1.8"{dash}/>')
        if line.marks:
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="var(--{line.role})"/>' for px, py in places]
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{text(x)}</text>')
    label = f"{y} against {x}: " + ", ".join(f"{line.name} from {three_digits(line.points[0][1])} to "
                                             f"{three_digits(line.points[-1][1])}" for line in drawn)  # fmt: skip
    names = "".join(f"<li>{_sample(line)}{text(line.name)}</li>" for line in drawn)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{text(y)}</figcaption>{picture}<ul class="legend">{names}</ul></figure>'


def _sample(line: Line) -> str:
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    stroke = f'stroke="var(--{line.role})" stroke-width="2"{dash}'
    return f'<svg viewBox="0 0 20 16" aria-hidden="true"><path d="M0 8H20" {stroke}/></svg>'


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.left) / ((self.right - self.left) or 1.0)
        up = (y - self.low) / ((self.high - self.low) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> str:
        """Lines across and numbers on both axes."""
        parts = []
        for y in _ticks(self.low, self.high):
            _, py = self.place(self.left, y)
            parts.append(f'<path d="M{LEFT} {py:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{_number(y)}</text>')
        for x in _ticks(self.left, self.right):
            px, _ = self.place(x, self.low)
            parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_number(x)}</text>')
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others, four to eight of them: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
