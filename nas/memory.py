"""Memory that a process frees stays with the process.

The GNU C library maps a tensor of more than 32 MiB into memory for itself alone, and returns it when it is freed; of the next
one of that size the kernel has to clear every page again. A network spends up to two thirds of its time on that (224 pixels,
batches of 100). torch has a cache for the memory of GPUs, none for that of processors.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# glibc's malloc.h. Blocks above the first size that the library accepts are mapped for themselves (before 2.35 at most 32 MiB);
# setting any option ends its own choice of that size, so it comes first.
_MMAP_THRESHOLD, _MMAP_SIZES = -3, (2**30, 2**25)
_TRIM_THRESHOLD, _KEPT = -1, 2**31 - 1  # free memory at the heap's end that is kept
_ARENA_MAX = -8  # heaps of other threads hold blocks of 64 MiB at most, so all share one
_SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, up to 1 GiB a block, for what it allocates next.

    The ``nas`` command does so when it starts. Call it at the start of a script of your own that trains or scores on a
    processor, before threads are started: those that run keep heaps of their own. Where glibc's own variables
    (``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``) are set, they hold. Processes that time models are never changed: a model
    is deployed without this.

    Returns:
        Whether it is set; only the GNU C library, on Linux, can.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SET_BY_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    if not any(mallopt(_MMAP_THRESHOLD, size) for size in _MMAP_SIZES):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT) and mallopt(_ARENA_MAX, 1))
