"""Does it work on natural images? Subnets against twins trained alone, and the front against torchvision's MobileNetV3.

Every network, shared or alone, is trained on the same number of images, with the same optimiser, and then fine-tuned on the
same number of images more. All of them end as ONNX files that are tested and timed in the same interleaved rounds.

Run: OMP_NUM_THREADS=1 python scripts/bench_natural.py --out runs/natural --minutes 7
It does one piece after the other, stops after so many minutes (trainings in the middle) and goes on when it is run again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nas
from supernets import Interrupted, calibrated, load_tensors, resolution_of

WIDTH, IMAGE = 0.5, 28  # of the space small-mobilenet
PICKS = ("smallest", "median", "largest")
BASELINES = [  # family, width, strides taken off, beginning with the stem's
    ("small", 0.25, 2),
    ("large", 0.25, 2),
    ("small", 0.5, 2),
    ("small", 0.5, 1),
    ("small", 1.0, 2),
    ("large", 0.5, 2),
    ("large", 0.5, 1),
    ("small", 1.0, 1),
]


class ChannelsLast(nn.Module):
    """A network in the memory format that the toolkit trains its own networks in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits


def torchvision_mobilenet(width: float, family: str, strides: int, channels: int, classes: int) -> nn.Module:
    """torchvision's MobileNetV3 for small images: the first ``strides`` convolutions of stride 2 get stride 1."""
    from torchvision.models import mobilenetv3  # after nas: it may have to declare operators for torchvision

    settings, last = mobilenetv3._mobilenet_v3_conf(f"mobilenet_v3_{family}", width_mult=width)
    network = mobilenetv3.MobileNetV3(settings, last, num_classes=classes)
    stem = network.features[0][0]
    network.features[0][0] = nn.Conv2d(channels, stem.out_channels, 3, 2, 1, bias=False)
    strided = [part for part in network.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    for part in strided[:strides]:
        part.stride = (1, 1)
    return ChannelsLast(network)


@dataclass
class Bench:
    """The pieces and what they found, in ``record.json`` of the folder."""

    given: argparse.Namespace
    deadline: float
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = Path(self.given.out)
        self.file = self.folder / "record.json"
        budget = {name: getattr(self.given, name) for name in ("data", "epochs", "finetune_epochs", "recipe", "seed")}
        self.record = json.loads(self.file.read_text()) if self.file.exists() else {"budget": budget, "seconds": {}}
        if self.record["budget"] != budget:
            raise SystemExit(f"{self.file} has the budget {self.record['budget']}; choose another folder")

    @cached_property
    def data(self) -> Any:
        """Images as they are: augmentation does not pay for a few epochs."""
        return nas.load_data(self.given.data, seed=self.given.seed, augment=False)

    @cached_property
    def space(self) -> Any:
        """The space for these images."""
        return nas.space("small-mobilenet", width=WIDTH, image=IMAGE, channels=self.data.channels, classes=self.data.classes)

    @cached_property
    def run(self) -> Any:
        """The supernet's run."""
        return nas.Run.open(self.folder / "supernet")

    @cached_property
    def picks(self) -> dict[str, Any]:
        """Smallest, largest, and the one in the middle of 201 random ones by MACs."""
        drawn = sorted(self.space.sample(201, seed=self.given.seed), key=self.space.macs)
        return dict(zip(PICKS, (self.space.smallest, drawn[100], self.space.largest), strict=True))

    def stop(self) -> bool:
        """Whether this run's time is up."""
        return time.monotonic() > self.deadline

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """A piece that is done once; its time adds up over the runs of this script."""
        found = self.record.setdefault("done", {})
        if name in found:
            return found[name]
        if self.stop():
            raise Interrupted(0, self.file)
        begun = time.monotonic()
        try:
            found[name] = work()
        finally:
            seconds = self.record["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - begun, 1)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.record, indent=1))
            print(f"{name:<40}{'done' if name in found else 'to go on'}, {seconds[name]:.0f} s in all", flush=True)
        return found[name]

    # ---- training ----

    def train(self, name: str, supernet: nas.Supernet, recipe: str) -> None:
        """One training, into a run folder of its own."""
        rest: dict[str, Any] = {"epochs": self.given.epochs, "seed": self.given.seed, "stop": self.stop}
        out = self.folder / name
        self.once(f"train {name}", lambda: str(nas.train(supernet, self.data, out=out, recipe=recipe, **rest).path))

    def supernet(self) -> None:
        """Train the supernet."""
        self.train("supernet", nas.Supernet(self.space, seed=self.given.seed), self.given.recipe)

    def finetune(self, run: Any, arch: Any, name: str) -> None:
        """Train one network on."""
        rest: dict[str, Any] = {"epochs": self.given.finetune_epochs, "stop": self.stop}
        self.once(f"finetune {name}", lambda: str(nas.finetune(run, arch=arch, **rest)))

    # ---- networks as files ----

    def write(self, name: str, supernet: nas.Supernet, arch: Any, data: Any) -> None:
        """An extracted and recalibrated network as ONNX."""

        def work() -> str:
            network = calibrated(supernet, arch, data, seed=self.given.seed)
            example = data.test.batch([0, 1], resolution_of(arch, data))
            path = self.folder / "files" / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            return str(nas.write_onnx(network, path, example=example))

        self.once(f"write {name}", work)

    def write_both(self, name: str, run: Any, arch: Any) -> None:
        """A network before and after fine-tuning."""
        self.write(f"{name}", run.supernet(), arch, run.data())
        self.finetune(run, arch, name)
        row = run.space.to_array(arch)[0]
        kept = {gene.name: [gene.options[index]] for gene, index in zip(run.space.genes, row, strict=True)}
        tuned = nas.Supernet(run.space.restrict(kept))
        tuned.load_state_dict(
            load_tensors(Path(self.record["done"][f"finetune {name}"]), "finetuned", 1, make="this script")[0]
        )
        self.write(f"{name}-tuned", tuned, arch, run.data())

    def twins(self) -> None:
        """Subnets of the supernet, and the same networks alone."""
        for name, arch in self.picks.items():
            self.write_both(f"{name}-shared", self.run, arch)
        for name, arch in self.picks.items():
            row = self.space.to_array(arch)[0]
            only = self.space.restrict({g.name: [g.options[i]] for g, i in zip(self.space.genes, row, strict=True)})
            self.train(f"{name}-alone", nas.Supernet(only, seed=self.given.seed), "single")
            run = nas.Run.open(self.folder / f"{name}-alone")
            self.write_both(f"{name}-alone", run, run.space.largest)

    def baselines(self) -> None:
        """torchvision's networks, trained alone."""
        for family, width, strides in BASELINES[: self.given.baselines]:
            name = f"{family}-{width:g}-s{strides}"
            fixed = {"family": family, "strides": strides, "channels": self.data.channels, "classes": self.data.classes}
            side = self.data.size
            shape = (self.data.channels, side, side)
            torch.manual_seed(self.given.seed)  # torchvision's weights
            space = nas.elastic(torchvision_mobilenet, {"width": [width]}, fixed=fixed, input_shape=shape, name=name)
            self.train(name, nas.Supernet(space, seed=self.given.seed), "single")
            run = nas.Run.open(self.folder / name, space=space)
            self.write_both(name, run, space.largest)

    # ---- search ----

    def front(self) -> None:
        """Search, fine-tune every network of the front, export."""
        seed: dict[str, Any] = {"seed": self.given.seed}
        self.once("profile", lambda: nas.profile(self.space, out=self.run.path, **seed) and True)
        budget: dict[str, Any] = {"samples": self.given.samples, "budget": self.given.scores, "points": self.given.points}
        self.once("search", lambda: [p.arch.id for p in nas.search(self.run, images=1000, force=True, **budget, **seed)])
        for number, name in enumerate(self.record["done"]["search"]):
            self.finetune(self.run, name, f"front {number}")
        self.once("export", lambda: len(nas.export(self.run)))

    def verify(self) -> None:
        """Everything in the same rounds; repeated by ``--again``."""
        files = sorted((self.folder / "files").glob("*.onnx"))
        if self.given.again:
            self.record["done"].pop("verify", None)
        self.once("verify", lambda: nas.compare(self.run, *files, force=True, seed=self.given.seed).to_dict())


def show(record: dict[str, Any]) -> None:
    """The tables."""
    found = record["done"]["verify"]
    print(f"budget {record['budget']}")
    print("seconds", {name: value for name, value in record["seconds"].items() if name.startswith("train")})
    print(f"\n{'network':<28}{'accuracy':>9}{'95 % interval':>18}{'latency ms':>12}{'10 to 90 %':>20}")
    rows = [("front " + row["id"], row) for row in found["networks"]] + [(row["id"], row) for row in found["baselines"]]
    for name, row in sorted(rows, key=lambda pair: pair[1]["latency_ms"]):
        interval = f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}"
        spread = f"{row['latency_p10_ms']:.4f} to {row['latency_p90_ms']:.4f}"
        print(f"{name:<28}{row['accuracy']:>9.2%}{interval:>18}{row['latency_ms']:>12.4f}{spread:>20}")
    by_name = {row["id"]: row for row in found["baselines"]}
    print(f"\n{'same images':<12}{'shared':>9}{'alone':>9}{'tuned':>9}{'alone, tuned':>14}")
    for name in PICKS:
        kinds = (f"{name}-shared", f"{name}-alone", f"{name}-shared-tuned", f"{name}-alone-tuned")
        a, b, c, d = (by_name[kind]["accuracy"] for kind in kinds)
        print(f"{name:<12}{a:>9.2%}{b:>9.2%}{c:>9.2%}{d:>14.2%}")
    headline(found["networks"], [row for name, row in by_name.items() if "-s" in name and name.endswith("-tuned")])


def headline(front: Sequence[dict[str, Any]], static: Sequence[dict[str, Any]]) -> None:
    """Every static network against the front: the fastest at its accuracy, and the best within its latency."""
    print(f"\n{'against':<20}{'accuracy':>9}{'ms':>9}{'fastest at least as good':>26}{'best at most as slow':>22}")
    for row in sorted(
        (row for row in static if not row["id"].split("-")[1].startswith("sh")), key=lambda row: row["latency_ms"]
    ):
        good = [point["latency_ms"] for point in front if point["accuracy"] >= row["accuracy"]]
        quick = [point["accuracy"] for point in front if point["latency_ms"] <= row["latency_ms"]]
        speed = f"{row['latency_ms'] / min(good):.2f}x" if good else "none"
        gain = f"{100 * (max(quick) - row['accuracy']):+.2f} points" if quick else "none"
        print(f"{row['id']:<20}{row['accuracy']:>9.2%}{row['latency_ms']:>9.4f}{speed:>26}{gain:>22}")


def main() -> None:
    """Do pieces until the time is up, then, when all are done, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", help="as of nas.load_data; cifar10:PATH ...")
    parser.add_argument("--out", required=True, help="folder; run again with the same one to go on")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which it stops")
    parser.add_argument("--epochs", type=float, default=1.0, help="of the supernet, and of every network alone")
    parser.add_argument("--finetune-epochs", type=float, default=0.5, help="more, of every network")
    parser.add_argument("--recipe", default="quick", help="of the supernet")
    parser.add_argument("--samples", type=int, default=40, help="scored subnets to learn from")
    parser.add_argument("--scores", type=int, default=60, help="scored subnets in all")
    parser.add_argument("--points", type=int, default=6, help="networks on the front")
    parser.add_argument("--baselines", type=int, default=len(BASELINES), help="torchvision networks: the first so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--again", action="store_true", help="measure anew what is trained")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench(given, time.monotonic() + 60 * given.minutes)
    bench.folder.mkdir(parents=True, exist_ok=True)
    lock = (bench.folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another one is at work there; run the same command to go on")
        return
    try:
        for part in (bench.supernet, bench.twins, bench.front, bench.baselines, bench.verify):
            part()
    except Interrupted:
        print("time is up; run the same command to go on")
        return
    show(bench.record)


if __name__ == "__main__":
    main()
