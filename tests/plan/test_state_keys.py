"""States are shared where they are the same, and only there."""

from __future__ import annotations

from pathlib import Path

import polars as pl

import featurestore as fs

ROWS = pl.DataFrame(
    {
        "a": [1, 1, 2, 2, 1, 2, 1, 2],
        "b": [1, 2, 1, 2, 2, 2, 1, 1],
        "t": [1, 2, 3, 4, 5, 6, 7, 8],
        "u": [8, 7, 6, 5, 4, 3, 2, 1],
        "x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    }
)


def expected(key: str) -> list[float | None]:
    return ROWS.select(pl.col("x").shift(1).over(key))["x"].to_list()


def test_tables_of_equal_bytes_and_other_keys_do_not_share_states(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s")
    for name, key in (("one", "a"), ("two", "b")):
        table = store.ingest(name, ROWS[:4], key=key, time="t")
        table.append(ROWS[4:])
        table.add(fs.Lag("x"))
        assert table.read("x_lag_1")["x_lag_1"].to_list() == expected(key)


def test_joins_of_tables_with_equal_bytes_and_other_keys(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s")
    left = store.ingest("left", ROWS.select("a", "b", t=pl.col("t") + 8), time="t")
    for name, key in (("one", "a"), ("two", "b")):
        source = store.ingest(name, ROWS[:4], key=key, time="t")
        source.append(ROWS[4:])
        left.add(fs.AsOfJoin(name, columns="x", by=key, prefix=f"{name}_"))
        last = dict(ROWS.group_by(key).agg(pl.col("x").last()).iter_rows())
        found = left.read([key, f"{name}_x"])
        assert found[f"{name}_x"].to_list() == [last[one] for one in found[key]]
