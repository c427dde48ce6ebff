"""Does it work on natural images? Subnets against twins trained alone, and the front against torchvision's MobileNetV3.

Every network, shared or alone, is trained on the same number of images, with the same optimiser, and then fine-tuned on the
same number of images more. All of them end as ONNX files that are tested and timed in the same interleaved rounds.

Run: OMP_NUM_THREADS=1 python scripts/bench_natural.py --out runs/natural --minutes 7
It does one piece after the other, stops after so many minutes (trainings in the middle) and goes on when it is run again.

On a GPU, for another machine's processor, whose table is brought along (see docs/devices.md):
python scripts/bench_natural.py --out runs/natural --data cifar10:PATH --torch-device cuda --processes 2 \\
    --width 1 --image 32 --augment --epochs 40 --finetune-epochs 4 --device table://NAME --recipe scripts/recipes/shared.toml \\
    --alone scripts/recipes/alone.toml --finetune scripts/recipes/tuned.toml
The same command without --torch-device and --processes, with --device onnxruntime-cpu, then ends the work there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nas

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


BUDGET = ("data", "width", "image", "epochs", "finetune_epochs", "recipe", "alone", "finetune", "augment", "seed")


@dataclass
class Bench:
    """The pieces; what each one found is in a file of its own, ``done/PIECE.json``, so that several processes can work."""

    given: argparse.Namespace
    deadline: float

    def __post_init__(self) -> None:
        self.folder = Path(self.given.out)
        budget = {name: getattr(self.given, name) for name in BUDGET}
        file = self.folder / "budget.json"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(budget, indent=1))
        if (known := json.loads(file.read_text())) != budget:
            raise SystemExit(f"{file} has {known}; choose another folder")

    @cached_property
    def data(self) -> Any:
        """Images; as they are, unless augmentation was asked for: it does not pay for a few epochs."""
        return nas.load_data(self.given.data, seed=self.given.seed, augment=self.given.augment)

    @cached_property
    def space(self) -> Any:
        """The space for these images."""
        shape = {"image": self.given.image, "channels": self.data.channels, "classes": self.data.classes}
        return nas.space("small-mobilenet", width=self.given.width, **shape)

    @cached_property
    def run(self) -> Any:
        """The supernet's run."""
        return self.opened("supernet")

    def opened(self, name: str, **space: Any) -> Any:
        """A run whose networks are trained and scored where the user said."""
        return nas.Run.open(self.folder / name, torch_device=self.given.torch_device, **space)

    @cached_property
    def picks(self) -> dict[str, Any]:
        """Smallest, largest, and the one in the middle of 201 random ones by MACs."""
        drawn = sorted(self.space.sample(201, seed=self.given.seed), key=self.space.macs)
        return dict(zip(PICKS, (self.space.smallest, drawn[100], self.space.largest), strict=True))

    def stop(self) -> bool:
        """Whether this run's time is up."""
        return time.monotonic() > self.deadline

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a piece: ``seconds``, and ``found`` when it is done."""
        file = self.folder / "done" / f"{name}.json"
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"seconds": 0.0}
        return known

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """A piece that is done once; its time adds up over the runs of this script."""
        known = self.record(name)
        if "found" in known:
            return known["found"]
        if self.stop():
            raise nas.Interrupted(0, self.folder)
        begun = time.monotonic()
        try:
            known["found"] = work()
        finally:
            known["seconds"] = round(known["seconds"] + time.monotonic() - begun, 1)
            file = self.folder / "done" / f"{name}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(known, indent=1))
            print(f"{name:<40}{'done' if 'found' in known else 'to go on'}, {known['seconds']:.0f} s in all", flush=True)
        return known["found"]

    # ---- training ----

    def train(self, name: str, supernet: nas.Supernet, recipe: str) -> None:
        """One training, into a run folder of its own."""
        rest: dict[str, Any] = {"epochs": self.given.epochs, "seed": self.given.seed, "stop": self.stop}
        where = self.given.torch_device

        def work() -> str:
            return str(nas.train(supernet.to(where), self.data, out=self.folder / name, recipe=recipe, **rest).path)

        self.once(f"train {name}", work)

    def finetune(self, run: Any, arch: Any, name: str) -> None:
        """Train one network on."""
        rest: dict[str, Any] = {"epochs": self.given.finetune_epochs, "recipe": self.given.finetune, "stop": self.stop}
        self.once(f"finetune {name}", lambda: str(nas.finetune(run, arch=arch, **rest)))

    # ---- networks ----

    @torch.inference_mode()
    def judge(self, name: str, run: nas.Run, arch: Any) -> float:
        """Accuracy of a network of a run, as it is now: of the PyTorch network, on all test images."""

        def work() -> float:
            where, test = torch.device(self.given.torch_device), run.data().test
            side = arch.to_dict().get("resolution", run.data().size)
            network, right = nas.network(run, arch).to(where), 0
            for part in np.array_split(np.arange(len(test)), len(test) // 500 or 1):
                images = test.batch(part, side).to(where).contiguous()
                right += int((network(images).argmax(1).cpu() == test.labels[part]).sum())
            return right / len(test)

        return float(self.once(f"accuracy {name}", work))

    def write(self, name: str, run: nas.Run, arch: Any) -> None:
        """A network of a run as ONNX, as it is now."""

        def work() -> str:
            path = self.folder / "files" / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            example = run.data().test.batch([0, 1], arch.to_dict().get("resolution", run.data().size))
            return str(nas.write_onnx(nas.network(run, arch), path, example=example))

        self.once(f"write {name}", work)

    def tune(self, name: str, run: nas.Run, arch: Any) -> None:
        """A network before and after fine-tuning."""
        self.judge(name, run, arch)
        self.finetune(run, arch, name)
        self.judge(f"{name}-tuned", run, arch)

    # ---- jobs: each list can be done side by side ----

    def jobs(self) -> list[dict[str, Callable[[], Any]]]:
        """All of them, in three lists, one after the other."""
        twins = {f"twin {name}": partial(self.twin, name) for name in PICKS}
        static = {f"static {n}": partial(self.static, *BASELINES[n]) for n in range(self.given.baselines)}
        shared = {f"shared {name}": partial(self.shared, name) for name in PICKS}
        points: dict[str, Callable[[], Any]] = {f"point {n}": partial(self.point, n) for n in range(self.given.points)}
        search: dict[str, Callable[[], Any]] = {"search": self.search} if points else {}
        return [{"supernet": self.supernet, **twins, **static}, {**search, **shared}, points]

    def supernet(self) -> None:
        """The supernet alone."""
        self.train("supernet", nas.Supernet(self.space, seed=self.given.seed), self.given.recipe)

    def shared(self, name: str) -> None:
        """A network of the supernet."""
        self.tune(f"{name}-shared", self.run, self.picks[name])

    def twin(self, name: str) -> None:
        """A network of the supernet, alone."""
        row = self.space.to_array(self.picks[name])[0]
        only = self.space.restrict({g.name: [g.options[i]] for g, i in zip(self.space.genes, row, strict=True)})
        self.train(f"{name}-alone", nas.Supernet(only, seed=self.given.seed), self.given.alone)
        run = self.opened(f"{name}-alone")
        self.tune(f"{name}-alone", run, run.space.largest)

    def static(self, family: str, width: float, strides: int) -> None:
        """One of torchvision's networks, alone."""
        name = f"{family}-{width:g}-s{strides}"
        fixed = {"family": family, "strides": strides, "channels": self.data.channels, "classes": self.data.classes}
        shape = (self.data.channels, self.data.size, self.data.size)
        torch.manual_seed(self.given.seed)  # torchvision's weights
        space = nas.elastic(torchvision_mobilenet, {"width": [width]}, fixed=fixed, input_shape=shape, name=name)
        self.train(name, nas.Supernet(space, seed=self.given.seed), self.given.alone)
        run = self.opened(name, space=space)
        self.tune(name, run, space.largest)
        self.write(f"{name}-tuned", run, space.largest)

    def search(self) -> list[str]:
        """The front: its networks' ids."""
        device, budget = self.given.device, {"samples": self.given.samples, "budget": self.given.scores}
        rest: dict[str, Any] = {"images": 2000, "points": self.given.points, "seed": self.given.seed}

        def work() -> list[str]:
            front = nas.search(self.run, device=device, force=True, **budget, **rest)
            return [point.arch.id for point in front]

        found: list[str] = self.once(f"search {device.removeprefix('table://')}", work)
        return found

    def point(self, number: int) -> None:
        """A network of the front; it may have fewer than wanted."""
        names = self.search()
        if number < len(names):
            arch = next(
                point.arch for point in nas.ParetoFront.load(self.run.file("front.json")) if point.arch.id == names[number]
            )
            self.tune(f"front {names[number]}", self.run, arch)

    def verify(self) -> None:
        """Everything in the same rounds; repeated by ``--again``."""
        files = sorted((self.folder / "files").glob("*.onnx"))
        if self.given.again:
            (self.folder / "done" / "verify.json").unlink(missing_ok=True)
        self.once("export", lambda: len(nas.export(self.run)))
        self.once("verify", lambda: asdict(nas.compare(self.run, *files, force=True, seed=self.given.seed)))

    # ---- several processes ----

    def side_by_side(self, names: Sequence[str], command: Sequence[str]) -> bool:
        """Each job in a process of its own, so many at a time; whether all are done."""
        (self.folder / "output").mkdir(exist_ok=True)
        waiting, running, failed = list(names), dict[str, subprocess.Popen[bytes]](), False
        while waiting or running:
            while waiting and len(running) < self.given.processes:
                name = waiting.pop(0)
                minutes = str(max(0.0, self.deadline - time.monotonic()) / 60)
                with (self.folder / "output" / f"{name}.txt").open("ab") as stream:
                    one = [sys.executable, __file__, *command, "--job", name, "--minutes", minutes]
                    running[name] = subprocess.Popen(one, stdout=stream, stderr=subprocess.STDOUT)
            time.sleep(0.2)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed = failed or process.returncode != 0
                    print(f"{name:<40}ended with {process.returncode}", flush=True)
        return not failed


def show(bench: Bench) -> None:
    """The tables."""
    found = bench.record("verify")["found"]
    print(f"budget {json.loads((bench.folder / 'budget.json').read_text())}")
    trained = {path.stem: json.loads(path.read_text())["seconds"] for path in sorted((bench.folder / "done").glob("train *"))}
    print("seconds", {name.removeprefix("train "): value for name, value in trained.items()})
    print(f"\n{'network':<28}{'accuracy':>9}{'95 % interval':>18}{'latency ms':>12}{'10 to 90 %':>20}")
    rows = [("front " + row["id"], row) for row in found["networks"]] + [(row["id"], row) for row in found["baselines"]]
    for name, row in sorted(rows, key=lambda pair: pair[1]["latency_ms"]):
        interval = f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}"
        spread = f"{row['latency_p10_ms']:.4f} to {row['latency_p90_ms']:.4f}"
        print(f"{name:<28}{row['accuracy']:>9.2%}{interval:>18}{row['latency_ms']:>12.4f}{spread:>20}")
    print(f"\n{'same images, test':<20}{'shared':>9}{'alone':>9}{'tuned':>9}{'alone, tuned':>14}")
    for name in PICKS:
        kinds = (f"{name}-shared", f"{name}-alone", f"{name}-shared-tuned", f"{name}-alone-tuned")
        print(f"{name:<20}" + "".join(f"{bench.record(f'accuracy {kind}')['found']:>9.2%}" for kind in kinds))
    headline(found["networks"], found["baselines"])


def headline(front: Sequence[dict[str, Any]], static: Sequence[dict[str, Any]]) -> None:
    """Every static network against the front: the fastest at its accuracy, and the best within its latency."""
    print(f"\n{'against':<20}{'accuracy':>9}{'ms':>9}{'fastest at least as good':>26}{'best at most as slow':>22}")
    for row in sorted((row for row in static if row["id"].endswith("-tuned")), key=lambda row: row["latency_ms"]):
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
    parser.add_argument("--width", type=float, default=0.5, help="of the space")
    parser.add_argument("--image", type=int, default=28, help="of the space, px")
    parser.add_argument("--epochs", type=float, default=1.0, help="of the supernet, and of every network alone")
    parser.add_argument("--finetune-epochs", type=float, default=0.5, help="more, of every network")
    parser.add_argument("--recipe", default="quick", help="of the supernet")
    parser.add_argument("--alone", default="single", help="recipe of the others")
    parser.add_argument("--finetune", default="finetune", help="recipe of fine-tuning")
    parser.add_argument("--augment", action="store_true", help="shift and mirror images")
    parser.add_argument("--samples", type=int, default=40, help="scored subnets to learn from")
    parser.add_argument("--scores", type=int, default=60, help="scored subnets in all")
    parser.add_argument("--points", type=int, default=6, help="networks on the front; 0: no search")
    parser.add_argument("--device", default="onnxruntime-cpu", help="of the search; table://NAME for one elsewhere")
    parser.add_argument("--baselines", type=int, default=len(BASELINES), help="torchvision networks: the first so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--torch-device", default="cpu", help="cpu or cuda")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side")
    parser.add_argument("--job", help="only this one: supernet, 'twin median', 'static 0' ...")
    parser.add_argument("--again", action="store_true", help="measure anew what is trained")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench(given, time.monotonic() + 60 * given.minutes)
    try:
        for jobs in bench.jobs():
            if given.job:
                jobs.get(given.job, lambda: None)()
            elif given.processes > 1:
                if not bench.side_by_side(list(jobs), sys.argv[1:]):
                    raise SystemExit(f"a job failed: see {bench.folder / 'output'}")
            else:
                for job in jobs.values():
                    job()
        if given.job:
            return
        if given.device.startswith("table://"):
            print("trained; verify it where the device is")
            return
        bench.verify()
        show(bench)
    except nas.Interrupted:
        print("time is up; run the same command to go on")


if __name__ == "__main__":
    main()
