"""Timing in a process of its own: a runtime that takes its process down costs the model that did it, nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

import numpy as np

from .timing import Plan, Raw, Run, time_runs

LAST_WORDS = 2000  # bytes of what a process wrote before it ended
SILENCE_S = 600.0  # without a sign of life, of which there is one for each model made ready and for each round: it hangs


class Worker:
    """Times models in a process of its own: a runtime that takes its process down costs one model, not all of them.

    Args:
        command: starts a process that calls `serve`; it is started when first needed, and again where it ended.
        silence_s: seconds without a sign of life after which a process is ended.
    """

    def __init__(
        self, command: Sequence[str], environment: Optional[Dict[str, str]] = None, silence_s: float = SILENCE_S
    ) -> None:
        self._command, self._environment, self._silence_s = list(command), environment, silence_s
        self._process: Any = None
        self._hung = threading.Event()

    def time(
        self,
        models: Sequence[Callable[[], bytes]],
        plan: Plan,
        seed: int,
        pin: bool = True,
        advance: Callable[[], None] = lambda: None,
    ) -> List[Union[Raw, str]]:
        """As `time_runs`; text for a model that the process does not survive.

        The model that was running need not be the culprit: memory runs out with many, and damage shows later. So where the
        process ends, the halves are timed apart, down to single models. A model that hangs while it is made ready is known.

        Raises:
            RuntimeError: the process cannot be started.
        """
        if not models:
            return []
        ready = 0

        def sign() -> None:
            nonlocal ready
            ready += 1
            advance()

        found = self._answer(models, plan, seed, pin, sign)
        if isinstance(found, list):
            return found
        if len(models) == 1:
            return [found]
        if self._hung.is_set() and ready < len(models):
            return [*self.time(models[:ready], plan, seed, pin), found, *self.time(models[ready + 1 :], plan, seed, pin)]
        middle = len(models) // 2
        return [*self.time(models[:middle], plan, seed, pin), *self.time(models[middle:], plan, seed, pin)]

    def _answer(
        self, models: Sequence[Callable[[], bytes]], plan: Plan, seed: int, pin: bool, advance: Callable[[], None]
    ) -> Union[List[Union[Raw, str]], str]:
        """What the process answers, or how it ended."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        self._hung.clear()
        question = {"models": len(models), "plan": asdict(plan), "seed": seed, "pin": pin}
        try:
            with suppress(BrokenPipeError):  # it has ended, which is seen below
                process.stdin.write(json.dumps(question).encode() + b"\n")
                for model in models:
                    content = model()
                    with self._patience():  # it reads a model when it has made the one before ready
                        process.stdin.write(len(content).to_bytes(8, "big") + content)
                        process.stdin.flush()
            line = self._heard()
            while line == b"\n":
                advance()
                line = self._heard()
            return json.loads(line) if line.endswith(b"\n") else self._last_words()
        except BaseException:  # half a question, or an answer that nobody waits for
            self._end()
            raise

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """End the process if the block, which waits for it, takes too long."""
        alarm = threading.Timer(self._silence_s, _give_up, (self._process, self._hung))  # it must not hold this object
        alarm.daemon = True
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()

    def _heard(self) -> bytes:
        """The next line that the process says; nothing where it has ended."""
        with self._patience():
            line: bytes = self._process.stdout.readline()
        return line

    def _start(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=self._said, env=self._environment)
        self._end = weakref.finalize(self, _end, self._process, self._said)
        if self._heard() != b"\n":
            raise RuntimeError(self._last_words())

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - LAST_WORDS))
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        self._end()
        if self._hung.is_set():
            return f"the runtime hung: no sign of life for {self._silence_s:g} s"
        return ": ".join([ended(self._process.returncode), *last])


def ended(code: int) -> str:
    """How a process with this exit status ended."""
    return f"the runtime ended its process ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"


def _give_up(process: Any, hung: threading.Event) -> None:
    hung.set()
    process.kill()


def _end(process: Any, said: Any) -> None:
    process.kill()
    process.wait()
    with suppress(OSError):  # what was not sent
        process.stdin.close()
    process.stdout.close()
    said.close()


def serve(load: Callable[[bytes], Run], clock: Any) -> None:
    """Answer a `Worker` until it is gone; ``load`` makes a model ready, from its bytes, and returns what runs it once."""
    with suppress(OSError):
        # Where memory runs out, this process goes, not the one that waits for it.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no answer

    def say(text: str = "") -> None:
        answers.write(text.encode() + b"\n")
        answers.flush()

    def received() -> Run:
        try:
            model = questions.read(int.from_bytes(questions.read(8), "big"))
        except MemoryError:
            sys.exit("no memory for a model")  # what follows could not be told apart
        return load(model)

    say()
    for line in iter(questions.readline, b""):
        asked = json.loads(line)
        rng = np.random.default_rng(asked["seed"])
        say(json.dumps(time_runs([received] * asked["models"], Plan(**asked["plan"]), rng, clock, asked["pin"], say)))
