"""The front as a plotly figure (plain JSON values), and each network's drawing and times, for the page's script.

Colours are roles here (``meta.role``): the script takes them from the page's style, which has a light and a dark set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nas.objectives import Limit, format_value
from nas.pages.contents import Contents, Row
from nas.pages.words import count, ms, percent, text
from nas.pareto import ParetoFront, Point
from nas.quantising import Quantised
from nas.verification import Verified
from search_spaces import Architecture, SearchSpace
from search_spaces.errors import UserError

__all__ = ["figure", "network_facts", "payload"]

NORMAL_95 = 1.96  # standard deviations on either side that hold 95 %
FAR = 1.5  # times the slowest network: a limit beyond would leave the networks a corner of the picture
Trace = dict[str, Any]


def payload(contents: Contents) -> dict[str, Any]:
    """What the page's script works on; JSON values."""
    rows = [*contents.rows, *contents.twins]
    asked = [row for row in rows if row.verified or not contents.verification]  # what the slider may answer with
    return {
        "figure": figure(contents),
        "networks": [network_facts(contents, row) for row in rows],
        "verified": contents.verification is not None,
        "knee": contents.knee,
        "budget": _budget([row.latency_ms for row in asked], _own_limit(contents)) if contents.front else None,
    }


def _own_limit(contents: Contents) -> float | None:
    """The limit on the latency of the page's device, ms."""
    assert contents.front is not None
    return contents.front.limits.get(contents.named("latency"))


def _budget(latencies: Sequence[float], limit: float | None) -> dict[str, float]:
    """The slider in ms: from the fastest network to the slowest in steps of about half a percent; starts at the limit."""
    low, high = min(latencies), max(latencies)
    step = 10.0 ** float(f"{high / 200:.0e}".split("e")[1])
    first, last = (int(-(-value // step)) for value in (low, high))  # rounded up: both networks fit their own end
    start = last if limit is None else min(last, max(first, int(limit // step)))
    return {name: round(n * step, 12) for name, n in (("min", first), ("max", last), ("value", start), ("step", 1))}


# ---- the figure ---------------------------------------------------------------------------------------------


def figure(contents: Contents) -> dict[str, Any] | None:
    """Data and layout; None where there is nothing to draw. Latency in ms to the right, accuracy in % upwards."""
    front = contents.front
    traces = [*_scored(contents), *(_networks(contents, front) if front else []), *_twins(contents), *_baselines(contents)]
    if not traces:
        return None
    bounds = _range(contents, traces)
    low, high = bounds[1]
    traces += _timed(contents, low + 0.03 * (high - low))
    where = f" on {text(contents.device)}" if contents.device else ""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": f"latency{where}, ms"}, "range": bounds[0]},
        "yaxis": {"title": {"text": "top-1 accuracy, %"}, "range": bounds[1]},
        "shapes": [],
        "annotations": [],
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 58, "r": 16, "t": 16, "b": 48},
    }
    if front:
        _draw_limits(layout, front, contents.named("latency"))
    return {"data": traces, "layout": layout}


def _trace(role: str, name: str, x: Sequence[float | None], y: Sequence[float | None], **more: Any) -> Trace:
    return {"type": "scatter", "meta": {"role": role}, "name": name, "x": list(x), "y": list(y), "mode": "markers", **more}


def _scored(contents: Contents) -> list[Trace]:
    """The subnets that the predictor learned from: validation accuracy against the table's estimate."""
    table = contents.table
    if not contents.scores or table is None or table.correction is None:
        return []
    try:
        latency = table.estimate([score.arch for score in contents.scores])
    except UserError:  # a table of another space
        return []
    hover = [
        f"scored subnet {text(s.arch.id)}<br>validation {percent(s.accuracy)}, estimated {ms(x)}"
        for s, x in zip(contents.scores, latency, strict=True)
    ]
    return [
        _trace(
            "scored",
            "scored subnets",
            _rounded(latency),
            _percents(s.accuracy for s in contents.scores),
            text=hover,
            hoverinfo="text",
        )
    ]


def _networks(contents: Contents, front: ParetoFront) -> list[Trace]:
    """Promised and verified points with 95 % intervals, the way from one to the other, the knee and the chosen network."""
    rows, checked = contents.rows, [row for row in contents.rows if row.verified]
    ids = [row.id for row in rows]
    spread = [100 * NORMAL_95 * row.point.std.get("accuracy", 0.0) for row in rows]
    promised = [(row.promised_ms, 100 * row.point.values["accuracy"]) for row in rows]
    ways_x = [v for row in checked for v in (row.promised_ms, row.latency_ms, None)]
    ways_y = [v for row in checked for v in (100 * row.point.values["accuracy"], 100 * row.accuracy, None)]
    knee = next(row for row in rows if row.id == front.pick("knee").arch.id)
    return [
        _trace(
            "way",
            "from promised to verified",
            ways_x,
            ways_y,
            mode="lines+markers",
            marker={"symbol": "arrow", "angleref": "previous", "size": [0, 9, 0] * len(checked), "standoff": 5},
            hoverinfo="skip",
        ),
        _trace(
            "promised",
            "promised",
            *zip(*promised, strict=True),
            error_y={"type": "data", "array": spread},
            text=[_hover(row, "promised") for row in rows],
            customdata=ids,
            hoverinfo="text",
        ),
        _trace(
            "verified",
            "verified",
            [row.latency_ms for row in checked],
            [100 * row.accuracy for row in checked],
            error_y=_intervals([row.verified for row in checked if row.verified]),
            text=[_hover(row, "verified") for row in checked],
            customdata=[row.id for row in checked],
            hoverinfo="text",
        ),
        _trace(
            "knee",
            "knee",
            [knee.latency_ms],
            [100 * knee.accuracy],
            mode="markers+text",
            text=["knee"],
            textposition="bottom right",
            hoverinfo="skip",
        ),
        _trace("chosen", "chosen", [], [], hoverinfo="skip"),
    ]


def _intervals(found: Sequence[Verified]) -> dict[str, Any]:
    """95 % intervals of accuracies as error bars, in points."""
    return {
        "type": "data",
        "array": [100 * (row.accuracy_high - row.accuracy) for row in found],
        "arrayminus": [100 * (row.accuracy - row.accuracy_low) for row in found],
    }


def _twins(contents: Contents) -> list[Trace]:
    """INT8 twins: those on the verified front, and those that are dominated or outside the limits."""
    best = contents.verification.front() if contents.verification else set()
    traces = []
    for role, name, wanted in (("int8", "INT8, on the front", True), ("int8_out", "INT8, dominated", False)):
        rows = [row for row in contents.twins if (row.id in best) == wanted]
        if rows:
            traces.append(
                _trace(
                    role,
                    name,
                    [row.latency_ms for row in rows],
                    [100 * row.accuracy for row in rows],
                    error_y=_intervals([row.verified for row in rows if row.verified]),
                    text=[f"{_hover(row, 'verified')}<br>INT8 twin" for row in rows],
                    customdata=[row.id for row in rows],
                    hoverinfo="text",
                )
            )
    return traces


def _timed(contents: Contents, height: float) -> list[Trace]:
    """Files with a latency only: marks just above the axis."""
    found = contents.verification.timed if contents.verification else []
    if not found:
        return []
    hover = [f"<b>{text(row.id)}</b><br>{ms(row.latency_ms)}, no accuracy: {text(row.reason)}" for row in found]
    return [
        _trace("timed", "timed only", [row.latency_ms for row in found], [height] * len(found), text=hover, hoverinfo="text")
    ]


def _baselines(contents: Contents) -> list[Trace]:
    found = contents.verification.baselines if contents.verification else []
    if not found:
        return []
    hover = [f"<b>{text(baseline_name(b.id))}</b><br>verified {percent(b.accuracy)}, {ms(b.latency_ms)}" for b in found]
    return [
        _trace(
            "baseline",
            "baseline",
            [b.latency_ms for b in found],
            [100 * b.accuracy for b in found],
            error_y=_intervals(found),
            text=hover,
            hoverinfo="text",
        )
    ]


def baseline_name(name: str) -> str:
    """As people call it."""
    return "largest network, trained alone" if name == "largest-alone" else name


def _hover(row: Row, kind: str) -> str:
    values = row.point.values
    if kind == "verified" and row.verified:
        v = row.verified
        numbers = (
            f"verified {percent(v.accuracy)} ({percent(v.accuracy_low)} to {percent(v.accuracy_high)}), {ms(v.latency_ms)}"
        )
    else:
        spread = f" ± {percent(row.point.std['accuracy'])}" if "accuracy" in row.point.std else ""
        numbers = f"promised {percent(values['accuracy'])}{spread}, {ms(row.promised_ms)}"
    choices = re.sub(r", (?=\w+=)", "<br>", text(row.point.arch))
    return f"<b>{text(row.id)}</b><br>{numbers}<br>{_counts(row.point)}<br>{choices}"


def _counts(point: Point) -> str:
    return f"{count(point.values['macs'])} MACs, {count(point.values['params'])} parameters"


def _range(contents: Contents, traces: Sequence[Trace]) -> tuple[list[float], list[float]]:
    """Axis ranges that hold the front and the baselines with their intervals.

    Scored subnets may lie far below the front; they widen the picture by half of its height at most.
    """
    xs: list[float] = []
    ys: list[float] = []
    for trace in traces:
        if trace["meta"]["role"] != "scored" or not contents.rows:
            bars = trace.get("error_y", {})
            none = [0.0] * len(trace["x"])
            up, down = bars.get("array", none), bars.get("arrayminus", bars.get("array", none))
            xs += [x for x in trace["x"] if x is not None]
            if trace["meta"]["role"] != "way":
                ys += [y + e for y, e in zip(trace["y"], up, strict=True)] + [
                    y - e for y, e in zip(trace["y"], down, strict=True)
                ]
    xs += [row.latency_ms for row in contents.verification.timed] if contents.verification else []
    limit = _own_limit(contents) if contents.front else None
    if limit is not None and limit < FAR * max(xs):
        xs.append(limit)
    low, high = min(ys), min(100.0, max(ys))
    scored = next((trace for trace in traces if trace["meta"]["role"] == "scored"), None)
    if scored and contents.rows:
        low = max(min(low, *scored["y"]), low - 0.5 * (high - low))
        xs += [x for x, y in zip(scored["x"], scored["y"], strict=True) if y >= low]
    left, right = min(xs), max(xs)
    wide, tall = 0.06 * (right - left) or 0.1 * right, 0.06 * (high - low) or 1.0
    return [max(0.0, left - wide), right + wide], [max(0.0, low - tall), high + tall]


def _draw_limits(layout: dict[str, Any], front: ParetoFront, latency: str) -> None:
    """Limits on latency and accuracy: a dashed line, and shade over the side that is forbidden."""
    for name, bound in front.limits.items():
        if name not in (latency, "accuracy"):
            continue
        is_latency = name == latency
        along, across = ("x", "y") if is_latency else ("y", "x")
        at = bound if is_latency else 100 * bound
        far = 1e3 * at if is_latency else 0.0
        fixed = {f"{across}ref": "paper", f"{across}0": 0, f"{across}1": 1, f"{along}ref": along, "layer": "below"}
        layout["shapes"] += [
            {"name": "forbidden", "type": "rect", **fixed, f"{along}0": at, f"{along}1": far, "line": {"width": 0}},
            {"name": "limit", "type": "line", **fixed, f"{along}0": at, f"{along}1": at},
        ]
        place = {along: at, f"{along}ref": along, across: 0 if is_latency else 1, f"{across}ref": "paper"}
        anchors = {"xanchor": "right", "yanchor": "bottom", "showarrow": False}
        layout["annotations"].append({"text": f"limit {format_value(name, bound)}", **place, **anchors})


def limit_text(name: str, bound: float) -> str:
    """A limit with real signs."""
    return str(Limit(name, bound)).replace("<=", "≤").replace(">=", "≥")


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _percents(fractions: Any) -> list[float]:
    return [round(100 * value, 3) for value in fractions]


# ---- one network --------------------------------------------------------------------------------------------


def network_facts(contents: Contents, row: Row) -> dict[str, Any]:
    """All that the page says of one network; times in ms, accuracies as fractions."""
    point, front = row.point, contents.front
    assert front is not None
    return {
        "id": row.id,
        "architecture": str(point.arch),
        "latency": row.latency_ms,
        "accuracy": row.accuracy,
        "promised": {
            "accuracy": point.values["accuracy"],
            "latency": row.promised_ms,
            "std": point.std.get("accuracy"),
        },
        "quantised": _quantised(row.quantised),
        "verified": asdict(row.verified) if row.verified else None,
        "export": asdict(row.export) if row.export else None,
        "counts": f"{_counts(point)}, {count(point.values['size'], 'B')} of weights",
        "names": [name for name in ("fastest", "knee", "best") if front.pick(name).arch.id == row.id],
        "command": contents.command(row),
        "drawing": _drawing(contents.run.space, point.arch),
        "times": _times(contents, point.arch),
    }


def _quantised(made: Quantised | None) -> dict[str, Any] | None:
    """What the page says of an INT8 twin beyond what was verified."""
    if made is None:
        return None
    return {
        "kept": list(made.kept),
        "images": made.calibration_images,
        "steps": made.steps,
        "size": f"{count(made.bytes, 'B')}, {percent(made.bytes / made.float_bytes, 0)} of the float file",
        "sensitivity": [[loss.layer, loss.error, loss.accuracy_loss] for loss in made.sensitivity],
    }


def _drawing(space: SearchSpace, arch: Architecture) -> list[dict[str, Any]]:
    """Rows of blocks from input to output: a stage each, and one for the layers before and after; skipped blocks are null."""
    try:
        layers = dict(space.placed(arch)) if space.positions else {}
    except UserError:  # networks of the user's own, whose code is not at hand
        return []
    if not layers:
        return []
    rows: list[dict[str, Any]] = []
    for index, position in enumerate(space.positions):
        stage, dot, name = position.name.partition(".")
        label = (
            stage
            if dot
            else "input side"
            if not rows or rows[0]["label"] == "input side" == rows[-1]["label"]
            else "output side"
        )
        if not rows or rows[-1]["label"] != label:
            rows.append({"label": label, "stage": bool(dot), "blocks": []})
        layer = layers.get(index)
        if layer is None:
            rows[-1]["blocks"].append(None)
            continue
        middle = getattr(layer, "mid_channels", None)
        shape = layer.out_shape
        rows[-1]["note"] = f"{shape[0]} ch, {shape[1]} px" if len(shape) == 3 else " x ".join(map(str, shape))
        rows[-1]["blocks"].append(
            {
                "name": name or stage,
                "kernel": getattr(layer, "kernel", None),
                "expand": None if middle is None else round(middle / layer.in_shape[0], 1),
                "se": bool(getattr(layer, "se_channels", 0)),
                "title": layer.key,
            }
        )
    return rows


def _times(contents: Contents, arch: Architecture) -> list[dict[str, Any]]:
    """Where the estimated time goes, in order of execution; empty without a finished table of this space."""
    try:
        frame = contents.table.breakdown(arch) if contents.table else None
    except UserError:
        frame = None
    if frame is None:
        return []
    names = frame["position"].where(frame["layer"] != "call", "runtime call")
    return [{"name": n, "ms": float(m), "share": float(s)} for n, m, s in zip(names, frame["ms"], frame["share"], strict=True)]
