"""The command line. Nothing heavy is imported before a command runs: ``nas --help`` must answer at once."""

from __future__ import annotations

import os
import sys

from nas.cli.terminal import EXIT_INTERRUPTED, fail
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
        sys.exit(fail(error))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; what was finished is kept, run the same command again to go on\n")
        sys.exit(EXIT_INTERRUPTED)
