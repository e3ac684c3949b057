"""Expectations of a table: held against what is written, and never in the way of what is as expected."""

from __future__ import annotations

import datetime as dt
import json
import uuid
import warnings
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.cli import main
from featurestore.errors import (
    ConflictError,
    ExpectationError,
    ExpectationWarning,
    InvalidInputError,
    MemoryLimitError,
    NotFoundError,
)
from featurestore.expectations import checking
from featurestore.testing.interleaving import interleaved
from featurestore.testing.tables import observations

ROWS = observations(240).sort("t", "k")
LATER = observations(60, 4, start=400).sort("t", "k")


@pytest.fixture
def store(tmp_path: Path) -> fs.FeatureStore:
    (tmp_path / "scratch").mkdir()
    return fs.FeatureStore.create(tmp_path / "store", scratch=tmp_path / "scratch", workers=1)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)


def files(store: fs.FeatureStore) -> list[str]:
    root = Path(store.url.removeprefix("file://"))
    return sorted(str(one) for one in root.rglob("*") if one.is_file())


NEVER = fs.ExpectRange("x", low=1e6)


def test_they_are_kept_by_version_and_stated_once(store: fs.FeatureStore, table: fs.Table) -> None:
    given = (fs.ExpectRange("n", low=-50, high=50), fs.ExpectNulls("x", at_most=0.5))
    table.expect(*given)
    version = store.version
    assert table.expectations == given
    table.expect(given[0])  # the same again
    assert store.version == version
    table.expect(fs.ExpectUnique("k"), replace=True)
    reopened = fs.FeatureStore.open(store.url)
    assert reopened.table("rows").expectations == (fs.ExpectUnique("k"),)
    assert store.checkout(version).table("rows").expectations == given
    with pytest.raises(InvalidInputError, match="checkout"):
        store.checkout(version).table("rows").expect(fs.ExpectUnique("n"))
    table.expect(replace=True)
    assert table.expectations == ()
    assert table.validate().ok


@pytest.mark.parametrize("how", ["append", "replace"])
def test_rows_that_are_not_as_expected_are_refused(
    store: fs.FeatureStore, table: fs.Table, how: str
) -> None:
    table.expect(NEVER)
    before, version = files(store), store.version
    early = ROWS.filter(pl.col("t").dt.epoch("ms") < 9 * 3_600_000)
    with pytest.raises(ExpectationError, match=r"low=1000000.*nothing was published") as error:
        table.append(LATER) if how == "append" else table.replace(early, (None, "1970-01-01T09"))
    assert "row 0 of p" in str(error.value)
    assert "on_failure='warn'" in error.value.remedy
    assert store.version == version
    assert files(store) == before
    assert store.verify().ok
    table.expect(fs.ExpectRange("n", low=-50, high=50), replace=True)
    assert table.append(LATER) == 60


def test_a_warning_is_given_and_the_history_says_it(
    store: fs.FeatureStore, table: fs.Table
) -> None:
    table.expect(fs.ExpectRange("x", low=1e6, on_failure="warn"), fs.ExpectNulls("n", at_most=1))
    with pytest.warns(ExpectationWarning, match="lie outside"):
        table.append(LATER)
    assert "append to rows (1 expectations not met)" in str(store.history(1))
    with pytest.warns(ExpectationWarning):
        table.replace(LATER, ("1970-01-17T16", None))


def test_features_are_judged_when_they_are_built(store: fs.FeatureStore, table: fs.Table) -> None:
    table.add(fs.Expression(double=nw.col("x") * 2))
    table.expect(fs.ExpectRange("double", low=-100, high=100))
    table.append(LATER.with_columns(x=pl.lit(1e6)))  # of x nothing is expected
    version = store.version
    with pytest.raises(ExpectationError, match="60 of 60 values lie outside"):
        table.build()
    assert store.version == version
    assert not table.status().is_fresh
    table.expect(replace=True)
    again = table.build()
    assert again.computed == 0  # what was finished is found in the journal
    assert again.resumed > 0


def test_a_feature_that_is_defined_again_is_judged(table: fs.Table) -> None:
    table.add(fs.Expression(double=nw.col("x") * 2))
    table.expect(fs.ExpectRange("double", low=-100, high=100))
    with pytest.raises(ExpectationError):
        table.add(fs.Expression(double=nw.col("x") * 1e9), replace=True)
    assert table.read("double")["double"].equals(table.read("x")["x"] * 2)
    table.add(fs.Expression(double=nw.col("x") * 3), replace=True)
    table.drop("double")
    found = table.validate()
    assert not found.ok
    assert "no column 'double' any more" in str(found)
    table.append(LATER)  # nothing is written of it


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=1, max_size=30), st.integers(1, 200)
)
def test_uniqueness_is_that_of_a_set(values: list[int | None], size: int) -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
    rows = pl.DataFrame(
        {"id": range(len(values)), "v": values}, schema={"id": pl.Int64, "v": pl.Int64}
    )
    table = store.ingest("rows", rows, key="id", partition_bytes=size)
    table.expect(fs.ExpectUnique("v"), fs.ExpectUnique(["v", "id"]))
    known = [one for one in values if one is not None]
    one, both = table.validate().findings
    assert one.failing == len(known) - len(set(known))
    assert one.ok == (one.failing == 0)
    assert both.ok


def test_what_is_appended_is_compared_with_the_whole_table(table: fs.Table) -> None:
    numbered = ROWS.with_columns(id=pl.int_range(pl.len()))
    made = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}").ingest(
        "rows", numbered, key="k", time="t", partition_bytes=2500
    )
    made.expect(fs.ExpectUnique("id"))
    with pytest.raises(ExpectationError, match="id=7"):
        made.append(
            LATER.with_columns(id=pl.int_range(pl.len()) + 7 + 240 * (pl.int_range(pl.len()) > 0))
        )
    assert made.append(LATER.with_columns(id=pl.int_range(pl.len()) + 240)) == 60
    # Rows that give way are not compared.
    again = numbered.head(6)
    stop = again["t"].max() + dt.timedelta(milliseconds=1)
    made.replace(numbered.filter(pl.col("t") < stop), (None, stop))


def test_freshness_is_that_of_the_newest_row(table: fs.Table) -> None:
    table.expect(fs.ExpectFresh("1d"))
    with pytest.raises(ExpectationError, match="s old, at most 86,400 s"):
        table.append(LATER)
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    assert table.append(LATER.head(1).with_columns(t=pl.lit(now).cast(pl.Datetime("ms")))) == 1
    assert table.validate().ok
    table.delete(nw.col("k").is_null() | ~nw.col("k").is_null())
    assert "no rows" in str(table.validate())


# --- drift ---------------------------------------------------------------------------------------


def test_drift_is_measured_against_a_tag(store: fs.FeatureStore, table: fs.Table) -> None:
    store.tag("silver")
    table.expect(fs.ExpectDrift("x", tag="silver", psi=0.25, ks=0.3, least=20))
    (stated,) = table.expectations
    assert isinstance(stated, fs.ExpectDrift)
    assert len(stated.edges) == 9
    assert sum(stated.shares) == pytest.approx(1)
    missing = ROWS["x"].null_count() / ROWS.height
    assert stated.shares[-1] == pytest.approx(missing)
    assert max(stated.shares[:-1]) - min(stated.shares[:-1]) < 0.02
    assert table.validate().findings[0].seen == pytest.approx(0)
    with pytest.raises(ExpectationError, match=r"PSI .* and KS .* against tag 'silver'"):
        table.append(LATER.with_columns(x=pl.col("x") + 2))
    table.append(LATER.head(10).with_columns(x=pl.lit(99.0)))  # too few to be judged
    version = store.version
    store.untag("silver")
    table.expect(fs.ExpectDrift("x", tag="silver", psi=0.25, ks=0.3, least=20))
    assert store.version == version  # stated already, the tag may go
    with pytest.raises(NotFoundError, match="there is no tag 'silver'"):
        table.expect(fs.ExpectDrift("n", tag="silver"))


def test_a_tag_without_values_is_refused(store: fs.FeatureStore, table: fs.Table) -> None:
    table.feature(inputs=["x"], output="late")(late)
    store.tag("silver")
    with pytest.raises(InvalidInputError, match="has no values in"):
        table.expect(fs.ExpectDrift("late", tag="silver"))
    empty = store.ingest("empty", ROWS.with_columns(x=pl.lit(None, pl.Float64)), key="k", time="t")
    store.tag("gold")
    with pytest.raises(InvalidInputError, match="no value but missing ones"):
        empty.expect(fs.ExpectDrift("x", tag="gold"))


def late(df: Any) -> Any:
    return df["x"] * 1.0


# --- with others, with little memory -----------------------------------------------------------------


def test_an_append_that_was_held_against_other_expectations_conflicts(
    store: fs.FeatureStore,
) -> None:
    store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    opened, _ = interleaved(store.url, lambda: store.table("rows").expect(NEVER))
    with pytest.raises(ConflictError, match="expectations of table 'rows' were changed"):
        opened.table("rows").append(LATER)
    assert store.table("rows").expectations == (NEVER,)


def test_slices_fit_the_memory_limit(
    store: fs.FeatureStore, table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.expect(fs.ExpectNulls("x", at_most=1))
    monkeypatch.setattr(checking, "_COPIES", 10**9)
    with pytest.raises(MemoryLimitError, match="holding values against expectations"):
        table.validate()


def test_what_is_no_expectation_is_refused(table: fs.Table) -> None:
    for one in ("x > 0", fs.ExpectNulls("nowhere"), fs.ExpectRange("word", low=0)):
        with pytest.raises(InvalidInputError):
            table.expect(one)  # type: ignore[arg-type]
    table.add(fs.Expression(double=nw.col("x") * 2))
    with pytest.raises(InvalidInputError, match="is a feature"):
        table.expect(fs.ExpectUnique("double"))


# --- the command -------------------------------------------------------------------------------------


def test_the_command_says_what_is_not_met(store: fs.FeatureStore, table: fs.Table) -> None:
    table.expect(fs.ExpectNulls("x", at_most=1))
    good = CliRunner().invoke(main, ["validate", store.url, "rows"])
    assert good.exit_code == 0, good.output
    assert "all 1 expectations are met" in good.output
    table.expect(NEVER)
    bad = CliRunner().invoke(main, ["validate", store.url, "rows", "--json"])
    assert bad.exit_code == 3, bad.output
    said = json.loads(bad.output)
    assert [one["ok"] for one in said["findings"]] == [True, False]
    assert said["findings"][1]["examples"][0]["row"] == 0
    assert "<table>" in table.validate()._repr_html_()


def test_nothing_is_expected_by_default(table: fs.Table) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table.append(LATER)
    assert str(table.validate()) == "rows: nothing is expected of it"
