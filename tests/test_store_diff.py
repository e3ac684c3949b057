"""What differs between two versions: rows by content against a plain count, features by definition."""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.engines.row_hashing import hash_rows
from featurestore.errors import MemoryLimitError, NotFoundError
from featurestore.testing.tables import FIT_ON, observations

ROWS = observations(120).sort("t", "k")
CUT = {"key": "k", "time": "t", "partition_bytes": 1500}


def new_store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)


def shifted(frame: Any) -> Any:
    return frame["x"] + 1


def redefined(by: int) -> Any:
    """Return a function of the name ``moved``, other code for another number."""
    if by == 1:

        def moved(frame: Any) -> Any:
            return frame["x"] + 1

        return moved

    def moved(frame: Any) -> Any:  # type: ignore[no-redef]
        return frame["x"] + 2

    return moved


def as_stored(old: pl.DataFrame, new: pl.DataFrame, time: str | None = "t") -> Any:
    """Return the difference of two frames that were ingested under one name, one after the other."""
    store = new_store()
    cut = {**CUT, "time": time}
    if time is None:
        cut["key"] = ()
    store.ingest("rows", old, duplicates="keep", **cut)  # type: ignore[arg-type]
    first = store.version
    store.drop("rows")
    store.ingest("rows", new, duplicates="keep", **{**cut, "partition_bytes": 2500})  # type: ignore[arg-type]
    return store.diff(first)


def test_equal_versions_do_not_differ() -> None:
    store = new_store()
    store.ingest("rows", ROWS, **CUT)  # type: ignore[arg-type]
    found = store.diff(store.version)
    assert found.is_empty
    assert found.tables == ()
    assert "no difference" in str(found)
    assert as_stored(ROWS, ROWS).is_empty  # cut differently, and written again


@pytest.mark.parametrize("time", ["t", None])
@pytest.mark.parametrize("seed", range(4))
def test_rows_against_a_plain_count(seed: int, time: str | None) -> None:
    print("seed", seed)
    draw = random.Random(seed)
    old = ROWS.sample(draw.randrange(1, 120), seed=seed)
    changed = old.with_columns(
        pl.when(pl.int_range(pl.len()) % 7 == seed).then(None).otherwise(pl.col("n")).alias("n")
    )
    new = pl.concat([changed.head(draw.randrange(1, 100)), ROWS.sample(9, seed=seed + 9)])
    new = pl.concat([new, new.head(3)])  # repeated rows count as often as they are there
    before, after = Counter(old.rows()), Counter(new.rows())
    found = as_stored(old, new, time)
    come, gone = after - before, before - after
    assert ("rows" in {one.table for one in found.tables}) == bool(come or gone)
    rows = found["rows"].rows
    assert (rows.added, rows.removed) == (come.total(), gone.total())
    assert rows.stored_added == len(new)
    for span, kind in ((rows.added_range, come), (rows.removed_range, gone)):
        if time is None or not kind:
            assert span is None
        else:
            times = [row[1] for row in kind]
            assert span == (min(times).isoformat(), max(times).isoformat())


def test_every_type_and_every_change_of_a_value_counts() -> None:
    columns = {
        "f": pa.array([0.0, float("nan"), None, -1.5]),
        "s": pa.array(["", "a", None, "ab"]),
        "b": pa.array([b"", b"a", None, b"ab"]),
        "l": pa.array([[], [1, 2], None, [2, 1]]),
        "w": pa.array([["a", "b"], ["ab", ""], [None], None]),
        "o": pa.array([True, False, None, False]),
        "d": pa.array([1, 2, None, 3]).cast(pa.decimal128(38, 2)),
        "t": pa.array([1, 2, None, 3], pa.timestamp("us")),
        "y": pa.array([1, 2, None, 3], pa.date32()),
        "h": pa.array([1, 2, None, 3], pa.time32("ms")),
        "u": pa.array([1, 2, None, 2**64 - 1], pa.uint64()),
    }
    tensor = np.arange(8, dtype=np.float32).reshape(4, 2)
    table = pa.table(columns)
    plain = hash_rows(table, {"e": tensor})
    assert len(set(plain.tolist())) == 4
    backwards = table.select(table.column_names[::-1])
    assert (hash_rows(backwards, {"e": tensor}) == plain).all()
    cut = pa.concat_tables([table.slice(0, 1), table.slice(1, 3)])
    assert (hash_rows(cut, {"e": tensor}) == plain).all()
    for name in columns:
        rolled = table.column(name).take(pa.array([1, 2, 3, 0]))
        other = table.set_column(table.column_names.index(name), name, rolled)
        assert (hash_rows(other, {"e": tensor}) != plain).all(), name
    assert (hash_rows(table, {"e": tensor[:, ::-1].copy()}) != plain).all()
    assert (hash_rows(table.rename_columns(["g", *table.column_names[1:]]), {}) != plain).all()
    assert hash_rows(table.slice(0, 0), {}).shape == (0,)
    assert hash_rows(pa.table({}), {"e": tensor}).shape == (4,)


def test_appended_rows_by_metadata_and_by_content() -> None:
    store = new_store()
    table = store.ingest("rows", ROWS, **CUT)  # type: ignore[arg-type]
    table.append(observations(20, 5, start=100).sort("t", "k"))
    for rows in (True, False):
        found = store.diff(1, rows=rows)["rows"].rows
        assert (found.stored_added, found.stored_removed) == (20, 0)
        assert (found.added, found.removed) == ((20, 0) if rows else (None, None))
        assert found.added_range is not None
        assert not store.diff(1, rows=rows).is_empty
    back = store.diff(store.version, 1)["rows"].rows
    assert (back.added, back.removed, back.partitions_removed) == (0, 20, 1)


def test_rows_that_do_not_fit_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store()
    table = store.ingest("rows", ROWS, **CUT)  # type: ignore[arg-type]
    table.append(observations(20, 5, start=100).sort("t", "k"))
    full = store.memory_limit - 1000
    monkeypatch.setattr("featurestore.execution.budget.resident_bytes", lambda: full)
    with pytest.raises(MemoryLimitError, match="20 rows of 'rows'"):
        store.diff(1)
    assert store.diff(1, rows=False)["rows"].rows.stored_added == 20


def test_a_compaction_changes_no_row_and_a_replacement_those_it_replaces() -> None:
    store = new_store()
    table = store.ingest("rows", ROWS, **CUT)  # type: ignore[arg-type]
    table.add(fs.Expression(double=nw.col("x") * 2))
    table.compact("1MiB")
    found = store.diff(2)
    assert found.is_empty
    assert found["rows"].rows.partitions_added == 1
    assert (found["rows"].rows.added, found["rows"].rows.removed) == (0, 0)
    day = ROWS.filter(pl.col("t").dt.date() == pl.date(1970, 1, 2))
    assert len(day) > 3
    table.replace(day.with_columns(n=pl.lit(7, pl.Int64)), ("1970-01-02", "1970-01-03"))
    changed = store.diff(3)["rows"].rows
    sevens = int((day["n"] == 7).sum())
    assert (changed.added, changed.removed) == (len(day) - sevens, len(day) - sevens)
    assert changed.added_range is not None
    assert changed.added_range[0].startswith("1970-01-02")


def test_features_added_redefined_and_removed() -> None:
    store = new_store()
    table = store.ingest("rows", ROWS, **CUT)  # type: ignore[arg-type]
    parts = table.partitions
    table.add(fs.Expression(double=nw.col("x") * 2), fs.Lag("x", 1))
    table.feature(redefined(1), inputs=["x"], output="moved")
    table.add(fs.Standardize("n", prefix="std_"), fit_on="all")
    store.tag("before")
    table.drop("x_lag_1")
    table.add(fs.Expression(double=nw.col("x") * 3), replace=True)
    table.feature(redefined(2), inputs=["x"], output="moved", replace=True)
    table.add(fs.Standardize("n", prefix="std_"), fit_on=FIT_ON, replace=True)
    table.add(fs.Lag("n", 2))
    found = store.diff("before", rows=False)["rows"]
    assert found.rows.is_empty
    assert {one.columns: one.change for one in found.features} == {
        ("x_lag_1",): "removed",
        ("double",): "redefined",
        ("moved",): "redefined",
        ("std_n",): "redefined",
        ("n_lag_2",): "added",
    }
    assert found["n_lag_2"].built == parts
    double = found["double"]
    assert (double.built, double.changed, double.missing) == (0, parts, 0)
    ((_, before, after),) = double.parameters
    assert ("2" in before, "3" in after) == (True, True)
    assert "-            return frame" not in found["moved"].source
    assert "-    return frame" in found["moved"].source
    assert "+    return frame" in found["moved"].source
    assert found["moved"].missing == parts - parts  # it had no values before either
    ((name, before, after),) = found["std_n"].parameters
    assert (name, before) == ("fit_on", "all")
    assert FIT_ON[0] in after
    text = str(store.diff("before"))
    assert "redefined" in text
    assert "frame[" in text
    assert "<table>" in store.diff("before")._repr_html_()
    json.dumps(store.diff("before").to_json())


def test_values_that_were_built_or_went_missing() -> None:
    store = new_store()
    table = store.ingest("rows", ROWS, **CUT)  # type: ignore[arg-type]
    table.feature(shifted, inputs=["x"])
    defined = store.version
    table.build()
    parts = table.partitions
    assert store.diff(defined)["rows"]["shifted"].built == parts
    assert store.diff(store.version, defined)["rows"]["shifted"].missing == parts
    built = store.version
    table.append(observations(10, 5, start=100).sort("t", "k"))
    assert store.diff(built)["rows"]["shifted"].missing == 1


def test_tables_that_come_and_go() -> None:
    store = new_store()
    store.ingest("rows", ROWS, **CUT)  # type: ignore[arg-type]
    store.ingest("more", ROWS.select("k", "t"), **CUT)  # type: ignore[arg-type]
    found = store.diff(1)
    assert found["more"].change == "added"
    assert found["more"].rows.added == len(ROWS)
    assert store.diff(2, 1)["more"].change == "removed"
    with pytest.raises(KeyError):
        found["rows"]
    assert store.diff(0)["rows"].change == "added"
    store.drop("rows")
    store.ingest("rows", ROWS.rename({"x": "y"}), **CUT)  # type: ignore[arg-type]
    anew = store.diff(2)["rows"]
    assert anew.change == "ingested anew"
    assert (anew.rows.added, anew.rows.removed) == (len(ROWS), len(ROWS))
    with pytest.raises(NotFoundError):
        store.diff(1, "nothing")
