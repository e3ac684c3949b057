"""Statistics of everything so far, against brute force, pandas and Polars, however rows are cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.engines.windows import STATISTICS
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Partition, Transformer

ENGINE = PolarsEngine()
Rows = Sequence[Row]
BY = st.sampled_from([None, ["g"], ["x", "s"], []])
CLOSED = st.sampled_from(["left", "right"])
LAGS = st.sampled_from([None, None, "1us", "5us"])


def seen(transformer: Any, rows: Rows, i: int) -> list[int]:
    """Return which rows a row sees."""
    by = ["k"] if transformer.by is None else list(transformer.by)
    group = oracles.group_key(rows[i], by)
    same = [j for j in range(len(rows)) if oracles.group_key(rows[j], by) == group]
    right = transformer.closed == "right"
    if transformer.lag is None:
        return [j for j in same if j < i or (right and j == i)]
    until = rows[i]["t"] - transformer.lag.in_unit("us")
    return [j for j in same if rows[j]["t"] < until or (right and rows[j]["t"] == until)]


class TestExpanding(TransformerContract):
    examples = 40

    def transformers(self) -> st.SearchStrategy[Transformer]:
        stats = st.lists(st.sampled_from(STATISTICS), min_size=1, max_size=3, unique=True)
        return st.builds(
            fs.Expanding, st.sampled_from(["x", "n", "b"]), stats, min_count=st.integers(1, 3),
            by=BY, closed=CLOSED, lag=LAGS, prefix=st.just("p_"),
        )  # fmt: skip

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        (column,) = transformer.columns
        out: dict[str, list[Any]] = {
            f"p_{column}_expanding_{stat}": [] for stat in transformer.stats
        }
        for i in range(len(rows)):
            values = [rows[j][column] for j in seen(transformer, rows, i)]
            values = [one for one in values if one is not None]
            for stat, made in zip(transformer.stats, out.values(), strict=True):
                made.append(oracles.statistic(values, stat, transformer.min_count))
        return out


class TestCumCount(TransformerContract):
    examples = 20
    tables_driven = 1

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(fs.CumCount, by=BY, closed=CLOSED, lag=LAGS, prefix=st.just("p_"))

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        return {"p_cum_count": [len(seen(transformer, rows, i)) for i in range(len(rows))]}


class TestTimeSince(TransformerContract):
    examples = 20
    tables_driven = 1

    def transformers(self) -> st.SearchStrategy[Transformer]:
        where = st.sampled_from([None, "b"])
        return st.builds(
            fs.TimeSince, where, unit=st.sampled_from(["1us", "2ns", "3us"]),
            by=BY, closed=CLOSED, lag=LAGS, prefix=st.just("p_"),
        )  # fmt: skip

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        out: list[Any] = []
        for i, row in enumerate(rows):
            which = seen(transformer, rows, i)
            if transformer.where is not None:
                which = [j for j in which if rows[j]["b"]]
            unit = transformer.unit.nanoseconds
            out.append((row["t"] - rows[which[-1]]["t"]) * 1000 / unit if which else None)
        return {f"p_since_{transformer.where or 'last'}": out}


class TestEWM(TransformerContract):
    examples = 40

    def transformers(self) -> st.SearchStrategy[Transformer]:
        stats = st.sampled_from([["mean"], ["std"], ["mean", "std"]])
        lives = st.sampled_from([1, 0.5, 7, "2us", "50us"])

        def made(life: Any, adjust: bool, ignore: bool, **other: Any) -> Transformer:
            ignored = ignore and not isinstance(life, str)
            return fs.EWM(half_life=life, adjust=adjust, ignore_nulls=ignored, prefix="p_", **other)

        return st.builds(
            made, lives, st.booleans(), st.booleans(), columns=st.sampled_from(["x", "n", "b"]),
            stats=stats, min_count=st.integers(1, 2), by=BY, closed=CLOSED, lag=LAGS,
        )  # fmt: skip

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        (column,) = transformer.columns
        life = transformer.half_life
        label = f"{life:g}r" if isinstance(life, float) else str(life)
        out: dict[str, list[Any]] = {
            f"p_{column}_ewm_{stat}_{label}": [] for stat in transformer.stats
        }
        for i in range(len(rows)):
            chosen = [rows[j] for j in seen(transformer, rows, i)]
            values, weights = ewm_weights(transformer, chosen, column)
            few = len(values) < transformer.min_count
            for stat, made in zip(transformer.stats, out.values(), strict=True):
                if few or not values:
                    made.append(None)
                elif stat == "mean":
                    made.append(weighted_mean(values, weights))
                else:
                    made.append(weighted_deviation(values, weights))
        return out


def ewm_weights(ewm: Any, rows: Rows, column: str) -> tuple[list[float], list[Fraction]]:
    """Return values and what each weighs, by going through the rows one by one."""
    timed = not isinstance(ewm.half_life, float)
    life = ewm.half_life.nanoseconds / 1000 if timed else ewm.half_life
    values: list[float] = []
    weights: list[Fraction] = []
    last, number = 0, 0
    for row in rows:
        if row[column] is None:
            number += not ewm.ignore_nulls
            continue
        at = row["t"] if timed else number
        number += 1
        distance = at - last
        last = at
        if not values:
            gain = Fraction(1)
        elif ewm.adjust:
            left, gain = Fraction(2.0 ** (-distance / life)), Fraction(1)
            weights = [one * left for one in weights]
        else:
            left = Fraction(2.0 ** (-distance / life))
            gain = Fraction(-math.expm1(-math.log(2) * ((distance if timed else 1) / life)))
            weights = [one * left / (left + gain) for one in weights]
            gain = gain / (left + gain)
        values.append(float(row[column]))
        weights.append(gain)
    return values, weights


def weighted_mean(values: list[float], weights: list[Fraction]) -> float:
    if not all(map(math.isfinite, values)):
        # A value without weight, as it came at the time of another, is not there.
        return sum(float(w) * x for x, w in zip(values, weights, strict=True) if w) / float(
            sum(weights)
        )
    total = sum((Fraction(x) * w for x, w in zip(values, weights, strict=True)), Fraction(0))
    return float(total / sum(weights))


def weighted_deviation(values: list[float], weights: list[Fraction]) -> float | None:
    # As in means: what came at the time of another value has no weight, and is not there.
    values = [x for x, w in zip(values, weights, strict=True) if w]
    weights = [w for w in weights if w]
    total = sum(weights)
    pairs = total * total - sum((one * one for one in weights), Fraction(0))
    if pairs <= 0:
        return None
    if not all(map(math.isfinite, values)):
        return math.nan
    exact = [Fraction(one) for one in values]
    mean = sum((x * w for x, w in zip(exact, weights, strict=True)), Fraction(0)) / total
    squares = sum(((x - mean) ** 2 * w for x, w in zip(exact, weights, strict=True)), Fraction(0))
    return math.sqrt(squares * total / pairs)


# --- against others' implementations, and what is particular -----------------------------------------


def frame_of(rows: int, keys: int, seed: int = 0, ties: bool = False) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    times = rng.integers(0, rows // 3, rows) if ties else rng.choice(50 * rows, rows, replace=False)
    values = [None if one > 1.5 else one for one in rng.standard_normal(rows).tolist()]
    return pl.DataFrame(
        {
            "k": [f"k{one}" for one in rng.integers(0, keys, rows)],
            "t": np.sort(times),
            "x": values,
        },
        schema={"k": pl.String, "t": pl.Datetime("ms", "Europe/Berlin"), "x": pl.Float64},
    )


def run(transformer: Transformer, frame: pl.DataFrame, pieces: int = 1) -> dict[str, np.ndarray]:
    """Return the outputs, the same for so many pieces; nulls as NaN."""
    table = frame.to_arrow()
    table = table.cast(
        pa.schema([one.with_type(pa.string()) if one.name == "k" else one for one in table.schema])
    )
    schema = oracles.schema_of(table, ["k"], "t")
    whole = oracles.run_partitioned(transformer, [table], schema, ENGINE)
    parts = oracles.cut(table, "t", range(0, len(table), max(1, len(table) // pieces)))
    assert oracles.same_values(whole, oracles.run_partitioned(transformer, parts, schema, ENGINE))
    return {name: whole[name].to_numpy() for name in whole.column_names}


@pytest.mark.parametrize("adjust", [True, False])
@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("half_life", [1.5, 40])
def test_ewm_of_rows_equals_pandas(adjust: bool, ignore: bool, half_life: float) -> None:
    frame = frame_of(2000, 7)
    out = run(
        fs.EWM("x", half_life, stats=["mean", "std"], adjust=adjust, ignore_nulls=ignore), frame, 9
    )
    rows = frame.to_pandas()
    groups = rows.groupby("k")["x"]
    options = {"halflife": half_life, "adjust": adjust, "ignore_na": ignore}
    mean = groups.transform(lambda one: one.ewm(**options).mean())
    std = groups.transform(lambda one: one.ewm(**options).std())
    np.testing.assert_allclose(out[f"x_ewm_mean_{half_life:g}r"], mean, rtol=1e-10, atol=1e-12)
    # pandas has NaN where no two values came, and 0.0 where it has lost one of them.
    ours = out[f"x_ewm_std_{half_life:g}r"]
    np.testing.assert_allclose(ours, std, rtol=1e-8, atol=1e-12)


def test_ewm_of_time_equals_pandas_adjusted_and_polars_recursive() -> None:
    frame = frame_of(1500, 1).drop_nulls()
    adjusted = run(fs.EWM("x", "20s", by=[]), frame, 5)["x_ewm_mean_20s"]
    rows = frame.to_pandas()
    theirs = rows["x"].ewm(halflife="20s", times=rows["t"].dt.tz_localize(None)).mean()
    np.testing.assert_allclose(adjusted, theirs, rtol=1e-9, atol=1e-12)
    recursive = run(fs.EWM("x", "20s", by=[], adjust=False), frame, 5)["x_ewm_mean_20s"]
    polars = frame.select(pl.col("x").ewm_mean_by("t", half_life="20s")).to_series()
    np.testing.assert_allclose(recursive, polars.to_numpy(), rtol=1e-9, atol=1e-12)


def test_a_value_at_the_time_of_another_has_no_weight_in_the_recurrence() -> None:
    """Without ``adjust`` a value weighs by how long it came after the one before."""
    frame = frame_of(3, 1).with_columns(
        t=pl.col("t").first(), x=pl.Series([0.0, math.nan, math.inf])
    )
    made = run(fs.EWM("x", "2us", adjust=False, by=[]), frame)
    assert made["x_ewm_mean_2us"].tolist() == [0.0, 0.0, 0.0]


def test_expanding_equals_pandas_bit_for_bit_in_any_pieces() -> None:
    frame = frame_of(3000, 11, ties=True)
    out = run(fs.Expanding("x", STATISTICS), frame, 30)
    rows = frame.to_pandas()
    for stat in ("mean", "std", "sum", "min", "max", "count"):
        theirs = rows.groupby("k")["x"].transform(
            lambda one, stat=stat: getattr(one.expanding(1), stat)()
        )
        np.testing.assert_allclose(out[f"x_expanding_{stat}"], theirs, rtol=1e-10, atol=1e-12)


def test_several_columns_are_what_each_is_alone() -> None:
    frame = frame_of(300, 3).with_columns(n=pl.int_range(300))
    for one in (
        fs.Expanding(["x", "n"], ["sum", "std"]),
        fs.EWM(["n", "x"], 3, stats=["mean", "std"]),
    ):
        together = run(one, frame, 4)
        for column in ("x", "n"):
            for name, values in run(replace(one, columns=column), frame).items():
                np.testing.assert_array_equal(together[name], values)


def test_deviations_are_right_though_means_are_a_trillion_times_larger() -> None:
    rng = np.random.default_rng(3)
    small = rng.integers(-8, 9, 4000) / 4.0
    frame = frame_of(4000, 1).with_columns(x=pl.Series(1e12 + small))
    out = run(fs.Expanding("x", "std"), frame, 13)["x_expanding_std"]
    exact = pd.Series(small).expanding().std()
    np.testing.assert_allclose(out[1:], exact[1:], rtol=1e-6)


def test_sums_of_integers_are_exact_however_large_and_refused_where_they_do_not_fit() -> None:
    def table(*values: int) -> tuple[pa.Table, TableSchema]:
        made = pa.table({"t": list(range(len(values))), "n": pa.array(values, pa.int64())})
        return made, oracles.schema_of(made, [], "t")

    large = 2**63 - 1
    rows, schema = table(large, -large, -large, large, 5)
    total = fs.Expanding("n", ["sum", "mean"], by=[])
    for points in ([], [1, 3], [1, 2, 3, 4]):
        out = oracles.run_partitioned(total, oracles.cut(rows, "t", points), schema, ENGINE)
        assert out["n_expanding_sum"].to_pylist() == [large, 0, -large, 0, 5]
        assert out["n_expanding_mean"].to_pylist() == [float(large), 0.0, -large / 3, 0.0, 1.0]
    rows, schema = table(large, large, large)
    with pytest.raises(InvalidInputError, match="does not fit 64 bits"):
        oracles.run_partitioned(total, [rows], schema, ENGINE)
    mean = fs.Expanding("n", "mean", by=[])
    out = oracles.run_partitioned(mean, [rows], schema, ENGINE)
    assert out["n_expanding_mean"].to_pylist() == [float(large)] * 3


@pytest.mark.parametrize(
    ("transformer", "rows_per_key"),
    [
        (fs.Expanding("x", ["min", "count", "last"]), 1),
        (fs.CumCount(), 1),
        (fs.TimeSince(), 1),
        (fs.Expanding("x", ["std"]), 40),
        (fs.EWM("x", "1h"), 40),
    ],
    ids=["exact", "cum_count", "time_since", "moments", "ewm"],
)
def test_states_do_not_grow_with_the_rows_of_a_key(transformer: Any, rows_per_key: int) -> None:
    table = frame_of(20_000, 4).to_arrow()
    schema = oracles.schema_of(table, ["k"], "t")
    state: Any = {}
    for piece in oracles.cut(table, "t", range(0, 20_000, 2_000)):
        part = Partition(ENGINE.from_arrow(piece), schema)
        state = transformer.combine(state, transformer.summarize(part, ENGINE))
    assert 4 <= len(state["tail"]) <= 4 * rows_per_key


def test_times_from_one_end_of_the_calendar_to_the_other() -> None:
    low, high = -(2**63) + 1, 2**63 - 1
    table = pa.table(
        {
            "t": pa.array([low, low + 1, -1, 0, 1, high - 1, high], pa.timestamp("ns")),
            "x": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
        }
    )
    schema = oracles.schema_of(table, [], "t")
    total = fs.Expanding("x", "sum", by=[])
    late = fs.Expanding("x", "sum", by=[], lag="1ns")
    mean = fs.EWM("x", "1h", by=[], adjust=False)
    for points in ([], [1], [3], [2, 5], [1, 2, 3, 4, 5, 6]):
        parts = oracles.cut(table, "t", points)
        out = oracles.run_partitioned(total, parts, schema, ENGINE)
        assert out["x_expanding_sum"].to_pylist() == [1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 127.0]
        out = oracles.run_partitioned(late, parts, schema, ENGINE)
        assert out["x_expanding_sum"].to_pylist() == [None, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0]
        out = oracles.run_partitioned(mean, parts, schema, ENGINE)
        np.testing.assert_allclose(out["x_ewm_mean_1h"].to_numpy()[[0, 5]], [1.0, 32.0])


def test_dates_have_a_length() -> None:
    table = pa.table({"t": pa.array([0, 1, 1, 4], pa.int32()).cast(pa.date32()), "x": [1, 3, 5, 7]})
    schema = oracles.schema_of(table, [], "t")
    wanted: dict[Transformer, list[Any]] = {
        fs.TimeSince(unit="1d", by=[]): [None, 1.0, 0.0, 3.0],
        fs.Expanding("x", "sum", by=[], lag="1d"): [None, 1, 1, 9],
        fs.ExpandingTarget("x", "x", smoothing=0.0, lag="3d", prefix="p"): [None, None, None, 3.0],
        fs.EWM("x", "1d", by=[]): [1.0, 3.5 / 1.5, 8.5 / 2.5, (7 + 8.5 / 8) / (1 + 2.5 / 8)],
    }
    for one, values in wanted.items():
        for points in ([], [1, 3]):
            parts = oracles.cut(table, "t", points)
            found = oracles.run_partitioned(one, parts, schema, ENGINE).column(0).to_pylist()
            assert oracles.close_values(found, values), (one, found)


def test_integer_times_have_no_unit_and_no_lengths() -> None:
    table = pa.table({"t": [1, 4, 4, 9], "x": [1.0, 2.0, 3.0, 4.0]})
    schema = oracles.schema_of(table, [], "t")
    out = oracles.run_partitioned(fs.TimeSince(by=[]), [table], schema, ENGINE)
    assert out["since_last"].to_pylist() == [None, 3, 0, 5]
    assert out.schema.field("since_last").type == pa.int64()
    for one in (fs.EWM("x", "1h", by=[]), fs.CumCount(by=[], lag="1d")):
        with pytest.raises(DefinitionError, match="have no length"):
            one.inputs(schema)
    with pytest.raises(DefinitionError, match="no time column"):
        fs.CumCount(by=[]).inputs(TableSchema(schema.fields))
    with pytest.raises(SchemaError, match="boolean"):
        fs.TimeSince("x", by=[]).inputs(schema)
    with pytest.raises(SchemaError, match="cannot work on column"):
        fs.EWM("k", 2, by=[]).inputs(oracles.schema_of(pa.table({"t": [1], "k": ["a"]}), [], "t"))


def test_states_serve_all_that_differ_in_names_only() -> None:
    assert (
        fs.EWM("x", 3, prefix="a_", closed="left").state_fingerprint()
        == fs.EWM("x", 3).state_fingerprint()
    )
    assert fs.EWM("x", 3).state_fingerprint() != fs.EWM("x", 4).state_fingerprint()
    late = fs.Expanding("x", lag="1d")
    assert late.state_fingerprint() != fs.Expanding("x").state_fingerprint()
    assert (
        late.state_fingerprint() != fs.Expanding("x", lag="1d", closed="left").state_fingerprint()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: fs.EWM("x", 0), lambda: fs.EWM("x", math.nan), lambda: fs.EWM("x", True),
        lambda: fs.EWM("x", "0s"), lambda: fs.EWM("x", "1 month"), lambda: fs.EWM("x", 2, stats="var"),
        lambda: fs.EWM("x", "1d", ignore_nulls=True), lambda: fs.EWM("x", 2, min_count=0),
        lambda: fs.EWM("x", 2, adjust=1),  # type: ignore[arg-type]
        lambda: fs.Expanding("x", "mode"),
        lambda: fs.Expanding("x", []), lambda: fs.Expanding("x", min_count=0),
        lambda: fs.Expanding("x", closed="both"), lambda: fs.Expanding("x", lag=2),
        lambda: fs.Expanding("x", lag="0s"), lambda: fs.TimeSince(unit=3),
        lambda: fs.TimeSince(unit="0s"), lambda: fs.CumCount(by=["k", "k"]),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: Any) -> None:
    with pytest.raises(DefinitionError):
        wrong()
