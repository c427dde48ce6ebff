"""What export is worth: fused activations, seconds for twenty proven networks, INT8 against float.

    python scripts/bench_export.py                 # makes a small run on the digits first (about two minutes)
    python scripts/bench_export.py --run runs/demo-digits
    python scripts/bench_export.py --parts fused   # seconds

The run is copied, never changed. Freed memory is kept, as the command does. Run it on a quiet machine; one thread.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

import nas

ROUNDS = 60


class Written(nn.Module):
    """x * relu6(x + 3) / 6 step by step, as reference implementations write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.relu6(x + 3) / 6


class WrittenGate(nn.Module):
    """Squeeze-and-excite with its hard sigmoid written as relu6(x + 3) / 6."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = gate.reduce, gate.expand

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * (nn.functional.relu6(gate + 3) / 6)


def written_out(module: nn.Module) -> None:
    """Replace fused activations by written ones, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Hardswish):
            setattr(module, name, Written())
        elif hasattr(child, "reduce") and hasattr(child, "expand") and type(child).__name__ == "_SqueezeExcite":
            setattr(module, name, WrittenGate(child))
        else:
            written_out(child)


def medians(files: list[Path], shape: tuple[int, ...]) -> list[float]:
    """Median CPU ms of each file on the calling thread, which runs all of it; interleaved in random order."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    rng = np.random.default_rng(0)
    sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    feeds = [{session.get_inputs()[0].name: rng.standard_normal(shape, dtype=np.float32)} for session in sessions]
    times: list[list[float]] = [[] for _ in files]
    for round_ in range(ROUNDS + 5):
        for index in rng.permutation(len(files)):
            begun = time.thread_time()
            sessions[index].run(None, feeds[index])
            if round_ >= 5:  # warm
                times[index].append(1e3 * (time.thread_time() - begun))
    return [float(np.median(found)) for found in times]


def left_over(file: Path) -> int:
    """Element-wise operators that ONNX Runtime could not fuse into a convolution, and changes of layout."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that the file it writes is for this processor
    options.optimized_model_filepath = str(file.with_suffix(".optimised.onnx"))
    ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = {"Add", "Clip", "Div", "HardSigmoid", "HardSwish", "Mul", "Relu", "ReorderInput", "ReorderOutput"}
    return sum(node.op_type in kinds for node in onnx.load(options.optimized_model_filepath).graph.node)


def fused_activations(folder: Path) -> None:
    """The same OFA MobileNetV3 networks, exported by the toolkit and with written-out activations."""
    space = nas.space("ofa-mobilenet-v3", width=1.0)
    supernet = nas.Supernet(space, seed=0).eval()
    archs = [space.smallest, *space.sample(2, seed=1), space.largest]
    print("Fused activations, OFA MobileNetV3, CPU ms in ONNX Runtime, one thread")
    print("| network | px | toolkit | x*relu6(x+3)/6 | ratio | parity | not fused |\n|---|---|---|---|---|---|---|")
    ratios = []
    for arch in archs:
        network, side = supernet.extract(arch).eval(), arch["resolution"]
        ours = nas.write_onnx(network, folder / "ours.onnx", batch=1)
        images = torch.randn(1, 3, side, side)
        written_out(network)
        theirs = folder / "theirs.onnx"
        torch.onnx.export(network, (images,), theirs, dynamo=False, opset_version=17, input_names=["image"])
        fast, slow = medians([ours, theirs], (1, 3, side, side))
        outputs = [ort.InferenceSession(file).run(None, {"image": images.numpy()})[0] for file in (ours, theirs)]
        parity = float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[1]).max())
        ratios.append(fast / slow)
        rest = f"{left_over(ours)}, {left_over(theirs)}"
        print(f"| {arch.id} | {side} | {fast:.2f} | {slow:.2f} | {fast / slow:.2f} | {parity:.0e} | {rest} |")
    print(f"median ratio {np.median(ratios):.2f} (wanted: at most 0.80)\n")


def small_run(folder: Path) -> Path:
    """A run on the digits."""
    images = nas.load_data("digits")
    space = nas.space("small-mobilenet", width=0.5, image=28, classes=images.classes, channels=images.channels)
    nas.train(nas.Supernet(space), images, out=folder, recipe="quick", epochs=12)
    return folder


def twenty_networks(source: Path, folder: Path) -> None:
    """Export and proof of a front of twenty networks, then INT8 and both latencies."""
    run = folder / "copy"
    shutil.copytree(source, run)
    samples = 40
    if (run / "front.json").exists():
        samples = nas.ParetoFront.load(run / "front.json").provenance["scores"]
    front = nas.search(run, points=20, samples=samples, force=True)
    begun = time.perf_counter()
    exports = nas.export(run, force=True)
    seconds = time.perf_counter() - begun
    worst = max(export.max_relative_difference for export in exports if export.max_relative_difference is not None)
    print(f"Export and proof of {len(front)} networks of {front.space.key}: {seconds:.1f} s, "
          f"{20 * seconds / len(front):.1f} s for 20 (wanted: at most 60); {sum(e.proven for e in exports)} proven, "
          f"largest difference {worst:.0e}, {exports[0].images} images each")  # fmt: skip
    begun = time.perf_counter()
    made = nas.quantize(run, force=True)
    print(f"INT8 of {len(made)} networks: {time.perf_counter() - begun:.1f} s")
    result = nas.verify(run)
    floats = {network.id: network for network in result.networks}
    print("\n| network | float ms | INT8 ms | ratio | float % | INT8 % | size |\n|---|---|---|---|---|---|---|")
    sizes = {item.id: item.bytes / item.float_bytes for item in made}
    for twin in result.quantised:
        one = floats[twin.network]
        print(f"| {one.id} | {one.latency_ms:.4f} | {twin.latency_ms:.4f} | {twin.latency_ms / one.latency_ms:.2f} "
              f"| {100 * one.accuracy:.1f} | {100 * twin.accuracy:.1f} | {sizes[twin.id]:.0%} |")  # fmt: skip
    gains = result.gains()
    assert gains is not None
    on_front = sum(twin.id in result.front() for twin in result.quantised)
    print(
        f"INT8 takes {gains['latency_ratio']:.2f} of the float time (median, {result.clock} clock), loses "
        f"{100 * gains['accuracy_loss']:.2f} points; {on_front} INT8 twins are on the verified front"
    )


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run; default: one is made")
    parser.add_argument("--parts", default="fused,front", help="fused, front; comma-separated")
    given = parser.parse_args()
    nas.keep_freed_memory()
    parts, run = given.parts.split(","), given.run
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, onnxruntime {ort.__version__}, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "fused" in parts:
            fused_activations(folder)
        if "front" in parts:
            twenty_networks(run or small_run(folder / "run"), folder)


if __name__ == "__main__":
    main()
