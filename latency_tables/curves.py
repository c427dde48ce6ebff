"""Times of layers between measured sizes: straight lines over the area of the map, per structure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from search_spaces.layers import Layer

__all__ = ["Curves"]


class Curves:
    """What measured layers of one structure tell about sizes that were not measured.

    A layer's work grows with the area of its map, so a line over the area between two sizes is close (OFA MobileNetV3: a
    median error of about 3 %); outside of the measured sizes nothing is said. A layer without an input map, what runs between
    the blocks of a user's own network, has no size: nothing is said of it either.
    """

    def __init__(self, times_ms: Mapping[Layer, float]) -> None:
        points: dict[str, dict[int, float]] = {}
        for layer, ms in times_ms.items():
            if layer.in_shape:
                points.setdefault(layer.structure().key, {})[_area(layer)] = ms
        self._points: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for key, found in points.items():
            areas = np.array(sorted(found), dtype=np.int64)
            self._points[key] = areas, np.array([found[area] for area in areas.tolist()])

    def covers(self, layer: Layer) -> bool:
        """Whether the layer's size is within the measured ones of its structure."""
        areas = self._points.get(layer.structure().key, (np.zeros(0, dtype=np.int64),))[0]
        return len(areas) > 0 and bool(areas[0] <= _area(layer) <= areas[-1])

    def at(self, layer: Layer) -> float:
        """The time of a covered layer, ms."""
        areas, times = self._points[layer.structure().key]
        return float(np.interp(_area(layer), areas, times))

    def error(self) -> float | None:
        """Median relative error of every inner point, told from the points beside it; None where there are no inner points.

        The points beside a left-out one are twice as far apart as those beside a layer that is interpolated: an upper bound.
        """
        misses = []
        for areas, times in self._points.values():
            for i in range(1, len(areas) - 1):
                told = np.interp(areas[i], areas[[i - 1, i + 1]], times[[i - 1, i + 1]])
                misses.append(abs(told / times[i] - 1))
        return float(np.median(misses)) if misses else None


def _area(layer: Layer) -> int:
    return layer.in_shape[-1] ** 2
