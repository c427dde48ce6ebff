"""The whole loop on real images in minutes, with public verbs only: what `nas demo` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_tables import open_device
from nas import api
from nas.baselines import Baseline, train_largest_alone
from nas.beginning import data_line, sides, space_line
from nas.exporting import exports_summary
from nas.pareto import ParetoFront
from nas.runs import Run
from nas.verification import Verification
from search_spaces import SearchSpace
from search_spaces.artifacts import read_json
from search_spaces.progress import SILENT, Progress
from supernets import ImageData, Supernet, load_data

__all__ = ["Budget", "DemoResult", "run_demo"]


@dataclass(frozen=True)
class Budget:
    """What a demo may spend; the default takes four to six minutes on two cores.

    Attributes:
        macs: multiply-accumulates of the largest network over all images that the supernet is trained on; the largest network
            alone sees as many.
        largest_macs: of one image. Input sizes that take the largest network beyond it are left out: in minutes, more images
            teach more than more pixels.
        finetune_share: of so many images, for fine-tuning the best network of the front after the search.
        augmented_from: epochs that make augmentation worth its while; with fewer, images are shown as they are.
        recipe: of the supernet.
        width: width multiplier of the space.
        samples: subnets scored to learn from.
        scores: subnets scored in all; the others are what the search proposes.
        validation_images: per scored subnet, at most.
        points: networks on the front.
        limit_share: the latency limit, as a share of the largest network's estimated latency.
    """

    macs: float = 1.3e11
    largest_macs: float = 5.5e6
    finetune_share: float = 0.75
    augmented_from: float = 5.0
    recipe: str = "quick"
    width: float = 0.5
    samples: int = 32
    scores: int = 56
    validation_images: int = 1000
    points: int = 12
    generations: int = 60
    limit_share: float = 0.8


@dataclass(frozen=True)
class DemoResult:
    """Figures of a demo's run."""

    run: Path
    report: Path
    front: ParetoFront
    verification: Verification
    baseline: Baseline
    exports: dict[str, Any]
    table_quality: dict[str, Any] | None
    training_seconds: float
    supernet_images: int
    finetune_images: int

    @property
    def passed(self) -> bool:
        """Every file was proven. A limit that the device's clock breaks is shown, and is `nas verify`'s to judge."""
        return bool(self.exports["proven"] == self.exports["networks"])

    def lines(self) -> list[str]:
        """What was found, in words."""
        summary = self.verification.summary()
        alone, best = self.verification.baselines[0], self.verification.best()
        reached = "none within the limits" if best is None else f"{best.accuracy:.1%}"
        return [
            f"front       {summary['networks']} networks, {summary['latency_span']:.1f}x apart in measured latency",
            f"accuracy    promised best, verified: {reached} (supernet and fine-tuning on {self.supernet_images} + "
            f"{self.finetune_images} images); the largest network alone, on {self.baseline.images}, {alone.accuracy:.1%}; "
            f"on {alone.images} test images",
            f"limit       kept by {summary['networks'] - summary['broken_limits']} of {summary['networks']} networks "
            f"on the device's clock",
            f"latency     promised against measured: median error {summary['latency_median_error']:.1%}",
            f"ONNX        {self.exports['proven']} of {self.exports['networks']} files proven{self._differences()}",
            f"report      {self.report}",
        ]

    def _differences(self) -> str:
        difference, agreement = self.exports["max_relative_difference"], self.exports["top1_agreement"]
        if difference is None or agreement is None:  # no file ran
            return ""
        return f": largest difference to torch {difference:.1e}, same top-1 {agreement:.1%}"

    def to_dict(self) -> dict[str, Any]:
        """JSON summary."""
        return {
            "run": str(self.run),
            "report": str(self.report),
            "passed": self.passed,
            "verification": self.verification.summary(),
            "largest_alone_accuracy": self.verification.baselines[0].accuracy,
            "images": {
                "supernet": self.supernet_images,
                "largest_alone": self.baseline.images,
                "finetune": self.finetune_images,
            },
            "exports": self.exports,
            "latency_table": self.table_quality,
            "training_seconds": self.training_seconds,
            "predictor": self.front.provenance["predictor"],
        }


def run_demo(
    data: str = "digits",
    *,
    out: str | Path | None = None,
    device: str = api.DEFAULT_DEVICE,
    seed: int = 0,
    budget: Budget | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> DemoResult:
    """Train, profile, search under a latency limit, export, verify, report; a run that was interrupted goes on.

    Args:
        data: a source for `nas.load_data`.
        out: run folder; default ``runs/demo-NAME``.
    """
    budget = budget or Budget()
    open_device(device)  # one that there is not is told before minutes are spent
    images = load_data(data, seed=seed)
    folder = Path(out) if out is not None else Path("runs") / f"demo-{images.name}"
    run, epochs = _train(images, folder, budget, seed, stop, progress)
    baseline = train_largest_alone(run, epochs=epochs, progress=progress, stop=stop)
    table = api.profile(run.space, device=device, out=run.path, seed=seed, progress=progress)
    limit = f"{budget.limit_share * table.estimate(run.space.largest):.3g}ms"
    if not run.file("front.json").exists():
        progress.say(f"limit       latency <= {limit}, {budget.limit_share:.0%} of the largest network's")
        api.search(
            run,
            device=device,
            limits={"latency": limit},
            samples=budget.samples,
            budget=budget.scores,
            images=budget.validation_images,
            points=budget.points,
            generations=budget.generations,
            seed=seed,
            progress=progress,
        )
    api.finetune(run, pick="best", epochs=budget.finetune_share * epochs, stop=stop, progress=progress)
    exports = api.export(run, progress=progress)
    verification = api.verify(run, device=device, seed=seed, progress=progress)
    return DemoResult(
        run=run.path,
        report=api.report(run).path,
        front=ParetoFront.load(run.file("front.json")),
        verification=verification,
        baseline=baseline,
        exports=exports_summary(exports),
        table_quality=table.quality.to_dict() if table.quality else None,
        supernet_images=_seen(run, epochs),
        finetune_images=_seen(run, budget.finetune_share * epochs),
        training_seconds=float(read_json(run.file("training/log.json"), "training-log", 1, make="nas demo")["seconds"]),
    )


def _train(
    images: ImageData, folder: Path, budget: Budget, seed: int, stop: Callable[[], bool], progress: Progress
) -> tuple[Run, float]:
    space = api.space(
        "small-mobilenet",
        width=budget.width,
        image=min(64, max(28, images.size)),
        classes=images.classes,
        channels=images.channels,
    )
    space = _affordable(space, budget.largest_macs)
    progress.say(data_line(images))
    progress.say(space_line(space))
    epochs = budget.macs / space.macs(space.largest) / len(images.train)
    if epochs < budget.augmented_from:
        images = images.plain()
    supernet = Supernet(space, seed=seed)
    run = api.train(supernet, images, out=folder, recipe=budget.recipe, epochs=epochs, seed=seed, stop=stop, progress=progress)
    return run, epochs


def _seen(run: Run, epochs: float) -> int:
    """Images that so many epochs show: whole batches. The demo's recipes have the same batch."""
    batch = int(run.settings["recipe"]["batch"])
    return round(epochs * (len(run.data().train) // batch)) * batch


def _affordable(space: SearchSpace, most: float) -> SearchSpace:
    """The part of a space with the input sizes at which the largest network takes at most so many MACs; the smallest stays."""
    offered = sides(space)
    parts = [space.restrict(resolution=offered[: count + 1]) for count in range(len(offered))]
    return max((part for part in parts[1:] if part.macs(part.largest) <= most), key=SearchSpace.count, default=parts[0])
