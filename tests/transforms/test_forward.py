"""Forward against brute force over Python rows, over any partitioning and any history of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.strategies import tables
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import EMPTY_STATE, Partition, State, Transformer
from featurestore.transforms.forward import AGGREGATES, STATISTICS, Forward
from featurestore.transforms.independence import check_partition_independent
from featurestore.units import Duration

ENGINE = PolarsEngine()
BY = st.sampled_from([None, ["k"], ["g"], ["x", "s"], []])
ROWS_AHEAD = st.sampled_from([1, 2, 3, 7])
SPANS = st.sampled_from(["1us", "3us", "10us", "1s"])


def forward(
    rows: Sequence[Row], column: str, stat: str, one: Forward, by: Sequence[str]
) -> list[Any]:
    """Return what comes after each row, looking at all rows for each."""
    newest = max((row["t"] for row in rows), default=0)
    span = None if isinstance(one.ahead, int) else cast("Duration", one.ahead).nanoseconds // 1000
    out: list[Any] = []
    for i, row in enumerate(rows):
        group = [j for j in range(len(rows)) if oracles.group_key(rows[j], by) == _key(row, by)]
        if span is None:
            chosen = [j for j in group if j > i][: cast("int", one.ahead)]
            complete = len(chosen) == one.ahead
        else:
            chosen = [j for j in group if row["t"] < rows[j]["t"] <= row["t"] + span]
            complete = newest >= row["t"] + span
        if not complete:
            out.append(None)
        elif stat in AGGREGATES:
            values = [rows[j][column] for j in chosen if rows[j][column] is not None]
            found = oracles.statistic(values, stat, one.min_count)
            out.append(found)
        else:
            then = rows[chosen[-1]][column] if chosen else None
            out.append(_change(row[column], then, stat))
    return out


def _key(row: Row, by: Sequence[str]) -> tuple[Any, ...]:
    return oracles.group_key(row, by)


def _change(now: Any, then: Any, stat: str) -> Any:
    if stat == "value":
        return then
    if now is None or then is None:
        return None
    if stat == "difference":
        return then - now
    ratio = _ratio(float(then), float(now))
    if stat == "return":
        return ratio - 1
    if math.isnan(ratio) or ratio < 0:
        return math.nan
    return -math.inf if ratio == 0 else math.log(ratio)


def _ratio(then: float, now: float) -> float:
    if now != 0:
        return then / now
    if then == 0 or math.isnan(then):
        return math.nan
    return math.copysign(math.inf, then) * math.copysign(1, now)


def expected(
    one: Forward, rows: Sequence[Row], key: Sequence[str] = ("k",)
) -> dict[str, list[Any]]:
    by = key if one.by is None else one.by
    label = f"{one.ahead}r" if isinstance(one.ahead, int) else str(one.ahead)
    return {
        f"{column}_{stat}_ahead_{label}": forward(rows, column, stat, one, list(by))
        for column in one.columns  # type: ignore[union-attr]
        for stat in one.stats
    }


class _ForwardContract(TransformerContract):
    def expected(
        self, transformer: Any, rows: Sequence[Row], other: Sequence[Row]
    ) -> Mapping[str, Sequence[Any]]:
        return expected(transformer, rows)


class TestRowsAhead(_ForwardContract):
    tables_driven = 4

    def transformers(self) -> st.SearchStrategy[Transformer]:
        stats = st.lists(st.sampled_from(STATISTICS), min_size=1, max_size=4, unique=True)
        return st.builds(
            Forward,
            st.just(["x", "n"]),
            ROWS_AHEAD,
            stats=stats,
            by=BY,
            min_count=st.integers(1, 2),
        )


class TestTimeAhead(_ForwardContract):
    tables_driven = 4

    def transformers(self) -> st.SearchStrategy[Transformer]:
        stats = st.lists(st.sampled_from(STATISTICS), min_size=1, max_size=4, unique=True)
        return st.builds(
            Forward, st.just(["x", "b"]), SPANS, stats=stats, by=BY, min_count=st.integers(1, 2)
        )


class TestAnyType(_ForwardContract):
    examples = 30
    tables_driven = 1

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            Forward, st.just(["s", "b", "g"]), ROWS_AHEAD | SPANS, stats=st.just("value"), by=BY
        )


# --- what of later rows is kept -------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(tables(), ROWS_AHEAD, BY, st.tuples(*[st.integers(0, 30)] * 2))
def test_what_a_partition_needs_of_later_rows_is_enough_and_no_more(
    table: pa.Table, ahead: int, by: Any, points: tuple[int, int]
) -> None:
    one = Forward(["x", "s"], ahead, by=by)
    schema = oracles.schema_of(table, ["k"], "t")
    pieces = [one for one in oracles.cut(table, "t", points) if len(one)]
    if len(pieces) < 2:
        return
    own, *rest = (Partition(ENGINE.from_arrow(piece), schema) for piece in pieces)
    later: State = EMPTY_STATE
    for part in rest:
        later = one.combine(later, one.summarize(part, ENGINE))
    state, until = one.look_ahead(later, one.summarize(own, ENGINE), None)
    frames = [one.apply(own, given, ENGINE).frame for given in (later, state)]
    whole, narrow = (ENGINE.to_arrow(cast("Any", frame)) for frame in frames)
    assert oracles.same_values(whole, narrow)
    groups = {oracles.group_key(row, by or ["k"]) for row in oracles.rows_of(pieces[0])}
    if by == []:
        groups = {()}
    behind = [row for piece in pieces[1:] for row in oracles.rows_of(piece)]
    found = {
        group: [
            row["t"]
            for row in behind
            if oracles.group_key(row, ["k"] if by is None else by) == group
        ]
        for group in groups
    }
    settled = all(len(times) >= ahead for times in found.values())
    assert until == (max(times[ahead - 1] for times in found.values()) if settled else None)
    kept = len(state["head"]) if state else 0
    assert kept == sum(min(len(times), ahead) for times in found.values())


def test_two_summaries_of_equal_reach_are_shared() -> None:
    assert (
        Forward("x", 3).state_fingerprint() == Forward("x", 3, stats="return").state_fingerprint()
    )
    assert Forward("x", 3).state_fingerprint() != Forward("x", 2).state_fingerprint()
    assert Forward("x", 3).state_fingerprint() != Forward("x", 3, by=[]).state_fingerprint()


# --- against Polars -------------------------------------------------------------------------------


def test_returns_are_those_of_polars() -> None:
    frame = pl.DataFrame(
        {
            "k": [f"k{i % 7}" for i in range(700)],
            "t": [i // 7 for i in range(700)],
            "x": [1.0 + (i * 7919 % 101) / 100 for i in range(700)],
        }
    )
    store = fs.FeatureStore.create("memory://forward-polars", workers=1)
    table = store.ingest("rows", frame, key="k", time="t", partition_bytes=2000)
    table.add(Forward("x", 5, stats=["value", "return", "log_return", "difference"]))
    then = pl.col("x").shift(-5).over("k")
    wanted = frame.sort("t", "k").select(
        x_value_ahead_5r=then,
        x_return_ahead_5r=then / pl.col("x") - 1,
        x_log_return_ahead_5r=(then / pl.col("x")).log(),
        x_difference_ahead_5r=then - pl.col("x"),
    )
    assert table.partitions > 5
    from polars.testing import assert_frame_equal

    assert_frame_equal(table.read(wanted.columns), wanted)


# --- types and refusals ---------------------------------------------------------------------------


def applied(table: pa.Table, one: Forward) -> pa.Table:
    schema = oracles.schema_of(table, ["k"], "t")
    return oracles.run_partitioned(one, [table], schema, ENGINE)


def test_differences_of_integers_are_exact_and_refused_beyond_64_bits() -> None:
    times = pa.array([1, 2, 3], pa.timestamp("us"))
    large = [2**64 - 1, 2**64 - 5, 3]
    table = pa.table({"k": ["a"] * 3, "t": times, "n": pa.array(large, pa.uint64())})
    with pytest.raises(InvalidInputError, match="64 bits"):
        applied(table, Forward("n", 1, stats="difference"))
    assert applied(table.slice(0, 2), Forward("n", 1, stats="difference"))[0].to_pylist() == [
        -4,
        None,
    ]
    near = pa.table({"k": ["a"] * 2, "t": times[:2], "n": [2**62 + 1, 2**62]})
    assert applied(near, Forward("n", 1, stats="difference"))[0].to_pylist() == [-1, None]


def test_a_group_that_ended_has_null_and_no_return_of_zero() -> None:
    times = pa.array([0, 1, 9], pa.timestamp("us"))
    table = pa.table({"k": ["a", "a", "b"], "t": times, "x": [2.0, 3.0, 1.0]})
    found = applied(table, Forward("x", "2us", stats=["return", "count", "sum"]))
    assert found["x_return_ahead_2us"].to_pylist() == [0.5, None, None]
    assert found["x_count_ahead_2us"].to_pylist() == [1, 0, None]
    assert found["x_sum_ahead_2us"].to_pylist() == [3.0, None, None]


def test_times_at_the_ends_of_64_bits_do_not_wrap() -> None:
    table = pa.table(
        {
            "k": ["a"] * 3,
            "t": pa.array([-(2**63), 0, 2**63 - 1], pa.timestamp("ns")),
            "x": [1.0, 2.0, 3.0],
        }
    )
    for points in ([], [1], [1, 2]):
        schema = oracles.schema_of(table, ["k"], "t")
        pieces = oracles.cut(table, "t", points)
        found = oracles.run_partitioned(Forward("x", f"{2**63 - 1}ns"), pieces, schema, ENGINE)
        assert found[0].to_pylist() == [None, 3.0, None]
        found = oracles.run_partitioned(Forward("x", "1ns", stats="count"), pieces, schema, ENGINE)
        assert found[0].to_pylist() == [0, 0, None]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ahead": 0}, "ahead=0"),
        ({"ahead": -1}, "ahead=-1"),
        ({"ahead": True}, "ahead=True"),
        ({"ahead": "0s"}, "positive"),
        ({"ahead": "soon"}, "soon"),
        ({"ahead": 1, "stats": "median"}, "median"),
        ({"ahead": 1, "stats": []}, "stats"),
        ({"ahead": 1, "stats": ["sum", "sum"]}, "each once"),
        ({"ahead": 1, "min_count": 0}, "min_count=0"),
    ],
    ids=["none", "back", "bool", "no-time", "no-length", "unknown", "nothing", "twice", "count"],
)
def test_wrong_parameters_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(DefinitionError, match=match):
        Forward("x", **arguments)


def test_differences_of_integers_are_exact_up_to_what_64_bits_hold() -> None:
    limits = {pa.int64(): (-(2**63), 2**63 - 1), pa.uint64(): (0, 2**63 - 1)}
    for type_, (least, most) in limits.items():
        table = pa.table({"k": ["a"] * 4, "t": [1, 2, 3, 4], "x": pa.array([0, most, 0, 1], type_)})
        part = Partition(ENGINE.from_arrow(table), oracles.schema_of(table, ["k"], "t"))
        ahead = Forward("x", 1, stats="difference")
        made = ahead.apply(part, {}, ENGINE).frame
        assert made is not None
        assert made["x_difference_ahead_1r"].to_list() == [most, -most, 1, None]
        beyond = [1, least, 0, 0] if least else [0, 2**63, 0, 0]
        table = table.set_column(2, "x", pa.array(beyond, type_))
        part = Partition(ENGINE.from_arrow(table), part.schema)
        with pytest.raises(InvalidInputError, match="does not fit 64 bits"):
            ahead.apply(part, {}, ENGINE)


def test_tables_that_it_cannot_work_on_are_refused() -> None:
    schema = oracles.schema_of(pa.table({"t": [1], "k": ["a"], "x": [1.0], "s": [""]}), ["k"], "t")
    with pytest.raises(DefinitionError, match="counts integers"):
        Forward("x", "1d").inputs(schema)
    assert Forward("x", 1).inputs(schema) == ("k", "t", "x")
    with pytest.raises(DefinitionError, match="no time column"):
        Forward("x", 1).inputs(TableSchema(schema.fields, ("k",)))
    with pytest.raises(DefinitionError, match="no key"):
        Forward("x", 1).inputs(TableSchema(schema.fields, (), "t"))
    with pytest.raises(SchemaError, match="'s'"):
        Forward("s", 1, stats="return").inputs(schema)


def test_of_other_packages_it_is_tried_with_what_comes_after_a_cut() -> None:
    frame = pa.table(
        {"k": ["a", "b"] * 20, "t": list(range(40)), "x": [float(i) for i in range(40)]}
    )
    part = Partition(ENGINE.from_arrow(frame), oracles.schema_of(frame, ["k"], "t"))
    check_partition_independent(Forward("x", 3, stats=["value", "mean"]), part, ENGINE)
