"""Rolling against brute force, over any partitioning."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engines.polars import PolarsEngine
from featurestore.engines.windows import CLOSED, STATISTICS
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing import oracles
from featurestore.testing.strategies import cuts, tables
from featurestore.transforms.base import Partition, transformer_from_spec
from featurestore.transforms.extent import Extent
from featurestore.transforms.window import Rolling
from featurestore.units import Duration

ENGINE = PolarsEngine()
EVERY = (*STATISTICS, "median", "q0.25", "q1")
BY = [None, ["k"], ["g"], ["k", "g"], ["x"], []]


@st.composite
def definitions(draw: st.DrawFn, column: st.SearchStrategy[str], *, rows: bool) -> Rolling:
    unit = 1 if rows else 1000
    width, lag = draw(st.integers(1, 12)), draw(st.sampled_from([None, 0, 1, 5]))
    return Rolling(
        draw(column),
        width if rows else Duration(width * unit),
        stats=draw(st.lists(st.sampled_from(EVERY), min_size=1, unique=True)),
        by=draw(st.sampled_from(BY)),
        closed=draw(st.sampled_from(CLOSED)),
        lag=None if lag is None else (lag if rows else Duration(lag * unit)),
        min_count=draw(st.sampled_from([1, 1, 2, 3])),
    )


def expected(rolling: Rolling, table: pa.Table, stat: str) -> list[Any]:
    chosen: Any = rolling.columns
    (column,) = [chosen] if isinstance(chosen, str) else chosen
    rows_window = isinstance(rolling.window, int)

    def steps(span: Any) -> int:
        return 0 if span is None else span if rows_window else span.in_unit("us")

    rows = oracles.rows_of(table)
    if column == "b":
        rows = [{**row, "b": None if row["b"] is None else row["b"]} for row in rows]
    return oracles.rolling(
        rows, column, stat, ["k"] if rolling.by is None else list(rolling.by),
        time=None if rows_window else "t", width=steps(rolling.window), lag=steps(rolling.lag),
        closed=rolling.closed, min_count=rolling.min_count,
    )  # fmt: skip


def check(rolling: Rolling, table: pa.Table, points: list[int]) -> None:
    schema = oracles.schema_of(table, ["k"], "t")
    whole = oracles.run_partitioned(rolling, [table], schema, ENGINE)
    pieces = [table.slice(0, 0), *oracles.cut(table, "t", points), table.slice(0, 0)]
    parts = oracles.run_partitioned(rolling, pieces, schema, ENGINE)
    assert oracles.same_values(whole, parts)
    for field, stat in zip(rolling.outputs(schema), rolling.stats, strict=True):
        actual = whole[field.name].to_pylist()
        assert oracles.close_values(actual, expected(rolling, table, stat)), (field.name, actual)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(tables(), definitions(st.sampled_from(["x", "n", "b"]), rows=False), cuts())
def test_time_windows_equal_the_oracle_however_cut(
    table: pa.Table, rolling: Rolling, points: list[int]
) -> None:
    check(rolling, table, points)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(tables(), definitions(st.sampled_from(["x", "n", "b"]), rows=True), cuts())
def test_row_windows_equal_the_oracle_however_cut(
    table: pa.Table, rolling: Rolling, points: list[int]
) -> None:
    check(rolling, table, points)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    tables(),
    st.one_of(definitions(st.just("x"), rows=True), definitions(st.just("x"), rows=False)),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_combine_is_associative_with_the_empty_state_as_identity(
    table: pa.Table, rolling: Rolling, points: tuple[int, int]
) -> None:
    schema = oracles.schema_of(table, ["k"], "t")
    pieces = oracles.cut(table, "t", points)
    pieces = [*pieces, *[table.slice(0, 0)] * (3 - len(pieces))]
    a, b, c = (
        rolling.summarize(Partition(ENGINE.from_arrow(piece), schema), ENGINE) for piece in pieces
    )
    left = rolling.combine(rolling.combine(a, b), c)
    right = rolling.combine(a, rolling.combine(b, c))
    assert left.keys() == right.keys()
    assert all(oracles.same_values(left[name], right[name]) for name in left)
    assert rolling.combine({}, a) == a
    assert rolling.combine(a, {}) == a
    whole = rolling.summarize(Partition(ENGINE.from_arrow(table), schema), ENGINE)
    assert left.keys() == whole.keys()
    assert all(oracles.same_values(left[name], whole[name]) for name in left)


def numbers_table(rows: int, keys: int, seed: int = 0) -> tuple[pa.Table, TableSchema]:
    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "k": pa.array(rng.integers(0, keys, rows)),
            "t": pa.array(np.sort(rng.integers(0, 10 * rows, rows)), pa.timestamp("s")).cast(
                pa.timestamp("ms")
            ),
            "x": rng.standard_normal(rows) * 1e3,
        }
    )
    return table, oracles.schema_of(table, ["k"], "t")


@pytest.mark.parametrize("pieces", [2, 7, 50])
def test_long_windows_are_bitwise_independent_of_partitions(pieces: int) -> None:
    table, schema = numbers_table(20_000, 3)
    rolling = Rolling("x", "12h", stats=EVERY, closed="left", lag="10m")
    whole = oracles.run_partitioned(rolling, [table], schema, ENGINE)
    step = len(table) // pieces
    parts = oracles.cut(table, "t", range(step, len(table), step))
    assert len(parts) >= pieces
    assert oracles.same_values(whole, oracles.run_partitioned(rolling, parts, schema, ENGINE))


def test_a_value_does_not_depend_on_which_other_statistics_are_asked_for() -> None:
    table, schema = numbers_table(500, 2)
    together = oracles.run_partitioned(Rolling("x", "1h", stats=EVERY), [table], schema, ENGINE)
    for stat in EVERY:
        alone = oracles.run_partitioned(Rolling("x", "1h", stats=stat), [table], schema, ENGINE)
        assert oracles.same_values(alone, together.select([f"x_{stat}_1h"]))


def test_nan_and_infinity_stay_in_their_windows() -> None:
    table = pa.table(
        {
            "t": pa.array(range(6), pa.timestamp("ms")),
            "x": [1.0, math.nan, 2.0, math.inf, 3.0, 4.0],
        }
    )
    schema = oracles.schema_of(table, [], "t")
    rolling = Rolling("x", "2ms", stats=["mean", "std", "max"], by=[])
    out = oracles.run_partitioned(rolling, [table], schema, ENGINE).to_pydict()
    assert oracles.close_values(
        out["x_mean_2ms"], [1.0, math.nan, math.nan, math.inf, math.inf, 3.5]
    )
    assert oracles.close_values(
        out["x_std_2ms"], [None, math.nan, math.nan, math.nan, math.nan, math.sqrt(0.5)]
    )
    assert oracles.close_values(
        out["x_max_2ms"], [1.0, math.nan, math.nan, math.inf, math.inf, 4.0]
    )


@pytest.mark.parametrize("closed", ["right", "left"])
def test_quantiles_equal_those_of_pandas_and_polars(closed: Literal["right", "left"]) -> None:
    rng = np.random.default_rng(5)
    rows = 3000
    frame = pl.DataFrame(
        {
            "t": np.sort(rng.choice(20 * rows, rows, replace=False)),
            "x": [None if one > 45 else one / 4.0 for one in rng.integers(-50, 50, rows).tolist()],
        },
        schema={"t": pl.Datetime("ms"), "x": pl.Float64},
    )
    table = frame.to_arrow()
    schema = oracles.schema_of(table, [], "t")
    rolling = Rolling("x", "1s", stats=["median", "q0.9"], by=[], closed=closed)
    out = oracles.run_partitioned(rolling, [table], schema, ENGINE)
    windows = frame.to_pandas().set_index("t")["x"].rolling("1s", min_periods=1, closed=closed)
    for name, level in (("median", 0.5), ("q0.9", 0.9)):
        ours = out[f"x_{name}_1s"].to_numpy()
        np.testing.assert_allclose(ours, windows.quantile(level).to_numpy(), rtol=1e-12, atol=1e-12)
        theirs = frame.select(
            pl.col("x").rolling_quantile_by("t", "1s", quantile=level, interpolation="linear", closed=closed)
        )  # fmt: skip
        np.testing.assert_allclose(ours, theirs.to_series().to_numpy(), rtol=1e-12, atol=1e-12)


def test_sums_of_integers_are_exact_and_never_wrap() -> None:
    big = 2**62
    table = pa.table(
        {"t": pa.array(range(3), pa.timestamp("ms")), "n": pa.array([big - 1, 1, 5], pa.int64())}
    )
    schema = oracles.schema_of(table, [], "t")
    out = oracles.run_partitioned(Rolling("n", 2, stats="sum", by=[]), [table], schema, ENGINE)
    assert out["n_sum_2r"].to_pylist() == [big - 1, big, 6]
    table = table.set_column(1, "n", pa.array([big, big, big], pa.int64()))
    with pytest.raises(InvalidInputError, match="does not fit 64 bits"):
        oracles.run_partitioned(Rolling("n", 2, stats="sum", by=[]), [table], schema, ENGINE)


@pytest.mark.parametrize(
    ("type_", "stat", "out"),
    [
        (pa.int8(), "sum", pa.int64()), (pa.uint64(), "sum", pa.uint64()),
        (pa.bool_(), "sum", pa.int64()), (pa.bool_(), "max", pa.bool_()),
        (pa.float32(), "sum", pa.float64()), (pa.float32(), "min", pa.float32()),
        (pa.int16(), "last", pa.int16()), (pa.bool_(), "median", pa.float64()),
        (pa.decimal128(8, 2), "q0.9", pa.float64()), (pa.uint64(), "q0.1", pa.float64()), (pa.int64(), "mean", pa.float64()),
        (pa.decimal128(8, 2), "max", pa.float64()), (pa.uint8(), "count", pa.int64()),
        (pa.float16(), "max", pa.float16()),
    ],
)  # fmt: skip
def test_output_types(type_: pa.DataType, stat: str, out: pa.DataType) -> None:
    table = pa.table(
        {"t": pa.array([0, 1], pa.timestamp("ms")), "v": pa.array([1, None], pa.int8()).cast(type_)}
    )
    schema = oracles.schema_of(table, [], "t")
    result = oracles.run_partitioned(Rolling("v", 2, stats=stat, by=[]), [table], schema, ENGINE)
    assert result.schema.field(0).type == out
    assert result.column(0).to_pylist() == [1, 1]


def test_dates_and_zoned_times_have_windows() -> None:
    for type_, values in (
        (pa.date32(), [0, 1, 3]),
        (pa.timestamp("ns", tz="Europe/Berlin"), [day * 86_400 * 10**9 for day in (0, 1, 3)]),
    ):
        base = pa.int32() if pa.types.is_date32(type_) else pa.int64()
        table = pa.table({"t": pa.array(values, base).cast(type_), "x": [1.0, 2.0, 4.0]})
        schema = oracles.schema_of(table, [], "t")
        parts = oracles.cut(table, "t", [1, 2])
        out = oracles.run_partitioned(Rolling("x", "2d", stats="sum", by=[]), parts, schema, ENGINE)
        assert out["x_sum_2d"].to_pylist() == [1.0, 3.0, 4.0]


def test_extreme_times_do_not_overflow() -> None:
    low, high = -(2**63) + 1, 2**63 - 1
    table = pa.table(
        {"t": pa.array([low, low + 1, high], pa.timestamp("ns")), "x": [1.0, 2.0, 4.0]}
    )
    schema = oracles.schema_of(table, [], "t")
    rolling = Rolling("x", "7d", stats="sum", by=[], lag="1ns")
    for points in ([], [1], [2], [1, 2]):
        parts = oracles.cut(table, "t", points)
        out = oracles.run_partitioned(rolling, parts, schema, ENGINE)
        assert out["x_sum_7d"].to_pylist() == [None, 1.0, None]


def test_state_of_a_time_window_is_bounded() -> None:
    table, schema = numbers_table(5000, 3)
    rolling = Rolling("x", "10m", by=[])
    part = Partition(ENGINE.from_arrow(table), schema)
    tail = rolling.summarize(part, ENGINE)["tail"]
    assert len(tail) < 100
    # The moment 10 minutes ago itself is outside, unless the window is closed on the left.
    assert rolling.reach(schema) == 599_999
    assert Rolling("x", "10m", by=[], closed="both").reach(schema) == 600_000
    assert Rolling("x", 3).reach(schema) is None
    per_key = Rolling("x", 3, lag=2).summarize(part, ENGINE)["tail"]
    assert len(per_key) == 3 * 5


def test_names_and_renaming() -> None:
    _, schema = numbers_table(3, 1)
    names = [field.name for field in Rolling("x", "168h", stats=["mean", "std"]).outputs(schema)]
    assert names == ["x_mean_7d", "x_std_7d"]
    rolling = Rolling(["x"], 5, stats=["mean", "max"], prefix="late_", rename={"x_max_5r": "peak"})
    assert [field.name for field in rolling.outputs(schema)] == ["late_x_mean_5r", "peak"]
    with pytest.raises(DefinitionError, match="which it does not produce"):
        Rolling("x", 5, rename={"nope": "y"}).outputs(schema)


def test_definitions_survive_json() -> None:
    rolling = Rolling(
        ["x"], "7d", stats=["mean"], by="k", closed="left", lag="2h", rename={"x_mean_7d": "m"}
    )
    again = transformer_from_spec(rolling.spec())
    assert again == rolling
    assert again.fingerprint() == rolling.fingerprint()
    assert Rolling("x", "7d").fingerprint() != Rolling("x", "8d").fingerprint()
    assert (
        Rolling("x", "7d", stats="min").state_fingerprint()
        == Rolling("x", "7d").state_fingerprint()
    )
    assert Rolling("x", "7d").state_fingerprint() != Rolling("x", "8d").state_fingerprint()


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": "0s"}, {"window": 0}, {"window": "1 month"}, {"window": True},
        {"window": "7d", "lag": 3}, {"window": 7, "lag": "1d"}, {"window": "7d", "stats": ["mode"]},
        {"window": 7, "stats": ["q1.1"]}, {"window": 7, "stats": "q0.50"}, {"window": 7, "stats": "q-0.5"},
        {"window": 7, "stats": [0.5]}, {"window": 7, "stats": "qnan"}, {"window": 7, "stats": "q1e-3"},
        {"window": "7d", "stats": []}, {"window": "7d", "closed": "neither"},
        {"window": "7d", "min_count": 0}, {"window": "7d", "by": ["k", "k"]},
        {"window": 3, "lag": -1},
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Rolling("x", **wrong)


def test_tables_it_cannot_work_on_are_refused() -> None:
    table, schema = numbers_table(3, 1)
    fields = schema.fields
    with pytest.raises(DefinitionError, match="no time column"):
        Rolling("x", "7d").inputs(TableSchema(fields, ("k",)))
    with pytest.raises(DefinitionError, match="no key"):
        Rolling("x", "7d").inputs(TableSchema(fields, (), "t"))
    with pytest.raises(SchemaError, match="no column"):
        Rolling("y", "7d").inputs(schema)
    with pytest.raises(SchemaError, match="cannot work on column 't'"):
        Rolling("t", "7d").inputs(schema)
    counted = TableSchema((Field("t", pa.int64()), Field("x", pa.float64())), (), "t")
    with pytest.raises(DefinitionError, match="counts integers"):
        Rolling("x", "7d", by=[]).inputs(counted)
    assert Rolling("x", 7, by=[]).inputs(counted) == ("t", "x")
    with pytest.raises(InvalidInputError, match="not a whole number of ms"):
        Rolling("x", "1us").apply(Partition(ENGINE.from_arrow(table), schema), {}, ENGINE)


def test_rows_out_of_order_are_refused() -> None:
    table, schema = numbers_table(10, 1)
    part = Partition(ENGINE.from_arrow(table.take(pa.array([3, 1, 2]))), schema)
    with pytest.raises(InvalidInputError, match="not in order of time"):
        Rolling("x", "7d").apply(part, {}, ENGINE)


def test_peak_memory_is_within_the_model() -> None:
    import tracemalloc

    table, schema = numbers_table(200_000, 50)
    part = Partition(ENGINE.from_arrow(table), schema)
    rolling = Rolling("x", "1d", stats=["mean", "std", "min"])
    tracemalloc.start()
    rolling.apply(part, {}, ENGINE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    outputs = 3 * 8 * len(table)
    sizes = {name: table[name].nbytes for name in table.column_names}
    assert peak - outputs <= rolling.memory(schema, Extent(len(table), sizes))


@pytest.mark.parametrize("type_", [pa.int64(), pa.uint64()], ids=str)
def test_means_of_integers_are_of_exact_sums_however_large(type_: pa.DataType) -> None:
    large = 2**63 - 1 if type_ == pa.int64() else 2**64 - 1
    numbers = [large, 2**53 + 1, 2**53 + 1, 1 - (2**53 if type_ == pa.int64() else 0), large, large]
    table = pa.table({"t": range(6), "n": pa.array(numbers, type_)})
    schema = oracles.schema_of(table, [], "t")
    mean = Rolling("n", 2, stats="mean", by=[])
    wanted = [float(large)] + [float(Fraction(sum(numbers[i - 1 : i + 1]), 2)) for i in range(1, 6)]
    for points in ([], [1, 3], [2, 4, 5]):
        out = oracles.run_partitioned(mean, oracles.cut(table, "t", points), schema, ENGINE)
        assert out["n_mean_2r"].to_pylist() == wanted
