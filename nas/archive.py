"""The archive of true evaluations: an Optuna study, in the run folder or in a database that many machines share.

Every network is a trial: waiting until somebody takes it, running, and complete with its accuracy. Finished scores
survive anything and are never paid twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from nas.runs import Run
from nas.storage import Place, patiently, reaching
from nas.trials import attributes_of, parameters_of, place_in_queue
from search_spaces import Architecture, SearchSpace
from search_spaces.artifacts import made_by
from search_spaces.errors import UserError
from search_spaces.records import reading

__all__ = ["RETRIES", "Archive", "Claim", "Score", "accuracies", "run_scores"]

HEARTBEAT = 20  # seconds between signs of life; a trial without one for twice as long is lost
RETRIES = 3
QUEUEING = "queueing"  # attribute of the study: the networks that are being queued
_LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


@dataclass(frozen=True)
class Score:
    """A true evaluation: validation accuracy of an extracted, recalibrated subnet.

    Attributes:
        accuracy: fraction of the validation images classified correctly.
        images: how many images that was.
        proposed: a strategy chose the network because it may be on the front; else it was chosen to learn from.
    """

    arch: Architecture
    accuracy: float
    images: int
    proposed: bool = False

    @property
    def standard_error(self) -> float:
        """Of the accuracy, from the number of images (binomial, one image right and one wrong beside them: all right is no
        certainty)."""
        share = (self.accuracy * self.images + 1) / (self.images + 2)
        return float(np.sqrt(share * (1 - share) / (self.images + 2)))


@dataclass(frozen=True)
class Claim:
    """A network that this process, and no other one, evaluates.

    Attributes:
        trial: the database's key of the trial.
        images: validation images, at most.
    """

    trial: int
    arch: Architecture
    images: int
    proposed: bool


class Archive:
    """Scores of one supernet's subnets, and the queue of those to be scored.

    Args:
        where: an SQLite file (made when it does not exist), or a database's URL; see `nas.storage`.
        space: of the architectures.
        weights: identifies the supernet's weights; an archive of other weights is refused.
        heartbeat: seconds between signs of life of running evaluations.
        create: make what is not there; a worker joins what a search has made.

    Raises:
        UserError: the file is not an archive, the database cannot be reached, or the archive belongs to other weights or
            another space.
    """

    def __init__(
        self, where: Path | str, space: SearchSpace, *, weights: str, heartbeat: int = HEARTBEAT, create: bool = True
    ) -> None:
        self.space = space
        self.place = Place.of(where)
        self.heartbeat = heartbeat
        identity = {"space": space.key, "weights": weights}
        self._waiting: list[tuple[Claim, bool]] = []
        if not create and self.place.is_file and not Path(str(self.place.url.database)).exists():
            raise self._absent([])  # connecting would make the file
        with self.place.opening():
            self._retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
            self._storage = self.place.connect(heartbeat, self._retry)
            name = self.place.study(weights)
            if create:
                self._study = patiently(
                    lambda: optuna.create_study(
                        study_name=name, storage=self._storage, direction="maximize", load_if_exists=True
                    )
                )
            else:
                self._study = self._existing(name)
            stored = {key: self._study.user_attrs.get(key) for key in identity}
            if not any(stored.values()):
                for key, value in identity.items():
                    self._study.set_user_attr(key, value)
        if any(stored.values()) and stored != identity:
            self.close()
            raise UserError(
                f"{self.place} holds scores of {stored['space']}, weights {stored['weights']}",
                allowed=f"Scores of {identity['space']}, weights {identity['weights']}",
                next_step=self._way_out(where, create),
            )

    def _way_out(self, where: Path | str, create: bool) -> str:
        """What to do about an archive of other weights, which may be other people's."""
        if not create:
            return "Copy the run folder of the machine that searches: its run.json and supernet.safetensors"
        if isinstance(where, Path):  # the run's own file
            return f"Remove {self.place} to score this supernet anew"
        return "Name another database with --storage: this one belongs to another supernet"

    def close(self) -> None:
        """Close its connections; an archive that is used again opens new ones.

        They would stay open until Python's garbage collector comes by, for Optuna's objects refer to each other in circles.
        """
        self._storage.engine.dispose()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _existing(self, name: str) -> optuna.Study:
        names = optuna.get_all_study_names(self._storage)
        if name in names:
            return optuna.load_study(study_name=name, storage=self._storage)
        raise self._absent(names)

    def _absent(self, names: Sequence[str]) -> UserError:
        return UserError(
            f"{self.place} has no archive of this run's weights",
            allowed=f"It holds: {', '.join(names) or 'nothing'}; the run folder needs the same weights on every machine",
            next_step="Start the search first: nas search RUN --storage URL",
        )

    # ---- scores ---------------------------------------------------------------------------------------------

    def scores(self) -> list[Score]:
        """All scores in the order in which they were queued, one per network."""
        trials = self._trials(TrialState.COMPLETE)
        found: dict[str, Score] = {}
        with self._parsing():
            for score in map(self._score, sorted(trials, key=place_in_queue)):
                found.setdefault(score.arch.id, score)
        return list(found.values())

    def add(self, score: Score, *, place: int | None = None) -> None:
        """Store a score; it is on disk when this returns.

        Args:
            place: in the order of scores; default: the last one.
        """
        attributes = attributes_of(score.arch, self.space, score.images, score.proposed)
        attributes["standard_error"] = score.standard_error
        system = {} if place is None else {"failed_trial": place}
        with reaching(self.place):
            self._study.add_trial(
                optuna.trial.create_trial(
                    value=score.accuracy, user_attrs=attributes, system_attrs=system, **parameters_of(score.arch, self.space)
                )
            )

    def add_missing(self, scores: Iterable[Score]) -> None:
        """Store those scores whose networks have none yet."""
        known = {trial.user_attrs["id"] for trial in self._trials(TrialState.COMPLETE)}
        for score in scores:
            if score.arch.id not in known:
                self.add(score)

    # ---- the queue ------------------------------------------------------------------------------------------

    def enqueue(self, archs: Iterable[Architecture], *, images: int, proposed: bool) -> None:
        """Queue networks for evaluation; those that wait, run or have a score already are left out.

        All of them or none: what is to be queued is noted first, and if this process is killed `complete` queues the rest.
        """
        archs = list(archs)
        if not archs:
            return
        networks = [arch.to_dict() for arch in archs]
        with reaching(self.place):
            self._study.set_user_attr(QUEUEING, {"networks": networks, "images": images, "proposed": proposed})
        self._queue(archs, images, proposed)

    def complete(self) -> None:
        """Queue what a process that was killed had begun to queue."""
        with reaching(self.place), self._parsing():
            noted = self._study.user_attrs.get(QUEUEING)
            if noted is None:
                return
            archs = [self.space.architecture(**network) for network in noted["networks"]]
            images, proposed = noted["images"], bool(noted["proposed"])
            if type(images) is not int or images < 1:
                raise ValueError(f"networks are queued for {images!r:.40} images")
        self._queue(archs, images, proposed)

    def _queue(self, archs: Sequence[Architecture], images: int, proposed: bool) -> None:
        known = {trial.user_attrs["id"] for trial in self._trials(*_LIVE)}
        for arch in archs:
            if arch.id in known:
                continue
            known.add(arch.id)
            attributes, parameters = attributes_of(arch, self.space, images, proposed), parameters_of(arch, self.space)
            with reaching(self.place):
                self._study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attributes, **parameters))
        with reaching(self.place):
            self._study.set_user_attr(QUEUEING, None)

    def claim(self) -> Claim | None:
        """Take the next waiting network; None: none waits. No other process gets the same one."""
        self._waiting = self._waiting or self._to_claim()
        while self._waiting:
            claim, duplicate = self._waiting.pop(0)
            with reaching(self.place):
                # Before it runs: a process that dies at once still leaves a trial that can be found lost.
                self._storage.record_heartbeat(claim.trial)
            if self._moved(claim.trial, TrialState.RUNNING) and not duplicate:
                return claim
            if duplicate:
                self._moved(claim.trial, TrialState.FAIL)
            self._waiting = self._waiting or self._to_claim()
        return None

    def _to_claim(self) -> list[tuple[Claim, bool]]:
        """What waits, and whether an older trial has the same network (two searches that queue at once can do that).

        Reading all trials is slow, so they are taken from one reading as long as it lasts; those that others took since
        are noticed when they are to be moved.
        """
        found, seen = [], {trial.user_attrs["id"] for trial in self._trials(TrialState.COMPLETE)}
        live = self._trials(TrialState.WAITING, TrialState.RUNNING)
        with self._parsing():
            for trial in live:
                attributes = trial.user_attrs
                if trial.state == TrialState.WAITING:
                    proposed = bool(attributes.get("proposed", False))
                    claim = Claim(trial._trial_id, self._arch(trial), int(attributes["images"]), proposed)
                    found.append((claim, attributes["id"] in seen))
                seen.add(attributes["id"])
        return found

    def finish(self, claim: Claim, accuracy: float, images: int, *, seconds: float) -> None:
        """Store the score of a claimed network; it is on disk when this returns."""
        score = Score(claim.arch, accuracy, images, claim.proposed)
        facts = {"images": images, "standard_error": score.standard_error, "seconds": round(seconds, 3)}
        with reaching(self.place):
            try:
                for key, value in facts.items():
                    self._storage.set_trial_user_attr(claim.trial, key, value)
                self._storage.set_trial_state_values(claim.trial, TrialState.COMPLETE, [accuracy])
            except optuna.exceptions.UpdateFinishedTrialError:
                # It was given up for lost; the score is good all the same.
                if claim.arch.id not in {trial.user_attrs["id"] for trial in self._trials(TrialState.COMPLETE)}:
                    self.add(score, place=place_in_queue(self._storage.get_trial(claim.trial)))

    def give_back(self, claim: Claim, reason: str, *, counted: bool) -> bool:
        """Queue a claimed network again, at its old place.

        Args:
            counted: the evaluation failed, which is tried again `RETRIES` times; else it was only interrupted.

        Returns: False where its tries are used up; else it is queued again, or was given up for lost, which others saw to.
        """
        with reaching(self.place):
            try:
                self._storage.set_trial_user_attr(claim.trial, "failure", reason[:1000])
            except optuna.exceptions.UpdateFinishedTrialError:
                return True  # it was given up for lost, and is queued again already
            if not self._moved(claim.trial, TrialState.FAIL):
                return True
            failed = self._storage.get_trial(claim.trial)
            if counted:
                tried_again = len(failed.system_attrs.get("retry_history", ()))
                self._retry(self._study, failed)
                return tried_again < RETRIES
            system = {"failed_trial": failed.number, **failed.system_attrs}
            parts: dict[str, Any] = {
                "params": failed.params,
                "distributions": failed.distributions,
                "user_attrs": failed.user_attrs,
            }
            self._study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=system, **parts))
        return True

    def beat(self, claims: Iterable[Claim]) -> None:
        """A sign of life for running evaluations."""
        with reaching(self.place):
            for claim in claims:
                self._storage.record_heartbeat(claim.trial)

    def recover(self) -> None:
        """Queue again what lost processes were evaluating: those without a sign of life for two heartbeats."""
        with reaching(self.place, quiet=True):
            optuna.storages.fail_stale_trials(self._study)

    def withdraw(self, most: int) -> None:
        """Leave at most so many networks waiting: the first ones."""
        for trial in sorted(self._trials(TrialState.WAITING), key=place_in_queue)[max(0, most) :]:
            with reaching(self.place), suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial._trial_id, "withdrawn", True)
            self._moved(trial._trial_id, TrialState.FAIL)

    def waiting(self) -> int:
        """Networks that nobody has taken."""
        return len(self._trials(TrialState.WAITING))

    def running(self) -> int:
        """Networks that somebody evaluates."""
        return len(self._trials(TrialState.RUNNING))

    def failures(self, archs: Sequence[Architecture]) -> dict[str, str]:
        """Why networks without a score, and not queued, failed: id -> reason."""
        live = {trial.user_attrs["id"] for trial in self._trials(*_LIVE)}
        wanted = {arch.id for arch in archs} - live
        failed = [trial for trial in self._trials(TrialState.FAIL) if trial.user_attrs["id"] in wanted]
        failed = [trial for trial in failed if "withdrawn" not in trial.user_attrs]
        return {t.user_attrs["id"]: str(t.user_attrs.get("failure", "its process was lost")) for t in failed}

    # ---- the toolkit's version ------------------------------------------------------------------------------

    def lead(self) -> None:
        """Record the version of the toolkit that searches; workers need the same one."""
        with reaching(self.place):
            self._study.set_user_attr("toolkit", made_by())

    def check_version(self) -> None:
        """Refuse to work for another version of the toolkit.

        Raises:
            UserError: as said.
        """
        with reaching(self.place):
            leader = self._study.user_attrs.get("toolkit", made_by())
        if leader != made_by():
            raise UserError(
                f"{self.place} is filled by a search of {leader}, this worker is {made_by()}",
                allowed="The same version on every machine: another one may score differently",
                next_step=f"Install it here: pip install '{str(leader).replace(' ', '==')}'",
            )

    # ---- trials ---------------------------------------------------------------------------------------------

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Our trials in these states, by number; others (enqueued by hand, say) are not ours."""
        with reaching(self.place, quiet=True), self._parsing():
            trials = self._study.get_trials(deepcopy=False, states=states)
            ours = [trial for trial in trials if {"architecture", "id", "images"} <= trial.user_attrs.keys()]
            for trial in ours:
                if not isinstance(trial.user_attrs["id"], str):
                    raise ValueError(f"trial {trial.number} has the id {trial.user_attrs['id']!r:.40}")
        return ours

    def _parsing(self) -> AbstractContextManager[None]:
        """What goes wrong with values that somebody else has written."""
        return reading(
            str(self.place),
            allowed="Trials as nas score and nas search write them",
            next_step="Restore it from a copy, or remove it; the subnets are then scored anew",
        )

    def _score(self, trial: FrozenTrial) -> Score:
        accuracy, images = trial.value, trial.user_attrs["images"]
        if accuracy is None or not 0 <= accuracy <= 1 or type(images) is not int or images < 1:
            raise ValueError(f"trial {trial.number}: accuracy {accuracy!r:.40} of {images!r:.40} images")
        return Score(self._arch(trial), accuracy, images, bool(trial.user_attrs.get("proposed", False)))

    def _arch(self, trial: FrozenTrial) -> Architecture:
        arch = self.space.architecture(**json.loads(trial.user_attrs["architecture"]))
        if arch.id != trial.user_attrs["id"]:
            raise ValueError(f"trial {trial.number} has another id than its network {arch.id}")
        return arch

    def _moved(self, trial: int, state: TrialState) -> bool:
        """Whether this process, and no other one, moved a trial to a state."""
        with reaching(self.place):
            try:
                return self._storage.set_trial_state_values(trial, state)
            except optuna.exceptions.UpdateFinishedTrialError:
                return False


def run_scores(run: Run) -> list[Score]:
    """The scores in a run's own file."""
    with Archive(run.study, run.space, weights=run.weights_hash()) as archive:
        return archive.scores()


def accuracies(scores: Sequence[Score]) -> NDArray[np.float64]:
    """(N,) fractions."""
    return np.array([score.accuracy for score in scores])
