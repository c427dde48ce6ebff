"""The command line. Nothing heavy is imported before a command runs: ``nas --help`` must answer at once."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType

from nas.cli.terminal import EXIT_INTERRUPTED, EXIT_USER, fail
from nas.memory import keep_freed_memory
from search_spaces.errors import UserError

__all__ = ["main"]


INTERRUPTED = "\ninterrupted; what was finished is kept, run the same command again to go on\n"

# What the system refuses and the user can mend: what it means, what to do.
SYSTEM_ERRORS = {
    errno.ENOSPC: ("the disk is full", "Free some space"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space"),
    errno.EACCES: ("no permission", "Change the permissions, or choose another folder"),
    errno.EPERM: ("no permission", "Change the permissions, or choose another folder"),
    errno.EROFS: ("the file system is read-only", "Choose another folder"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "Correct the path"),
    errno.EISDIR: ("a folder stands where a file is needed", "Correct the path"),
    errno.EEXIST: ("a file stands where a folder is needed", "Correct the path"),
    errno.ENAMETOOLONG: ("a name is too long", "Choose a shorter one"),
    errno.ELOOP: ("links go round in circles", "Correct them"),
    errno.EMFILE: ("too many open files", "Raise the limit (ulimit -n)"),
    errno.EIO: ("the disk cannot be read or written", "Check the disk"),
    errno.ESTALE: ("the network file system has lost a file", "Mount it again"),
}


def main() -> None:
    """Run ``nas``; exits with 0, 1 (a proof or promise does not hold), 2 (bad input) or 130 (interrupted)."""
    # Two threads that wait for each other by spinning come to a standstill beside another busy process (50 times slower);
    # a short spin costs nothing on a quiet machine. Read by the OpenMP runtime when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    keep_freed_memory()
    from nas.cli.commands import app

    interrupted = _noting_interrupts()
    try:
        app()
    except SystemExit:
        if interrupted:  # the command line's library ends without a word
            sys.stderr.write(INTERRUPTED)
        raise
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":  # the first process says it in full
            sys.stderr.write(f"process {os.environ['RANK']}: {error.problem}\n")
            sys.exit(EXIT_USER)
        sys.exit(fail(error))
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        problem, next_step = SYSTEM_ERRORS[error.errno]
        kept = "Files are replaced when the new one is complete: what was finished is kept"
        again = f"{next_step}, then run the same command again"
        sys.exit(fail(UserError(f"{problem}: {error}", allowed=kept, next_step=again)))
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)


def _noting_interrupts() -> list[int]:
    """A list that a Ctrl-C adds to before it raises; commands that end their work in order listen themselves."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it ignored
        signal.signal(signal.SIGINT, note)
    return noted
