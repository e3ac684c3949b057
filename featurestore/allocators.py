"""Giving freed memory back to the system: the allocators of a process keep it unless they are asked.

Three allocators work side by side. Arrow's pool (mimalloc unless told otherwise) keeps a heap for each
thread, and gives back what the *calling* thread owns only: memory that Arrow's own thread pools allocated
stays with them, so readers of ours decode in the thread that calls them (``use_threads=False``). The C
library's malloc, which NumPy and most libraries use, keeps what lies between live blocks until it is trimmed.
Polars' own allocator (jemalloc, linked into it) cannot be asked: it gives pages back by itself,
about two seconds after they were freed.

Always true: nothing here sets an option. What a process may be told before it starts (``ARROW_DEFAULT_MEMORY_POOL``,
``_RJEM_MALLOC_CONF``) is for whoever starts it; ``benchmarks/allocators.py`` measures what that would change.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Final

import pyarrow as pa

WORTH_RELEASING: Final = 2**20
"""Bytes: to give back less takes longer than it is worth."""


def release_freed() -> None:
    """Give memory that was freed back to the system, as far as allocators can be asked to.

    Call it in the thread that allocated, when large values were dropped: at the end of a task. It takes 0.1 ms
    where there is little to give back, and about 10 ms for 100 MB. What live objects hold stays.
    """
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's ``malloc_trim``; None where the C library is another one."""
    if sys.platform != "linux":
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None  # musl gives memory back by itself
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found
