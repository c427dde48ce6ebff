"""What weight sharing costs in training: steps of the supernet against the same steps of extracted, static networks.

Run: OMP_NUM_THREADS=1 python scripts/bench_training.py
Some parts of it: --parts steps --case 128
Against Once-for-all's own code (a checkout of its repository, which you bring): --parts reference --reference PATH
On a GPU: --device cuda; images a second: --device cuda --parts throughput
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import nas

CLASSES = 100
CASES = [(32, 128), (64, 32)]  # batch, px
MEMORY = [
    ("step", "small-mobilenet", 32, 128),
    ("step", "ofa-mobilenet-v3", 128, 32),
    ("outputs", "small-mobilenet", 32, 100),
    ("outputs", "ofa-mobilenet-v3", 128, 100),
    ("outputs", "ofa-mobilenet-v3", 224, 100),
]


def sgd(parameters: Any, *, fused: bool | None = None) -> torch.optim.Optimizer:
    """The optimiser of the recipes; a rate so low that all rounds train the same network."""
    return torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, nesterov=True, weight_decay=3e-5, fused=fused)


def training_step(
    networks: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    optimiser: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    teacher: nn.Module | None,
    dtype: torch.dtype | None = None,
) -> Callable[[], None]:
    """One step: every network's gradients, summed, then the optimiser."""

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        soft = None
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            if teacher is not None:
                with torch.no_grad():
                    soft = F.softmax(teacher(x).float(), dim=1)
            for network in networks:
                logits = network(x).float()
                loss = F.cross_entropy(logits, y, label_smoothing=0.1)
                (loss if soft is None else loss + F.cross_entropy(logits, soft)).backward()
        optimiser.step()

    return run


def interleaved(calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int) -> list[list[float]]:
    """Times of all calls in ms; they alternate, so that drift meets all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 2):
        for call, found in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 2:
                found.append(1000 * (time.perf_counter() - begun))
    return times


def show(what: str, times: list[list[float]], goal: str = "") -> None:
    """One line: medians of both, and the median of the rounds' ratios with its quartiles."""
    ratios = [a / b for a, b in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    first, second = (statistics.median(found) for found in times)
    print(f"{what:<58}{first:>11.2f}{second:>11.2f}{middle:>9.3f}  {low:.3f} to {high:.3f}  {goal}", flush=True)


def images(batch: int, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the data loader gives it, and labels."""
    x = torch.randn(batch, 3, side, side).to(device, memory_format=torch.channels_last)
    return x, torch.arange(batch, device=device) % CLASSES


Cases = Sequence[tuple[int, int]]


def steps(device: torch.device, rounds: int, cases: Cases) -> None:
    """Supernet against static networks: one subnet, and four with a teacher."""
    for batch, side in cases:
        space = nas.space("ofa-mobilenet-v3", resolution=[side])
        supernet = nas.Supernet(space, CLASSES, seed=0).to(device)
        teacher = supernet.eval().extract(space.largest).eval()
        supernet.train()
        x, y = images(batch, side, device)
        named = {"largest": [space.largest], "smallest": [space.smallest], "one random": space.sample(1, seed=1)}
        plain = [(what, archs, None) for what, archs in named.items()]
        for what, archs, taught in [*plain, ("four random and a teacher", space.sample(4, seed=2), teacher)]:
            static = nn.ModuleList(supernet.extract(arch).train() for arch in archs)
            shared = [lambda inputs, arch=arch, net=supernet: net(inputs, arch) for arch in archs]
            calls = [
                training_step(shared, sgd(supernet.parameters()), x, y, taught),
                training_step(list(static), sgd(static.parameters()), x, y, taught),
            ]
            goal = "goal 1.08" if what == "smallest" else "goal 1.05"
            show(f"step, batch {batch}, {side} px, {what}", interleaved(calls, device, rounds), goal)


class Reference:
    """Once-for-all's own MobileNetV3 and its training step, imported from a checkout of its repository."""

    def __init__(self, checkout: Path) -> None:
        sys.path.insert(0, str(checkout))
        _ = nas.Supernet  # its package declares torchvision's operators where the build lacks them
        import ofa.utils as tools
        from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

        sizes = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
        self.network = OFAMobileNetV3(CLASSES, dropout_rate=0.1, **sizes)
        self.hard, self.soft = tools.cross_entropy_with_label_smoothing, tools.cross_entropy_loss_with_soft_target

    def choose(self, arch: nas.Architecture) -> None:
        """Make an architecture the active one."""
        chosen = arch.to_dict()
        self.network.set_active_subnet(ks=list(chosen["kernel"]), e=list(chosen["expand"]), d=list(chosen["depth"]))

    def teacher(self, largest: nas.Architecture) -> nn.Module:
        """A static copy of the largest network."""
        self.choose(largest)
        static: nn.Module = self.network.get_active_subnet(preserve_weight=True)
        return static.eval()

    def step(
        self, archs: Sequence[nas.Architecture], x: torch.Tensor, y: torch.Tensor, teacher: nn.Module | None
    ) -> Callable[[], None]:
        """A step as its training loop has it: plain SGD; weights decay, but no biases and normalisations."""
        network = self.network.train()
        groups = [
            {"params": network.get_parameters(["bn", "bias"], mode="exclude"), "weight_decay": 3e-5},
            {"params": network.get_parameters(["bn", "bias"], mode="include"), "weight_decay": 0.0},
        ]
        optimiser = torch.optim.SGD(groups, lr=1e-5, momentum=0.9, nesterov=True)

        def run() -> None:
            soft = None
            if teacher is not None:
                with torch.no_grad():
                    soft = F.softmax(teacher(x), dim=1)
            network.zero_grad()
            for arch in archs:
                self.choose(arch)
                logits = network(x)
                loss = self.hard(logits, y)
                (loss if soft is None else self.soft(logits, soft) + loss).backward()
            optimiser.step()

        return run

    def check(self, archs: Sequence[nas.Architecture], supernet: nas.Supernet) -> None:
        """Both mean the same networks: as many parameters in every tensor."""
        for arch in archs:
            self.choose(arch)
            theirs = sorted(p.numel() for p in self.network.get_active_subnet(preserve_weight=False).parameters())
            assert theirs == sorted(p.numel() for p in supernet.extract(arch).parameters()), arch


def against_reference(device: torch.device, rounds: int, cases: Cases, checkout: Path) -> None:
    """The same sampled subnets in both: one alone, the largest and the smallest, and four with a teacher."""
    reference = Reference(checkout)
    reference.network.to(device)
    for batch, side in cases:
        space = nas.space("ofa-mobilenet-v3", resolution=[side])
        supernet = nas.Supernet(space, CLASSES, seed=0).to(device).train()
        x, y = images(batch, side, device)
        plain = x.contiguous(memory_format=torch.contiguous_format)  # what its data loader gives
        teachers = (supernet.eval().extract(space.largest).eval(), reference.teacher(space.largest))
        supernet.train()
        few, four = space.sample(1, seed=1), space.sample(4, seed=2)
        reference.check([*few, *four], supernet)
        named = {"largest": [space.largest], "smallest": [space.smallest], "one random": few}
        for what, archs, taught in [*((w, a, False) for w, a in named.items()), ("four random and a teacher", four, True)]:
            shared = [lambda inputs, arch=arch, net=supernet: net(inputs, arch) for arch in archs]
            ours = training_step(shared, sgd(supernet.parameters(), fused=True), x, y, teachers[0] if taught else None)
            theirs = reference.step(archs, plain, y, teachers[1] if taught else None)
            goal = "goal 0.60" if side >= 64 else "goal 0.65"
            show(f"step, batch {batch}, {side} px, {what}", interleaved([ours, theirs], device, rounds), goal)


def precision(device: torch.device, rounds: int, cases: Cases) -> None:
    """Whether half precision and the fused optimiser pay here."""
    for batch, side in cases:
        space = nas.space("ofa-mobilenet-v3", resolution=[side])
        supernet = nas.Supernet(space, CLASSES, seed=0).to(device).train()
        x, y = images(batch, side, device)
        arch = space.sample(1, seed=1)[0]
        shared = [lambda inputs, net=supernet, arch=arch: net(inputs, arch)]
        optimiser = sgd(supernet.parameters())
        half = training_step(shared, optimiser, x, y, None, torch.bfloat16)
        full = training_step(shared, optimiser, x, y, None)
        show(f"bf16 against fp32, batch {batch}, {side} px", interleaved([half, full], device, max(3, rounds // 2)))
    twin = nas.Supernet(nas.space("ofa-mobilenet-v3"), CLASSES, seed=0).to(device)
    for parameter in [*supernet.parameters(), *twin.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    both = [sgd(supernet.parameters(), fused=True).step, sgd(twin.parameters(), fused=False).step]
    show("fused against plain SGD, largest network, step alone", interleaved(both, device, 3 * rounds))


def recalibration(device: torch.device, rounds: int, cases: Cases) -> None:
    """Statistics of an extracted network against a plain forward of the same images."""
    for _, side in cases:
        count, batch = (2, 50) if side >= 64 else (5, 200)
        space = nas.space("ofa-mobilenet-v3", resolution=[side])
        network = nas.Supernet(space, CLASSES, seed=0).to(device).extract(space.sample(1, seed=1)[0])
        batches = [images(batch, side, device)[0] for _ in range(count)]

        def forward(network: nn.Module = network, batches: list[torch.Tensor] = batches) -> None:
            network.eval()
            with torch.inference_mode():
                for x in batches:
                    network(x)

        calls = [lambda network=network, batches=batches: nas.recalibrate(network, batches), forward]
        what = f"recalibration against forward, {count} x {batch} images, {side} px"
        show(what, interleaved(calls, device, rounds), "goal 1.25")


def extraction(device: torch.device, rounds: int, _cases: Cases) -> None:
    """Extracting a network against copying its weights."""
    for name in ("ofa-mobilenet-v3", "ofa-resnet50"):
        space = nas.space(name)
        supernet = nas.Supernet(space, CLASSES, seed=0).to(device)
        arch = space.sample(1, seed=1)[0]
        state = supernet.extract(arch).state_dict()
        calls = [lambda net=supernet, a=arch: net.extract(a), lambda s=state: [t.clone() for t in s.values()]]
        goal = "goal 10 ms" if name == "ofa-mobilenet-v3" else ""
        show(f"extraction against a copy of the tensors, {name}", interleaved(calls, device, 3 * rounds), goal)


LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
SPEEDS = [  # space, px, images
    ("ofa-mobilenet-v3", 128, 256),
    ("ofa-mobilenet-v3", 176, 256),
    ("ofa-mobilenet-v3", 224, 256),
    ("small-mobilenet", 32, 512),
]


def throughput(device: torch.device, rounds: int, _cases: Cases) -> None:
    """Images a second: the largest network alone, static, against a step of the phase that opens the widths.

    That step trains two random subnets of the whole space on what the largest network, static, says of the images.
    """
    print(f"\n{'images a second':<60}{'static':>12}{'largest':>12}{'2, taught':>12}{'2':>12}")
    for layout, memory in LAYOUTS.items():
        for name, side, batch in SPEEDS:
            space = nas.space(name, resolution=[side])
            supernet = nas.Supernet(space, CLASSES, seed=0).to(device, memory_format=memory)  # type: ignore[call-overload]
            teacher = supernet.eval().extract(space.largest).eval()
            static = supernet.extract(space.largest).train()
            supernet.train()
            x, y = images(batch, side, device)
            x = x.contiguous(memory_format=memory)
            largest, *two = [
                lambda inputs, arch=arch, net=supernet: net(inputs, arch) for arch in [space.largest, *space.sample(2, seed=2)]
            ]
            for word, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
                shared = sgd(supernet.parameters())
                calls = [
                    training_step([static], sgd(static.parameters()), x, y, None, dtype),
                    training_step([largest], shared, x, y, None, dtype),
                    training_step(two, shared, x, y, teacher, dtype),
                    training_step(two, shared, x, y, None, dtype),
                ]
                speeds = [1000 * batch / statistics.median(times) for times in interleaved(calls, device, rounds)]
                what = f"{name} {side} px, batch {batch}, {word}, {layout}"
                print(f"{what:<60}" + "".join(f"{speed:>12,.0f}" for speed in speeds), flush=True)


@cache
def prepared(kind: str, name: str, side: int, batch: int) -> Callable[[], Any]:
    """A training step of two random subnets, or a static network's outputs of four batches."""
    torch.set_num_threads(1)
    space = nas.space(name, resolution=[side]) if name.startswith("ofa") else nas.space(name, image=side)
    supernet = nas.Supernet(space, CLASSES, seed=0)
    archs = space.sample(2, seed=2)
    x, y = images(batch, side, torch.device("cpu"))
    if kind == "step":
        two = [lambda inputs, arch=arch: supernet(inputs, arch) for arch in archs]
        return training_step(two, sgd(supernet.parameters()), x, y, None)
    network = supernet.extract(archs[0]).eval()
    return torch.inference_mode()(lambda: [network(x) for _ in range(4)])


def do(*work: Any) -> None:
    """In a process of its own, which keeps what is prepared."""
    prepared(*work)()


def memory(_device: torch.device, rounds: int, _cases: Cases) -> None:
    """Processes that keep the memory they free against processes that do not; always on the CPU."""
    for work in MEMORY:
        with ExitStack() as stack:
            pools = [
                stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=started))
                for started in (nas.keep_freed_memory, None)
            ]
            calls = [lambda pool=pool, work=work: pool.submit(do, *work).result() for pool in pools]
            kind, name, side, batch = work
            show(f"memory kept, {kind}, {name}, batch {batch}, {side} px", interleaved(calls, torch.device("cpu"), rounds))


USUAL = {"steps": steps, "recalibration": recalibration, "extraction": extraction, "precision": precision, "memory": memory}
PARTS = {**USUAL, "throughput": throughput}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=7, help="of every comparison")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--parts", default=",".join(USUAL), help=f"of {', '.join(PARTS)}, reference; comma-separated")
    parser.add_argument("--case", type=int, choices=[side for _, side in CASES], help="images of this many px only")
    parser.add_argument("--reference", type=Path, help="checkout of github.com/mit-han-lab/once-for-all to compare with")
    given = parser.parse_args()
    wanted = given.parts.split(",")
    if unknown := set(wanted) - {*PARTS, "reference"}:
        parser.error(f"unknown part '{unknown.pop()}'")
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    cases = [case for case in CASES if given.case in (None, case[1])]
    print(f"torch {torch.__version__}, {device}, {given.threads} thread(s), {given.rounds} interleaved rounds")
    print(f"{'what':<58}{'first ms':>11}{'second ms':>11}{'ratio':>9}  quartiles")
    for part in wanted:
        if part in PARTS:
            PARTS[part](device, given.rounds, cases)
        elif given.reference is None:
            print("reference: skipped; it needs --reference PATH")
        else:
            against_reference(device, given.rounds, cases, given.reference)


if __name__ == "__main__":
    main()
