"""From a sum of layer times to a network's latency, and how far the result can be trusted.

latency = offset + scale * (sum of layers) + per_layer * (number of layers) + residual * (features of the layers). All terms
are sums over layers, so a corrected latency has its exact minimum over a space and is priced as fast as the plain sum.
Which terms are used is decided by leave-one-out cross-validation on a few whole networks; quality is stated on others. One
form uses no layer times at all, only what whole networks tell about features: it wins where layers are not additive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.layers import Layer

__all__ = [
    "FEATURES",
    "LEARNT",
    "Correction",
    "Errors",
    "Quality",
    "errors",
    "fit_baseline",
    "fit_correction",
    "fit_learnt",
    "rank_correlation",
]

Array = NDArray[np.float64]

RIDGE = "scale+offset+residual"
LEARNT = "features"
FORMS = ("none", "scale", "scale+offset", "scale+offset+per_layer", RIDGE, LEARNT)  # from few terms to many
SPARE = 3  # networks beyond the number of terms that a form needs
WORTH = 0.95  # a form with more terms must bring the error below this share of the simpler one's
NOISE = 1e-6  # relative; differences below it are rounding
RIDGE_NETWORKS = 12  # fewer do not tell six features apart
PENALTIES = tuple(10.0**power for power in range(-5, 2))

# What a layer may cost beyond its own time: all of it additive, in units that make the numbers comparable.
FEATURES: Mapping[str, Callable[[Layer], float]] = {
    "layers": lambda layer: 1.0,
    "macs": lambda layer: layer.macs * 1e-7,
    "depthwise_macs": lambda layer: sum(op.macs for op in layer.ops() if op.groups > 1) * 1e-6,
    "params": lambda layer: layer.params * 1e-5,
    "activation_bytes": lambda layer: layer.activation_bytes * 1e-6,
    "gates": lambda layer: float(any(op.name.startswith("se.") for op in layer.ops())),
}


@dataclass(frozen=True)
class Correction:
    """``offset_ms + scale * sum_ms + per_layer_ms * layers`` and a residual; ``form`` names the terms that were fitted.

    Attributes:
        residual: ms per unit of a feature of `FEATURES`; empty where none is fitted.
    """

    form: str
    offset_ms: float
    scale: float
    per_layer_ms: float
    residual: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, sum_ms: Array, layers: NDArray[Any], features: Array | None = None) -> Array:
        """Latencies (N,) ms from sums of layers (N,) ms, numbers of layers (N,) and sums of features (N, F)."""
        plain = self.offset_ms + self.scale * sum_ms + self.per_layer_ms * layers
        if not self.residual:
            return plain
        if features is None:
            raise ValueError(f"a correction of the form {self.form} needs the sums of features")
        return np.asarray(plain + features @ np.array([self.residual.get(name, 0.0) for name in FEATURES]))

    def of_layer(self, layer: Layer, layer_ms: Callable[[Layer], float]) -> float:
        """A layer's share of the latency, ms; its own time is asked for only where it counts."""
        own = self.scale * layer_ms(layer) if self.scale else 0.0
        return own + self.per_layer_ms + sum(weight * FEATURES[name](layer) for name, weight in self.residual.items())

    def times(self, factor: float) -> Correction:
        """The same for a device whose level has moved by a factor."""
        moved = {name: factor * weight for name, weight in self.residual.items()}
        return Correction(self.form, factor * self.offset_ms, factor * self.scale, factor * self.per_layer_ms, moved)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"residual": dict(self.residual)}

    @classmethod
    def from_dict(cls, value: Any) -> Correction:
        """What `to_dict` wrote, or an older version without a residual; ValueError for anything else."""
        residual = value.get("residual", {}) if isinstance(value, Mapping) else {}
        if not isinstance(residual, Mapping) or not set(residual) <= set(FEATURES):
            raise ValueError(f"Correction: the residual has features of {', '.join(FEATURES)}")
        for number in residual.values():
            _finite("residual", number)
        plain = {name: v for name, v in value.items() if name != "residual"} if isinstance(value, Mapping) else value
        _check(cls, plain, forms=("form",), absent=("residual",))
        return cls(**plain, residual=dict(residual))


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
        learnt: errors of what is learnt from the features of whole networks alone, without layers; None where too few.
    """

    networks: int
    fitted_on: int
    corrected: Errors
    plain: Errors
    baseline: Errors
    noise: Errors
    learnt: Errors | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Quality:
        """What `to_dict` wrote; ValueError for anything else."""
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or not set(names[:-1]) <= set(value) <= set(names):
            raise ValueError(f"quality has the fields {', '.join(names)}")
        counts: dict[str, Any] = {name: value[name] for name in names[:2]}
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in counts.values()):
            raise ValueError("the numbers of networks are whole and positive")
        given = [name for name in names[2:] if value.get(name) is not None]
        return cls(**counts | {name: Errors.from_dict(value[name]) for name in given})


def fit_correction(
    sum_ms: Array,
    layers: NDArray[Any],
    measured_ms: Array,
    *,
    overhead_ms: float,
    features: Array | None = None,
    sound: Callable[[Correction], bool] = lambda correction: True,
) -> Correction:
    """The best correction for some measured networks, all (N,).

    Weighted least squares on relative errors; the form with the smallest mean leave-one-out error wins, a simpler
    form where the gain is slight.

    Args:
        overhead_ms: the time of an empty network, the offset where none is fitted.
        features: sums of `FEATURES`, (N, F); None leaves out the forms that need them.
        sound: asked of every form before it may win.
    """
    data = _Data(sum_ms, layers, measured_ms, overhead_ms, features)
    best = _fit("none", data)
    least = _held_out("none", data)
    for form in FORMS[1:]:
        if len(measured_ms) < _fewest(form) or (form in (RIDGE, LEARNT) and features is None):
            continue
        error = _held_out(form, data)
        candidate = _fit(form, data)
        plausible = (candidate.scale > 0 or form == LEARNT) and bool((data.latency(candidate) > 0).all())
        if plausible and error < WORTH * least and error < least - NOISE and sound(candidate):
            best, least = candidate, error
    return best


def fit_learnt(features: Array, measured_ms: Array) -> Correction | None:
    """The form without layer times, from sums of `FEATURES` (N, F); None for too few networks."""
    if len(measured_ms) < RIDGE_NETWORKS:
        return None
    nothing = np.zeros_like(measured_ms)
    return _fit(LEARNT, _Data(nothing, nothing, measured_ms, 0.0, features))


def _fewest(form: str) -> int:
    return RIDGE_NETWORKS if form in (RIDGE, LEARNT) else FORMS.index(form) + SPARE


@dataclass(frozen=True)
class _Data:
    """Measured networks: sums of layers, numbers of layers and times (N,), sums of features (N, F)."""

    sum_ms: Array
    layers: NDArray[Any]
    measured_ms: Array
    overhead_ms: float
    features: Array | None

    def __getitem__(self, rows: Any) -> _Data:
        features = None if self.features is None else self.features[rows]
        return _Data(self.sum_ms[rows], self.layers[rows], self.measured_ms[rows], self.overhead_ms, features)

    def latency(self, correction: Correction) -> Array:
        return correction(self.sum_ms, self.layers, self.features)


def fit_baseline(macs: Array, measured_ms: Array) -> tuple[float, float]:
    """(offset, slope) of the line in MACs, by the same weighted least squares; one network fixes the slope only."""
    offset = np.ones_like(measured_ms) if len(measured_ms) > 1 else np.zeros_like(measured_ms)
    first, slope = _least_squares([offset, macs], measured_ms, measured_ms)
    return first, slope


def _fit(form: str, data: _Data) -> Correction:
    total, measured = data.sum_ms, data.measured_ms
    if form == "none":
        return Correction(form, data.overhead_ms, 1.0, 0.0)
    if form == "scale":
        (scale,) = _least_squares([total], measured - data.overhead_ms, measured)
        return Correction(form, data.overhead_ms, scale, 0.0)
    if form in (RIDGE, LEARNT) and data.features is not None:
        free = [np.ones_like(total)] + [total] * (form == RIDGE)
        (offset, *scales), weights = _ridge(free, data.features, measured)
        residual = {name: float(weight) for name, weight in zip(FEATURES, weights, strict=True)}
        return Correction(form, offset, scales[0] if scales else 0.0, 0.0, residual)
    columns = [total, np.ones_like(total)] + [data.layers.astype(np.float64)] * form.endswith("per_layer")
    scale, offset, *rest = _least_squares(columns, measured, measured)
    return Correction(form, offset, scale, rest[0] if rest else 0.0)


def _ridge(free: list[Array], features: Array, measured: Array) -> tuple[list[float], Array]:
    """Coefficients of the free columns, and of features (N, F) under the penalty with the least leave-one-out error.

    Errors are relative; features count by their spread. The leave-one-out errors are exact, from the hat matrix.
    """
    centre, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, np.inf)  # what never varies says nothing
    size = [float(np.abs(column).max()) or 1.0 for column in free]
    base = np.stack([column / s for column, s in zip(free, size, strict=True)], axis=1)
    matrix = np.hstack([base, (features - centre) / spread * measured.mean()]) / measured[:, None]
    target = np.ones_like(measured)
    best: tuple[float, Array] | None = None
    for penalty in PENALTIES:
        ridge = np.diag([0.0] * len(free) + [penalty * len(target)] * features.shape[1])
        solve = np.linalg.pinv(matrix.T @ matrix + ridge) @ matrix.T
        leverage = np.minimum(np.einsum("ij,ji->i", matrix, solve), 1 - 1e-9)
        error = float(np.mean(np.abs((target - matrix @ (solve @ target)) / (1 - leverage))))
        if best is None or error < best[0]:
            best = (error, solve @ target)
    assert best is not None
    coefficients = best[1]
    weights = coefficients[len(free) :] / spread * measured.mean()
    first, *rest = [float(c / s) for c, s in zip(coefficients[: len(free)], size, strict=True)]
    return [first - float(weights @ centre), *rest], weights


def _least_squares(columns: list[Array], target: Array, weight: Array) -> list[float]:
    """Coefficients that minimise the squared errors relative to ``weight``."""
    size = [float(np.abs(column).max()) or 1.0 for column in columns]  # comparable columns: nothing falls under the cut-off
    matrix = np.stack([column / (s * weight) for column, s in zip(columns, size, strict=True)], axis=1)
    solution = np.linalg.lstsq(matrix, target / weight, rcond=None)[0]
    return [float(value / s) for value, s in zip(solution, size, strict=True)]


def _held_out(form: str, data: _Data) -> float:
    """Mean relative error of each network under the fit to all others."""
    misses = []
    for index in range(len(data.measured_ms)):
        fitted = _fit(form, data[np.arange(len(data.measured_ms)) != index])
        one = data[index : index + 1]
        misses.append(abs(one.latency(fitted)[0] / one.measured_ms[0] - 1))
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
        spearman=rank_correlation(estimated_ms, measured_ms),
    )


def rank_correlation(first: Array, second: Array) -> float | None:
    """Spearman's; None where it is not defined: fewer than three pairs, or a side that does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import spearmanr  # half a second; only where a table is made

    return float(spearmanr(first, second).statistic)


def _check(
    cls: Any, value: Any, *, forms: tuple[str, ...] = (), optional: tuple[str, ...] = (), absent: tuple[str, ...] = ()
) -> None:
    names = [field.name for field in fields(cls) if field.name not in absent]
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ValueError(f"{cls.__name__} has the fields {', '.join(names)}")
    for name in names:
        found = value[name]
        if name in forms and found not in FORMS:
            raise ValueError(f"{cls.__name__}: {name} is {found!r}, not one of {', '.join(FORMS)}")
        if name in forms or (name in optional and found is None):
            continue
        _finite(f"{cls.__name__}: {name}", found)


def _finite(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{name} is {number!r}, not a finite number")
