"""The process over architectures: gradients, fast paths and closed forms against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from predictors.gaussian_process import FARTHEST, ArchitectureProcess, square_root
from search_spaces import Choice, SearchSpace

SPACE = SearchSpace(
    {
        "depth": Choice((1, 2)),
        "kernel": Choice((3, 5, 7), 3, (None, ("depth", (2,)), ("depth", (2,)))),
        "op": Choice(("none", "skip", "conv"), 2),
    },
    name="mixed",
)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = SPACE.all_rows()
    rows = rows[rng.permutation(len(rows))[:60]]
    return rows, np.sin(rows.sum(axis=1)) + rows[:, 1] * rows[:, 4] + 0.01 * rng.normal(size=60)


@pytest.fixture(scope="module")
def process(data: tuple[np.ndarray, np.ndarray]) -> ArchitectureProcess:
    return ArchitectureProcess(SPACE).fit(data[0][:40], data[1][:40])


def test_the_gradient_of_the_loss_is_that_of_finite_differences(
    process: ArchitectureProcess, data: tuple[np.ndarray, np.ndarray]
) -> None:
    sample, target = process.kernel.sample(data[0][:30]), (data[1][:30] - data[1][:30].mean()) / data[1][:30].std()
    prior = process._prior(sample)
    at = prior.flat() + 0.3 * np.random.default_rng(1).normal(size=len(prior.flat()))
    value, gradient = process._loss(prior.like(at), sample, target, prior)
    assert np.isfinite(value)
    slow = approx_fprime(at, lambda flat: process._loss(prior.like(flat), sample, target, prior)[0], 1e-6)
    np.testing.assert_allclose(gradient, slow, rtol=1e-3, atol=1e-3)


def test_distances_are_sums_over_the_genes(process: ArchitectureProcess, data: tuple[np.ndarray, np.ndarray]) -> None:
    kernel, rows = process.kernel, data[0][:9]
    weights = np.random.default_rng(0).random(len(kernel.terms))
    states = kernel.states(rows)
    slow = sum(
        weight * term.distance[np.ix_(states[:, term.gene], states[:, term.gene])]
        for weight, term in zip(weights, kernel.terms, strict=True)
    )
    np.testing.assert_allclose(kernel.reach(rows, weights) @ kernel.one_hot(rows).T, slow, atol=1e-12)
    few = kernel.sample(rows)
    assert few.hot.shape[1] < kernel.one_hot(rows).shape[1]  # only the states that occur
    np.testing.assert_allclose(few.distances(weights), slow, atol=1e-12)


def test_genes_with_thousands_of_options_take_no_tables_of_all_pairs() -> None:
    fine = SearchSpace({"rate": list(range(1500)), "op": ["a", "b", "c"]}, name="fine")
    rows = fine.to_array(fine.sample(80, seed=0))
    values = np.sin(rows[:, 0] / 300) + rows[:, 1]
    process = ArchitectureProcess(fine).fit(rows[:60], values[:60])
    assert np.sqrt(np.mean((process.mean(rows[60:]) - values[60:]) ** 2)) < 0.2 * values.std()


@pytest.mark.parametrize("far", [-FARTHEST, FARTHEST])
def test_the_loss_is_finite_wherever_weights_are_searched(
    process: ArchitectureProcess, data: tuple[np.ndarray, np.ndarray], far: float
) -> None:
    sample = process.kernel.sample(data[0][:40])
    prior = process._prior(sample)
    with np.errstate(over="raise", invalid="raise"):
        loss, gradient = process._loss(prior.like(prior.flat() + far), sample, data[1][:40], prior)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_the_mean_alone_is_that_of_the_prediction(process: ArchitectureProcess, data: tuple[np.ndarray, np.ndarray]) -> None:
    mean, std = process.predict(data[0])
    np.testing.assert_allclose(process.mean(data[0]), mean, rtol=1e-8)
    assert (process.predict(data[0], noise=False)[1] <= std).all()
    assert np.sqrt(np.mean((mean[40:] - data[1][40:]) ** 2)) < 0.7 * data[1].std()


def test_draws_have_the_mean_and_the_spread_of_the_prediction(
    process: ArchitectureProcess, data: tuple[np.ndarray, np.ndarray]
) -> None:
    draws = process.sample(data[0], 4000, np.random.default_rng(0))
    mean, std = process.predict(data[0], noise=False)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=5 * std.max() / np.sqrt(4000))
    np.testing.assert_allclose(draws.std(axis=0), std, atol=0.05 * std.max())


@pytest.mark.parametrize("least", [1e-3, 0.0, -1e-5])
def test_covariances_that_rounding_made_indefinite_have_a_root(least: float) -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    spread = np.append(rng.random(25), np.full(5, least))
    covariance = axes * spread @ axes.T
    root = square_root(covariance)
    np.testing.assert_allclose(root @ root.T, axes * np.maximum(spread, 0.0) @ axes.T, atol=2e-8)


def test_residuals_in_closed_form_are_those_of_fitting_without_the_part(
    process: ArchitectureProcess, data: tuple[np.ndarray, np.ndarray]
) -> None:
    part, rest = np.arange(8), np.arange(8, 40)
    fast = process.residuals([part, rest])[part]
    # The same scale, effects and weights, so that only the data differ.
    target = (data[1][rest] - process.center_) / process.scale_
    full = process._covariance(data[0][:40])
    inner = full[np.ix_(rest, rest)] + (np.exp(process.weights_.noise) + 1e-6) * np.eye(len(rest))
    slow = full[np.ix_(part, rest)] @ np.linalg.solve(inner, target) * process.scale_ + process.center_ - data[1][part]
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6)


def test_how_often_an_option_is_taken_carries_over_to_other_places() -> None:
    """A function of counts alone, neither a sum over genes nor over pairs of them."""
    cells = SearchSpace({f"op_{i}": ["none", "skip", "conv", "pool"] for i in range(6)}, name="cells")
    rows = cells.all_rows()
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:600]]
    values = np.sin(1.5 * (rows == 2).sum(axis=1)) + 0.5 * (rows == 0).sum(axis=1)
    process = ArchitectureProcess(cells).fit(rows[:60], values[:60])
    assert np.sqrt(np.mean((process.mean(rows[60:]) - values[60:]) ** 2)) < 0.25 * values.std()
