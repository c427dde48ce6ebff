"""Training in several processes: the same networks on each of them, an equal share of every batch, one exchange per step.

A batch is cut into parts (devices times `Recipe.accumulate`). Batch normalisation sees one part, every part has random
draws of its own, and gradients are averaged over the parts: so the result depends on the number of parts alone, not on how
many of them run side by side. Statistics are exchanged only where the recipe's ``norm`` is ``batch`` (`WholeBatch`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from search_spaces.errors import UserError

__all__ = ["ALONE", "Ranks", "WholeBatch", "processes"]

_PATIENCE = timedelta(hours=2)  # the others wait while the first one validates


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: number of this process.
        world: number of all of them.
        local: number of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def parts(self, accumulate: int) -> range:
        """The parts of the batch that this process runs."""
        return range(self.rank * accumulate, (self.rank + 1) * accumulate)

    def exchange(self, parameters: Sequence[nn.Parameter], extra: Tensor) -> Tensor:
        """Sum gradients, and a few numbers beside them, over all processes: one call, whatever the number of tensors.

        Args:
            parameters: the same ones in every process have a gradient.
            extra: (n,) float32.

        Returns: (n,) sums of ``extra``.
        """
        if self.world == 1:
            return extra
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([extra, *(gradient.reshape(-1) for gradient in gradients)])
        distributed.all_reduce(flat)
        start = len(extra)
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return flat[: len(extra)]

    def summed(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def agreed(self, value: float, device: torch.device) -> float:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


ALONE = Ranks()


class _Summed(torch.autograd.Function):
    """The sum of a tensor over all processes, and of its gradient."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient


class WholeBatch(TorchFunctionMode):
    """While it is active, batch normalisation in training takes its statistics from the images of all processes.

    One exchange per normalisation, and one in the backward pass. Whatever network runs: calls are caught, no module is changed.
    Running statistics are not updated; a supernet's never are.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        return self._normalised(func, *args, **(kwargs or {}))

    def _normalised(
        self,
        plain: Any,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """(B, C, ...) normalised per channel; every process has the same B."""
        if not training:
            return plain(x, running_mean, running_var, weight, bias, training, momentum, eps)  # type: ignore[no-any-return]
        own = torch.stack(torch.var_mean(x.float().transpose(0, 1).flatten(1), dim=1, correction=0))  # (2, C)
        before, after = self._ranks.rank, self._ranks.world - self._ranks.rank - 1
        rows = F.pad(own[None], (0, 0, 0, 0, before, after))  # (world, 2, C), a row per process: squares would cancel
        rows = _Summed.apply(rows)  # type: ignore[no-untyped-call]
        mean = rows[:, 1].mean(0)
        variance = (rows[:, 0] + (rows[:, 1] - mean).square()).mean(0)
        scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
        shift = -mean * scale if bias is None else bias - mean * scale
        wide = (1, -1, *[1] * (x.dim() - 2))
        normalised: Tensor = x * scale.view(wide) + shift.view(wide)
        return normalised.to(x.dtype)


@contextmanager
def processes(*, cuda: bool = False) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, connected while the block runs; a process of its own is alone.

    Args:
        cuda: one GPU per process.

    Raises:
        UserError: fewer GPUs than processes on this machine.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if cuda:
        if ranks.local >= torch.cuda.device_count():
            raise UserError(
                f"process {ranks.local} on this machine finds {torch.cuda.device_count()} GPUs",
                allowed="One GPU per process",
                next_step="Start fewer processes: torchrun --nproc-per-node GPUS -m nas train-supernet ...",
            )
        torch.cuda.set_device(ranks.local)
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
