"""AsOfJoin against brute force, over any partitioning of both tables."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.strategies import cuts, tables
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.base import Partition, SourceWindow, transformer_from_spec
from featurestore.transforms.extent import Extent
from featurestore.units import Duration

ENGINE = PolarsEngine()
UNITS = {"us": 1, "ms": 1000}


def schemas(left: pa.Table, right: pa.Table) -> TableSchema:
    other = oracles.schema_of(right, ["k"], "t")
    return oracles.schema_of(left, ["k"], "t", {"other": other})


@st.composite
def joins(draw: st.DrawFn) -> AsOfJoin:
    lag = draw(st.sampled_from([None, 0, 1000, 5000]))
    age = draw(st.sampled_from([None, None, 0, 1000, 7000, 20_000]))
    if age is not None and lag is not None:
        age = max(age, lag)
    return AsOfJoin(
        "other",
        draw(st.sampled_from([["x"], ["s", "n"], ["x", "t", "k"]])),
        by=draw(st.sampled_from([None, "k", {"k": "k", "g": "g"}, {"s": "k"}, []])),
        lag=None if lag is None else Duration(lag * 1000),
        max_age=None if age is None else Duration(age * 1000),
        exact=draw(st.booleans()),
        prefix="o_",
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(
    st.data(), st.sampled_from(list(UNITS)), st.sampled_from(list(UNITS)), joins(), cuts(), cuts()
)
def test_equals_the_oracle_however_both_tables_are_cut(
    data: st.DataObject, own: str, other: str, join: AsOfJoin, points: list[int], others: list[int]
) -> None:
    left = data.draw(tables(time_type=pa.timestamp(own), max_rows=20))
    right = data.draw(tables(time_type=pa.timestamp(other), max_rows=20, null_keys=False))
    schema = schemas(left, right)
    finer = min(UNITS[own], UNITS[other])
    whole = oracles.run_partitioned(join, [left], schema, ENGINE, [right])
    assert len(whole) == len(left)
    pieces = [*oracles.cut(left, "t", points), left.slice(0, 0)]
    source = [right.slice(0, 0), *oracles.cut(right, "t", others)]
    assert oracles.same_values(whole, oracles.run_partitioned(join, pieces, schema, ENGINE, source))
    by = {"k": "k"} if join.by is None else dict(join.by)  # type: ignore[arg-type]
    steps = [
        None if one is None else one.nanoseconds // 1000 // finer
        for one in (join.lag, join.max_age)
    ]  # type: ignore[union-attr]
    wholes = [
        one is None or one.nanoseconds % (1000 * finer) == 0 for one in (join.lag, join.max_age)
    ]  # type: ignore[union-attr]
    assert all(wholes)
    for column in join.columns:  # type: ignore[union-attr]
        wanted = oracles.asof(
            oracles.rows_of(left), oracles.rows_of(right), column, by, ("t", "t"),
            factors=(UNITS[own] // finer, UNITS[other] // finer),
            lag=steps[0] or 0, max_age=steps[1], exact=join.exact,
        )  # fmt: skip
        actual = [row[f"o_{column}"] for row in oracles.rows_of(whole)]
        assert oracles.close_values(actual, wanted, 0.0), (column, actual, wanted)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(tables(null_keys=False), st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_combine_is_associative_and_equals_one_summary(
    table: pa.Table, points: tuple[int, int]
) -> None:
    schema = oracles.schema_of(table, ["k"], "t")
    join = AsOfJoin("other", ["x", "s"])
    pieces = oracles.cut(table, "t", points)
    pieces = [*pieces, *[table.slice(0, 0)] * (3 - len(pieces))]
    a, b, c, whole = (
        join.summarize(Partition(ENGINE.from_arrow(piece), schema), ENGINE)
        for piece in (*pieces, table)
    )
    left, right = join.combine(join.combine(a, b), c), join.combine(a, join.combine(b, c))
    for state in (left, right):
        assert state.keys() == whole.keys()
        assert all(oracles.same_values(state[name], whole[name]) for name in state)


def simple(left: dict[str, Any], right: dict[str, Any], join: AsOfJoin) -> list[Any]:
    one, other = pa.table(left), pa.table(right)
    key = ["k"] if "k" in right else []
    schema = oracles.schema_of(one, [], "t", {"other": oracles.schema_of(other, key, "t")})
    out = oracles.run_partitioned(join, [one], schema, ENGINE, [other])
    return list(out.column(0).to_pylist())


def test_the_last_of_tied_rows_wins_and_every_left_row_is_kept() -> None:
    right = {"t": [1, 1, 3], "k": ["a", "a", "a"], "v": [1, 2, 3]}
    left = {"t": [0, 1, 1, 2, 9], "k": ["a", "a", "a", None, "a"]}
    assert simple(left, right, AsOfJoin("other", "v")) == [None, 2, 2, None, 3]
    assert simple(left, right, AsOfJoin("other", "v", exact=False)) == [None, None, None, None, 3]


def test_lag_hides_what_was_not_yet_published() -> None:
    right = {"t": [10, 20], "k": ["a", "a"], "v": [1, 2]}
    left = {"t": [14, 15, 24, 25], "k": ["a"] * 4}
    assert simple(left, right, AsOfJoin("other", "v", lag=5)) == [None, 1, 1, 2]
    assert simple(left, right, AsOfJoin("other", "v", lag=5, exact=False)) == [None, None, 1, 1]
    assert simple(left, right, AsOfJoin("other", "v", max_age=4)) == [1, None, 2, None]


def test_a_null_that_is_newest_is_the_answer() -> None:
    right = {"t": [1, 2], "v": pa.array([5, None])}
    assert simple({"t": [3]}, right, AsOfJoin("other", "v")) == [None]


def test_dates_and_zones_are_compared_as_instants() -> None:
    day = pa.array([dt.date(2024, 1, 2)])
    stamp = pa.array([86_400 * 1000 * 19723 + 86_400 * 1000], pa.timestamp("ms"))
    right = {"t": day, "v": [1]}
    assert simple({"t": stamp}, right, AsOfJoin("other", "v")) == [1]
    assert simple({"t": stamp}, right, AsOfJoin("other", "v", lag="1ms")) == [None]
    berlin = {"t": pa.array([3_600_000], pa.timestamp("ms", tz="Europe/Berlin"))}
    utc = {"t": pa.array([3_600_000_000], pa.timestamp("us", tz="UTC")), "v": [7]}
    assert simple(berlin, utc, AsOfJoin("other", "v")) == [7]
    assert simple(berlin, utc, AsOfJoin("other", "v", exact=False)) == [None]


def test_integer_keys_of_other_widths_match() -> None:
    left = {"t": [5], "k": pa.array([7], pa.int16())}
    right = {"t": [1], "k": pa.array([7], pa.int64()), "v": ["x"]}
    assert simple(left, right, AsOfJoin("other", "v")) == ["x"]


def test_extreme_times_do_not_overflow() -> None:
    low, high = -(2**63) + 1, 2**63 - 1
    right = {"t": pa.array([low, high], pa.timestamp("ns")), "v": [1, 2]}
    left = {"t": pa.array([low, 0, high], pa.timestamp("ns"))}
    assert simple(left, right, AsOfJoin("other", "v")) == [1, 1, 2]
    assert simple(left, right, AsOfJoin("other", "v", lag="7d")) == [None, 1, 1]
    assert simple(left, right, AsOfJoin("other", "v", max_age="7d")) == [1, None, 2]
    coarse = {"t": pa.array([high], pa.timestamp("ms"))}
    with pytest.raises(InvalidInputError, match="do not fit 64 bits"):
        simple(coarse, right, AsOfJoin("other", "v"))


def test_the_window_of_source_rows() -> None:
    left = pa.table({"t": pa.array([0], pa.timestamp("us")), "k": ["a"]})
    right = pa.table({"t": pa.array([0], pa.timestamp("ms")), "k": ["a"], "v": [1]})
    schema = schemas(left, right)
    window = AsOfJoin("other", "v", max_age="3ms", lag="1ms").source_window(schema, 5500, 9500)
    assert window == SourceWindow(2, 8, carry=False)
    window = AsOfJoin("other", "v", lag="1ms").source_window(schema, 5500, 9500)
    assert window == SourceWindow(4, 8, carry=True)
    empty = AsOfJoin("other", "v").source_window(schema, None, None)
    assert (empty.lower, empty.upper, empty.carry) == (1, 0, False)


def test_rows_outside_the_window_change_nothing() -> None:
    rng = np.random.default_rng(1)
    right = pa.table(
        {
            "t": np.sort(rng.integers(0, 1000, 300)),
            "k": rng.integers(0, 4, 300),
            "v": np.arange(300),
        }
    )
    left = pa.table({"t": np.arange(400, 500), "k": rng.integers(0, 5, 100)})
    schema = schemas(left, right)
    part = Partition(ENGINE.from_arrow(left), schema)
    for join in (AsOfJoin("other", "v"), AsOfJoin("other", "v", max_age=30, lag=2)):
        everything = Partition(ENGINE.from_arrow(right), schema.source("other"))
        wide = join.gather({}, [join.rows(everything, ENGINE)])
        carry = join.summarize(
            Partition(
                ENGINE.from_arrow(right.filter(right["t"].to_numpy() < 350)), schema.source("other")
            ),
            ENGINE,
        )
        doubled = join.gather(carry, [join.rows(everything, ENGINE)])
        a, b = (ENGINE.to_arrow(join.apply(part, state, ENGINE).frame) for state in (wide, doubled))  # type: ignore[arg-type]
        narrow = oracles.run_partitioned(
            join, [left], schema, ENGINE, oracles.cut(right, "t", range(0, 300, 7))
        )
        assert oracles.same_values(a, b)
        assert oracles.same_values(a, narrow)


def test_what_cannot_be_joined_is_refused() -> None:
    left = pa.table({"t": pa.array([0], pa.timestamp("us")), "k": ["a"]})
    right = pa.table({"t": pa.array([0], pa.timestamp("us")), "k": ["a"], "v": [1]})

    def refused(join: AsOfJoin, left: pa.Table, right: pa.Table, match: str) -> None:
        with pytest.raises((DefinitionError, SchemaError, InvalidInputError), match=match):
            join.outputs(schemas(left, right))

    join = AsOfJoin("other", "v")
    zoned = right.set_column(0, "t", pa.array([0], pa.timestamp("us", tz="UTC")))
    refused(join, left, zoned, "only one has a time zone")
    refused(join, left, right.set_column(0, "t", pa.array([0])), "only one is an integer")
    refused(join, left, right.set_column(1, "k", pa.array([1])), "cannot compare columns 'k'")
    refused(AsOfJoin("nope", "v"), left, right, "no table 'nope'")
    refused(AsOfJoin("other", "w"), left, right, "no column 'w'")
    refused(AsOfJoin("other", "v", by="z"), left, right, "no column 'z'")
    refused(AsOfJoin("other", "v", lag=3), left, right, "does not measure")
    refused(AsOfJoin("other", "v", lag="1ns"), left, right, "not a whole number of us")
    with pytest.raises(DefinitionError, match="none of the key columns"):
        join.outputs(
            oracles.schema_of(
                left.select(["t"]), [], "t", {"other": oracles.schema_of(right, ["k"], "t")}
            )
        )
    with pytest.raises(DefinitionError, match="needs a time column"):
        join.outputs(
            oracles.schema_of(left, [], None, {"other": oracles.schema_of(right, ["k"], "t")})
        )
    with pytest.raises(DefinitionError, match="too old before they are known"):
        AsOfJoin("other", "v", lag="2h", max_age="1h")
    with pytest.raises(DefinitionError, match="give a table"):
        AsOfJoin(3, "v")  # type: ignore[arg-type]


def test_definitions_survive_json_and_take_a_table_object() -> None:
    class Handle:
        name = "weather"

    join = AsOfJoin(
        Handle(), ["temp"], by={"origin": "station"}, lag="1h", max_age=dt.timedelta(hours=3)
    )
    assert join.source_table == "weather"
    assert transformer_from_spec(join.spec()) == join
    assert transformer_from_spec(join.spec()).fingerprint() == join.fingerprint()
    assert (
        AsOfJoin("o", "v", lag="1h").state_fingerprint() == AsOfJoin("o", "v").state_fingerprint()
    )


def test_peak_memory_is_within_the_model() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    rows, others = 200_000, 50_000
    left = pa.table({"t": np.sort(rng.integers(0, rows, rows)), "k": rng.integers(0, 50, rows)})
    right = pa.table(
        {
            "t": np.sort(rng.integers(0, rows, others)),
            "k": rng.integers(0, 50, others),
            "v": rng.random(others),
        }
    )
    schema = schemas(left, right)
    join = AsOfJoin("other", "v")
    state = join.gather(
        {}, [join.rows(Partition(ENGINE.from_arrow(right), schema.source("other")), ENGINE)]
    )
    part = Partition(ENGINE.from_arrow(left), schema)
    tracemalloc.start()
    join.apply(part, state, ENGINE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= join.memory(schema, Extent(rows, {"": left.nbytes}))
