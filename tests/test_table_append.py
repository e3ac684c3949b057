"""Appending: only new partitions are computed, and values are those of a table built in one go."""

from __future__ import annotations

import uuid
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import LateRowsError
from featurestore.testing.tables import (
    FIT_ON,
    HOUR,
    assert_same_rows,
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
)

OTHER = observations(150, 1, column="y").sort("t", "k")
ROWS = observations(400).sort("t", "k")
FEATURES = len(one_of_each()) + len(fitted_of_each())


def cut(rows: pl.DataFrame, *hours: int) -> list[pl.DataFrame]:
    """Cut rows before these hours; no time is in two pieces."""
    edges = [-1, *sorted(hours), 10**6]
    time = pl.col("t").to_physical() // HOUR
    pieces = [rows.filter((time >= a) & (time < b)) for a, b in pairwise(edges)]
    return [one for one in pieces if len(one)]


def opened(url: str | Path | None = None, other: pl.DataFrame = OTHER) -> fs.FeatureStore:
    store = fs.FeatureStore.create(url or f"memory://{uuid.uuid4().hex}", workers=2)
    store.ingest("other", other, key="k", time="t", partition_bytes=2000)
    store.ingest("static", names_of_keys(), key="k")
    return store


def add_all(table: fs.Table) -> None:
    table.add(*one_of_each())
    table.add(*fitted_of_each(), fit_on=FIT_ON)


@pytest.fixture(scope="module")
def in_one_go() -> pl.DataFrame:
    table = opened().ingest("rows", ROWS, key="k", time="t")
    assert table.partitions == 1
    add_all(table)
    return table.read()


def test_appending_computes_the_new_partitions_only_and_gives_the_same_values(
    in_one_go: pl.DataFrame,
) -> None:
    pieces = cut(ROWS, 60, 61, 100)
    table = opened().ingest("rows", pieces[0], key="k", time="t", partition_bytes=2500)
    add_all(table)
    for piece in pieces[1:]:
        before = table.partitions
        assert table.append(piece) == len(piece)
        new = table.partitions - before
        assert new >= 1
        assert {one.missing for one in table.status().features} == {new}
        assert {one.stale for one in table.status().features} == {0}
        applied = [one.partitions for one in table.plan().steps if one.work == "apply"]
        assert set(applied) == {new}
        report = table.build()
        assert report.computed == new * FEATURES
        assert table.build().computed == 0
    assert table.partitions > 4
    assert_same_rows(table.read(), in_one_go)


def test_partition_size_does_not_change_values(in_one_go: pl.DataFrame) -> None:
    for size in (900, 5000):
        table = opened().ingest("rows", ROWS, key="k", time="t", partition_bytes=size)
        add_all(table)
        assert_same_rows(table.read(), in_one_go)


@settings(deadline=None, max_examples=6)
@given(
    hours=st.sets(st.integers(1, 132), max_size=5),
    size=st.sampled_from([1500, 4000, 10**6]),
    build_between=st.booleans(),
)
def test_any_pieces_of_any_size_give_the_same_values(
    in_one_go: pl.DataFrame, hours: set[int], size: int, build_between: bool
) -> None:
    pieces = cut(ROWS, *hours)
    # Statistics are learnt from the first two days, which must not be appended later.
    pieces = [pl.concat([one for one in pieces if one["t"].dt.epoch("ms").min() < 48 * HOUR])] + [
        one for one in pieces if one["t"].dt.epoch("ms").min() >= 48 * HOUR
    ]
    table = opened().ingest("rows", pieces[0], key="k", time="t", partition_bytes=size)
    add_all(table)
    for piece in pieces[1:]:
        table.append(piece)
        if build_between:
            table.build()
    table.build()
    assert_same_rows(table.read(), in_one_go)


def test_the_other_table_may_grow_in_pieces_too(in_one_go: pl.DataFrame) -> None:
    pieces = cut(OTHER, 20, 33)
    store = opened(other=pieces[0])
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    add_all(table)
    for piece in pieces[1:]:
        store.table("other").append(piece)
        table.build()
    assert_same_rows(table.read(), in_one_go)


def test_late_rows_leave_everything_as_it_was(tmp_path: Path) -> None:
    table = opened(tmp_path / "store").ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    table.add(one_of_each()[0])
    before, version, data = table.read(), table.version, _data_files(tmp_path)
    with pytest.raises(LateRowsError, match="rows"):
        table.append(ROWS.tail(3))
    assert table.version == version
    assert _data_files(tmp_path) == data
    assert_frame_equal(table.read(), before)


def _data_files(root: Path) -> set[Path]:
    return {one for one in root.rglob("*.parquet") if one.is_file()}
