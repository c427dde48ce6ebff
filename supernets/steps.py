"""One training step: its images, its networks, their losses and gradients.

Every random draw comes from a generator seeded with (seed, purpose, step, part), so there is no generator state to save:
the step's number is enough to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search_spaces import Architecture, SearchSpace
from supernets.calibration import resolution_of
from supernets.data import ImageData, placed
from supernets.distributed import Ranks, WholeBatch
from supernets.losses import batch_loss
from supernets.phases import Phase
from supernets.recipe import Recipe
from supernets.supernet import Supernet
from supernets.teaching import Teacher

__all__ = ["Steps", "networks_per_step"]

# Purposes of random draws, the second number of every seed; 3 is calibration's.
_ORDER, _STEP, _AUGMENTATION = 1, 2, 4
_POOL = 256  # random networks among which those of like MACs are looked for
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def networks_per_step(recipe: Recipe, phase: Phase) -> int:
    """How many networks a step trains."""
    return phase.settings.subnets + (2 if _is_sandwich(recipe, phase) else 0)


def _is_sandwich(recipe: Recipe, phase: Phase) -> bool:
    return recipe.sandwich and phase.opens != "full"


@dataclass
class Steps:
    """Makes the gradients of single steps.

    Attributes:
        scaler: of the loss; does nothing but with fp16.
        teacher: what is not trained and teaches; None: there is none, or the largest network teaches in place.
    """

    supernet: Supernet
    data: ImageData
    recipe: Recipe
    seed: int
    ranks: Ranks
    scaler: torch.amp.GradScaler
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        self.device = next(self.supernet.parameters()).device
        self.per_epoch = len(self.data.train) // self.recipe.batch
        self._order: tuple[int, np.ndarray[Any, Any]] | None = None

    def gradients(self, step: int, phase: Phase) -> Iterator[tuple[Tensor, int]]:
        """Leave a step's gradients in the supernet, once for all of its networks, or for one after the other.

        They are the mean over the images, and the sum (or mean) over networks. The caller moves the weights and clears the
        gradients before it asks for more.

        Yields: the loss of this process's parts, summed over the networks and divided by the number of all parts, as a tensor
        that is not waited for; and the number of networks.
        """
        self.supernet.train()
        batches = {part: _Batch(self, step, part) for part in self.ranks.parts(self.recipe.accumulate)}
        networks = self._architectures(step, phase, batches)
        sandwich = _is_sandwich(self.recipe, phase)
        if sandwich:
            networks = [self.supernet.space.largest, *networks]
        together = 1 if self.recipe.subnet_loss == "each" else len(networks)
        share = 1 / (self.ranks.world * self.recipe.accumulate)
        scale = share / together if self.recipe.subnet_loss == "mean" else share
        for start in range(0, len(networks), together):
            total = torch.zeros((), device=self.device)
            for number in range(start, start + together):
                for part, batch in batches.items():
                    with self._drawing(step, part, number):
                        total += self._learn(networks[number], batch, scale, teaches=sandwich and number == 0)
            yield total * share if share != 1 else total, together

    def _learn(self, arch: Architecture, batch: _Batch, scale: float, *, teaches: bool) -> Tensor:
        """Add one network's gradients on a part of the batch; returns its mean loss, not scaled."""
        resolution = resolution_of(arch, self.data)
        images, labels = batch.at(resolution)
        soft = None if teaches else self._taught(batch, images, resolution)
        with self._forward():
            logits = self.supernet(images, arch)
        if teaches and self.teacher is None:
            batch.soft = F.softmax(logits.detach().float(), dim=1)
        loss = batch_loss(self.recipe, logits, labels, soft)
        scaled = loss if scale == 1 else loss * scale
        self.scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _taught(self, batch: _Batch, images: Tensor, resolution: int) -> Tensor | None:
        """What the teacher says of a part's images, (B, classes) probabilities, asked once; None without a teacher."""
        if batch.soft is None and self.teacher is not None:
            say = self.teacher.at(resolution)
            with self._forward():
                batch.soft = say(images)
        return batch.soft

    @contextmanager
    def _forward(self) -> Iterator[None]:
        """How networks run: in the recipe's precision, with the statistics that it asks for."""
        dtype = _DTYPES.get(self.recipe.precision)
        whole = self.recipe.norm == "batch" and self.ranks.world > 1
        with (
            torch.autocast(self.device.type, dtype) if dtype is not None else nullcontext(),
            WholeBatch(self.ranks) if whole else nullcontext(),
        ):
            yield

    @contextmanager
    def _drawing(self, step: int, part: int, network: int) -> Iterator[None]:
        """Dropout takes no generator: a seed of its own, and the caller's state is restored."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence((self.seed, step, part, network)).generate_state(1)[0]))
            yield

    # ---- which networks ----

    def _architectures(self, step: int, phase: Phase, batches: dict[int, _Batch]) -> list[Architecture]:
        """The step's networks, the same in every process; of one resolution, since they share the images."""
        rng = np.random.default_rng([self.seed, _STEP, step])
        space, subnets = phase.space, phase.settings.subnets
        if self.recipe.sample == "uniform" or space.count() == 1:
            rows = space.sample_rows(subnets, rng, per_gene=True)
        else:
            rows = self._attentive(step, space, subnets, rng, batches)
        if _is_sandwich(self.recipe, phase):
            rows = np.concatenate([rows, space.to_array(space.smallest)])
        return space.from_array(_same_resolution(space, rows))

    def _attentive(
        self, step: int, space: SearchSpace, subnets: int, rng: np.random.Generator, batches: dict[int, _Batch]
    ) -> np.ndarray[Any, Any]:
        """For every network to train, the best or worst of some of like MACs by their loss on the batch.

        Random networks give the distribution of MACs: each target is one of them, its rivals are the nearest to it.
        """
        pool = _same_resolution(space, space.sample_rows(_POOL, rng, per_gene=True))
        macs = space.macs(pool)
        groups = [np.argsort(np.abs(macs - macs[j]), kind="stable")[: self.recipe.candidates] for j in range(subnets)]
        losses = torch.stack([self._ranking(step, space.from_array(pool[group]), batches) for group in groups])
        sign = 1 if self.recipe.sample == "best-up" else -1
        best = (sign * self.ranks.summed(losses)).argmin(dim=1).tolist()  # waits for the device: the step depends on it
        return pool[[group[index] for group, index in zip(groups, best, strict=True)]]

    @torch.no_grad()
    def _ranking(self, step: int, archs: list[Architecture], batches: dict[int, _Batch]) -> Tensor:
        """(len(archs),) losses on this process's parts of the batch, without gradients."""
        total = torch.zeros(len(archs), device=self.device)
        for part, batch in batches.items():
            images, labels = batch.at(resolution_of(archs[0], self.data))
            with self._drawing(step, part, 0), self._forward():
                total += torch.stack([F.cross_entropy(self.supernet(images, arch).float(), labels) for arch in archs])
        return total

    # ---- which images ----

    def images(self, step: int, part: int, resolution: int) -> tuple[Tensor, Tensor]:
        """A part of the step's images, augmented alike at every resolution, and their labels; on the device."""
        epoch, at = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.data.train)))
        size = self.recipe.batch // (self.ranks.world * self.recipe.accumulate)
        start = at * self.recipe.batch + part * size
        indices = self._order[1][start : start + size]
        rng = np.random.default_rng([self.seed, _AUGMENTATION, step, part])
        images, labels = self.data.train.batch(indices, resolution, rng=rng), self.data.train.labels[indices]
        if self.device.type == "cuda":  # from pinned memory the copy does not hold up the next step's preparation
            images, labels = images.pin_memory(), labels.pin_memory()
        return placed(images, self.device), placed(labels, self.device)


class _Batch:
    """A part of a step's images, made once per resolution, and what a teacher says of them, (B, classes) probabilities."""

    def __init__(self, steps: Steps, step: int, part: int) -> None:
        self.soft: Tensor | None = None
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self._steps, self._step, self._part = steps, step, part

    def at(self, resolution: int) -> tuple[Tensor, Tensor]:
        if resolution not in self._made:
            self._made[resolution] = self._steps.images(self._step, self._part, resolution)
        return self._made[resolution]


def _same_resolution(space: SearchSpace, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    names = [gene.name for gene in space.genes]
    if "resolution" in names:
        column = names.index("resolution")
        rows[:, column] = rows[0, column]
    return rows
