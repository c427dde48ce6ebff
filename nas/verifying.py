"""Verification: every exported network on images that nothing else has seen, and on the device's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latency_tables import Candidate, Device, LatencyTable, Measurement, Plan
from latency_tables.by_hand import replayed, timing_kit
from latency_tables.device import Options
from latency_tables.devices import parse_device
from latency_tables.kit import Kit, read_kit
from latency_tables.stopwatch import Failure, clock_of
from nas.api.defaults import DEFAULT_DEVICE
from nas.baselines import Baseline, read_baselines
from nas.exporting import Export, read_export
from nas.objectives import OF_DEVICES, Limit, kind_of
from nas.onnx_files import Signature, check_batch, outputs
from nas.pareto import ParetoFront, Point
from nas.quantising import read_quantised
from nas.runs import Run
from nas.tables import STORED
from nas.verification import Timed, Verification, Verified, excess_of, wilson_interval
from search_spaces.artifacts import file_hash
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from supernets import Examples, ImageData, Split

__all__ = ["next_command", "verification_kit", "verify_by_kit", "verify_run"]

ROUNDS = 40
SECONDS = 5.0  # at least: neighbours come and go within seconds


@dataclass(frozen=True)
class _Candidate:
    """An ONNX file to verify.

    Attributes:
        again: the command that makes the file anew.
        sha256: of the file.
        reason: why it cannot be tested on the images; it is timed only.
    """

    id: str
    path: Path
    resolution: int
    again: str
    sha256: str | None = None
    promised: dict[str, float] = field(default_factory=dict)
    finetuned: bool = False
    precision: str = "fp32"
    network: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class _Tested:
    """A candidate's time, which test images it gets right (None where it does not take them), and its energy, J."""

    candidate: _Candidate
    time: Measurement
    right: NDArray[np.bool_] | None
    joules: float | None = None


def verify_run(run: Run, device: Device, *, seed: int, progress: Progress) -> Verification:
    """Time all networks against each other on the device, and test them on the test images; writes ``verified.json``.

    Raises:
        UserError: a network of the front is not exported, or its file was changed; the device cannot run one.
    """
    front, own, everyone = _everyone(run, device.name)
    for candidate in everyone:
        check_batch(candidate.path, device.name, device.batch, again=candidate.again)
    tested = _tested(run, device, everyone, seed, progress)
    here = {name: bound for name, bound in front.limits.items() if name in own or kind_of(name) not in OF_DEVICES}
    limits = [Limit(own.get(name, name), bound) for name, bound in here.items()]
    result = _result(device, tested, limits)
    result.save(run.file("verified.json"))
    return result


def verification_kit(run: Run, folder: Path, *, device: str, on: str | None) -> Kit:
    """Write a kit that times everything that `verify_run` would: for a machine that nothing here can reach.

    Args:
        device: of the front, ``table://NAME``.
        on: what the kit runs on there, ``onnxruntime-cpu:threads=4``; None: with the options of the device's table.

    Raises:
        UserError: as `verify_run`; or a folder that is not empty.
    """
    kind, options = parse_device(on) if on is not None else (DEFAULT_DEVICE, _options_of(run, device))
    _, _, everyone = _everyone(run, device)
    for candidate in everyone:
        check_batch(candidate.path, device, options.batch, again=candidate.again)
    models = [Candidate(c.id, c.path.read_bytes) for c in everyone]
    about = {"device": device, "verifies": {c.id: c.sha256 for c in everyone}}
    return timing_kit(models, folder, kind=kind, options=options, plan=_plan(), about=about)


def _options_of(run: Run, device: str) -> Options:
    """Those that a device's table was measured with."""
    known = LatencyTable.load(run.table(device)).fingerprint
    return Options(**{field.name: known.get(field.name, field.default) for field in fields(Options)})


def verify_by_kit(
    run: Run, kit: Path, *, device: str | None, results: Path | None, seed: int, progress: Progress
) -> Verification:
    """`verify_run` with the times that a kit of `verification_kit` brought back; accuracies are taken here.

    Args:
        device: None: the one that the kit was made for.

    Raises:
        UserError: as `verify_run`; results that make no sense, or of another device or machine than its table; or files that
            were exported again since.
    """
    made = read_kit(kit)
    made_for = str(made.about.get("device"))
    if device not in (None, made_for):
        raise UserError(
            f"{kit} was made for {made_for}, not for {device}", allowed="The kit's own device", next_step="Leave --device out"
        )
    answers = replayed(made, results or kit / "results.json", made_for)
    _check_machine(run, answers, kit)
    _, _, everyone = _everyone(run, made_for)
    if made.about.get("verifies") != {c.id: c.sha256 for c in everyone}:
        raise UserError(
            f"{kit} does not hold what {run.path} has now",
            allowed="A kit of the exported files as they are, of INT8 twins and files of nas compare, too",
            next_step=f"Make it anew: nas kit make {run.path} --exports --out FOLDER, and run it there",
        )
    return verify_run(run, answers, seed=seed, progress=progress)


def _check_machine(run: Run, answers: Device, kit: Path) -> None:
    """Refuse times of another machine, or under other conditions, than those that the promises come from."""
    known, found = LatencyTable.load(run.table(answers.name)).fingerprint, answers.fingerprint()
    for name in known.keys() & found.keys():  # of a table that was imported little is known
        if known[name] != found[name]:
            raise UserError(
                f"{kit} was run with {name} = {found[name]}, the table of {answers.name} with {known[name]}",
                allowed="The same machine, runtime and options: promises are the table's",
                next_step="Run the kit there, or bring a table of this machine",
            )


def _plan() -> Plan:
    return Plan(rounds=ROUNDS, target=0.0, seconds=SECONDS)


def _everyone(run: Run, device: str) -> tuple[ParetoFront, dict[str, str], list[_Candidate]]:
    """The front, its own names of a device's quantities, and every file that is measured in the same rounds."""
    front = ParetoFront.load(run.file("front.json"))
    searched = str(front.provenance.get("devices", front.provenance["device"]))
    if device not in searched.split(", "):
        raise UserError(
            f"the front of {run.path} was searched for {searched}",
            allowed=f"A front for {device}",
            next_step=f"Verify on that device, or search again: nas search {run.path} --device {device} --force",
        )
    exported, missing = _exported(run, front)
    if missing:
        raise UserError(
            f"{len(missing)} of the front's {len(front)} networks are not exported",
            allowed="All of them are measured in the same rounds",
            next_step=f"Export them: {_export_rest(run, like=exported[0] if exported else None)}",
        )
    own = {front.own_name(f"{kind}@{device}"): kind for kind in OF_DEVICES}
    exports = [read_export(run, point.arch.id) for point in front]
    networks = [_network(run, point, export, own) for point, export in zip(front, exports, strict=True)]
    twins = [_twin(run, export) for export in exports]
    baselines = [_baseline(run, baseline) for baseline in read_baselines(run)]
    return front, own, [*networks, *(twin for twin in twins if twin is not None), *baselines]


def _exported(run: Run, front: ParetoFront) -> tuple[list[str], list[str]]:
    """Ids of the front's networks that are exported, and of the others."""
    ids = [point.arch.id for point in front]
    there = {name for name in ids if (run.exports / f"{name}.json").exists()}
    return [name for name in ids if name in there], [name for name in ids if name not in there]


def _export_rest(run: Run, *, like: str | None) -> str:
    """The command that exports the rest of the front, in the format of an export that is there: another one is refused."""
    return f"nas export {run.path}{'' if like is None else read_export(run, like).options}"


def next_command(run: Run, exported: str) -> str:
    """What has to be run to verify a run of which some networks are exported: all of its front come first.

    Args:
        exported: id of a network that is, whose format the others get.

    Raises:
        UserError: the front or this export is damaged.
    """
    if not run.file("front.json").exists():
        return f"nas search {run.path}"
    front = ParetoFront.load(run.file("front.json"))
    _, missing = _exported(run, front)
    reached = not str(front.provenance["device"]).startswith(STORED)
    verify = f"nas verify {run.path}" if reached else f"nas kit make {run.path} --exports --out FOLDER"
    return f"{_export_rest(run, like=exported)}, then: {verify}" if missing else verify


def _network(run: Run, point: Point, export: Export, own: Mapping[str, str]) -> _Candidate:
    """A network of the front with what was promised of it on this device, whose names are given."""
    promised = {own[name]: value for name, value in point.values.items() if own.get(name) in ("latency", "energy")}
    promised = {"accuracy": point.values["accuracy"], **promised}
    opened = replace(export, format=replace(export.format, batch=None))  # a fixed batch is what a device may refuse
    again = f"nas export {run.path} --pick {export.id}{opened.options} --force"
    path = run.exports / export.file
    return _Candidate(export.id, path, export.resolution, again, export.sha256, promised, export.finetuned, network=export.id)


def _twin(run: Run, export: Export) -> _Candidate | None:
    found = read_quantised(run, export)
    if found is None:
        return None
    again = f"nas quantize {run.path} --pick {export.id}{found.options} --force"
    path = run.exports / found.file
    return _Candidate(found.id, path, found.resolution, again, found.sha256, {}, export.finetuned, "int8", export.id)


def _baseline(run: Run, baseline: Baseline) -> _Candidate:
    path = run.path / baseline.file
    again = f"nas demo --out {run.path}" if baseline.source is None else f"nas compare {run.path} {baseline.source}"
    return _Candidate(baseline.name, path, baseline.resolution, again, file_hash(path), reason=misfit(path, run.data()))


def misfit(path: Path, data: ImageData) -> str | None:
    """Why a file cannot be tested on the test images; None where it can."""
    signature = Signature.of(path)
    if signature.classes != data.classes:
        known = "no class scores" if signature.classes is None else f"{signature.classes} classes"
        return f"it gives {known}, the data have {data.classes} classes"
    if not isinstance(data.test, Split):
        pairs = zip(signature.shape, data.input_shape, strict=False)
        fits = len(signature.shape) == len(data.input_shape) and all(size in (None, wanted) for size, wanted in pairs)
        return None if fits else f"it takes {_sizes(signature.shape)}, the examples are {_sizes(data.input_shape)}"
    if len(signature.shape) != 3:
        return f"it takes {_sizes(signature.shape)}, not images"
    if signature.pixels is None and signature.shape[2] == data.channels and signature.shape[0] != data.channels:
        return f"it takes float images with channels last ({_sizes(signature.shape)}), which are tested as uint8 only"
    if signature.channels not in (None, data.channels):
        return f"it takes {signature.channels} channels, the images have {data.channels}"
    height, width = signature.shape[:2] if signature.pixels == "nhwc" else signature.shape[1:]
    if None not in (height, width) and height != width:
        return f"it takes images of {height} x {width} px, tested are squares"
    return None


def _sizes(shape: Sequence[int | None]) -> str:
    return " x ".join("?" if size is None else str(size) for size in shape)


def _tested(run: Run, device: Device, candidates: Sequence[_Candidate], seed: int, progress: Progress) -> list[_Tested]:
    times = _times(device, candidates, seed, progress)
    test = run.data().test
    labels = test.labels.numpy()
    counted = any("energy" in candidate.promised for candidate in candidates)
    found = []
    progress.start("test", len(candidates))
    try:
        for candidate, time in zip(candidates, times, strict=True):
            right, candidate = _right(device, candidate, test, labels)
            energy = device.energy(candidate.path.read_bytes(), time.median_ms) if counted else None
            found.append(_Tested(candidate, time, right, energy.joules if energy else None))
            progress.advance()
    finally:
        progress.stop()
    return found


def _right(
    device: Device, candidate: _Candidate, test: Examples, labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_] | None, _Candidate]:
    """Which test images a file gets right; what cannot be fed with them is timed only, for that reason.

    Raises:
        UserError: a network of the front fails on them.
    """
    if candidate.reason is not None:
        return None, candidate
    try:
        return outputs(device, candidate.path, test, candidate.resolution).argmax(1) == labels, candidate
    except Exception as error:  # noqa: BLE001 (a runtime may refuse in any way)
        why = f"{device.name} failed on the test images ({type(error).__name__}: {str(error).strip()[:200]})"
        if candidate.network:
            raise UserError(
                f"{candidate.path}: {why}", allowed="The file as it was exported", next_step=f"Make it again: {candidate.again}"
            ) from None
        return None, replace(candidate, reason=why)


def _times(device: Device, candidates: Sequence[_Candidate], seed: int, progress: Progress) -> list[Measurement]:
    progress.start("time on the device", len(candidates) + ROUNDS)
    try:
        models = [Candidate(c.id, c.path.read_bytes) for c in candidates]
        found = device.time(models, rng=np.random.default_rng([seed, 7]), plan=_plan(), progress=progress)
    finally:
        progress.stop()
    for candidate, result in zip(candidates, found, strict=True):
        if isinstance(result, Failure):
            raise UserError(
                f"{device.name} cannot run {candidate.path} ({result.reason})",
                allowed="A network whose operators the device's runtime has",
                next_step=f"Make it again: {candidate.again}",
            )
    return [result for result in found if isinstance(result, Measurement)]


def _result(device: Device, tested: Sequence[_Tested], limits: Sequence[Limit]) -> Verification:
    clock = clock_of([found.time for found in tested], one_thread=device.threads == 1)
    rows = [_verified(found, clock, limits, device.batch) for found in tested]
    judged = [found for found in tested if found.candidate.promised and not found.candidate.finetuned]
    rights = [found.right for found in judged if found.right is not None]
    return Verification(
        device.name,
        clock,
        [row for row in rows if isinstance(row, Verified) and row.promised],
        [row for row in rows if isinstance(row, Verified) and not row.network],
        [row for row in rows if isinstance(row, Verified) and row.precision == "int8"],
        [row for row in rows if isinstance(row, Timed)],
        excess_of([found.candidate.promised["accuracy"] for found in judged], np.array(rights)),
    )


def _verified(found: _Tested, clock: str, limits: Sequence[Limit], batch: int) -> Verified | Timed:
    candidate, time = found.candidate, found.time
    undisturbed, scale = time.ms(clock), 1 / time.busy if clock == "cpu" else 1.0
    latency = (undisturbed, min(undisturbed, time.p10_ms * scale), max(undisturbed, time.p90_ms * scale))
    if found.right is None:
        return Timed(candidate.id, *latency, reason=candidate.reason or "")
    right, images = int(found.right.sum()), len(found.right)
    low, high = wilson_interval(right, images)
    values = {"accuracy": right / images, "latency": latency[0], "throughput": 1e3 * batch / latency[0]}
    values |= {"energy": found.joules} if found.joules is not None else {}
    own = [limit for limit in limits if candidate.network]
    known = [limit for limit in own if limit.objective in values]
    broken = [str(limit) for limit in known if limit.excess(np.array(values[limit.objective])) > 0]
    # Counts are exact; what a device has to say and does not is not kept.
    broken += [f"{limit} (nothing counts it here)" for limit in own if limit not in known and limit.objective in OF_DEVICES]
    return Verified(
        candidate.id,
        candidate.promised,
        values["accuracy"],
        low,
        high,
        images,
        *latency,
        broken=broken,
        finetuned=candidate.finetuned,
        precision=candidate.precision,
        network=candidate.network,
        energy_j=found.joules,
        sha256=candidate.sha256,
    )
