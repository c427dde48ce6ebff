"""Profiles of a device whose times are known: estimates equal the truth, and nothing measured is lost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import search_spaces
from latency_tables import Amount, Candidate, LatencyTable, Measurement, Plan, Quality, measure, open_device, profile
from latency_tables.entries import CHAIN, Entry
from latency_tables.stopwatch import Failure
from search_spaces import SearchSpace, UserError
from search_spaces.layers import Conv, GlobalPool, Layer, Linear, parse_layer
from search_spaces.progress import SILENT, Progress
from search_spaces.space import Position
from tests.latency_tables.clock import FakeClock

# ---- a device whose times are known -----------------------------------------------------------------------

OVERHEAD_NS = 4000
FAST = Plan(rounds=3, least=3, sample_ms=0.02)


def layer_ns(layer: Layer) -> int:
    """Time of a layer in a network: whole nanoseconds, even, so that a chain's difference is exact."""
    return 2000 + 2 * (layer.macs // 2000) + 20 * layer.out_shape[0]


@dataclass
class FakeRunner:
    clock: FakeClock
    ns: float
    busy: float

    def run(self) -> None:
        self.clock.wall += self.ns * self.busy
        self.clock.cpu += self.ns

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return images


@dataclass
class FakeDevice:
    """Times are analytic: a call, then per layer `layer_ns`; ``whole`` plants what layers alone do not show."""

    clock: FakeClock = field(default_factory=FakeClock)
    whole: Callable[[float, int], float] = lambda total, count: total
    busy: float = 1.0
    speed: float = 1.0
    fail_on: str | None = None
    interrupt_after: int | None = None
    name: str = "fake"
    threads: int = 1
    batch: int = 1
    precision: str = "fp32"
    loads: list[str] = field(default_factory=list)

    def fingerprint(self) -> dict[str, Any]:
        return {"processor": "none", "threads": self.threads, "batch": self.batch, "precision": self.precision}

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        loaders = [lambda candidate=c: self.load(candidate.model()).run for c in candidates]
        return measure(loaders, rng=rng, plan=plan, clock=self.clock, progress=progress)

    def energy(self, model: onnx.ModelProto | bytes, run_ms: float) -> None:
        """Nothing counts it."""

    def load(self, model: onnx.ModelProto | bytes) -> FakeRunner:
        assert isinstance(model, onnx.ModelProto)
        text = next((p.value for p in model.metadata_props if p.key == "layers"), "")
        layers = [parse_layer(key) for key in text.split("\n") if key]
        if self.interrupt_after is not None and len(self.loads) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.loads.append(text)
        if self.fail_on is not None and self.fail_on in text:
            raise RuntimeError("no such kernel")
        total = float(sum(map(layer_ns, layers)))
        if len(set(layers)) > 2:
            total = self.whole(total, len(layers))
        return FakeRunner(self.clock, self.speed * (OVERHEAD_NS + total), self.busy)


# ---- estimates --------------------------------------------------------------------------------------------

SPACE = search_spaces.build("small-mobilenet", width=0.5, resolution=[16, 20]).restrict(expand=[2, 6], depth=[1, 3])
TINY = SPACE.restrict(kernel=[3], depth=[1]).restrict({"expand[9]": [2]})


def run(device: FakeDevice, space: SearchSpace = SPACE, **options: object) -> LatencyTable:
    given = {"amount": Amount(10, 6), "plan": FAST} | options
    return profile(space, device, **given)  # type: ignore[arg-type]


def truth(device: FakeDevice, space: SearchSpace, archs: list[search_spaces.Architecture]) -> np.ndarray:
    lowered = [space.lower(arch) for arch in archs]
    return np.array([OVERHEAD_NS + device.whole(sum(map(layer_ns, layers)), len(layers)) for layers in lowered]) * 1e-6


def test_estimates_equal_the_truth_of_an_additive_device() -> None:
    device = FakeDevice()
    table = run(device)
    archs = SPACE.sample(50, seed=1)
    assert table.estimate(archs) == pytest.approx(truth(device, SPACE, archs), rel=1e-9)
    assert table.estimate(archs, corrected=False) == pytest.approx(truth(device, SPACE, archs), rel=1e-9)
    assert table.estimate(archs[0]) == pytest.approx(truth(device, SPACE, archs)[0])
    assert table.correction is not None
    assert table.correction.form == "none"
    assert table.quality is not None
    assert table.quality.networks == 6
    assert table.quality.fitted_on == 10
    assert table.quality.corrected.median == pytest.approx(0, abs=1e-9)
    assert table.quality.corrected.spearman == pytest.approx(1)
    assert table.quality.noise.mean == pytest.approx(0, abs=1e-9)
    assert table.quality.baseline.median > 0


@pytest.mark.parametrize(
    ("whole", "form"),
    [
        (lambda total, count: 1.2 * total, "scale"),
        (lambda total, count: 1.2 * total + 9000, "scale+offset"),
        (lambda total, count: 0.9 * total + 9000 + 700 * count, "scale+offset+per_layer"),
    ],
)
def test_what_only_whole_networks_show_is_recovered(whole: object, form: str) -> None:
    device = FakeDevice(whole=whole)  # type: ignore[arg-type]
    table = run(device)
    archs = SPACE.sample(50, seed=2)
    assert table.correction is not None
    assert table.correction.form == form
    assert table.estimate(archs) == pytest.approx(truth(device, SPACE, archs), rel=1e-4)  # the clock shows whole nanoseconds


def test_the_fast_path_equals_the_sum_over_the_lowered_layers() -> None:
    device = FakeDevice(whole=lambda total, count: 0.9 * total + 9000 + 700 * count)
    table = run(device)
    correction = table.correction
    assert correction is not None
    for arch in SPACE.sample(20, seed=3):
        layers = SPACE.lower(arch)
        slow = correction.offset_ms + sum(
            correction.scale * table.layer_ms(layer) + correction.per_layer_ms for layer in layers
        )
        assert table.estimate(arch) == pytest.approx(slow, rel=1e-12)
        frame = table.breakdown(arch)
        assert frame["ms"].sum() == pytest.approx(slow)
        assert frame["share"].sum() == pytest.approx(1)
        assert list(frame["layer"])[:-1] == [layer.key for layer in layers]


def test_the_extremes_over_a_space_equal_brute_force() -> None:
    table = run(FakeDevice(whole=lambda total, count: 1.1 * total + 500 * count)).bind(TINY)
    options = np.stack(np.meshgrid(*[np.arange(n) for n in TINY.lengths], indexing="ij"), -1).reshape(-1, len(TINY.genes))
    rows = TINY.canonical(options.astype(np.int64))
    estimates = table.estimate(rows)
    assert len(TINY.unique(rows)) == TINY.count()
    for (value, arch), known in ((table.fastest(), estimates.min()), (table.slowest(), estimates.max())):
        assert value == pytest.approx(known)
        assert table.estimate(arch) == pytest.approx(known)


def test_a_space_with_few_networks_still_gets_a_table() -> None:
    few = TINY.restrict(expand=[2])
    assert few.count() == 2
    table = run(FakeDevice(), few)
    assert len(table.networks) == 2
    assert table.quality is None
    assert table.estimate(few.smallest) == pytest.approx(truth(FakeDevice(), few, [few.smallest])[0])


def test_networks_are_distinct_and_hold_the_extremes() -> None:
    table = run(FakeDevice())
    archs = [SPACE.architecture(**network.choices) for network in table.networks]
    assert len({arch.id for arch in archs}) == 16
    fitted = {arch.id for arch, network in zip(archs, table.networks, strict=True) if not network.held_out}
    assert {table.fastest()[1].id, table.slowest()[1].id} <= fitted


# ---- clocks -------------------------------------------------------------------------------------------------


def test_a_busy_machine_is_read_off_the_cpu_clock() -> None:
    archs = SPACE.sample(5, seed=1)
    busy = FakeDevice(busy=1.6)
    table = run(busy)
    assert table.clock == "cpu"
    assert table.conditions["wall_by_cpu"] == pytest.approx(1.6, rel=1e-4)  # the clock shows whole nanoseconds
    assert table.estimate(archs) == pytest.approx(truth(busy, SPACE, archs), rel=1e-6)
    assert run(FakeDevice(busy=1.02)).clock == "wall"
    assert run(FakeDevice(busy=1.6, threads=2)).clock == "wall"  # a thread's CPU time says nothing about its helpers


def test_a_table_of_another_occasion_follows_the_devices_level(tmp_path: Path) -> None:
    path, archs = tmp_path / "t.json", SPACE.sample(20, seed=1)
    before = run(FakeDevice(), out=path, now=lambda: 0.0).estimate(archs)
    slower = FakeDevice(speed=1.09)
    same = run(slower, out=path, now=lambda: 3599.0)
    assert not slower.loads
    assert same.estimate(archs) == pytest.approx(before, rel=1e-12)
    table = run(slower, out=path, now=lambda: 3600.0)
    assert table.anchor is not None
    assert table.anchor.factor == pytest.approx(1.09, rel=1e-4)
    assert table.estimate(archs) == pytest.approx(1.09 * before, rel=1e-4)
    assert LatencyTable.load(path) == table
    loads = len(slower.loads)
    assert run(slower, out=path, now=lambda: 7000.0) == table
    assert len(slower.loads) == loads
    assert run(FakeDevice(), out=path, now=lambda: 7200.0).anchor is None


def test_layers_measured_at_another_level_are_brought_to_the_tables(tmp_path: Path) -> None:
    path, archs = tmp_path / "t.json", SPACE.sample(20, seed=1)
    with pytest.raises(KeyboardInterrupt):
        run(FakeDevice(speed=1.3, interrupt_after=70), out=path)
    assert len(LatencyTable.load(path).levels) == 1
    device = FakeDevice()
    table = run(device, out=path)
    assert table.drift == pytest.approx(0.3, rel=1e-3)
    assert any("moved by 30%" in line for line in table.warnings())
    assert table.estimate(archs) == pytest.approx(truth(device, SPACE, archs), rel=0.03)  # the empty network's is as it was


@dataclass
class DriftingRunner(FakeRunner):
    """Ever slower: by half while a table is measured."""

    def run(self) -> None:
        spent = self.ns * (1 + self.clock.wall / 1e8)
        self.clock.wall += spent
        self.clock.cpu += spent


@dataclass
class DriftingDevice(FakeDevice):
    def load(self, model: onnx.ModelProto | bytes) -> FakeRunner:
        return DriftingRunner(**vars(super().load(model)))


@dataclass
class SwingingDevice(FakeDevice):
    """Every call of `time` meets another level of the machine."""

    levels: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def time(self, *given: Any, **named: Any) -> list[Measurement | Failure]:
        self.speed = float(self.levels.uniform(1, 1.5))
        return super().time(*given, **named)


def test_a_level_that_swings_from_chunk_to_chunk_does_not_show_in_the_table() -> None:
    table = run(SwingingDevice(), amount=Amount(20, 20))
    archs = SPACE.sample(30, seed=1)
    found = table.estimate(archs) / truth(FakeDevice(), SPACE, archs)
    assert found.std() / found.mean() < 0.01
    assert table.quality is not None
    assert table.quality.noise.median < 1e-3 < table.drift


def test_a_device_that_drifts_throughout_is_reported_and_its_table_is_right_all_the_same() -> None:
    device = DriftingDevice()
    table = run(device)
    assert table.drift > 0.1
    assert any("level moved by" in line and "nas profile --force" in line for line in table.warnings())
    archs = SPACE.sample(30, seed=1)
    found = table.estimate(archs) / truth(FakeDevice(), SPACE, archs)
    assert found.std() / found.mean() < 0.02  # of one level, whichever
    assert table.quality is not None
    assert table.quality.corrected.median < 0.02


def test_sizes_between_measured_ones_are_interpolated_and_the_error_is_said(tmp_path: Path) -> None:
    space = search_spaces.build("small-mobilenet", width=0.5, resolution=[16, 20, 24, 28, 32]).restrict(expand=[2], depth=[1])
    device = FakeDevice()
    table = run(device, space, amount=Amount(10, 6, resolutions=3), out=tmp_path / "t.json")
    measured = {layer.key for layer in space.restrict(resolution=[16, 24, 32]).layers()}
    assert set(table.entries) == measured
    assert table.interpolated == {layer.key for layer in space.layers()} - measured
    archs = space.sample(30, seed=0)
    assert table.estimate(archs) == pytest.approx(truth(device, space, archs), rel=0.03)  # maps have odd sizes in between
    assert 0 <= table.conditions["interpolation_error"] < 0.03
    assert LatencyTable.load(tmp_path / "t.json") == table


@pytest.mark.parametrize("resolutions", [0, 1])
def test_too_few_sizes_to_interpolate_are_refused(resolutions: int) -> None:
    with pytest.raises(UserError, match="measured resolutions"):
        run(FakeDevice(), amount=Amount(10, 6, resolutions=resolutions))


# ---- files --------------------------------------------------------------------------------------------------


def test_the_file_gives_the_table_back(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "fake.json"
    table = run(FakeDevice(whole=lambda total, count: 1.2 * total), out=path)
    assert LatencyTable.load(path) == table
    device = FakeDevice(whole=lambda total, count: 1.2 * total)
    again = run(device, out=path, now=lambda: time.time() + 7200)
    assert again == table
    assert len(device.loads) == 8  # whole networks, to tell the level; no layer


@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 0.95])
def test_an_interrupted_profile_resumes_and_ends_equal(tmp_path: Path, share: float) -> None:
    path = tmp_path / "fake.json"
    device = FakeDevice()
    whole = run(device, out=tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        run(FakeDevice(interrupt_after=int(share * len(device.loads))), out=path)
    kept = LatencyTable.load(path).entries if path.exists() else {}
    assert (len(kept) > 0) == (share > 0)
    device = FakeDevice()
    again = run(device, out=path)
    assert not set(device.loads) & set(kept)
    # Chunks are cut anew, so that layers may stand beside another reference; all else is the same.
    assert {key: (e.alone, e.chain) for key, e in again.entries.items()} == {
        key: (e.alone, e.chain) for key, e in whole.entries.items()
    }
    assert (again.networks, again.correction, again.quality) == (whole.networks, whole.correction, whole.quality)
    assert LatencyTable.load(path) == again


def test_an_unfinished_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(FakeDevice(interrupt_after=100), out=tmp_path / "t.json")
    with pytest.raises(UserError, match="unfinished"):
        LatencyTable.load(tmp_path / "t.json").estimate(SPACE.smallest)


def test_more_options_measure_only_the_new_layers(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    part = SPACE.restrict(resolution=[16])
    first = run(FakeDevice(), part, out=path)
    device = FakeDevice()
    full = run(device, SPACE, out=path)
    assert not set(device.loads) & set(first.entries)
    assert set(full.entries) == {layer.key for layer in SPACE.layers()}
    before = path.read_bytes()
    device = FakeDevice()
    assert run(device, part, out=path).space == part  # a restriction is served from the file, which stays as it is
    assert not device.loads
    assert path.read_bytes() == before


def test_the_table_of_ones_own_space_is_known_again(tmp_path: Path) -> None:
    def own(classes: int) -> SearchSpace:
        return SearchSpace(
            {"width": [8, 12, 16], "kernel": [3, 5]},
            name="own",
            parameters={"classes": classes},
            positions=[
                Position("first", ("width", "kernel"), lambda width, kernel: Conv(8, 3, width, kernel, 1, "relu")),
                Position("pool", ("width",), lambda width: GlobalPool(8, width)),
                Position("classifier", ("width",), lambda width: Linear(1, width, classes)),
            ],
            unkeyed=("classes",),
        )

    out, device = tmp_path / "own.json", FakeDevice()
    first = run(device, own(5), out=out)
    loaded = len(device.loads)
    again = run(device, own(5), out=out, now=lambda: first.level_at)
    assert len(device.loads) == loaded
    assert again.estimate(own(5).sample(6)) == pytest.approx(first.estimate(own(5).sample(6)))


def test_other_conditions_are_refused_by_name_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    run(FakeDevice(), out=path)
    before = path.read_bytes()
    others = {"batch": FakeDevice(batch=8), "precision": FakeDevice(precision="int8"), "device": FakeDevice(name="other")}
    for name, device in others.items():
        with pytest.raises(UserError, match=name):
            run(device, out=path)
    with pytest.raises(UserError, match=r"width=1\.0"):
        run(FakeDevice(), search_spaces.build("small-mobilenet"), out=path)
    assert path.read_bytes() == before
    assert run(FakeDevice(batch=8), out=path, force=True).fingerprint["batch"] == 8


@pytest.mark.parametrize("version", [1, 2])
def test_a_table_of_an_older_format_is_read_and_estimates_the_same(tmp_path: Path, version: int) -> None:
    path = tmp_path / "t.json"
    table = run(FakeDevice(whole=lambda total, count: 1.2 * total), TINY, out=path)
    value = json.loads(path.read_text())

    def older(part: Any) -> Any:
        if isinstance(part, list):
            return [older(item) for item in part]
        if not isinstance(part, dict):
            return part
        new = ["calm_ms", "calm_error", "cpu_calm_ms", "cpu_calm_error", "chunks"]
        if version == 1:
            new += ["p95_ms", "low_ms", "high_ms", "level", "levels", "interpolated", "anchor", "residual", "learnt"]
        kept = {name: older(item) for name, item in part.items() if name not in new}
        if "scale" in kept:
            kept["scale"] *= 1.1  # it was fitted to medians
        return kept

    path.write_text(json.dumps(older(value) | {"version": version}))
    old = LatencyTable.load(path)
    archs = TINY.sample(10, seed=0)
    assert old.estimate(archs) == pytest.approx(table.estimate(archs))
    old.save(path)
    assert LatencyTable.load(path) == old
    assert run(FakeDevice(whole=lambda total, count: 1.2 * total), TINY, out=path).estimate(archs) == pytest.approx(
        table.estimate(archs)
    )


@pytest.mark.parametrize("where", ["median_ms", "key", "clock", "networks", "correction"])
def test_a_damaged_table_is_refused(tmp_path: Path, where: str) -> None:
    path = tmp_path / "t.json"
    run(FakeDevice(), TINY, out=path)
    value = json.loads(path.read_text())
    key = next(iter(value["entries"]))
    if where == "median_ms":
        value["entries"][key]["alone"]["median_ms"] = -1.0
    elif where == "key":
        value["entries"]["conv(size=1)"] = value["entries"].pop(key)
    elif where == "clock":
        value["conditions"]["clock"] = "sun"
    elif where == "networks":
        value["networks"][0] = 3
    else:
        value["correction"]["scale"] = None
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="damaged"):
        LatencyTable.load(path)


# ---- failures -----------------------------------------------------------------------------------------------


def test_a_layer_that_crashes_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    bad = SPACE.layers()[5].key
    with pytest.raises(UserError) as caught:
        run(FakeDevice(fail_on=bad), out=path)
    assert bad in str(caught.value)
    assert "no such kernel" in str(caught.value)
    kept = LatencyTable.load(path)
    assert set(kept.entries) == {layer.key for layer in SPACE.layers()} - {bad}
    device = FakeDevice()
    assert run(device, out=path).estimate(SPACE.smallest) > 0
    assert bad in device.loads


def test_a_missing_layer_is_named() -> None:
    table = run(FakeDevice(), TINY)
    layer = next(layer for layer in SPACE.layers() if layer.key not in table.entries)
    with pytest.raises(UserError, match="nas profile") as caught:
        table.layer_ms(layer)
    assert layer.key in str(caught.value)
    with pytest.raises(UserError, match="is not in the latency table"):
        table.cost(SPACE)


def test_no_layer_is_free_however_noise_falls() -> None:
    timing = run(FakeDevice()).overhead
    slower = replace(timing, calm_ms=timing.calm_ms * 2)
    assert Entry(timing, timing).layer_ms(2 * timing.calm_ms, "wall") > 0
    assert Entry(timing, slower).layer_ms(0, "wall") == pytest.approx(timing.calm_ms / (CHAIN - 1))


# ---- the real runtime ---------------------------------------------------------------------------------------


def test_a_real_device_gives_a_whole_table(tmp_path: Path) -> None:
    space = TINY.restrict(resolution=[16])
    device, out = open_device("onnxruntime-cpu"), tmp_path / "t.json"
    table = profile(space, device, amount=Amount(4, 3), plan=Plan(rounds=3, least=3, sample_ms=0.05), out=out)
    assert all(math.isfinite(ms) and ms > 0 for ms in (table.layer_ms(parse_layer(key)) for key in table.entries))
    assert isinstance(table.quality, Quality)
    assert LatencyTable.load(out) == table


class Counter:
    def __init__(self) -> None:
        self.stretches: list[list[int]] = []
        self.stopped = 0

    def start(self, label: str, total: int) -> None:
        self.stretches.append([total, 0])

    def advance(self, n: int = 1) -> None:
        if self.stretches:  # the empty network is timed before the first stretch
            self.stretches[-1][1] += n

    def stop(self) -> None:
        self.stopped += 1


def test_progress_adds_up_and_always_stops() -> None:
    counter = Counter()
    run(FakeDevice(), progress=counter)
    assert all(total == done for total, done in counter.stretches)
    assert counter.stopped == len(counter.stretches) == 2
    counter = Counter()
    with pytest.raises(KeyboardInterrupt):
        run(FakeDevice(interrupt_after=50), progress=counter)
    assert counter.stopped == len(counter.stretches) == 1
