"""The correction recovers what was planted."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from latency_tables.correction import Correction, Errors, Quality, errors, fit_baseline, fit_correction

RNG_SEED = 0
OVERHEAD = 0.004


def networks(n: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(RNG_SEED)
    return rng.uniform(1, 8, n), rng.integers(12, 26, n)


@pytest.mark.parametrize(
    ("form", "terms"),
    [
        ("none", (OVERHEAD, 1.0, 0.0)),
        ("scale", (OVERHEAD, 1.13, 0.0)),
        ("scale+offset", (0.4, 1.13, 0.0)),
        ("scale+offset+per_layer", (0.4, 0.9, 0.05)),
        ("scale+offset+per_layer", (-0.2, 1.1, 0.03)),
    ],
)
def test_planted_terms_are_recovered_with_the_fewest_terms(form: str, terms: tuple[float, float, float]) -> None:
    total, layers = networks()
    found = fit_correction(total, layers, terms[0] + terms[1] * total + terms[2] * layers, overhead_ms=OVERHEAD)
    assert found.form == form
    assert (found.offset_ms, found.scale, found.per_layer_ms) == pytest.approx(terms, abs=1e-9)


def test_noise_alone_buys_no_terms_that_do_not_help() -> None:
    total, layers = networks(40)
    noisy = (OVERHEAD + total) * np.random.default_rng(1).normal(1, 0.02, 40)
    found = fit_correction(total, layers, noisy, overhead_ms=OVERHEAD)
    assert found(total, layers) == pytest.approx(total, rel=0.02)


def test_few_networks_fit_few_terms() -> None:
    total, layers = networks()
    measured = 0.4 + 0.9 * total + 0.05 * layers
    for n, most in ((1, 0), (3, 0), (4, 1), (5, 2), (6, 3)):
        form = fit_correction(total[:n], layers[:n], measured[:n], overhead_ms=OVERHEAD).form
        assert ("none", "scale", "scale+offset", "scale+offset+per_layer").index(form) <= most


def test_a_falling_relation_is_never_fitted() -> None:
    total, layers = networks()
    assert fit_correction(total, layers, 10 - total, overhead_ms=OVERHEAD).scale > 0


def test_the_baseline_is_a_line() -> None:
    macs = np.linspace(1e6, 9e6, 7)
    assert fit_baseline(macs, 0.3 + 2e-7 * macs) == pytest.approx((0.3, 2e-7))
    assert fit_baseline(macs[:1], 2e-7 * macs[:1]) == pytest.approx((0, 2e-7))


def test_errors_have_known_answers() -> None:
    found = errors(np.array([1.04, 1.8, 3.0, 4.8]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.median == pytest.approx(0.07)
    assert found.mean == pytest.approx(0.085)
    assert found.bias == pytest.approx(0.035)
    assert (found.within_5_percent, found.spearman) == (0.5, pytest.approx(1.0))
    assert errors(np.ones(2), np.array([1.0, 2.0])).spearman is None


def test_json_round_trip_and_refusal() -> None:
    found = errors(np.array([1.0, 2.0, 3.1]), np.array([1.0, 2.0, 3.0]))
    quality = Quality(3, 16, found, found, dataclasses.replace(found, spearman=None), found)
    assert Quality.from_dict(quality.to_dict()) == quality
    correction = Correction("scale", 0.1, 1.0, 0.0)
    assert Correction.from_dict(correction.to_dict()) == correction
    for bad in ({"scale": math.nan}, {"form": 3}, {"offset_ms": None}, {"more": 1.0}):
        with pytest.raises(ValueError):
            Correction.from_dict(correction.to_dict() | bad)
    with pytest.raises(ValueError):
        Quality.from_dict(quality.to_dict() | {"networks": 0})
    with pytest.raises(ValueError):
        Errors.from_dict(dataclasses.asdict(found) | {"median": "x"})
