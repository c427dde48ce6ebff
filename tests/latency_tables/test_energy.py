"""Energy: counting it, the model of a network's energy, and tables that carry it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nas
import search_spaces
from latency_tables import LatencyTable, build_onnx, open_device
from latency_tables import device as devices
from latency_tables.energy import Meter, count_energy, fit_energy
from search_spaces import UserError

SPACE = search_spaces.build("small-mobilenet", width=0.5, resolution=[16, 20]).restrict(expand=[2, 6], depth=[1, 3])


class Counting:
    """A counter that moves by so much with every run."""

    def __init__(self, joules: float) -> None:
        self.joules, self.total, self.runs = joules, 0.0, 0

    def run(self) -> None:
        self.total, self.runs = self.total + self.joules, self.runs + 1

    @property
    def meter(self) -> Meter:
        return Meter("made up", lambda: self.total)


@pytest.fixture(scope="module")
def simulated() -> LatencyTable:
    return nas.profile(SPACE, device="simulated", networks=12, held_out=10)


def test_a_second_of_runs_is_counted() -> None:
    counting = Counting(0.25)
    assert count_energy(counting.run, 10.0, counting.meter).joules == pytest.approx(0.25)
    assert counting.runs == 1 + 100  # the first one is not counted
    count_energy(counting.run, 5000.0, counting.meter)
    assert counting.runs == 101 + 1 + 1  # one run at least


def test_energy_of_runs_that_only_begin_is_counted_to_their_end() -> None:
    counting, queued = Counting(0.25), list[int]()

    def wait() -> None:
        while queued:
            queued.pop()
            counting.run()

    found = count_energy(lambda: queued.append(1), 10.0, counting.meter, wait=wait)
    assert found.joules == pytest.approx(0.25)


@pytest.mark.parametrize("planted", [(2.0, 1e-11, 3e-5), (0.0, 2e-11, 0.0), (5.0, 0.0, 1e-4)])
def test_planted_terms_come_back(planted: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    ms, macs = rng.uniform(0.1, 5.0, 30), rng.uniform(1e6, 3e8, 30)
    watts, per_mac, constant = planted
    counted = np.repeat((watts * 1e-3 * ms + per_mac * macs + constant)[:, None], 2, axis=1)
    counted[:, 1] *= 1.0 + 1e-9
    held = np.arange(30) % 3 == 0
    model = fit_energy(ms, macs, counted, held, "made up")
    assert model is not None
    assert (model.watts, model.joules_per_mac, model.joules) == pytest.approx(planted, rel=1e-5, abs=1e-15)
    assert model(ms, macs) == pytest.approx(counted.mean(axis=1))
    assert (model.fitted_on, model.networks) == (20, 10)
    assert model.error < 1e-6
    assert model.spearman == pytest.approx(1.0)
    assert model.noise == pytest.approx(1e-9, rel=1e-3)
    swapped = fit_energy(ms, macs, counted[::-1], held, "made up")  # nothing fits: no term turns negative all the same
    assert swapped is not None
    assert min(swapped.watts, swapped.joules_per_mac, swapped.joules) >= 0
    assert fit_energy(ms[:3], macs[:3], counted[:3], held[:3], "made up") is None


def test_a_simulated_profile_tells_energy(simulated: LatencyTable, tmp_path: Path) -> None:
    model = simulated.energy
    assert model is not None
    assert (model.counter, model.fitted_on, model.networks) == ("simulated", 12, 10)
    assert model.error < 0.05
    assert model.noise == 0.0
    rows = SPACE.sample_rows(50, np.random.default_rng(1))
    cost = simulated.energy_cost()
    assert cost is not None
    assert cost(rows) == pytest.approx(model(simulated.estimate(rows), SPACE.macs(rows).astype(float)))
    device = open_device("simulated")
    for arch in SPACE.from_array(rows[:5]):
        counted = device.energy(build_onnx(SPACE.lower(arch)), 1.0)
        assert counted is not None
        assert float(cost(SPACE.to_array(arch))[0]) == pytest.approx(counted.joules, rel=0.15)
    simulated.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == simulated
    other = search_spaces.build("small-mobilenet", width=1.0, resolution=[16, 20])
    assert simulated.bind(other).energy is None
    assert simulated.bind(SPACE.restrict(resolution=[16])).energy == model


def test_batches_cost_their_work(simulated: LatencyTable) -> None:
    eight = nas.profile(SPACE, device="simulated:batch=8", networks=12, held_out=10)
    assert eight.energy is not None
    assert eight.energy.error < 0.05
    one, many = simulated.energy_cost(), eight.energy_cost()
    assert one is not None
    assert many is not None
    row = SPACE.to_array(SPACE.largest)
    assert 4 < float(many(row)[0] / one(row)[0]) <= 8.5


def test_a_counter_of_this_machine_is_read_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device, model = open_device("onnxruntime-cpu"), build_onnx(SPACE.lower(SPACE.smallest))
    monkeypatch.setattr(devices, "energy_meter", lambda gpu: None)
    assert device.energy(model, 1e3) is None
    total = iter(np.arange(0.0, 100.0, 0.5))
    monkeypatch.setattr(devices, "energy_meter", lambda gpu: None if gpu else Meter("made up", lambda: float(next(total))))
    assert device.energy(model, 500.0) == devices.Energy(0.25, "made up")  # two runs between two readings


def test_a_counter_that_stands_still_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "energy_meter", lambda gpu: Meter("made up", lambda: 1.0))
    table = nas.profile(SPACE.restrict(expand=[2], kernel=[3]), device="onnxruntime-cpu", networks=4, held_out=3)
    assert table.energy is None
    assert all(network.joules is None for network in table.networks)


@pytest.mark.parametrize("damage", [{"watts": -1.0}, {"joules": float("inf")}, {"error": float("nan")}, {"fitted_on": "x"}])
def test_damaged_models_are_refused(simulated: LatencyTable, tmp_path: Path, damage: dict[str, object]) -> None:
    path = tmp_path / "t.json"
    simulated.save(path)
    value = json.loads(path.read_text())
    value["energy"] |= damage
    path.write_text(json.dumps(value))
    with pytest.raises(UserError):
        LatencyTable.load(path)


def test_the_level_of_today_moves_times_and_not_energy(simulated: LatencyTable) -> None:
    from latency_tables.entries import Anchor

    slower = replace(simulated, anchor=Anchor(1.5, 0.01, 8))
    rows = SPACE.sample_rows(5, np.random.default_rng(2))
    then, now = simulated.energy_cost(), slower.energy_cost()
    assert then is not None
    assert now is not None
    assert now(rows) == pytest.approx(then(rows))
    assert slower.estimate(rows) == pytest.approx(1.5 * simulated.estimate(rows))
