"""The command line. Nothing heavy is imported before a command runs: ``nas --help`` must answer at once."""

from __future__ import annotations

import errno
import os
import sys

from nas.cli.terminal import EXIT_INTERRUPTED, EXIT_USER, fail
from search_spaces.errors import UserError

__all__ = ["main"]


def main() -> None:
    """Run ``nas``; exits with 0, 1 (a proof or promise does not hold), 2 (bad input) or 130 (interrupted)."""
    # Two threads that wait for each other by spinning come to a standstill beside another busy process (50 times slower);
    # a short spin costs nothing on a quiet machine. Read by the OpenMP runtime when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from nas.cli.commands import app

    try:
        app()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":  # the first process says it in full
            sys.stderr.write(f"process {os.environ['RANK']}: {error.problem}\n")
            sys.exit(EXIT_USER)
        sys.exit(fail(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        problem = f"the disk is full: {error}"
        kept = "Files are replaced when the new one is complete: what was finished is kept"
        sys.exit(fail(UserError(problem, allowed=kept, next_step="Free some space, then run the same command again")))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; what was finished is kept, run the same command again to go on\n")
        sys.exit(EXIT_INTERRUPTED)
