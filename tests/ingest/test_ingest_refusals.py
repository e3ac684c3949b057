"""Bad input: the message says what, where, how many and what to do; the store stays as it was."""

from __future__ import annotations

import errno
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import (
    DiskFullError,
    DuplicateRowsError,
    FeatureStoreError,
    InvalidInputError,
    LateRowsError,
    SchemaError,
    SourceError,
)
from featurestore.ingest.sources import open_source
from featurestore.schema import Field
from featurestore.storage import spill

GOOD = pa.table({"k": ["a", "b"], "t": [1, 2]})


def refused(ingest, error, source, *parts, **options):
    """Ingest, expect the error with all parts in its text, and nothing left anywhere."""
    ingest(GOOD, ("k",), "t")
    before = ingest.listing()
    with pytest.raises(error) as caught:
        ingest(source() if callable(source) else source, **options)
    text = str(caught.value)
    for part in parts:
        assert re.search(part, text, re.DOTALL), f"{part!r} is not in {text!r}"
    assert caught.value.remedy
    assert ingest.listing() == before
    assert list(ingest.scratch.iterdir()) == []


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_glob_without_a_match(ingest, tmp_path):
    pattern = str(tmp_path / "none" / "*.parquet")
    refused(ingest, SourceError, pattern, f"no file matches {re.escape(pattern)}", "pattern")


def test_missing_file(ingest, tmp_path):
    refused(ingest, SourceError, tmp_path / "gone.parquet", "gone.parquet is not a file")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"", r"x.parquet is empty \(0 bytes\)"),
        ("x.csv", b"", r"x.csv is empty \(0 bytes\)"),
        ("x.parquet", b"hello world", "x.parquet is not Parquet: it begins with b'hello wo'"),
        ("x.bin", b"hello world", "no format that ingest understands"),
        ("x.parquet", b"PAR1" + b"0" * 100, "x.parquet cannot be read as Parquet"),
        ("x.arrow", b"ARROW1\0\0" + b"0" * 100, "x.arrow cannot be read as Arrow IPC"),
        ("x.csv", b"a,b\n1,2\n3\n", "x.csv cannot be read as CSV: .*Expected 2 columns, got 1"),
        ("x.csv", b"a,a\n1,2\n", r"columns \['a'\] of .*x.csv occur more than once"),
        ("x.csv", b"a,b\n", "no value where its type is looked for"),
    ],
)
def test_unreadable_files(ingest, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(ingest, (SourceError, SchemaError), tmp_path / name, message)


def test_truncated_parquet(ingest, tmp_path):
    path = parquet(tmp_path / "x.parquet", t=list(range(10_000)))
    path.write_bytes(path.read_bytes()[:-20])
    refused(ingest, SourceError, path, "x.parquet cannot be read as Parquet", "truncated")


def test_parquet_damaged_inside(ingest, tmp_path):
    table = pa.table({"t": np.arange(50_000), "x": np.random.default_rng(0).random(50_000)})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 255
    path.write_bytes(data)
    refused(ingest, SourceError, path, "x.parquet cannot be read as Parquet", time="t")


def test_damaged_arrow_file(ingest, tmp_path):
    path = tmp_path / "x.arrow"
    table = pa.table({"s": ["abc"] * 1000})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    data = bytearray(path.read_bytes())
    offsets = data.find(np.array([0, 3, 6, 9], np.int32).tobytes())
    data[offsets + 4 : offsets + 8] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    refused(ingest, SourceError, path, "x.arrow cannot be read as Arrow IPC")


def test_no_rows(ingest, tmp_path):
    path = parquet(tmp_path / "x.parquet", t=pa.nulls(0, pa.int64()))
    refused(ingest, SourceError, path, "no rows in .*x.parquet", time="t")
    refused(ingest, SourceError, [], "list of sources is empty")


def test_directories(ingest, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    refused(ingest, SourceError, folder, "holds no files", r"\*\*")
    parquet(folder / "a.parquet", t=[1])
    (folder / "b.csv").write_text("t\n1\n")
    refused(ingest, SourceError, folder, r"several kinds: \['.csv', '.parquet'\]")


def test_addresses_and_objects_that_are_no_sources(ingest):
    refused(ingest, SourceError, "s3://bucket/x.parquet", "address, not a path")
    refused(ingest, SourceError, object, "builtins.object", "__arrow_c_stream__")
    refused(ingest, SourceError, lambda: pl.LazyFrame({"a": [1]}), "LazyFrame", "collect")


def test_pandas(ingest):
    refused(ingest, SchemaError, lambda: pd.DataFrame({0: [1]}), r"not strings: \[0\]", "rename")
    refused(ingest, SourceError, lambda: pd.DataFrame({"a": [1, "x"]}), "cannot be read as Arrow")


def test_types_that_cannot_be_stored(ingest, tmp_path):
    path = parquet(tmp_path / "x.parquet", s=[{"a": 1}])
    refused(ingest, SchemaError, path, "column 's' of .*x.parquet has type struct", "each member")
    maps = pa.table({"m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))})
    refused(ingest, SchemaError, maps, "column 'm' of the source has type map")
    nulls = pa.table({"n": pa.nulls(2)})
    refused(ingest, SchemaError, nulls, "column 'n' of the source has no value", "types=")


def test_tensor_with_nulls(ingest):
    table = pa.table({"e": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))})
    refused(ingest, SchemaError, table, "tensor column 'e' of the source has 1 nulls in 2 rows")


def test_files_that_disagree(ingest, tmp_path):
    one = parquet(tmp_path / "one.parquet", t=[1], x=[1])
    two = parquet(tmp_path / "two.parquet", t=[1], x=["a"])
    refused(
        ingest, SchemaError, [one, two],
        "column 'x' is int64 in .*one.parquet but string in .*two.parquet",
    )  # fmt: skip
    three = parquet(tmp_path / "three.parquet", t=[1], y=[1])
    refused(
        ingest, SchemaError, [one, three],
        r"three.parquet lacks columns \['x'\] and has extra columns \['y'\], compared with .*one",
    )  # fmt: skip


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_mixed_time_zones(ingest, tmp_path, zone):
    one = parquet(tmp_path / "one.parquet", t=pa.array([1], pa.timestamp("us", tz="UTC")))
    two = parquet(tmp_path / "two.parquet", t=pa.array([1], pa.timestamp("us", tz=zone)))
    refused(
        ingest, SchemaError, [one, two],
        f"'t' has UTC in .*one.parquet but {zone or 'no time zone'} in .*two.parquet", "UTC is best",
        time="t",
    )  # fmt: skip


def test_key_and_time_columns(ingest, tmp_path):
    table = pa.table({"t": [1.5], "s": ["01/02/2013"], "l": [[1]]})
    refused(ingest, SchemaError, table, "'gone' is not among the columns", time="gone")
    refused(ingest, SchemaError, table, "'gone' is not among", key=("gone",))
    refused(ingest, SchemaError, table, "time column 't' has type double", time="t")
    refused(ingest, SchemaError, table, "key column 'l' has type list", key=("l",))
    refused(ingest, SchemaError, table, "names a column twice", key=("s", "s"))
    path = tmp_path / "x.csv"
    path.write_text("t\n01/02/2013 5pm\n")
    refused(ingest, SchemaError, path, "time column 't' of .*x.csv is text", "ISO 8601", time="t")
    huge = pa.table({"t": pa.array([2**64 - 1], pa.uint64())})
    refused(ingest, InvalidInputError, huge, "out of range", time="t")
    refused(ingest, InvalidInputError, GOOD, "duplicates='first' is not known", duplicates="first")


def test_nulls_in_key_and_time(ingest, tmp_path):
    one = parquet(tmp_path / "one.parquet", k=[0.5, 1.0], t=[1, 2])
    two = parquet(tmp_path / "two.parquet", k=[None, float("nan"), 1.0], t=[1, None, None])
    refused(
        ingest, SchemaError, [one, two],
        r"column 'k' of .*two.parquet: 2 rows \(the first: 1, 2\)",
        r"column 't' of .*two.parquet: 2 rows \(the first: 2, 3\)",
        "drop those rows", key=("k",), time="t",
    )  # fmt: skip


@pytest.mark.parametrize("shuffled", [False, True])
def test_duplicates_are_counted_and_shown_with_their_places(ingest, tmp_path, shuffled):
    times = np.arange(60_000)
    if shuffled:
        np.random.default_rng(0).shuffle(times)
    one = parquet(tmp_path / "one.parquet", k=["a"] * 60_000, t=times.astype("datetime64[s]"))
    two = parquet(
        tmp_path / "two.parquet",
        k=["b", *["a"] * 5],
        t=np.array([7, 5, 700, 40_000, 5, 5], "datetime64[s]"),
    )
    place = int(np.flatnonzero(times == 5)[0]) + 1
    refused(
        ingest, DuplicateRowsError, [one, two],
        "5 rows repeat the key and time",
        rf"\(k='a', t=1970-01-01 00:00:05\) in .*one.parquet row {place} and .*two.parquet row 2",
        "t=1970-01-01 00:11:40", 'duplicates="last"',
        key=("k",), time="t", partition_bytes=50_000, memory_limit=3 << 20,
    )  # fmt: skip


def test_duplicates_of_a_static_table(ingest):
    table = pa.table({"k": [0.0, 1.0, 2.0, -0.0], "v": [1, 2, 3, 4]})
    refused(
        ingest, DuplicateRowsError, table, "1 rows repeat the key", "source row 1 and .* row 4",
        key=("k",),
    )  # fmt: skip
    assert [r["v"] for r in ingest.rows(ingest(table, ("k",), duplicates="keep"))] == [1, 2, 3, 4]


def test_a_static_table_grows_by_new_keys_only(ingest):
    base = ingest(pa.table({"k": [1, 2]}), ("k",))
    options = {"key": ("k",), "existing": base, "schema": (Field("k", pa.int64()),)}
    assert ingest.rows(ingest(pa.table({"k": [4, 3]}), **options)) == [{"k": 4}, {"k": 3}]
    for policy, message in (("error", "1 rows repeat the key"), ("last", "the table has already")):
        refused(
            ingest, DuplicateRowsError, pa.table({"k": [3, 2]}), message,
            duplicates=policy, **options,
        )  # fmt: skip


def test_equal_times_without_a_key_are_allowed(ingest):
    assert len(ingest.rows(ingest(pa.table({"t": [1, 1, 1]}), time="t"))) == 3


def test_late_rows(ingest):
    times = pa.array(
        np.array([5, 86_400, 90_000, 100_000], "datetime64[s]").astype("datetime64[ms]")
    )
    refused(
        ingest, LateRowsError, pa.table({"t": times}),
        "2 of 4 rows have a 't' from 1970-01-01 00:00:05 to 1970-01-02 00:00:00, not after",
        "newest, 1970-01-02 00:00:00", "use replace", time="t", after=86_400_000,
        schema=(Field("t", pa.timestamp("ms")),),
    )  # fmt: skip
    assert len(ingest(pa.table({"t": times[2:]}), time="t", after=86_400_000)) == 1


def test_append_with_another_schema(ingest):
    refused(
        ingest, SchemaError, pa.table({"t": [1], "y": [1]}),
        r"lacks columns \['x'\] and has extra columns \['y'\], compared with the table",
        time="t", schema=(Field("t", pa.int64()), Field("x", pa.int64())),
    )  # fmt: skip


def unsorted(rows=300_000):
    return pa.table({"t": np.random.default_rng(0).permutation(rows), "x": np.zeros(rows)})


SPILLING = {"time": "t", "partition_bytes": 200_000, "memory_limit": 3 << 20}


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_scratch_disk_full(ingest, monkeypatch):
    ingest(GOOD, time="t")
    before = ingest.listing()
    real = spill.tempfile.TemporaryFile

    def small(**options):
        file = real(**options)

        class Small:
            """A file on a disk of one megabyte."""

            def write(self, data):
                return full() if file.tell() > 1 << 20 else file.write(data)

            def __getattr__(self, name):
                return getattr(file, name)

        return Small()

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", small)
    with pytest.raises(DiskFullError, match=r"scratch directory .* is full after 1\.\d MiB"):
        ingest(unsorted(), **SPILLING)
    assert ingest.listing() == before
    assert list(ingest.scratch.iterdir()) == []


@pytest.mark.parametrize("stop_after", [0, 1, 7])
@pytest.mark.parametrize("step", ["write_partition", "fsync", "write"])
@pytest.mark.parametrize("error", [DiskFullError("full", "free some"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_takes_everything_back(
    ingest, monkeypatch, stop_after, step, error
):
    ingest(GOOD, time="t")
    before = ingest.listing()
    import featurestore.ingest.partition_writer as writer
    from featurestore.storage.local_io import LocalIO
    from featurestore.storage.tensor_group import TensorWriter

    place = {"write_partition": writer, "fsync": LocalIO, "write": TensorWriter}[step]
    real = getattr(place, step)
    calls = []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) > stop_after:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(place, step, failing)
    table = unsorted()
    values = pa.FixedSizeListArray.from_arrays(pa.nulls(600_000, pa.int8()).fill_null(1), 2)
    with pytest.raises(type(error)):
        ingest(table.append_column("e", values), **SPILLING)
    assert ingest.listing() == before
    assert list(ingest.scratch.iterdir()) == []


def test_a_source_that_changes_between_the_passes(ingest, tmp_path):
    path = parquet(tmp_path / "x.parquet", t=[3, 1, 2])

    def change(done, total, phase, projected):
        if phase == "survey":
            parquet(path, t=[3, 1])

    refused(
        ingest, SourceError, path, "changed while it was read: 3 rows first, 2 then",
        time="t", on_progress=change,
    )  # fmt: skip


def test_every_refusal_is_of_the_tree():
    with pytest.raises(FeatureStoreError):
        open_source(3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "k,t\né,1\n".encode("latin-1"), r"x.csv is not UTF-8: columns \['k'\].*iconv"),
        ("x.csv", "k,t\né,1\n".encode("utf-16"), "x.csv is UTF-16 text.*iconv"),
        ("x.csv", b"k;t\na;1,5\n", "no comma in its header b'k;t.*another separator.*commas"),
        ("x.tsv", b"k,t\na,1\n", "no tab in its header.*another separator"),
    ],
)
def test_text_of_another_kind(ingest, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(ingest, SourceError, tmp_path / name, message)


def test_bytes_that_are_no_text_far_into_a_file(ingest, tmp_path):
    lines = b"k,t\n" + b"".join(b"%07d,1\n" % i for i in range(600_000)) + b"\xe9,2\n"
    (tmp_path / "x.csv").write_bytes(lines)
    options = {"types": {"k": "string"}}
    with pytest.raises(SourceError, match=r"row 600002 .*UTF8 data(?s:.*)iconv"):
        list(open_source(tmp_path / "x.csv", **options).batches())


def test_a_late_number_of_another_kind_says_float(tmp_path):
    lines = "k\n" + "1234567\n" * 600_000 + "1.5\n"
    (tmp_path / "x.csv").write_text(lines)
    with pytest.raises(SourceError, match=r"types=\{'k': 'float64'\}"):
        list(open_source(tmp_path / "x.csv").batches())
    found = open_source(tmp_path / "x.csv", types={"k": "float64"})
    assert sum(one.num_rows for one in found.batches()) == 600_001


def test_columns_that_cannot_be_named_or_held(ingest):
    refused(ingest, SchemaError, pa.table({"": [1]}), "has no name")
    objects = pl.DataFrame({"k": pl.Series([object()], dtype=pl.Object)})
    refused(ingest, SchemaError, objects, r"columns \['k'\] of the source hold Python objects")
    mixed = pd.DataFrame({"k": [1, 2], "o": pd.Series([1, "a"], dtype=object)})
    refused(ingest, SourceError, mixed, "column 'o' of the source cannot be read as Arrow")
