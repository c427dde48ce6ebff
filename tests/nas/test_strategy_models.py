"""The default strategy's models of measured quantities."""

from __future__ import annotations

import numpy as np

from nas.strategies.models import Broken, Model
from nas.strategies.surrogate import Surrogate
from nas.strategies.task import Quantity, Task
from search_spaces import SearchSpace

SPACE = SearchSpace({f"op_{i}": ["none", "skip", "conv", "pool"] for i in range(6)}, name="cells")


def accuracies(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy in %, and which networks are broken: both of the first two operations are missing."""
    broken = (rows[:, :2] == 0).all(axis=1)
    working = 70.0 + 4.0 * (rows == 2).sum(axis=1) - 2.0 * (rows == 0).sum(axis=1)
    return np.where(broken, 0.0, working), broken


def test_broken_networks_are_told_apart_and_cost_the_others_no_precision() -> None:
    rng = np.random.default_rng(0)
    rows, new = np.split(SPACE.sample_rows(400, rng), [150])
    truth, broken = accuracies(new)
    model = Model.fit(SPACE, rows, -accuracies(rows)[0])
    assert model.broken is not None
    assert model.broken.value == 0.0
    mean = -model.mean(new)
    assert np.abs(mean[~broken] - truth[~broken]).max() < 2.0
    assert (mean[broken] == 0.0).mean() > 0.9
    draws = -model.sample(new, 16, rng)
    assert (draws[:, broken] == 0.0).mean() > 0.9
    assert (draws[:, ~broken] > 0.0).mean() > 0.99
    assert (model.optimistic(new, 1.0) <= model.mean(new) + 1e-9).all()


def test_costs_over_several_orders_of_magnitude_are_not_broken() -> None:
    assert not (np.geomspace(1.0, 1000.0, 50) > Broken.bound(np.geomspace(1.0, 1000.0, 50))).any()
    assert Broken.bound(np.array([2.0, 2.0, 2.0, 9.0])) == np.inf  # half of all as good as the best: no measure of bad


def test_latency_is_learnt_from_networks_that_work() -> None:
    """Broken networks with latencies of their own do not disturb the model of the others' latency."""
    accuracy = Quantity("accuracy", maximise=True, objective=True)
    latency = Quantity("latency", maximise=False, objective=True)
    strategy = Surrogate(Task(SPACE, (accuracy, latency), 200, 10, 0))
    rows = SPACE.sample_rows(200, np.random.default_rng(0))
    values, broken = accuracies(rows)
    times = np.where(broken, 50.0, 5.0 + rows.sum(axis=1))
    strategy.tell(rows, np.column_stack([-values, times]))
    models = strategy._fit()
    unseen = SPACE.sample_rows(300, np.random.default_rng(1))
    unseen = unseen[~accuracies(unseen)[1]]
    assert np.abs(models[1].mean(unseen) - 5.0 - unseen.sum(axis=1)).max() < 0.5
    assert models[0].broken is not None
