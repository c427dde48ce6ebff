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
    from latency_tables import LatencyTable
    from nas.archive import Score
    from nas.exporting import Export
    from nas.fidelity import RankCheck
    from nas.pareto import ParetoFront
    from nas.verifying import Verification
    from predictors import ArchitecturePredictor
    from supernets import ImageData, PhaseEstimate, Ranks, Recipe, Supernet

__all__ = [
    "estimate_training",
    "export",
    "finetune",
    "predictor",
    "profile",
    "rank_check",
    "report",
    "score",
    "search",
    "space",
    "spaces",
    "train",
    "verify",
]

LOG_VERSION = 1
DEFAULT_DEVICE = "onnxruntime-cpu"
DEFAULT_SAMPLES = 100
DEFAULT_IMAGES = 2000
DEFAULT_POINTS = 16


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
        "data": {"source": images.source, "name": images.name, "seed": images.seed, "hash": images.hash},
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
    from latency_tables import open_device
    from latency_tables import profile as run_profile

    opened = open_device(device, **options)
    writer = None
    if isinstance(space, ElasticSpace):
        from supernets import ElasticWriter

        writer = ElasticWriter(space)
    path = _table_path(out, opened.name)
    return run_profile(space, opened, out=path, writer=writer, seed=seed, force=force, progress=progress)


def _table_path(out: str | Path | None, device: str) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    return path if path.suffix == ".json" else path / "tables" / f"{device}.json"


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
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Score]:
    """Validate subnets of a trained run until its archive holds ``samples`` of them; returns all scores."""
    from nas.searching import score_run

    return score_run(_opened(run), None, samples=samples, images=images, seed=seed, progress=progress)


def search(
    run: str | Path | Run,
    *,
    device: str = DEFAULT_DEVICE,
    objectives: Sequence[str] = ("accuracy", "latency"),
    limits: Mapping[str, Any] | None = None,
    samples: int = DEFAULT_SAMPLES,
    images: int = DEFAULT_IMAGES,
    points: int = DEFAULT_POINTS,
    generations: int = 100,
    seed: int = 0,
    predictor: str = "auto",
    force: bool = False,
    progress: Progress = SILENT,
) -> ParetoFront:
    """The Pareto front of a trained run on a device under hard limits; written to ``front.json``.

    Accuracy is predicted from scored subnets, latency is the device's table with its correction, the rest is exact. A
    device without a table is profiled first, a run with too few scores is scored first.

    Args:
        objectives: two or more of accuracy, latency, macs, params, size, memory.
        limits: objective -> bound, a number or text with a unit: ``{"latency": "5ms", "params": 4e6}``.
        samples: scored subnets that the predictor learns from.
        images: validation images per scored subnet, at most.
        points: networks on the front, spread over it.
        generations: of NSGA-II, 100 candidates each.
        force: replace a front that is there already.

    Raises:
        UserError: an infeasible limit (with the smallest reachable value), or a front that is there already.
    """
    from nas.searching import search_run

    opened = _opened(run)
    existing = opened.file("front.json")
    if existing.exists() and not force:
        raise UserError(
            f"{existing} is there already",
            allowed="One front per run; its exports and its report belong to it",
            next_step="Search anew with --force (exports stay), or use the front as it is",
        )
    table = profile(opened.space, device=device, out=opened.path, seed=opened.settings["seed"], progress=progress)
    return search_run(
        opened,
        table,
        objectives=objectives,
        limits=limits or {},
        samples=samples,
        images=images,
        points=points,
        generations=generations,
        seed=seed,
        predictor=predictor,
        progress=progress,
    )


def export(run: str | Path | Run, *, pick: str | None = None, force: bool = False, progress: Progress = SILENT) -> list[Export]:
    """Export networks of the front as ONNX and prove them against torch on the test images.

    Args:
        pick: ``knee``, ``best``, ``fastest``, a limit such as ``latency=5ms``, or an id; None exports the whole front.
        force: export again what is exported already.
    """
    from nas.exporting import export_points
    from nas.pareto import ParetoFront

    opened = _opened(run)
    front = ParetoFront.load(opened.file("front.json"))
    points = list(front) if pick is None else [front.pick(pick)]
    return export_points(opened, points, force=force, progress=progress)


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


def verify(run: str | Path | Run, *, device: str = DEFAULT_DEVICE, seed: int = 0, progress: Progress = SILENT) -> Verification:
    """Run every exported network of the front on the device's clock and on the test images; writes ``verified.json``."""
    from latency_tables import open_device
    from nas.verifying import verify_run

    return verify_run(_opened(run), open_device(device), seed=seed, progress=progress)


def report(run: str | Path | Run) -> Path:
    """Write ``report.html`` from whatever the run has so far; says what is missing."""
    from nas.reporting import write_report

    return write_report(_opened(run))


def _opened(run: str | Path | Run) -> Run:
    return run if isinstance(run, Run) else Run.open(run)
