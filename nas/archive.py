"""The archive of true evaluations: an Optuna study in the run folder; scores survive anything and are never paid twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray

from search_spaces import Architecture, SearchSpace
from search_spaces.errors import UserError

__all__ = ["Archive", "Score"]


@dataclass(frozen=True)
class Score:
    """A true evaluation: validation accuracy of an extracted, recalibrated subnet.

    Attributes:
        accuracy: fraction of the validation images classified correctly.
        images: how many images that was.
    """

    arch: Architecture
    accuracy: float
    images: int

    @property
    def standard_error(self) -> float:
        """Of the accuracy, from the number of images (binomial)."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.images))


class Archive:
    """Scores of one supernet's subnets.

    Args:
        path: SQLite file; made when it does not exist.
        space: of the architectures.
        weights: identifies the supernet's weights; an archive of other weights is refused.

    Raises:
        UserError: the file is not an archive, or belongs to other weights or another space.
    """

    def __init__(self, path: Path, space: SearchSpace, *, weights: str) -> None:
        self.space = space
        identity = {"space": space.key, "weights": weights}
        path.parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            try:
                self._study = optuna.create_study(
                    study_name="scores", storage=f"sqlite:///{path}", direction="maximize", load_if_exists=True
                )
                stored = {key: self._study.user_attrs.get(key) for key in identity}
            except Exception as error:  # noqa: BLE001 (any of SQLAlchemy's and Optuna's errors on a damaged file)
                raise UserError(
                    f"{path} cannot be read as an archive of scores ({type(error).__name__}: {error})",
                    allowed="An Optuna study in SQLite",
                    next_step=f"Restore it from a copy, or remove {path}; the subnets are then scored anew",
                ) from None
            if not any(stored.values()):
                for key, value in identity.items():
                    self._study.set_user_attr(key, value)
            elif stored != identity:
                raise UserError(
                    f"{path} holds scores of {stored['space']}, weights {stored['weights']}",
                    allowed=f"Scores of {identity['space']}, weights {identity['weights']}",
                    next_step=f"Remove {path} to score this supernet anew",
                )

    def scores(self) -> list[Score]:
        """All scores in order of evaluation, one per network."""
        with _quiet():
            trials = self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
        found: dict[str, Score] = {}
        for trial in trials:
            arch = self.space.architecture(**json.loads(trial.user_attrs["architecture"]))
            found.setdefault(arch.id, Score(arch, float(trial.value or 0.0), int(trial.user_attrs["images"])))
        return list(found.values())

    def add(self, score: Score) -> None:
        """Store a score; it is on disk when this returns."""
        attributes = {"architecture": json.dumps(score.arch.to_dict()), "id": score.arch.id, "images": score.images}
        with _quiet():
            self._study.add_trial(optuna.trial.create_trial(value=score.accuracy, user_attrs=attributes))


def accuracies(scores: list[Score]) -> NDArray[np.float64]:
    """(N,) fractions."""
    return np.array([score.accuracy for score in scores])


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna reports every study and trial to stderr; ours is the only voice there."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
