"""Deleting rows by condition: only partitions that hold such rows are written again."""

from __future__ import annotations

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
    DefinitionError,
    DuplicateRowsError,
    InvalidInputError,
    MemoryLimitError,
    MissingColumnError,
    NotPartitionIndependentError,
    NotReadyError,
    SchemaError,
)
from featurestore.execution import deleting
from featurestore.execution.reading import PartitionSource
from featurestore.storage import column_group
from featurestore.testing.strategies import tables
from featurestore.testing.tables import names_of_keys, observations, one_of_each

ROWS = observations(300).sort("t", "k")
CONDITIONS: dict[str, tuple[nw.Expr, pl.Expr]] = {
    "some": (nw.col("x") > 0, pl.col("x") > 0),
    "null": (nw.col("s") == "a", pl.col("s") == "a"),
    "is_null": (nw.col("n").is_null(), pl.col("n").is_null()),
    "nan": (nw.col("x").is_nan(), pl.col("x").is_nan()),
    "all": (nw.col("k").is_null() | True, pl.lit(True)),
    "none": (nw.col("k") == "nobody", pl.lit(False)),
    "boolean": (nw.col("b"), pl.col("b")),
    "not": (~nw.col("b"), ~pl.col("b")),
    "two": ((nw.col("n") > nw.col("g")) & nw.col("b"), (pl.col("n") > pl.col("g")) & pl.col("b")),
}


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)


def files_below(folder: Path) -> set[Path]:
    return {one for one in (folder / "data").rglob("*") if one.is_file()}


@settings(deadline=None, max_examples=40)
@given(
    rows=tables(null_keys=False).filter(lambda one: one.num_rows),
    name=st.sampled_from(sorted(CONDITIONS)),
    timed=st.booleans(),
    size=st.sampled_from([120, 600, 10**6]),
)
def test_rows_for_which_it_is_true_go_and_no_others(
    rows: pa.Table, name: str, timed: bool, size: int
) -> None:
    count = rows.num_rows
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(range(2 * count), pa.int32()), 2)
    rows = rows.append_column("e", pairs)
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    options: dict[str, Any] = {"partition_bytes": size, "duplicates": "keep"}
    if timed:
        options |= {"key": "k", "time": "t"}
    table = store.ingest("rows", rows, **options)
    all_, before = table.read(), {one.partition: one for one in table._files().base}
    where, expected = CONDITIONS[name]
    kept = all_.filter(expected.fill_null(False).not_())
    report = table.delete(where)
    assert (report.removed, report.written) == (len(all_) - len(kept), 0)
    assert_frame_equal(table.read(), kept, check_exact=True)
    assert store.version == 1 + bool(report.removed) == report.version
    after = table._files().base
    assert report.rewritten == len(before.keys() - {one.partition for one in after})
    start = 0
    for one in before.values():
        touched = all_[start : start + one.rows].filter(expected.fill_null(False))
        assert (one in after) == touched.is_empty()
        start += one.rows
    if timed:
        times = table.read("t")["t"].to_physical().to_list()
        for one in after:
            inside, times = times[: one.rows], times[one.rows :]
            assert (one.time_min, one.time_max) == (inside[0], inside[-1])
    assert store.verify().ok


def test_untouched_partitions_are_read_for_the_condition_only(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=1500)
    old = table._files().base
    assert len(old) > 5
    read: list[tuple[str, tuple[str, ...]]] = []
    whole: list[str] = []
    columns, base = PartitionSource.read, column_group.read_columns

    def spied(source: PartitionSource, *given: Any) -> Any:
        read.append((source.partition, tuple(given[2])))
        return columns(source, *given)

    def spied_whole(*given: Any) -> pa.Table:
        whole.append(given[1].partition)
        return base(*given)

    monkeypatch.setattr(PartitionSource, "read", spied)
    monkeypatch.setattr(deleting, "read_columns", spied_whole)
    first, third, fourth = (
        pl.Series([old[one].time_min]).cast(pl.Datetime("ms"))[0] for one in (1, 3, 4)
    )
    time = nw.col("t")
    report = table.delete((time == first) | ((time >= third) & (time < fourth)))
    assert report.rewritten == 2
    assert sorted(read) == [(one.partition, ("t",)) for one in old]
    assert whole == [old[1].partition]
    assert table.partitions == len(old) - 1


def test_a_condition_may_use_features_that_are_built(table: fs.Table) -> None:
    table.add(fs.Expression(double=nw.col("x") * 2), fs.Lag("x"))
    table.delete((nw.col("double") > 1) | (nw.col("x_lag_1") > 1))
    lag = pl.col("x").shift(1).over("k")
    gone = ((pl.col("x") * 2 > 1) | (lag > 1)).fill_null(False)
    expected = ROWS.filter(gone.not_())
    assert 0 < len(expected) < len(ROWS)
    assert_frame_equal(table.read(ROWS.columns), expected)
    with pytest.raises(NotReadyError, match=r"double.*missing.*\n.*build\(\)"):
        table.delete(nw.col("double") > 1)
    version = table.version
    table.build()
    assert table.delete(nw.col("double") > 1).version == version + 1 == table.version
    found = table.read(["double", "x_lag_1"])
    assert_frame_equal(
        found, expected.select(double=pl.col("x") * 2, x_lag_1=pl.col("x").shift(1).over("k"))
    )


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        (nw.col("x") > nw.col("x").mean(), NotPartitionIndependentError, "mean"),
        (nw.col("x").shift(1) > 0, NotPartitionIndependentError, "shift"),
        (nw.col("x").rank() == 1, NotPartitionIndependentError, "rank"),
        (nw.col("x") + 1, DefinitionError, "give a condition"),
        (nw.lit(True), DefinitionError, "names no column"),
        ("x > 0", DefinitionError, "not a Narwhals expression"),
        (nw.col("nothing") > 0, MissingColumnError, "nothing"),
    ],
)
def test_conditions_that_are_none(
    table: fs.Table, where: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        table.delete(where)
    assert table.version == 1


def test_a_tensor_is_no_condition(store: fs.FeatureStore) -> None:
    rows = ROWS.with_columns(e=pl.concat_list("t", "t").cast(pl.Array(pl.Int64, 2)))
    table = store.ingest("rows", rows, key="k", time="t")
    with pytest.raises(SchemaError, match="tensor"):
        table.delete(nw.col("e") > 0)


# --- tables of other kinds, and empty ones ----------------------------------------------------------


def test_a_key_of_a_table_without_time_may_come_back(store: fs.FeatureStore) -> None:
    rows = pl.DataFrame({"k": list("abcdef"), "w": [1, 2, 3, 4, 5, 6]})
    table = store.ingest("static", rows, key="k", partition_bytes=40)
    assert table.partitions > 1
    again = pl.DataFrame({"k": ["b", "e"], "w": [20, 50]})
    with pytest.raises(DuplicateRowsError, match="2 rows repeat the key"):
        table.append(again)
    assert table.delete(nw.col("k").is_in(["b", "e"])).removed == 2
    table.append(again)
    kept = rows.filter(~pl.col("k").is_in(["b", "e"]))
    assert_frame_equal(table.read(), pl.concat([kept, again]))
    assert table.append(pl.DataFrame({"k": ["z"], "w": [0]})) == 1


@pytest.mark.parametrize("time", ["t", None])
def test_an_empty_table_may_be_filled_again(store: fs.FeatureStore, time: str | None) -> None:
    store.ingest("other", observations(60, 1, column="y"), key="k", time="t")
    store.ingest("static", names_of_keys(), key="k")
    features = one_of_each() if time else (fs.Expression(double=nw.col("x") * 2),)
    key = "k" if time else ()
    table = store.ingest("rows", ROWS, key=key, time=time, partition_bytes=2500)
    table.add(*features)
    full = table.read()
    assert table.delete(nw.col("k").is_in(list("abcd"))).removed == len(ROWS)
    assert (table.rows, table.partitions, len(table)) == (0, 0, 0)
    assert table.read().schema == full.schema
    assert table.status().is_fresh
    assert table.build().computed == 0
    assert table.plan().is_empty
    assert "0 rows in 0 partitions" in str(table)
    assert store.verify().ok
    assert table.delete(nw.col("x") > 0).removed == 0
    if time:
        assert table.replace(ROWS.head(0), (None, None)).removed == 0
        early = pl.col("t") < pl.datetime(1970, 1, 2)
        table.replace(ROWS.filter(early), (None, "1970-01-02"))
        table.append(ROWS.filter(~early))
    else:
        table.append(ROWS)
    table.build()
    assert_frame_equal(table.read(), full)


def test_a_table_that_reads_an_emptied_one_gets_nulls(store: fs.FeatureStore) -> None:
    other = store.ingest("other", observations(60, 1, column="y"), key="k", time="t")
    static = store.ingest("static", names_of_keys(), key="k")
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    table.add(
        fs.AsOfJoin("other", columns="y"),
        fs.AsOfJoin("other", columns="y", max_age="2h", prefix="young_"),
        fs.Lookup("static", columns="weight"),
    )
    assert table.read("y")["y"].null_count() < len(ROWS)
    other.delete(nw.col("k").is_in(list("abcd")))
    static.delete(nw.col("k").is_in(list("abcd")))
    assert not table.status()["y"].is_fresh
    table.build()
    for name in ("y", "young_y", "weight"):
        assert table.read(name)[name].null_count() == len(ROWS)


def test_statistics_of_rows_that_went_are_stale_and_say_what_to_do(table: fs.Table) -> None:
    table.add(fs.Standardize("x", prefix="s_"), fit_on=("1970-01-01", "1970-01-02"))
    table.add(fs.Expression(double=nw.col("x") * 2))
    day = pl.datetime(1970, 1, 2)
    table.replace(ROWS.head(0), (None, "1970-01-02"))
    status = table.status()["s_x"]
    assert (status.fresh, status.reasons) == (0, ("fit scope",))
    for refused in (table.build, table.plan, lambda: table.read("s_x")):
        with pytest.raises(DefinitionError, match=r"holds no rows.*\n.*replace=True.*drop it"):
            refused()
    with pytest.raises(DefinitionError, match="holds no rows"):
        table.compute(observations(3, start=500), ["s_x"])
    table.replace(ROWS.filter(pl.col("t") < day), (None, "1970-01-02"))
    table.build()
    x = ROWS.filter(pl.col("t") < day)["x"]
    expected = (ROWS["x"] - x.mean()) / x.std(ddof=0)
    assert (table.read("s_x")["s_x"] - expected).abs().max() < 1e-9


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_is_left_of_a_delete_that_fails(tmp_path: Path, workers: int) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=workers)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=1500)
    damaged = tmp_path / "s" / table._files().base[-1].files[0].path
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-30] + bytes(30))
    before = files_below(tmp_path / "s")
    with pytest.raises(CorruptionError):
        table.delete(nw.col("k") == "a")
    assert (files_below(tmp_path / "s"), table.version) == (before, 1)
    damaged.write_bytes(data)
    assert table.delete(nw.col("k") == "a").removed == ROWS["k"].to_list().count("a")


def test_more_than_memory_allows_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    store.ingest("rows", ROWS, key="k", time="t")
    small = fs.FeatureStore.open(tmp_path / "s", memory_limit="1MiB").table("rows")
    monkeypatch.setattr(PartitionSource, "read", lambda *_: pytest.fail("something was read"))
    with pytest.raises(MemoryLimitError, match="deleting from rows needs"):
        small.delete(nw.col("k") == "a")


def test_a_checkout_cannot_change(store: fs.FeatureStore, table: fs.Table) -> None:
    with pytest.raises(InvalidInputError, match="checkout of version"):
        store.checkout(table.version).table("rows").delete(nw.col("x") > 0)
