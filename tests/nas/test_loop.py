"""The loop's promises on real images and the real runtime, with a small budget."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import nas
from nas.archive import Archive
from nas.demo import Budget, DemoResult, run_demo
from nas.pareto import ParetoFront, non_dominated
from nas.runs import SUPERNET_VERSION
from search_spaces.artifacts import file_hash
from search_spaces.errors import UserError
from supernets import calibrated, save_tensors


def test_every_part_is_there(demo: DemoResult) -> None:
    names = {path.relative_to(demo.run).as_posix() for path in demo.run.rglob("*") if path.is_file()}
    wanted = {"run.json", "supernet.safetensors", "training/checkpoint.safetensors", "training/log.json", "study.db"}
    wanted |= {"tables/onnxruntime-cpu.json", "front.json", "verified.json", "report.html", "baselines/largest-alone.onnx"}
    assert wanted <= names
    assert {f"exports/{point.arch.id}.onnx" for point in demo.front} <= names


def test_the_front_is_what_it_says(demo: DemoResult) -> None:
    front = demo.front
    assert len(non_dominated(front.costs())) == len(front) <= 8
    assert len({point.arch.id for point in front}) == len(front)
    latencies = [point.values["latency"] for point in front]
    assert latencies == sorted(latencies)
    assert max(latencies) <= front.limits["latency"]
    table = nas.LatencyTable.load(demo.run / "tables" / "onnxruntime-cpu.json")
    archs = [point.arch for point in front]
    level = front.provenance["latency_levels"]["onnxruntime-cpu"]
    assert np.allclose(level * table.estimate(archs), latencies)
    assert [point.values["macs"] for point in front] == front.space.macs(archs).tolist()
    assert [point.values["params"] for point in front] == front.space.params(archs).tolist()


def test_every_file_is_proven(demo: DemoResult) -> None:
    assert demo.exports["proven"] == demo.exports["networks"] == len(demo.front)
    assert demo.exports["top1_agreement"] == 1.0
    assert demo.exports["max_relative_difference"] < 1e-4


def test_an_exported_file_works_without_the_toolkit(demo: DemoResult) -> None:
    run = nas.Run.open(demo.run)
    point = demo.front.pick("knee")
    model = onnx.load(demo.run / "exports" / f"{point.arch.id}.onnx")
    metadata = {item.key: item.value for item in model.metadata_props}
    facts = json.loads(metadata["input"])
    data = run.data()
    raw = data.test.pixels.read(np.arange(20), facts["size"], None)  # (20, R, R, C) uint8, as a user would have them
    images = ((raw / 255 - facts["mean"]) / facts["std"]).astype(np.float32).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: images})[0]
    network = calibrated(run.supernet(), point.arch, data)
    ours = network(data.test.batch(np.arange(20), facts["size"])).detach().numpy()
    assert np.allclose(logits, ours, atol=1e-3 * np.abs(ours).max())
    assert json.loads(metadata["architecture"]) == point.arch.to_dict()
    assert json.loads(metadata["classes"]) == list(data.class_names)
    assert metadata["architecture_id"] == point.arch.id


def test_verification_names_what_it_compared(demo: DemoResult) -> None:
    verification = demo.verification
    assert [n.id for n in verification.networks] == [p.arch.id for p in demo.front]
    assert [b.id for b in verification.baselines] == ["largest-alone"]
    for network in [*verification.networks, *verification.baselines]:
        assert network.accuracy_low <= network.accuracy <= network.accuracy_high
        assert network.images == 450
        assert network.latency_p10_ms <= network.latency_ms <= network.latency_p90_ms
    assert nas.verify(demo.run).networks[0].accuracy == verification.networks[0].accuracy


def test_scores_are_on_validation_images_only(demo: DemoResult) -> None:
    run = nas.Run.open(demo.run)
    scores = Archive(run.study, run.space, weights=run.weights_hash()).scores()
    assert len(scores) >= 24
    assert len({score.arch.id for score in scores}) == len(scores)
    assert {score.images for score in scores} == {200}
    assert nas.score(demo.run, samples=24) == scores  # nothing is paid twice


def test_running_it_again_changes_nothing(demo: DemoResult, budget: Budget) -> None:
    kept = [p for p in demo.run.rglob("*") if p.suffix in (".onnx", ".safetensors") or p.name in ("front.json", "run.json")]
    before = {path: file_hash(path) for path in kept}
    again = run_demo("digits", out=demo.run, seed=0, budget=budget)
    assert {path: file_hash(path) for path in kept} == before
    assert [p.arch for p in again.front] == [p.arch for p in demo.front]


def test_search_is_reproducible_and_limits_are_hard(finished: Path) -> None:
    table = nas.LatencyTable.load(finished / "tables" / "onnxruntime-cpu.json")
    middle = float(table.estimate(table.space.sample(50, seed=0)).mean())
    limits = {"latency": middle, "params": "90k", "accuracy": "5%"}
    options = {"samples": 24, "points": 6, "generations": 10, "predictor": "ridge", "force": True}
    fronts = [nas.search(finished, limits=limits, seed=3, **options) for _ in range(2)]
    assert [p.arch for p in fronts[0]] == [p.arch for p in fronts[1]]
    for point in fronts[0]:
        assert point.values["latency"] <= middle
        assert point.values["params"] <= 90_000
    three = nas.search(finished, objectives=("accuracy", "latency", "memory"), **options)
    assert three.costs().shape == (len(three), 3)
    assert len(non_dominated(three.costs())) == len(three)


def test_a_front_reads_back(demo: DemoResult, tmp_path: Path) -> None:
    demo.front.save(tmp_path / "front.json")
    twin = ParetoFront.load(tmp_path / "front.json")
    assert twin.points == demo.front.points
    assert twin.limits == demo.front.limits
    frame = twin.to_frame()
    assert list(frame["id"]) == [p.arch.id for p in twin]


@pytest.mark.parametrize("pick", ["knee", "best", "fastest"])
def test_picks(demo: DemoResult, pick: str) -> None:
    point = demo.front.pick(pick)
    assert point in demo.front.points
    assert demo.front.pick(point.arch.id) == point
    bound = point.values["latency"]
    assert demo.front.pick(f"latency={bound * 1.0001}ms").values["latency"] <= bound * 1.0001


def test_one_network_is_named_in_one_way_and_weights_of_another_supernet_are_refused(finished: Path) -> None:
    for verb in (nas.export, nas.finetune):
        with pytest.raises(UserError, match="pick and arch together"):
            verb(finished, pick="knee", arch="smallest")  # type: ignore[operator]
    run = nas.Run.open(finished)
    (tuned, *_) = (run.path / "finetuned").glob("*.safetensors")
    shutil.copytree(run.path, other := finished.parent / "other")
    twin = nas.Run.open(other)
    supernet = twin.supernet()
    with torch.no_grad():
        next(supernet.parameters()).add_(0.1)
    save_tensors(twin.weights, supernet.state_dict(), "supernet", SUPERNET_VERSION, {"space": twin.settings["space"]})
    twin.study.unlink()  # as the error about its scores advises
    with pytest.raises(UserError, match="was fine-tuned from other weights"):
        nas.export(other, arch=tuned.stem, force=True)


def test_every_device_of_a_search_can_verify(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = ["onnxruntime-cpu", "simulated"]
    table = nas.profile(nas.Run.open(finished).space, device="simulated", out=finished)
    slowest, cost = table.slowest()[0], table.energy_cost()
    assert cost is not None
    most = 0.8 * cost.maximum(len(table.space.genes))[0]
    options = {"samples": 24, "points": 3, "generations": 5, "predictor": "ridge", "force": True}
    front = nas.search(finished, device=devices, limits={"latency@simulated": slowest, "energy@simulated": most}, **options)
    assert not any("energy" in point.values for point in front)  # nothing counts it on the other one
    nas.export(finished)
    there = nas.verify(finished, device="simulated")
    for point, network in zip(front, there.networks, strict=True):
        assert network.promised["latency"] == point.values["latency@simulated"]
        assert network.latency_ms == pytest.approx(point.values["latency@simulated"], rel=0.05)
        assert not network.broken
        assert network.promised["energy"] == point.values["energy@simulated"] <= most
        assert network.energy_j == pytest.approx(network.promised["energy"], rel=0.15)
    tight = replace(front, limits={"energy@simulated": min(point.values["energy@simulated"] for point in front) / 2})
    tight.save(nas.Run.open(finished).path / "front.json")
    broken = nas.verify(finished, device="simulated")
    assert all("energy" in text for network in broken.networks for text in network.broken)
    assert not broken.passed
    # What a device says of a limit decides, whatever the limit is on; what it does not say is not kept.
    rate = 1e3 / min(network.latency_ms for network in there.networks)
    for limits, kept in (({"throughput@simulated": 0.5 * rate}, None), ({"throughput@simulated": 1.5 * rate}, False)):
        replace(front, limits=limits).save(nas.Run.open(finished).path / "front.json")
        judged = nas.verify(finished, device="simulated")
        bound = limits["throughput@simulated"]
        assert [bool(n.broken) for n in judged.networks] == [1e3 / n.latency_ms < bound for n in judged.networks]
        assert kept is None or judged.passed is kept
    replace(front, limits={"energy@simulated": most}).save(nas.Run.open(finished).path / "front.json")
    monkeypatch.setattr("latency_tables.simulated.Simulated.energy", lambda *_: None)
    silent = nas.verify(finished, device="simulated")
    assert not silent.passed
    assert all("nothing counts it" in text for network in silent.networks for text in network.broken)
