"""Parts of the report beyond the front: INT8 twins, other files, histories, commands, Markdown and CSV, notebook figures."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import nas
from nas.baselines import Baseline
from nas.pages.charts import Line, line_chart
from nas.pages.contents import Contents, read_contents, train_command
from nas.pages.history import artefacts, search_history, training
from nas.pareto import ParetoFront
from nas.quantising import LayerLoss, Quantised
from nas.reporting import write_report
from nas.runs import Run
from nas.verification import Excess, Timed, Verification
from search_spaces.artifacts import file_hash, write_json
from tests.nas.test_reporting import HOSTILE, data_of, make_run, page_of


def add_twins(run: Run) -> tuple[str, str]:
    """INT8 twins of the first two networks, verified: the first is better than anything, the second worse."""
    front, found = ParetoFront.load(run.file("front.json")), Verification.load(run.file("verified.json"))
    twins = []
    for index, (point, network) in enumerate(zip(front.points[:2], found.networks, strict=False)):
        path = run.exports / f"{point.arch.id}-int8.onnx"
        path.write_bytes(b"int8")
        source = file_hash(run.exports / f"{point.arch.id}.onnx")
        losses = (LayerLoss("blocks.3", 0.01, 0.05),)
        made = Quantised(path.stem, point.arch.id, path.name, file_hash(path), source, 28, 64, 100, 0.9, 0.89, 400, 100, 0.01,
                         ("blocks.3",), losses)  # fmt: skip
        write_json(run.exports / f"{path.stem}.json", "quantised", 1, asdict(made))
        better = (
            {"accuracy": 0.99, "accuracy_high": 1.0, "latency_ms": 1e-4}
            if index == 0
            else {"latency_ms": 10 * network.latency_ms}
        )
        twins.append(replace(network, id=path.stem, promised={}, precision="int8", network=point.arch.id, **better))
    timed = [Timed("foreign", 0.3, 0.2, 0.4, f"it gives no class scores {HOSTILE}")]
    replace(found, quantised=twins, timed=timed, excess=Excess(5, 0.01, -0.005, 0.025)).save(run.file("verified.json"))
    copied = Baseline("foreign", "baselines/foreign.onnx", 28, source="/somewhere/foreign.onnx")
    write_json(run.path / "baselines" / "foreign.json", "baseline", 2, asdict(copied))
    return twins[0].id, twins[1].id


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = make_run(tmp_path_factory.mktemp("parts") / "run")
    add_twins(made)
    return made


def test_int8_twins_are_points_of_their_own(run: Run) -> None:
    page = page_of(run)
    data = data_of(page)
    first, second = (row.id for row in read_contents(run).twins)
    networks = {network["id"]: network for network in data["networks"]}
    assert len(networks) == 7
    assert (
        networks[first]["command"] == f"nas quantize {run.path} --pick {first.removesuffix('-int8')} --images 64 --max-loss 1"
    )
    assert networks[first]["quantised"]["kept"] == ["blocks.3"]
    by_role = {trace["meta"]["role"]: trace for trace in data["figure"]["data"]}
    assert by_role["int8"]["customdata"] == [first]
    assert by_role["int8_out"]["customdata"] == [second]
    assert data["budget"]["min"] <= networks[first]["latency"] + data["budget"]["step"]
    assert "1 INT8 twin is on the verified front" in page
    assert "✓ dominated" in page
    assert f'data-id="{second}"' in page


def test_twins_that_are_not_verified_are_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = run.file("verified.json").read_bytes()
    add_twins(run)
    run.file("verified.json").write_bytes(before)
    page = page_of(run)
    assert "2 INT8 twins are not verified" in page
    assert len(data_of(page)["networks"]) == 5


def test_files_that_were_only_timed_are_on_the_axis(run: Run) -> None:
    page = page_of(run)
    figure = data_of(page)["figure"]
    timed = next(trace for trace in figure["data"] if trace["meta"]["role"] == "timed")
    (left, right), (low, high) = figure["layout"]["xaxis"]["range"], figure["layout"]["yaxis"]["range"]
    assert left < timed["x"][0] < right
    assert low < timed["y"][0] < high
    assert "was timed only (0.300 ms)" in page
    assert "<img" not in page


def test_the_winners_curse_is_said_with_its_interval(run: Run) -> None:
    page = page_of(run)
    assert "promised <strong>1.0 points above</strong>" in page
    assert "interval -0.5 to +2.5 points" in page


def test_arrows_point_from_promised_to_verified(run: Run) -> None:
    way = next(trace for trace in data_of(page_of(run))["figure"]["data"] if trace["meta"]["role"] == "way")
    assert way["marker"]["symbol"] == "arrow"
    assert way["marker"]["angleref"] == "previous"
    assert len(way["marker"]["size"]) == len(way["x"]) == 15


def test_every_artefact_has_its_command(run: Run) -> None:
    contents = read_contents(run)
    commands = dict(artefacts(contents))
    first = contents.twins[0]
    assert commands["supernet.safetensors"].startswith("nas train-supernet --data folder:tiny")
    assert commands["front.json"] == f"nas search {run.path} --device fake --limit latency=1000 --seed 0"
    assert commands[f"exports/{first.id}.onnx"].startswith("nas quantize ")
    assert commands["baselines/foreign.onnx"] == f"nas compare {run.path} /somewhere/foreign.onnx"
    assert commands["verified.json"] == f"nas verify {run.path} --device fake"
    page = page_of(run)
    for command in commands.values():
        assert command in page


def test_the_export_command_has_the_options_that_were_used(run: Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "run")
    half = Run.open(tmp_path / "run")
    arch_id = read_contents(half).rows[0].id
    path = half.exports / f"{arch_id}.json"
    value = json.loads(path.read_text())
    value["format"] |= {"opset": 20, "pixels": "nhwc", "softmax": True}
    path.write_text(json.dumps(value))
    command = read_contents(half).command(read_contents(half).rows[0])
    assert command.endswith(f"--pick {arch_id} --opset 20 --pixels nhwc --softmax")


def test_markdown_and_csv_hold_the_same_networks(run: Run) -> None:
    report = write_report(run)
    frame = report.to_frame()
    assert list(frame["kind"]) == ["network"] * 5 + ["int8"] * 2 + ["baseline", "timed"]
    with report.csv.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == list(frame["id"])
    text = report.markdown.read_text("utf-8")
    for name in frame["id"]:
        assert f"| {name} |" in text
    assert "\\<script\\>" in text  # what files say stays text
    assert not re.search(r"(?<!\\)<", text)
    assert Path(report) == report.path


def test_a_run_that_has_only_begun_has_markdown_too(run: Run, tmp_path: Path) -> None:
    report = write_report(Run.create(tmp_path / "new", run.settings))
    assert "Still missing" in report.markdown.read_text()
    assert len(report.to_frame()) == 0
    assert nas.report(tmp_path / "new").path == report.path


def test_training_curves_are_drawn_from_what_there_is(run: Run, tmp_path: Path) -> None:
    import shutil

    assert page_of(run).count('class="chart"') == 2  # from the phases
    shutil.copytree(run.path, tmp_path / "run")
    half = Run.open(tmp_path / "run")
    table = half.file("training/log.csv")
    table.write_text("step,loss,largest\n10,1.5,\n20,nan,\n30,,0.5\n40,1.25,\n50,1.1")
    curves = read_contents(half).curves
    assert curves == {"loss": ((10.0, 1.5), (40.0, 1.25), (50.0, 1.1)), "largest": ((30.0, 0.5),), "smallest": ()}
    # Training that is not at its end: the curves so far, and one line of what is missing.
    for name in ("training/log.json", "supernet.safetensors"):
        half.file(name).unlink()
    begun = read_contents(half)
    section = training(begun)
    assert "Not at its end yet" in section
    assert "Phases" not in section
    commands = [line.command for line in begun.missing if "train-supernet" in line.command]
    assert commands == [f"nas train-supernet --out {half.path}"]
    shutil.copytree(run.path, half.path, dirs_exist_ok=True)
    table.write_bytes(b"\xff\xfe nonsense")
    assert not any(read_contents(half).curves.values())
    assert page_of(half).count('class="chart"') == 2


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, "--data"),
        ({"data": {"augment": False}}, "--no-augment"),
        ({"recipe": {"momentum": 0.8}}, None),
        ({"recipe": {"name": "mine"}}, None),
        ({"weights": {"file": "w.pt"}}, None),
    ],
)
def test_the_training_command_says_all_or_leaves_it_to_the_run(run: Run, changes: dict[str, Any], options: str | None) -> None:
    settings = dict(run.settings)
    for name, change in changes.items():
        settings[name] = settings.get(name, {}) | change
    command = train_command(replace(run, settings=settings))
    if options is None:
        assert command == f"nas train-supernet --out {run.path}"
    else:
        assert options in command


def test_search_history_is_shown_where_it_was_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = read_contents(run)
    assert search_history(contents) == ""
    monkeypatch.setattr(Contents, "hypervolume", lambda _self: [0.1, 0.5, 0.5, 0.7, 0.7])
    section = search_history(contents)
    assert "5 subnets were scored" in section
    assert "was there after 4" in section


def test_charts_keep_their_lines_inside_and_need_two_points() -> None:
    assert line_chart([Line("a", [(1, 2)], "verified")], x="x", y="y") == ""
    drawn = line_chart([Line("<b>", [(i, (-1) ** i * i) for i in range(2000)], "verified")], x="x", y="y")
    assert "<b>" not in drawn
    places = drawn.split('points="')[1].split('"')[0].split()
    assert len(places) <= 401
    assert all(0 <= float(place.split(",")[0]) <= 560 and 0 <= float(place.split(",")[1]) <= 220 for place in places)
    flat = line_chart([Line("a", [(0, 1.0), (1, 1.0)], "verified")], x="x", y="y")
    assert "nan" not in flat


def test_a_front_draws_itself_for_notebooks(run: Run) -> None:
    front = ParetoFront.load(run.file("front.json"))
    figure = front.plot()
    (trace,) = figure.data
    assert list(trace.customdata) == [point.arch.id for point in front]
    assert list(trace.x) == pytest.approx([point.values["latency"] for point in front])
    assert list(trace.y) == pytest.approx([100 * point.values["accuracy"] for point in front])
    assert figure.layout.xaxis.title.text == "latency, ms"
    own = ParetoFront(front.space, front.points, {"macs": "min", "params": "min"}, {}, {})
    assert own.plot().layout.yaxis.title.text == "macs"
