"""What was known when: joins of rows that arrive late, against brute force, however both tables are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines import joins
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.late_rows import late_tables
from featurestore.testing.oracles import Row
from featurestore.testing.strategies import cuts, tables
from featurestore.testing.transformer_contract import OTHER, TransformerContract
from featurestore.transforms.base import Partition, SourceWindow, Transformer, transformer_from_spec

ENGINE = PolarsEngine()
Rows = Sequence[Row]


class TestAsOfJoinOfLateRows(TransformerContract):
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        by = st.sampled_from([{"k": "k"}, {"k": "k", "g": "g"}, {"s": "k"}, ()])
        return st.builds(
            fs.AsOfJoin, st.just(OTHER), st.just(["x", "n"]), exact=st.booleans(), by=by,
            lag=st.sampled_from([None, "2us"]), available=st.just("a"),
            max_age=st.sampled_from([None, None, "7us", "100us"]), prefix=st.just("j_"),
        )  # fmt: skip

    def others(self) -> st.SearchStrategy[pa.Table]:
        return late_tables()

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        spans = [
            None if one is None else one.in_unit("us")
            for one in (transformer.lag, transformer.max_age)
        ]
        options = {"lag": spans[0] or 0, "max_age": spans[1], "exact": transformer.exact}
        by = dict(transformer.by)
        return {
            f"j_{one}": oracles.asof(rows, other, one, by, ("t", "t"), available="a", **options)
            for one in ("x", "n")
        }


class TestLookupOfWhatWasKnown(TransformerContract):
    examples = 30
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        known = st.sampled_from([("0us", None), ("3us", None), (None, "a"), ("3us", "a")])
        return known.map(
            lambda one: fs.Lookup(
                OTHER, ["s"], by={"k": "k"}, lag=one[0], available=one[1], prefix="l_"
            )
        )

    def others(self) -> st.SearchStrategy[pa.Table]:
        return late_tables()

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        lag = 0 if transformer.lag is None else transformer.lag.in_unit("us")
        by, late = {"k": "k"}, transformer.available
        return {"l_s": oracles.asof(rows, other, "s", by, ("t", "t"), lag=lag, available=late)}


UNITS = ("ms", "us", "ns")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    tables(time_type=pa.timestamp("ms"), max_rows=20), late_tables("ms", max_rows=20),
    st.tuples(*[st.sampled_from(UNITS)] * 3), st.sampled_from([None, "UTC", "Asia/Kolkata"]),
    cuts(),
)  # fmt: skip
def test_units_and_zones_make_no_difference(
    left: pa.Table,
    right: pa.Table,
    units: tuple[str, str, str],
    zone: str | None,
    points: list[int],
) -> None:
    join = fs.AsOfJoin(OTHER, ["n"], by="k", lag="2ms", available="a", prefix="j_")
    plain = _outputs(join, [left], [right])
    types = [pa.timestamp(unit, zone) for unit in units]
    left = left.set_column(0, "t", left["t"].cast(types[0]))
    for name, type_ in (("t", types[1]), ("a", types[2])):
        right = right.set_column(right.column_names.index(name), name, right[name].cast(type_))
    assert oracles.same_values(plain, _outputs(join, [left], oracles.cut(right, "t", points)))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(tables(max_rows=20), late_tables(max_rows=20), st.booleans())
def test_a_table_without_time_is_looked_up_by_what_was_known(
    left: pa.Table, right: pa.Table, all_keys: bool
) -> None:
    by = {"k": "k", "g": "g"} if all_keys else {"k": "k"}
    lookup = fs.Lookup(OTHER, ["n"], by=by, available="a", prefix="l_")
    found = _outputs(lookup, oracles.cut(left, "t", [5, 9]), [right], timed=False)
    wanted = []
    for row in oracles.rows_of(left):
        seen = [
            one["n"]
            for one in oracles.rows_of(right)
            if all(row[a] is not None and row[a] == one[a] for a in by)
            and one["a"] is not None
            and one["a"] <= row["t"]
        ]
        wanted.append(seen[-1] if seen else None)
    assert found["l_n"].to_pylist() == wanted


def _outputs(
    join: Transformer, left: Sequence[pa.Table], right: Sequence[pa.Table], *, timed: bool = True
) -> pa.Table:
    return oracles.run_partitioned(join, left, _schema(left[0], right[0], timed), ENGINE, right)


def _schema(left: pa.Table, right: pa.Table, timed: bool = True) -> TableSchema:
    other = oracles.schema_of(right, ["k"], "t" if timed else None)
    return oracles.schema_of(left, ["k"], "t", {OTHER: other})


def _simple(left: Sequence[int], right: Mapping[str, Any], join: Transformer) -> list[Any]:
    one = pa.table({"t": left, "k": ["a"] * len(left)})
    other = pa.table({"k": ["a"] * len(right["t"]), **right})
    return list(_outputs(join, [one], [other]).column(0).to_pylist())


def test_a_row_that_was_late_is_not_seen_early() -> None:
    right = {"t": [10, 20, 30], "known": [12, 50, 31], "v": [1, 2, 3]}
    at = [11, 12, 25, 30, 31, 50]
    assert _simple(at, right, fs.AsOfJoin(OTHER, "v", by="k", available="known")) == [
        None, 1, 1, 1, 3, 3,
    ]  # fmt: skip
    # Newer by its own time counts, although it became known before.
    again = {"t": [10, 20], "known": [60, 25], "v": [1, 2]}
    assert _simple([20, 25, 60], again, fs.AsOfJoin(OTHER, "v", by="k", available="known")) == [
        None, 2, 2,
    ]  # fmt: skip
    # A correction replaces what was known of the same time, once it is there.
    fixed = {"t": [10, 10], "known": [11, 40], "v": [1, 2]}
    assert _simple([39, 40], fixed, fs.AsOfJoin(OTHER, "v", by="k", available="known")) == [1, 2]


def test_lag_and_available_both_have_to_have_passed() -> None:
    right = {"t": [10, 10], "known": [11, 0], "v": [1, 2]}
    join = fs.AsOfJoin(OTHER, "v", by="k", lag=5, available="known")
    assert _simple([14, 15], right, join) == [None, 2]
    strict = fs.AsOfJoin(OTHER, "v", by="k", lag=5, exact=False, available="known")
    assert _simple([15, 16], right, strict) == [None, 2]


def test_a_static_lookup_sees_everything_and_one_with_a_lag_does_not() -> None:
    right = {"t": [10, 20], "v": [1, 2]}
    assert _simple([0, 10, 20], right, fs.Lookup(OTHER, "v", by="k")) == [2, 2, 2]
    assert _simple([0, 10, 20], right, fs.Lookup(OTHER, "v", by="k", lag=0)) == [None, 1, 2]


def test_what_is_known_beyond_all_times_is_never_known() -> None:
    far = pa.array([2**62, -(2**62), None], pa.timestamp("ms"))
    times = pa.array([0, 0, 0], pa.timestamp("ns"))
    right = pa.table({"t": times, "k": ["a", "b", "c"], "a": far, "v": [1, 2, 3]})
    left = pa.table({"t": pa.array([2**63 - 1] * 3, pa.timestamp("ns")), "k": ["a", "b", "c"]})
    join = fs.AsOfJoin(OTHER, "v", by="k", available="a")
    assert _outputs(join, [left], [right])["v"].to_pylist() == [None, 2, None]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(-40, 70)), max_size=30),
    st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (1, 2)]),
)  # fmt: skip
def test_what_a_carry_keeps(
    rows: list[tuple[int, int, int]], count: int, factors: tuple[int, int]
) -> None:
    rows = sorted(rows, key=lambda one: one[1])
    codes, times, available = (np.array([one[i] for one in rows], np.int64) for i in range(3))
    kept = joins.last_known(np, codes, times, available, factors, count).tolist()
    wanted = []
    for i, (code, _, known) in enumerate(rows):
        same = [j for j in range(len(rows)) if rows[j][0] == code]
        newest = rows[same[-1]][1] * factors[0]
        then = [j for j in same if rows[j][2] * factors[1] <= newest]
        if known * factors[1] > newest or i in then[-count:]:
            wanted.append(i)
    assert kept == wanted


def test_the_carry_of_rows_in_time_is_one_row_per_key() -> None:
    table = pa.table({"t": range(100), "k": [f"k{i % 3}" for i in range(100)], "a": range(100)})
    table = table.append_column("v", pa.array(range(100)))
    join = fs.AsOfJoin(OTHER, "v", by="k", available="a")
    schema = oracles.schema_of(table, ["k"], "t")
    state = join.summarize(Partition(ENGINE.from_arrow(table), schema), ENGINE)
    assert state["rows"]["column_0"].to_pylist() == [97, 98, 99]
    late = table.set_column(2, "a", pa.array([10**6 if i in (40, 50) else i for i in range(100)]))
    state = join.summarize(Partition(ENGINE.from_arrow(late), schema), ENGINE)
    assert state["rows"]["column_0"].to_pylist() == [40, 50, 97, 98, 99]


def test_windows_leave_the_future_out() -> None:
    left = pa.table({"t": pa.array([0], pa.timestamp("us")), "k": ["a"]})
    right = pa.table({"t": pa.array([0], pa.timestamp("ms")), "k": ["a"], "v": [1]})
    schema = _schema(left, right)
    window = fs.Lookup(OTHER, "v", lag="1ms").source_window(schema, 5500, 9500)
    assert window == SourceWindow(4, 8, carry=True)
    assert fs.Lookup(OTHER, "v").source_window(schema, 5500, 9500).upper is None


def test_definitions_keep_their_identity() -> None:
    plain = fs.AsOfJoin(OTHER, "v", lag="1h")
    assert "available" not in plain.spec()["params"]  # type: ignore[operator]
    assert {"available", "lag"}.isdisjoint(fs.Lookup(OTHER, "v").spec()["params"])  # type: ignore[arg-type]
    for one in (
        fs.AsOfJoin(OTHER, "v", available="a"),
        fs.Lookup(OTHER, "v", lag="1h", available="a"),
    ):
        assert transformer_from_spec(one.spec()) == one
    assert fs.AsOfJoin(OTHER, "v", available="a").state_fingerprint() != plain.state_fingerprint()


def test_what_says_no_time_is_refused() -> None:
    left = pa.table({"t": pa.array([0], pa.timestamp("us")), "k": ["a"]})
    right = pa.table({"t": pa.array([0], pa.timestamp("us")), "k": ["a"], "v": [1.5], "n": [1]})

    def refused(join: Transformer, match: str, timed: bool = True) -> None:
        with pytest.raises((DefinitionError, SchemaError), match=match):
            join.outputs(_schema(left, right, timed))

    refused(fs.AsOfJoin(OTHER, "v", available="v"), "does not say when")
    refused(fs.AsOfJoin(OTHER, "v", available="n"), "only one is an integer")
    refused(fs.AsOfJoin(OTHER, "v", available="nope"), "no column 'nope'")
    refused(fs.AsOfJoin(OTHER, "v", available="t"), "needs a time column", timed=False)
    refused(fs.Lookup(OTHER, "v", lag="1h"), "has no time column", timed=False)
    with pytest.raises(DefinitionError, match="Lookup has available=3"):
        fs.Lookup(OTHER, "v", available=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_age", [None, "500us"])
def test_rows_in_time_give_what_polars_gives(max_age: str | None) -> None:
    random = np.random.default_rng(0)
    tables_ = []
    for rows in (3000, 1000):
        times = np.sort(random.permutation(4 * rows)[:rows])  # ties are not defined there
        keys = pa.array([f"k{one}" for one in random.integers(0, 20, rows)])
        tables_.append(pa.table({"t": pa.array(times, pa.timestamp("us")), "k": keys}))
    left, right = tables_[0], tables_[1].append_column("v", pa.array(np.arange(1000)))
    right = right.append_column("a", right["t"])
    join = fs.AsOfJoin(OTHER, "v", by="k", max_age=max_age, available="a")
    found = _outputs(join, oracles.cut(left, "t", [500, 1500]), oracles.cut(right, "t", [200, 700]))
    one, other = (pl.DataFrame(pl.from_arrow(table)) for table in (left, right))
    wanted = one.join_asof(other, on="t", by="k", tolerance=max_age, check_sortedness=False)
    assert found["v"].to_pylist() == wanted["v"].to_list()


def test_later_rows_of_the_other_table_leave_what_was_known_before_fresh() -> None:
    store = fs.FeatureStore.create("memory://known", workers=1)
    times = pa.array(range(0, 100, 10), pa.timestamp("us"))
    facts = store.ingest(
        "facts", pa.table({"t": times, "k": ["a"] * 10, "v": range(10)}), key="k", time="t"
    )
    rows = store.ingest(
        "rows", pa.table({"t": times, "k": ["a"] * 10}), key="k", time="t", partition_bytes=60
    )
    assert rows.partitions == 2
    rows.add(fs.Lookup(facts, "v", lag="0us", prefix="then_"))
    rows.add(fs.Lookup(facts, "v", prefix="ever_"))
    more = pa.table({"t": pa.array([95], pa.timestamp("us")), "k": ["a"], "v": [99]})
    facts.append(more)
    status = rows.status()
    stale = {name for name in ("then_v", "ever_v") if not status[name].is_fresh}
    assert stale == {"ever_v"}
    assert rows.read("then_v")["then_v"].to_list() == list(range(10))
