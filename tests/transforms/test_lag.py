"""Lag against brute force, over any partitioning."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.strategies import cuts, tables
from featurestore.transforms.base import Partition, transformer_from_spec
from featurestore.transforms.lag import Lag

ENGINE = PolarsEngine()
BY = st.sampled_from([None, ["k"], ["g"], ["x", "s"], []])
PERIODS = st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=120)
@given(tables(), st.sampled_from(["x", "n", "b", "s", "t"]), PERIODS, BY, cuts())
def test_equals_the_oracle_however_cut(
    table: pa.Table, column: str, periods: list[int], by: Any, points: list[int]
) -> None:
    schema = oracles.schema_of(table, ["k"], "t")
    lag = Lag(column, periods, by=by)
    whole = oracles.run_partitioned(lag, [table], schema, ENGINE)
    pieces = [*oracles.cut(table, "t", points), table.slice(0, 0)]
    assert oracles.same_values(whole, oracles.run_partitioned(lag, pieces, schema, ENGINE))
    rows = oracles.rows_of(table)
    actual = oracles.rows_of(whole)
    for count in periods:
        wanted = oracles.lag(rows, column, count, ["k"] if by is None else by)
        name = f"{column}_lag_{count}"
        assert oracles.close_values([row[name] for row in actual], wanted, 0.0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(tables(), PERIODS, BY, st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_combine_is_associative_and_equals_one_summary(
    table: pa.Table, periods: list[int], by: Any, points: tuple[int, int]
) -> None:
    schema = oracles.schema_of(table, ["k"], "t")
    lag = Lag(["s", "x"], periods, by=by)
    pieces = oracles.cut(table, "t", points)
    pieces = [*pieces, *[table.slice(0, 0)] * (3 - len(pieces))]
    a, b, c, whole = (
        lag.summarize(Partition(ENGINE.from_arrow(piece), schema), ENGINE)
        for piece in (*pieces, table)
    )
    left, right = lag.combine(lag.combine(a, b), c), lag.combine(a, lag.combine(b, c))
    for state in (left, right):
        assert state.keys() == whole.keys()
        assert all(oracles.same_values(state[name], whole[name]) for name in state)


def test_lists_decimals_and_zoned_times_are_carried() -> None:
    table = pa.table(
        {
            "t": pa.array([1, 2, 3]),
            "items": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
            "price": pa.array([1, None, 3], pa.int32()).cast(pa.decimal128(12, 2)),
            "seen": pa.array([5, None, 7], pa.timestamp("us", tz="UTC")),
        }
    )
    schema = oracles.schema_of(table, [], "t")
    lag = Lag(["items", "price", "seen"], by=[])
    for points in ([], [1, 2]):
        pieces = oracles.cut(table, "t", points)
        out = oracles.run_partitioned(lag, pieces, schema, ENGINE)
        assert out["items_lag_1"].to_pylist() == [None, [1, 2], None]
        assert [None if v is None else int(v) for v in out["price_lag_1"].to_pylist()] == [
            None, 1, None,
        ]  # fmt: skip
        assert out["seen_lag_1"].cast(pa.int64()).to_pylist() == [None, 5, None]


def test_definitions_survive_json_and_states_serve_equal_reach() -> None:
    lag = Lag(["x"], [1, 3], by="k", prefix="p_")
    assert transformer_from_spec(lag.spec()) == lag
    assert Lag("x", 3).state_fingerprint() == Lag("x", [1, 3]).state_fingerprint()
    assert Lag("x", 3).state_fingerprint() != Lag("x", 2).state_fingerprint()


@pytest.mark.parametrize("periods", [0, -1, [], [1, 1], True, [1.5]])
def test_wrong_periods_are_refused(periods: Any) -> None:
    with pytest.raises(DefinitionError, match="periods"):
        Lag("x", periods)


def test_tables_without_time_or_key_are_refused() -> None:
    schema = oracles.schema_of(pa.table({"t": [1], "x": [1.0]}), [], "t")
    with pytest.raises(DefinitionError, match="no key"):
        Lag("x").inputs(schema)
    with pytest.raises(DefinitionError, match="no time column"):
        Lag("x", by=[]).inputs(TableSchema(schema.fields))
    assert Lag("x", by=[]).inputs(schema) == ("t", "x")
