"""Memory that a process holds: taken for certain and read exactly, for tests of what measures it."""

from __future__ import annotations

import gc
import os
from typing import Final

from featurestore.allocators import release_freed
from featurestore.profiling.probe import memory_of

MIB: Final = 2**20
_PAGE: Final = 4096


def touch(mebibytes: int) -> bytearray:
    """Take memory and write to every page of it.

    From 33 MiB on it is fresh, however much of other tests the allocator keeps.
    """
    block = bytearray(mebibytes * MIB)
    block[::_PAGE] = b"x" * len(block[::_PAGE])
    return block


def kept_bytes() -> int:
    """Return the anonymous memory of this process after what was freed is given back.

    Pages of files are the kernel's to take back; they do not count. Linux only.
    """
    gc.collect()
    release_freed()
    anonymous, _, _ = memory_of(os.getpid())
    return anonymous
