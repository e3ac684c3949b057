"""Queries of a ranking and base margins as columns of a dataset."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest

import featurestore as fs
from featurestore.dataset.batch import DatasetSchema, Role
from featurestore.errors import DefinitionError, SchemaError

ROWS = 60


def stacked(frame: Any) -> Any:
    return np.stack([frame["x"].to_numpy(), frame["score"].to_numpy()], axis=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = fs.FeatureStore.create(tmp_path_factory.mktemp("store") / "golden")
    numbers = np.arange(ROWS)
    frame = pl.DataFrame(
        {
            "id": numbers % 6,
            "day": [date(2024, 1, 1) + timedelta(days=int(one)) for one in numbers // 6],
            "query": (numbers // 4).astype(np.uint16),
            "x": numbers / 7,
            "score": np.sin(numbers),
            "gap": [None if one == 5 else float(one) for one in numbers],
            "endless": [np.inf if one == 50 else 1.0 for one in numbers],
            "text": [f"q{one // 4}" for one in numbers],
            "y": numbers % 3,
        }
    )
    found = store.ingest("rows", frame, key="id", time="day", partition_bytes="512B")
    found.add(
        fs.Function(
            stacked,
            inputs=["x", "score"],
            output="both",
            shape=(2,),
            frame="polars",
        ),
        fs.Forward("x", ahead=1, stats="value"),
    )
    assert found.partitions > 2
    return found


def rows_of(part: Any, name: str) -> Any:
    return np.concatenate([getattr(part.arrays(i), name) for i in range(len(part.partition_rows))])


def test_group_and_base_margin_stand_beside_the_inputs(table: Any) -> None:
    data = table.dataset(
        ["x", "gap"], label="y", group="query", base_margin="score",
        where=nw.col("gap").is_null() | (nw.col("x") > 0),
    )  # fmt: skip
    selected = table.dataset(
        fs.numeric(),
        label="x_value_ahead_1r",
        where=~nw.col("x_value_ahead_1r").is_null(),
        group="query",
        base_margin="score",
    )
    assert selected.features == ("x", "gap", "endless", "y")
    assert [one.role for one in data.schema.columns[-3:]] == [
        Role.LABEL, Role.GROUP, Role.BASE_MARGIN,
    ]  # fmt: skip
    assert DatasetSchema.from_json(data.schema.to_json()) == data.schema
    kept = np.arange(1, ROWS)
    found = rows_of(data.all, "group")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, kept // 4)
    margins = rows_of(data.all, "base_margin")
    assert margins.dtype == np.float32
    np.testing.assert_array_equal(margins, np.sin(kept).astype(np.float32))
    assert (data.describe()["group"], data.describe()["base_margin"]) == ("query", "score")
    (fold,) = data.folds
    assert fold.targets == data.targets
    plain = table.dataset(list(data.features), label="y", where=nw.col("x") > 0)
    assert plain.all.digest != data.all.digest


def test_a_tensor_is_a_margin_for_each_class(table: Any) -> None:
    data = table.dataset(["x"], label="y", base_margin="both")
    found = rows_of(data.all, "base_margin")
    numbers = np.arange(ROWS)
    expected = np.stack([numbers / 7, np.sin(numbers)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "both" not in data.schema.array_specs()


def test_the_time_may_be_the_group_and_pipelines_still_see_it(table: Any) -> None:
    data = table.dataset(
        ["x"], label="y", group="day", pipeline=fs.Pipeline(fs.Impute("x"), fs.Standardize("x"))
    )
    found = rows_of(data.all, "group")
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.unique(found, return_inverse=True)[1], np.arange(ROWS) // 6)
    assert list(data.schema.array_specs()) == ["numeric"]
    assert data.all.read()["day"].to_list() == table.read(["day"])["day"].to_list()
    by_key = table.dataset(["x"], label="y", group="id")
    np.testing.assert_array_equal(rows_of(by_key.all, "group"), np.arange(ROWS) % 6)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"group": "text"}, "group 'text' is of type string.*\n.*Categorify"),
        ({"group": "score"}, "group 'score' is of type double"),
        ({"group": "both"}, "group 'both' is of type"),
        ({"base_margin": "text"}, "base_margin 'text' is of type string"),
        ({"group": "x"}, "group 'x' is among the features"),
        ({"base_margin": "x"}, "base_margin 'x' is among the features"),
        ({"group": "query", "weight": "query"}, "name a column twice"),
        ({"base_margin": "x_value_ahead_1r"}, "'x_value_ahead_1r' looks into the future"),
        ({"base_margin": "gap"}, "base_margin 'gap' has 1 nulls in 60"),
    ],
)
def test_what_cannot_be_group_or_margin(told: dict[str, str], message: str, table: Any) -> None:
    with pytest.raises(DefinitionError, match=message):
        table.dataset(["x"], label="y", **told)


def test_a_column_that_is_not_there(table: Any) -> None:
    with pytest.raises(SchemaError, match="nowhere"):
        table.dataset(["x"], label="y", group="nowhere")


def test_an_infinite_margin_is_refused(table: Any) -> None:
    data = table.dataset(["x"], label="y", base_margin="endless")
    with pytest.raises(DefinitionError, match="base_margin 'endless' is inf in one of 1"):
        rows_of(data.all, "base_margin")


def test_a_pipeline_may_not_rewrite_the_group(table: Any) -> None:
    with pytest.raises(DefinitionError, match="'id', which is the group's name"):
        table.dataset(["x"], label="y", group="id", pipeline=fs.Pipeline(fs.Categorify("id")))


def test_strings_are_queries_once_they_are_codes(table: Any, tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "golden")
    own = store.ingest("rows", table.read(["id", "day", "x", "y", "text"]), key="id", time="day")
    own.add(fs.Categorify("text", prefix="code_"), fit_on="all")
    data = own.dataset(["x"], label="y", group="code_text")
    found = rows_of(data.all, "group")
    changes = np.flatnonzero(np.diff(found)) + 1
    np.testing.assert_array_equal(changes, np.arange(4, ROWS, 4))
