"""Devices of this machine, timed in a process of their own: a runtime that crashes on a model costs that model, no more.

``python -m latency_tables.isolated HOME KIND OPTIONS`` is that process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_tables.device import Candidate, LocalDevice, Optioned, Options, Runner, serialised
from latency_tables.energy import Energy
from latency_tables.standalone.worker import Worker, serve
from latency_tables.stopwatch import Failure, Measurement, Plan, understood
from search_spaces.errors import UserError
from search_spaces.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx

__all__ = ["Isolated", "environment", "open_at"]


def environment() -> dict[str, str]:
    """The variables of a process of ours: it finds what was imported here, wherever it was found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def open_at(home: str, *arguments: Any) -> Any:
    """What the function ``MODULE:FUNCTION`` makes of the arguments."""
    module, function = home.split(":")
    return getattr(importlib.import_module(module), function)(*arguments)


class Isolated(Optioned):
    """A device whose `time` happens in another process; what it is and what it loads, it is and loads here.

    The process starts with the first call and serves all later ones.

    Args:
        home: ``MODULE:FUNCTION``, ``(kind, options) -> LocalDevice``, that opens the device, there as here.
    """

    def __init__(self, home: str, kind: str, options: Options) -> None:
        self.options = options
        self._device: LocalDevice = open_at(home, kind, options)
        words = [sys.executable, "-m", "latency_tables.isolated", home, kind, json.dumps(asdict(options))]
        self._worker = Worker(words, environment())

    @property
    def name(self) -> str:
        return self._device.name

    def fingerprint(self) -> dict[str, Any]:
        """See `Device.fingerprint`."""
        return self._device.fingerprint()

    def load(self, model: onnx.ModelProto | bytes) -> Runner:
        """See `Device.load`."""
        return self._device.load(model)

    def energy(self, model: onnx.ModelProto | bytes, run_ms: float) -> Energy | None:
        """See `Device.energy`; the runs are here."""
        return self._device.energy(model, run_ms)

    def time(
        self,
        candidates: Sequence[Candidate],
        *,
        rng: np.random.Generator,
        plan: Plan | None = None,
        progress: Progress = SILENT,
    ) -> list[Measurement | Failure]:
        """See `Device.time`; a failure, too, for a model that ends the process.

        Raises:
            UserError: the process cannot be started.
        """
        plan, unmade = plan or Plan(), dict[int, Failure]()
        left = len(candidates) + plan.rounds

        def content(index: int) -> Callable[[], bytes]:
            def make() -> bytes:
                try:
                    return serialised(candidates[index].model())
                except Exception as error:  # noqa: BLE001 - one model that cannot be made must not cost the others
                    unmade[index] = Failure(f"{type(error).__name__}: {error}")
                    return b""  # no runtime takes it

            return make

        def advance() -> None:
            nonlocal left
            left -= 1
            progress.advance()

        models = [content(index) for index in range(len(candidates))]
        try:
            timed = self._worker.time(models, plan, int(rng.integers(1 << 31)), self.threads == 1, advance)
        except RuntimeError as error:
            raise UserError(
                f"{self.name} cannot be started: {error}", allowed="A runtime that starts here", next_step="See: nas doctor"
            ) from None
        progress.advance(left)  # a process that ended did not tell of all
        return [unmade.get(index) or found for index, found in enumerate(understood(timed))]


def _main(home: str, kind: str, options: str) -> None:
    device: LocalDevice = open_at(home, kind, Options(**json.loads(options)))
    serve(lambda model: device.load(model).run, device.clock)


if __name__ == "__main__":
    _main(*sys.argv[1:])
