"""After rows changed: what is stale, what a build computes, and who may change rows at once."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import ConflictError
from featurestore.storage.commit_log import CommitLog
from featurestore.testing.interleaving import Meanwhile, another
from featurestore.testing.tables import (
    FIT_ON,
    HOUR,
    assert_same_rows,
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
)
from featurestore.transforms.base import Transformer

DOUBLE = fs.Expression(double=nw.col("x") * 2)


def at(hour: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1) + dt.timedelta(hours=hour)  # noqa: DTZ001 - as the column has none


def hourly(start: int, stop: int, times: float = 1.0, column: str = "x") -> pl.DataFrame:
    """One row an hour of one key."""
    hours = range(start, stop)
    return pl.DataFrame(
        {"k": ["a"] * len(hours), "t": [at(one) for one in hours], column: [times * one for one in hours]},
        schema={"k": pl.String, "t": pl.Datetime("ms"), column: pl.Float64},
    )  # fmt: skip


def in_tens(
    store: fs.FeatureStore, name: str = "rows", column: str = "x", partitions: int = 6
) -> fs.Table:
    """A table of one row an hour, ten to the partition."""
    table = store.ingest(name, hourly(0, 10, column=column), key="k", time="t")
    for number in range(1, partitions):
        table.append(hourly(10 * number, 10 * number + 10, column=column))
    assert table.partitions == partitions
    return table


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return in_tens(store)


def standing(table: fs.Table, column: str) -> str:
    """How a feature stands, a letter per partition: fresh, stale or missing."""
    files = table._files()
    group = files.graph.owners[column]
    found = table._session.assessor(files).group(table.name, group)
    return "".join(one.freshness[0] for one in found)


def mended(table: fs.Table) -> None:
    """Build, and compare with a table of the same rows made anew."""
    todo = sum(one.stale + one.missing for one in table.status().features)
    missing = sum(one.missing for one in table.status().features)
    report = table.build()
    # Of stale values, those whose inputs came out the same need not be computed.
    assert missing <= report.computed + report.resumed <= todo
    assert table.status().is_fresh
    assert table.build().computed == 0
    store = fs.FeatureStore(table._session)
    rows = table.read(table._files().groups["base"].names)
    fresh = store.ingest(f"fresh_{uuid.uuid4().hex[:8]}", rows, key="k", time="t")
    features = table._files().graph.features()
    for feature in features:
        fresh.add(feature.transformer, fit_on=feature.definition.fit_on)
    assert_same_rows(fresh.read(table.columns), table.read())


# --- what becomes stale --------------------------------------------------------------------------------


def test_features_of_a_row_or_a_time_are_missing_on_rewritten_partitions_only(
    table: fs.Table,
) -> None:
    table.add(DOUBLE, fs.CrossSection("x"), fs.Calendar(parts=("hour",)))
    table.replace(hourly(15, 25, 3.0), (at(15), at(25)))
    for column in ("double", "x_rank", "t_hour"):
        assert standing(table, column) == "f" + "m" * (table.partitions - 4) + "fff"
    report = table.build()
    assert report.computed == 3 * (table.partitions - 4)
    mended(table)


@pytest.mark.parametrize("closed", ["right", "left", "both", "none"])
@pytest.mark.parametrize("lag", [None, "5h"])
def test_a_window_is_stale_exactly_where_it_reaches_what_changed(
    store: fs.FeatureStore, closed: str, lag: str | None
) -> None:
    table = in_tens(store)
    shift = 5 if lag else 0
    # At the edges: the last hour before a partition is 1 hour before its first row, or 11, or 21.
    windows = [one - shift for one in (1, 2, 10, 11, 12, 21, 22) if one > shift]
    table.add(
        *(fs.Rolling("x", f"{one}h", closed=closed, lag=lag, prefix=f"w{one}_") for one in windows)
    )
    table.replace(hourly(10, 20, 3.0), (at(10), at(20)))
    for one in windows:
        # The first row of a partition looks back furthest; the newest row that changed is at 19.
        oldest = [10 * n - one - shift + (closed in ("right", "none")) for n in range(6)]
        expected = ["s" if n > 1 and oldest[n] <= 19 else "f" for n in range(6)]
        expected[1] = "m"
        name = next(column for column in table.columns if column.startswith(f"w{one}_"))
        assert standing(table, name) == "".join(expected), (one, closed, lag)
    mended(table)


def test_what_looks_back_for_ever_is_stale_in_all_later_partitions(table: fs.Table) -> None:
    table.add(fs.Lag("x"), fs.Rolling("x", 3))
    table.delete(nw.col("x") == 25)
    for column in ("x_lag_1", "x_mean_3r"):
        assert standing(table, column) == "ffmsss"
    mended(table)


def test_a_statistic_is_stale_everywhere_or_nowhere(table: fs.Table) -> None:
    table.add(fs.Standardize("x", prefix="in_"), fit_on=(at(10), at(25)))
    table.add(fs.Standardize("x", prefix="out_"), fit_on=(at(30), at(60)))
    table.replace(hourly(24, 25, 3.0), (at(24), at(25)))
    assert standing(table, "in_x") == "ssmsss"
    assert standing(table, "out_x") == "ffmfff"
    mended(table)
    # A partition of which the range takes only a part: rewritten, so the statistic is learnt anew.
    table.replace(hourly(28, 29, 5.0), (at(28), at(29)))
    assert standing(table, "out_x") == "ffmfff"
    mended(table)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Rows 20..29 of the other table changed; of this one ten to the partition.
        ({}, "ffssss"),
        ({"max_age": "1h"}, "ffssff"),
        ({"max_age": "2h"}, "ffssff"),
        ({"max_age": "11h"}, "ffsssf"),
        ({"max_age": "20h"}, "ffsssf"),
        ({"max_age": "21h"}, "ffssss"),
        ({"lag": "9h"}, "ffssss"),
        ({"lag": "10h"}, "fffsss"),
        ({"lag": "10h", "max_age": "10h"}, "fffsff"),
        ({"lag": "10h", "max_age": "11h"}, "fffssf"),
    ],
)
def test_a_join_is_stale_where_it_reaches_what_changed_in_the_other_table(
    store: fs.FeatureStore, options: dict[str, Any], expected: str
) -> None:
    other = in_tens(store, "other", "y")
    table = in_tens(store)
    table.add(fs.AsOfJoin("other", columns="y", **options), DOUBLE)
    other.replace(hourly(20, 30, 7.0, "y"), (at(20), at(30)))
    assert standing(table, "double") == "ffffff"
    assert standing(table, "y") == expected
    report = table.build()
    assert report.computed <= expected.count("s")
    mended(table)


def test_a_feature_of_a_feature_is_missing_where_its_input_is(table: fs.Table) -> None:
    table.add(DOUBLE, fs.Rolling("double", "11h", closed="left", prefix="r_"))
    table.delete((nw.col("x") >= 10) & (nw.col("x") < 12))
    assert standing(table, "double") == "fmffff"
    assert standing(table, next(one for one in table.columns if one[:2] == "r_")) == "fmssff"
    mended(table)


def test_partitions_that_went_make_later_ones_stale(table: fs.Table) -> None:
    table.add(fs.Rolling("x", "10h"), fs.Lag("x"))
    table.delete((nw.col("x") >= 20) & (nw.col("x") < 40))
    assert table.partitions == 4
    assert standing(table, "x_mean_10h") == "ffsf"
    assert standing(table, "x_lag_1") == "ffss"
    mended(table)


# --- any sequence of changes ------------------------------------------------------------------------


def features(all_kinds: bool) -> tuple[Transformer, ...]:
    if all_kinds:
        return one_of_each()
    return (
        DOUBLE,
        fs.Rolling("double", "12h", stats=["mean", "std"]),
        fs.Rolling("n", 5, stats=["sum"], closed="left"),
        fs.Lag("x", periods=[1, 3]),
        fs.CrossSection("x", ["rank"]),
        fs.AsOfJoin("other", columns="y"),
        fs.AsOfJoin("other", columns="y", max_age="2h", lag="1h", prefix="young_"),
    )


CHANGE = st.tuples(
    st.sampled_from(["append", "replace", "delete", "other", "build", "delete_feature"]),
    st.integers(0, 70),
    st.integers(1, 30),
    st.integers(0, 5),
)


def changed(rows: pl.DataFrame, table: fs.Table, change: tuple[str, int, int, int]) -> pl.DataFrame:
    """Change a table, and return the rows it must have then."""
    what, start, length, seed = change
    if what == "append":
        hours = rows["t"].dt.epoch("ms").to_list()
        first = hours[-1] // HOUR + 1 if hours else 0
        more = observations(length, seed, start=first, column=rows.columns[2]).sort("t", "k")
        assert table.append(more) == len(more)
        return pl.concat([rows, more])
    if what in ("replace", "other"):
        new = observations(length, seed, start=start, column=rows.columns[2])
        new = new.filter(pl.col("t") < at(start + length))
        inside = (pl.col("t") >= at(start)) & (pl.col("t") < at(start + length))
        report = table.replace(new, (at(start), at(start + length)))
        assert report.removed == len(rows.filter(inside))
        return pl.concat([rows.filter(~inside), new]).sort("t", "k")
    if what == "delete":
        by = 2 + seed
        went = (pl.col("n") % by == 0) & (pl.col("t") < at(start + 10))
        where = (nw.col("n") % by == 0) & (nw.col("t") < at(start + 10))
        assert table.delete(where).removed == len(rows.filter(went))
        return rows.filter(went.fill_null(False).not_())
    if what == "delete_feature":
        table.build()
        table.delete(nw.col("double") > 4 - seed)
        return rows.filter((pl.col("x") * 2 > 4 - seed).fill_null(False).not_())
    table.build()
    return rows


def any_sequence(
    sequence: list[tuple[str, int, int, int]], size: int, all_kinds: bool, fitted: bool
) -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    others = observations(80, 1, column="y").sort("t", "k")
    other = store.ingest("other", others, key="k", time="t", partition_bytes=1000)
    store.ingest("static", names_of_keys(), key="k")
    rows = observations(120).sort("t", "k")
    table = store.ingest("rows", rows, key="k", time="t", partition_bytes=size)
    table.add(*features(all_kinds))
    if fitted:
        table.add(*fitted_of_each(), fit_on="all" if size % 2 else FIT_ON)
    for change in sequence:
        if change[0] == "other":
            others = changed(others, other, change)
        else:
            rows = changed(rows, table, change)
        assert_frame_equal(table.read(rows.columns), rows)
    # A statistic of no rows is refused.
    if fitted and rows.filter(pl.col("t") < at(48)).is_empty():
        return
    mended(table)
    assert store.verify().ok


@settings(deadline=None, max_examples=10)
@given(
    sequence=st.lists(CHANGE, min_size=2, max_size=4),
    size=st.sampled_from([900, 2500, 10**6]),
    fitted=st.booleans(),
)
def test_values_are_those_of_a_table_made_anew(
    sequence: list[tuple[str, int, int, int]], size: int, fitted: bool
) -> None:
    any_sequence(sequence, size, all_kinds=False, fitted=fitted)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    sequence=st.lists(CHANGE, min_size=1, max_size=12),
    size=st.sampled_from([601, 900, 2500, 10**6]),
    fitted=st.booleans(),
)
def test_values_are_those_of_a_table_made_anew_for_every_kind_of_feature(
    sequence: list[tuple[str, int, int, int]], size: int, fitted: bool
) -> None:
    any_sequence(sequence, size, all_kinds=True, fitted=fitted)


# --- several writers -----------------------------------------------------------------------------------


def replace_twenties(table: fs.Table) -> fs.Table:
    table.replace(hourly(22, 28, 3.0), (at(22), at(28)))
    return table


def delete_25(table: fs.Table) -> fs.Table:
    table.delete(nw.col("x") == 25)
    return table


CHANGES = [replace_twenties, delete_25]


def x(table: fs.Table) -> list[float]:
    found: list[float] = table.read("x")["x"].to_list()
    return found


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "other",
    [
        lambda table: table.append(hourly(60, 70)),
        lambda table: table.add(fs.Lag("x")),
        lambda table: table.drop("double"),
        lambda table: fs.FeatureStore(table._session).tag("then"),
        lambda table: table.replace(hourly(0, 4, 9.0), (at(0), at(5))),
        lambda table: table.replace(hourly(40, 50, 9.0), (at(40), at(50))),
        lambda table: table.delete(nw.col("x") > 52),
        lambda table: fs.FeatureStore(table._session).ingest("more", hourly(0, 3)),
    ],
    ids=["append", "add", "drop", "tag", "replace", "replace whole", "delete", "ingest"],
)
@pytest.mark.parametrize("first", [True, False])
def test_changes_of_other_rows_both_land(
    table: fs.Table,
    meanwhile: Meanwhile,
    change: Callable[[fs.Table], Any],
    other: Callable[[fs.Table], Any],
    first: bool,
) -> None:
    table.add(DOUBLE)
    one, two = (change, other) if first else (other, change)
    meanwhile(lambda: two(another(table)))
    one(table)
    alone = in_tens(fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1))
    alone.add(DOUBLE)
    other(alone)
    change(alone)
    assert x(table) == x(alone)
    assert set(table.columns) == set(alone.columns)
    mended(table)
    assert fs.FeatureStore(table._session).verify().ok


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "other", [*CHANGES, lambda table: table.replace(hourly(0, 0), (at(20), at(30)))]
)
def test_changes_of_the_same_rows_are_a_conflict(
    table: fs.Table, meanwhile: Meanwhile, change: Any, other: Any
) -> None:
    meanwhile(lambda: other(another(table)))
    with pytest.raises(ConflictError, match=r"rewritten or deleted meanwhile.*\n.*do it again"):
        change(table)
    change(table)
    if change is replace_twenties:
        assert x(table)[22:28] == [3.0 * one for one in range(22, 28)] or table.rows < 60


def test_rows_added_in_the_range_meanwhile_are_a_conflict(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: another(table).append(hourly(60, 65)))
    with pytest.raises(ConflictError, match=r"rows were added.*\n.*again"):
        table.replace(hourly(50, 60, 2.0), (at(50), None))
    meanwhile(lambda: another(table).append(hourly(70, 75)))
    with pytest.raises(ConflictError, match=r"overlap in time|rows were added"):
        table.replace(hourly(66, 78), (at(66), at(80)))
    table.delete((nw.col("x") >= 20) & (nw.col("x") < 30))
    meanwhile(lambda: another(table).replace(hourly(22, 23), (at(20), at(25))))
    with pytest.raises(ConflictError, match="rows were added"):
        table.replace(hourly(26, 28), (at(20), at(30)))
    assert x(table)[20:] == [22.0, *range(30, 65), *range(70, 75)]
    table.replace(hourly(26, 28), (at(25), at(30)))
    assert x(table)[20:24] == [22.0, 26.0, 27.0, 30.0]


def test_rows_appended_during_a_delete_are_not_looked_at(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: another(table).append(hourly(60, 65, -1.0)))
    table.delete(nw.col("x") < 5)
    assert x(table)[-5:] == [-60.0, -61.0, -62.0, -63.0, -64.0]
    assert table.delete(nw.col("x") < 5).removed == 5


def test_late_rows_are_late_against_what_a_replacement_added(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: another(table).replace(hourly(60, 70), (at(60), None)))
    with pytest.raises(ConflictError, match="append again"):
        table.append(hourly(65, 75))
    meanwhile(lambda: another(table).delete(nw.col("x") > 40))
    assert table.append(hourly(70, 75)) == 5
    assert x(table) == [*range(41), *range(70, 75)]


def test_values_built_for_rows_that_went_meanwhile_are_left_out(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: replace_twenties(another(table)))
    assert table.add(DOUBLE, fs.Lag("x")).computed == 12
    assert standing(table, "double") == "ffmfff"
    assert standing(table, "x_lag_1") == "ffmsss"
    mended(table)


def files_of(folder: Path) -> set[Path]:
    return set((folder / "s" / "data").rglob("*.parquet"))


def test_a_failed_commit_leaves_only_files_that_gc_removes(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    table = in_tens(store)
    before = files_of(tmp_path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConflictError("lost", "again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommitLog, "commit", refuse)
        for change in CHANGES:
            with pytest.raises(ConflictError):
                change(table)
    assert files_of(tmp_path) > before
    assert x(table) == list(range(60))
    store.gc(safety_age="0s")
    assert files_of(tmp_path) == before
    assert store.verify().ok
