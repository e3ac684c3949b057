"""Values that are still right are stamped anew, not computed: which, and that they really are right."""

from __future__ import annotations

import random
import uuid

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs

ROWS = 100
PARTITIONS = 8
RARE = 99
LAG = fs.Lag("x", by="k")


def rows(seed: int = 0) -> pl.DataFrame:
    """Ten rows of each of ten keys per hundred; the key 99 is in every third hundred alone."""
    chance = random.Random(seed)
    count = ROWS * PARTITIONS
    keys = [n % 10 for n in range(count)]
    for hundred in range(0, PARTITIONS, 3):
        keys[hundred * ROWS + 50] = RARE
    return pl.DataFrame(
        {
            "k": keys,
            "t": range(count),
            "x": [chance.random() for _ in range(count)],
            "y": [0.0] * count,
        }
    )


def store_of(frame: pl.DataFrame) -> tuple[fs.FeatureStore, fs.Table]:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("rows", frame, key="k", time="t", partition_bytes=32 * ROWS)
    assert table.partitions == PARTITIONS
    return store, table


def change(
    table: fs.Table, frame: pl.DataFrame, hundred: int, changed: pl.Expr, column: str = "x"
) -> pl.DataFrame:
    """Give the rows of one hundred for which ``changed`` is true another value; return all rows."""
    start = hundred * ROWS
    new = pl.when(pl.col("t").is_between(start, start + ROWS - 1) & changed)
    value = pl.col(column)
    after = frame.with_columns(new.then(value + 7).otherwise(value).alias(column))
    table.replace(after.slice(start, ROWS), (start, start + ROWS))
    return after


def files(table: fs.Table, column: str) -> list[str]:
    found = table._files()
    (group,) = found.groups_of((column,))
    entries = found.entries[group]
    return [
        file.path
        for one in found.base
        if one.partition in entries
        for file in entries[one.partition].all_files()
    ]


def check(store: fs.FeatureStore, table: fs.Table, frame: pl.DataFrame, *made: object) -> None:
    """Everything is fresh, sound, and what a new store computes from the same rows."""
    assert table.status().is_fresh
    assert table.build().computed == 0
    assert store.verify().ok
    _, fresh = store_of(frame)
    fresh.add(*made)  # type: ignore[arg-type]
    assert_frame_equal(table.read(), fresh.read())


def test_a_state_that_came_out_the_same_costs_nothing() -> None:
    frame = rows()
    store, table = store_of(frame)
    table.add(LAG)
    before = files(table, "x_lag_1")
    # Every key has later rows in the same hundred, so what later partitions are given is the same.
    frame = change(table, frame, 2, pl.col("t") % ROWS < 5)
    assert (table.status()["x_lag_1"].missing, table.status()["x_lag_1"].stale) == (1, 5)
    report = table.build()
    assert (report.computed, report.reused) == (1, 5)
    assert "5 still right" in str(report)
    after = files(table, "x_lag_1")
    assert after[:2] == before[:2]
    assert after[3:] == before[3:]
    assert after[2] != before[2]
    assert report.bytes_written < 2 * store.verify().bytes // len(after)
    check(store, table, frame, LAG)


def test_only_partitions_that_the_change_reaches_are_computed() -> None:
    frame = rows()
    store, table = store_of(frame)
    table.add(LAG)
    # The next row of the rare key is in hundred 6: its state differs up to there.
    frame = change(table, frame, 3, pl.col("k") == RARE)
    report = table.build()
    assert (report.computed, report.reused) == (4, 1)
    check(store, table, frame, LAG)


def test_what_reads_values_that_are_still_right_is_still_right() -> None:
    frame = rows()
    store, table = store_of(frame)
    twice = fs.Expression(twice=nw.col("x_lag_1") * 2)
    again = fs.Lag("twice", by="k")
    both = fs.Expression(both=nw.col("x") + nw.col("twice_lag_1"))
    table.add(LAG, twice, again, both)
    frame = change(table, frame, 2, pl.col("t") % ROWS < 5)
    report = table.build()
    assert (report.computed, report.reused) == (4, 20)
    check(store, table, frame, LAG, twice, again, both)


def test_a_reader_of_values_that_were_computed_is_computed() -> None:
    frame = rows()
    store, table = store_of(frame)
    twice = fs.Expression(twice=nw.col("x_lag_1") * 2)
    table.add(LAG, twice)
    frame = change(table, frame, 3, pl.col("k") == RARE)
    report = table.build()
    assert (report.computed, report.reused) == (2 * 4, 2 * 1)
    check(store, table, frame, LAG, twice)


def test_a_reader_of_values_that_were_computed_by_an_earlier_build_is_computed() -> None:
    """Its inputs are fresh, but it was computed from those before."""
    frame = rows()
    store, table = store_of(frame)
    twice = fs.Expression(twice=nw.col("x_lag_1") * 2)
    half = fs.Expression(half=nw.col("x_lag_1") / 2)
    table.add(LAG, twice)
    frame = change(table, frame, 3, pl.col("k") == RARE)
    report = table.add(half)  # needs the lag, not ``twice``
    assert (report.computed, report.reused) == (4 + PARTITIONS, 1)
    report = table.build()
    assert (report.computed, report.reused) == (5, 0)
    check(store, table, frame, LAG, twice, half)


def test_fitted_values_whose_state_came_out_the_same() -> None:
    frame = rows()
    store, table = store_of(frame)
    table.add(fs.Standardize("x", prefix="std_"), fit_on="all")
    # What it learns from is in the same files, so they could have changed.
    frame = change(table, frame, 2, pl.col("t") == 250, column="y")
    assert table.status()["std_x"].reasons == ("fit scope",)
    report = table.build()
    assert (report.computed, report.reused) == (1, PARTITIONS - 1)
    change(table, frame, 2, pl.col("t") == 250)
    report = table.build()
    assert (report.computed, report.reused) == (PARTITIONS, 0)
    assert store.verify().ok


@pytest.mark.parametrize("which", ["gone", "damaged"])
def test_without_the_old_state_they_are_computed(which: str) -> None:
    frame = rows()
    store, table = store_of(frame)
    table.add(LAG)
    objects = table._session.objects
    for info in list(objects.list("states")):
        if which == "gone":
            objects.delete([info.path])
        else:
            objects.replace(info.path, b"\0" * info.bytes)
    frame = change(table, frame, 2, pl.col("t") % ROWS < 5)
    report = table.build()
    assert (report.computed, report.reused) == (6, 0)
    check(store, table, frame, LAG)


def test_an_interrupted_build_loses_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = rows()
    store, table = store_of(frame)
    table.add(LAG)
    frame = change(table, frame, 3, pl.col("k") == RARE)
    monkeypatch.setattr(type(table._session.log), "commit", _stopped)
    with pytest.raises(KeyboardInterrupt):
        table.build()
    monkeypatch.undo()
    report = table.build()
    assert (report.computed, report.resumed, report.reused) == (0, 4, 1)
    check(store, table, frame, LAG)


def _stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_random_changes_give_what_a_new_store_computes() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    made = (
        LAG,
        fs.Lag("x", 3),
        fs.Rolling("x", 3, stats=["mean"], by="k"),
        fs.Rolling("x_lag_1", 4, stats=["max"], by="k"),
        fs.Expression(sum=nw.col("x") + nw.col("x_lag_3")),
    )
    computed = reused = 0
    for _ in range(4):
        frame = rows(chance.randrange(100))
        store, table = store_of(frame)
        table.add(*made)
        for _ in range(2):
            frame = change(
                table,
                frame,
                chance.randrange(PARTITIONS),
                pl.col("t").hash(chance.randrange(1000)) % chance.choice((1, 10, 100)) == 0,
            )
            found = [table.status()[name] for name in table.columns[4:]]
            report = table.build()
            assert report.computed + report.reused == sum(one.stale + one.missing for one in found)
            computed += report.computed
            reused += report.reused
        check(store, table, frame, *made)
    assert computed
    assert reused
