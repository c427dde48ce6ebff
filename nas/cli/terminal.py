"""What the commands print: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from search_spaces.errors import UserError

__all__ = ["Stop", "TerminalProgress", "fail", "print_json", "show_table"]

EXIT_BROKEN = 1  # a promise or a proof does not hold
EXIT_USER = 2
EXIT_INTERRUPTED = 130


class TerminalProgress:
    """Bars with the time left on a terminal; elsewhere one plain line when a stretch of work begins and ends."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._label, self._begun = "", 0.0

    def start(self, label: str, total: int) -> None:
        self._label, self._begun = label, time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{label} ...", markup=False)
            return
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        left = [TextColumn("left"), TimeRemainingColumn()]
        self._bars = Bars(*columns, *left, console=self.console, transient=True)
        self._bars.start()
        self._task = self._bars.add_task(label, total=total)

    def advance(self, n: int = 1) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
        self.console.print(f"{self._label}: {time.monotonic() - self._begun:.1f} s", markup=False, style="dim")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)


class Stop:
    """Asked by long work whether to stop: True after the first Ctrl-C or SIGTERM; a second one, later, ends at once.

    Not one within a second: torchrun passes on as SIGTERM the Ctrl-C that its processes have already had.
    """

    def __init__(self) -> None:
        self._asked, self._when = False, 0.0

    def __call__(self) -> bool:
        return self._asked

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Take over the signals while the block runs."""

        def ask(_number: int, _frame: FrameType | None) -> None:
            if self._asked:
                if time.monotonic() - self._when > 1:
                    raise KeyboardInterrupt
                return
            self._asked, self._when = True, time.monotonic()
            sys.stderr.write("\nstopping after this step ...\n")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> None:
    """A plain table on stdout; numbers to the right."""
    table = Table(title=title or None, box=None, pad_edge=False, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(not str(row[index]) or str(row[index])[0] in "0123456789-+" for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    # A file or a pipe has no width: nothing is wrapped there.
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000).print(table)


def fail(error: UserError) -> int:
    """The three parts of a user's error on stderr; returns the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    # What a file says must not steer the terminal.
    problem, allowed, next_step = (
        "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
        for text in (error.problem, error.allowed, error.next_step)
    )
    console.print(f"error: {problem}", style="bold red", markup=False)
    console.print(f"  {allowed}.", markup=False)
    console.print(f"  {next_step}", markup=False)
    return EXIT_USER
