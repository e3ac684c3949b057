"""Features of rows that are not in the table equal those the same rows get when appended."""

from __future__ import annotations

import uuid

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import (
    MemoryLimitError,
    MissingColumnError,
    NotReadyError,
    SchemaError,
)
from featurestore.testing.tables import (
    FIT_ON,
    HOUR,
    assert_same_rows,
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
    plus_one,
)

OLD = observations(300).sort("t", "k")
NEXT = 101
NEW = observations(60, 5, start=NEXT).sort("t", "k")
STRANGERS = NEW.head(7).with_columns(k=pl.lit("nobody ☃")).unique(["k", "t"], maintain_order=True)
COLUMNS = [
    "n", "double", "more", "pair", "recent", "x_mean_12h", "x_std_12h", "x_min_12h", "x_count_12h",
    "n_sum_5r", "n_max_5r", "all_double_mean_1d", "x_lag_1", "x_lag_3", "x_rank", "x_zscore", "y",
    "young_y", "weight", "t_hour", "t_weekday", "std_x", "imp_n", "cat_word",
]  # fmt: skip


@pytest.fixture(scope="module")
def table() -> fs.Table:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    other = observations(300, 1, column="y")
    store.ingest("other", other, key="k", time="t", partition_bytes=2000)
    store.ingest("static", names_of_keys(), key="k")
    table = store.ingest("rows", OLD, key="k", time="t", partition_bytes=2500)
    table.add(*one_of_each())
    table.add(*fitted_of_each(), fit_on=FIT_ON)
    return table


@pytest.fixture(scope="module")
def appended(table: fs.Table) -> pl.DataFrame:
    """What the new rows get when they are appended to a table of the same history."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    store.ingest("other", observations(300, 1, column="y"), key="k", time="t")
    store.ingest("static", names_of_keys(), key="k")
    twin = store.ingest("rows", OLD, key="k", time="t")
    twin.add(*one_of_each())
    twin.add(*fitted_of_each(), fit_on=FIT_ON)
    twin.append(pl.concat([NEW, STRANGERS]))
    twin.build()
    return twin.read(["k", "t", *COLUMNS], rows=slice(len(OLD), None))


def test_served_values_equal_built_ones_in_the_given_order(
    table: fs.Table, appended: pl.DataFrame
) -> None:
    rows = pl.concat([NEW, STRANGERS])
    for given in (rows, rows.sample(len(rows), shuffle=True, seed=3), rows.reverse()):
        served = table.compute(given, COLUMNS)
        assert served.columns == ["k", "t", *COLUMNS]
        assert_frame_equal(served.select("k", "t"), given.select("k", "t"))
        assert_same_rows(served.sort("t", "k"), appended)


def test_one_row_at_a_time(table: fs.Table) -> None:
    first = NEW.filter(pl.col("t") == pl.col("t").min())
    together = table.compute(first, ["x_mean_12h", "x_lag_1", "y", "double"])
    for position in range(len(first)):
        one = table.compute(first[position], ["x_mean_12h", "x_lag_1", "y", "double"])
        assert_frame_equal(one, together[position])


def test_serving_changes_nothing_that_readers_see(table: fs.Table) -> None:
    version = table.version
    table.compute(NEW, COLUMNS)
    assert table.version == version


def test_rows_inside_the_table_see_only_what_is_older() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("rows", OLD, key="k", time="t", partition_bytes=2500)
    table.add(fs.Lag("n", 1), fs.Rolling("n", "1d", stats=["count", "sum"]))
    columns = ["n_lag_1", "n_count_1d", "n_sum_1d"]
    expected = table.read(["k", "t", *columns])
    for hour in (0, 1, 40, 77):
        rows = OLD.filter(pl.col("t").dt.epoch("ms") == hour * HOUR)
        served = table.compute(rows, columns)
        assert_frame_equal(served, expected.filter(pl.col("t").dt.epoch("ms") == hour * HOUR))


def test_columns_that_features_do_not_read_may_be_missing_or_extra(table: fs.Table) -> None:
    given = NEW.select("k", "t", "x", unknown=pl.lit(1))
    expected = table.compute(NEW, ["double", "x_lag_1"])
    assert_frame_equal(table.compute(given, ["double", "x_lag_1"]), expected)


def test_a_needed_column_that_is_missing_is_named(table: fs.Table) -> None:
    with pytest.raises(SchemaError, match=r"lacks columns \['x'\]"):
        table.compute(NEW.drop("x"), ["double"])
    with pytest.raises(SchemaError, match=r"lacks columns \['t'\]"):
        table.compute(NEW.drop("t"), ["double"])


def test_a_wrong_type_is_named(table: fs.Table) -> None:
    with pytest.raises(SchemaError, match="'x' is float64 in the table but string"):
        table.compute(NEW.with_columns(x=pl.lit("much")), ["double"])


def test_types_are_brought_to_those_of_the_table(table: fs.Table) -> None:
    given = NEW.with_columns(pl.col("t").cast(pl.Datetime("us")), pl.col("n").cast(pl.Int32))
    expected = table.compute(NEW, ["n_sum_5r", "y"])
    assert_frame_equal(table.compute(given, ["n_sum_5r", "y"]), expected)


def test_an_unknown_feature_names_close_ones(table: fs.Table) -> None:
    with pytest.raises(MissingColumnError, match=r"did you mean.*double"):
        table.compute(NEW, ["doubel"])


def test_null_keys_and_times_are_refused(table: fs.Table) -> None:
    with pytest.raises(SchemaError, match=r"'k'.*nulls"):
        table.compute(NEW.with_columns(k=pl.lit(None, pl.String)), ["double"])


def test_no_rows_give_no_rows(table: fs.Table) -> None:
    served = table.compute(NEW.clear(), COLUMNS)
    assert served.shape == (0, 2 + len(COLUMNS))
    assert served.schema == table.compute(NEW, COLUMNS).schema


def test_a_table_without_time() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    store.ingest("static", names_of_keys(), key="k")
    rows = OLD.drop("t")
    table = store.ingest("rows", rows)
    table.add(
        fs.Expression(double=nw.col("x") * 2),
        fs.Function(plus_one, inputs="x", output="more"),
        fs.Lookup("static", columns="weight"),
    )
    table.add(*fitted_of_each(), fit_on="all")
    columns = ["double", "more", "weight", "std_x", "imp_n", "cat_word"]
    shuffled = rows.with_row_index().sample(40, shuffle=True, seed=1)
    served = table.compute(shuffled.drop("index"), columns)
    assert_frame_equal(served, table.read(columns)[shuffled["index"]])


def test_rows_beyond_the_memory_limit_are_refused(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "featurestore.execution.serving.resident_bytes", lambda: table._session.place.memory_limit
    )
    with pytest.raises(MemoryLimitError, match="new rows need more than 0 B"):
        table.compute(NEW, ["double"])


def test_states_over_values_that_are_not_built_are_refused() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("rows", OLD, key="k", time="t")
    table.add(fs.Expression(double=nw.col("x") * 2), fs.Lag("double", 1))
    table.append(NEW)
    later = observations(5, 9, start=200)
    with pytest.raises(NotReadyError, match=r"not built.*\n.*build\(\)"):
        table.compute(later, ["double_lag_1"])
    assert len(table.compute(later, ["double"])) == 5


def test_columns_of_nothing_but_nulls_are_read_as_the_table_has_them(table: fs.Table) -> None:
    unknown = NEW.with_columns(x=pl.lit(None), n=pl.lit(None))  # untyped, as for the future
    expected = NEW.with_columns(x=pl.lit(None, pl.Float64), n=pl.lit(None, pl.Int64))
    columns = ["double", "n_sum_5r"]
    assert_frame_equal(table.compute(unknown, columns), table.compute(expected, columns))
