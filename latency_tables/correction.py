"""From a sum of layer times to a network's latency, and how far the result can be trusted.

latency = offset + scale * (sum of layers) + per_layer * (number of layers). All three terms are sums over layers,
so a corrected latency has its exact minimum over a space and is priced as fast as the plain sum. Which terms are
used is decided by leave-one-out cross-validation on a few whole networks; quality is stated on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Correction", "Errors", "Quality", "errors", "fit_baseline", "fit_correction"]

Array = NDArray[np.float64]

FORMS = ("none", "scale", "scale+offset", "scale+offset+per_layer")  # from few terms to many
SPARE = 3  # networks beyond the number of terms that a form needs
WORTH = 0.95  # a form with more terms must bring the error below this share of the simpler one's
NOISE = 1e-6  # relative; differences below it are rounding


@dataclass(frozen=True)
class Correction:
    """``offset_ms + scale * sum_ms + per_layer_ms * layers``; ``form`` names the terms that were fitted."""

    form: str
    offset_ms: float
    scale: float
    per_layer_ms: float

    def __call__(self, sum_ms: Array, layers: NDArray[Any]) -> Array:
        """Latencies (N,) ms from sums of layers (N,) ms and numbers of layers (N,)."""
        return self.offset_ms + self.scale * sum_ms + self.per_layer_ms * layers

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Correction:
        """What `to_dict` wrote; ValueError for anything else."""
        _check(cls, value, forms=("form",))
        return cls(**value)


@dataclass(frozen=True)
class Errors:
    """Relative errors of estimates, as fractions; ``spearman`` is None where it is not defined (fewer than 3, or all equal)."""

    median: float
    mean: float
    bias: float
    within_5_percent: float
    within_10_percent: float
    spearman: float | None

    @classmethod
    def from_dict(cls, value: Any) -> Errors:
        """What ``dataclasses.asdict`` gave; ValueError for anything else."""
        _check(cls, value, optional=("spearman",))
        return cls(**value)


@dataclass(frozen=True)
class Quality:
    """How well a table estimates whole networks that it was not fitted on.

    Attributes:
        networks: how many networks were held out.
        fitted_on: how many the correction was fitted on.
        corrected: errors of the corrected estimate.
        plain: errors of the plain sum of layers and the call of the runtime.
        baseline: errors of a line in MACs with an offset, fitted on the same networks: what a table has to beat.
        noise: a second measurement of the held-out networks against the first: no estimate can do better.
    """

    networks: int
    fitted_on: int
    corrected: Errors
    plain: Errors
    baseline: Errors
    noise: Errors

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Quality:
        """What `to_dict` wrote; ValueError for anything else."""
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise ValueError(f"quality has the fields {', '.join(names)}")
        counts: dict[str, Any] = {name: value[name] for name in names[:2]}
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in counts.values()):
            raise ValueError("the numbers of networks are whole and positive")
        return cls(**counts | {name: Errors.from_dict(value[name]) for name in names[2:]})


def fit_correction(sum_ms: Array, layers: NDArray[Any], measured_ms: Array, *, overhead_ms: float) -> Correction:
    """The best correction for some measured networks, all (N,).

    Weighted least squares on relative errors; the form with the smallest mean leave-one-out error wins, a simpler
    form where the gain is slight. ``overhead_ms``, the time of an empty network, is the offset where none is fitted.
    """
    best = _fit("none", sum_ms, layers, measured_ms, overhead_ms)
    least = _held_out("none", sum_ms, layers, measured_ms, overhead_ms)
    for terms, form in enumerate(FORMS[1:], start=1):
        if len(measured_ms) < terms + SPARE:
            break
        error = _held_out(form, sum_ms, layers, measured_ms, overhead_ms)
        candidate = _fit(form, sum_ms, layers, measured_ms, overhead_ms)
        sound = candidate.scale > 0 and bool((candidate(sum_ms, layers) > 0).all())
        if sound and error < WORTH * least and error < least - NOISE:
            best, least = candidate, error
    return best


def fit_baseline(macs: Array, measured_ms: Array) -> tuple[float, float]:
    """(offset, slope) of the line in MACs, by the same weighted least squares; one network fixes the slope only."""
    offset = np.ones_like(measured_ms) if len(measured_ms) > 1 else np.zeros_like(measured_ms)
    first, slope = _least_squares([offset, macs], measured_ms, measured_ms)
    return first, slope


def _fit(form: str, sum_ms: Array, layers: NDArray[Any], measured_ms: Array, overhead_ms: float) -> Correction:
    if form == "none":
        return Correction(form, overhead_ms, 1.0, 0.0)
    if form == "scale":
        (scale,) = _least_squares([sum_ms], measured_ms - overhead_ms, measured_ms)
        return Correction(form, overhead_ms, scale, 0.0)
    columns = [sum_ms, np.ones_like(sum_ms)] + [layers.astype(np.float64)] * (form == FORMS[-1])
    scale, offset, *rest = _least_squares(columns, measured_ms, measured_ms)
    return Correction(form, offset, scale, rest[0] if rest else 0.0)


def _least_squares(columns: list[Array], target: Array, weight: Array) -> list[float]:
    """Coefficients that minimise the squared errors relative to ``weight``."""
    size = [float(np.abs(column).max()) or 1.0 for column in columns]  # comparable columns: nothing falls under the cut-off
    matrix = np.stack([column / (s * weight) for column, s in zip(columns, size, strict=True)], axis=1)
    solution = np.linalg.lstsq(matrix, target / weight, rcond=None)[0]
    return [float(value / s) for value, s in zip(solution, size, strict=True)]


def _held_out(form: str, sum_ms: Array, layers: NDArray[Any], measured_ms: Array, overhead_ms: float) -> float:
    """Mean relative error of each network under the fit to all others."""
    misses = []
    for index in range(len(measured_ms)):
        rest = np.arange(len(measured_ms)) != index
        fitted = _fit(form, sum_ms[rest], layers[rest], measured_ms[rest], overhead_ms)
        misses.append(abs(fitted(sum_ms[index : index + 1], layers[index : index + 1])[0] / measured_ms[index] - 1))
    return float(np.mean(misses))


def errors(estimated_ms: Array, measured_ms: Array) -> Errors:
    """Errors of estimates (N,) against measurements (N,), N at least 1."""
    relative = estimated_ms / measured_ms - 1
    size = np.abs(relative)
    return Errors(
        median=float(np.median(size)),
        mean=float(size.mean()),
        bias=float(relative.mean()),
        within_5_percent=float((size <= 0.05).mean()),
        within_10_percent=float((size <= 0.10).mean()),
        spearman=_spearman(estimated_ms, measured_ms),
    )


def _spearman(first: Array, second: Array) -> float | None:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import spearmanr  # half a second; only where a table is made

    return float(spearmanr(first, second).statistic)


def _check(cls: Any, value: Any, *, forms: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> None:
    names = [field.name for field in fields(cls)]
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ValueError(f"{cls.__name__} has the fields {', '.join(names)}")
    for name in names:
        found = value[name]
        if name in forms and found not in FORMS:
            raise ValueError(f"{cls.__name__}: {name} is {found!r}, not one of {', '.join(FORMS)}")
        if name in forms or (name in optional and found is None):
            continue
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise ValueError(f"{cls.__name__}: {name} is {found!r}, not a finite number")
