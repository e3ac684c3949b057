"""Sources that are meant to break a memory limit: each is ingested within it, or refused in words.

Every ingest runs in a process of its own, with the default allocators, and its peak is the kernel's.
The limit counts from what the process holds after an ingest of a few rows of the same kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from featurestore.testing.ingest_process import MIB, IngestRun, run_ingest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def plain(rows: int, columns: int = 1, seed: int = 0) -> dict[str, Any]:
    """Return a time of each row's own in random order, a key that repeats, and numbers."""
    random = np.random.default_rng(seed)
    return {
        "t": pa.array(random.permutation(rows)).cast(pa.timestamp("us")),
        "k": pa.array(random.integers(0, 10**9, rows)).cast(pa.string()),
        **{f"x{index:05d}": random.random(rows) for index in range(columns)},
    }


def with_long_text(rows: int, length: int) -> pa.Table:
    """Return rows of short texts, one in the middle of ``length`` bytes."""
    texts = [f"text {index}" for index in range(rows)]
    texts[rows // 2] = "x" * length if length else "short"
    return pa.table({**plain(rows), "text": pa.array(texts)})


def write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pcsv.write_csv(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=4096)
    return path


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., IngestRun]:
    """Ingest a table, or a file, within a limit; nothing of it may be left where it was refused."""

    def ingested(
        table: pa.Table | Path,
        limit: int,
        suffix: str = ".parquet",
        key: tuple[str, ...] = ("k",),
        time: str | None = "t",
        **options: Any,
    ) -> IngestRun:
        if isinstance(table, pa.Table):
            few = table.select(table.column_names[:20])
            path, tiny = write(table, tmp_path / f"rows{suffix}"), few.slice(0, 8)
        else:
            path, tiny = table, pa.table(plain(8))
        small = write(tiny, tmp_path / f"few{suffix}")
        found = run_ingest(tmp_path, path, small, limit=limit, key=key, time=time, **options)
        print(f"{found.added_bytes / MIB:.1f} of {limit / MIB:.0f} MiB: {found}")
        assert found.added_bytes <= limit
        if found.refused:
            assert not list((tmp_path / "store" / "data").glob("whole/**/*.*"))
            assert "Remedy: " in found.refused
        left = {one.name for one in tmp_path.iterdir()} - {"store", path.name, small.name}
        assert not left
        return found

    return ingested


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_a_text_of_100_megabytes_is_refused_within_300_mebibytes(ingest, suffix):
    found = ingest(with_long_text(20_000, 100_000_000), 300 * MIB, suffix)
    assert found.refused.startswith("MemoryLimitError")
    assert "raise memory_limit" in found.refused


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_a_text_of_16_megabytes_is_ingested_within_300_mebibytes(ingest, suffix):
    found = ingest(with_long_text(20_000, 16_000_000), 300 * MIB, suffix)
    assert (found.rows, found.refused) == (20_000, "")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_a_text_of_100_megabytes_is_ingested_where_there_is_room(ingest, suffix):
    found = ingest(with_long_text(20_000, 100_000_000), 1300 * MIB, suffix)
    assert (found.rows, found.refused) == (20_000, "")


def with_heavy_time(size: int) -> pa.Table:
    """Return 100 times of ``size`` rows each in random order, but for one that has 50 times as many."""
    heavy = 50
    counts = np.where(np.arange(100) == heavy, heavy * size, size)
    times = np.random.default_rng(1).permutation(np.repeat(np.arange(100), counts))
    columns = plain(len(times), 6)
    columns["t"] = pa.array(times).cast(pa.timestamp("us"))
    return pa.table(columns)


@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_a_time_that_has_50_times_the_rows_of_others_is_kept_together(ingest, order):
    table = with_heavy_time(2_000)
    table = table.sort_by("t") if order == "sorted" else table
    found = ingest(table, 160 * MIB, duplicates="keep", partition_bytes=2 * MIB)
    assert (found.rows, found.refused) == (table.num_rows, "")


@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_a_time_that_does_not_fit_is_refused_by_its_name_and_size(ingest, order):
    table = with_heavy_time(4_000)
    table = table.sort_by("t") if order == "sorted" else table
    found = ingest(table, 112 * MIB, duplicates="keep", partition_bytes=2 * MIB)
    assert found.refused.startswith("MemoryLimitError: the rows of ")
    assert "or give a finer time column" in found.refused


@pytest.mark.parametrize("time", ["t", None])
def test_a_million_distinct_keys_in_one_partition(ingest, time):
    rows = 1_000_000
    table = pa.table({**plain(rows), "k": pa.array(np.arange(rows)).cast(pa.string())})
    found = ingest(table, 300 * MIB, time=time, partition_bytes=64 * MIB)
    assert (found.rows, found.partitions) == (rows, 1)


def test_a_key_of_nine_rows_in_ten_in_a_table_without_time(ingest):
    rows = 600_000
    keys = np.where(np.arange(rows) % 10 < 9, 0, np.arange(rows))
    table = pa.table({**plain(rows, 2), "k": pa.array(keys).cast(pa.string())})
    found = ingest(table, 120 * MIB, time=None, duplicates="last", partition_bytes=4 * MIB)
    assert found.rows == len(np.unique(keys))


def test_ten_thousand_columns(ingest):
    found = ingest(pa.table(plain(60, 10_000)), 300 * MIB)
    assert (found.rows, found.refused) == (60, "")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_ten_thousand_columns_of_ten_megabytes(ingest, suffix):
    found = ingest(pa.table(plain(125, 10_000)), 320 * MIB, suffix)
    assert (found.rows, found.refused) == (125, "")


def test_ten_thousand_columns_that_do_not_fit_are_refused_before_they_are_read(ingest):
    found = ingest(pa.table(plain(60, 10_000)), 120 * MIB)
    assert found.refused.startswith("MemoryLimitError: reading ")


def one_row_group(path: Path, rows: int, columns: int) -> Path:
    """Write a file of one row group; its pages are as large as usual."""
    values = np.random.default_rng(2).integers(0, 1000, rows).astype(np.float64)
    numbers = {f"x{index:05d}": np.roll(values, index) for index in range(columns)}
    times = pa.array(np.arange(rows)).cast(pa.timestamp("us"))
    keys = pa.array(np.arange(rows)).cast(pa.string())
    table = pa.table({"t": times, "k": keys, **numbers})
    pq.write_table(table, path, row_group_size=rows, use_dictionary=False)
    assert pq.ParquetFile(path).num_row_groups == 1
    return path


def test_a_row_group_larger_than_the_limit_is_streamed(ingest, tmp_path):
    path = one_row_group(tmp_path / "group.parquet", 1_000_000, 14)
    found = ingest(path, 96 * MIB, partition_bytes=4 * MIB)
    assert (found.rows, found.refused) == (1_000_000, "")


@pytest.mark.slow
def test_a_row_group_of_two_gibibytes_is_streamed(ingest, tmp_path):
    path = one_row_group(tmp_path / "group.parquet", 4_000_000, 62)
    found = ingest(path, 300 * MIB)
    assert (found.rows, found.refused) == (4_000_000, "")
