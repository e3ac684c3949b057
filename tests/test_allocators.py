"""Freed memory goes back to the system, whichever allocator it came from, as far as they can be asked."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from featurestore import allocators
from featurestore.allocators import release_freed

MIB = 2**20
glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs glibc's malloc_trim",
)
START = """
import sys, threading
from featurestore.allocators import release_freed
from featurestore.limits import resident_bytes
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
release_freed()
before = resident_bytes()
"""


def run(code: str, *arguments: str) -> list[float]:
    """Return the MiB that a fresh process printed."""
    found = subprocess.check_output(
        [sys.executable, "-c", START + code, *arguments], timeout=120, text=True
    )
    return [int(one) / MIB for one in found.split()]


@glibc
def test_what_lies_between_live_blocks_goes_back() -> None:
    # Smaller than what malloc maps by itself, and a live one at the end keeps it from shrinking.
    kept, left = run("""
blocks = [bytes(30_000) for _ in range(2_000)]
last = blocks[-1]
del blocks
print(resident_bytes() - before)
release_freed()
print(resident_bytes() - before)
""")
    assert kept > 40
    assert left < 8


@pytest.mark.skipif(sys.platform != "linux", reason="needs resident memory as it is now")
def test_arrow_memory_of_this_thread_goes_back() -> None:
    live, left = run("""
def work(rows, found):
    words = pa.array(["a word"] * 10).take(pa.array(np.zeros(rows, dtype=np.int64)))
    table = pa.table({"x": np.arange(float(rows)), "s": words})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    source = sink.getvalue()
    back = pq.ParquetFile(pa.BufferReader(source)).read(use_threads=False)
    found.append(resident_bytes())
    del words, table, sink, source, back
    release_freed()
found = []
work(1000, found)  # loads libraries
before = resident_bytes()
work(1_000_000, found)
thread = threading.Thread(target=work, args=(1_000_000, found))
thread.start()
thread.join()
print(max(found) - before)
print(resident_bytes() - before)
""")
    assert live > 40
    assert left < 12


def test_without_malloc_trim_it_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        def __init__(self, _: object) -> None:
            pass

    allocators._malloc_trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", Musl)
    try:
        assert allocators._malloc_trim() is None
        release_freed()
    finally:
        allocators._malloc_trim.cache_clear()


def test_again_and_again_changes_nothing() -> None:
    block = bytearray(range(256)) * 100
    for _ in range(3):
        release_freed()
    assert block == bytearray(range(256)) * 100
