"""The correction recovers what was planted."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from latency_tables.correction import FEATURES, Correction, Errors, Quality, errors, fit_baseline, fit_correction, fit_learnt

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


# ---- a residual on features, and features alone ---------------------------------------------------------------


def with_features(n: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    total, layers = networks(n)
    rng = np.random.default_rng(2)
    parts = rng.uniform(0, 5, (n, len(FEATURES)))
    parts[:, 0] = layers
    return total, layers, parts


def test_what_features_add_is_found_and_only_where_it_is_there() -> None:
    total, layers, parts = with_features()
    measured = 0.3 + 1.1 * total + 0.25 * parts[:, 2] + 0.1 * parts[:, 4]
    found = fit_correction(total, layers, measured, overhead_ms=OVERHEAD, features=parts)
    assert found.form == "scale+offset+residual"
    assert found(total, layers, parts) == pytest.approx(measured, rel=0.01)
    plain = fit_correction(total, layers, 0.3 + 1.1 * total, overhead_ms=OVERHEAD, features=parts)
    assert plain.form == "scale+offset"
    assert not plain.residual


def test_features_alone_win_where_layers_tell_nothing() -> None:
    total, layers, parts = with_features(32)
    measured = 1 + 0.5 * parts[:, 1] + 0.2 * parts[:, 5]
    found = fit_correction(total, layers, measured, overhead_ms=OVERHEAD, features=parts)
    assert found.form == "features"
    assert found.scale == 0
    assert found(total, layers, parts) == pytest.approx(measured, rel=0.02)
    assert fit_learnt(parts[:5], measured[:5]) is None  # too few to tell


def test_an_unsound_form_never_wins() -> None:
    total, layers, parts = with_features()
    measured = 0.3 + 1.1 * total + 0.25 * parts[:, 2]
    found = fit_correction(
        total, layers, measured, overhead_ms=OVERHEAD, features=parts, sound=lambda correction: not correction.residual
    )
    assert not found.residual


def test_corrections_with_and_without_a_residual_come_back_from_json() -> None:
    full = Correction("scale+offset+residual", 0.1, 1.0, 0.0, {"macs": 0.5})
    assert Correction.from_dict(full.to_dict()) == full
    old = {"form": "scale", "offset_ms": 0.1, "scale": 1.0, "per_layer_ms": 0.0}
    assert Correction.from_dict(old) == Correction("scale", 0.1, 1.0, 0.0)
    assert full.times(2.0) == Correction("scale+offset+residual", 0.2, 2.0, 0.0, {"macs": 1.0})
    for residual in ({"unknown": 1.0}, {"macs": math.nan}, 3):
        with pytest.raises(ValueError):
            Correction.from_dict(full.to_dict() | {"residual": residual})
    with pytest.raises(ValueError, match="features"):
        full(np.ones(2), np.ones(2))
