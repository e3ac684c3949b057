"""Adding features: only what is missing is computed, only new columns written, one commit."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import (
    DefinitionError,
    DependencyCycleError,
    InvalidInputError,
    MissingColumnError,
    NameTakenError,
    NotFoundError,
    NotPartitionIndependentError,
    NotReadyError,
)
from featurestore.execution import tasks
from featurestore.execution.dask import Executor
from featurestore.storage.journal import Journal
from featurestore.testing.journals import journal_keys
from featurestore.testing.tables import (
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
    plus_one,
    two_wide,
)

ROWS = observations(300).sort("t", "k")
DOUBLE = fs.Expression(double=nw.col("x") * 2)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> fs.FeatureStore:
    local = request.param == "local"
    url = str(tmp_path / "store") if local else f"memory://{uuid.uuid4().hex}"
    return fs.FeatureStore.create(url, workers=2)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)


def paths(table: fs.Table) -> set[str]:
    return {one.path for one in table._session.objects.list("")}


# --- what an add does -----------------------------------------------------------------------------


def test_an_add_writes_the_new_columns_and_one_version(table: fs.Table) -> None:
    before, version = paths(table), table.version
    report = table.add(DOUBLE)
    assert report.version == table.version == version + 1
    assert report.columns == ("double",)
    assert report.computed == table.partitions
    new = paths(table) - before
    assert not before - paths(table)
    data = [one for one in new if one.startswith("data/")]
    assert len(data) == table.partitions
    assert all("/f_double-" in one for one in data)
    rest = {one.split("/")[0] for one in new} - {"data"}
    assert rest <= {"snapshots", "filesets"}
    assert len(new) == len(data) + 2
    sizes = {one.path: one.bytes for one in table._session.objects.list("data")}
    assert report.bytes_written == sum(sizes[one] for one in data)


def test_the_same_add_again_does_nothing(table: fs.Table) -> None:
    table.add(DOUBLE)
    before, version = paths(table), table.version
    report = table.add(fs.Expression(double=nw.col("x") * 2))
    assert (report.computed, report.bytes_written, report.columns) == (0, 0, ())
    assert table.build().computed == 0
    assert (paths(table), table.version) == (before, version)
    assert "nothing to do" in str(report)


def test_an_add_computes_what_it_needs_and_no_more(table: fs.Table) -> None:
    table.add(DOUBLE, fs.Expression(other=nw.col("n") + 1))
    table.append(observations(20, 5, start=150))
    new = table.status()["double"].missing
    report = table.add(fs.Expression(four=nw.col("double") * 2))
    assert set(report.columns) == {"double", "four"}
    assert report.computed == new + table.partitions
    assert table.status()["other"].missing == new


def test_features_of_features_in_any_order(table: fs.Table) -> None:
    table.add(
        fs.Expression(eight=nw.col("four") * 2),
        fs.Lag("eight", 1),
        fs.Expression(four=nw.col("double") * 2),
        DOUBLE,
    )
    plan = {one: step.columns for one, step in enumerate(table.plan().steps)}
    assert plan == {}
    found = table.read(["eight", "eight_lag_1"])
    eight = pl.col("x") * 8
    assert_frame_equal(
        found, ROWS.select(eight=eight, eight_lag_1=eight.shift(1).over("k")), check_exact=True
    )


def test_a_plain_function_is_defined_first_and_built_later(table: fs.Table) -> None:
    @table.feature(inputs=["x"], output="late")
    def late(frame: Any) -> Any:
        return frame["x"] > 0

    assert late(ROWS)[0] == (ROWS["x"][0] > 0)
    assert table.status()["late"].missing == table.partitions
    with pytest.raises(NotReadyError, match=r"late of table 'rows'.*missing.*\n.*build\(\)"):
        table.read("late")
    with pytest.raises(NotReadyError):
        table.to_dask(["late"])
    with pytest.raises(NotReadyError):
        table.dataset(features=["late"])
    [step] = table.plan().steps
    assert (step.columns, step.partitions, step.rows) == (("late",), table.partitions, len(ROWS))
    assert step.why == ("missing",)
    table.build()
    assert_frame_equal(table.read("late"), ROWS.select(late=pl.col("x") > 0))
    assert table.plan().is_empty


def test_all_kinds_are_described(store: fs.FeatureStore, table: fs.Table) -> None:
    store.ingest("other", observations(100, 1, column="y"), key="k", time="t")
    store.ingest("static", names_of_keys(), key="k")
    table.add(*one_of_each())
    table.add(*fitted_of_each(), fit_on="all")
    summary = table.describe()
    kinds = {kind for _, _, kind in summary.columns}
    assert {"ingested", "Rolling", "AsOfJoin", "Categorify", "Function"} <= kinds
    assert (summary.rows, summary.partitions) == (len(ROWS), table.partitions)
    assert len(table) == table.rows == len(ROWS)
    sizes = {one.path: one.bytes for one in table._session.objects.list("data/rows")}
    assert summary.stored_bytes == sum(sizes.values())
    for one in (summary, table, table.status(), table.plan(), store):
        assert "rows" in str(one) or "double" in str(one)
        assert "<table>" in one._repr_html_()
    assert store.tables() == ("other", "rows", "static")
    assert table.key == ("k",)
    assert table.time == "t"


def test_dask_reads_one_partition_per_partition(table: fs.Table) -> None:
    table.add(DOUBLE)
    frame = table.to_dask(["k", "double"])
    assert frame.npartitions == table.partitions
    found = pl.from_pandas(frame.compute(scheduler="sync"))
    assert_frame_equal(found, ROWS.select("k", double=pl.col("x") * 2))


def test_reading_rows_and_kinds(table: fs.Table) -> None:
    whole = table.read(["n", "k"])
    assert whole.columns == ["n", "k"]
    for start, stop in [(0, 1), (10, 250), (-5, None), (250, 10), (299, 999)]:
        assert_frame_equal(table.read(["n", "k"], rows=slice(start, stop)), whole[start:stop])
    assert table.read("k", as_="arrow").column_names == ["k"]
    assert table.read("n", as_="pandas")["n"].isna().sum() == ROWS["n"].null_count()
    assert isinstance(table.read("n", as_="narwhals"), nw.DataFrame)
    with pytest.raises(InvalidInputError, match="cannot read as 'excel'"):
        table.read("n", as_="excel")
    with pytest.raises(InvalidInputError, match="plain slice"):
        table.read("n", rows=slice(0, 10, 2))
    with pytest.raises(MissingColumnError, match=r"did you mean \['word'\]"):
        table.read("wrd")


# --- what is refused ------------------------------------------------------------------------------


def shifted(frame: Any) -> Any:
    return frame["x"].shift(1)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (
            [fs.Expression(a=nw.col("b") + 1), fs.Expression(b=nw.col("c") + 1),
             fs.Expression(c=nw.col("a") + 1)],
            DependencyCycleError,
            r"(a needs b needs c needs a|b needs c needs a needs b|c needs a needs b needs c)",
        ),
        ([fs.Expression(a=nw.col("a") + 1)], DependencyCycleError, "a needs a"),
        ([fs.Clip("wrod", lower=0)], DependencyCycleError, r"no column 'wrod'.*'word'"),
        ([fs.Expression(a=nw.col("wrod"))], MissingColumnError, r"'wrod'\n.*'word'"),
        ([fs.TextHash("wrod")], MissingColumnError, r"'wrod'\n.*'word'"),
        ([fs.Function(shifted, inputs="wrod", output="o")], MissingColumnError, "'wrod'"),
        (
            [fs.Expression(a=nw.col("b")), fs.Expression(b=nw.col("wrod"))],
            MissingColumnError, r"'wrod'\n.*'word'",
        ),
        ([fs.Expression(x=nw.col("n") + 1)], NameTakenError, "'x' exists already"),
        ([DOUBLE, fs.Expression(double=nw.col("n"))], NameTakenError, "two definitions"),
        (
            [fs.Function(shifted, inputs="x", output="before", dtypes="float64")],
            NotPartitionIndependentError, "before",
        ),
        ([], InvalidInputError, "no transformer"),
        ([plus_one], InvalidInputError, "is no transformer"),
    ],
)  # fmt: skip
def test_a_definition_that_is_refused_changes_nothing(
    table: fs.Table, features: list[Any], error: type[Exception], message: str
) -> None:
    before, version = paths(table), table.version
    with pytest.raises(error, match=message):
        table.add(*features)
    assert (paths(table), table.version) == (before, version)


def test_an_ingested_column_cannot_be_replaced(table: fs.Table) -> None:
    with pytest.raises(NameTakenError, match="'x' exists already"):
        table.add(fs.Expression(x=nw.col("n") + 1), replace=True)


def test_an_expression_across_rows_is_refused(table: fs.Table) -> None:
    with pytest.raises(NotPartitionIndependentError, match=r"Lag|Rolling"):
        table.add(fs.Expression(a=nw.col("x").shift(1)))


def test_unknown_tables_and_names(store: fs.FeatureStore, table: fs.Table) -> None:
    with pytest.raises(NotFoundError, match=r"no table 'row'\n.*'rows'"):
        store.table("row")
    with pytest.raises(NameTakenError, match="exists already"):
        store.ingest("rows", ROWS)
    with pytest.raises(InvalidInputError, match="cannot name a table"):
        store.ingest("../evil", ROWS)
    with pytest.raises(InvalidInputError, match="'nothere'"):
        table.add(fs.AsOfJoin("nothere", columns="x"))


# --- dropping -------------------------------------------------------------------------------------


def test_dropping(table: fs.Table) -> None:
    table.add(DOUBLE, fs.Rolling("double", "1d", stats=["mean", "sum"]))
    with pytest.raises(InvalidInputError, match=r"'double_mean_1d' of table 'rows' reads 'double'"):
        table.drop("double")
    with pytest.raises(InvalidInputError, match="belong to the same feature"):
        table.drop("double_mean_1d")
    with pytest.raises(InvalidInputError, match="was ingested"):
        table.drop("x")
    with pytest.raises(MissingColumnError, match="did you mean"):
        table.drop("doubel")
    version = table.version
    table.drop("double_mean_1d", "double_sum_1d", "double")
    assert table.version == version + 1
    assert table.columns == tuple(ROWS.columns)
    assert table.add(DOUBLE).computed == table.partitions


# --- interrupted ----------------------------------------------------------------------------------


FAIL_FROM = "FEATURESTORE_TEST_FAIL_FROM"
NUMBERED = ROWS.with_columns(row=pl.int_range(len(ROWS), dtype=pl.Int64))


def fragile(frame: Any) -> Any:
    if int(frame["row"][0]) >= int(os.environ.get("FEATURESTORE_TEST_FAIL_FROM", "1000000")):
        raise OSError("the machine has gone away")
    return frame["row"] * 2


TWICE = fs.Function(fragile, inputs="row", output="twice", dtypes="int64")


def with_one_worker(store: fs.FeatureStore) -> fs.FeatureStore:
    place = store._session.place
    place = replace(place, executor=Executor(workers=1))
    return fs.FeatureStore(replace(store._session, place=place))


def test_a_build_that_fails_halfway_shows_nothing_and_resumes(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ingest("rows", NUMBERED, key="k", time="t", partition_bytes=2500)
    table = with_one_worker(store).table("rows")
    first_of_third = sum(one.rows for one in table._files().base[:3])
    before, version = table.read(), table.version
    monkeypatch.setenv(FAIL_FROM, str(first_of_third))
    with pytest.raises(DefinitionError, match=r"'twice' failed.*gone away"):
        table.add(TWICE)
    assert table.version == version
    assert "twice" not in table.columns
    assert_frame_equal(table.read(), before)
    assert len(journal_keys(table._session.objects, "rows")) == 3
    left = {one for one in paths(table) if "f_twice" in one}
    assert len(left) == 3
    monkeypatch.delenv(FAIL_FROM)
    report = table.add(TWICE)
    assert (report.computed, report.resumed) == (table.partitions - 3, 3)
    assert left < {one for one in paths(table) if "f_twice" in one}
    assert len([one for one in paths(table) if "f_twice" in one]) == table.partitions
    assert journal_keys(table._session.objects, "rows") == []
    assert_frame_equal(table.read("twice"), NUMBERED.select(twice=pl.col("row") * 2))
    assert store.verify().ok


def test_finished_work_of_a_failed_build_serves_another_add(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ingest("rows", NUMBERED, key="k", time="t", partition_bytes=2500)
    table = with_one_worker(store).table("rows")
    first_of_third = sum(one.rows for one in table._files().base[:3])
    monkeypatch.setenv(FAIL_FROM, str(first_of_third))
    with pytest.raises(DefinitionError, match="gone away"):
        table.add(DOUBLE, TWICE)
    monkeypatch.delenv(FAIL_FROM)
    report = table.add(DOUBLE)
    # The task that failed had finished this one before.
    assert (report.resumed, report.computed) == (4, table.partitions - 4)
    assert_frame_equal(table.read("double"), ROWS.select(double=pl.col("x") * 2))
    report = table.add(TWICE)
    assert (report.resumed, report.computed) == (3, table.partitions - 3)
    assert journal_keys(table._session.objects, "rows") == []


def test_a_long_task_does_not_wait_for_its_end(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it finished so far survives a kill."""
    monkeypatch.setattr(tasks, "JOURNAL_SECONDS", 0.0)
    recorded: list[int] = []
    record_all = Journal.record_all

    def recording(self: Journal, entries: Any) -> None:
        recorded.append(len(list(entries)))
        record_all(self, entries)

    monkeypatch.setattr(Journal, "record_all", recording)
    table = store.ingest("rows", NUMBERED, key="k", time="t", partition_bytes=2500)
    table.add(DOUBLE, TWICE)
    assert [one for one in recorded if one] == [1] * (2 * table.partitions)
    assert journal_keys(table._session.objects, "rows") == []


def test_a_sample_shows_a_faulty_function_before_anything_is_written(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = store.ingest("rows", NUMBERED, key="k", time="t", partition_bytes=2500)
    monkeypatch.setenv(FAIL_FROM, "0")
    before = paths(table)
    with pytest.raises(DefinitionError, match="gone away"):
        table.add(DOUBLE, TWICE)
    assert paths(table) == before


# --- unusual tables -------------------------------------------------------------------------------


def test_one_row(store: fs.FeatureStore) -> None:
    store.ingest("other", observations(100, 1, column="y"), key="k", time="t")
    store.ingest("static", names_of_keys(), key="k")
    table = store.ingest("one", ROWS[1], key="k", time="t")
    table.add(*one_of_each())
    assert table.read(["x_lag_1", "x_count_12h", "double"]).rows() == [
        (None, int(ROWS["x"][1] is not None), ROWS["x"][1] * 2)
    ]


def test_names_of_columns_may_be_anything(store: fs.FeatureStore) -> None:
    odd = ["größe ☃", "a/b", "with space", "../up", "'quote\"", "Ünïcödé" * 10, "x" * 200, "1", "."]
    rows = ROWS.select("k", "t", **{name: pl.col("x") + n for n, name in enumerate(odd)})
    table = store.ingest("odd", rows, key="k", time="t", partition_bytes=4000)
    table.add(*(fs.Expression(**{f"{name} doubled": nw.col(name) * 2}) for name in odd))
    table.add(fs.Rolling(odd, "1d", stats=["mean"]), fs.Lag(odd, 1), fs.CrossSection(odd))
    table.add(fs.Standardize(odd, prefix="z/"), fit_on="all")
    expected = rows.select(**{f"{name} doubled": pl.col(name) * 2 for name in odd})
    assert_frame_equal(table.read([f"{name} doubled" for name in odd]), expected)
    assert table.status().is_fresh
    assert len(table.compute(rows.tail(3), [f"z/{odd[0]}"])) == 3
    assert store.verify().ok
    table.drop(*(f"{name} doubled" for name in odd))


def test_names_that_differ_in_case_only(store: fs.FeatureStore) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t")
    table.add(fs.Expression(Aa=nw.col("x") * 1, aA=nw.col("x") * 2), fs.Expression(AA=nw.col("n")))
    table.add(fs.Expression(aa=nw.col("n") + 1))
    found = table.read(["Aa", "aA", "AA", "aa"])
    assert_frame_equal(
        found,
        ROWS.select(Aa=pl.col("x"), aA=pl.col("x") * 2, AA=pl.col("n"), aa=pl.col("n") + 1),
    )


def test_three_hundred_columns(store: fs.FeatureStore) -> None:
    rows = ROWS.select("k", "t", *((pl.col("x") * n).alias(f"c{n}") for n in range(300)))
    table = store.ingest("wide", rows, key="k", time="t", partition_bytes=400_000)
    names = [f"c{n}" for n in range(300)]
    report = table.add(
        fs.Rolling(names, "6h", stats=["mean"]), fs.Expression(first=nw.col("c1") + 1)
    )
    assert len(report.columns) == 301
    assert_frame_equal(table.read(names), rows.select(names))


def test_tensors(store: fs.FeatureStore) -> None:
    vectors = np.arange(len(ROWS) * 6, dtype=np.float32).reshape(-1, 2, 3)
    column = pa.FixedSizeListArray.from_arrays(
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3), 2
    )
    rows = ROWS.to_arrow().append_column("v", column)
    table = store.ingest("rows", rows, key="k", time="t", partition_bytes=6000)
    assert table.schema["v"].shape == (2, 3)
    table.add(fs.Function(two_wide, inputs="x", output="pair", shape=(2,)))
    x = ROWS["x"].fill_null(0.0).to_numpy().astype(np.float32)
    found = table.read(["pair", "v"], as_="arrow")
    assert found["pair"].type == pa.list_(pa.float32(), 2)
    pair = np.asarray(found["pair"].combine_chunks().flatten()).reshape(-1, 2)
    np.testing.assert_array_equal(pair, np.stack([x, -x], axis=1))
    assert found["v"].to_pylist() == vectors.tolist()
    assert (
        table.read(["v"], rows=slice(5, 7), as_="arrow")["v"].to_pylist() == vectors[5:7].tolist()
    )
    more = rows.slice(0, 4).set_column(1, "t", pa.array([10**9] * 4, pa.timestamp("ms")))
    keys = pa.array(["p", "q", "r", "s"])
    table.append(more.set_column(0, "k", keys))
    table.build()
    assert len(table.read(["pair", "v"])) == len(ROWS) + 4
    assert table.compute(ROWS.tail(2), ["pair"])["pair"].to_list() == pair[-2:].tolist()


def test_a_table_may_be_its_own_source(store: fs.FeatureStore) -> None:
    hours = ROWS.with_columns(
        mate=pl.col("k").replace_strict({"a": "b", "b": "a", "c": "d", "d": "c"})
    )
    table = store.ingest("rows", hours, key="k", time="t", partition_bytes=2500)
    feature = fs.AsOfJoin("rows", columns=["x"], by={"mate": "k"}, exact=False, prefix="mate_")
    table.add(DOUBLE)
    table.add(feature)
    later = observations(40, 5, start=150).sort("t", "k").with_columns(mate=pl.lit("a"))
    served = table.compute(later, ["mate_x"])["mate_x"]
    old = table.partitions
    table.append(later)
    assert table.status()["mate_x"].fresh == old
    table.build()
    both = pl.concat([hours, later])
    expected = both.join_asof(
        both.select("t", pl.col("k").alias("mate"), mate_x="x"),
        on="t", by="mate", allow_exact_matches=False, check_sortedness=False,
    )["mate_x"]  # fmt: skip
    assert table.read("mate_x")["mate_x"].to_list() == expected.to_list()
    assert served.to_list() == expected[len(hours) :].to_list()


def test_tables_may_read_each_other_but_not_in_a_circle(store: fs.FeatureStore) -> None:
    left = store.ingest("left", ROWS.select("k", "t", "x"), key="k", time="t")
    right = store.ingest("right", ROWS.select("k", "t", "n"), key="k", time="t")
    left.add(fs.AsOfJoin("right", columns="n"))
    right.add(fs.AsOfJoin("left", columns=["x", "n"], rename={"n": "back"}))
    left.add(fs.AsOfJoin("right", columns="back"))
    assert left.status().is_fresh
    assert_frame_equal(left.read("back"), ROWS.select(back="n"))
    with pytest.raises(DependencyCycleError, match=r"left\.n needs right\.x needs left\.n"):
        left.add(fs.AsOfJoin("right", columns="back", rename={"back": "n"}), replace=True)
