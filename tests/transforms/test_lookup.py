"""Lookup against brute force, over any partitioning of both tables."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError
from featurestore.testing import oracles
from featurestore.testing.strategies import cuts, tables
from featurestore.transforms.base import SourceWindow, transformer_from_spec
from featurestore.transforms.lookup import Lookup

ENGINE = PolarsEngine()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(
    tables(max_rows=20), tables(max_rows=20, null_keys=False), cuts(), cuts(),
    st.sampled_from([None, "k", {"k": "k", "g": "g"}, {"s": "k"}, {"x": "x"}]), st.booleans(),
)  # fmt: skip
def test_equals_the_oracle_however_cut(
    left: pa.Table, right: pa.Table, points: list[int], others: list[int], by: Any, timed: bool
) -> None:
    other = oracles.schema_of(right, ["k"], "t" if timed else None)
    schema = oracles.schema_of(left, ["k"], "t", {"other": other})
    lookup = Lookup("other", ["x", "s"], by=by, prefix="o_")
    whole = oracles.run_partitioned(lookup, [left], schema, ENGINE, [right])
    pieces = [*oracles.cut(left, "t", points), left.slice(0, 0)]
    source = oracles.cut(right, "t", others)
    assert oracles.same_values(
        whole, oracles.run_partitioned(lookup, pieces, schema, ENGINE, source)
    )
    pairs = {"k": "k"} if by is None else {by: by} if isinstance(by, str) else by
    nan_free = "x" not in pairs
    for column in ("x", "s"):
        wanted = oracles.lookup(oracles.rows_of(left), oracles.rows_of(right), column, pairs)
        actual = whole[f"o_{column}"].to_pylist()
        for row, one, two in zip(oracles.rows_of(left), actual, wanted, strict=True):
            if nan_free or row["x"] == row["x"]:
                assert oracles.close_values([one], [two], 0.0)


def test_a_nan_key_matches_a_nan_key() -> None:
    left = pa.table({"x": [float("nan"), 1.0]})
    right = pa.table({"x": [float("nan")], "v": [3]})
    schema = oracles.schema_of(left, [], None, {"other": oracles.schema_of(right, ["x"])})
    out = oracles.run_partitioned(Lookup("other", "v"), [left], schema, ENGINE, [right])
    assert out["v"].to_pylist() == [3, None]


def test_an_empty_table_gives_nulls_of_the_right_type() -> None:
    left = pa.table({"k": ["a", "b"]})
    right = pa.table({"k": pa.array([], pa.string()), "v": pa.array([], pa.list_(pa.int64()))})
    schema = oracles.schema_of(left, [], None, {"other": oracles.schema_of(right, ["k"])})
    for source in ([right], []):
        out = oracles.run_partitioned(Lookup("other", "v"), [left], schema, ENGINE, source)
        assert out["v"].to_pylist() == [None, None]
        assert out["v"].type == pa.list_(pa.int64())


def test_definitions_and_refusals() -> None:
    lookup = Lookup("other", ["v"], by={"own": "k"}, rename={"v": "w"})
    assert transformer_from_spec(lookup.spec()) == lookup
    right = pa.table({"k": ["a"], "v": [1]})
    other = oracles.schema_of(right, ["k"])
    schema = oracles.schema_of(pa.table({"own": ["a"]}), [], None, {"other": other})
    assert [field.name for field in lookup.outputs(schema)] == ["w"]
    assert lookup.inputs(schema) == ("own",)
    assert lookup.source_inputs(schema) == ("k", "v")
    assert lookup.source_window(schema, 1, 2) == SourceWindow(None, None, carry=False)
    with pytest.raises(DefinitionError, match="this table lacks \\['k'\\]"):
        Lookup("other", "v").inputs(schema)
    keyless = oracles.schema_of(
        pa.table({"own": ["a"]}), [], None, {"other": oracles.schema_of(right)}
    )
    with pytest.raises(DefinitionError, match="matches by the key"):
        Lookup("other", "v").inputs(keyless)
    with pytest.raises(DefinitionError, match="nothing to match by"):
        Lookup("other", "v", by=[])
    with pytest.raises(DefinitionError, match="uses a column twice"):
        Lookup("other", "v", by=[("a", "k"), ("b", "k")])
