"""INT8 twins, verification with intervals, and other files beside the front."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import nas
from latency_tables import open_device
from latency_tables.kit import read_kit
from nas import quantising
from nas.demo import DemoResult
from nas.exporting import read_export
from nas.onnx_files import outputs
from nas.quantising import LayerLoss, read_quantised
from nas.runs import Run
from nas.verification import Excess, Timed, Verification, Verified, excess_of
from search_spaces import UserError
from tests.nas.test_cli import nas as command


@pytest.fixture(scope="module")
def shipped(demo: DemoResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with two INT8 twins, verified; tests only read it."""
    import shutil

    folder = tmp_path_factory.mktemp("shipped") / "run"
    shutil.copytree(demo.run, folder)
    # Whatever it loses: how well the fastest network of so small a run takes rounding is chance.
    nas.quantize(folder, pick="fastest", images=64, max_loss=0.99, sensitivity=True)
    nas.quantize(folder, pick="best", images=64, max_loss=0.5)
    nas.verify(folder)
    return folder


def verified(run: str, accuracy: float, latency: float, **more: object) -> Verified:
    fields = {"promised": {"accuracy": 0.9, "latency": 1.0}, "network": run, **more}
    return Verified(run, fields.pop("promised"), accuracy, 0.0, 1.0, 100, latency, latency, latency, **fields)  # type: ignore[arg-type]


def test_a_device_that_is_faster_today_is_told_from_promises_that_are_wrong() -> None:
    def words(*measured: float) -> str:
        promised = [0.1, 0.2, 0.4, 0.8][: len(measured)]
        rows = [
            verified(f"a{index}", 0.9, latency, promised={"accuracy": 0.9, "latency": ms})
            for index, (ms, latency) in enumerate(zip(promised, measured, strict=True))
        ]
        return Verification("here", "wall", rows, []).latency_in_words()

    took = "the device took {:.2f} of the promised times throughout, beside that the error is {:.1%}"
    assert words(0.08, 0.16, 0.32, 0.64) == f"median error 25.0%, Spearman 1.000; {took.format(0.8, 0)}"
    assert words(0.05, 0.2, 0.4, 1.6).endswith(took.format(1, 0.25))
    assert words(0.08, 0.16) == "median error 25.0%"  # two networks: nobody can tell


def test_an_int8_twin_is_int8_and_keeps_the_metadata(shipped: Path) -> None:
    front = nas.ParetoFront.load(shipped / "front.json")
    arch_id = front.pick("fastest").arch.id
    model = onnx.load(shipped / "exports" / f"{arch_id}-int8.onnx")
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert all(node.input[1].endswith("_DequantizeLinear_Output") for node in convolutions)
    assert onnx.TensorProto.INT8 in weights.values()
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["precision"] == "int8"
    assert facts["architecture_id"] == arch_id
    record = json.loads((shipped / "exports" / f"{arch_id}-int8.json").read_text())
    assert record["bytes"] < 0.75 * record["float_bytes"]  # scales and zero points weigh in so small a network
    layers = [row["layer"] for row in record["sensitivity"]]
    assert sorted(layers) == sorted(set(layers))
    errors = [row["error"] for row in record["sensitivity"]]
    assert errors == sorted(errors, reverse=True)
    assert min(errors) > 0
    assert nas.quantize(shipped, pick="fastest", images=64, max_loss=0.99)[0].sha256 == record["sha256"]  # done once


def test_layers_that_cost_too_much_stay_in_float(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = ["blocks.0", "blocks.2", "blocks.4", "blocks.1", "blocks.3"]
    monkeypatch.setattr(quantising._Bench, "sensitivity", lambda _self, _folder: [LayerLoss(n, 0.1, 0.1) for n in layers])
    # Float, everything in INT8, then with one layer and with two layers kept.
    accuracies = iter([0.9, 0.5, 0.6, 0.895])
    monkeypatch.setattr(quantising._Bench, "accuracy", lambda _self, _found, **_options: next(accuracies))
    (made,) = nas.quantize(finished, pick="fastest", images=32)
    assert made.kept == ("blocks.0", "blocks.2")
    assert (made.accuracy, made.within) == (0.895, True)
    model = onnx.load(finished / "exports" / made.file)
    for node in model.graph.node:
        if node.op_type == "Conv":
            kept = node.name.startswith(("blocks.0.", "blocks.2."))
            assert node.input[1].endswith("_DequantizeLinear_Output") != kept, node.name


@pytest.mark.parametrize(("after", "steps"), [(0.895, 3), (0.4, 0)])
def test_training_with_rounding_comes_before_float_layers_and_is_kept_where_it_helps(
    finished: Path, monkeypatch: pytest.MonkeyPatch, after: float, steps: int
) -> None:
    monkeypatch.setattr(quantising, "AWARE_STEPS", 3)
    monkeypatch.setattr(quantising._Bench, "sensitivity", lambda _self, _folder: [LayerLoss("blocks.0", 0.1, 0.1)])
    # Float, everything in INT8, trained, and where that was no help with one layer in float.
    accuracies = iter([0.9, 0.5, after, 0.9])
    monkeypatch.setattr(quantising._Bench, "accuracy", lambda _self, _found, **_options: next(accuracies))
    (made,) = nas.quantize(finished, pick="fastest", images=32, aware=True)
    assert made.steps == steps
    assert made.kept == (() if steps else ("blocks.0",))
    plain, trained = (onnx.load(finished / "exports" / name) for name in (f"{made.network}.onnx", made.file))
    facts = {p.key for p in plain.metadata_props} - {"promised"} | {"precision"}
    assert {p.key for p in trained.metadata_props} == facts


def test_pixels_and_softmax_stay_in_float(finished: Path) -> None:
    (export,) = nas.export(finished, pick="fastest", pixels="nhwc", softmax=True, batch=1, force=True)
    (made,) = nas.quantize(finished, pick="fastest", images=32, max_loss=0.9)
    model = onnx.load(finished / "exports" / made.file)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    producers = {output: node for node in model.graph.node for output in node.output}
    softmax = producers[model.graph.output[0].name]
    assert softmax.op_type == "Softmax"
    assert producers[softmax.input[0]].op_type == "Gemm"
    assert export.format.pixels == "nhwc"
    assert abs(made.loss) < 0.5


def test_a_twin_is_not_passed_off_as_one_with_other_options(finished: Path) -> None:
    (made,) = nas.quantize(finished, pick="fastest", images=64, max_loss=0.99)
    assert nas.quantize(finished, pick="fastest", images=64, max_loss=0.99) == [made]
    for other in ({"images": 128, "max_loss": 0.99}, {"images": 64, "max_loss": 0.5}):
        with pytest.raises(UserError, match=r"was made from 64 images, with 99\.00% allowed"):
            nas.quantize(finished, pick="fastest", **other)
    assert nas.quantize(finished, pick="fastest") == [made]
    (measured,) = nas.quantize(finished, pick="fastest", sensitivity=True)  # the twin stays what it is
    assert replace(measured, sensitivity=()) == made
    assert measured.sensitivity
    (again,) = nas.quantize(finished, pick="fastest", images=128, max_loss=0.99, force=True)
    assert again.calibration_images == 128
    record = finished / "exports" / f"{made.id}.json"
    record.write_text(record.read_text().replace(f'"{made.id}"', '"another-int8"'))
    with pytest.raises(UserError, match="it is of"):
        read_quantised(Run.open(finished), read_export(Run.open(finished), made.network))


def test_quantising_needs_an_export_and_sane_numbers(finished: Path) -> None:
    with pytest.raises(UserError, match="0 calibration images"):
        nas.quantize(finished, images=0)
    with pytest.raises(UserError, match="at most 200"):
        nas.quantize(finished, max_loss=2.0)
    for path in (finished / "exports").iterdir():
        path.unlink()
    with pytest.raises(UserError) as caught:
        nas.quantize(finished)
    assert "nas export" in caught.value.next_step


def test_a_twin_of_another_export_is_not_verified(shipped: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(shipped, folder)
    nas.export(folder, pick="fastest", softmax=True, force=True)
    with pytest.raises(UserError, match="another export") as caught:
        nas.verify(folder)
    assert "nas quantize" in caught.value.next_step
    nas.quantize(folder, pick="fastest", images=32)
    result = nas.verify(folder)
    assert len(result.quantised) == 2
    assert set(result.to_frame()["kind"]) == {"network", "int8", "baseline"}


def test_twins_enter_the_verified_front_or_are_dominated(shipped: Path) -> None:
    result = Verification.load(shipped / "verified.json")
    ids = {twin.network for twin in result.quantised}
    assert ids == {nas.ParetoFront.load(shipped / "front.json").pick(what).arch.id for what in ("fastest", "best")}
    for twin in result.quantised:
        assert twin.promised == {}
        assert twin.precision == "int8"
        assert twin.latency_p10_ms <= twin.latency_ms <= twin.latency_p90_ms
    gains = result.gains()
    assert gains is not None
    assert gains["networks"] == 2
    frame = result.to_frame()
    assert set(frame[frame["on_front"]]["id"]) == result.front()


def test_the_verified_front_is_of_what_keeps_the_limits() -> None:
    fast, good, slow = verified("a", 0.8, 1.0), verified("b", 0.9, 2.0), verified("c", 0.85, 3.0)
    broken = verified("d", 0.95, 0.5, broken=["latency <= 0.4 ms"])
    twin = verified("a-int8", 0.8, 0.9, network="a", precision="int8", promised={})
    assert Verification("d", "wall", [fast, good, slow], []).front() == {"a", "b"}
    result = Verification("d", "wall", [fast, good, slow, broken], [], [twin])
    assert result.front() == {"a-int8", "b"}
    assert not result.passed
    outside = verified("b-int8", 0.9, 9.0, network="b", precision="int8", promised={}, broken=["latency <= 8 ms"])
    assert Verification("d", "wall", [fast, good], [], [outside]).passed


def test_the_winners_curse_has_the_interval_of_the_images() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(1000) < 0.8
    same = np.repeat(right[None, :], 5, axis=0)
    found = excess_of([0.85] * 5, same)
    one = excess_of([0.85], right[None, :])
    assert found is not None
    assert one is not None
    # Five copies of one network say no more than one of it.
    assert (found.mean, found.low, found.high) == pytest.approx((one.mean, one.low, one.high))
    assert found.mean == pytest.approx(0.85 - right.mean())
    assert found.high - found.mean == pytest.approx(1.96 * right.std() / np.sqrt(1000), rel=0.01)
    independent = excess_of([0.85] * 5, rng.random((5, 1000)) < 0.8)
    assert independent is not None
    assert independent.high - independent.low < 0.6 * (found.high - found.low)
    assert excess_of([], np.zeros((0, 10), bool)) is None
    certain = excess_of([1.0], np.ones((1, 200), bool))
    assert certain is not None
    assert (certain.mean, certain.low < -0.01) == (0.0, True)  # all right is no certainty


def test_what_judges_does_not_choose() -> None:
    rows = [verified("a", 0.9, 1.0), verified("b", 0.7, 2.0), verified("c", 0.99, 3.0, broken=["latency <= 2 ms"])]
    rows[1] = replace(rows[1], promised={"accuracy": 0.95, "latency": 2.0})
    rows[2] = replace(rows[2], promised={"accuracy": 0.99, "latency": 3.0})
    found = Verification("d", "wall", rows, [])
    best = found.best()
    assert best is not None
    assert (best.id, found.summary()["best_accuracy"]) == ("b", 0.7)
    assert Verification("d", "wall", rows[2:], []).best() is None


def test_finetuned_networks_are_not_judged(shipped: Path) -> None:
    result = Verification.load(shipped / "verified.json")
    tuned = [network for network in result.networks if network.finetuned]
    assert tuned
    assert result.excess is not None
    assert result.excess.networks == len(result.networks) - len(tuned)


def test_verifications_read_back_and_those_of_version_1(shipped: Path, tmp_path: Path) -> None:
    result = Verification.load(shipped / "verified.json")
    twin = Verification(**{**result.__dict__, "timed": [Timed("x", 1.0, 0.9, 1.1, "why")], "excess": Excess(1, 0.0, -1.0, 1.0)})
    twin.save(tmp_path / "verified.json")
    assert Verification.load(tmp_path / "verified.json") == twin
    value = json.loads((tmp_path / "verified.json").read_text())
    for name in ("quantised", "timed", "excess"):
        del value[name]
    for row in [*value["networks"], *value["baselines"]]:
        del row["precision"], row["network"]
    (tmp_path / "verified.json").write_text(json.dumps(value | {"version": 1}))
    old = Verification.load(tmp_path / "verified.json")
    assert [network.id for network in old.networks] == [network.id for network in result.networks]
    assert old.excess is None


@pytest.mark.parametrize("change", [{"promised": {}}, {"latency_ms": 1e-320}, {"latency_p90_ms": 1e290}, {"accuracy": 1.5}])
def test_a_verification_that_no_clock_and_no_test_set_said_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    Verification("d", "wall", [replace(verified("a", 0.7, 0.4), **change)], []).save(tmp_path / "verified.json")
    with pytest.raises(UserError, match=r"is damaged \(a: "):
        Verification.load(tmp_path / "verified.json")


def test_a_file_of_another_batch_has_no_time_on_the_device(finished: Path, tmp_path: Path) -> None:
    front = nas.ParetoFront.load(finished / "front.json")
    nas.export(finished, pick=front.points[0].arch.id, batch=8, pixels="nhwc", softmax=True, force=True)
    before = (finished / "verified.json").read_bytes()
    with pytest.raises(UserError, match="takes 8 images per run") as caught:
        nas.verify(finished)
    assert f"nas export {finished} --pick {front.points[0].arch.id} --pixels nhwc --softmax --force" in caught.value.next_step
    assert (finished / "verified.json").read_bytes() == before
    nas.export(finished, pick=front.points[0].arch.id, batch=1, force=True)  # as the device runs it
    assert nas.verify(finished).networks
    copy = tmp_path / "eight.onnx"
    nas.write_onnx(nas.network(finished, front.points[0].arch), copy, batch=8)
    with pytest.raises(UserError, match="takes 8 images per run"):
        nas.compare(finished, copy)


def foreign(path: Path, *, classes: int = 10, channels: int = 1, open_sides: bool = True) -> Path:
    """A small convolutional network as another tool might write it."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((classes, channels, 3, 3)).astype(np.float32)
    sides = ["h", "w"] if open_sides else [28, 28]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "k"], ["c"]),
            onnx.helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            onnx.helper.make_node("Flatten", ["p"], ["y"]),
        ],
        "other",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", channels, *sides])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", classes])],
        [onnx.numpy_helper.from_array(kernel, "k")],
    )
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_any_onnx_file_stands_beside_the_front(finished: Path, tmp_path: Path) -> None:
    front = nas.ParetoFront.load(finished / "front.json")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((finished / "exports" / f"{front.pick('best').arch.id}.onnx").read_bytes())
    files = [copy, foreign(tmp_path / "other.onnx"), foreign(tmp_path / "big.onnx", classes=7)]
    result = nas.compare(finished, *files)
    by_id = {row.id: row for row in [*result.networks, *result.baselines]}
    assert by_id["copy"].accuracy == by_id[front.pick("best").arch.id].accuracy
    assert by_id["other"].images == 450
    assert [(row.id, row.reason) for row in result.timed] == [("big", "it gives 7 classes, the data have 10 classes")]
    assert {row.id for row in nas.verify(finished).baselines} == {"largest-alone", "copy", "other"}  # they stay
    (tmp_path / "deep").mkdir()
    another = foreign(tmp_path / "deep" / "other.onnx")
    with pytest.raises(UserError, match="another file named 'other'"):
        nas.compare(finished, another)


def reshaped(path: Path, shape: list[int | str], *, steps: list[onnx.NodeProto] | None = None) -> Path:
    """Any input of this shape, flattened and multiplied to ten classes."""
    flat = int(np.prod([size for size in shape[1:] if isinstance(size, int)]))
    graph = onnx.helper.make_graph(
        [
            *(steps or [onnx.helper.make_node("Flatten", ["x"], ["f"])]),
            onnx.helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        "other",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", 10])],
        [onnx.numpy_helper.from_array(np.ones((flat, 10), np.float32), "w")],
    )
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_files_of_other_inputs_are_timed_with_the_reason(finished: Path, tmp_path: Path) -> None:
    """Flat, not square, channels last, or refused by the runtime: none of them costs the others their verification."""
    shift = [
        onnx.helper.make_node("Flatten", ["x"], ["g"]),
        onnx.helper.make_node("Constant", [], ["s"], value=onnx.numpy_helper.from_array(np.array([1, 784], np.int64))),
        onnx.helper.make_node("Reshape", ["g", "s"], ["f"]),  # of one image only, though its batch is open
    ]
    files = {
        "flat": (reshaped(tmp_path / "flat.onnx", ["b", 256]), "it takes 256, not images"),
        "oblong": (reshaped(tmp_path / "oblong.onnx", ["b", 1, 16, 32]), "it takes images of 16 x 32 px, tested are squares"),
        "last": (reshaped(tmp_path / "last.onnx", ["b", 28, 28, 1]), "float images with channels last"),
        "one": (reshaped(tmp_path / "one.onnx", ["b", 1, 28, 28], steps=shift), "failed on the test images"),
    }
    result = nas.compare(finished, *(path for path, _ in files.values()))
    assert {row.id for row in result.timed} == files.keys()
    assert all(files[row.id][1] in row.reason for row in result.timed)
    assert len(nas.verify(finished).timed) == len(files)


def test_names_that_would_be_mistaken_for_another(finished: Path, tmp_path: Path) -> None:
    best = nas.ParetoFront.load(finished / "front.json").pick("best").arch.id
    with pytest.raises(UserError, match=f"'{best}' is the id of a network"):
        nas.compare(finished, foreign(tmp_path / f"{best}.onnx"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="two files named 'm'"):
        nas.compare(finished, foreign(tmp_path / "a" / "m.onnx"), foreign(tmp_path / "b" / "m.onnx"))
    assert not (finished / "baselines" / "m.onnx").exists()


@pytest.mark.parametrize("name", ["text.onnx", "missing.onnx", "largest-alone.onnx", "two.onnx"])
def test_a_file_that_cannot_be_compared_leaves_the_run_alone(finished: Path, tmp_path: Path, name: str) -> None:
    path = foreign(tmp_path / name)
    if name == "text.onnx":
        path.write_text("no model")
    elif name == "missing.onnx":
        path.unlink()
    elif name == "two.onnx":
        model = onnx.load(path)
        model.graph.node[0].op_type = "Unheard"
        onnx.save_model(model, path)
    before = sorted(file.name for file in (finished / "baselines").iterdir())
    with pytest.raises(UserError):
        nas.compare(finished, foreign(tmp_path / "fine.onnx"), path)
    assert sorted(file.name for file in (finished / "baselines").iterdir()) == before


def test_a_machine_that_is_out_of_reach_verifies_by_a_kit(finished: Path, tmp_path: Path) -> None:
    """Exported files, an INT8 twin and a file of `nas compare` are timed there; accuracies are the same everywhere."""
    space = Run.open(finished).space
    nas.make_kit(space, out=tmp_path / "layers")
    run_there(tmp_path / "layers")
    nas.import_kit(tmp_path / "layers", name="board", out=finished)
    nas.search(finished, device="table://board", samples=24, points=2, generations=3, predictor="ridge", force=True)
    nas.export(finished)
    nas.quantize(finished, pick="fastest", images=32)
    with pytest.raises(UserError, match=r"kit make .* --exports"):
        nas.verify(finished)
    done = command("kit", "make", finished, "--exports", "--out", tmp_path / "kit")
    assert done.stdout.rstrip().endswith(f"Next: nas verify {finished} --kit {tmp_path / 'kit'}")
    kit = read_kit(tmp_path / "kit")
    run = Run.open(finished)
    with pytest.raises(UserError, match="there are no results"):
        nas.verify(finished, kit=tmp_path / "kit")
    run_there(tmp_path / "kit")
    assert command("verify", finished, "--kit", tmp_path / "kit", "--json").returncode == 0
    found = Verification.load(finished / "verified.json")
    front = nas.ParetoFront.load(finished / "front.json")
    assert found.device == "table://board"
    assert [row.id for row in found.networks] == [point.arch.id for point in front]
    assert len(kit.names) == len(found.networks) + len(found.quantised) + len(found.baselines) + len(found.timed)
    items = json.loads((tmp_path / "kit" / "results.json").read_text())["items"]
    for name, row in zip(kit.names, found.networks, strict=False):
        assert min(items[name]["wall_ns"]) / items[name]["runs"] * 1e-6 <= row.latency_p90_ms
        session = open_device("onnxruntime-cpu")
        right = outputs(session, run.exports / f"{row.id}.onnx", run.data().test, read_export(run, row.id).resolution).argmax(1)
        assert row.accuracy == (right == run.data().test.labels.numpy()).mean()
    with pytest.raises(UserError, match="was made for table://board, not for onnxruntime-cpu"):
        nas.verify(finished, device="onnxruntime-cpu", kit=tmp_path / "kit")
    # Another machine, or other options: the promises are not of it.
    results = json.loads((tmp_path / "kit" / "results.json").read_text())
    changed = results | {"fingerprint": results["fingerprint"] | {"processor": "another"}}
    (tmp_path / "other.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="was run with processor = another"):
        nas.verify(finished, kit=tmp_path / "kit", results=tmp_path / "other.json")
    nas.make_verification_kit(finished, out=tmp_path / "two", on="onnxruntime-cpu:threads=2")
    run_there(tmp_path / "two")
    with pytest.raises(UserError, match="was run with threads = 2"):
        nas.verify(finished, kit=tmp_path / "two")
    for twin in (finished / "exports").glob("*-int8.json"):
        twin.unlink()
    nas.export(finished, pick="fastest", batch=4, force=True)
    with pytest.raises(UserError, match="takes 4 images per run"):
        nas.make_verification_kit(finished, out=tmp_path / "three")
    assert not (tmp_path / "three").exists()
    nas.export(finished, pick="fastest", softmax=True, force=True)
    nas.quantize(finished, pick="fastest", images=32)
    with pytest.raises(UserError, match="does not hold what"):
        nas.verify(finished, kit=tmp_path / "kit")


def run_there(kit: Path) -> None:
    done = subprocess.run([sys.executable, "run_kit.py"], cwd=kit, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
