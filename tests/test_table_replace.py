"""Replacing a range of times: the table is as if it had been ingested with the new rows."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import (
    CorruptionError,
    DuplicateRowsError,
    InvalidInputError,
    MemoryLimitError,
    NotReadyError,
    SchemaError,
)
from featurestore.ingest.stored_rows import StoredRows
from featurestore.testing.strategies import tables
from featurestore.testing.tables import observations

ROWS = observations(300).sort("t", "k")
NEW = observations(20, 9, start=40).sort("t", "k")


def at(hour: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1) + dt.timedelta(hours=hour)  # noqa: DTZ001 - as the column has none


def outside(rows: pl.DataFrame, start: int, stop: int) -> pl.DataFrame:
    return rows.filter((pl.col("t") < at(start)) | (pl.col("t") >= at(stop)))


def replaced(start: int, stop: int, new: pl.DataFrame = NEW) -> pl.DataFrame:
    """The rows as they must be afterwards."""
    return pl.concat([outside(ROWS, start, stop), new]).sort("t", "k")


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)


def files_below(folder: Path) -> set[Path]:
    return {one for one in (folder / "data").rglob("*") if one.is_file()}


# --- any table, any range -------------------------------------------------------------------------


def with_tensors(rows: pa.Table, draw: st.DrawFn) -> pa.Table:
    count = rows.num_rows
    numbers = draw(st.lists(st.integers(-9, 9), min_size=6 * count, max_size=6 * count))
    flat = pa.array(numbers, pa.int16())
    pairs = pa.FixedSizeListArray.from_arrays(flat, 2)
    floats = pa.FixedSizeListArray.from_arrays(flat.cast(pa.float32()), 6)
    nested = pa.FixedSizeListArray.from_arrays(pairs, 3)
    lists = pa.array([[str(one)] * (one % 3) for one in range(count)], pa.list_(pa.string()))
    return rows.append_column("e", floats).append_column("m", nested).append_column("l", lists)


TYPES = {"us": pa.timestamp("us", "UTC"), "day": pa.date32(), "number": pa.int64()}


@st.composite
def changes(draw: st.DrawFn) -> tuple[pa.Table, pa.Table, int | None, int | None]:
    """Return rows, what replaces a range of their times, and the range; in steps of the column."""
    type_ = TYPES[draw(st.sampled_from(sorted(TYPES)))]
    rows = with_tensors(
        draw(tables(time_type=type_, null_keys=False).filter(lambda one: one.num_rows)), draw
    )
    ends = st.one_of(st.none(), st.integers(-2, 25), st.integers(-2, 205))
    lower, upper = draw(ends), draw(ends)
    if lower is not None and upper is not None:
        lower, upper = min(lower, upper), max(lower, upper) + (lower == upper)
    new = with_tensors(draw(tables(time_type=type_, null_keys=False, max_rows=12)), draw)
    first = -5 if lower is None else lower
    last = max(first, 210) if upper is None else upper - 1
    if upper is not None and lower is None:
        first = min(first, last)
    whole = pa.int32() if pa.types.is_date32(type_) else pa.int64()
    times = draw(st.lists(st.integers(first, last), min_size=new.num_rows, max_size=new.num_rows))
    new = new.set_column(0, "t", pa.array(times, whole).cast(type_))
    return rows, new, lower, upper


def bound(step: int | None, type_: pa.DataType) -> Any:
    if step is None or pa.types.is_integer(type_):
        return step
    if pa.types.is_date32(type_):
        return dt.date(1970, 1, 1) + dt.timedelta(days=step)
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=step)


def steps(rows: pa.Table) -> list[int]:
    column = rows.column("t")
    whole = pa.int32() if pa.types.is_date32(column.type) else pa.int64()
    found: list[int] = column.cast(whole).to_pylist()
    return found


@settings(deadline=None, max_examples=80)
@given(
    given_=changes(),
    size=st.sampled_from([150, 600, 10**6]),
    key=st.sampled_from([(), ("k",), ("k", "g")]),
)
def test_a_table_is_as_if_ingested_with_the_new_rows(
    given_: tuple[pa.Table, pa.Table, int | None, int | None], size: int, key: tuple[str, ...]
) -> None:
    rows, new, lower, upper = given_
    if "g" in key:  # keys are never null
        for one in ("rows", "new"):
            table = rows if one == "rows" else new
            filled = table.set_column(2, "g", table.column("g").fill_null(0))
            rows, new = (filled, new) if one == "rows" else (rows, filled)
    options: dict[str, Any] = {
        "key": key, "time": "t", "duplicates": "keep", "partition_bytes": size,
    }  # fmt: skip
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("rows", rows, **options)
    before = {one.partition: one for one in table._files().base}
    gone = [
        (lower is None or lower <= step) and (upper is None or step < upper) for step in steps(rows)
    ]
    type_ = rows.column("t").type
    report = table.replace(new, (bound(lower, type_), bound(upper, type_)))
    assert (report.removed, report.written) == (sum(gone), new.num_rows)
    assert report.version == store.version == 1 + bool(sum(gone) or new.num_rows)
    after = table._files().base
    assert report.rewritten == len(before.keys() - {one.partition for one in after})
    kept = pa.concat_tables([rows.filter(pa.array([not one for one in gone])), new])
    if kept.num_rows:
        fresh = store.ingest("fresh", kept, **options)
        assert_frame_equal(table.read(), fresh.read(), check_exact=True)
    assert table.rows == kept.num_rows
    for entry in after:
        assert before.get(entry.partition, entry) == entry
        assert entry.provenance.inputs
        assert entry.provenance.definition == "ingest"
    assert store.verify().ok


# --- which files are read and written -----------------------------------------------------------


def test_partitions_that_are_not_cut_are_never_read(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=1500)
    old = table._files().base
    assert len(old) > 5
    start = int(old[1].time_min or 0) // 3_600_000 + 1
    stop = int(old[-2].time_max or 0) // 3_600_000
    for one in (old[0], *old[2:-2], old[-1]):
        (tmp_path / "s" / one.files[0].path).unlink()
    new = NEW.filter((pl.col("t") >= at(start)) & (pl.col("t") < at(stop)))
    report = table.replace(new, (at(start), at(stop)))
    assert report.rewritten == len(old) - 2
    base = table._files().base
    assert (base[0], base[-1]) == (old[0], old[-1])
    assert table.rows == len(replaced(start, stop, new))


@pytest.mark.parametrize(("start", "stop"), [(-9, 0), (200, 260)])
def test_rows_before_and_after_all_others_may_be_inserted(
    table: fs.Table, start: int, stop: int
) -> None:
    new = observations(20, 9, start=start).filter(pl.col("t") < at(stop))
    report = table.replace(new, (at(start), at(stop)))
    assert (report.removed, report.rewritten) == (0, 0)
    assert_frame_equal(table.read(), pl.concat([ROWS, new]).sort("t", "k"))


def test_rows_between_two_partitions_leave_both_as_they_are(store: fs.FeatureStore) -> None:
    early, late = ROWS.filter(pl.col("t") < at(30)), ROWS.filter(pl.col("t") >= at(70))
    table = store.ingest("rows", early, key="k", time="t")
    table.append(late)
    before = table._files().base
    assert table.replace(NEW, (at(40), at(60))).rewritten == 0
    base = table._files().base
    assert (base[0], base[-1], len(base)) == (*before, 3)
    assert_frame_equal(table.read(), pl.concat([early, NEW, late]))


def test_no_rows_for_no_rows_is_no_version(table: fs.Table) -> None:
    version = table.version
    report = table.replace(NEW.head(0), (at(500), None))
    assert (report.removed, report.written, report.rewritten, table.version) == (0, 0, 0, version)
    assert str(report) == f"version {version}: no row to change"


def test_the_report_prints_well(table: fs.Table) -> None:
    gone = len(ROWS) - len(outside(ROWS, 40, 60))
    report = table.replace(NEW, ("1970-01-02T16:00", "1970-01-03T12:00"))
    assert str(report) == (
        f"version {table.version}: {gone} rows removed, {len(NEW)} written; "
        f"{report.rewritten} partitions rewritten"
    )
    assert_frame_equal(table.read(), replaced(40, 60))


# --- sources and refusals -------------------------------------------------------------------------


def test_sources_are_those_of_ingest(table: fs.Table, tmp_path: Path) -> None:
    NEW.sample(fraction=1.0, shuffle=True, seed=1).write_csv(tmp_path / "new.csv")
    assert table.replace(tmp_path / "new.csv", (at(40), at(60))).written == len(NEW)
    # Text cannot tell null from "".
    expected = replaced(40, 60).with_columns(pl.col("word").replace("", None))
    found = table.read().with_columns(pl.col("word").replace("", None))
    assert_frame_equal(found, expected)
    table.replace(NEW.head(0).to_pandas(), (at(40), at(60)))
    table.replace(NEW.to_arrow().to_reader(3), (at(40), at(60)))
    assert_frame_equal(table.read(), replaced(40, 60))


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (pl.concat([NEW, ROWS.head(2)]), "row 21 of the source has 't' 1970-01-01"),
        (NEW, "row 1 of the source has 't' 1970-01-02 16:00:00"),
    ],
)
def test_a_row_outside_the_range_is_named(tmp_path: Path, rows: pl.DataFrame, named: str) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    start = 40 if len(rows) > len(NEW) else 41
    before = files_below(tmp_path / "s")
    with pytest.raises(InvalidInputError, match=named):
        table.replace(rows, (at(start), at(60)))
    assert (table.version, files_below(tmp_path / "s")) == (1, before)


def test_what_ingest_refuses_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    before = files_below(tmp_path / "s")
    given: list[tuple[type[Exception], str, pl.DataFrame]] = [
        (DuplicateRowsError, "1 rows repeat", pl.concat([NEW, NEW.tail(1)])),
        (SchemaError, "lacks columns", NEW.drop("word")),
        (SchemaError, "null values", NEW.with_columns(k=pl.lit(None, pl.String))),
        (SchemaError, "null values", NEW.with_columns(t=pl.lit(None, pl.Datetime("ms")))),
        (SchemaError, "column 'x'", NEW.with_columns(x=pl.lit("a"))),
    ]
    for error, message, rows in given:
        with pytest.raises(error, match=message):
            table.replace(rows, (at(40), at(60)))
    assert (table.version, files_below(tmp_path / "s")) == (1, before)
    assert_frame_equal(table.read(), ROWS)


@pytest.mark.parametrize(
    ("time_range", "message"),
    [
        ((at(60), at(60)), "holds no time"),
        (("1970-01-03", "1970-01-02"), "holds no time"),
        (("1970-01-02",), "no range of times"),
        ("1970-01-02", "no range of times"),
        ((1, 2), "not a time"),
        (("1970-01-02T00:00:00.000001", None), "finer than column"),
        (("1970-01-02T00:00:00+00:00", None), "has a time zone"),
    ],
)
def test_ranges_that_are_none(table: fs.Table, time_range: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        table.replace(NEW, time_range)


def test_a_table_without_time_is_told_what_to_do(store: fs.FeatureStore) -> None:
    table = store.ingest("static", pl.DataFrame({"k": ["a", "b"], "w": [1, 2]}), key="k")
    with pytest.raises(InvalidInputError, match=r"no time column.*\n.*delete.*append"):
        table.replace(pl.DataFrame({"k": ["a"], "w": [5]}), (None, None))


def test_the_last_of_equal_rows_stays_where_the_table_says_so(store: fs.FeatureStore) -> None:
    rows = pl.DataFrame({"k": ["a", "a"], "t": [1, 5], "x": [1, 2]})
    table = store.ingest("rows", rows, key="k", time="t", duplicates="last")
    new = pl.DataFrame({"k": ["a", "b", "a"], "t": [3, 3, 3], "x": [7, 8, 9]})
    assert table.replace(new, (2, 5)).written == 2
    assert table.read().rows() == [("a", 1, 1), ("a", 3, 9), ("b", 3, 8), ("a", 5, 2)]


def test_more_than_memory_allows_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    before = files_below(tmp_path / "s")
    small = fs.FeatureStore.open(tmp_path / "s", memory_limit="1MiB").table("rows")
    with pytest.raises(MemoryLimitError):
        small.replace(NEW, (at(40), at(60)))
    assert files_below(tmp_path / "s") == before


MEASURE = """
import sys
from pathlib import Path
import narwhals as nw
import numpy as np
import pyarrow as pa
import featurestore as fs

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def batches(first, rows):
    for start in range(first, first + rows, 50_000):
        t = np.arange(start, start + 50_000)
        x = np.random.default_rng(start).random((3, 50_000))
        words = [f"word {one % 977} of {one}" for one in t]
        yield pa.record_batch({"t": t, "a": x[0], "b": x[1], "c": x[2], "w": words})

def reader(first, rows):
    kept = batches(0, 50_000).__next__().schema
    return pa.RecordBatchReader.from_batches(kept, batches(first, rows))

def change(table, rows):
    table.replace(reader(100_000, rows), (100_000, 100_000 + rows))
    table.delete((nw.col("t") % 3 == 0) & (nw.col("t") < 400_000))

store = fs.FeatureStore.create(sys.argv[1], workers=1, memory_limit="4GiB")
change(store.ingest("warm", reader(0, 200_000), time="t", partition_bytes="1MiB"), 50_000)
store.ingest("rows", reader(0, 3_000_000), time="t", partition_bytes=sys.argv[2])
small = fs.FeatureStore.open(sys.argv[1], workers=1, memory_limit=peak() + (96 << 20))
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
table = small.table("rows")
change(table, 2_000_000)
print(peak(), small.memory_limit, table.rows)
"""


@pytest.mark.slow
def test_memory_stays_within_the_limit_however_much_changes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "s"), "12MiB"],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, limit, rows = map(int, done.stdout.split())
    assert rows == 3_000_000 - 133_334
    assert peak <= limit


# --- damage -----------------------------------------------------------------------------------------


def test_damage_is_never_copied_into_new_files(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    wide = ROWS.with_columns(
        e=pl.concat_list([pl.col("n").fill_null(0)] * 4).cast(pl.Array(pl.Int64, 4))
    )
    table = store.ingest("rows", wide, key="k", time="t")
    entry = table._files().base[0]
    new = wide.filter((pl.col("t") >= at(40)) & (pl.col("t") < at(41)))
    for file in entry.all_files():
        path = tmp_path / "s" / file.path
        data = path.read_bytes()
        path.write_bytes(
            data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        )
        with pytest.raises(CorruptionError, match=file.path.rpartition("/")[2]):
            table.replace(new, (at(40), at(41)))
        with pytest.raises(CorruptionError):
            table.delete(nw.col("k") == "a")
        path.write_bytes(data)
    assert table.version == 1
    table.replace(new, (at(40), at(41)))
    assert_frame_equal(table.read(), wide)


# --- who reads ------------------------------------------------------------------------------------------


def test_older_versions_and_datasets_keep_the_old_rows(
    store: fs.FeatureStore, table: fs.Table
) -> None:
    table.add(fs.Expression(double=nw.col("x") * 2))
    old, version = table.read(), store.version
    data = table.dataset(["double"])
    table.replace(NEW, (at(40), at(60)))
    assert_frame_equal(store.checkout(version).table("rows").read(), old)
    assert_frame_equal(data.all.read().select("double"), old.select("double"))
    with pytest.raises(NotReadyError, match=r"missing.*\n.*build\(\)"):
        table.dataset(["double"])
    assert len(table.dataset(["x"]).all.read()) == len(replaced(40, 60))
    table.build()
    assert table.dataset(["double"]).snapshot_id != data.snapshot_id
    assert_frame_equal(table.read("double"), replaced(40, 60).select(double=pl.col("x") * 2))
    with pytest.raises(InvalidInputError, match="checkout of version"):
        store.checkout(version).table("rows").replace(NEW, (at(40), at(60)))


def test_files_of_rows_that_went_go_with_gc(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    table.add(fs.Expression(double=nw.col("x") * 2))
    old = {one.partition for one in table._files().base}
    table.replace(NEW, (at(40), at(60)))
    gone = old - {one.partition for one in table._files().base}
    assert gone
    store.gc(safety_age="0s", keep_versions=1)
    left = {path.name[:18] for path in files_below(tmp_path / "s")}
    assert not left & gone
    assert store.verify(all_versions=True).ok


# --- appending afterwards ------------------------------------------------------------------------------


def test_rows_are_late_against_the_newest_that_is_left(table: fs.Table) -> None:
    table.replace(NEW.head(0), (at(40), None))
    late = ROWS.filter(pl.col("t") >= at(39)).head(3)
    with pytest.raises(InvalidInputError, match=r"not after the table's newest.*\n.*use replace"):
        table.append(late)
    rest = ROWS.filter(pl.col("t") >= at(40))
    assert table.append(rest) == len(rest)
    assert_frame_equal(table.read(), ROWS)


# --- the input that stored rows are ------------------------------------------------------------------


def test_stored_rows_come_in_batches_of_the_size_asked_for(store: fs.FeatureStore) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t")
    entry = table._files().base[0]
    fields = table._files().groups["base"].fields
    found = StoredRows(store._session.objects, entry, fields, 17, 250)
    batches = list(found.batches([one.name for one in fields], found.types, 500))
    assert len(batches) > 10
    assert_frame_equal(pl.from_arrow(pa.Table.from_batches(batches)), ROWS[17:250])  # type: ignore[arg-type]
