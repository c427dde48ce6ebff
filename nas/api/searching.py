"""The verbs that measure, score and search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.api.defaults import DEFAULT_DEVICE, DEFAULT_HEARTBEAT, DEFAULT_IDLE, DEFAULT_IMAGES, DEFAULT_POINTS, DEFAULT_SAMPLES
from nas.runs import Run
from search_spaces import SearchSpace
from search_spaces.artifacts import locked
from search_spaces.checks import check_space, check_whole
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from latency_tables import LatencyTable
    from nas.archive import Score
    from nas.judging import AccuracyCard
    from nas.pareto import ParetoFront
    from predictors import ArchitecturePredictor

__all__ = ["accuracy_card", "predictor", "profile", "score", "search", "worker"]


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
        networks: whole networks that the correction and the model of energy are fitted on, 3 or more; default 20.
        held_out: further ones that both are judged on, 2 or more; default 16.
        options: of the device, e.g. ``threads=1``.

    Raises:
        UserError: an unknown device, too few networks, or a table of another device or machine at ``out``.
    """
    from latency_tables import Amount, open_device
    from latency_tables import profile as run_profile
    from nas.tables import STORED, check_amount, stored_table, table_path, writer_of

    check_space(space)
    _check_numbers(seed)
    check_amount(networks, held_out)
    if device.startswith(STORED):
        return stored_table(device, out, space)
    opened = open_device(device, **options)
    usual = Amount()
    fitted, judged = (usual.networks if networks is None else networks), (usual.held_out if held_out is None else held_out)
    amount = Amount(networks=fitted, held_out=judged, resolutions=resolutions)
    given: dict[str, Any] = {"writer": writer_of(space), "seed": seed, "amount": amount, "like": like}
    return run_profile(space, opened, out=table_path(out, opened.name), force=force, progress=progress, **given)


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

    _check_numbers(seed, images=images)
    _check_jobs(jobs, least=0)
    opened = Run.of(run)
    tables = {} if device is None else {device: _table(opened, device, progress)}
    goal = make_goal(opened.space, tables, ("accuracy", "macs" if device is None else "latency"), {})
    with Scoring(opened, images, jobs=jobs, storage=storage, seed=seed, progress=progress) as scoring:
        return score_run(scoring, goal, samples=samples)


def accuracy_card(
    run: str | Path | Run,
    *,
    predictor: str = "auto",
    proxies: Sequence[str] = (),
    tau: float = 0.9,
    progress: Progress = SILENT,
) -> AccuracyCard:
    """How good a predictor of accuracy is on a run's held-out scores, and whether zero-cost proxies would help it.

    Args:
        predictor: as for `search`.
        proxies: of `supernets.PROXIES`; computed for every scored network, untrained, on 3 x 64 training images, and
            compared with the numbers of parameters and MACs.
        tau: the rank correlation (Kendall) to reach with more scores.

    Raises:
        UserError: an unknown name, a ``tau`` that is none, or fewer than 30 scores.
    """
    from nas.judging import judge

    if not -1 <= tau <= 1:
        raise UserError(f"tau={tau!r}", allowed="A rank correlation: -1 to 1", next_step="Give for example tau=0.9")
    return judge(Run.of(run), predictor=predictor, proxies=tuple(proxies), tau=tau, progress=progress)


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

    _check_jobs(jobs, least=1)
    check_whole("heartbeat", heartbeat, 1)
    if not idle >= 0:  # also what is no number
        raise UserError(f"idle={idle!r}", allowed="Seconds, 0 or more", next_step=f"Give for example idle={DEFAULT_IDLE}")
    return work(Run.of(run), storage, jobs=jobs, idle=idle, heartbeat=heartbeat, stop=stop, progress=progress)


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
        objectives: two or more of accuracy, latency (``latency@DEVICE``), throughput, energy, macs, params, size, memory.
            Default: accuracy, and latency on every device.
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
    from predictors import build

    _check_numbers(seed, images=images, points=points, generations=generations)
    _check_jobs(jobs, least=0)
    opened = Run.of(run)
    opened.check_trained()
    build(predictor, opened.space)  # an unknown one is refused before anything is measured or scored
    devices = (device,) if isinstance(device, str) else tuple(device or ())
    file = opened.file("front.json")
    request = wanted(file, devices, objectives, limits, resume=resume, force=force)
    scoring = Scoring(opened, images, jobs=jobs, storage=storage, seed=seed, progress=progress)
    amount: dict[str, Any] = {"samples": samples, "budget": budget, "points": points, "generations": generations}
    with locked(file, doing="searching for"), scoring:
        tables = {name: _table(opened, name, progress) for name in request.devices}
        return search_run(scoring, request, tables, **amount, seed=seed, predictor=predictor)


def _check_numbers(seed: int, **counts: int) -> None:
    """Refuse counts below 1, before anything is queued."""
    check_whole("seed", seed, 0)
    for name, number in counts.items():
        check_whole(name, number, 1)


def _check_jobs(jobs: int | Executor, *, least: int) -> None:
    """Refuse a number of evaluations at a time with which none would ever begin, nor be left to others on purpose."""
    if isinstance(jobs, int):
        check_whole("jobs", jobs, least)


def _table(run: Run, device: str, progress: Progress) -> LatencyTable:
    """A device's table: measured here, or as it lies in the run, where the device is elsewhere."""
    from latency_tables import LatencyTable, open_device
    from nas.tables import STORED

    path = run.table(device)
    try:
        if not device.startswith(STORED):
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
