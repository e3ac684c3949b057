"""The leak check: each planted leak is found, with its rows, and nothing else is."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import featurestore as fs
from featurestore.cli import EXIT_FAULTS, main
from featurestore.errors import DefinitionError, InvalidInputError, NotReadyError
from featurestore.report.leakage import Leak, LeakedRow, LeakReport
from featurestore.testing.tables import (
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
)

ROWS = observations(300).sort("t", "k")


def centred(frame: Any) -> Any:
    return frame.select(pl.col("x").fill_null(0.0).rolling_mean(5, center=True, min_samples=1))["x"]


def of_all(frame: Any) -> Any:
    return frame["x"] - frame["x"].mean()


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)


def planted(store: fs.FeatureStore, *functions: fs.Function, name: str = "rows") -> fs.Table:
    """Return a table with functions that its first row, alone when they were defined, gave no cause to refuse."""
    first = ROWS.head(1).with_columns(pl.col("t") - pl.duration(hours=1))
    table = store.ingest(name, first, key="k", time="t", partition_bytes=2500)
    table.add(*functions)
    table.append(ROWS)
    table.build()
    return table


# --- what is found ------------------------------------------------------------------------------


def test_a_centred_mean_and_a_statistic_of_the_partition_are_found(store: fs.FeatureStore) -> None:
    table = planted(
        store,
        fs.Function(centred, inputs=["x"], output="smooth", frame="polars", dtypes="float64"),
        fs.Function(of_all, inputs=["x"], output="relative", dtypes="float64"),
    )
    table.add(fs.Expression(twice=nw.col("smooth") * 2), fs.Rolling("x", "6h"), fs.Lag("smooth"))
    report = table.check_leakage(sample=20)
    assert not report.ok
    assert {one.column for one in report.leaks} == {"smooth", "relative", "twice"}
    assert report["twice"].through == ("smooth",)
    assert report["smooth"].through == ()
    assert report.unchecked == {"smooth_lag_1": "computed from smooth, which leaks"}
    assert 15 < report["smooth"].differing <= report.rows
    held = {
        (row["k"], str(row["t"].isoformat())): row["smooth"]
        for row in table.read(["k", "t", "smooth"]).to_dicts()
    }
    for row in report["smooth"].rows:
        assert held[row.key["k"], row.time] == row.stored != row.recomputed
    text = str(report)
    assert "3 of 5 features leak" in text
    assert "smooth" in text
    assert json.loads(json.dumps(report.to_json()))["leaks"][0]["rows"]
    assert "<caption>rows: 3 of 5" in report._repr_html_()


def test_a_report_holds_what_json_can_hold() -> None:
    rows = (LeakedRow({"k": math.nan}, "2024-01-01", math.inf, 1.5),)
    found = LeakReport("t", ("x",), 1, 1, (Leak("x", "Function", 1, rows),)).to_json()
    json.dumps(found, allow_nan=False)
    (row,) = found["leaks"][0]["rows"]
    assert (row["key"], row["stored"], row["recomputed"]) == ({"k": "nan"}, "inf", 1.5)


def test_what_is_learnt_of_the_whole_table_is_found(table: fs.Table) -> None:
    table.add(*fitted_of_each(), fit_on="all")
    report = table.check_leakage(sample=10)
    assert "std_x" in {one.column for one in report.leaks}


def test_each_thing_that_learns_of_the_whole_table_is_found(table: fs.Table) -> None:
    learn = [
        fs.Standardize("x", prefix="a_"), fs.MinMax("x", prefix="b_"), fs.PCA(["x", "n"], 1),
        fs.RobustScale("x", prefix="c_"), fs.QuantileTransform("x", prefix="d_"),
        fs.QuantileBin("x", 50, prefix="e_"), fs.Winsorize("x", (0.2, 0.8), prefix="f_"),
        fs.Winsorize("x", deviations=1.0, prefix="g_"), fs.Impute("x", prefix="h_"),
        fs.Impute("x", "median", prefix="i_"), fs.Categorify("word", prefix="j_"),
        fs.FrequencyEncode("word", prefix="k_"), fs.TargetEncode("word", "x", prefix="l_"),
        fs.GroupStats("x", by=["word"], prefix="m_"), fs.TfIdf("word", 2),
        fs.OneHot("word", size=2, prefix="o_"),
    ]  # fmt: skip
    made = {one.name for step in learn for one in step.outputs(table.schema)}
    table.add(*learn, fs.Clip("x", upper=1, prefix="row_"), fit_on="all")
    assert {one.column for one in table.check_leakage(sample=40).leaks} == made


def test_what_is_learnt_of_a_range_is_compared_after_it(table: fs.Table) -> None:
    table.add(*fitted_of_each(), fit_on=("1970-01-01", "1970-01-04"))
    table.add(fs.Expression(again=nw.col("std_x") + 1))
    report = table.check_leakage(sample=40)
    assert report.ok
    assert "before the end of fit_on" in report.unchecked["std_x"]
    assert "before the end of fit_on" in report.unchecked["again"]


@pytest.mark.parametrize(
    "span", [("1970-01-01", "1980-01-01"), ("1970-01-04", "1980-01-01")], ids=["all", "the-end"]
)
def test_a_range_without_later_rows_is_the_whole_table(table: fs.Table, span: Any) -> None:
    table.add(fs.Standardize("x", prefix="std_"), fit_on=span)
    report = table.check_leakage(sample=20)
    assert report["std_x"].differing
    assert report.unchecked == {}


NEWS = observations(200, 3, column="y").sort("t", "k")
LATE = NEWS.with_columns(available=pl.col("t") + pl.duration(hours=3))


@pytest.mark.parametrize(
    ("options", "leaks"),
    [({}, True), ({"lag": "1h"}, True), ({"lag": "3h"}, False), ({"lag": "5h"}, False)],
    ids=["no-lag", "short-lag", "lag", "long-lag"],
)
def test_a_join_that_takes_rows_before_they_were_available_is_found(
    store: fs.FeatureStore, table: fs.Table, options: dict[str, Any], leaks: bool
) -> None:
    store.ingest("news", LATE, key="k", time="t", partition_bytes=2500)
    table.add(fs.AsOfJoin("news", "y", **options))
    report = table.check_leakage(sample=25)
    assert report.ok is not leaks
    if leaks:
        assert report["y"].kind == "AsOfJoin"


@pytest.mark.parametrize("lag", [None, "3h"], ids=["no-lag", "lag"])
def test_every_kind_of_join_is_looked_at(
    store: fs.FeatureStore, table: fs.Table, lag: str | None
) -> None:
    store.ingest("news", LATE, key="k", time="t", partition_bytes=2500)
    table.add(
        fs.AsOfAggregate("news", "y", "1d", lag=lag, prefix="a_"),
        fs.AsOfWindow("news", "y", 2, lag=lag, prefix="w_"),
        fs.Lookup("news", "y", lag="0s" if lag is None else lag, prefix="l_"),
    )
    made = {"a_y_mean_1d", "w_news_last_2", "l_y"}
    found = {one.column for one in table.check_leakage(sample=25).leaks}
    assert found == (made if lag is None else set())


def test_available_is_heeded_by_a_join_that_names_it(
    store: fs.FeatureStore, table: fs.Table
) -> None:
    store.ingest("news", LATE, key="k", time="t", partition_bytes=2500)
    table.add(fs.AsOfJoin("news", "y", available="available"))
    assert table.check_leakage(sample=25).ok


def test_what_somebody_knows_of_another_table_is_heeded(
    store: fs.FeatureStore, table: fs.Table
) -> None:
    store.ingest(
        "news", LATE.rename({"available": "seen"}), key="k", time="t", partition_bytes=2500
    )
    table.add(fs.AsOfJoin("news", "y"), fs.AsOfJoin("news", "y", lag="1ms", prefix="late_"))
    assert table.check_leakage(sample=25).ok
    # Rows of the same time arrive later than it.
    assert [one.column for one in table.check_leakage(known={"news": "1ms"}).leaks] == ["y"]
    both = table.check_leakage(sample=25, known={"news": "seen"})
    assert {one.column for one in both.leaks} == {"y", "late_y"}


def test_a_lookup_in_rows_that_come_later_is_found(store: fs.FeatureStore, table: fs.Table) -> None:
    store.ingest("news", NEWS, key="k", time="t")
    store.ingest("names", names_of_keys(), key="k")
    table.add(fs.Lookup("news", "y"), fs.Lookup("names", "weight"))
    report = table.check_leakage(sample=25)
    assert [one.column for one in report.leaks] == ["y"]
    assert "nothing says when rows of 'names'" in report.unchecked["weight"]


# --- what is not --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_false_alarm(store: fs.FeatureStore, table: fs.Table, seed: int) -> None:
    store.ingest("static", names_of_keys(), key="k")
    store.ingest("other", NEWS, key="k", time="t", partition_bytes=2500)
    table.add(*one_of_each())
    table.add(fs.Forward("x", 2), fs.Expression(half=nw.col("x_value_ahead_2r") / 2))
    table.add(fs.Standardize("n", prefix="std_"), fit_on=("1970-01-01", "1970-01-03"))
    before = sum(1 for _ in store._session.objects.list("states"))
    report = table.check_leakage(sample=15, seed=seed)
    assert report.ok, str(report)
    assert report.rows >= report.times > 5
    assert {"x_value_ahead_2r", "half"} <= report.unchecked.keys()
    assert "through Forward" in report.unchecked["half"]
    after = sum(1 for _ in store._session.objects.list("states"))
    assert after <= before + report.times, "only carries of other tables stay"


def test_the_rows_drawn_do_not_depend_on_how_the_table_is_cut(store: fs.FeatureStore) -> None:
    reports = []
    for name, size in (("small", 1500), ("large", 10**6)):
        table = store.ingest(name, ROWS, key="k", time="t", partition_bytes=size)
        table.add(fs.Standardize("x", prefix="std_"), fit_on="all")
        reports.append(table.check_leakage(sample=7, seed=3))
    small, large = reports
    assert (small.times, small.rows) == (large.times, large.rows)
    for one, other in zip(small["std_x"].rows, large["std_x"].rows, strict=True):
        assert (one.key, one.time) == (other.key, other.time)
        assert np.isclose(one.recomputed, other.recomputed)


# --- refusals -----------------------------------------------------------------------------------


def test_what_cannot_be_checked_is_refused(store: fs.FeatureStore, table: fs.Table) -> None:
    table.add(fs.Lag("x"), fs.Forward("x", 1))
    store.ingest("news", NEWS, key="k", time="t")
    with pytest.raises(InvalidInputError, match=r"'x'.*was ingested"):
        table.check_leakage("x")
    with pytest.raises(DefinitionError, match="is a label"):
        table.check_leakage(["x_lag_1", "x_value_ahead_1r"])
    with pytest.raises(InvalidInputError, match="draws no rows"):
        table.check_leakage(sample=0)
    with pytest.raises(InvalidInputError, match="no feature of table 'rows' reads"):
        table.check_leakage(known={"news": "1h"})
    table.add(fs.AsOfJoin("news", "y"))
    with pytest.raises(InvalidInputError, match="does not say when"):
        table.check_leakage(known={"news": "k"})
    with pytest.raises(InvalidInputError):
        table.check_leakage(known={"news": "sometime"})
    table.append(observations(20, 9, start=101).sort("t", "k"))
    with pytest.raises(NotReadyError, match="build"):
        table.check_leakage()
    names = store.ingest("names", names_of_keys(), key="k")
    with pytest.raises(DefinitionError, match="no time column"):
        names.check_leakage()


def test_the_command_exits_with_3_on_a_leak(tmp_path: Any) -> None:
    place = str(tmp_path / "s")
    table = fs.FeatureStore.create(place, workers=1).ingest("rows", ROWS, key="k", time="t")
    table.add(fs.Lag("x"))
    table.add(fs.Standardize("x", prefix="std_"), fit_on="all")
    found = CliRunner().invoke(main, ["leakage", place, "rows"])
    assert found.exit_code == EXIT_FAULTS
    assert "std_x" in found.output
    found = CliRunner().invoke(main, ["leakage", place, "rows", "x_lag_1", "--json"])
    assert found.exit_code == 0
    assert json.loads(found.output)["leaks"] == []
