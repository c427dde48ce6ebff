"""Training a supernet phase by phase: resumable, and the same bits whether it was interrupted or not (on CPU).

Every random draw comes from a generator seeded with (seed, purpose, step or epoch), so there is no generator state to
save: the step number is enough to go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces import Architecture, SearchSpace
from search_spaces.artifacts import value_hash
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress
from supernets.calibration import accuracy, recalibrate
from supernets.checkpoint import load_tensors, save_tensors
from supernets.data import Examples, ImageData, shown_to
from supernets.recipe import Phase, Recipe, plan_phases
from supernets.sorting import sort_channels
from supernets.supernet import Supernet

__all__ = ["CALIBRATION_BATCH", "CALIBRATION_IMAGES", "Interrupted", "Trained", "calibrated", "evaluate", "train"]

CHECKPOINT_VERSION = 1
CALIBRATION_IMAGES = 2000
CALIBRATION_BATCH = 200
EVALUATION_BATCH = 250
LOG_IMAGES = 2000  # validation images for the log's accuracies

# Purposes of random draws, the second number of every seed.
_ORDER, _STEP, _CALIBRATION, _AUGMENTATION = 1, 2, 3, 4


class Interrupted(Exception):
    """Training was asked to stop; everything up to ``step`` is in the checkpoint, if there is one."""

    def __init__(self, step: int, path: Path | None) -> None:
        super().__init__(f"stopped after step {step}; " + (f"saved in {path}" if path else "nothing was saved"))
        self.step = step
        self.path = path


@dataclass(frozen=True)
class Trained:
    """What a training run did.

    Attributes:
        steps: of the whole run.
        images: training images seen (times augmented), all phases.
        seconds: of this process; less than the whole run's after a resume.
        log: one row per finished phase: phase, step, loss, and validation accuracy of the smallest and largest network.
    """

    steps: int
    images: int
    seconds: float
    log: list[dict[str, Any]]


def calibrated(supernet: Supernet, arch: Architecture, data: ImageData, *, seed: int = 0) -> nn.Module:
    """The extracted network of an architecture with its own batch-normalisation statistics, in evaluation mode.

    Statistics come from up to 2,000 training images, augmented as in training, at the architecture's resolution; the
    same images for every architecture.
    """
    network = supernet.extract(arch)
    rng = np.random.default_rng([seed, _CALIBRATION])
    device = next(network.parameters()).device
    order = rng.permutation(len(data.train))[:CALIBRATION_IMAGES]
    # Equal batches: the last, smaller one would weigh its noisier variance like the others.
    size = min(CALIBRATION_BATCH, len(order))
    usable = len(order) // size * size
    resolution = _resolution(arch, data)
    recalibrate(network, (data.train.batch(part, resolution, rng=rng).to(device) for part in order[:usable].reshape(-1, size)))
    return network


def evaluate(network: nn.Module, split: Examples, resolution: int, *, most: int | None = None) -> tuple[float, int]:
    """Top-1 accuracy of a network as a fraction, and the number of images.

    Args:
        most: images to use: an even sample of the split, always the same; None uses all.
    """
    device = next(network.parameters()).device
    count = len(split) if most is None else min(most, len(split))
    chosen = np.linspace(0, len(split) - 1, count).astype(np.int64)
    parts = np.array_split(chosen, math.ceil(count / EVALUATION_BATCH))
    return accuracy(network, ((split.batch(p, resolution).to(device), split.labels[p].to(device)) for p in parts))


def _resolution(arch: Architecture, data: ImageData) -> int:
    return int(arch.to_dict().get("resolution", data.size))


def train(
    supernet: Supernet,
    data: ImageData,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    seed: int = 0,
    save_every_s: float = 120.0,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
    label: str = "train",
) -> Trained:
    """Train in place, from the checkpoint if there is one.

    A step draws a batch, one resolution for it, and ``subnets`` architectures; their gradients are summed (loss of the
    labels plus ``distill`` times the loss of the teacher's soft labels) before one optimiser step. The teacher is the
    largest network, as it was after its own phase or as it is (see `Recipe.sandwich`).

    Args:
        checkpoint: file to resume from and to save to; None keeps nothing.
        save_every_s: seconds between checkpoints (one is written at every end of a phase too).
        stop: asked after every step; True saves and raises `Interrupted`.
        label: what progress calls this training.

    Raises:
        UserError: class counts differ, too little data for one batch, a checkpoint of another run, or divergence.
        Interrupted: ``stop`` said so.
    """
    supernet.bind(data.input_shape)
    data = shown_to(data, supernet.space)
    _check_data(supernet, data, recipe)
    run = _Run(supernet, data, recipe, seed, checkpoint)
    run.resume()
    begun, saved = time.monotonic(), time.monotonic()
    for phase in run.phases:
        if run.step >= phase.stop:
            continue
        progress.start(f"{label} {phase.name}", phase.stop - phase.start)
        progress.advance(run.step - phase.start)
        try:
            if run.step == phase.start:
                run.enter(phase)
            optimiser = run.optimiser(phase)
            while run.step < phase.stop:
                run.take_step(phase, optimiser)
                progress.advance()
                if run.step == phase.stop:
                    break
                if (asked := stop()) or time.monotonic() - saved > save_every_s:
                    run.save(optimiser)
                    saved = time.monotonic()
                if asked:
                    raise Interrupted(run.step, checkpoint)
        finally:
            progress.stop()
        run.leave(phase, optimiser)
        progress.say(_phase_line(run.log[-1]))
        if run.step < run.steps and stop():
            raise Interrupted(run.step, checkpoint)
    return Trained(run.steps, run.steps * recipe.batch, time.monotonic() - begun, run.log)


def _phase_line(row: dict[str, Any]) -> str:
    return (
        f"{row['phase']:<11} loss {row['loss']:.3f}   validation: "
        f"largest {row['largest']:.1%}, smallest so far {row['smallest']:.1%}"
    )


def _check_data(supernet: Supernet, data: ImageData, recipe: Recipe) -> None:
    if supernet.classes != data.classes:
        raise UserError(
            f"{data.name} has {data.classes} classes, the supernet {supernet.classes}",
            allowed="Both must agree",
            next_step=f"Make the supernet with classes={data.classes}",
        )
    if len(data.train) < recipe.batch:
        raise UserError(
            f"{data.name} has {len(data.train)} training images for batches of {recipe.batch}",
            allowed="At least one full batch",
            next_step="Use a smaller batch or more images",
        )


class _Run:
    """The state of one training run: where it is, its teacher, its log."""

    def __init__(self, supernet: Supernet, data: ImageData, recipe: Recipe, seed: int, checkpoint: Path | None) -> None:
        self.supernet, self.data, self.recipe, self.seed, self.checkpoint = supernet, data, recipe, seed, checkpoint
        self.steps_per_epoch = len(data.train) // recipe.batch
        self.steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.phases = plan_phases(recipe, supernet.space, steps=self.steps)
        self.step = 0
        self.losses: list[float] = []
        self.log: list[dict[str, Any]] = []
        self.teacher: nn.Module | None = None
        self.momentum: dict[str, Tensor] = {}
        self.device = next(supernet.parameters()).device
        self._order: tuple[int, np.ndarray[Any, Any]] | None = None

    # ---- phases ----

    def enter(self, phase: Phase) -> None:
        if phase.settings.sort:
            sort_channels(self.supernet, phase.trained)

    def leave(self, phase: Phase, optimiser: torch.optim.Optimizer) -> None:
        if phase.opens == "full" and self.recipe.distill and not self.recipe.sandwich:
            self.teacher = calibrated(self.supernet, self.supernet.space.largest, self.data, seed=self.seed).requires_grad_(
                False
            )
        row: dict[str, Any] = {"phase": phase.name, "step": self.step, "loss": float(np.mean(self.losses[-100:]))}
        for label, arch in (("largest", phase.space.largest), ("smallest", phase.space.smallest)):
            network = calibrated(self.supernet, arch, self.data, seed=self.seed)
            row[label], _ = evaluate(network, self.data.val, _resolution(arch, self.data), most=LOG_IMAGES)
        self.log.append(row)
        self.losses = []
        self.momentum = self._momentum(optimiser) if self.recipe.one_schedule and not self._sorts_next() else {}
        self.save(optimiser if self.momentum else None)

    def _sorts_next(self) -> bool:
        """Whether a phase begins here that reorders channels: the momentum of the old order would be noise."""
        return any(phase.start == self.step and phase.settings.sort for phase in self.phases)

    def _momentum(self, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Momentum buffers by parameter name."""
        state = optimiser.state
        named = self.supernet.named_parameters()
        return {name: state[p]["momentum_buffer"] for name, p in named if "momentum_buffer" in state.get(p, {})}

    # ---- one step ----

    def optimiser(self, phase: Phase) -> torch.optim.Optimizer:
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.supernet.named_parameters():
            if "kernels." in name:
                (decayed if self.recipe.decay_kernel_maps else plain).append(parameter)
            else:
                (plain if parameter.ndim < 2 else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": self.recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimiser = torch.optim.SGD(
            groups, lr=phase.settings.lr, momentum=self.recipe.momentum, nesterov=self.recipe.momentum > 0
        )
        named = dict(self.supernet.named_parameters())
        for name, buffer in self.momentum.items():
            optimiser.state[named[name]]["momentum_buffer"] = buffer.to(self.device)
        return optimiser

    def take_step(self, phase: Phase, optimiser: torch.optim.Optimizer) -> None:
        rng = np.random.default_rng([self.seed, _STEP, self.step])
        rows = phase.space.sample_rows(phase.settings.subnets, rng, per_gene=True)
        sandwich = self.recipe.sandwich and phase.opens != "full"
        if sandwich:
            rows = np.concatenate([rows, phase.space.to_array(phase.space.smallest)])
        archs = _same_resolution(phase.space, rows)
        for group in optimiser.param_groups:
            group["lr"] = self._learning_rate(phase)
        self.supernet.train()
        optimiser.zero_grad(set_to_none=True)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # dropout takes no generator: a seed of its own, and the caller's is restored
            torch.manual_seed(_torch_seed(self.seed, self.step))
            soft, total = None, torch.zeros((), device=self.device)
            if sandwich:
                soft, total = self._largest_step()
            images, labels = self._batch(_resolution(archs[0], self.data))
            if self.teacher is not None:
                with torch.no_grad():
                    soft = F.softmax(self.teacher(images), dim=1)  # (B, classes)
            total += self._backward(archs, images, labels, soft)
        optimiser.step()
        self.step += 1
        self._note_loss(float(total) / (len(archs) + sandwich))

    def _loss(self, logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
        """Mean loss of a batch, the teacher's soft labels beside the true ones."""
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        return loss if soft is None else loss + self.recipe.distill * F.cross_entropy(logits, soft)

    def _largest_step(self) -> tuple[Tensor, Tensor]:
        """Gradients of the largest network at its own resolution; returns its soft labels (B, classes) and its loss."""
        largest = self.supernet.space.largest
        images, labels = self._batch(_resolution(largest, self.data))
        logits = self.supernet(images, largest)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        return F.softmax(logits.detach(), dim=1), loss.detach()

    def _learning_rate(self, phase: Phase) -> float:
        """Warm-up and cosine over the phase, or over the whole run."""
        span = (0, self.steps) if self.recipe.one_schedule else (phase.start, phase.stop)
        return learning_rate(self.step, *span, peak=phase.settings.lr, warmup=phase.settings.warmup)

    def _backward(self, archs: list[Architecture], images: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
        """Gradients of all architectures, summed; returns the summed loss."""
        total = torch.zeros((), device=self.device)
        for arch in archs:
            logits = self.supernet(images, arch)
            loss = self._loss(logits, labels, soft)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _batch(self, resolution: int) -> tuple[Tensor, Tensor]:
        """The step's images, augmented alike at every resolution, and their labels."""
        rng = np.random.default_rng([self.seed, _AUGMENTATION, self.step])
        epoch, at = divmod(self.step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.data.train)))
        indices = self._order[1][at * self.recipe.batch : (at + 1) * self.recipe.batch]
        images = self.data.train.batch(indices, resolution, rng=rng)
        return images.to(self.device), self.data.train.labels[indices].to(self.device)

    def _note_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            kept = f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "nothing was saved"
            raise UserError(
                f"training diverged at step {self.step} (loss {loss}); {kept}",
                allowed="The loss must stay finite",
                next_step="Lower the recipe's lr and start again in a new folder",
            )
        self.losses.append(loss)

    # ---- files ----

    def _identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that goes on from it."""
        return {
            "space": self.supernet.space.to_dict(),
            "recipe": self.recipe.to_dict(),
            "data": {"name": self.data.name, "hash": self.data.hash},
            "seed": self.seed,
        }

    def save(self, optimiser: torch.optim.Optimizer | None) -> None:
        if self.checkpoint is None:
            return
        tensors = {f"supernet.{name}": tensor for name, tensor in self.supernet.state_dict().items()}
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": tensor for name, tensor in self.teacher.state_dict().items()}
        if optimiser is not None:
            tensors |= {f"momentum.{name}": buffer for name, buffer in self._momentum(optimiser).items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        meta = {"identity": self._identity(), "step": self.step, "log": self.log}
        save_tensors(self.checkpoint, tensors, "training-checkpoint", CHECKPOINT_VERSION, meta)

    def resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        tensors, meta = load_tensors(self.checkpoint, "training-checkpoint", CHECKPOINT_VERSION, make="nas train-supernet")
        self._same_run(meta)
        parts: dict[str, dict[str, Tensor]] = {"supernet": {}, "teacher": {}, "momentum": {}}
        for name, tensor in tensors.items():
            if name != "losses":
                part, rest = name.split(".", 1)
                parts[part][rest] = tensor
        self.supernet.load_state_dict(parts["supernet"])
        self.step, self.log = meta["step"], meta["log"]
        self.losses = tensors["losses"].tolist()
        self.momentum = {name: _like(self.supernet, name, tensor) for name, tensor in parts["momentum"].items()}
        if parts["teacher"]:
            self.teacher = self.supernet.extract(self.supernet.space.largest).eval()
            self.teacher.load_state_dict(parts["teacher"])
            self.teacher.requires_grad_(False)

    def _same_run(self, meta: dict[str, Any]) -> None:
        own, found = self._identity(), meta.get("identity", {})
        for part, value in own.items():
            if value_hash(found.get(part)) != value_hash(value):
                raise UserError(
                    f"{self.checkpoint} belongs to a run with another {part}: {_difference(found.get(part), value)}",
                    allowed="A run goes on with the space, recipe, data and seed that it began with",
                    next_step="Give the original settings, or another --out folder",
                )


def _like(supernet: Supernet, name: str, tensor: Tensor) -> Tensor:
    """A momentum buffer in its parameter's memory format: another one would add up in another order."""
    parameter = supernet.get_parameter(name)
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """The first place where two JSON values differ, as text."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in found if k not in wanted)]:
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), f"{path}.{key}" if path else str(key))
    return f"{path or 'value'} was {found}, now {wanted}"


def _same_resolution(space: SearchSpace, rows: np.ndarray[Any, Any]) -> list[Architecture]:
    """Architectures of a step share one batch of images, so one resolution."""
    names = [gene.name for gene in space.genes]
    if "resolution" in names:
        column = names.index("resolution")
        rows[:, column] = rows[0, column]
    return space.from_array(rows)


def learning_rate(step: int, start: int, stop: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps ``start`` to ``stop``, then a cosine to zero."""
    warm = int(warmup * (stop - start))
    at = step - start
    if at < warm:
        return peak * (at + 1) / (warm + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, stop - start - warm)))


def _torch_seed(*numbers: int) -> int:
    """One seed for torch from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
