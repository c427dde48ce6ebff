"""A network that teaches and is not trained itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernets.calibration import calibration_images, recalibrate
from supernets.construct import is_statistic
from supernets.data import ImageData

__all__ = ["Teacher"]


class Teacher:
    """What a network says of images, whatever their size: its weights are fixed, its statistics are those of the size.

    A network that normalises 16-px images by the statistics of 28-px ones is no better than chance.

    Args:
        network: is changed: it takes no gradients, and its mode is set.
        mode: ``eval`` normalises by statistics of training images, ``train`` by the batch's (see `Recipe.teacher`).
        data: whose images statistics are taken of, when a size is met first; None leaves the network's own.
        seed: of the choice of these images.
    """

    def __init__(self, network: nn.Module, *, mode: str = "eval", data: ImageData | None = None, seed: int = 0) -> None:
        self.network = network.requires_grad_(False).eval()
        if mode == "train":
            for module in network.modules():
                if is_statistic(module):
                    module.train()
        self._data, self._seed = data if mode == "eval" else None, seed
        self._statistics: dict[int, dict[str, Tensor]] = {}

    def at(self, resolution: int) -> Callable[[Tensor], Tensor]:
        """What it says of images of a resolution: (B, C, R, R) to probabilities (B, classes), float32.

        Statistics are taken here, so call it outside of whatever changes how training's networks run (half precision,
        normalisation over several processes).
        """
        statistics = self._of(resolution)

        @torch.no_grad()
        def say(images: Tensor) -> Tensor:
            logits = torch.func.functional_call(self.network, statistics, (images,))
            return F.softmax(logits.float(), dim=1)

        return say

    def _of(self, resolution: int) -> dict[str, Tensor]:
        """Statistics at a resolution, by their names in the network; none where it keeps its own."""
        if self._data is None:
            return {}
        if resolution not in self._statistics:
            device = next(self.network.parameters()).device
            recalibrate(self.network, calibration_images(self._data, resolution, device, seed=self._seed))
            self._statistics[resolution] = {
                f"{name}.{leaf}" if name else leaf: buffer.clone()
                for name, module in self.network.named_modules()
                if is_statistic(module)
                for leaf, buffer in module.named_buffers(recurse=False)
            }
        return self._statistics[resolution]
