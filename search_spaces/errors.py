"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["UserError", "unknown_name"]


LONGEST = 4000  # characters of a part


class UserError(Exception):
    """Bad input: what is wrong with the value, what is allowed, which command to run next.

    The command line prints the three parts and exits with 2; no traceback.
    """

    def __init__(self, problem: str, *, allowed: str, next_step: str) -> None:
        # What a file says may have any length.
        problem, allowed, next_step = (
            text if len(text) <= LONGEST else f"{text[:LONGEST]} ..." for text in (problem, allowed, next_step)
        )
        super().__init__(f"{problem}. {allowed}. {next_step}.")
        self.problem = problem
        self.allowed = allowed
        self.next_step = next_step

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process that raises it sends it as its parts.
        return _user_error, (self.problem, self.allowed, self.next_step)


def _user_error(problem: str, allowed: str, next_step: str) -> UserError:
    return UserError(problem, allowed=allowed, next_step=next_step)


def unknown_name(kind: str, value: str, known: Iterable[str], *, command: str) -> UserError:
    """The error for a name that is not in a list; offers the nearest one.

    Args:
        kind: what the name should have been, e.g. ``"space"``.
        value: what was given.
        known: all allowed names.
        command: the command that lists them.
    """
    names = sorted(known)
    part, lower = str(value).lower(), [name.lower() for name in names]
    containing = [name for name in lower if part and part in name]
    close = difflib.get_close_matches(part, containing or lower, n=1, cutoff=0.0 if containing else 0.4)
    hint = next((f" (did you mean '{name}'?)" for name in names if close and name.lower() == close[0]), "")
    return UserError(
        f"unknown {kind} '{value}'{hint}",
        allowed=f"known: {', '.join(names)}",
        next_step=f"List them with: {command}",
    )
