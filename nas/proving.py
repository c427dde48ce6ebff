"""The proof that an exported file computes what its network computes: checker, operators, parity in every runtime here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from latency_tables import Device, list_devices, open_device
from nas.onnx_files import Format, outputs
from search_spaces.errors import UserError
from supernets import Examples

__all__ = ["Proof", "RuntimeProof", "check_file", "prove"]

TOLERANCE = 1e-4  # largest difference of an output, relative to the largest output
COARSE = 1e-2  # the same in runtimes that may round more coarsely by default
TIE = 1e-5  # of the largest output: classes nearer to each other than that are one answer, rounding decides between them
FIRST_RUNTIME = "onnxruntime-cpu"
NO_RUNTIMES = ("simulated",)  # devices that compute nothing of their own
FEW_IMAGES = 64  # in any other one: some take tens of milliseconds an image
_BATCH = 100  # activations stay in the cache


@dataclass(frozen=True)
class RuntimeProof:
    """A file in one runtime against torch.

    Attributes:
        images: test images that it gave outputs for; 0 where it did not run.
        max_relative_difference: largest difference of any output over the largest output.
        top1_agreement: share of the images with the same top-1 class, or one that torch finds as good to 1e-5.
        failure: why it did not run, or gave nothing to compare.
    """

    runtime: str
    images: int = 0
    max_relative_difference: float | None = None
    top1_agreement: float | None = None
    failure: str | None = None

    def problem(self) -> str | None:
        """What speaks against the file, in words.

        ONNX Runtime has to run it, within the tolerance and with every class the same. Another runtime may lack an operator or
        an input type, or round more coarsely (TF32): that is its own limit, unless it computes something else.
        """
        first = self.runtime == FIRST_RUNTIME
        if self.failure is not None:
            return f"{self.runtime} cannot run it: {self.failure}" if first or self.images else None
        tolerance, same = (TOLERANCE, 1.0) if first else (COARSE, 0.0)
        assert self.max_relative_difference is not None
        assert self.top1_agreement is not None
        if self.max_relative_difference <= tolerance and self.top1_agreement >= same:
            return None
        return (
            f"in {self.runtime} it differs from torch by {self.max_relative_difference:.1e} (at most {tolerance:.0e}), "
            f"same top-1 class on {self.top1_agreement:.2%} of {self.images} images"
        )


@dataclass(frozen=True)
class Proof:
    """All that was checked of one file; ``problems`` is empty where everything holds."""

    runtimes: tuple[RuntimeProof, ...]
    problems: tuple[str, ...]

    @property
    def first(self) -> RuntimeProof:
        """In ONNX Runtime, on all test images."""
        return self.runtimes[0]


def prove(path: Path, network: nn.Module, split: Examples, resolution: int, form: Format) -> Proof:
    """Check a file as it lies on disk, and run it in every runtime that is installed.

    ONNX Runtime is compared on all test images, at the same time as torch runs them: one thread each is faster than both on all
    cores one after the other. Any other runtime is compared on 64 images; see `RuntimeProof.problem`.
    """
    problems = check_file(path, form.opset)
    chosen = np.arange(len(split))
    with ThreadPoolExecutor(1) as beside:
        first = open_device(FIRST_RUNTIME)
        theirs = beside.submit(_outputs, first, path, split, resolution, chosen)
        ours = torch_outputs(network, split, chosen, resolution, softmax=form.softmax)
        runtimes = [_compared(first, theirs.result(), ours)]
    few = np.linspace(0, len(chosen) - 1, min(FEW_IMAGES, len(chosen))).astype(np.int64)
    for device in _other_runtimes():
        runtimes.append(_compared(device, _outputs(device, path, split, resolution, chosen[few]), ours[few]))
    problems += [problem for runtime in runtimes if (problem := runtime.problem())]
    return Proof(tuple(runtimes), tuple(problems))


def check_file(path: Path, opset: int) -> list[str]:
    """What is wrong with a file's structure: onnx's full check, and operators that the opset does not have."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # noqa: BLE001 (the checker raises types of its own, protobuf others)
        return [f"onnx's checker refuses it: {str(error).strip().splitlines()[0]}"]
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written.get("") != opset:
        return [f"it has opset {written.get('')}, not {opset}"]
    unknown = [node.op_type for node in model.graph.node if not _known(node, written)]
    return [f"opset {opset} has no {', '.join(sorted(set(unknown)))}"] if unknown else []


def _known(node: onnx.NodeProto, opsets: dict[str, int]) -> bool:
    if node.domain not in opsets:
        return False
    try:
        onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except onnx.defs.SchemaError:
        return False
    return True


def _other_runtimes() -> Iterator[Device]:
    """Every installed runtime but the first that opens here with single precision."""
    for row in list_devices():
        if row.available and row.name not in (FIRST_RUNTIME, *NO_RUNTIMES):
            try:
                device = open_device(row.name)
            except UserError:  # installed, but not for this machine
                continue
            if device.precision == "fp32":
                yield device


def _outputs(
    device: Device, path: Path, split: Examples, resolution: int, chosen: NDArray[np.int64]
) -> NDArray[np.float32] | str:
    """What a file gives in a runtime, (N, classes), or why it gives nothing."""
    try:
        return outputs(device, path, split, resolution, indices=chosen)
    except Exception as error:  # noqa: BLE001 (a runtime may fail in any way; the proof says how)
        return f"{type(error).__name__}: {str(error).strip()[:300]}"


def _compared(device: Device, theirs: NDArray[np.float32] | str, ours: NDArray[np.float32]) -> RuntimeProof:
    if isinstance(theirs, str):
        return RuntimeProof(device.name, failure=theirs)
    if theirs.shape != ours.shape:
        failure = f"its output has shape {theirs.shape}, torch's {ours.shape}"
        return RuntimeProof(device.name, len(ours), failure=failure)
    if not np.isfinite(theirs).all():
        return RuntimeProof(device.name, len(ours), failure="not all is finite")
    largest = np.abs(ours).max()
    difference = float(np.abs(ours - theirs).max() / largest)
    found = np.take_along_axis(ours, theirs.argmax(1)[:, None], axis=1)[:, 0]  # torch's output for the runtime's class
    return RuntimeProof(device.name, len(ours), difference, float((found >= ours.max(1) - TIE * largest).mean()))


def torch_outputs(
    network: nn.Module, split: Examples, chosen: NDArray[np.int64], resolution: int, *, softmax: bool
) -> NDArray[np.float32]:
    """The network's own outputs, (N, classes)."""
    parts = np.array_split(chosen, max(1, len(chosen) // _BATCH))
    with torch.inference_mode():
        found = torch.cat([network(split.batch(part, resolution)) for part in parts])
        return (found.softmax(1) if softmax else found).numpy()
