"""What partitions hold: every row once, in order, whole time groups, of about the wanted size."""

from __future__ import annotations

import math
import re
import tempfile
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import MemoryLimitError
from featurestore.ingest.buckets import Router
from featurestore.ingest.cuts import cut
from featurestore.ingest.memory import IngestMemory
from featurestore.ingest.sources import open_source
from featurestore.ingest.survey import TimeSample
from featurestore.schema import Field, TableSchema
from featurestore.storage.scratch import Scratch
from featurestore.storage.spill import SpillFile

QUICK = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXTS = st.sampled_from(["", "a", "b", "aé", "日本", "x" * 300])
ROWS = st.lists(
    st.tuples(st.integers(-5, 40), TEXTS, st.one_of(st.none(), st.floats(width=32))),
    min_size=1,
    max_size=120,
)


def table_of(rows):
    times, texts, values = zip(*rows, strict=True)
    return pa.table(
        {
            "when": pa.array([t * 1000 for t in times], pa.timestamp("ms")),
            "who": pa.array([f"k{text}" for text in texts], pa.string()),
            "value": pa.array(values, pa.float64()),
            "n": pa.array(range(len(rows)), pa.int64()),
        }
    )


def write(table: pa.Table, path: Path, format_: str) -> None:
    if format_ == "parquet":
        pq.write_table(table, path)
    elif format_ == "csv":
        # The writer would give integers for whole floats; nulls stay empty.
        pcsv.write_csv(table.set_column(2, "value", pc.cast(table["value"], pa.string())), path)
    elif format_ == "stream":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)


def same(a, b) -> bool:
    """Equality of rows in which NaN equals NaN."""
    return len(a) == len(b) and all(
        all(x[name] == y[name] or (x[name] != x[name] and y[name] != y[name]) for name in x)
        for x, y in zip(a, b, strict=True)
    )


@QUICK
@given(
    rows=ROWS,
    files=st.integers(1, 4),
    format_=st.sampled_from(["parquet", "csv", "stream", "file"]),
    target=st.sampled_from([1, 200, 2000, 1 << 20]),
    least=st.sampled_from([300, 256 << 10]),
    shuffle=st.randoms(use_true_random=False),
)
def test_any_split_order_and_format_gives_the_same_partitions(
    make_ingest, rows, files, format_, target, least, shuffle
):
    if format_ == "csv":
        # NaN and null are one in CSV.
        rows = [(t, s, None if v is None or math.isnan(v) else v) for t, s, v in rows]
        rows = [*rows, (0, "a", 0.5)]
    table = table_of(rows)
    expected = table.sort_by([("when", "ascending"), ("who", "ascending"), ("n", "ascending")])
    order = list(range(table.num_rows))
    shuffle.shuffle(order)
    mixed = table.take(pa.array(order)).drop_columns("n")
    if format_ == "csv":
        files = 1  # The types of a tiny part cannot be guessed.
    per_file = -(-len(rows) // files)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(files):
            part = mixed.slice(index * per_file, per_file)
            write(part, Path(folder) / f"{index}.{format_}", format_)
        ingest = make_ingest()
        types = {"value": "float64", "when": "timestamp[ms]"} if format_ == "csv" else None
        # Runs of 300 bytes go through spilled buckets and many cuts.
        with patch("featurestore.ingest.memory._LEAST", least):
            entries = ingest(
                str(Path(folder) / f"*.{format_}"), ("who",), "when", target, "keep", types
            )
    found = ingest.rows(entries)
    by_value = lambda row: (row["when"], row["who"], repr(row["value"]))  # noqa: E731
    assert [(r["when"], r["who"]) for r in found] == [
        (r["when"], r["who"]) for r in expected.to_pylist()
    ]
    assert same(
        sorted(found, key=by_value),
        sorted(expected.drop_columns("n").to_pylist(), key=by_value),
    )
    # The cut depends on the sorted rows alone.
    direct = make_ingest()
    again = direct(expected.drop_columns("n"), ("who",), "when", target, "keep")
    assert [(one.rows, one.time_min, one.time_max) for one in again] == [
        (one.rows, one.time_min, one.time_max) for one in entries
    ]
    for before, after in pairwise(entries):
        assert before.time_max < after.time_min


@QUICK
@given(rows=ROWS, least=st.sampled_from([300, 256 << 10]))
def test_equal_rows_keep_the_order_in_which_they_came(make_ingest, rows, least):
    ingest = make_ingest()
    with patch("featurestore.ingest.memory._LEAST", least):
        found = ingest.rows(ingest(table_of(rows), ("who",), "when", 500, "keep"))
    assert found == sorted(found, key=lambda row: (row["when"], row["who"], row["n"]))


@QUICK
@given(rows=ROWS, least=st.sampled_from([300, 256 << 10]))
def test_last_keeps_the_row_that_came_last(make_ingest, rows, least):
    ingest = make_ingest()
    table = table_of(rows)
    with patch("featurestore.ingest.memory._LEAST", least):
        found = ingest.rows(ingest(table, ("who",), "when", 500, "last"))
    expected = {(row["when"], row["who"]): row["n"] for row in table.to_pylist()}
    assert [row["n"] for row in found] == [expected[key] for key in sorted(expected)]


@QUICK
@given(rows=ROWS, limit=st.sampled_from([200, 2000, 10**6]))
def test_last_of_a_static_table_keeps_the_order_of_the_source(make_ingest, rows, limit):
    ingest = make_ingest()
    table = table_of(rows)
    found = ingest.rows(ingest(table, ("who",), None, limit, "last"))
    last = {row["who"]: row["n"] for row in table.to_pylist()}
    assert [row["n"] for row in found] == sorted(last.values())


@pytest.mark.parametrize("ordered", [True, False])
def test_sizes_are_near_the_target_and_there_is_no_tiny_last_one(ingest, ordered):
    rng = np.random.default_rng(1)
    count = 200_000
    times = rng.integers(0, 50_000, count)
    times = np.sort(times) if ordered else times
    table = pa.table({"t": times, "a": rng.random(count), "b": rng.random(count)})
    target = 300_000
    phases = set()
    entries = ingest(
        table,
        time="t",
        partition_bytes=target,
        memory_limit=8 << 20,
        on_progress=lambda done, total, phase, projected: phases.add(phase),
    )
    assert sum(one.rows for one in entries) == count
    sizes = [one.rows * 24 for one in entries]
    share = sum(sizes) / round(sum(sizes) / target)
    assert max(abs(size - share) for size in sizes) < 0.05 * target
    # Sorted input takes no detour.
    assert phases == ({"survey", "write"} if ordered else {"survey", "route", "write"})
    found = pa.concat_tables(ingest.read(entries))
    assert found.column("t").to_pylist() == sorted(times.tolist())
    assert sorted(found.column("a").to_pylist()) == sorted(table.column("a").to_pylist())
    assert list(ingest.scratch.iterdir()) == []


def test_one_heavy_time_gives_one_larger_partition(ingest):
    rng = np.random.default_rng(0)
    times = np.concatenate([np.full(60_000, 500), rng.integers(0, 1000, 40_000)])
    rng.shuffle(times)
    entries = ingest(
        pa.table({"t": times}), time="t", partition_bytes=40_000, memory_limit=32 << 20
    )
    heavy = [one for one in entries if one.time_min <= 500 <= one.time_max]
    assert len(heavy) == 1
    assert heavy[0].rows >= 60_000
    assert all(one.rows * 8 < 80_000 for one in entries if one is not heavy[0])


def test_a_sample_that_misleads_is_mended(tmp_path):
    schema = TableSchema((Field("t", pa.int64()),), time="t")
    rows = pa.table({"t": np.concatenate([np.zeros(10, np.int64), np.arange(100_000)])})
    with SpillFile(Scratch(tmp_path)) as spill:
        router = Router(spill, schema, 100_000)
        coarse = router.route(rows.to_batches(1000), np.array([1], np.int64))
        assert len(coarse) == 2
        fine = [one for bucket in coarse for one in router.refine(bucket, 200_000)]
        assert all(one.held <= 200_000 for one in fine)
        assert sum(one.rows for one in fine) == rows.num_rows
        for before, after in pairwise(fine):
            assert before.last < after.first
    assert list(tmp_path.iterdir()) == []


@QUICK
@given(
    times=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50),
    parts=st.integers(2, 20),
)
def test_cuts_part_every_range_that_can_be_parted(times, parts):
    sample = TimeSample()
    sample.add(np.array(times, np.int64), np.ones(len(times), np.int64))
    first, last = min(times), max(times)
    cuts = sample.cuts(parts, first, last)
    assert (cuts[1:] > cuts[:-1]).all()
    assert ((cuts > first) & (cuts <= last)).all()
    assert (len(cuts) > 0) == (first < last)


@QUICK
@given(
    times=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    target=st.integers(1, 400),
    splits=st.lists(st.integers(0, 30), max_size=4),
)
def test_cutting_does_not_depend_on_runs(times, target, splits):
    schema = TableSchema((Field("t", pa.int64()),), time="t")
    values = np.sort(np.array(times, np.int64))
    edges = [0, *sorted(int(np.searchsorted(values, s)) for s in splits), len(values)]
    runs = [pa.table({"t": values[a:b]}) for a, b in pairwise(edges) if a < b]
    whole = list(cut([pa.table({"t": values})], schema, 8 * len(values), target))
    parts = list(cut(runs, schema, 8 * len(values), target))
    assert [p.column("t").to_pylist() for p in parts] == [p.column("t").to_pylist() for p in whole]
    assert [t for p in parts for t in p.column("t").to_pylist()] == values.tolist()
    seen: set[int] = set()
    for part in parts:
        own = set(part.column("t").to_pylist())
        assert own
        assert not own & seen
        seen |= own


def test_a_group_too_large_for_the_limit_is_refused_before_anything_is_written(ingest):
    for times in (np.zeros(1_000_000, np.int64), np.repeat([5, 3, 5], 400_000)):
        with pytest.raises(MemoryLimitError, match="raise memory_limit to at least") as caught:
            ingest(
                pa.table({"t": times, "x": np.ones(len(times))}),
                time="t",
                partition_bytes=1 << 20,
                memory_limit=16 << 20,
            )
        assert "the memory limit is 16.0 MiB" in str(caught.value)
        assert ingest.listing() == []


def test_partitions_larger_than_the_limit_are_refused_with_both_remedies(ingest):
    table = pa.table({"x": np.ones(4_000_000)})
    with pytest.raises(MemoryLimitError, match=r"lower partition_bytes to \d+ .* raise"):
        ingest(table, partition_bytes=64 << 20, memory_limit=16 << 20)
    assert IngestMemory(1 << 30, 128 << 20).run == 128 << 20


@pytest.mark.parametrize("together", [60_000, 250_000])
def test_what_is_named_for_partitions_has_room_for_the_rows_of_a_time(make_ingest, together):
    times = np.maximum(np.arange(1_000_000), together)
    table = pa.table({"t": times, "x": np.ones(len(times))})
    with pytest.raises(MemoryLimitError) as caught:
        make_ingest()(table, time="t", partition_bytes=64 << 20, memory_limit=24 << 20)
    named = re.search(r"memory_limit to at least (\d+)MiB", caught.value.remedy)
    assert named is not None
    limit = int(named[1]) << 20
    assert make_ingest()(table, time="t", partition_bytes=64 << 20, memory_limit=limit)
    smaller = re.search(r"lower partition_bytes to (\d+)", caught.value.remedy)
    assert (smaller is not None) == (together == 60_000)
    if smaller is not None:
        size = int(smaller[1])
        assert make_ingest()(table, time="t", partition_bytes=size, memory_limit=24 << 20)


def test_provenance_follows_the_bytes(ingest, make_ingest):
    table = pa.table({"t": [1, 2, 3], "x": [1.0, 2.0, 3.0]})
    first, second = (one(table, time="t")[0] for one in (ingest, make_ingest()))
    other = make_ingest()(pa.table({"t": [1, 2, 3], "x": [1.0, 2.0, 4.0]}), time="t")[0]
    assert first.provenance == second.provenance
    assert first.provenance.definition == "ingest"
    assert first.provenance.inputs != other.provenance.inputs
    assert (first.time_min, first.time_max, first.rows) == (1, 3, 3)


def test_ids_follow_the_sequence(ingest):
    entries = ingest(pa.table({"t": range(100)}), time="t", partition_bytes=80, first_sequence=7)
    ids = [one.partition for one in entries]
    assert len(ids) == 10
    assert ids == sorted(ids)
    assert ids[0].startswith("p00000007-")


def test_dates_count_as_microseconds(ingest):
    entries = ingest(pa.table({"d": pa.array([10, 3], pa.date32())}), time="d")
    assert (entries[0].time_min, entries[0].time_max) == (3 * 86_400_000_000, 10 * 86_400_000_000)


@pytest.mark.parametrize("ordered", [True, False])
def test_tensors_travel_with_their_rows(ingest, ordered):
    rng = np.random.default_rng(2)
    times = np.arange(5000) if ordered else rng.permutation(5000)
    values = rng.random((5000, 6)).astype(np.float32)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 3)
    table = pa.table({"t": times, "e": pa.FixedSizeListArray.from_arrays(inner, 2)})
    entries = ingest(table, time="t", partition_bytes=20_000, memory_limit=4 << 20)
    assert len(entries) > 3
    found = ingest.tensor(entries, "e")
    assert found.shape == (5000, 2, 3)
    np.testing.assert_array_equal(found.reshape(5000, 6), values[np.argsort(times)])


def test_a_table_of_tensors_alone(ingest):
    values = pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.int32()), 4)
    entries = ingest(pa.table({"e": values}))
    assert ingest.tensor(entries, "e").tolist() == np.arange(12).reshape(3, 4).tolist()


def test_without_time_or_key_the_order_of_the_source_stays(ingest):
    values = list(range(1000, 0, -1))
    entries = ingest(pa.table({"x": values}), partition_bytes=800)
    assert len(entries) == 10
    assert [row["x"] for row in ingest.rows(entries)] == values
    assert entries[0].time_min is None


def test_a_source_may_be_read_again(ingest):
    source = open_source(pa.table({"t": [2, 1]}))
    first = ingest(source, time="t")
    assert ingest.rows(ingest(source, time="t")) == ingest.rows(first)
