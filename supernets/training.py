"""Training a supernet phase by phase: resumable, and the same bits whether it was interrupted or not (on CPU)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress
from search_spaces.records import reading
from supernets.checks import check_training
from supernets.data import ImageData, shown_to
from supernets.distributed import ALONE, Ranks
from supernets.health import Diverged, TrainingLog, collapsed, status_line, validate
from supernets.optimising import WeightAverage, learning_rate, make_optimiser, optimiser_state, restore_state
from supernets.phases import Phase, plan_phases
from supernets.recipe import Recipe
from supernets.sorting import sort_channels
from supernets.states import CheckpointFile
from supernets.steps import Steps, networks_per_step
from supernets.supernet import Supernet, load_weights
from supernets.teaching import Teacher

__all__ = ["Interrupted", "Trained", "train"]

READ_EVERY = 20  # steps between readings of the loss: each one waits for a GPU
VALIDATION_GAP = 25_000  # training images between two validations, at least: they must not cost more than training
JUDGED_AFTER = 50  # steps since the last good state, before an accuracy says that training has failed: a few steps swing
ROLLBACK_RATE = 0.3  # of all learning rates, after training has failed once


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


def train(
    supernet: Supernet,
    data: ImageData,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    log: Path | None = None,
    scalars: Path | None = None,
    seed: int = 0,
    save_every_s: float = 120.0,
    teacher: nn.Module | None = None,
    ranks: Ranks = ALONE,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
    label: str = "train",
) -> Trained:
    """Train in place, from the checkpoint if there is one.

    A step draws a batch, one resolution for it, and ``subnets`` architectures; their gradients are summed (loss of the
    labels plus ``distill`` times the loss of the teacher's soft labels) before one optimiser step. The teacher is the
    largest network, as it was after its own phase or as it is (see `Recipe.sandwich`), or one that is given.

    A loss that is not finite, or a largest network that forgets what it knew, takes training back to the last good state,
    with lower learning rates from there on; once.

    Args:
        checkpoint: file to resume from and to save to; None keeps nothing.
        log: CSV file of losses, speed and validations; default: beside the checkpoint, with the suffix ``.csv``.
        scalars: folder for the same as TensorBoard scalars.
        save_every_s: seconds between checkpoints (one is written at every end of a phase too).
        teacher: a network that teaches, unless ``recipe.distill`` is 0; on the supernet's device, with its own statistics.
        ranks: the processes that train together; every one of them calls this alike.
        stop: asked after every step; True saves and raises `Interrupted`.
        label: what progress calls this training.

    Raises:
        UserError: class counts differ, too little data for one batch, a batch that cannot be divided, a checkpoint of
            another run, a full disk, or divergence.
        Interrupted: ``stop`` said so.
    """
    supernet.bind(data.input_shape)
    data = shown_to(data, supernet.space)
    check_training(supernet, data, recipe, ranks, teacher=teacher is not None)
    log = log or (checkpoint and checkpoint.with_suffix(".csv"))
    own = ranks.first  # one process writes
    rows = TrainingLog(log if own else None, scalars if own else None)
    watch = _Watch(stop, progress, label, rows, save_every_s)
    run = _Run(supernet, data, recipe, seed, checkpoint, ranks, teacher, watch)
    begun = time.monotonic()
    try:
        run.begin()
        while run.step < run.steps:
            try:
                run.train_phase()
            except Diverged as event:
                run.turn_back(event)
    finally:
        rows.close()
    run.finish()
    return Trained(run.steps, run.steps * recipe.batch, time.monotonic() - begun, run.log)


@dataclass(frozen=True)
class _Watch:
    """What a run asks and tells while it goes on."""

    stop: Callable[[], bool]
    progress: Progress
    label: str
    rows: TrainingLog
    save_every_s: float


class _Run:
    """The state of one training run: where it is, its teacher, its log."""

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        recipe: Recipe,
        seed: int,
        checkpoint: Path | None,
        ranks: Ranks,
        teacher: nn.Module | None,
        watch: _Watch,
    ) -> None:
        self.stop, self.progress, self.label = watch.stop, watch.progress, watch.label
        self.rows, self.save_every_s = watch.rows, watch.save_every_s
        self.supernet, self.data, self.recipe, self.seed, self.ranks = supernet, data, recipe, seed, ranks
        self.device = next(supernet.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.stepper = Steps(supernet, data, recipe, seed, ranks, self.scaler)
        self.given_teacher = teacher is not None
        if teacher is not None and recipe.distill:
            self.stepper.teacher = Teacher(teacher, mode=recipe.teacher)
        self._parts = ranks.world * recipe.accumulate
        self.steps = recipe.steps(len(data.train))
        self.phases = plan_phases(recipe, supernet.space, steps=self.steps)
        gap = max(round(recipe.validate_every * self.stepper.per_epoch), math.ceil(VALIDATION_GAP / recipe.batch))
        self.validate_every = gap if recipe.validate_every else self.steps + 1
        self.average = WeightAverage(supernet, recipe.ema) if recipe.ema else None
        identity = {
            "space": supernet.space.to_dict(),
            "recipe": recipe.to_dict(),
            "data": data.identity(),
            "seed": seed,
        }
        self.file = CheckpointFile(checkpoint, identity)
        self.step, self.good_step, self.lr_scale, self.best = 0, 0, 1.0, 0.0
        self.losses: list[float] = []
        self.log: list[dict[str, Any]] = []
        self.carried: dict[str, Tensor] = {}  # what the next optimiser remembers
        self._unread: list[tuple[Tensor, int]] = []
        self._asked = torch.zeros((), device=self.device)  # how many processes were asked to stop
        self._saved = self._begun = time.monotonic()
        self._work = 0  # networks trained for a step, in this process
        self._noted = 0  # losses that are in a row of the log

    # ---- phases ----

    def begin(self) -> None:
        """Go on from the checkpoint, or be the first one."""
        if self.file.exists:
            self._restore(good=False)
        elif self.ranks.first:
            self._save({}, good=True)
        if self.ranks.agreed(float(self.step), self.device) != self.step:
            raise UserError(
                f"process {self.ranks.rank} finds a checkpoint of step {self.step}, the first process another one",
                allowed="All processes read the same run folder",
                next_step="Put it where all machines see it",
            )
        self.rows.begin(self.step)

    def train_phase(self) -> None:
        """From where the run is to the end of its phase."""
        phase = next(phase for phase in self.phases if self.step < phase.stop)
        self.progress.start(f"{self.label} {phase.name}", phase.stop - phase.start)
        self.progress.advance(self.step - phase.start)
        try:
            if self.step == phase.start and phase.settings.sort:
                sort_channels(self.supernet, phase.trained)
                if self.average is not None:
                    self.average.restart()
            optimiser = make_optimiser(self.supernet, self.recipe, lr=phase.settings.lr)
            restore_state(optimiser, self.supernet, self.carried)
            optimiser.zero_grad(set_to_none=True)
            while self.step < phase.stop:
                self._take_step(phase, optimiser)
                self.progress.advance()
                if self.step < phase.stop:
                    self._between_steps(phase, optimiser)
        finally:
            self.progress.stop()
        self._leave(phase, optimiser)

    def _between_steps(self, phase: Phase, optimiser: torch.optim.Optimizer) -> None:
        asked = self._is_asked()
        if self.step % self.validate_every == 0:
            self._validate(phase, optimiser)
        elif self.step % READ_EVERY == 0:
            self._read_losses()
            self._write_row(phase)
        if asked or self._is_due():
            self._save(optimiser_state(optimiser, self.supernet))
        if asked:
            raise Interrupted(self.step, self.file.path)

    def _leave(self, phase: Phase, optimiser: torch.optim.Optimizer) -> None:
        self._read_losses()
        with self._averaged():
            if phase.opens == "full" and self.recipe.distill and not self.recipe.sandwich and not self.given_teacher:
                self._teach(self.supernet.extract(self.supernet.space.largest))
            found = validate(self.supernet, phase, self.data, seed=self.seed, randoms=False) if self.ranks.first else {}
        row: dict[str, Any] = {"phase": phase.name, "step": self.step, "loss": float(np.mean(self.losses[-100:])), **found}
        self._judge(found.get("largest", 0.0))
        self.log.append(row)
        self._write_row(phase, **found)
        self.losses, self._noted = [], 0
        goes_on = self.recipe.one_schedule and not self._sorts_next()
        self.carried = optimiser_state(optimiser, self.supernet) if goes_on else {}
        self._save(self.carried, good=True)
        if self.ranks.first:
            self.progress.say(_phase_line(row, alone=phase.space.count() == 1))
        if self.step < self.steps and self._is_asked(now=True):
            raise Interrupted(self.step, self.file.path)

    def _sorts_next(self) -> bool:
        """Whether a phase begins here that reorders channels: the momentum of the old order would be noise."""
        return any(phase.start == self.step and phase.settings.sort for phase in self.phases)

    def _teach(self, teacher: nn.Module) -> None:
        """Let the largest network teach, as it is."""
        self.stepper.teacher = Teacher(teacher, mode=self.recipe.teacher, data=self.data, seed=self.seed)

    def finish(self) -> None:
        """The averaged weights, where there are some, are the result."""
        if self.average is not None:
            self.average.give()
        if self.ranks.first:
            self.file.forget()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        with self.average.in_place():
            yield

    # ---- one step ----

    def _take_step(self, phase: Phase, optimiser: torch.optim.Optimizer) -> None:
        for group in optimiser.param_groups:
            group["lr"] = self._learning_rate(phase)
        passes = [(self._move(optimiser, loss), count) for loss, count in self.stepper.gradients(self.step, phase)]
        networks = sum(count for _, count in passes)
        if self.average is not None:
            self.average.update()
        self.step += 1
        self._work += networks
        self._unread.append((torch.stack([loss for loss, _ in passes]).sum(), networks))
        self.rows.seen(self.recipe.batch)

    def _move(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Move the weights by their gradients, which are cleared; returns the loss of all processes."""
        parameters = list(self.supernet.parameters())
        if self.ranks.world > 1:
            asked = torch.full_like(loss, float(self.stop()))
            loss, asked = self.ranks.exchange(parameters, torch.stack([loss, asked])).unbind()
            self._asked = self._asked + asked
        self.scaler.unscale_(optimiser)
        if self.recipe.clip_value:
            nn.utils.clip_grad_value_(parameters, self.recipe.clip_value)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        self.scaler.step(optimiser)
        self.scaler.update()
        optimiser.zero_grad(set_to_none=True)
        return loss

    def _learning_rate(self, phase: Phase) -> float:
        """Warm-up and cosine over the phase, or over the whole run."""
        span = (0, self.steps) if self.recipe.one_schedule else (phase.start, phase.stop)
        return self.lr_scale * learning_rate(self.step, *span, peak=phase.settings.lr, warmup=phase.settings.warmup)

    def _is_asked(self, *, now: bool = False) -> bool:
        """Whether to stop: all processes say the same at the same step, so they look at what was exchanged."""
        if self.ranks.world == 1:
            return self.stop()
        waits = self.device.type == "cuda"
        return bool(self._asked > 0) if now or not waits or self.step % READ_EVERY == 0 else False

    def _is_due(self) -> bool:
        """Whether to save: the first process's clock decides."""
        late = time.monotonic() - self._saved > self.save_every_s
        if self.ranks.world == 1:
            return late
        return self.step % READ_EVERY == 0 and bool(self.ranks.agreed(float(late), self.device))

    # ---- health ----

    def _read_losses(self) -> None:
        """Wait for the losses of the last steps and look at them."""
        if not self._unread:
            return
        values = torch.stack([total for total, _ in self._unread]).tolist()
        losses = [value / networks for value, (_, networks) in zip(values, self._unread, strict=True)]
        self._unread = []
        bad = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad:
            raise Diverged(self.step - len(losses) + bad[0] + 1, f"its loss is {losses[bad[0]]}")
        self.losses += losses

    def _write_row(self, phase: Phase, **values: float) -> dict[str, Any]:
        fresh = self.losses[self._noted :] or self.losses[-1:]
        self._noted = len(self.losses)
        epoch, rate = self.step / self.stepper.per_epoch, self._learning_rate(phase)
        return self.rows.write(
            self.step, epoch=epoch, phase=phase.name, lr=rate, loss=float(np.mean(fresh or [math.nan])), **values
        )

    def _validate(self, phase: Phase, optimiser: torch.optim.Optimizer) -> None:
        self._read_losses()
        with self._averaged():
            found = validate(self.supernet, phase, self.data, seed=self.seed) if self.ranks.first else {}
        self._judge(found.get("largest", 0.0))
        row = self._write_row(phase, **found)
        self._save(optimiser_state(optimiser, self.supernet), good=True)
        if self.ranks.first:
            self.progress.say(status_line(row, epochs=self.recipe.epochs, left_s=self._left()))

    def _judge(self, largest: float) -> None:
        """The first process has validated: is the run still learning?"""
        largest = self.ranks.agreed(largest, self.device)
        long_enough = self.file.path is not None and self.step - self.good_step >= JUDGED_AFTER
        if long_enough and collapsed(largest, self.best, self.data.classes):
            raise Diverged(self.step, f"the largest network's accuracy fell from {self.best:.1%} to {largest:.1%}")
        self.best = max(self.best, largest)

    def _left(self) -> float:
        """Seconds, if a network costs as much from here on as it did so far."""
        phases = [(p, p.stop - max(p.start, self.step)) for p in self.phases if p.stop > self.step]
        ahead = sum(networks_per_step(self.recipe, phase) * steps for phase, steps in phases)
        return ahead * (time.monotonic() - self._begun) / max(1, self._work)

    def turn_back(self, event: Diverged) -> None:
        """Go back to the last good state with lower learning rates; raises a `UserError` the second time."""
        self.ranks.wait()
        if self.lr_scale != 1 or not self.file.has_good:
            kept = f"the last good state is in {self.file.path}" if self.file.has_good else "nothing was saved"
            again = "again, also with lower learning rates" if self.lr_scale != 1 else ""
            raise UserError(
                f"{event} {again}".strip() + f"; {kept}",
                allowed="The loss stays finite, and the largest network keeps what it has learned",
                next_step="Lower the recipe's lr and start again in a new folder",
            )
        self._unread = []
        self._restore(good=True)
        self.lr_scale = ROLLBACK_RATE
        text = f"{event}: back to step {self.step}, learning rates times {ROLLBACK_RATE:g} from here on"
        if self.ranks.first:
            self._save(self.carried)
            phase = next(phase for phase in self.phases if self.step < phase.stop)
            self.rows.write(self.step, epoch=self.step / self.stepper.per_epoch, phase=phase.name, event=text)
            self.progress.say(text)
        self.ranks.wait()

    # ---- files ----

    def _save(self, remembered: dict[str, Tensor], *, good: bool = False) -> None:
        """Write the state, unless it is not worth going back to."""
        self._read_losses()
        if self.step and not bool(torch.stack([torch.isfinite(p).all() for p in self.supernet.parameters()]).all()):
            raise Diverged(self.step, "weights are not finite")
        self._saved = time.monotonic()
        self.good_step = self.step if good else self.good_step
        if not self.ranks.first:
            return
        groups = {"supernet": self.supernet.state_dict(), "optimiser": remembered}
        if self.stepper.teacher is not None and not self.given_teacher:
            groups["teacher"] = self.stepper.teacher.network.state_dict()
        meta: dict[str, Any] = {"step": self.step, "log": self.log, "good_step": self.good_step, "parts": self._parts}
        meta |= {"lr_scale": self.lr_scale, "best": self.best, "scaler": self.scaler.state_dict(), "noted": self._noted}
        if self.average is not None:
            groups["average"] = self.average.tensors
            meta["averaged"] = self.average.updates
        self.file.save(groups, torch.tensor(self.losses, dtype=torch.float64), meta)
        if good:
            self.file.keep()

    def _restore(self, *, good: bool) -> None:
        groups, losses, meta = self.file.load(good=good)
        with reading(f"{self.file.path}", allowed="A state as training saves it", next_step="Restore a copy, or train anew"):
            self._take(groups, losses, meta)

    def _take(self, groups: dict[str, dict[str, Tensor]], losses: Tensor, meta: dict[str, Any]) -> None:
        load_weights(self.supernet, groups["supernet"], source=str(self.file.path))
        self.step, self.log, self.carried = meta["step"], meta["log"], groups["optimiser"]
        self.losses, self._noted, self.good_step = losses.tolist(), meta.get("noted", 0), meta.get("good_step", self.step)
        self.lr_scale, self.best = meta.get("lr_scale", 1.0), meta.get("best", 0.0)
        parts = meta.get("parts", self._parts)
        if parts != self._parts and self.ranks.first and self.recipe.norm == "part":
            size = self.recipe.batch // self._parts
            self.progress.say(f"the batch is in {self._parts} parts now, it was in {parts}: normalisation sees {size} images")
        if meta.get("scaler"):
            self.scaler.load_state_dict(meta["scaler"])
        if self.average is not None:
            self.average.load(groups["average"], meta["averaged"])
        if groups["teacher"]:
            teacher = self.supernet.extract(self.supernet.space.largest)
            teacher.load_state_dict(groups["teacher"])
            self._teach(teacher)
        elif not self.given_teacher:
            self.stepper.teacher = None


def _phase_line(row: dict[str, Any], *, alone: bool) -> str:
    found = f"{row['largest']:.1%}" if alone else f"largest {row['largest']:.1%}, smallest so far {row['smallest']:.1%}"
    return f"{row['phase']:<11} loss {row['loss']:.3f}   validation: {found}"
