"""What the driver holds of each partition of a wide table: little, and little more while it is read."""

from __future__ import annotations

import tracemalloc

import pyarrow as pa

from featurestore.storage import fileset
from featurestore.storage.backends import open_object_store
from featurestore.storage.fileset import read_fileset, write_fileset
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry, StoredFile

COLUMNS = [f"a column of some name {number}" for number in range(250)]
MOST_HELD = 3_000
MOST_BESIDE = 16 * 250_000  # of the entries that are dictionaries at a time
"""Bytes; records of all columns as dictionaries would take 52,000 a partition."""


def entry(number: int) -> PartitionEntry:
    sizes = {name: 4_000 + (number + at) % 90 for at, name in enumerate(COLUMNS)}
    file = StoredFile(f"data/t/base/{number:06d}.parquet", 10**6, f"{number:032x}", "0" * 32)
    provenance = Provenance("ingest", f"{number:032x}")
    nulls = dict.fromkeys(COLUMNS, 0)
    return PartitionEntry(
        f"p{number:06d}", 1000, (file,), {}, provenance, 10**6, sizes, 1000, nulls, number, number
    )


def test_a_partition_of_a_wide_table_takes_little() -> None:
    store, count = open_object_store("memory://entries"), 200
    written = [entry(number) for number in range(count)]
    read_fileset(store, write_fileset(store, written[:1]))  # what is imported on the way
    tracemalloc.start()
    ref = write_fileset(store, written)
    _, writing = tracemalloc.get_traced_memory()
    fileset._cache.clear()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    pool = pa.default_memory_pool().bytes_allocated()
    read = read_fileset(store, ref)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(read) == written
    assert pa.default_memory_pool().bytes_allocated() == pool, "the Arrow table is still held"
    assert held - before <= count * MOST_HELD
    assert peak - before <= count * MOST_HELD + MOST_BESIDE + ref.file.bytes
    assert writing <= MOST_BESIDE + 2 * ref.file.bytes
