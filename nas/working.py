"""Evaluating what an archive has queued: in this process, in several, or on other machines that share the archive."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from nas.archive import RETRIES, Archive, Claim
from nas.memory import keep_freed_memory
from nas.runs import Run
from nas.scoring import validate
from search_spaces import Architecture
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

__all__ = ["Crew", "Jobs", "work"]

Jobs = int | Executor
Found = tuple[float, int]  # accuracy, images

POLL = 0.5  # seconds between looks at what other machines do
TOLD = 20  # networks after which a worker says how many it has scored
PATIENCE = 3600  # seconds without any finished evaluation anywhere


def work(
    run: Run,
    storage: str | None,
    *,
    jobs: Jobs,
    idle: float,
    heartbeat: int,
    stop: Callable[[], bool],
    progress: Progress,
) -> int:
    """See `nas.worker`."""
    place = storage or run.study
    with Archive(place, run.space, weights=run.weights_hash(), heartbeat=heartbeat, create=False) as archive:
        archive.check_version()
        crew = Crew(run, archive, jobs, progress=progress, stop=stop)
        crew.serve(idle)
        return crew.scored


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (raised again where the result is asked for)
            future.set_exception(error)
        return future


@dataclass
class Crew:
    """Evaluates what an archive has queued.

    Attributes:
        jobs: evaluations at a time: one in this process, several in processes of their own, or an executor
            (`concurrent.futures`) of the user's; 0 leaves all of them to workers elsewhere.
        stop: asked between evaluations; True begins no further one.
        scored: how many this crew has finished.
    """

    run: Run
    archive: Archive
    jobs: Jobs = 1
    progress: Progress = SILENT
    stop: Callable[[], bool] = lambda: False
    scored: int = 0
    _failed: int = 0  # since the last one that was finished
    _claims: dict[int, Claim] = field(default_factory=dict)
    _flying: dict[Future[Found], tuple[Claim, float]] = field(default_factory=dict)

    def drain(self) -> None:
        """Evaluate until no network waits and none runs, here or elsewhere; those of lost processes are queued again.

        A network whose evaluation fails is tried again, three times; then its error is raised, whatever it is. Where more than
        three of every job's fail with no success between them, the last error is raised: the networks are left to others.

        Raises:
            UserError: an evaluation's own, at once; or the archive is lost, or nothing was finished anywhere for an hour.
        """
        self.archive.recover()
        left, since, waited = self._left(), time.monotonic(), False
        with self._evaluating() as step:
            while left > 0 or self._flying:
                before = self.scored
                if step():
                    # Reading the archive is slow: what others do matters when nothing is left to take.
                    left, since = left - (self.scored - before), time.monotonic()
                    left = left if left > 0 else self._left()
                    continue
                if not waited:
                    way = "" if self._most else f"; start one: {self._worker()}"
                    self.progress.say(f"waiting     for {left} networks that other processes have to score{way}")
                waited = True
                time.sleep(POLL)
                self.archive.recover()
                now = self._left()
                self.progress.advance(max(0, left - now))
                left, since = now, since if now == left else time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    raise UserError(
                        f"no evaluation in {self.archive.place} was finished for an hour, {left} are left",
                        allowed="This process evaluates with --jobs 1 or more; workers evaluate wherever they run",
                        next_step=f"Start a worker: {self._worker()}",
                    )

    def _worker(self) -> str:
        """The command that scores what this process waits for."""
        place = self.archive.place
        words = ["nas", "worker", str(self.run.path)]
        if not place.is_file:
            words += ["--storage", "URL"]  # the real one has a password in it
        elif Path(str(place)).resolve() != self.run.study.resolve():
            words += ["--storage", f"sqlite:///{place}"]
        return shlex.join(words)

    def serve(self, idle: float) -> None:
        """Evaluate what comes until `stop`, or until there was nothing to do for so many seconds."""
        self.progress.say(
            f"worker      {self.archive.place}: {self._left()} networks to score; ends after {idle:g} s without any"
        )
        last = time.monotonic()
        said = 0
        with self._evaluating() as step:
            while not (self.stop() and not self._flying):
                if step():
                    last = time.monotonic()
                    if self.scored >= said + TOLD:
                        said = self.scored
                        self.progress.say(f"worker      {said} networks scored")
                    continue
                if time.monotonic() - last > idle:
                    break
                self.archive.check_version()
                self.archive.recover()
                time.sleep(POLL)

    def _left(self) -> int:
        return self.archive.waiting() + self.archive.running()

    @property
    def _most(self) -> int:
        if isinstance(self.jobs, int):
            return self.jobs
        return int(getattr(self.jobs, "_max_workers", 0)) or 2 * (os.cpu_count() or 1)

    @contextmanager
    def _evaluating(self) -> Iterator[Callable[[], bool]]:
        """Gives a function that begins what can begin and collects what is finished; False: there was nothing to do."""
        with _executor(self.jobs) as executor, self._signs_of_life():
            try:
                yield lambda: self._begin(executor) | self._collect()
            finally:
                for claim in list(self._claims.values()):
                    with suppress(UserError):  # a lost database; what is raised already says so
                        self.archive.give_back(claim, "interrupted", counted=False)
                self._claims.clear()
                self._flying.clear()

    def _begin(self, executor: Executor) -> bool:
        begun = False
        while len(self._flying) < self._most and not self.stop() and (claim := self.archive.claim()) is not None:
            self._claims[claim.trial] = claim
            start = time.monotonic()
            self._flying[executor.submit(self._work(), claim.arch, claim.images)] = claim, start
            begun = True
        return begun

    def _work(self) -> Callable[[Architecture, int], Found]:
        if isinstance(self.jobs, int) and self.jobs <= 1:
            return partial(validate, self.run)
        threads = max(1, (os.cpu_count() or 1) // self._most)
        there = (str(self.run.path.resolve()), self.run.torch_device, self.run.weights_hash(), threads)
        return partial(_validate_there, *there)

    def _collect(self) -> bool:
        if not self._flying:
            return False
        done, _ = wait(self._flying, timeout=POLL, return_when=FIRST_COMPLETED)
        for future in done:
            claim, start = self._flying.pop(future)
            try:
                accuracy, images = future.result()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                again = self.archive.give_back(claim, reason, counted=not isinstance(error, UserError))
                del self._claims[claim.trial]
                if isinstance(error, BrokenExecutor):
                    raise UserError(
                        "a process that scored a network was killed",
                        allowed="Enough memory for every process",
                        next_step="Run the same command again with fewer --jobs; finished scores are kept",
                    ) from error
                self._failed += 1
                lost = self._failed > RETRIES * self._most  # it is not the networks, it is this machine
                if not again or lost or isinstance(error, UserError):
                    raise
                self.progress.say(f"try again   network {claim.arch.id} failed: {reason}")
                continue
            self.archive.finish(claim, accuracy, images, seconds=time.monotonic() - start)
            del self._claims[claim.trial]
            self.scored, self._failed = self.scored + 1, 0
            self.progress.advance()
        return True

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """A thread that tells the archive, as long as this process lives, that its evaluations do."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self.archive.heartbeat):
                with suppress(UserError):  # a lost database is the main thread's to report
                    self.archive.beat(list(self._claims.values()))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def _executor(jobs: Jobs) -> Iterator[Executor]:
    if isinstance(jobs, Executor):
        yield jobs
    elif jobs <= 1:
        yield _Here()
    else:
        # Fresh processes: a copy of one whose torch has started threads can hang.
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=keep_freed_memory)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1)
def _opened(folder: str, torch_device: str, weights: str, threads: int) -> Run:
    """The run in a process that evaluates for another one, read once for the weights that it has.

    Raises:
        UserError: it has other weights meanwhile.
    """
    import torch

    torch.set_num_threads(threads)
    run = Run.open(folder, torch_device=torch_device)
    if run.weights_hash() != weights:
        raise UserError(
            f"{folder} has other weights than when the search began",
            allowed="Scores are of one supernet",
            next_step="Search again when its training has ended",
        )
    return run


def _validate_there(folder: str, torch_device: str, weights: str, threads: int, arch: Architecture, images: int) -> Found:
    return validate(_opened(folder, torch_device, weights, threads), arch, images)
