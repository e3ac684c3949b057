"""Ten times the rows take no more memory: the peak of an ingest depends on its limit alone.

The rows fill every buffer already in the smaller table. The system's allocator, as what Arrow's own keeps
for a tenth of a second after it was freed depends on the load of the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.testing.ingest_process import MIB, IngestRun, run_ingest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LIMIT = 56 * MIB
SMALL = 500_000

KINDS: dict[str, dict[str, Any]] = {
    "sorted": {"time": "t"},
    "unsorted": {"time": "t"},
    "unsorted with a key": {"key": ("k",), "time": "t"},
    "static with a key": {"key": ("k",), "duplicates": "last"},
}


def write(path: Path, rows: int, ordered: bool) -> Path:
    """Write rows in blocks; keys of one in a hundred rows repeat one that was there before."""
    random = np.random.default_rng(0)
    with pq.ParquetWriter(path, block(random, 0, 1, rows, True).schema) as writer:
        for start in range(0, rows, 50_000):
            writer.write_table(block(random, start, min(50_000, rows - start), rows, ordered))
    return path


def block(
    random: np.random.Generator, start: int, count: int, rows: int, ordered: bool
) -> pa.Table:
    numbers = np.arange(start, start + count)
    # A prime: every number once, far apart.
    times = numbers if ordered else (numbers * 1_000_003) % rows
    keys = np.where(random.random(count) < 0.01, numbers // 2, numbers)
    return pa.table(
        {
            "t": pa.array(times).cast(pa.timestamp("us")),
            "k": pa.array(keys).cast(pa.string()),
            "x": random.random(count),
            "y": random.random(count).astype(np.float32),
        }
    )


def ingested(folder: Path, kind: str, rows: int) -> IngestRun:
    ordered = kind == "sorted"
    found = run_ingest(
        folder,
        write(folder / "rows.parquet", rows, ordered),
        write(folder / "few.parquet", 2_000, ordered),
        limit=LIMIT,
        partition_bytes=2 * MIB,
        environment={"ARROW_DEFAULT_MEMORY_POOL": "system"},
        **KINDS[kind],
    )
    assert not found.refused
    assert found.partitions > 3
    assert found.added_bytes <= LIMIT
    print(f"{kind}, {rows} rows: {found}")
    return found


def require_flat(folder: Path, kind: str, small: int) -> None:
    """What allocators happen to keep only adds, so the least of some runs is what is needed."""
    once: list[int] = []
    tenfold: list[int] = []
    for attempt in range(3):
        place = folder / str(attempt)
        place.mkdir()
        once.append(ingested(place, kind, small).peak_bytes)
        tenfold.append(ingested(place, kind, 10 * small).peak_bytes)
        if min(tenfold) <= 1.05 * min(once):
            return
    raise AssertionError(f"{kind}: {once} and {tenfold} bytes")


@pytest.mark.parametrize("kind", ["sorted", "unsorted with a key", "static with a key"])
def test_ten_times_the_rows_have_the_same_peak(tmp_path, kind):
    require_flat(tmp_path, kind, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_times_the_rows_have_the_same_peak_also_when_there_are_many(tmp_path, kind):
    require_flat(tmp_path, kind, 4 * SMALL)
