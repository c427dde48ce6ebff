"""Figures for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.objectives import KNOWN
from nas.pages.words import text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from nas.pareto import ParetoFront

__all__ = ["front_figure"]


def front_figure(front: ParetoFront) -> Figure:
    """A front as a plotly figure: its second objective to the right, its first upwards, fractions in %.

    Bars are 95 % intervals where a value is a prediction with a spread.
    """
    import plotly.graph_objects as go

    up, right = (list(front.objectives) * 2)[:2]
    scale = {name: 100.0 if name == "accuracy" else 1.0 for name in (up, right)}
    points = list(front)
    hover = [f"<b>{p.arch.id}</b><br>{text(p.arch)}" for p in points]
    spread = [1.96 * scale[up] * p.std.get(up, 0.0) for p in points]
    figure = go.Figure(
        go.Scatter(
            x=[scale[right] * p.values[right] for p in points],
            y=[scale[up] * p.values[up] for p in points],
            error_y={"type": "data", "array": spread, "thickness": 1, "width": 0} if any(spread) else None,
            mode="markers+lines",
            line={"width": 1, "dash": "dot"},
            marker={"size": 9},
            customdata=[p.arch.id for p in points],
            text=hover,
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title=_title(right), yaxis_title=_title(up), showlegend=False)
    for name, bound in front.limits.items():
        if name == right:
            figure.add_vline(x=scale[name] * bound, line_dash="dash", annotation_text="limit")
        elif name == up:
            figure.add_hline(y=scale[name] * bound, line_dash="dash", annotation_text="limit")
    return figure


def _title(name: str) -> str:
    unit = "%" if name == "accuracy" else KNOWN[name][0] if name in KNOWN else ""
    return f"{name}, {unit}" if unit else name
