"""Exports: every format computes what torch computes, the plain file needs no supernet, and a failed proof marks the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import nas
from latency_tables import open_device
from nas import exporting
from nas.demo import DemoResult
from nas.exporting import Export, read_export
from nas.finetuning import deployed_network
from nas.onnx_files import Format, Signature, outputs
from nas.proving import RuntimeProof, _compared, check_file
from search_spaces import UserError
from supernets import Split


def logits_of(run: nas.Run, arch_id: str) -> torch.Tensor:
    """torch's own logits of a front's network on the first ten test images, (10, classes)."""
    arch = nas.ParetoFront.load(run.file("front.json")).pick(arch_id).arch
    network = deployed_network(run, arch, run.data())
    with torch.no_grad():
        found: torch.Tensor = network(run.data().test.batch(np.arange(10), arch["resolution"]))
    return found


def test_exports_are_of_the_weights_of_today(finished: Path) -> None:
    """Fine-tuned otherwise than before: every file is made anew, `torch.export`'s too, also where a kill came in between."""
    run = nas.Run.open(finished)
    arch = nas.ParetoFront.load(finished / "front.json").pick("fastest").arch
    nas.finetune(finished, pick="fastest", epochs=0.5)
    (first,) = nas.export(finished, pick="fastest", pt2=True)
    assert nas.export(finished, pick="fastest") == [first]
    assert first.finetuned
    tuned = finished / "finetuned" / f"{arch.id}.safetensors"
    tuned.unlink()
    nas.finetune(finished, pick="fastest", epochs=1.5)
    (run.exports / first.file).write_bytes(b"half of another export")
    (second,) = nas.export(finished, pick="fastest")
    assert (second.finetuned, second.program) == (True, first.program)
    assert second.weights not in (first.weights, None)
    assert second.sha256 != first.sha256
    images = run.data().test.batch(range(8), second.resolution)
    program = torch.export.load(run.exports / str(second.program)).module()
    wanted = deployed_network(run, arch, run.data())(images)
    assert torch.allclose(program(images), wanted, atol=1e-4)
    assert torch.allclose(nas.load_network(run.exports / second.file)(images), wanted, atol=1e-4)
    (run.exports / str(second.torch_file)).unlink()
    assert nas.export(finished, pick="fastest") == [second]
    assert (run.exports / str(second.torch_file)).exists()
    about = {p.key: p.value for p in onnx.load(run.exports / second.file).metadata_props}
    assert (about["weights"], json.loads(about["finetuned"])) == (second.weights, True)
    assert json.loads(about["promised"])["device"] == "onnxruntime-cpu"


def test_a_network_off_the_front_is_exported_without_promises(finished: Path) -> None:
    run = nas.Run.open(finished)
    nas.finetune(finished, arch="largest", epochs=0.5)
    (export,) = nas.export(finished, arch="largest")
    assert export.proven
    assert export.finetuned
    assert export.id == run.space.largest.id
    assert json.loads((run.exports / f"{export.id}.json").read_text())["promised"] == {}
    point = nas.ParetoFront.load(finished / "front.json").points[0]
    (of_front,) = nas.export(finished, arch=point.arch.id, force=True)
    assert json.loads((run.exports / f"{of_front.id}.json").read_text())["promised"]["accuracy"] == point.values["accuracy"]
    (finished / "front.json").unlink()
    assert nas.export(finished, arch=run.space.largest) == [export]
    with pytest.raises(UserError, match="knows no network 'nobody'"):
        nas.export(finished, arch="nobody")


@pytest.mark.parametrize(
    ("options", "inputs", "output"),
    [
        ({}, ("tensor(float)", ["N", 1, 0, 0]), "logits"),
        ({"batch": 2, "opset": 14, "ir_version": 8}, ("tensor(float)", [2, 1, 0, 0]), "logits"),
        ({"pixels": "nhwc", "softmax": True}, ("tensor(uint8)", ["N", 0, 0, 1]), "probabilities"),
        ({"pixels": "nchw", "batch": 3, "opset": 21}, ("tensor(uint8)", [3, 1, 0, 0]), "logits"),
    ],
)
def test_every_format_is_proven_and_says_what_it_takes(
    finished: Path, options: dict[str, object], inputs: tuple[str, list[object]], output: str
) -> None:
    run = nas.Run.open(finished)
    (export,) = nas.export(finished, pick="fastest", force=True, **options)  # type: ignore[arg-type]
    assert export.proven
    assert export.problems == ()
    assert export.runtimes[0].runtime == "onnxruntime-cpu"
    assert export.runtimes[0].images == 450
    path = run.exports / export.file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    side = export.resolution
    assert (source.type, source.shape) == (inputs[0], [dim if dim != 0 else side for dim in inputs[1]])
    assert target.name == output
    model = onnx.load(path)
    form = Format(**options)  # type: ignore[arg-type]
    assert ({e.version for e in model.opset_import}, model.ir_version) == ({form.opset}, form.ir)
    ours = logits_of(run, export.id)
    theirs = outputs("onnxruntime-cpu", path, run.data().test, side, indices=np.arange(10))
    assert np.allclose(ours.softmax(1) if form.softmax else ours, theirs, atol=1e-4 * float(ours.abs().max()))


def test_pixels_are_what_a_caller_has(finished: Path) -> None:
    run = nas.Run.open(finished)
    (export,) = nas.export(finished, pick="best", pixels="nhwc", force=True)
    test = run.data().test
    assert isinstance(test, Split)
    pixels = test.pixels.read(np.arange(10), export.resolution, None)  # (10, R, R, C) uint8
    session = onnxruntime.InferenceSession(run.exports / export.file, providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"pixels": pixels})[0], logits_of(run, export.id), atol=1e-3)
    result = nas.verify(finished)  # what ships is what is timed and tested
    assert export.id in [network.id for network in result.networks]


def test_a_network_loads_without_the_supernet(demo: DemoResult, tmp_path: Path) -> None:
    run = nas.Run.open(demo.run)
    point = demo.front.pick("knee")
    for suffix in (".onnx", ".safetensors"):
        network = nas.load_network(run.exports / f"{point.arch.id}{suffix}")
        assert not network.training
        images = run.data().test.batch(np.arange(10), point.arch["resolution"])
        with torch.no_grad():
            assert torch.equal(network(images), logits_of(run, point.arch.id))
        about = network.about
        assert about["architecture"] == point.arch.to_dict()
        assert about["classes"] == list(run.data().class_names)
        assert about["input"]["size"] == point.arch["resolution"]
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.safetensors does not exist"):
        nas.load_network(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="does not fit"):
        nas.load_network(run.exports / f"{point.arch.id}.onnx", build=lambda: torch.nn.Linear(2, 2))


def test_torch_export_runs_any_batch(finished: Path) -> None:
    run = nas.Run.open(finished)
    (export,) = nas.export(finished, pick="fastest", pt2=True)
    assert export.program == f"{export.id}.pt2"
    program = torch.export.load(run.exports / export.program).module()
    images = run.data().test.batch(np.arange(10), export.resolution)
    assert torch.allclose(program(images), logits_of(run, export.id), atol=1e-5)
    assert nas.export(finished, pick="fastest", pt2=True) == [export]


def test_a_failed_proof_marks_the_file_and_deletes_nothing(finished: Path) -> None:
    run = nas.Run.open(finished)
    before = {path.name: path.read_bytes() for path in run.exports.glob("*.onnx")}
    (good,) = nas.export(finished, pick="fastest")
    real = exporting.onnx_model

    def wrong(_network: torch.nn.Module, *args: object, **options: object) -> onnx.ModelProto:
        twin = nas.load_network(run.exports / good.file)
        with torch.no_grad():
            next(twin.parameters()).mul_(2)
        return real(twin, *args, **options)  # type: ignore[arg-type]

    with mock.patch.object(exporting, "onnx_model", wrong):
        (export,) = nas.export(finished, pick="fastest", force=True)
    assert not export.proven
    assert "differs from torch" in export.problems[0]
    assert export.file == f"{good.id}.unproven.onnx"
    assert before.items() <= {path.name: path.read_bytes() for path in run.exports.glob("*.onnx")}.items()
    assert read_export(run, good.id) == export


def test_another_format_is_refused_before_anything_is_written(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "exports").iterdir()}
    with pytest.raises(UserError, match="is exported already, as opset 17") as caught:
        nas.export(finished, softmax=True)
    assert "--force" in caught.value.next_step
    assert {path: path.stat().st_mtime_ns for path in (finished / "exports").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"opset": 11}, "opset 11"),
        ({"opset": 99}, "opset 99"),
        ({"opset": 21, "ir_version": 8}, "IR version 8 with opset 21"),
        ({"batch": 0}, "batch 0"),
        ({"pixels": "chw"}, "pixels 'chw'"),
    ],
)
def test_formats_that_there_are_not(options: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Format(**options)  # type: ignore[arg-type]


def test_the_default_format_is_old_enough() -> None:
    assert (Format().opset, Format().ir) == (17, 8)
    assert Format(opset=21).ir == 10


def test_other_runtimes_may_be_coarser_or_lack_something_but_not_compute_something_else() -> None:
    first, other = "onnxruntime-cpu", "another"
    assert RuntimeProof(first, 10, 1e-6, 1.0).problem() is None
    assert "differs from torch by 1.0e-03" in str(RuntimeProof(first, 10, 1e-3, 1.0).problem())
    assert "same top-1 class on 90.00%" in str(RuntimeProof(first, 10, 1e-6, 0.9).problem())
    assert "cannot run it: no" in str(RuntimeProof(first, failure="no").problem())
    assert RuntimeProof(other, 10, 1e-3, 0.9).problem() is None
    assert RuntimeProof(other, failure="no").problem() is None
    assert "in another" not in str(RuntimeProof(other, 10, failure="not all is finite").problem())
    assert "another cannot run it: not all" in str(RuntimeProof(other, 10, failure="not all is finite").problem())
    ours = np.ones((4, 3), np.float32)
    for theirs in (ours[:, :2], np.where(np.eye(4, 3) > 0, np.nan, ours).astype(np.float32)):
        assert _compared(open_device("simulated"), theirs, ours).problem() is not None
    assert "in another it differs" in str(RuntimeProof(other, 10, 0.5, 0.9).problem())


def test_any_network_is_written_as_asked_and_left_as_it_was(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4).eval(), torch.nn.Dropout(0.5))
    network.train()
    network[1].eval()  # frozen, as some are
    path = nas.write_onnx(network, tmp_path / "x.onnx", example=torch.zeros(2, 3, 8, 8), ir_version=10, opset=15)
    model = onnx.load(path)
    assert (model.ir_version, model.opset_import[0].version) == (10, 15)
    assert [module.training for module in network.modules()] == [True, True, False, True]


def test_operators_that_the_opset_lacks_are_named(demo: DemoResult, tmp_path: Path) -> None:
    source = next((demo.run / "exports").glob("*.onnx"))
    model = onnx.load(source)
    assert check_file(source, 17) == []
    assert check_file(source, 18) == ["it has opset 17, not 18"]
    for op, domain in (("Gelu", ""), ("FusedConv", "com.microsoft")):
        twin = onnx.ModelProto()
        twin.CopyFrom(model)
        twin.graph.node.append(onnx.helper.make_node(op, [twin.graph.input[0].name], ["unused"], domain=domain))
        onnx.save_model(twin, tmp_path / "a.onnx")
        assert check_file(tmp_path / "a.onnx", 17) != []
    (tmp_path / "b.onnx").write_bytes(source.read_bytes()[:1000])
    assert "checker refuses" in check_file(tmp_path / "b.onnx", 17)[0]


def test_records_of_version_1_are_read(finished: Path) -> None:
    path = next((finished / "exports").glob("*.json"))
    value = json.loads(path.read_text())
    for name in ("format", "runtimes", "problems", "torch_file", "program"):
        del value[name]
    path.write_text(json.dumps(value | {"version": 1}))
    export = read_export(nas.Run.open(finished), path.stem)
    assert export == replace(export, format=Format(), runtimes=(), problems=(), torch_file=None)
    assert isinstance(export, Export)


def test_signatures(demo: DemoResult, tmp_path: Path) -> None:
    signature = Signature.of(next((demo.run / "exports").glob("*.onnx")))
    assert (signature.pixels, signature.batch, signature.channels, signature.classes) == (None, None, 1, 10)
    (tmp_path / "a.onnx").write_text("no")
    with pytest.raises(UserError, match="not an ONNX file"):
        Signature.of(tmp_path / "a.onnx")
