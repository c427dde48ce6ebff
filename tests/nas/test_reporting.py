"""The report of runs made by hand: whole, half finished, damaged, hostile."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import search_spaces
from latency_tables import LatencyTable, Measurement
from latency_tables.correction import Correction, Errors, Quality
from latency_tables.entries import Entry
from nas.archive import Archive, Score
from nas.baselines import Baseline
from nas.exporting import Export
from nas.pages.words import count, ms, percent, signed, tiny
from nas.pareto import ParetoFront, Point
from nas.recipes import load_recipe
from nas.reporting import script_json, write_report
from nas.runs import SUPERNET_VERSION, Run
from nas.verification import Verification, Verified, wilson_interval
from search_spaces.artifacts import file_hash, write_json
from supernets import save_tensors

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>&"'@@data@@"""
IMAGES = 1000


def make_run(folder: Path, *, word: str = "tiny", limit: float = 1e3) -> Run:
    """A finished run of five networks, without training anything."""
    space = search_spaces.build("small-mobilenet", width=0.5, image=28, channels=1)
    data = {"source": f"folder:{word}", "name": word, "seed": 0, "hash": "0123456789abcdef"}
    recipe = load_recipe("progressive", epochs=2.5).to_dict()
    run = Run.create(folder, {"space": space.to_dict(), "data": data, "recipe": recipe, "seed": 3})
    table = make_table(space)
    table.save(run.table(table.device))
    save_tensors(run.weights, {"weight": torch.zeros(1)}, "supernet", SUPERNET_VERSION, {})
    archive = Archive(run.study, space, weights=run.weights_hash())
    archs = sorted(space.sample(5, seed=1), key=table.estimate)
    for index, arch in enumerate(space.sample(8, seed=2)):
        archive.add(Score(arch, 0.5 + 0.03 * index, IMAGES))
    card = {"kind": "ridge", "networks": 8, "kendall": 0.6, "spearman": 0.8, "rmse": 0.01, "spread": 0.03, "covered_90": 0.875}
    points = []
    for index, arch in enumerate(archs):
        values = {"accuracy": 0.8123 + 0.02 * index, "latency": table.estimate(arch), "macs": float(space.macs(arch))}
        values |= {"params": float(space.params(arch)), "size": float(space.weight_bytes(arch)), "memory": 1e5}
        points.append(Point(arch, values, {"accuracy": 0.01}))
    provenance = {"device": table.device, "table": "fake.json", "predictor": card, "seed": 0}
    front = ParetoFront(space, tuple(points), {"accuracy": "max", "latency": "min"}, {"latency": limit}, provenance)
    front.save(run.file("front.json"))
    rows = [make_verified(point, limit) for point in points]
    alone = replace(rows[-1], id="largest-alone", promised={}, broken=[])
    Verification(table.device, "wall", rows, [alone]).save(run.file("verified.json"))
    for point in points:
        make_export(run, point.arch.id)
    baseline = Baseline("largest-alone", "baselines/largest-alone.onnx", 28, 5000, 12.0)
    write_json(folder / "baselines" / "largest-alone.json", "baseline", 1, asdict(baseline))
    phases = [{"phase": name, "step": 10, "loss": 1.25, "largest": 0.5, "smallest": 0.4} for name in ("full", word)]
    log = {"phases": phases, "seconds": 9.5, "images": 5000, "data": {"class_names": [word, "cat"], "images": {"train": 10}}}
    write_json(run.file("training/log.json"), "training-log", 1, log)
    return run


def make_table(space: search_spaces.SearchSpace) -> LatencyTable:
    def measured(value: float) -> Measurement:
        return Measurement(value, value, value, value, 5, 1)

    def errors(median: float) -> Errors:
        return Errors(median, median, 0.0, 0.8, 0.9, 0.99)

    entries = {layer.key: Entry(measured(0.01 + 1e-7 * layer.macs)) for layer in space.layers()}
    quality = Quality(10, 8, errors(0.021), errors(0.05), errors(0.19), errors(0.008))
    correction = Correction("scale", 0.005, 1.05, 0.0)
    conditions = {"clock": "wall"}
    return LatencyTable("fake", {"processor": "none"}, conditions, space, measured(0.005), entries, (), correction, quality)


def make_verified(point: Point, limit: float) -> Verified:
    right = round((point.values["accuracy"] - 0.01) * IMAGES)
    latency = 1.02 * point.values["latency"]
    broken = [f"latency <= {limit:.3g} ms"] if latency > limit else []
    promised = {name: point.values[name] for name in ("accuracy", "latency")}
    interval = wilson_interval(right, IMAGES)
    return Verified(point.arch.id, promised, right / IMAGES, *interval, IMAGES, latency, 0.9 * latency, 1.1 * latency, broken)


def make_export(run: Run, arch_id: str) -> None:
    path = run.exports / f"{arch_id}.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(arch_id.encode())
    export = Export(arch_id, path.name, file_hash(path), 28, IMAGES, 2e-7, 1.0, True, finetuned=False)
    write_json(run.exports / f"{arch_id}.json", "export", 1, asdict(export))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run; tests that change it take a copy."""
    made = make_run(tmp_path_factory.mktemp("runs") / "a run")
    write_report(made)
    return made


def page_of(run: Run) -> str:
    """The page without plotly's own source."""
    from plotly.offline import get_plotlyjs

    return write_report(run).path.read_text("utf-8").replace(get_plotlyjs(), "")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder)
    return Run.open(folder)


def test_every_network_is_there_with_its_command(run: Run) -> None:
    page = page_of(run)
    assert len(ParetoFront.load(run.file("front.json"))) == 5
    for point in ParetoFront.load(run.file("front.json")):
        assert f'data-id="{point.arch.id}"' in page
        command = f"nas export '{run.path}' --pick {point.arch.id}"
        assert f"<code>{html.escape(command)}</code>" in page
    assert "Still missing" not in page


def test_the_page_is_one_file_that_loads_nothing(run: Run) -> None:
    page = page_of(run)
    assert run.file("report.html").stat().st_size < 6e6
    assert not re.findall(r"""(?:src|href|action)\s*=|url\(|fetch\(|import\s*\(|XMLHttpRequest|https?://|@import""", page)
    assert "default-src 'none'" in page
    assert "@@" not in page


def test_data_in_the_page_are_the_promised_and_the_verified_values(run: Run) -> None:
    front, verification = ParetoFront.load(run.file("front.json")), Verification.load(run.file("verified.json"))
    networks = data_of(page_of(run))["networks"]
    assert [n["id"] for n in networks] == [p.arch.id for p in front]
    for network, point, verified in zip(networks, front, verification.networks, strict=True):
        assert network["promised"] == {**{k: point.values[k] for k in ("accuracy", "latency")}, "std": 0.01}
        assert network["verified"] == asdict(verified)
        assert (network["accuracy"], network["latency"]) == (verified.accuracy, verified.latency_ms)
        assert network["export"]["proven"] is True


def test_times_add_up_to_the_promise_and_blocks_are_the_layers(run: Run) -> None:
    for network in data_of(page_of(run))["networks"]:
        assert sum(row["ms"] for row in network["times"]) == pytest.approx(network["promised"]["latency"])
        blocks = [block for row in network["drawing"] for block in row["blocks"]]
        arch = next(p.arch for p in ParetoFront.load(run.file("front.json")) if p.arch.id == network["id"])
        assert [block["title"] for block in blocks if block] == [layer.key for layer in run.space.lower(arch)]
        assert len(blocks) == len(run.space.positions)
        stages = [row for row in network["drawing"] if row["stage"]]
        assert [len([b for b in row["blocks"] if b]) for row in stages] == arch["depth"]
        drawn = [block["kernel"] for row in stages for block in row["blocks"] if block]
        assert drawn == [kernel for kernel in arch["kernel"] if kernel is not None]


def test_the_figure_is_valid_and_its_ranges_hold_the_front(run: Run) -> None:
    import plotly.graph_objects as go

    figure = data_of(page_of(run))["figure"]
    go.Figure(figure)  # refuses what plotly does not know
    by_role = {trace["meta"]["role"]: trace for trace in figure["data"]}
    assert list(by_role) == ["scored", "way", "promised", "verified", "knee", "chosen", "baseline"]
    assert len(by_role["scored"]["x"]) == 8
    assert len(by_role["way"]["x"]) == 15
    (left, right), (low, high) = figure["layout"]["xaxis"]["range"], figure["layout"]["yaxis"]["range"]
    for role in ("promised", "verified", "baseline"):
        trace = by_role[role]
        assert left < min(trace["x"]) <= max(trace["x"]) < right
        assert low < min(trace["y"]) <= max(trace["y"]) < high
    assert by_role["promised"]["error_y"]["array"] == pytest.approx([1.96] * 5)


def test_every_network_is_within_the_slider(run: Run) -> None:
    data = data_of(page_of(run))
    budget, latencies = data["budget"], [network["latency"] for network in data["networks"]]
    assert min(latencies) <= budget["min"] <= min(latencies) + budget["step"]
    assert max(latencies) <= budget["max"] <= max(latencies) + budget["step"]
    assert budget["min"] <= budget["value"] <= budget["max"]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "<b>&$(reboot)", word=HOSTILE))
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img" not in page
    assert "<b>&$" not in page
    assert html.escape(HOSTILE) in page
    command = data_of(page)["networks"][0]["command"]
    assert f"'{tmp_path / '<b>&$(reboot)'}'" in command


def test_script_json_cannot_end_its_element_and_reads_back() -> None:
    value = {"name": f"<!--{HOSTILE}\u2028", "values": [1.5, None, True]}
    dumped = script_json(value)
    assert not set("<>&\u2028") & set(dumped)
    assert json.loads(dumped) == value


PARTS = {
    "supernet.safetensors": "nas train-supernet --out ",
    "training/log.json": "nas train-supernet --out ",
    "tables": "nas profile ",
    "study.db": "nas search ",
    "front.json": "nas search ",
    "exports": "nas export ",
    "verified.json": "nas verify ",
    "baselines": "nas compare ",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named_with_its_command(run: Run, tmp_path: Path, part: str) -> None:
    half = copied(run, tmp_path / "half")
    path = half.path / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(half)
    assert "Still missing" in page
    assert f"<code>{PARTS[part]}" in page
    if part != "front.json":
        assert len(data_of(page)["networks"]) == 5


def test_a_run_that_has_only_begun_has_a_page(run: Run, tmp_path: Path) -> None:
    page = page_of(Run.create(tmp_path / "new", run.settings))
    assert "No front yet" in page
    assert data_of(page) == {"figure": None, "networks": [], "verified": False, "knee": None, "budget": None}
    for command in PARTS.values():
        assert f"<code>{command}" in page
    assert len(page) < 1e5  # nothing to draw: plotly stays out


@pytest.mark.parametrize("part", ["front.json", "verified.json", "training/log.json", "tables/fake.json"])
@pytest.mark.parametrize("text", ["{", '{"kind": "run", "version": 1}', "[]", "KIND"])
def test_a_damaged_part_is_named_and_costs_no_other(run: Run, tmp_path: Path, part: str, text: str) -> None:
    half = copied(run, tmp_path / "half")
    kind = json.loads(half.file(part).read_text())["kind"]
    half.file(part).write_text(text.replace("KIND", json.dumps({"kind": kind, "version": 1})))
    page = page_of(half)
    assert "cannot be read" in page
    assert "Provenance" in page


def test_a_changed_onnx_file_is_no_proof(run: Run, tmp_path: Path) -> None:
    half = copied(run, tmp_path / "half")
    first = ParetoFront.load(run.file("front.json")).points[0].arch.id
    (half.exports / f"{first}.onnx").write_bytes(b"other")
    page = page_of(half)
    assert f"The export of {first} cannot be read" in page
    assert data_of(page)["networks"][0]["export"] is None
    assert "All 4 ONNX files are proven" in page


def test_broken_limits_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    latencies = sorted(p.values["latency"] for p in ParetoFront.load(run.file("front.json")))
    page = page_of(make_run(tmp_path / "strict", limit=float(np.mean(latencies[-2:]))))
    assert "is broken</strong> by 1 of 5 networks" in page
    assert "✗ breaks latency ≤ " in page
    assert "kept</strong> by all 5 verified networks" in page_of(run)


def test_what_was_exported_again_is_not_verified(run: Run, tmp_path: Path) -> None:
    """The figures are of a file that is no longer there."""
    half = copied(run, tmp_path / "half")
    found = Verification.load(half.file("verified.json"))
    best = max(ParetoFront.load(half.file("front.json")), key=lambda point: point.values["accuracy"]).arch.id
    of_files = [
        replace(
            n, broken=[], sha256="0" * 64 if n.id == best else json.loads((half.exports / f"{n.id}.json").read_text())["sha256"]
        )
        for n in found.networks
    ]
    replace(found, networks=of_files).save(half.file("verified.json"))
    page = page_of(half)
    assert "1 of 5 networks of this front are not verified" in page
    assert [row["id"] for row in data_of(page)["networks"] if row["verified"] is None] == [best]
    assert f"The network promised best, {best}, is not verified yet" in page


def test_verification_of_an_earlier_front_is_left_out(run: Run, tmp_path: Path) -> None:
    half = copied(run, tmp_path / "half")
    found = Verification.load(half.file("verified.json"))
    others = [replace(network, id=f"old{network.id[3:]}") for network in found.networks[:2]]
    replace(found, networks=[*others, *found.networks[2:]]).save(half.file("verified.json"))
    page = page_of(half)
    assert "2 of 5 networks of this front are not verified" in page
    assert [network["verified"] is None for network in data_of(page)["networks"]] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (ms(1.2), "1.20 ms"),
        (ms(0.0123456), "0.0123 ms"),
        (ms(9.996), "10.0 ms"),
        (ms(99.96), "100 ms"),
        (ms(1234.4), "1234 ms"),
        (ms(0.0), "0.00 ms"),
        (percent(0.9234), "92.3%"),
        (signed(-0.0004), "0.0"),
        (signed(-0.0126), "-1.3"),
        (tiny(2.4e-7), "2e-7"),
        (tiny(0.0), "0"),
        (count(12_345_678, "B"), "12.3 MB"),
        (count(999), "999"),
    ],
)
def test_numbers_as_people_read_them(shown: str, wanted: str) -> None:
    assert shown == wanted
