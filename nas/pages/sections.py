"""The page's sections as HTML: words and tables, readable without a script."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from nas.objectives import OF_DEVICES, kind_of
from nas.pages.contents import Contents, Row
from nas.pages.figure import baseline_name, limit_text
from nas.pages.history import commands, other_devices, search_history, training
from nas.pages.words import count, ms, percent, section, signed, table, text, three_digits, tiny
from nas.verification import Verification
from search_spaces.artifacts import made_by

__all__ = ["sections", "summary_lines"]

NONE = "&ndash;"
MOST_NAMES = 20  # classes that are listed


def sections(contents: Contents) -> dict[str, str]:
    """Ready HTML by the name of its place in the template."""
    return {
        "title": text(_title(contents)),
        "subtitle": _subtitle(contents),
        "summary": _list(summary_lines(contents), "facts"),
        "missing": _missing(contents),
        "networks": _networks(contents),
        "predictor": _predictor(contents),
        "table": _table_quality(contents),
        "search": search_history(contents) + other_devices(contents),
        "training": training(contents),
        "commands": commands(contents),
        "provenance": _provenance(contents),
        "made_by": text(made_by()),
    }


def _title(contents: Contents) -> str:
    name = contents.run.settings["data"].get("name", "networks")
    return f"{name} on {contents.device}" if contents.device else str(name)


def _subtitle(contents: Contents) -> str:
    """Data set, space, device and the day of the verification."""
    parts = [f"Data {text(contents.run.settings['data'].get('source'))}", f"space {text(contents.run.space.key)}"]
    parts += [f"device {text(contents.device)}"] if contents.device else []
    parts += [f"verified {text(contents.verified_on)}" if contents.verified_on else "not verified yet"]
    return " · ".join(parts)


# ---- summary ------------------------------------------------------------------------------------------------


def summary_lines(contents: Contents) -> list[str]:
    """What the run comes to, a line of HTML each."""
    if contents.front is None:
        return ["<strong>No front yet.</strong> The page shows what the run holds so far."]
    latencies = [row.latency_ms for row in contents.rows]
    checked = sum(row.verified is not None for row in contents.rows)
    kind = "promised" if not checked else "verified" if checked == len(latencies) else f"{checked} of them verified"
    span = f"{ms(min(latencies))} to {ms(max(latencies))}, {max(latencies) / min(latencies):.1f} times apart"
    if len(latencies) == 1:
        lines = [f"<strong>One network</strong> of {ms(latencies[0])} ({kind})."]
    else:
        lines = [f"<strong>{len(latencies)} networks</strong> from {span} ({kind})."]
    return lines + _checked(contents) + _proofs(contents) + _limits(contents)


def _checked(contents: Contents) -> list[str]:
    """Accuracy beside the largest network alone, and promised against verified."""
    if contents.verification is None:
        best = max(contents.rows, key=lambda row: row.accuracy)
        kind = "a score on validation images" if best.is_measured else "a prediction"
        return [f"Best promised accuracy <strong>{percent(best.accuracy)}</strong>, {kind}; nothing is verified yet."]
    alone = contents.alone()
    inside = [row for row in contents.rows if row.verified is None or not row.verified.broken]
    promised = max(inside, key=lambda row: row.point.values["accuracy"], default=None)
    found, lines = promised.verified if promised is not None else None, []
    if promised is not None and found is None:
        lines.append(f"The network promised best, {text(promised.id)}, is not verified yet.")
    elif found is not None:
        beside = ""
        if alone is not None:
            points = 100 * (found.accuracy - alone.accuracy)
            beside = f"; the largest network trained alone reaches {percent(alone.accuracy)} ({points:+.1f} points)"
        lines.append(
            f"The network promised best has <strong>{percent(found.accuracy)}</strong> "
            f"({percent(found.accuracy_low)} to {percent(found.accuracy_high)}) on {found.images:,} test images{beside}."
        )
    lines += [
        f"Latency, promised against verified: {contents.verification.latency_in_words()}.",
    ]
    return lines + _excess(contents.verification) + _int8(contents.verification)


def _excess(verification: Verification) -> list[str]:
    """The winner's curse, with its interval where it can be had."""
    excess = verification.excess
    if excess is None:
        return []
    way = "above" if excess.mean >= 0 else "below"
    return [
        f"Winner's curse: accuracy was promised <strong>{abs(100 * excess.mean):.1f} points {way}</strong> what the test "
        f"images say, on average (95&nbsp;% interval {signed(excess.low)} to {signed(excess.high)} points, "
        f"{excess.networks} networks)."
    ]


def _int8(verification: Verification) -> list[str]:
    gains = verification.gains()
    if gains is None:
        return []
    on_front = len(verification.front() & {twin.id for twin in verification.quantised})
    lost, verb = 100 * gains["accuracy_loss"], "twin is" if on_front == 1 else "twins are"
    return [
        f"INT8, measured: <strong>{gains['latency_ratio']:.2f} of the float time</strong> and {lost:.1f} points of accuracy "
        f"lost (median and mean of {gains['networks']} networks); {on_front} INT8 {verb} on the verified front."
    ]


def _proofs(contents: Contents) -> list[str]:
    exports = [row.export for row in contents.rows if row.export]
    if not exports:
        return []
    proven = sum(export.proven for export in exports)
    ran = [(e.max_relative_difference, e.top1_agreement) for e in exports]
    worst = max((difference for difference, _ in ran if difference is not None), default=0.0)
    agree = min((agreement for _, agreement in ran if agreement is not None), default=0.0)
    word = "All" if proven == len(exports) else f"Only {proven} of"
    rest = f"largest difference to torch {tiny(worst)}, same top-1 class on {percent(agree)} of {exports[0].images:,} images"
    return [f"<strong>{word} {len(exports)} ONNX files are proven</strong>: {rest}."]


def _limits(contents: Contents) -> list[str]:
    assert contents.front is not None
    judged: list[str] = []
    elsewhere: list[str] = []
    for name, bound in contents.front.limits.items():
        own = kind_of(name) not in OF_DEVICES or name == contents.named(kind_of(name))
        (judged if own else elsewhere).append(limit_text(name, bound))
    lines = [f"Limit {text(' and '.join(elsewhere))}: not verified on {text(contents.device)}."] if elsewhere else []
    limits = " and ".join(judged)
    if not limits:
        return lines
    checked = [row.verified for row in contents.rows if row.verified]
    broken = [verified.id for verified in checked if verified.broken]
    if not checked:
        return [f"Limit {text(limits)}: held by every promise, not verified yet.", *lines]
    if broken:
        names = ", ".join(f"<code>{text(name)}</code>" for name in broken)
        said = (
            f'<strong class="bad">Limit {text(limits)} is broken</strong> by {len(broken)} of {len(checked)} networks: {names}.'
        )
        return [said, *lines]
    return [f"Limit {text(limits)} <strong>kept</strong> by all {len(checked)} verified networks.", *lines]


def _missing(contents: Contents) -> str:
    if not contents.missing:
        return ""
    lines = [f"{text(item.problem)}. Make it with <code>{text(item.command)}</code>" for item in contents.missing]
    return f'<aside class="missing"><h2>Still missing</h2>{_list(lines)}</aside>'


# ---- networks -----------------------------------------------------------------------------------------------


def _networks(contents: Contents) -> str:
    if not contents.rows:
        return ""
    head = [
        "Network",
        "Accuracy, %<br>promised",
        "<br>verified",
        "95&nbsp;%<br>interval",
        "Latency, ms<br>promised",
        "<br>verified",
    ]
    head += [
        "Error<br>%",
        *(["Energy, mJ"] if _has_energy(contents) else []),
        "MACs",
        "Para-<br>meters",
        "Weights",
        "ONNX<br>proof",
        "Limits",
        "Export with",
    ]
    rows = [_network(contents, row) for row in contents.rows] + [_twin(contents, row) for row in contents.twins]
    rows += [_baseline_row(contents, b) for b in (contents.verification.baselines if contents.verification else [])]
    clock = contents.verification.clock if contents.verification else "wall"
    notes = [
        _promises(contents),
        "Promised latency is estimated from the table.",
        "ONNX proof: largest difference of a logit to torch relative to the largest logit,",
        "and share of test images with the same class.",
    ]
    if _has_energy(contents):
        notes.append("Energy is that of a run, idle power included: promised by the table's model, then counted.")
    if contents.twins:
        notes.append("INT8 twins were promised nothing; those that a network or a twin beats in both values are dominated.")
    timed = contents.verification.timed if contents.verification else []
    notes += [f"{text(row.id)} was timed only ({ms(row.latency_ms)}): {text(row.reason)}." for row in timed]
    if clock == "cpu":
        notes.append("Latencies are CPU time: the machine was too busy for the wall clock.")
    return f'{table("All networks", head, rows)}<p class="note">{" ".join(notes)}</p>'


def _promises(contents: Contents) -> str:
    """Where the promised accuracies come from."""
    scored = sum(row.is_measured for row in contents.rows)
    if scored == len(contents.rows):
        words = "Promised accuracy is the score on validation images (± its standard error)."
    elif not scored:
        words = "Promised accuracy is predicted from scored subnets (± one standard deviation)."
    else:
        words = f"Promised accuracy is the score on validation images for {scored} networks, predicted for the others (p)."
    tuned = any(row.verified and row.verified.finetuned for row in contents.rows)
    return words + (" * Fine-tuned since it was promised." if tuned else "")


def _network(contents: Contents, row: Row) -> list[str]:
    values, verified, export = row.point.values, row.verified, row.export
    spread = row.point.std.get("accuracy")
    button = f'<button type="button" class="pick" data-id="{text(row.id)}">{text(row.id)}</button>'
    button += " *" if verified is not None and verified.finetuned else ""
    promised = f"{100 * values['accuracy']:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
    promised += " (p)" if not row.is_measured and any(other.is_measured for other in contents.rows) else ""
    proof = NONE
    if export is not None:
        mark = "✓" if export.proven else "✗ not proven:"
        proof = f"{mark} {tiny(export.max_relative_difference or 0.0)}, {percent(export.top1_agreement or 0.0)}"
        proof = proof if export.top1_agreement is not None else "✗ does not run"
    cells = [button, promised, *_measured(verified), three_digits(row.promised_ms)]
    if verified is None:
        cells += [NONE, NONE]
    else:
        cells += [three_digits(verified.latency_ms), signed(row.promised_ms / verified.latency_ms - 1)]
    cells += _energy(contents, row.promised_j, verified)
    cells += [count(values["macs"]), count(values["params"]), count(values["size"], "B"), proof]
    broken = "; ".join(verified.broken).replace("<=", "≤").replace(">=", "≥") if verified else ""
    kept = (
        NONE
        if verified is None
        else f'<span class="bad">✗ breaks {text(broken)}</span>'
        if broken
        else _standing(contents, row)
    )
    return [*cells, kept, f"<code>{text(contents.command(row))}</code>"]


def _twin(contents: Contents, row: Row) -> list[str]:
    """An INT8 twin: nothing promised, everything measured."""
    found, made = row.verified, row.quantised
    assert found is not None
    assert made is not None
    button = f'<button type="button" class="pick" data-id="{text(row.id)}">{text(row.id)}</button>'
    cells = [button, NONE, *_measured(found), NONE, three_digits(found.latency_ms), NONE]
    values = row.point.values
    cells += _energy(contents, None, found)
    kept = f"{len(made.kept)} layers in float" if made.kept else "all layers INT8"
    cells += [count(values["macs"]), count(values["params"]), count(made.bytes, "B"), kept]
    state = '<span class="bad">✗ outside</span>' if found.broken else _standing(contents, row)
    return [*cells, state, f"<code>{text(contents.command(row))}</code>"]


def _standing(contents: Contents, row: Row) -> str:
    """Of a point within the limits: whether it is on the verified front, where INT8 twins compete for it."""
    if not contents.twins or contents.verification is None:
        return "✓ kept"
    return "✓ on front" if row.id in contents.verification.front() else "✓ dominated"


def _measured(verified: Any) -> list[str]:
    if verified is None:
        return [NONE, NONE]
    return [f"{100 * verified.accuracy:.1f}", f"{100 * verified.accuracy_low:.1f} to {100 * verified.accuracy_high:.1f}"]


def _has_energy(contents: Contents) -> bool:
    return any(row.promised_j is not None for row in contents.rows)


def _energy(contents: Contents, promised: float | None, verified: Any) -> list[str]:
    """A cell where the front has energies: promised, then verified, in mJ."""
    if not _has_energy(contents):
        return []
    known = [promised, verified.energy_j if verified is not None else None]
    return [" / ".join(NONE if value is None else three_digits(1e3 * value) for value in known)]


def _baseline_row(contents: Contents, baseline: Any) -> list[str]:
    known = {b.name: b for b in contents.baselines}.get(baseline.id)
    made = text(known.source) if known and known.source else NONE
    if known and known.images is not None and known.seconds is not None:
        made = f"{known.images:,} images in {known.seconds:,.0f} s of training"
    cells = [text(baseline_name(baseline.id)), NONE, *_measured(baseline), NONE, three_digits(baseline.latency_ms)]
    return [*cells, NONE, *_energy(contents, None, baseline), *[NONE] * 5, text(made)]


# ---- how far to trust it ------------------------------------------------------------------------------------


def _predictor(contents: Contents) -> str:
    card = contents.front.provenance.get("predictor") if contents.front else None
    if not card:
        return ""
    kendall = card.get("kendall")
    words = []
    if kendall is not None:
        words.append(
            f"Of two random subnets it names the better one in <strong>{percent((1 + kendall) / 2, 0)}</strong> of all cases"
        )
    if card["spread"] > 0:
        words.append(
            f"its error is <strong>{100 * card['rmse']:.2f} points</strong>, "
            f"where guessing the mean would be wrong by {100 * card['spread']:.2f}"
        )
    words.append(f"its 90 % intervals hold {percent(card['covered_90'], 0)} of the true values")
    head = ["Predictor", "Scored subnets", "Kendall", "Spearman", "RMSE, points", "Spread, points", "In 90&nbsp;% interval"]
    row = [text(card["kind"]), str(card["networks"]), _rank(kendall), _rank(card.get("spearman")), f"{100 * card['rmse']:.2f}"]
    row += [f"{100 * card['spread']:.2f}", percent(card["covered_90"], 0)]
    return section(
        "Accuracy predictor",
        f"{'; '.join(words)}. Each subnet was predicted by a fit that had not seen it.",
        table("Report card", head, [row]),
    )


def _table_quality(contents: Contents) -> str:
    quality = contents.table.quality if contents.table else None
    if contents.table is None or quality is None:
        return ""
    rows = []
    named = (
        ("Sum of layers, corrected", "corrected"),
        ("Sum of layers, plain", "plain"),
        ("Features, no layers", "learnt"),
        ("Line in MACs", "baseline"),
        ("Measured again", "noise"),
    )
    found = quality.to_dict()
    for label, part in named:
        e = found[part]
        if e is None:
            continue
        row = [
            label,
            percent(e["median"]),
            f"{signed(e['bias'])}%",
            percent(e["within_5_percent"], 0),
            percent(e["within_10_percent"], 0),
        ]
        rows.append([*row, _rank(e["spearman"])])
    corrected, noise, macs = found["corrected"], found["noise"], found["baseline"]
    words = (
        f"{len(contents.table.entries)} layers were timed. On {quality.networks} whole networks that the correction has not "
        f"seen, half of the estimates are within <strong>{percent(corrected['median'])}</strong>; measuring the same network "
        f"again differs by {percent(noise['median'])}, which no estimate can beat, and a line in MACs misses by "
        f"{percent(macs['median'])}."
    )
    head = ["Estimate", "Median error", "Bias", "Within 5&nbsp;%", "Within 10&nbsp;%", "Spearman"]
    return section("Latency table", words, table("Against measured networks", head, rows))


def _provenance(contents: Contents) -> str:
    facts = _run_facts(contents) | _search_facts(contents)
    facts["Written by"] = ", ".join(f"{name}: {maker}" for name, maker in contents.makers.items())
    facts["Report by"] = f"{made_by()}, Python {platform.python_version()}"
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    return section("Provenance", "", f'<dl class="provenance">{rows}</dl>')


def _run_facts(contents: Contents) -> dict[str, Any]:
    """What the supernet was trained on and how."""
    run, data = contents.run, contents.run.settings["data"]
    logged = (contents.log or {}).get("data") or {}
    facts: dict[str, Any] = {"Run folder": run.path}
    facts["Data"] = f"{data.get('name')} ({data.get('source')}), seed {data.get('seed')}, hash {data.get('hash')}"
    if "images" in logged:
        facts["Images"] = ", ".join(f"{n:,} {part}" for part, n in logged["images"].items())
    if "class_names" in logged:
        names = [str(name) for name in logged["class_names"]]
        more = ["…"] if len(names) > MOST_NAMES else []
        facts["Classes"] = f"{len(names)}: {', '.join(names[:MOST_NAMES] + more)}"
    facts["Space"] = f"{run.space.key}, {run.space.count():.3g} networks"
    facts["Recipe"] = _flat(run.settings["recipe"])
    facts["Seed"] = run.settings["seed"]
    return facts


def _search_facts(contents: Contents) -> dict[str, Any]:
    """How the front was found, and what its latencies were measured on."""
    facts: dict[str, Any] = {}
    if contents.front:
        front = contents.front
        facts["Search"] = _flat({key: value for key, value in front.provenance.items() if key != "predictor"})
        facts["Objectives"] = ", ".join(front.objectives)
        facts["Limits"] = ", ".join(limit_text(name, bound) for name, bound in front.limits.items()) or "none"
    if contents.table:
        facts["Device"] = _flat(contents.table.fingerprint)
        facts["Timing"] = _flat(contents.table.conditions)
        if contents.table.correction:
            facts["Correction"] = _flat(contents.table.correction.to_dict())
    return facts


# ---- pieces -------------------------------------------------------------------------------------------------


def _list(lines: list[str], kind: str = "") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _rank(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _flat(value: Mapping[str, Any]) -> str:
    """A mapping's plain values on one line."""
    parts = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            parts.append(f"{key} ({', '.join(item)})")
        else:
            parts.append(f"{key} {item:.4g}" if isinstance(item, float) else f"{key} {item}")
    return ", ".join(parts)
