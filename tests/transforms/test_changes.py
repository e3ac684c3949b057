"""Diff and PctChange against brute force, pandas and Polars, however rows are cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import InvalidInputError, SchemaError
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Transformer

ENGINE = PolarsEngine()
Rows = Sequence[Row]


class TestChanges(TransformerContract):
    examples = 40

    def transformers(self) -> st.SearchStrategy[Transformer]:
        columns, by = st.sampled_from(["x", "n", "b"]), st.sampled_from([None, ["g"], ["x"], []])
        periods = st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True)
        kinds = st.sampled_from([fs.Diff, fs.PctChange])
        return st.builds(lambda kind, *args, by: kind(*args, by=by), kinds, columns, periods, by=by)

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        (column,) = transformer.columns
        by = ["k"] if transformer.by is None else list(transformer.by)
        made = difference if type(transformer) is fs.Diff else relative
        word = "diff" if type(transformer) is fs.Diff else "pct_change"
        out = {}
        for count in transformer.periods:
            olds = oracles.lag(rows, column, count, by)
            pairs = zip((row[column] for row in rows), olds, strict=True)
            out[f"{column}_{word}_{count}"] = [
                None if new is None or old is None else made(new, old) for new, old in pairs
            ]
        return out


def difference(new: Any, old: Any) -> Any:
    return new - old


def relative(new: float, old: float) -> float:
    if old != 0:
        return new / old - 1
    return math.nan if math.isnan(new) or new == 0 else math.copysign(math.inf, new)


def test_equal_pandas_and_polars() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, 600).astype(float)
    frame = pl.DataFrame({"k": rng.integers(0, 5, 600), "t": np.arange(600), "x": values})
    table = frame.to_arrow()
    schema = oracles.schema_of(table, ["k"], "t")
    groups = frame.to_pandas().groupby("k")["x"]
    for one, theirs, polars in (
        (fs.Diff("x", 2), groups.diff(2), pl.col("x").diff(2)),
        (fs.PctChange("x", 2), groups.pct_change(2, fill_method=None), pl.col("x").pct_change(2)),
    ):
        ours = oracles.run_partitioned(one, oracles.cut(table, "t", [100, 350]), schema, ENGINE)
        found = ours.column(0).to_numpy()
        np.testing.assert_allclose(found, theirs.to_numpy())
        np.testing.assert_allclose(found, frame.select(polars.over("k")).to_series().to_numpy())


@pytest.mark.parametrize(
    ("type_", "out"),
    [
        (pa.int8(), pa.int64()), (pa.uint64(), pa.int64()), (pa.bool_(), pa.int64()),
        (pa.float32(), pa.float32()), (pa.decimal128(8, 2), pa.float64()),
    ],
)  # fmt: skip
def test_types(type_: pa.DataType, out: pa.DataType) -> None:
    table = pa.table({"t": [0, 1, 2], "v": pa.array([1, 0, None], pa.int8()).cast(type_)})
    schema = oracles.schema_of(table, [], "t")
    found = oracles.run_partitioned(fs.Diff("v", by=[]), [table], schema, ENGINE)
    assert found.schema.field(0).type == out
    assert found.column(0).to_pylist() == [None, -1, None]
    found = oracles.run_partitioned(fs.PctChange("v", by=[]), [table], schema, ENGINE)
    assert found.schema.field(0).type == pa.float64()
    assert found.column(0).to_pylist() == [None, -1.0, None]


@pytest.mark.parametrize("type_", [pa.int64(), pa.uint64()], ids=str)
def test_differences_beyond_64_bits_are_refused(type_: pa.DataType) -> None:
    low, high = (0, 2**64 - 1) if type_ == pa.uint64() else (-(2**63), 2**63 - 1)
    for values in ((low, high), (high, low)):
        table = pa.table({"t": [0, 1], "n": pa.array(values, type_)})
        schema = oracles.schema_of(table, [], "t")
        with pytest.raises(InvalidInputError, match="does not fit 64 bits"):
            oracles.run_partitioned(fs.Diff("n", by=[]), [table], schema, ENGINE)


def test_states_are_those_of_lag_and_texts_are_refused() -> None:
    assert fs.Diff("x", 3).state_fingerprint() == fs.Lag("x", 3).state_fingerprint()
    schema = oracles.schema_of(pa.table({"t": [1], "s": ["a"]}), [], "t")
    with pytest.raises(SchemaError, match="PctChange cannot work on column 's'"):
        fs.PctChange("s", by=[]).inputs(schema)
