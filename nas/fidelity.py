"""Rank fidelity: do subnets rank by their scores in the supernet as they do when each is trained alone?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.finetuning import only
from nas.recipes import load_recipe
from nas.runs import Run
from nas.scoring import choose_subnets, validate
from predictors import kendall_tau
from search_spaces import Architecture
from search_spaces.artifacts import read_json, write_json
from search_spaces.errors import UserError
from search_spaces.progress import Progress
from search_spaces.records import reading, record
from supernets import ImageData, calibrated, evaluate, resolution_of, train

__all__ = ["RankCheck", "RankPair", "check_ranks", "kendall"]

RANK_CHECK_VERSION = 1
_RESAMPLES = 2000


@dataclass(frozen=True)
class RankPair:
    """One network, scored twice on the same validation images.

    Attributes:
        shared: accuracy with the supernet's weights, a fraction.
        alone: accuracy after it was trained by itself.
    """

    id: str
    macs: int
    shared: float
    alone: float


@dataclass(frozen=True)
class RankCheck:
    """How far the supernet's ranking can be trusted.

    Attributes:
        tau: Kendall's tau-b between both accuracies, 1 for the same order; None where all of one kind are equal.
        tau_low, tau_high: its 95 % interval by resampling the networks.
        epochs: that each network was trained alone.
        images: validation images.
    """

    pairs: tuple[RankPair, ...]
    tau: float | None
    tau_low: float | None
    tau_high: float | None
    epochs: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """JSON, as in ``rank_check.json``."""
        return asdict(self)


def check_ranks(
    run: Run,
    *,
    networks: int,
    epochs: float,
    images: int,
    seed: int,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> RankCheck:
    """Train some subnets alone, each for ``epochs`` with the recipe ``single``, and compare with the supernet's scores.

    Every network is on disk before the next one begins, and its training resumes from its own checkpoint.

    Args:
        networks: the smallest, the largest, and others spread over the MACs between them.
        images: validation images per score, at most.

    Raises:
        UserError: fewer than 3 networks, or the run holds a check with other epochs or images.
    """
    if networks < 3:
        raise UserError(f"{networks} networks", allowed="3 or more can be ranked", next_step="Write: --k 8")
    data = run.data()
    rng = np.random.default_rng([run.settings["seed"], seed])
    archs = choose_subnets(run.space, networks, run.space.cost(lambda layer: layer.macs), rng)
    settings = {"epochs": epochs, "images": images, "seed": seed, "weights": run.weights_hash()}
    pairs = []
    for number, arch in enumerate(archs, start=1):
        path = run.file("rank_check") / f"{arch.id}.json"
        if not path.exists():
            label = f"network {number}/{len(archs)}"
            pair = _pair(run, data, arch, epochs=epochs, images=images, progress=progress, stop=stop, label=label)
            write_json(path, "rank-pair", RANK_CHECK_VERSION, settings | asdict(pair))
        pairs.append(_read(path, settings))
        progress.say(f"{arch.id}  shared {pairs[-1].shared:.1%}   alone {pairs[-1].alone:.1%}")
    tau, low, high = kendall([p.shared for p in pairs], [p.alone for p in pairs], seed=seed)
    check = RankCheck(tuple(pairs), tau, low, high, epochs, min(images, len(data.val)))
    write_json(run.file("rank_check.json"), "rank-check", RANK_CHECK_VERSION, settings | check.to_dict())
    return check


def _pair(
    run: Run,
    data: ImageData,
    arch: Architecture,
    *,
    epochs: float,
    images: int,
    progress: Progress,
    stop: Callable[[], bool],
    label: str,
) -> RankPair:
    seed = run.settings["seed"]
    shared, _ = validate(run, arch, images)
    alone = only(run, arch)
    checkpoint = run.file("rank_check") / f"{arch.id}.checkpoint.safetensors"
    recipe = load_recipe("single", epochs=epochs)
    train(alone, data, recipe, checkpoint=checkpoint, seed=seed, stop=stop, progress=progress, label=label)
    accuracy, _ = evaluate(calibrated(alone, arch, data, seed=seed), data.val, resolution_of(arch, data), most=images)
    checkpoint.unlink(missing_ok=True)
    return RankPair(arch.id, int(run.space.macs(arch)), shared, accuracy)


def _read(path: Path, settings: dict[str, Any]) -> RankPair:
    value = read_json(path, "rank-pair", RANK_CHECK_VERSION, make=f"nas rank-check {path.parent.parent}")
    for name, wanted in settings.items():
        if value.get(name) != wanted:
            raise UserError(
                f"{path} was made with {name} = {value.get(name)}, not {wanted}",
                allowed="All networks of a check have the same budget",
                next_step=f"Give the same options, or remove {path.parent} to begin anew",
            )
    with reading(path, allowed="The record as nas rank-check writes it", next_step="Remove it and run the same command again"):
        return record(RankPair, value)


def kendall(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """Kendall's tau-b and its 95 % interval from resampled pairs; None where it does not exist (all values equal)."""
    pairs = np.array([first, second])  # (2, N)
    rng = np.random.default_rng(seed)
    drawn = [kendall_tau(*pairs[:, rng.integers(0, pairs.shape[1], pairs.shape[1])]) for _ in range(_RESAMPLES)]
    known = [tau for tau in drawn if tau is not None]
    if not known:
        return kendall_tau(*pairs), None, None
    low, high = np.percentile(known, [2.5, 97.5]).tolist()
    tau = kendall_tau(*pairs)
    if tau is not None and abs(tau) > 1 - 1e-9:  # resampling a perfect order gives nothing else
        far = _least_perfect(pairs.shape[1])
        low, high = (min(low, far), high) if tau > 0 else (low, max(high, -far))
    return tau, low, high


def _least_perfect(n: int) -> float:
    """The smallest tau from which a perfect order of n is within 1.96 standard deviations; 0 for few, which chance orders, too.

    By Kendall's bound of the variance around a true tau t, 2 (1 - t^2) / n.
    """
    z2 = 1.96**2 * 2 / n
    return max(0.0, (1 - z2) / (1 + z2))
