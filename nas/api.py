"""The verbs. Each one is a function here and a command in `nas.cli`; the work is in the modules beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import search_spaces
from nas.own_models import remember
from nas.runs import SUPERNET_VERSION, Run
from search_spaces import Architecture, ElasticSpace, SearchSpace
from search_spaces.artifacts import file_hash, write_json
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from latency_tables import LatencyTable
    from nas.archive import Score
    from nas.exporting import Export
    from nas.fidelity import RankCheck
    from nas.pareto import ParetoFront
    from nas.quantising import Quantised
    from nas.reporting import Report
    from nas.verification import Verification
    from predictors import ArchitecturePredictor
    from supernets import ImageData, PhaseEstimate, Ranks, Recipe, Supernet

__all__ = [
    "compare",
    "estimate_training",
    "export",
    "finetune",
    "predictor",
    "profile",
    "quantize",
    "rank_check",
    "report",
    "score",
    "search",
    "space",
    "spaces",
    "train",
    "verify",
    "worker",
]

LOG_VERSION = 1
DEFAULT_DEVICE = "onnxruntime-cpu"
DEFAULT_SAMPLES = 100
DEFAULT_IMAGES = 2000
DEFAULT_POINTS = 16
DEFAULT_IDLE = 300.0
DEFAULT_HEARTBEAT = 20


def space(name: str, **parameters: Any) -> SearchSpace:
    """A built-in search space, e.g. ``nas.space("ofa-mobilenet-v3", width=1.2)``; `nas.spaces` lists them."""
    return search_spaces.build(name, **parameters)


def spaces() -> dict[str, str]:
    """Built-in search spaces: name -> one line about it."""
    return {name: (family.__doc__ or "").strip().splitlines()[0] for name, family in search_spaces.FAMILIES.items()}


def train(
    supernet: Supernet,
    data: str | ImageData,
    *,
    out: str | Path,
    recipe: str | Recipe = "progressive",
    epochs: float | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    tensorboard: bool = False,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> Run:
    """Train a supernet into a run folder; a folder that holds the same run, unfinished, is resumed.

    Args:
        data: a source for `nas.load_data` (``"digits"``, ``"folder:PATH"`` ...) or its result.
        out: the run folder.
        recipe: a name, a TOML file, or a `Recipe`.
        epochs: of all phases together; default: the recipe's.
        weights: a checkpoint of the largest network to start from, see `nas.start_from`; becomes part of the run.
        seed: of everything random in training.
        tensorboard: losses, accuracies and speed as TensorBoard scalars too, in ``training/tensorboard``.
        ranks: the processes that train together, from `supernets.processes`; each of them calls this alike.
        stop: asked after every step; True saves a checkpoint and raises `supernets.Interrupted`.

    Raises:
        UserError: bad input, or ``out`` holds something else; nothing is overwritten.
    """
    from supernets import ALONE, load_data, save_tensors, start_from
    from supernets import train as run_training
    from supernets.checks import check_training

    ranks = ranks or ALONE
    images = load_data(data, seed=seed) if isinstance(data, str) else data
    supernet.bind(images.input_shape)
    resolved = _recipe(recipe, epochs)
    check_training(supernet, images, resolved, ranks)  # before there is a folder
    settings = _settings(supernet, images, resolved, seed)
    if weights is not None:
        progress.say(f"start from {start_from(supernet, weights)}")
        settings["weights"] = {"file": Path(weights).name, "sha256": file_hash(Path(weights))}
    run = _made(out, settings, supernet.space, ranks)
    if run.weights.exists():
        progress.say(f"{run.path} is trained already")
        supernet.load_state_dict(run.supernet().state_dict())
        return run
    log, scalars = run.file("training/log.csv"), run.file("training/tensorboard") if tensorboard else None
    watched: dict[str, Any] = {"seed": seed, "ranks": ranks, "stop": stop, "progress": progress}
    trained = run_training(supernet, images, resolved, checkpoint=run.checkpoint, log=log, scalars=scalars, **watched)
    if ranks.first:
        done = {"phases": trained.log, "seconds": trained.seconds, "images": trained.images, "data": images.to_dict()}
        write_json(run.file("training/log.json"), "training-log", LOG_VERSION, done)
        save_tensors(run.weights, supernet.state_dict(), "supernet", SUPERNET_VERSION, {"space": settings["space"]})
    ranks.wait()
    return run


def _recipe(recipe: str | Recipe, epochs: float | None) -> Recipe:
    from nas.recipes import load_recipe

    return load_recipe(recipe, epochs=epochs) if isinstance(recipe, str) else recipe


def _settings(supernet: Supernet, images: ImageData, recipe: Recipe, seed: int) -> dict[str, Any]:
    return {
        "space": supernet.space.to_dict(),
        "data": {"source": images.source, "seed": images.seed, **images.identity()},
        "recipe": recipe.to_dict(),
        "seed": seed,
    }


def _made(out: str | Path, settings: dict[str, Any], space: SearchSpace, ranks: Ranks) -> Run:
    """The run's folder: the first process makes it, the others wait for it."""
    if ranks.first:
        run = Run.create(out, settings, space=space)
        if isinstance(space, ElasticSpace):
            remember(run.path, space)
    ranks.wait()
    return run if ranks.first else Run.create(out, settings, space=space)


def estimate_training(
    supernet: Supernet,
    data: str | ImageData,
    *,
    recipe: str | Recipe = "progressive",
    epochs: float | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[PhaseEstimate]:
    """Time and memory of the phases that `train` would run, from a few steps of each; nothing is written or changed."""
    from supernets import estimate_training as run_estimate
    from supernets import load_data

    images = load_data(data, seed=seed) if isinstance(data, str) else data
    return run_estimate(supernet, images, _recipe(recipe, epochs), seed=seed, progress=progress)


def profile(
    space: SearchSpace,
    *,
    device: str = DEFAULT_DEVICE,
    out: str | Path | None = None,
    seed: int = 0,
    resolutions: int | None = None,
    like: LatencyTable | None = None,
    networks: int | None = None,
    held_out: int | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> LatencyTable:
    """Measure every layer of a space on a device, and a few whole networks to correct and to judge the sum of layers.

    Args:
        out: a run folder (the table goes to its ``tables``) or a ``.json`` file; a table that is there already is
            completed, not measured again. None keeps the table in memory.
        options: of the device, e.g. ``threads=1``.

    Raises:
        UserError: an unknown device, or a table of another device or machine at ``out``.
    """
    from latency_tables import Amount, open_device
    from latency_tables import profile as run_profile
    from nas.tables import STORED, stored_table, table_path, writer_of

    if device.startswith(STORED):
        return stored_table(device, out, space)
    opened = open_device(device, **options)
    usual = Amount()
    fitted, judged = (usual.networks if networks is None else networks), (usual.held_out if held_out is None else held_out)
    amount = Amount(networks=fitted, held_out=judged, resolutions=resolutions)
    given: dict[str, Any] = {"writer": writer_of(space), "seed": seed, "amount": amount, "like": like}
    return run_profile(space, opened, out=table_path(out, opened.name), force=force, progress=progress, **given)


def predictor(
    kind: str, space: SearchSpace, *, shares: bool = False, hidden_layer_sizes: Sequence[int] | None = None
) -> ArchitecturePredictor:
    """An unfitted predictor over a space: ``predictor.fit(archs, values)``, then ``.predict(archs)`` gives ``.mean``, ``.std``.

    Args:
        kind: ``ridge``, ``polynomial-ridge``, ``gaussian-process``, ``svr``, ``mlp``, ``gradient-boosting``,
            ``nearest-neighbour``, ``stack``, or ``auto``: the best of the quick ones in cross-validation.
        shares: the values are accuracies in 0..1; fitted as log odds.
        hidden_layer_sizes: of ``mlp``; default three layers of 400, as in Once-for-all.
    """
    import predictors

    return predictors.build(kind, space, shares=shares, hidden_layer_sizes=hidden_layer_sizes)


def score(
    run: str | Path | Run,
    *,
    samples: int = DEFAULT_SAMPLES,
    images: int = DEFAULT_IMAGES,
    device: str | None = None,
    jobs: int | Executor = 1,
    storage: str | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Score]:
    """Validate subnets of a trained run until its archive holds ``samples`` of them; returns all scores.

    The first 100 are spread over the cost, to learn from; then the strategy ``default`` proposes, in batches, what may lie on
    the front of accuracy against the cost. Every finished score is kept, whatever happens; the same scores come out
    whatever the number of jobs.

    Args:
        images: validation images per subnet, at most.
        device: whose latency is the cost; MACs without one.
        jobs: evaluations at a time, in processes of this machine (a script that asks for more than one needs the guard
            ``if __name__ == "__main__"``), or an executor with the interface of `concurrent.futures`; 0 leaves all of
            them to workers (see `worker`).
        storage: URL of a database that workers share, ``postgresql://...`` or ``sqlite:///FILE``.
    """
    from nas.goals import make_goal
    from nas.searching import Scoring, score_run

    opened = _opened(run)
    tables = {} if device is None else {device: _table(opened, device, progress)}
    goal = make_goal(opened.space, tables, ("accuracy", "macs" if device is None else "latency"), {})
    scoring = Scoring(opened, images, jobs=jobs, storage=storage, seed=seed, progress=progress)
    return score_run(scoring, goal, samples=samples)


def worker(
    run: str | Path | Run,
    *,
    storage: str | None = None,
    jobs: int | Executor = 1,
    idle: float = DEFAULT_IDLE,
    heartbeat: int = DEFAULT_HEARTBEAT,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> int:
    """Score what a search has queued in a shared archive; returns how many subnets this worker scored.

    Run it where there is a copy of the run folder (and of its data), at the same time as the search, on as many machines
    as you like. No network is scored twice; what a lost worker held is queued again.

    Args:
        storage: the search's; None for a search on this machine without one.
        idle: seconds without work after which the worker ends.
        heartbeat: seconds between signs of life; a worker that misses two counts as lost.
        stop: asked between evaluations; True ends the worker after those under way.

    Raises:
        UserError: no search of this run's weights has begun there, or it is of another version of the toolkit.
    """
    from nas.working import work

    return work(_opened(run), storage, jobs=jobs, idle=idle, heartbeat=heartbeat, stop=stop, progress=progress)


def search(
    run: str | Path | Run,
    *,
    device: str | Sequence[str] | None = None,
    objectives: Sequence[str] | None = None,
    limits: Mapping[str, Any] | None = None,
    samples: int = DEFAULT_SAMPLES,
    budget: int | None = None,
    images: int = DEFAULT_IMAGES,
    points: int = DEFAULT_POINTS,
    generations: int = 100,
    seed: int = 0,
    predictor: str = "auto",
    resume: bool = False,
    force: bool = False,
    jobs: int | Executor = 1,
    storage: str | None = None,
    progress: Progress = SILENT,
) -> ParetoFront:
    """The Pareto front of a trained run on devices, under hard limits; written to ``front.json``. See ``docs/search.md``.

    Accuracy is predicted from scored subnets, latency is the device's table with its correction, the rest is exact. A device
    without a table is profiled first, a run with too few scores is scored first.

    Args:
        device: one or several; default onnxruntime-cpu. Several: also a front of its own for each.
        objectives: two or more of accuracy, latency (``latency@DEVICE``), throughput, macs, params, size, memory. Default:
            accuracy, and latency on every device.
        limits: objective -> bound, a number or text with a unit: ``{"latency": "5ms", "params": 4e6}``; several bounds
            (a list, ``"5ms,10ms"``) give one front for each, and make the quantity an objective.
        samples: scored subnets that the predictor learns from, at least.
        budget: scores in all, those of earlier searches included: the strategy ``default`` proposes networks, the front
            is scored, too, and the search ends early when it stops growing.
        images: validation images per scored subnet, at most.
        points: networks on the front, spread over it.
        generations: of NSGA-II, 100 candidates each.
        resume: replace the front that is there; devices, objectives and limits that are not given are those it has.
        force: replace a front that is there already.
        jobs, storage: as for `score`.

    Raises:
        UserError: limits that no network meets (with the best reachable values), or a front that is there already.
    """
    from nas.resuming import wanted
    from nas.searching import Scoring, search_run

    opened = _opened(run)
    devices = (device,) if isinstance(device, str) else tuple(device or ())
    request = wanted(opened.file("front.json"), devices, objectives, limits, resume=resume, force=force)
    return search_run(
        Scoring(opened, images, jobs=jobs, storage=storage, seed=seed, progress=progress),
        request,
        {name: _table(opened, name, progress) for name in request.devices},
        samples=samples,
        budget=budget,
        points=points,
        generations=generations,
        seed=seed,
        predictor=predictor,
    )


def _table(run: Run, device: str, progress: Progress) -> LatencyTable:
    """A device's table: measured here, or as it lies in the run, where the device is elsewhere."""
    from latency_tables import LatencyTable, open_device

    path = run.table(device)
    try:
        open_device(device)
    except UserError as error:
        if not path.exists():
            raise UserError(
                error.problem,
                allowed=f"{error.allowed}; or a table that was measured elsewhere, as {path}",
                next_step=error.next_step,
            ) from None
        table = LatencyTable.load(path)
        if not table.covers(run.space):
            raise UserError(
                f"{path} is a table of {table.space.key}, not of {run.space.key}",
                allowed="A table of the run's own space",
                next_step="Profile the run's space on that device",
            ) from None
        table.terms()  # an unfinished table says so
        return table.bind(run.space)
    return profile(run.space, device=device, out=run.path, seed=run.settings["seed"], progress=progress)


def export(
    run: str | Path | Run,
    *,
    pick: str | None = None,
    opset: int = 17,
    ir_version: int | None = None,
    batch: int | None = None,
    pixels: str | None = None,
    softmax: bool = False,
    pt2: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> list[Export]:
    """Export networks of the front as ONNX and prove them: onnx's checker, and parity with torch in every installed runtime.

    A plain PyTorch file stands beside each one, see `nas.load_network`. A file that is not proven is called
    ``ID.unproven.onnx``; nothing is deleted.

    Args:
        pick: ``knee``, ``best``, ``fastest``, a limit such as ``latency=5ms``, or an id; None exports the whole front.
        opset: of ONNX's operators; 17 loads in runtimes of 2022 and later.
        ir_version: of the file; None: the oldest that knows the opset.
        batch: images per run; None leaves it open.
        pixels: ``"nhwc"`` or ``"nchw"``: the file takes uint8 pixels and normalises them itself.
        softmax: the file gives probabilities instead of logits.
        pt2: write what `torch.export` makes of each network, too.
        force: export again what is exported already.

    Raises:
        UserError: an option that ONNX does not have, or an export that is there in another format.
    """
    from nas.exporting import export_points
    from nas.onnx_files import Format
    from nas.pareto import ParetoFront

    form = Format(opset, ir_version, batch, pixels, softmax)
    opened = _opened(run)
    front = ParetoFront.load(opened.file("front.json"))
    points = list(front) if pick is None else [front.pick(pick)]
    return export_points(opened, points, form=form, program=pt2, force=force, progress=progress)


def finetune(
    run: str | Path | Run,
    *,
    pick: str = "knee",
    arch: str | Architecture | None = None,
    epochs: float | None = None,
    recipe: str = "finetune",
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> Path:
    """Train a network on, alone; the next export ships these weights. Resumable, and done once.

    Args:
        pick: of the front, as for `export`.
        arch: instead of ``pick``: an architecture, the id of one that was scored, ``largest`` or ``smallest``.
        epochs: default: those of the recipe.
        recipe: a name or a TOML file. With ``distill`` above 0 (as in ``finetune-distilled``) the supernet's largest
            network teaches.

    Raises:
        UserError: nothing on the front fits ``pick``, or the network was fine-tuned otherwise before.
    """
    from nas.finetuning import find_network, finetune_network
    from nas.pareto import ParetoFront

    opened = _opened(run)
    if arch is None:
        chosen = ParetoFront.load(opened.file("front.json")).pick(pick).arch
    else:
        chosen = find_network(opened, arch) if isinstance(arch, str) else arch
    return finetune_network(opened, chosen, epochs=epochs, recipe=recipe, stop=stop, progress=progress)


def rank_check(
    run: str | Path | Run,
    *,
    networks: int = 8,
    epochs: float,
    images: int = DEFAULT_IMAGES,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> RankCheck:
    """Train some subnets alone and compare their order with the supernet's: Kendall's tau, in ``rank_check.json``.

    Args:
        networks: how many, from the smallest to the largest.
        epochs: that each of them is trained, with the recipe ``single``.
        images: validation images per score, at most.
    """
    from nas.fidelity import check_ranks

    return check_ranks(_opened(run), networks=networks, epochs=epochs, images=images, seed=seed, stop=stop, progress=progress)


def quantize(
    run: str | Path | Run,
    *,
    pick: str | None = None,
    images: int = 512,
    max_loss: float = 0.01,
    sensitivity: bool = False,
    aware: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> list[Quantised]:
    """Make INT8 twins of exported networks: static post-training quantisation, calibrated on training images.

    Their accuracy on test images and their latency are measured by the next `verify`, beside the float networks.

    Args:
        pick: as for `export`; None takes the whole front.
        images: training images for calibration, at most.
        max_loss: accuracy (a fraction of validation images) that INT8 may cost; where it costs more, the most sensitive
            layers stay in float.
        sensitivity: measure what each layer costs alone, also where INT8 loses nothing.
        aware: where INT8 costs more, train the network on with INT8's rounding before layers are left in float.
        force: quantise again what is quantised already.

    Raises:
        UserError: a network is not exported, or an option out of range.
    """
    from nas.pareto import ParetoFront
    from nas.quantising import quantise_points

    opened = _opened(run)
    front = ParetoFront.load(opened.file("front.json"))
    points = list(front) if pick is None else [front.pick(pick)]
    return quantise_points(
        opened,
        points,
        images=images,
        max_loss=max_loss,
        sensitivity=sensitivity,
        aware=aware,
        force=force,
        progress=progress,
    )


def verify(run: str | Path | Run, *, device: str = DEFAULT_DEVICE, seed: int = 0, progress: Progress = SILENT) -> Verification:
    """Run every exported network of the front on the device's clock and on the test images; writes ``verified.json``.

    INT8 twins, baselines and files of `compare` are measured in the same rounds. ``.to_frame()`` is a pandas table.
    """
    from latency_tables import open_device
    from nas.verifying import verify_run

    return verify_run(_opened(run), open_device(device), seed=seed, progress=progress)


def compare(
    run: str | Path | Run,
    *files: str | Path,
    device: str = DEFAULT_DEVICE,
    seed: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
) -> Verification:
    """Put any ONNX files beside the front: copied into the run, then everything is verified in the same rounds.

    A file has an accuracy where it takes the run's images (float input: normalised as the run's; uint8 input: pixels) and
    gives a score per class; any other file is timed only.

    Raises:
        UserError: not an ONNX file, one that the device cannot run, or a name that is taken.
    """
    from latency_tables import open_device
    from nas.comparing import add_files

    opened = _opened(run)
    add_files(opened, files, open_device(device), force=force)
    return verify(opened, device=device, seed=seed, progress=progress)


def report(run: str | Path | Run) -> Report:
    """Write ``report.html``, ``report.md`` and ``networks.csv`` from whatever the run has so far; they say what is missing.

    Returns: the files' paths and, as ``.to_frame()``, the table of networks.
    """
    from nas.reporting import write_report

    return write_report(_opened(run))


def _opened(run: str | Path | Run) -> Run:
    return run if isinstance(run, Run) else Run.open(run)
