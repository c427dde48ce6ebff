"""What a training run will take, from a few steps of each of its phases."""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from search_spaces.progress import SILENT, Progress
from supernets.checks import check_training
from supernets.data import ImageData, shown_to
from supernets.distributed import ALONE
from supernets.optimising import make_optimiser
from supernets.phases import Phase, plan_phases
from supernets.recipe import Recipe
from supernets.steps import Steps, networks_per_step
from supernets.supernet import Supernet
from supernets.teaching import Teacher

__all__ = ["PhaseEstimate", "estimate_training"]

_WARM_UP = 1
_MEASURED = 4


@dataclass(frozen=True)
class PhaseEstimate:
    """A phase of a training run, measured on a few steps.

    Attributes:
        networks: trained per step.
        step_s: median seconds of a step.
        peak_bytes: largest memory so far: of the GPU's tensors, or of the whole process on a CPU.
    """

    name: str
    steps: int
    epochs: float
    networks: int
    step_s: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Of all its steps, without validations."""
        return self.steps * self.step_s


def estimate_training(
    supernet: Supernet, data: ImageData, recipe: Recipe, *, seed: int = 0, progress: Progress = SILENT
) -> list[PhaseEstimate]:
    """Run a few steps of each phase on a copy of the supernet; nothing is kept.

    Raises:
        UserError: as for `supernets.train`.
    """
    supernet.bind(data.input_shape)
    data = shown_to(data, supernet.space)
    check_training(supernet, data, recipe)
    twin = copy.deepcopy(supernet)
    device = next(twin.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    steps = Steps(twin, data, recipe, seed, ALONE, scaler)
    phases = plan_phases(recipe, twin.space, steps=recipe.steps(len(data.train)))
    found = []
    progress.start("measure phases", len(phases))
    try:
        for phase in phases:
            if recipe.distill and not recipe.sandwich and phase.opens != "full" and phases[0].opens == "full":
                steps.teacher = Teacher(twin.extract(twin.space.largest))
            step_s = _time_steps(steps, phase)
            count = phase.stop - phase.start
            networks = networks_per_step(recipe, phase)
            found.append(PhaseEstimate(phase.name, count, count / steps.per_epoch, networks, step_s, _peak_bytes(device)))
            progress.advance()
    finally:
        progress.stop()
    return found


def _time_steps(steps: Steps, phase: Phase) -> float:
    """Median seconds of a step."""
    optimiser = make_optimiser(steps.supernet, steps.recipe, lr=1e-6)
    times = []
    for step in range(_WARM_UP + _MEASURED):
        begun = time.perf_counter()
        for _ in steps.gradients(step, phase):
            steps.scaler.step(optimiser)
            steps.scaler.update()
            optimiser.zero_grad(set_to_none=True)
        if steps.device.type == "cuda":
            torch.cuda.synchronize(steps.device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[_WARM_UP:])


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
