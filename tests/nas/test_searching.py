"""Searching a run: devices, budgets, limits that exclude each other, proposals that are scored, going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
import pytest
import torch

import nas
from nas.archive import Archive, Score
from nas.feasibility import check_together
from nas.fronts import Pool, hypervolumes
from nas.goals import Goal, make_goal
from nas.objectives import Objective, parse_budgets, parse_limits
from nas.pages.contents import read_contents
from nas.pareto import ParetoFront, hypervolume_trace, non_dominated
from nas.reporting import write_report
from nas.runs import Run
from nas.scoring import choose_subnets
from nas.searching import Scoring, _stalled, score_run
from nas.verification import Verification, Verified
from search_spaces import UserError
from tests.nas.test_cli import nas as command
from tests.nas.tiny import DEVICES, tiny_run

QUICK: dict[str, Any] = {"samples": 20, "images": 100, "points": 6, "generations": 10, "predictor": "ridge"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With 20 scores."""
    run = tiny_run(tmp_path_factory.mktemp("runs") / "run")
    nas.score(run, samples=20, images=100)
    return run.path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def tables(made: Path) -> dict[str, nas.LatencyTable]:
    return {device: nas.LatencyTable.load(Run.open(made).table(device)) for device in DEVICES}


def goal(tables: dict[str, nas.LatencyTable], limits: dict[str, Any], objectives: Any = None) -> Goal:
    return make_goal(next(iter(tables.values())).space, tables, objectives, limits)


def scores(run: Run) -> list[Score]:
    return Archive(run.study, run.space, weights=run.weights_hash()).scores()


def middle(table: nas.LatencyTable, share: float) -> float:
    return table.fastest()[0] + share * (table.slowest()[0] - table.fastest()[0])


# ---- what is wanted -----------------------------------------------------------------------------------------------


def test_budgets_are_every_combination() -> None:
    found = parse_budgets({"latency": "10ms,5ms", "params": ["4M", 2e6], "macs": "1G"})
    assert [[limit.bound for limit in case] for case in found] == [
        [5.0, 2e6, 1e9], [5.0, 4e6, 1e9], [10.0, 2e6, 1e9], [10.0, 4e6, 1e9],
    ]  # fmt: skip
    assert parse_budgets({}) == [[]]
    with pytest.raises(UserError, match="combinations"):
        parse_budgets({name: [1, 2, 3, 4, 5] for name in ("latency", "params", "macs")})


def test_names_of_devices(tables: dict[str, nas.LatencyTable]) -> None:
    wanted = goal(tables, {"latency@desk": "1ms", "latency@phone": "2ms", "params": "4M"})
    assert wanted.objectives == ("accuracy", "latency", "latency@phone")
    assert [limit.objective for limit in wanted.loosest] == ["latency", "latency@phone", "params"]
    own = {view.device: view for view in wanted.views}
    assert own["phone"].objectives == ("accuracy", "latency@phone")
    assert [limit.objective for limit in own["phone"].limits] == ["latency@phone", "params"]
    rows = wanted.space.sample_rows(20, np.random.default_rng(0))
    for device, name in (("desk", "latency"), ("phone", "latency@phone")):
        assert np.allclose(wanted.known[name].values(rows), tables[device].estimate(rows))
        speed = wanted.known[name.replace("latency", "throughput")]
        assert np.allclose(speed.values(rows), 1000 / tables[device].estimate(rows))
    several = goal(tables, {"params": "90k,4M"})
    assert "params" in several.objectives  # a quantity with several budgets is traded against the others
    assert [limit.bound for limit in several.loosest] == [4e6]


@pytest.mark.parametrize(
    ("limits", "objectives", "words"),
    [
        ({"latency@pixel": "1ms"}, None, "'pixel' is not among the devices"),
        ({"params@phone": "1M"}, None, "params@phone"),
        ({"energy": "3mJ"}, None, "nobody measured energy"),
        ({"volume": 3}, None, "unknown objective 'volume'"),
        ({"latency": "5,ms"}, None, "limit latency="),
        ({}, ("accuracy",), "objectives"),
        ({}, ("latency", "latency@desk"), "objectives"),
    ],
)
def test_what_cannot_be_wanted_is_named(
    tables: dict[str, nas.LatencyTable], limits: dict[str, Any], objectives: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        goal(tables, limits, objectives)


def test_a_table_without_a_batch_gives_no_throughput(tables: dict[str, nas.LatencyTable]) -> None:
    with pytest.raises(UserError, match="nobody measured throughput"):
        goal({"desk": replace(tables["desk"], fingerprint={})}, {"throughput": 10})


def test_limits_that_exclude_each_other_are_answered_with_what_is_reachable() -> None:
    """Two costs that pull in opposite directions: the reachable values are known."""
    space = nas.SearchSpace({"a": list(range(10)), "b": list(range(10))}, name="grid")

    def cost(sign: int) -> Any:
        return lambda rows: 10.0 + sign * (rows[:, 0] + rows[:, 1])

    def end(row: list[int], sign: int) -> Any:
        return lambda: (10.0 + sign * sum(row), np.array(row))

    known = {
        "macs": Objective("macs", "", False, cost(1), end([0, 0], 1)),
        "params": Objective("params", "", False, cost(-1), end([9, 9], -1)),
    }
    check_together(space, known, parse_limits({"macs": 15, "params": 5}))
    with pytest.raises(UserError, match="macs <= 15, params <= 4") as caught:
        check_together(space, known, parse_limits({"macs": 15, "params": 4}))
    assert "under params <= 4, macs reaches 16" in caught.value.allowed.lower()
    assert "under macs <= 15, params reaches 5" in caught.value.allowed.lower()
    assert "--limit macs=" in caught.value.next_step


# ---- scores -------------------------------------------------------------------------------------------------------


def test_known_scores_count_among_those_chosen(tables: dict[str, nas.LatencyTable]) -> None:
    space, cost = tables["desk"].space, tables["desk"].cost()
    first = choose_subnets(space, 20, cost, np.random.default_rng(0))
    more = choose_subnets(space, 50, cost, np.random.default_rng(0), known=first)
    assert len(more) == 30
    assert len({*first, *more}) == 50
    prices = np.sort(np.log(cost(space.to_array([*first, *more]))))
    assert np.diff(prices).max() < 0.2 * np.ptp(prices)


def test_proposals_follow_from_the_scores_alone(run: Run, tmp_path: Path, tables: dict[str, nas.LatencyTable]) -> None:
    wanted = goal({"desk": tables["desk"]}, {"latency": middle(tables["desk"], 0.5)})
    at_once = score_run(Scoring(run, 100), wanted, samples=26, first=20)
    assert [score.proposed for score in at_once] == [False] * 20 + [True] * 6
    assert all(tables["desk"].estimate(score.arch) <= middle(tables["desk"], 0.5) for score in at_once[20:])
    assert score_run(Scoring(run, 100), wanted, samples=26, first=20) == at_once
    twin = Run.open(shutil.copytree(run.path, tmp_path / "twin"))
    assert score_run(Scoring(twin, 100), wanted, samples=26, first=20) == at_once


def test_networks_are_queued_all_or_none(
    run: Run, tmp_path: Path, tables: dict[str, nas.LatencyTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it queues, a search goes on to the same scores in the same order."""
    wanted = goal({"desk": tables["desk"]}, {})
    amount: dict[str, Any] = {"samples": 26, "first": 20}
    run.study.unlink()
    twin = Run.open(shutil.copytree(run.path, tmp_path / "twin"))
    at_once = score_run(Scoring(twin, 100), wanted, **amount)
    add = optuna.Study.add_trial
    for left in (7, 13 + 3):  # of the 20 first ones; then the other 13, and 3 of the proposals
        calls = iter(range(left))

        def killed(study: optuna.Study, trial: optuna.trial.FrozenTrial, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            add(study, trial)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "add_trial", killed)
            with pytest.raises(KeyboardInterrupt):
                score_run(Scoring(run, 100), wanted, **amount)
    assert score_run(Scoring(run, 100), wanted, **amount) == at_once


# ---- fronts -------------------------------------------------------------------------------------------------------


def check_front(front: ParetoFront) -> None:
    assert len(front)
    assert len({point.arch for point in front}) == len(front)
    assert len(non_dominated(front.costs())) == len(front)
    for point in front:
        for name, bound in front.limits.items():
            value = point.values[name]
            assert value >= bound if name.partition("@")[0] in ("accuracy", "throughput") else value <= bound


def test_several_devices_and_budgets_in_one_search(run: Run, tables: dict[str, nas.LatencyTable]) -> None:
    tight, loose, phone = middle(tables["desk"], 0.2), middle(tables["desk"], 0.6), middle(tables["phone"], 0.3)
    limits = {"latency": [tight, loose], "latency@phone": phone}
    front = nas.search(run, device=DEVICES, limits=limits, **QUICK)
    assert len(scores(run)) == 20
    check_front(front)
    assert front.limits == {"latency": loose, "latency@phone": phone}
    names = list(front.parts)
    assert names[:2] == [f"latency <= {tight:.3g} ms", f"latency <= {loose:.3g} ms"]
    assert names[2:] == [f"desk, {names[0]}", f"desk, {names[1]}", "phone"]
    for part in front.parts.values():
        check_front(part)
    for name in names[:2]:  # a budget's front is a slice of the main one
        assert {point.arch for point in front.parts[name]} <= {point.arch for point in front}
    assert front.parts["phone"].limits == {"latency@phone": phone}
    sharing = front.records["sharing"]
    assert [row["device"] for row in sharing] == ["desk", "phone"] * 2
    for row in sharing:
        assert row["regret"] == pytest.approx(row["accuracy"] - row["shared_accuracy"])
        assert row["regret"] >= 0
    assert ParetoFront.load(run.file("front.json")) == front
    assert front.pick(f"latency@desk={tight}ms") == front.pick(f"latency={tight}ms")
    own = front.pick(f"latency@phone={phone}ms")
    everyone = [*front, *front.parts["phone"]]
    best = max(p.values["accuracy"] for p in everyone if p.values["latency@phone"] <= phone)
    assert own.values["accuracy"] == best
    assert front.pick(own.arch.id).arch == own.arch
    assert write_report(run).path.exists()  # it shows the first device
    contents = read_contents(run)
    assert (contents.device, contents.rows[0].promised_ms) == ("desk", contents.rows[0].point.values["latency"])
    seen = [
        Verified(
            point.arch.id,
            {"accuracy": point.values["accuracy"], "latency": point.values["latency@phone"]},
            0.5,
            0.4,
            0.6,
            100,
            *[2 * point.values["latency@phone"]] * 3,
            network=point.arch.id,
        )
        for point in front
    ]
    Verification("phone", "wall", seen, []).save(run.file("verified.json"))
    contents = read_contents(run)
    assert contents.device == "phone"
    assert [row.promised_ms for row in contents.rows] == [point.values["latency@phone"] for point in front]
    page = write_report(run).path.read_text()
    assert "on phone" in page
    assert f"Limit latency ≤ {loose:.3g} ms: not verified on phone" in page
    assert "-50.0" in page  # the error of every promise on this device, and of no other one
    assert f"nas search {run.path} --device desk --device phone" in page


def test_a_limit_on_accuracy_that_measurements_break_leaves_empty_fronts(run: Run, tables: dict[str, nas.LatencyTable]) -> None:
    known = scores(run)
    wanted = goal(tables, {"accuracy": 1.0, "latency": [1.0, 2.0]})
    rows = run.space.to_array([score.arch for score in known])
    fitted = nas.predictor("ridge", run.space, shares=True).fit(rows, [score.accuracy for score in known])
    front = Pool(wanted, fitted, known, rows).front(5, {})
    assert len(front) == 0
    assert {len(part) for part in front.parts.values()} == {0}
    assert front.records["sharing"] == []


def test_a_settled_front_has_predictions_only_where_nothing_scored_keeps_the_limits(
    run: Run, tables: dict[str, nas.LatencyTable]
) -> None:
    known = sorted(scores(run), key=lambda score: tables["desk"].estimate(score.arch))
    cheap, dear = known[:5], known[5:]
    rows = run.space.to_array([score.arch for score in known])
    fitted = nas.predictor("ridge", run.space, shares=True).fit(rows, [score.accuracy for score in known])
    limit = tables["desk"].estimate(cheap[-1].arch)
    pool = Pool(goal(tables, {"latency": limit}), fitted, dear, rows)
    for settled in (False, True):  # the cheap ones alone keep the limit, and count as not scored
        front = replace(pool, settled=settled).front(5, {})
        assert {point.measured for point in front} == {()}
    mixed = replace(pool, scores=[cheap[2], *dear], settled=True).front(5, {})
    assert [point.arch for point in mixed] == [cheap[2].arch]
    assert mixed.points[0].measured == ("accuracy",)


def test_the_loop_scores_proposals_and_the_front(run: Run) -> None:
    front = nas.search(run, device="desk", budget=40, **QUICK)
    known = {score.arch: score for score in scores(run)}
    assert 30 < len(known) <= 40  # what was kept to score the front is left where all of it was scored before
    check_front(front)
    for point in front:  # none of them is a prediction
        assert point.measured == ("accuracy",)
        assert point.values["accuracy"] == known[point.arch].accuracy
        assert point.std["accuracy"] == known[point.arch].standard_error
    volumes = front.records["hypervolume"]
    assert len(volumes) == len(known)
    assert (np.diff(volumes) >= 0).all()
    assert 0 < volumes[-1] < 1


def test_resuming_evaluates_nothing_known(run: Run, tables: dict[str, nas.LatencyTable]) -> None:
    limit = middle(tables["desk"], 0.5)
    first = nas.search(run, device="desk", limits={"latency": limit}, budget=30, **QUICK)
    count = len(scores(run))
    assert 20 < count <= 30
    with pytest.raises(UserError, match="is there already"):
        nas.search(run, device="desk", **QUICK)
    again = nas.search(run, resume=True, budget=30, **QUICK)
    assert (again.limits, again.points) == (first.limits, first.points)
    other = nas.search(run, resume=True, limits={"latency": middle(tables["desk"], 0.3)}, **QUICK)
    check_front(other)
    phone = nas.search(run, resume=True, device="phone", **QUICK)  # the limit on the other device is gone
    assert (phone.provenance["device"], phone.limits) == ("phone", {})
    assert len(scores(run)) == count
    both = nas.search(run, resume=True, device=DEVICES, limits={"latency@desk": limit}, budget=count + 6, **QUICK)
    assert both.limits == {"latency": limit}
    assert count < len(scores(run)) <= count + 6
    assert both.records["request"]["limits"] == {"latency@desk": limit}
    assert nas.search(run, resume=True, **QUICK).limits == {"latency": limit}


def test_resuming_keeps_objectives_that_were_asked_for(run: Run) -> None:
    nas.search(run, device="desk", objectives=("accuracy", "latency", "params"), **QUICK)
    more = nas.search(run, device=DEVICES, resume=True, **QUICK)
    assert list(more.objectives) == ["accuracy", "latency", "params"]
    nas.search(run, device=DEVICES, objectives=("accuracy", "latency@desk", "latency@phone"), force=True, **QUICK)
    fewer = nas.search(run, device="desk", resume=True, **QUICK)
    assert list(fewer.objectives) == ["accuracy", "latency"]


@pytest.mark.parametrize("wrong", [{"images": 0}, {"points": 0}, {"generations": 0}, {"seed": -1}])
def test_numbers_that_make_no_sense_are_refused_before_anything_is_queued(run: Run, wrong: dict[str, int]) -> None:
    before = run.study.read_bytes()
    with pytest.raises(UserError, match=next(iter(wrong))):
        nas.search(run, device="desk", **{**QUICK, "samples": 30, **wrong})
    if "images" in wrong:
        with pytest.raises(UserError, match="images"):
            nas.score(run, samples=30, **wrong)
    assert run.study.read_bytes() == before


def test_what_there_is_not_is_named_before_anything_is_measured_or_asked_for(run: Run) -> None:
    nas.search(run, device="desk", **QUICK)
    for wrong, message in (
        ({"objectives": ("accuracy", "speed")}, "unknown objective 'speed'"),
        ({"limits": {"latncy": "5ms"}}, "did you mean 'latency'"),
        ({"limits": {"latency@moon": "5ms"}}, "'moon' is not among the devices"),
        ({"limits": {"latency": "fast"}}, "limit latency=fast"),
        ({}, "is there already"),
    ):
        with pytest.raises(UserError, match=message):
            nas.search(run, **QUICK, **wrong)
    untrained = Run.open(run.path)
    run.weights.unlink()
    with pytest.raises(UserError, match="not trained to the end"):
        nas.search(untrained, device="desk", force=True, **QUICK)


def test_a_limit_beyond_all_accuracy_is_refused_before_anything_is_scored(run: Run) -> None:
    with pytest.raises(UserError, match="accuracy >= 9000") as caught:
        nas.search(run, device="desk", limits={"accuracy": 90}, **{**QUICK, "samples": 30})
    assert "accuracy=90%" in caught.value.next_step
    assert len(scores(run)) == 20


@pytest.mark.parametrize("options", [{"width": [8]}, {"width": [8, 12]}, {"width": [8, 12, 16]}])
def test_tiny_spaces_are_scored_whole_and_too_small_to_search(options: dict[str, list[int]]) -> None:
    space = nas.SearchSpace(options, name="tiny")
    cost = lambda rows: 1.0 + rows.sum(axis=1)  # noqa: E731
    for n in (1, 20):
        found = choose_subnets(space, n, cost, np.random.default_rng(0))
        assert len(found) == len(set(found)) == min(n, space.count())


def test_the_front_of_a_search_without_budget_is_predicted(run: Run) -> None:
    fronts = [nas.search(run, device="desk", force=True, seed=4, **QUICK) for _ in range(2)]
    assert fronts[0].points == fronts[1].points
    assert not any(point.measured for point in fronts[0])


def test_the_search_ends_when_the_front_stops_growing(run: Run, tables: dict[str, nas.LatencyTable], monkeypatch) -> None:
    wanted = goal({"desk": tables["desk"]}, {})
    monkeypatch.setattr("nas.searching.BATCH", 2)
    monkeypatch.setattr("nas.searching.STALLED", 1.0)  # any growth is too little
    assert len(score_run(Scoring(run, 100), wanted, samples=40, first=20, until_stalled=True)) == 26
    assert len(score_run(Scoring(run, 100), wanted, samples=28, first=20)) == 28


def test_looking_for_a_network_within_the_limits_is_no_stall(
    run: Run, tables: dict[str, nas.LatencyTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = goal({"desk": tables["desk"]}, {})
    known = score_run(Scoring(run, 100), wanted, samples=26)
    monkeypatch.setattr("nas.searching.BATCH", 2)
    for volumes, ends in (([0.0] * 26, False), ([0.0] * 25 + [0.1], False), ([0.1] * 26, True), ([0.1] * 25 + [0.2], False)):
        monkeypatch.setattr("nas.searching.hypervolumes", lambda *_, v=volumes: v)
        assert _stalled(wanted, known, 0) is ends


def test_an_unknown_predictor_is_refused_before_anything_is_scored(run: Run) -> None:
    with pytest.raises(UserError, match="did you mean 'ridge'"):
        nas.search(run, device="desk", samples=30, predictor="rigde")
    assert len(scores(run)) == 20


def test_hypervolume_against_known_answers(tables: dict[str, nas.LatencyTable]) -> None:
    costs = np.array([[0.5, 0.5], [0.6, 0.6], [np.inf, np.inf], [0.25, 0.75], [1.0, 0.0]])
    assert hypervolume_trace(costs, np.ones(2)).tolist() == pytest.approx([0.25, 0.25, 0.25, 0.3125, 0.3125])
    space = tables["desk"].space
    wanted = goal({"desk": tables["desk"]}, {"latency": middle(tables["desk"], 0.5)})
    perfect = [Score(space.largest, 0.0, 10), Score(tables["desk"].fastest()[1], 1.0, 10)]
    volumes = hypervolumes(wanted, perfect)
    assert volumes[0] == 0.0  # breaks the limit
    assert volumes[1] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("version", [1, 2])
def test_fronts_of_before_are_read(run: Run, version: int) -> None:
    front = nas.search(run, device="desk", **QUICK)
    value = json.loads(run.file("front.json").read_text())
    value["version"] = version
    del value["parts"], value["records"]
    for point in value["points"]:
        del point["measured"]
    if version == 1:
        value["objectives"] = list(value["objectives"])
    run.file("front.json").write_text(json.dumps(value))
    old = ParetoFront.load(run.file("front.json"))
    assert [point.arch for point in old] == [point.arch for point in front]
    assert (old.objectives, old.parts, old.records) == (front.objectives, {}, {})
    assert nas.search(run, resume=True, **QUICK).points == front.points


def test_commands(run: Run, tables: dict[str, nas.LatencyTable]) -> None:
    assert len(json.loads(command("score", run.path, "--n", 20, "--json", "--quiet").stdout)) == 20
    assert "20 scored subnets" in command("score", run.path, "--n", 20).stdout
    limits = ["--limit", f"latency={middle(tables['desk'], 0.4)}", "--limit", f"latency={middle(tables['desk'], 0.8)}"]
    devices = ["--device", "desk", "--device", "phone", "--samples", 20, "--predictor", "ridge"]
    found = command("search", run.path, *devices, *limits, "--limit", f"latency@phone={middle(tables['phone'], 0.4)}")
    assert found.returncode == 0, found.stderr
    for words in ("accuracy (predicted)", "latency@phone ms", "one for all", "lost (points)", "phone"):
        assert words in found.stdout
    again = command("search", run.path, "--resume", "--samples", 20, "--predictor", "ridge", "--json", "--quiet")
    rows = json.loads(again.stdout)
    assert {row["front"] for row in rows} >= {"", "phone"}
    for arguments, words in (
        (["search", run.path, "--resume", "--device", "pixel"], "unknown device 'pixel'"),
        (["search", run.path, "--resume", "--limit", "latency@pixel=5ms"], "Add: --device pixel"),
        (["search", run.path, "--resume", "--limit", "latency=1us,2us"], "smallest latency"),
        (["score", run.path, "--n", 3], "At least 20"),
        (["score", run.path, "--n", 30, "--storage", "mysql://host/db"], "storage"),
        (["worker", run.path, "--storage", f"sqlite:///{run.path}/none.db"], "no archive of this run's weights"),
    ):
        result = command(*arguments)
        assert result.returncode == 2
        assert words in " ".join(result.stderr.split()), result.stderr


def test_proxies_are_computed_on_the_processor_wherever_the_supernet_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nas.score(run, samples=30, images=50)
    proxies = ("snip", "naswot", "zen")
    wanted = nas.accuracy_card(run, predictor="ridge", proxies=proxies)
    supernet = run.supernet().to("meta")  # it stands for a GPU: weights that no generator of the processor can fill
    monkeypatch.setattr(Run, "supernet", lambda _: supernet)
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda network: network.to_empty(device="cpu"))  # proxies fill them anew
    assert nas.accuracy_card(run, predictor="ridge", proxies=proxies).ranks == wanted.ranks


def test_report_card_beside_sizes_and_proxies(run: Run) -> None:
    few = command("report-card", run.path)
    assert few.returncode == 2
    assert "20 scored subnets" in few.stderr
    nas.score(run, samples=30, images=100)
    found = nas.accuracy_card(run, predictor="ridge", proxies=("snip", "naswot"))
    assert found.card.networks == 30
    assert [rank.name for rank in found.ranks] == ["params", "macs", "snip", "naswot"]
    assert all(rank.kendall is None or -1 <= rank.kendall <= 1 for rank in found.ranks)
    assert found.gain is not None
    options = ("--predictor", "ridge", "--proxies", "snip,naswot")
    again = command("report-card", run.path, *options, "--json", "--quiet")
    assert json.loads(again.stdout) == json.loads(json.dumps(found.to_dict()))  # to the last bit
    with mock.patch("nas.accuracy_card", return_value=found):
        shown = command("report-card", run.path, *options)
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("params", "macs", "snip", "naswot", "Kendall 0.9", "as features"))
    wrong = command("report-card", run.path, "--proxies", "snap")
    assert wrong.returncode == 2
    assert "snap" in wrong.stderr


@pytest.mark.parametrize("budget", [None, 4])
def test_a_space_of_few_networks_is_scored_whole(tmp_path: Path, budget: int | None) -> None:
    """Nothing can be learnt from four networks: the front is what was measured."""
    run = tiny_run(tmp_path / "run", resolution=[16, 20, 24, 28], kernel=[3], expand=[2], depth=[2])
    front = nas.search(run.path, device="desk", budget=budget, images=100)
    known = {score.arch: score.accuracy for score in scores(run)}
    assert len(known) == run.space.count() == 4
    assert all(point.measured == ("accuracy",) and point.values["accuracy"] == known[point.arch] for point in front)
    archs = sorted(known, key=lambda arch: front_cost(run, arch))
    best = np.maximum.accumulate([known[arch] for arch in archs])
    wanted = [arch for arch, at, before in zip(archs, best, [-1.0, *best], strict=False) if at > before]
    assert [point.arch for point in front] == wanted
    write_report(run)
    assert "Accuracy predictor" not in run.file("report.html").read_text()
    with pytest.raises(UserError, match=r"The nearest one has accuracy \d+\.\d%") as told:
        nas.search(run.path, device="desk", limits={"accuracy": 0.99}, images=100, force=True)
    assert f"{max(known.values()):.1%}" in str(told.value)


def front_cost(run: Run, arch: nas.Architecture) -> float:
    return float(nas.LatencyTable.load(run.table("desk")).estimate(arch))


def test_an_accuracy_that_no_network_has_is_answered_with_the_nearest(run: Run) -> None:
    with pytest.raises(UserError, match=r"The nearest one has accuracy \d+\.\d%, macs \d") as told:
        nas.search(run.path, device="desk", limits={"accuracy": 0.99, "macs": 1e6}, **QUICK)
    shown = float(str(told.value).partition("has accuracy ")[2].partition("%")[0])
    assert shown < 60
