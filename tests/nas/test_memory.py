"""Memory that is freed stays with a process that asks for it, and with no other one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

import nas.cli

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can keep freed memory")

BLOCKS, BLOCK = 10, 64 << 20
PROBE = f"""
import ctypes, resource, sys, threading
import nas
print(nas.keep_freed_memory() if sys.argv[1] == "kept" else None)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def blocks():
    for _ in range({BLOCKS}):
        block = libc.malloc({BLOCK})
        libc.memset(block, 1, {BLOCK})
        libc.free(block)

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=blocks)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def probe(how: str, **environment: str) -> tuple[str, int]:
    """What the function answered in a fresh process, and the pages that the kernel gave for ten blocks, one after the other."""
    names = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how], env=clean | environment, capture_output=True, text=True, check=True, timeout=60
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


def test_a_block_is_paid_for_once_where_freed_memory_is_kept() -> None:
    answer, kept = probe("kept")
    assert answer == "True"
    assert kept < 0.3 * probe("not")[1]  # of ten blocks, the pages of the first


def test_who_has_set_the_allocator_is_left_alone() -> None:
    assert probe("kept", MALLOC_MMAP_THRESHOLD_="65536")[0] == "False"


def test_the_command_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(nas.cli, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(sys, "argv", ["nas", "--version"])
    with pytest.raises(SystemExit):
        nas.cli.main()
    assert called == [True]
