"""One thread for linear algebra on a few hundred rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]


@cache
def _libraries() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, and in functions that it decorates, the linear algebra of this process takes one thread.

    Models here are fitted by thousands of operations on matrices of a few hundred rows. Waking and awaiting threads takes
    longer than each of them: two threads double the time, and a machine that is busy makes it ten times as long.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield
