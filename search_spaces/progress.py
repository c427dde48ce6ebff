"""How long work reports how far it is: a Protocol, so that libraries never print."""

from __future__ import annotations

from typing import Protocol

__all__ = ["SILENT", "Progress", "Silent", "duration"]


class Progress(Protocol):
    """Told about one stretch of work after the other; a stretch ends with `stop`, also when the work fails."""

    def start(self, label: str, total: int) -> None:
        """A stretch of ``total`` steps begins."""

    def advance(self, n: int = 1) -> None:
        """``n`` more steps are done."""

    def stop(self) -> None:
        """The stretch is over."""

    def say(self, text: str) -> None:
        """One line for the reader, between stretches or during one."""


class Silent:
    """Progress that nobody watches."""

    def start(self, label: str, total: int) -> None:
        return None

    def advance(self, n: int = 1) -> None:
        return None

    def stop(self) -> None:
        return None

    def say(self, text: str) -> None:
        return None


SILENT: Progress = Silent()


def duration(seconds: float) -> str:
    """A length of time as people read it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
