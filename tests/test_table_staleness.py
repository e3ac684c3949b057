"""What becomes stale and why, and that a build mends exactly that."""

from __future__ import annotations

import uuid
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import DefinitionError, InvalidInputError, NameTakenError, NotReadyError
from featurestore.testing.tables import HOUR, names_of_keys, observations

ROWS = observations(300).sort("t", "k")
MORE = observations(60, 5, start=101).sort("t", "k")
DOUBLE = fs.Expression(double=nw.col("x") * 2)
SCALE = 3


def times_scale(frame: Any) -> Any:
    return frame["x"] * SCALE


def times(frame: Any, by: int) -> Any:
    return frame["x"] * by


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)


def counts(table: fs.Table, column: str) -> tuple[int, int, int, tuple[str, ...]]:
    found = table.status()[column]
    return found.fresh, found.stale, found.missing, found.reasons


# --- fit scope ----------------------------------------------------------------------------------


def test_fitted_on_all_rows_is_stale_after_an_append(table: fs.Table) -> None:
    table.add(fs.Standardize("x", prefix="std_"), fit_on="all")
    old = table.partitions
    table.append(MORE)
    new = table.partitions - old
    assert counts(table, "std_x") == (0, old, new, ("fit scope",))
    assert table.build().computed == old + new
    x = pl.concat([ROWS, MORE])["x"]
    expected = (x - x.mean()) / x.std(ddof=0)
    found = table.read("std_x")["std_x"]
    assert (found - expected).abs().max() < 1e-6  # type: ignore[operator]
    assert found.null_count() == x.null_count()


def test_fitted_on_a_range_stays_fresh_when_rows_after_it_are_appended(table: fs.Table) -> None:
    table.add(fs.Standardize("x", prefix="std_"), fit_on=("1970-01-01", "1970-01-02"))
    before, old = table.read("std_x"), table.partitions
    table.append(MORE)
    assert counts(table, "std_x")[:2] == (old, 0)
    table.build()
    assert_frame_equal(table.read("std_x", rows=slice(0, len(ROWS))), before)
    x = ROWS.filter(pl.col("t") < pl.datetime(1970, 1, 2))["x"]
    expected = (pl.concat([ROWS, MORE])["x"] - x.mean()) / x.std(ddof=0)
    assert (table.read("std_x")["std_x"] - expected).abs().max() < 1e-6  # type: ignore[operator]


def test_a_range_that_reaches_beyond_the_table_is_stale_when_rows_arrive_in_it(
    table: fs.Table,
) -> None:
    table.add(fs.Impute("x", "mean", prefix="imp_"), fit_on=("1970-01-01", "1971-01-01"))
    table.append(MORE)
    assert counts(table, "imp_x")[3] == ("fit scope",)


def test_fit_on_is_asked_for_and_refused_where_it_means_nothing(table: fs.Table) -> None:
    with pytest.raises(DefinitionError, match="fit_on='all'"):
        table.add(fs.Standardize("x"))
    with pytest.raises(InvalidInputError, match="none of the transformers learns"):
        table.add(DOUBLE, fit_on="all")
    with pytest.raises(DefinitionError, match="use 'all' or a range"):
        table.add(fs.Standardize("x"), fit_on="train")
    with pytest.raises(DefinitionError, match="holds no rows"):
        table.add(fs.Standardize("x", prefix="s_"), fit_on=("1980-01-01", "1981-01-01"))


# --- another table ------------------------------------------------------------------------------


def joined(store: fs.FeatureStore, **options: Any) -> tuple[fs.Table, fs.Table]:
    other = observations(100, 1, column="y").sort("t", "k")
    assert other["t"].dt.epoch("ms").max() < 35 * HOUR  # type: ignore[operator]
    source = store.ingest("other", other, key="k", time="t", partition_bytes=1000)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    table.add(fs.AsOfJoin("other", columns="y", **options))
    return source, table


def last_hours(table: fs.Table) -> list[int]:
    files = table._files()
    return [int(one.time_max or 0) // HOUR for one in files.base]


def test_partitions_whose_window_new_rows_reach_are_stale_earlier_ones_fresh(
    store: fs.FeatureStore,
) -> None:
    source, table = joined(store, max_age="3h")
    source.append(observations(30, 2, start=60, column="y"))
    files = table._files()
    spans = [(one.time_min // HOUR, one.time_max // HOUR) for one in files.base]  # type: ignore[operator]
    newest = source._files().base[-1].time_max // HOUR  # type: ignore[operator]
    reached = sum(last >= 60 and first <= newest + 3 for first, last in spans)
    assert 0 < reached < table.partitions
    fresh, stale, missing, why = counts(table, "y")
    assert (fresh, stale, missing, why) == (
        table.partitions - reached,
        reached,
        0,
        ("other table",),
    )
    assert table.build().computed == reached
    assert table.status().is_fresh


def test_without_max_age_everything_later_is_stale(store: fs.FeatureStore) -> None:
    source, table = joined(store)
    source.append(observations(30, 2, start=60, column="y"))
    reached = sum(hour >= 60 for hour in last_hours(table))
    assert counts(table, "y") == (table.partitions - reached, reached, 0, ("other table",))


def test_rows_of_the_other_table_beyond_this_one_change_nothing(store: fs.FeatureStore) -> None:
    source, table = joined(store)
    source.append(observations(30, 2, start=500, column="y"))
    assert table.status().is_fresh


def test_a_feature_of_another_table_that_is_not_built_hinders_only_who_reads_it(
    store: fs.FeatureStore,
) -> None:
    source, table = joined(store)
    source.add(fs.Expression(z=nw.col("y") + 1))
    table.add(fs.AsOfJoin("other", columns="z"), DOUBLE)
    before = table.read("z")
    source.append(observations(30, 2, start=60, column="y"))
    assert len(table.read(["double", "x"])) == len(ROWS)
    with pytest.raises(NotReadyError, match=r"'other'.*\n.*table\('other'\)\.build\(\)"):
        table.read("z")
    with pytest.raises(NotReadyError, match=r"table\('other'\)\.build\(\)"):
        table.build()
    assert counts(table, "double")[1:3] == (0, 0)
    assert "other table" in counts(table, "z")[3]
    source.build()
    table.build()
    assert_frame_equal(table.read("z", rows=slice(0, 100)), before[:100])
    assert table.status().is_fresh


def test_a_stale_feature_of_another_table_makes_its_readers_stale(store: fs.FeatureStore) -> None:
    source, table = joined(store)
    source.add(fs.Standardize("y", prefix="s_"), fit_on="all")
    table.add(fs.AsOfJoin("other", columns="s_y"))
    source.append(observations(30, 2, start=500, column="y"))
    with pytest.raises(NotReadyError, match=r"table\('other'\)\.build\(\)"):
        table.read("s_y")
    source.build()
    assert counts(table, "s_y")[1] > 0
    table.build()
    again = joined_anew(store)
    assert_frame_equal(table.read("s_y"), again.read("s_y"))


def joined_anew(store: fs.FeatureStore) -> fs.Table:
    table = store.ingest("again", ROWS, key="k", time="t")
    table.add(fs.AsOfJoin("other", columns="s_y"))
    return table


def test_a_column_that_another_table_reads_cannot_be_dropped(store: fs.FeatureStore) -> None:
    source, table = joined(store)
    source.add(fs.Expression(z=nw.col("y") + 1))
    table.add(fs.AsOfJoin("other", columns="z"))
    with pytest.raises(InvalidInputError, match=r"'z' of table 'rows' reads 'z'"):
        source.drop("z")
    table.drop("z")
    source.drop("z")


def test_a_replaced_column_of_another_table_makes_its_readers_stale(
    store: fs.FeatureStore,
) -> None:
    source, table = joined(store)
    source.add(fs.Expression(z=nw.col("y") + 1))
    table.add(fs.AsOfJoin("other", columns="z"))
    before = table.read("z")
    source.add(fs.Expression(z=nw.col("y") + 2), replace=True)
    assert counts(table, "z")[3] == ("other table",)
    table.build()
    assert_frame_equal(table.read("z"), before + 1)


def test_a_lookup_table_is_static_but_may_be_extended(store: fs.FeatureStore) -> None:
    static = store.ingest("static", names_of_keys(), key="k")
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    table.add(fs.Lookup("static", columns="weight"))
    static.append(pl.DataFrame({"k": ["d"], "weight": [9.0]}))
    assert counts(table, "weight") == (0, table.partitions, 0, ("other table",))
    table.build()
    found = table.read(["k", "weight"])
    assert set(found.filter(pl.col("k") == "d")["weight"]) == {9.0}


# --- features of features -----------------------------------------------------------------------


def test_a_replaced_feature_has_new_values_and_makes_its_dependents_stale(table: fs.Table) -> None:
    table.add(DOUBLE, fs.Lag("double", 1), fs.Expression(other=nw.col("n") + 1))
    with pytest.raises(NameTakenError, match="replace=True"):
        table.add(fs.Expression(double=nw.col("x") * 20))
    report = table.add(fs.Expression(double=nw.col("x") * 20), replace=True)
    assert report.computed == table.partitions
    assert counts(table, "double_lag_1") == (0, table.partitions, 0, ("input",))
    assert table.status()["other"].is_fresh
    assert_frame_equal(table.read(["double"]), ROWS.select(double=pl.col("x") * 20))
    with pytest.raises(NotReadyError, match=r"double_lag_1.*stale \(input\)\n.*build\(\)"):
        table.read("double_lag_1")
    assert table.build().columns == ("double_lag_1",)
    expected = ROWS.select((pl.col("x") * 20).shift(1).over("k").alias("double_lag_1"))
    assert_frame_equal(table.read("double_lag_1"), expected)


def test_a_replacement_must_keep_the_columns_that_others_read(table: fs.Table) -> None:
    table.add(fs.Rolling("x", "1d", stats=["mean", "std"]), fs.Expression(y=nw.col("x_std_1d") * 2))
    version = table.version
    with pytest.raises(InvalidInputError, match=r"'y'.*'x_std_1d'"):
        table.add(fs.Rolling("x", "1d", stats=["mean"]), replace=True)
    assert table.version == version


def test_a_replacement_of_another_type_is_refused_while_others_read_it(table: fs.Table) -> None:
    table.add(DOUBLE, fs.Lag("double", 1))
    with pytest.raises(InvalidInputError, match=r"'double_lag_1'.*type"):
        table.add(fs.Expression(double=nw.col("n")), replace=True)
    table.drop("double_lag_1")
    table.add(fs.Expression(double=nw.col("n")), replace=True)
    table.add(fs.Lag("double", 1))
    expected = ROWS.select(pl.col("n").shift(1).over("k").alias("double_lag_1"))
    assert_frame_equal(table.read("double_lag_1"), expected)


def test_a_replacement_may_read_what_it_replaces_not(table: fs.Table) -> None:
    table.add(DOUBLE)
    with pytest.raises(InvalidInputError):
        table.add(fs.Expression(double=nw.col("double") * 2), replace=True)


# --- code ---------------------------------------------------------------------------------------


def test_changed_code_is_stale_until_it_is_added_again(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = fs.Function(times_scale, inputs="x", output="scaled")
    table.add(feature, DOUBLE, fs.Expression(beyond=nw.col("scaled") + 1))
    monkeypatch.setitem(globals(), "SCALE", 4)
    assert counts(table, "scaled") == (0, table.partitions, 0, ("code",))
    assert counts(table, "beyond") == (0, table.partitions, 0, ("input",))
    assert table.status()["double"].is_fresh
    for column in ("scaled", "beyond"):
        with pytest.raises(NotReadyError, match="replace=True"):
            table.read(column)
    with pytest.raises(NotReadyError, match="replace=True"):
        table.build()
    assert len(table.read("double")) == len(ROWS)
    again = fs.Function(times_scale, inputs="x", output="scaled")
    assert table.add(again, replace=True).computed == table.partitions
    assert_frame_equal(table.read("scaled"), ROWS.select(scaled=pl.col("x") * 4))
    assert table.build().columns == ("beyond",)
    assert table.status().is_fresh


def test_an_old_version_is_read_whatever_the_code_is_now(
    store: fs.FeatureStore, table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add(fs.Function(times_scale, inputs="x", output="scaled"))
    monkeypatch.setitem(globals(), "SCALE", 4)
    old = store.checkout(table.version).table("rows")
    assert_frame_equal(old.read("scaled"), ROWS.select(scaled=pl.col("x") * 3))


def test_a_parameter_is_part_of_the_definition(table: fs.Table) -> None:
    table.add(fs.Function(times, inputs="x", output="more", params={"by": 2}))
    again = fs.Function(times, inputs="x", output="more", params={"by": 2})
    assert table.add(again).computed == 0
    other = fs.Function(times, inputs="x", output="more", params={"by": 3})
    with pytest.raises(NameTakenError):
        table.add(other)
    table.add(other, replace=True)
    assert_frame_equal(table.read("more"), ROWS.select(more=pl.col("x") * 3))


# --- selectors ----------------------------------------------------------------------------------


def test_a_selector_does_not_select_what_its_definition_replaces(store: fs.FeatureStore) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    floats = fs.numeric() - fs.by_name("n")
    table.add(fs.Clip(floats, -0.5, 0.5, suffix="_c"))
    before = table.columns
    table.add(fs.Clip(floats, -1.0, 1.0, suffix="_c"), replace=True)
    assert table.columns == before
    assert_frame_equal(table.read("x_c"), ROWS.select(x_c=pl.col("x").clip(-1.0, 1.0)))


def test_a_selector_means_the_columns_of_the_day_it_was_added(store: fs.FeatureStore) -> None:
    other = store.ingest("other", observations(100, 1, column="y"), key="k", time="t")
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    features = (
        fs.Rolling(fs.numeric() - fs.by_name("n"), "1d"),
        fs.AsOfJoin("other", columns=fs.numeric(), prefix="o_"),
        fs.Lag(fs.everything(), prefix="lag_"),
    )
    fitted = fs.Standardize(prefix="s_")
    table.add(features[0])
    table.add(features[1])
    table.add(features[2])
    table.add(fitted, fit_on=("1970-01-01", "1970-01-03"))
    columns = table.columns
    other.add(fs.Expression(z=nw.col("y") + 1))
    for one in features:
        assert table.add(one).computed == 0
    assert table.add(fitted, fit_on=("1970-01-01", "1970-01-03")).computed == 0
    assert table.status().is_fresh
    table.append(MORE)
    table.build()
    assert table.columns == columns
    assert table.compute(observations(5, start=500), ["s_x", "o_y", "lag_x_lag_1"]).height == 5
