"""Devices: names, options, and that lists and imports are light."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from latency_tables import list_devices, open_device
from latency_tables.device import DEVICES
from latency_tables.onnx_graph import build_onnx
from search_spaces import UserError
from search_spaces.layers import Conv


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, latency_tables; latency_tables.list_devices(); latency_tables.LatencyTable; latency_tables.Quality;"
        "print([m for m in ('onnx', 'onnxruntime', 'pandas', 'scipy', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_list_names_every_device() -> None:
    rows = {row.name: row for row in list_devices()}
    assert list(rows) == list(DEVICES)
    assert rows["onnxruntime-cpu"].available
    assert rows["onnxruntime-cpu"].version


@pytest.mark.parametrize("options", [{"threads": 0}, {"batch": 0}, {"precision": "int3"}])
def test_options_that_a_device_does_not_have_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        open_device("onnxruntime-cpu", **options)  # type: ignore[arg-type]


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'onnxruntime-cpu'"):
        open_device("onnxruntime")


@pytest.mark.parametrize("name", list(DEVICES))
def test_every_device_runs_and_infers(name: str) -> None:
    device = open_device(name, batch=3)
    model = build_onnx([Conv(6, 3, 8, 3, 2, "relu")])
    for content in (model, model.SerializeToString()):
        runner = device.load(content)
        runner.run()
        images = np.random.default_rng(0).standard_normal((5, 3, 6, 6), dtype=np.float32)
        output = runner.infer(images)
        assert output.shape == (5, 8, 3, 3)
        np.testing.assert_allclose(output[:2], runner.infer(images[:2]), rtol=1e-5, atol=1e-6)
    print_ = device.fingerprint()
    assert json.loads(json.dumps(print_)) == print_ == device.fingerprint()
    assert (print_["batch"], print_["threads"], print_["precision"]) == (3, 1, "fp32")
    assert open_device(name).fingerprint() != print_
    with pytest.raises(Exception):  # noqa: B017 - whatever the runtime raises
        device.load(b"not a model")
