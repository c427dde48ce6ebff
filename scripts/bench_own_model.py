"""What weight sharing costs a network of one's own: supernet calls against the extracted network's.

Run: OMP_NUM_THREADS=1 python scripts/bench_own_model.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import nas

ROUNDS = 15


def resnet(d1: int, d2: int, d3: int, d4: int) -> nn.Module:
    """torchvision's ResNet of basic blocks."""
    from torchvision.models.resnet import BasicBlock, ResNet  # after nas: it may have to declare operators for torchvision

    return ResNet(BasicBlock, [d1, d2, d3, d4], num_classes=10)


def transformer(depth: int, mlp_dim: int) -> nn.Module:
    """torchvision's VisionTransformer."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 8, depth, 4, 128, mlp_dim, num_classes=10)


def step(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], None]:
    """A training step's forward and backward."""
    return lambda: call(x).square().sum().backward()


def forward(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], object]:
    """A forward without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return call(x)

    return run


def interleaved(first: Callable[[], object], second: Callable[[], object], *, repeat: int) -> tuple[float, float]:
    """Medians of both in ms; runs alternate, so that drift meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 2):
        for call, found in zip((first, second), times, strict=True):
            begun = time.perf_counter()
            for _ in range(repeat):
                call()
            found.append((time.perf_counter() - begun) / repeat * 1000)
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    spaces = {
        "ResNet-18": (resnet, {f"d{i}": [1, 2] for i in range(1, 5)}),
        "ViT, 6 blocks": (transformer, {"depth": [4, 5, 6], "mlp_dim": [128, 256, 512]}),
    }
    print(f"{'network':<16}{'what':<34}{'supernet ms':>12}{'extracted ms':>14}{'ratio':>8}")
    for name, (build, choices) in spaces.items():
        space = nas.elastic(build, choices, input_shape=(3, 64, 64))
        supernet = nas.Supernet(space, seed=0)
        arch = space.sample(1, seed=1)[0]
        for what, batch, training in (("forward+backward, batch 16", 16, True), ("forward, batch 1", 1, False)):
            supernet.train(training)
            network, x = supernet.extract(arch), torch.randn(batch, 3, 64, 64)
            kind, repeat = (step, 1) if training else (forward, 10)
            shared, plain = interleaved(
                kind(lambda images, a=arch, net=supernet: net(images, a), x), kind(network, x), repeat=repeat
            )
            print(f"{name:<16}{what:<34}{shared:>12.2f}{plain:>14.2f}{shared / plain:>8.3f}")
        extract, build_ms = interleaved(
            lambda net=supernet, a=arch: net.extract(a), lambda b=build, a=arch: b(**a.to_dict()), repeat=1
        )
        print(f"{name:<16}{'extract / the constructor alone':<34}{extract:>12.2f}{build_ms:>14.2f}{extract / build_ms:>8.3f}")


if __name__ == "__main__":
    main()
