"""Labels that look ahead, in tables: what becomes stale, that a build mends exactly that, and refusals."""

from __future__ import annotations

import datetime as dt
import uuid
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import DefinitionError
from featurestore.plan.staleness import Assessor

DAY = 86_400_000


def days(first: int, last: int, keys: str = "ab", step: float = 1.0) -> pl.DataFrame:
    """Return one row per key and day, from the first to before the last."""
    rows = [(day, key) for day in range(first, last) for key in keys]
    return pl.DataFrame(
        {
            "t": pl.Series([day * DAY for day, _ in rows]).cast(pl.Datetime("ms")),
            "k": [key for _, key in rows],
            "x": [100.0 + step * day + ord(key) for day, key in rows],
        }
    )


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)


def growing(store: fs.FeatureStore, *pieces: pl.DataFrame, name: str = "rows") -> fs.Table:
    """Return a table with one partition for each piece."""
    table = store.ingest(name, pieces[0], key="k", time="t")
    for piece in pieces[1:]:
        table.append(piece)
    return table


def fresh(table: fs.Table, column: str) -> str:
    """Return how a column stands in each partition: ``.`` fresh, ``s`` stale, ``m`` missing."""
    files = table._files()
    found = Assessor({files.name: files}).group(files.name, files.graph.owners[column])
    return "".join({"fresh": "."}.get(one.freshness, one.freshness[0]) for one in found)


def wanted(table: fs.Table, ahead: int) -> pl.Series:
    frame = table.read(["x", "k"])
    out: pl.Series = frame.select(pl.col("x").shift(-ahead).over("k"))["x"]
    return out


# --- rows ahead ---------------------------------------------------------------------------------


def test_an_append_makes_stale_only_partitions_with_an_incomplete_future(
    store: fs.FeatureStore,
) -> None:
    table = growing(store, *(days(2 * i, 2 * i + 2) for i in range(5)))
    table.add(fs.Forward("x", 3))
    assert fresh(table, "x_value_ahead_3r") == "....."
    table.append(days(10, 12))
    # Three rows ahead reach over two partitions of two days each.
    assert fresh(table, "x_value_ahead_3r") == "...ssm"
    assert table.status()["x_value_ahead_3r"].reasons == ("later rows",)
    assert table.build().computed == 3
    assert fresh(table, "x_value_ahead_3r") == "......"
    assert table.read("x_value_ahead_3r")["x_value_ahead_3r"].equals(wanted(table, 3))


def test_keys_that_end_keep_a_partition_open_and_cost_no_computing(store: fs.FeatureStore) -> None:
    table = growing(store, days(0, 2, "abc"), *(days(i, i + 1) for i in range(2, 6)))
    table.add(fs.Forward("x", 1))
    table.append(days(6, 7))
    # "c" may come back, so the first partition might change; it does not.
    assert fresh(table, "x_value_ahead_1r") == "s...sm"
    done = table.build()
    assert (done.computed, done.reused) == (2, 1)
    table.append(days(7, 8, "abc"))
    assert fresh(table, "x_value_ahead_1r") == "s....sm"
    done = table.build()
    assert (done.computed, done.reused) == (3, 0)
    assert table.read("x_value_ahead_1r")["x_value_ahead_1r"].equals(wanted(table, 1))


def test_replaced_and_deleted_rows_reach_the_windows_that_look_at_them(
    store: fs.FeatureStore,
) -> None:
    table = growing(store, *(days(2 * i, 2 * i + 2) for i in range(6)))
    table.add(fs.Forward("x", 2))
    table.replace(days(6, 8, step=9.0), ("1970-01-07", "1970-01-09"))
    assert fresh(table, "x_value_ahead_2r") == "..sm.."
    table.build()
    assert table.read("x_value_ahead_2r")["x_value_ahead_2r"].equals(wanted(table, 2))
    table.delete(nw.col("t") == dt.datetime(1970, 1, 11))  # noqa: DTZ001 - as the column
    assert fresh(table, "x_value_ahead_2r") == "....sm"
    table.build()
    assert table.read("x_value_ahead_2r")["x_value_ahead_2r"].equals(wanted(table, 2))


def test_compaction_keeps_what_is_known_of_complete_futures(store: fs.FeatureStore) -> None:
    table = growing(store, *(days(i, i + 1) for i in range(12)))
    table.add(fs.Forward("x", 2), fs.Expression(twice=nw.col("x_value_ahead_2r") * 2))
    table.append(days(12, 13))
    table.build()
    before = table.read()
    table.compact(partition_bytes=150)
    count = table.partitions
    assert 3 <= count < 13
    assert fresh(table, "x_value_ahead_2r") == "." * count
    assert fresh(table, "twice") == "." * count
    table.append(days(13, 14))
    found = fresh(table, "x_value_ahead_2r")
    assert found.strip(".") in ("sm", "ssm")
    assert fresh(table, "twice") == found
    table.build()
    assert_frame_equal(table.read(rows=slice(0, 22)), before.head(22))
    assert table.read("x_value_ahead_2r")["x_value_ahead_2r"].equals(wanted(table, 2))


def test_damaged_labels_are_computed_again(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    table = growing(store, *(days(2 * i, 2 * i + 2) for i in range(4)))
    table.add(fs.Forward("x", 1))
    table.append(days(8, 10))
    table.build()
    before = table.read()
    folder = next(one for one in (tmp_path / "s" / "data" / "rows").iterdir() if one.name != "base")
    for file in folder.iterdir():
        file.write_bytes(b"damaged")
    report = store.repair()
    assert report.ok, str(report)
    assert fresh(table, "x_value_ahead_1r") == "....."
    assert_frame_equal(table.read(), before)


# --- time ahead ---------------------------------------------------------------------------------


def test_time_windows_are_stale_where_the_newest_time_completes_one(store: fs.FeatureStore) -> None:
    table = growing(store, *(days(2 * i, 2 * i + 2) for i in range(6)))
    table.add(fs.Forward("x", "5d", stats=["value", "mean"]))
    table.append(days(12, 13))
    # Newest day 11, then 12: of days 6 and 7 the second is complete now; 8 to 11 were null and stay so.
    assert fresh(table, "x_mean_ahead_5d") == "...s..m"
    assert table.status()["x_mean_ahead_5d"].reasons == ("later rows",)
    table.append(days(13, 14))
    assert fresh(table, "x_mean_ahead_5d") == "...ss.mm"
    assert table.build().computed == 4
    found = table.read("x_value_ahead_5d")["x_value_ahead_5d"]
    assert found.equals(wanted(table, 5))
    table.append(days(30, 31, "c"))  # time goes on without them: what is missing stays null
    assert fresh(table, "x_mean_ahead_5d") == "....ssssm"
    table.build()
    # The last row within five days of day 9 is that of day 13; day 13 has none.
    found = table.read(["k", "x_value_ahead_5d"]).filter(pl.col("k") == "a")["x_value_ahead_5d"]
    assert found.to_list()[8:] == [97.0 + 100 + 13.0] * 5 + [None]
    table.append(days(31, 32, "ab"))
    assert fresh(table, "x_mean_ahead_5d") == ".........m"


def test_time_windows_are_stale_where_a_change_lies_in_them(store: fs.FeatureStore) -> None:
    table = growing(store, *(days(2 * i, 2 * i + 2) for i in range(6)))
    table.add(fs.Forward("x", "3d", stats="sum"))
    table.replace(days(6, 8, step=9.0), ("1970-01-07", "1970-01-09"))
    # Days 2 and 3 look until 5 and 6, days 4 and 5 until 8.
    assert fresh(table, "x_sum_ahead_3d") == ".ssm.."
    table.build()
    again = growing(store, table.read(["t", "k", "x"]), name="again")
    again.add(fs.Forward("x", "3d", stats="sum"))
    assert_frame_equal(again.read("x_sum_ahead_3d"), table.read("x_sum_ahead_3d"))


# --- any history --------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 3), st.sampled_from(["a", "ab", "abc"])),
    st.tuples(st.just("replace"), st.integers(0, 8), st.sampled_from(["b", "ab", "c"])),
    st.tuples(st.just("compact"), st.just(0), st.just("")),
)


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["a", "ab", "abc"])), min_size=2, max_size=6
    ),
    st.lists(STEP, min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, "1d", "3d"]),
)
def test_what_is_called_fresh_has_the_values_of_a_table_made_at_once(
    begin: list[tuple[int, str]], steps: list[tuple[str, int, str]], ahead: Any
) -> None:
    """And what is computed is no more than what was called stale."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    day, pieces = 0, []
    for length, keys in begin:
        pieces.append(days(day, day + length, keys))
        day += length
    one = fs.Forward("x", ahead, stats=["value", "sum"])
    table = growing(store, *pieces)
    label = one.outputs(table.schema)[0].name
    table.add(one, fs.Expression(twice=nw.col(label) * 2))
    for number, (what, amount, keys) in enumerate(steps):
        if what == "append":
            table.append(days(day, day + amount, keys, step=float(number)))
            day += amount
        elif what == "replace":
            at = amount % day
            bounds = (f"1970-01-{at + 1:02}", f"1970-01-{at + 2:02}")
            table.replace(days(at, at + 1, keys, step=7.0 + number), bounds)
        else:
            table.compact()
            assert set(fresh(table, label)) <= {"."}, "what was fresh stays fresh"
        stale = len(fresh(table, label).replace(".", ""))
        at_once = growing(store, table.read(["t", "k", "x"]), name=f"at_once_{number}")
        at_once.add(one)
        done = table.build()
        assert done.computed + done.reused == 2 * stale
        right = at_once.read([one.name for one in one.outputs(table.schema)])
        assert_frame_equal(table.read(right.columns), right)
        assert set(fresh(table, label) + fresh(table, "twice")) == {"."}


# --- not a feature ------------------------------------------------------------------------------


@pytest.fixture
def labelled(store: fs.FeatureStore) -> fs.Table:
    table = growing(store, days(0, 6), days(6, 12))
    table.add(
        fs.Forward("x", "2d", stats="return", rename={"x_return_ahead_2d": "y"}),
        fs.Expression(half=nw.col("y") / 2),
        fs.Lag("half"),
        fs.Rolling("x", 3),
    )
    return table


KNOWN = ~nw.col("y").is_null()


@pytest.mark.parametrize("name", ["y", "half", "half_lag_1"])
def test_a_label_and_what_is_computed_from_it_are_refused_as_features(
    labelled: fs.Table, name: str
) -> None:
    with pytest.raises(
        DefinitionError, match=rf"{name}.*into the future \(through Forward 'y'"
    ) as no:
        labelled.dataset(["x", name], label="x_mean_3r", where=KNOWN)
    assert "as the label" in no.value.remedy


def test_a_pipeline_sees_features_only(labelled: fs.Table) -> None:
    pipeline = fs.Pipeline(fs.Standardize(["x", "y"]))
    with pytest.raises(DefinitionError, match="not among the features"):
        labelled.dataset(["x"], label="x_mean_3r", pipeline=pipeline)
    with pytest.raises(DefinitionError, match="Forward"):
        fs.Pipeline(fs.Forward("x", 1))


def test_joins_do_not_hide_that_a_column_looks_ahead(
    store: fs.FeatureStore, labelled: fs.Table
) -> None:
    other = growing(store, days(0, 12), name="other")
    other.add(fs.AsOfJoin(labelled, columns=["half"], by={"k": "k"}, lag="1d", prefix="o_"))
    with pytest.raises(DefinitionError, match="through Forward 'y' of table 'rows'"):
        other.dataset(["x", "o_half"], label=None)


def test_it_is_a_label(labelled: fs.Table) -> None:
    with pytest.raises(DefinitionError, match="'y'"):
        labelled.dataset(["x", "x_mean_3r"], label="y")  # the last days are not known yet
    data = labelled.dataset(
        ["x", "x_mean_3r"],
        label="y",
        where=KNOWN,
        split=fs.TimeSplit(valid="1970-01-07", embargo="2d"),
        pipeline=fs.Pipeline(fs.Standardize("x")),
    )
    assert data.train.rows == 8
    assert data.valid.read()["y"].null_count() == 0


def test_new_rows_have_no_future(labelled: fs.Table) -> None:
    new = days(12, 13)
    assert len(labelled.compute(new, ["x_mean_3r"])) == 2
    for name in ("y", "half"):
        with pytest.raises(DefinitionError, match="into the future") as no:
            labelled.compute(new, [name])
        assert "features only" in no.value.remedy
