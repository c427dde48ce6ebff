"""The conformance suite of devices, and how names become devices."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from latency_tables import Candidate, Device, Measurement, Plan, file_name, list_devices, open_device
from latency_tables.devices import DEVICES
from latency_tables.onnx_graph import build_onnx
from latency_tables.quantise import quantised
from latency_tables.stopwatch import Failure
from search_spaces import UserError
from search_spaces.layers import Bottleneck, Conv, GlobalPool, Layer, Linear, MaxPool, MBConv

HERE = {row.name: row for row in list_devices()}
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")
TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 0.05, "fp16": 0.01, "int8": 0.25}  # of the largest output
NETWORK: list[Layer] = [
    Conv(12, 3, 8, 3, 2, "hswish"),
    MaxPool(6, 8, 3, 1),
    Bottleneck(6, 8, 4, 12, 3, 2, "relu"),
    MBConv(3, 12, 24, 12, 3, 1, "hswish", 8, True),
    MBConv(3, 12, 24, 16, 5, 1, "relu6"),
    MBConv(3, 16, 32, 16, 3, 1, "swish", 0, True),
    GlobalPool(3, 16),
    Linear(1, 16, 5),
]


def opened(name: str) -> Device:
    """The device, or a skip that says why."""
    kind = name.partition(":")[0]
    if not HERE[kind].available:
        pytest.skip(f"{kind} is not available here: {HERE[kind].install}")
    try:
        return open_device(name)
    except UserError as error:
        if "precision" not in error.problem:
            raise
        pytest.skip(f"{kind} has no such precision")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", list(DEVICES))
def test_every_device_runs_infers_and_times(kind: str, precision: str) -> None:
    device = opened(f"{kind}:batch=3,precision={precision}")
    model = build_onnx(NETWORK)
    before = model.SerializeToString()
    images = np.random.default_rng(0).standard_normal((5, 3, 12, 12), dtype=np.float32)
    truth = open_device("onnxruntime-cpu").load(model).infer(images)
    for content in (model, before):
        runner = device.load(content)
        runner.run()
        output = runner.infer(images)
        assert output.shape == truth.shape
        assert output.dtype == np.float32
        assert np.abs(output - truth).max() <= TOLERANCE[precision] * np.abs(truth).max()
        np.testing.assert_allclose(output[:2], runner.infer(images[:2]), rtol=1e-4, atol=1e-5 if precision == "fp32" else 0.1)
    assert model.SerializeToString() == before  # the caller's model is left as it was
    candidates = [Candidate("good", lambda: model), Candidate("bad", lambda: b"not a model"), Candidate("good", lambda: before)]
    plan = Plan(rounds=3, least=3, warmup=1, sample_ms=0.01)
    first, second, third = device.time(candidates, rng=np.random.default_rng(0), plan=plan)
    assert isinstance(first, Measurement)
    assert isinstance(third, Measurement)
    assert isinstance(second, Failure)
    assert first.median_ms > 0


@pytest.mark.parametrize("kind", list(DEVICES))
def test_fingerprints_tell_options_apart_and_names_are_canonical(kind: str) -> None:
    plain, batched = opened(kind), opened(f"{kind}:batch=3,threads=2")
    found = plain.fingerprint()
    assert json.loads(json.dumps(found)) == found == plain.fingerprint()
    assert (found["batch"], found["threads"], found["precision"]) == (1, 1, "fp32")
    assert batched.fingerprint() != found
    assert {"processor", "logical_cores", "runtime", "runtime_version"} <= found.keys()
    assert plain.name == kind
    assert open_device(f"{kind}:threads=2,batch=3").name == batched.name == f"{kind}:batch=3,threads=2"
    assert open_device(batched.name).fingerprint() == batched.fingerprint()
    assert open_device(kind, threads=2, batch=3).name == batched.name


@pytest.mark.parametrize("kind", list(DEVICES))
def test_a_run_keeps_what_it_reads(kind: str) -> None:
    runner = opened(kind).load(build_onnx(NETWORK))
    run, alive = runner.run, weakref.ref(runner)
    del runner
    gc.collect()
    run()
    assert alive() is not None


@pytest.mark.parametrize(
    ("operator", "shape", "attributes"),
    [
        ("MaxPool", (1, 1, 6, 6), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", (1, 1, 6, 6), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("AveragePool", (1, 1, 6, 6), {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}),
        ("AveragePool", (1, 1, 6, 6), {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0]}),
        ("Conv", (1, 1, 6, 6), {"auto_pad": "VALID"}),
        ("Gemm", (1, 9), {"alpha": 2.0}),
    ],
)
def test_torch_refuses_attributes_that_it_would_ignore(
    operator: str, shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    images = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    weight = np.ones((9, 1) if operator == "Gemm" else (1, 1, 3, 3), np.float32)
    constants = [onnx.numpy_helper.from_array(weight, "w")] if operator in ("Gemm", "Conv") else []
    node = onnx.helper.make_node(operator, ["x", *[c.name for c in constants]], ["y"], **attributes)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "one", [images], [output], constants), ir_version=8)
    with pytest.raises(NotImplementedError, match=list(attributes)[-1]):
        opened("torch-cpu").load(model).run()


def test_the_simulated_device_gives_the_same_times_everywhere() -> None:
    model = build_onnx(NETWORK)
    found = {}
    for options in ("", ":precision=int8", ":threads=2", ":batch=8"):
        device = open_device(f"simulated{options}")
        (timing,) = device.time([Candidate("network", lambda: model)], rng=np.random.default_rng(0))
        assert isinstance(timing, Measurement)
        found[options] = timing.median_ms
    assert found[""] == pytest.approx(0.0691034)
    assert found[":threads=2"] <= found[""] < found[":batch=8"]


@pytest.mark.parametrize("kind", ["onnxruntime-cpu", "openvino-cpu", "simulated"])
def test_models_that_take_pixels_run_too(kind: str) -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("GlobalAveragePool", ["floats"], ["means"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "pixels",
        [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["N", 3, 4, 4])],
        [onnx.helper.make_tensor_value_info("means", onnx.TensorProto.FLOAT, ["N", 3, 1, 1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    runner = opened(kind).load(model)
    runner.run()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), np.uint8)
    np.testing.assert_allclose(runner.infer(images), images.mean((2, 3), keepdims=True), rtol=1e-5)


def test_a_quantised_model_is_timed_as_it_is() -> None:
    once = quantised(build_onnx(NETWORK))
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in once.graph.node}
    assert quantised(once) == once


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, latency_tables; latency_tables.list_devices(); latency_tables.LatencyTable; latency_tables.Quality;"
        "print([m for m in ('onnx', 'onnxruntime', 'openvino', 'MNN', 'pandas', 'scipy', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_no_runtime_starts_its_telemetry(tmp_path: Path) -> None:
    opened("openvino-cpu")
    code = (
        "import sys, latency_tables as t; t.open_device('openvino-cpu').fingerprint();"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m] is not None])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []  # it would leave an identity here


def test_the_list_names_every_device() -> None:
    assert list(HERE) == list(DEVICES)
    assert HERE["onnxruntime-cpu"].available
    assert HERE["onnxruntime-cpu"].version
    assert all(row.install and row.about for row in HERE.values())


@pytest.mark.parametrize(
    "name",
    [
        "onnxruntime-cpu:threads=0",
        "onnxruntime-cpu:batch=x",
        "onnxruntime-cpu:precision=int3",
        "onnxruntime-cpu:threads=1,threads=2",
        "onnxruntime-cpu:speed=9",
        "onnxruntime-cpu:",
        "ssh://host",
        "ssh:///onnxruntime-cpu",
        "ssh://host/torch-cpu",
        "ssh://host/onnxruntime-cpu:precision=bf16",
        "ssh://host/onnxruntime-cuda:precision=int8",
        "ftp://host/onnxruntime-cpu",
    ],
)
def test_names_that_mean_nothing_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        open_device(name)


def test_options_beside_a_name_must_not_contradict_it() -> None:
    assert open_device("onnxruntime-cpu:threads=2", threads=2).threads == 2
    with pytest.raises(UserError, match="threads=4"):
        open_device("onnxruntime-cpu:threads=2", threads=4)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'onnxruntime-cpu'"):
        open_device("onnxruntime")


def test_a_device_that_is_not_here_says_what_to_install() -> None:
    absent = [row for row in HERE.values() if not row.available]
    for row in absent:
        with pytest.raises(UserError) as caught:
            open_device(row.name)
        assert row.install in caught.value.next_step


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("onnxruntime-cpu", "onnxruntime-cpu"),
        ("onnxruntime-cpu:precision=int8,threads=2", "onnxruntime-cpu+precision=int8,threads=2"),
        ("ssh://pi@10.0.0.7:22/onnxruntime-cpu", "ssh+pi@10.0.0.7+22+onnxruntime-cpu"),
    ],
)
def test_a_table_file_has_a_name_that_every_system_takes(name: str, file: str) -> None:
    assert file_name(name) == file
