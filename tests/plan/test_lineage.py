"""What a column is computed from: equal fingerprints mean the same computation, across tables."""

from __future__ import annotations

import json
from pathlib import Path

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import MissingColumnError
from featurestore.plan.definition import FeatureDefinition


@pytest.fixture
def table(tmp_path: Path) -> fs.Table:
    store = fs.FeatureStore.create(tmp_path / "s")
    sky = store.ingest(
        "sky", pl.DataFrame({"k": [1, 1], "t": [1, 2], "z": [5.0, 6.0]}), key="k", time="t"
    )
    sky.add(fs.Expression(warm=nw.col("z") * 2))
    rows = pl.DataFrame({"k": [1, 1], "t": [3, 4], "x": [1.0, 2.0]})
    table = store.ingest("rows", rows, key="k", time="t")
    table.add(fs.AsOfJoin("sky", columns="warm", by="k"), fs.Expression(y=nw.col("x") + 1))
    table.add(fs.Expression(both=nw.col("warm") + nw.col("y")))
    return table


def test_it_changes_with_a_definition_of_another_table(table: fs.Table) -> None:
    before = table.lineage("both", "warm", "y", "x")
    sky = table._session  # the same store
    other = fs.Table(sky, "sky")
    other.add(fs.Expression(warm=nw.col("z") * 3), replace=True)
    after = table.lineage("both", "warm", "y", "x")
    assert after["warm"] != before["warm"]
    assert after["both"] != before["both"]
    assert (after["y"], after["x"]) == (before["y"], before["x"])
    other.add(fs.Expression(warm=nw.col("z") * 2), replace=True)
    assert table.lineage("both", "warm", "y", "x") == before


def test_rows_do_not_count_and_columns_must_exist(table: fs.Table) -> None:
    before = table.lineage("both")
    table.append(pl.DataFrame({"k": [1], "t": [9], "x": [3.0]}))
    assert table.lineage("both") == before
    with pytest.raises(MissingColumnError):
        table.lineage("nothing")


def test_a_dataset_stays_at_its_snapshot(table: fs.Table) -> None:
    data = table.dataset(["x", "both"])
    lineage = data.lineage
    assert lineage == {name: table.lineage(name)[name] for name in lineage}
    table.append(pl.DataFrame({"k": [1], "t": [9], "x": [3.0]}))
    table.build()
    table.add(fs.Expression(y=nw.col("x") - 1), replace=True)
    table.build()
    assert data.all.rows == 2
    assert all(one.all.rows == 2 for one in data.folds)
    assert data.lineage == lineage
    assert table.dataset(["x", "both"]).lineage != lineage


def test_defining_the_same_function_again_commits_nothing(table: fs.Table) -> None:
    def half(df):  # type: ignore[no-untyped-def]
        return df["x"] / 2

    table.feature(half, inputs=["x"], output="half")
    version = table.version
    table.feature(half, inputs=["x"], output="half")
    assert table.version == version


def test_definitions_are_those_of_all_it_reads_inputs_first(table: fs.Table) -> None:
    found = table.definitions("both", "x")
    assert [one["columns"] for one in found["rows"]] == [["warm"], ["y"], ["both"]]
    assert [one["columns"] for one in found["sky"]] == [["warm"]]
    assert found == json.loads(json.dumps(found))
    read = FeatureDefinition.from_json(found["rows"][2])
    assert read.transformer == fs.Expression(both=nw.col("warm") + nw.col("y"))
    assert table.definitions("y") == {"rows": [found["rows"][1]]}
    assert table.definitions("x") == {}
    with pytest.raises(MissingColumnError):
        table.definitions("nothing")
