"""AsOfAggregate and AsOfWindow against brute force, however both tables are cut and events come late."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines import event_windows
from featurestore.engines.joins import Known
from featurestore.engines.polars import PolarsEngine
from featurestore.engines.windows import CLOSED, STATISTICS
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.late_rows import late_tables
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import OTHER, TransformerContract
from featurestore.transforms.base import Transformer, transformer_from_spec

ENGINE = PolarsEngine()
Rows = Sequence[Row]
BY = st.sampled_from([{"k": "k"}, {"k": "k"}, {"k": "k", "g": "g"}, {"s": "k"}, ()])
LATE = st.sampled_from([None, "a", "a"])
LAGS = st.sampled_from([None, None, "2us"])


class TestAsOfAggregate(TransformerContract):
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        stats = st.lists(st.sampled_from(STATISTICS), min_size=1, max_size=4, unique=True)
        return st.builds(
            fs.AsOfAggregate, st.just(OTHER), st.sampled_from([["x"], ["n", "b"]]),
            st.sampled_from(["2us", "7us", "300us"]), stats=stats, by=BY,
            closed=st.sampled_from(CLOSED), lag=LAGS, available=LATE, min_count=st.integers(1, 2),
        )  # fmt: skip

    def others(self) -> st.SearchStrategy[pa.Table]:
        return late_tables()

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        width, closed = transformer.window.in_unit("us"), transformer.closed
        oldest = width + (closed in ("left", "both"))
        found: dict[str, list[Any]] = {
            f"{name}_{stat}_{transformer.window}": []
            for name in transformer.columns
            for stat in transformer.stats
        }
        for row in rows:
            seen = seen_by(row, other, transformer, exact=closed in ("right", "both"))
            for name in transformer.columns:
                values = [one[name] for age, one in seen if age < oldest]
                values = [one for one in values if one is not None]
                for stat in transformer.stats:
                    result = oracles.statistic(values, stat, transformer.min_count)
                    found[f"{name}_{stat}_{transformer.window}"].append(result)
        return found


class TestAsOfWindow(TransformerContract):
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            fs.AsOfWindow, st.just(OTHER), st.sampled_from([["x"], ["n", "b"]]),
            st.integers(1, 4), fill_value=st.sampled_from([None, -7.0]), length=st.booleans(),
            by=BY, lag=LAGS, available=LATE, max_age=st.sampled_from([None, None, "7us"]),
        )  # fmt: skip

    def others(self) -> st.SearchStrategy[pa.Table]:
        return late_tables()

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        n, name = transformer.n, f"{OTHER}_last_{transformer.n}"
        fill = math.nan if transformer.fill_value is None else transformer.fill_value
        found: dict[str, list[Any]] = {f"{name}_length": []} if transformer.length else {}
        cells = [(i, j) for i in range(n) for j in range(len(transformer.columns))]
        found.update({f"{name}{[i, j]}": [] for i, j in cells})
        oldest = None if transformer.max_age is None else transformer.max_age.in_unit("us")
        for row in rows:
            seen = seen_by(row, other, transformer, exact=True)
            last = [one for age, one in seen if oldest is None or age <= oldest][-n:]
            if transformer.length:
                found[f"{name}_length"].append(len(last))
            for i, j in cells:
                at = i - (n - len(last))
                value = last[at][transformer.columns[j]] if at >= 0 else None
                found[f"{name}{[i, j]}"].append(fill if value is None else single(value))
        return found


def seen_by(row: Row, other: Rows, transformer: Any, *, exact: bool) -> list[tuple[int, Row]]:
    lag = 0 if transformer.lag is None else transformer.lag.in_unit("us")
    by, late = dict(transformer.by), transformer.available
    return oracles.visible_rows(row, other, by, ("t", "t"), lag=lag, exact=exact, available=late)


def single(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", float(value)))[0])


def _schema(left: pa.Table, right: pa.Table) -> TableSchema:
    other = oracles.schema_of(right, ["k"], "t")
    return oracles.schema_of(left, ["k"], "t", {OTHER: other})


def _outputs(one: Transformer, left: pa.Table, right: Sequence[pa.Table]) -> pa.Table:
    return oracles.run_partitioned(one, [left], _schema(left, right[0]), ENGINE, right)


def many_rows(rows: int, seed: int, late: float = 0.0) -> pa.Table:
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 4 * rows, rows))
    delays = np.where(random.random(rows) < late, random.integers(0, 300, rows), 0)
    return pa.table(
        {
            "t": pa.array(times, pa.timestamp("us")), "k": random.integers(0, 5, rows),
            "a": pa.array(times + delays, pa.timestamp("us")), "x": random.standard_normal(rows),
        }
    )  # fmt: skip


@pytest.mark.parametrize("picked", [1, 50, event_windows.PICKED])
def test_how_many_events_are_picked_at_a_time_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, picked: int
) -> None:
    left, right = many_rows(300, 0), many_rows(400, 1, late=0.3)
    monkeypatch.setattr(event_windows, "PICKED", picked)
    aggregate = fs.AsOfAggregate(OTHER, "x", "200us", stats=["sum", "std"], by="k", available="a")
    window = fs.AsOfWindow(OTHER, "x", 5, length=True, by="k", available="a")
    rows, others = oracles.rows_of(left), oracles.rows_of(right)
    pieces = oracles.cut(right, "t", range(0, 400, 37))
    for case, one in ((TestAsOfAggregate(), aggregate), (TestAsOfWindow(), window)):
        found = _outputs(one, left, pieces)
        for name, values in case.expected(one, rows, others).items():
            assert oracles.close_values(found[name].to_pylist(), list(values)), name


def test_the_same_events_give_the_same_bits_whether_they_lie_in_a_run_or_are_picked() -> None:
    left, right = many_rows(300, 2), many_rows(400, 3)
    stats = ["sum", "mean", "std"]
    plain = fs.AsOfAggregate(OTHER, "x", "150us", stats=stats, by="k")
    late = fs.AsOfAggregate(OTHER, "x", "150us", stats=stats, by="k", available="a")
    # Between them lie events that nobody ever knows.
    never = right.set_column(2, "a", pa.array([2**62] * 400, pa.timestamp("us")))
    both = pa.concat_tables([right, never]).sort_by("t")
    assert oracles.same_values(_outputs(plain, left, [right]), _outputs(late, left, [both]))


@pytest.mark.parametrize("delay", [5, 40])
def test_ages_count_from_an_events_own_time_however_long_it_took_to_be_known(delay: int) -> None:
    left, right = many_rows(150, 8), many_rows(200, 9)
    known = pa.array(right["t"].cast(pa.int64()).to_numpy() + delay, pa.timestamp("us"))
    right = right.set_column(2, "a", known)
    rows, others = oracles.rows_of(left), oracles.rows_of(right)
    options: dict[str, Any] = {"by": "k", "available": "a"}
    for case, one in (
        (TestAsOfAggregate(), fs.AsOfAggregate(OTHER, "x", "60us", stats="sum", **options)),
        (TestAsOfWindow(), fs.AsOfWindow(OTHER, "x", 3, length=True, max_age="60us", **options)),
    ):
        found = _outputs(one, left, [right])
        for name, values in case.expected(one, rows, others).items():
            assert oracles.close_values(found[name].to_pylist(), list(values)), name


def test_windows_are_those_that_polars_finds() -> None:
    left, right = many_rows(200, 4), many_rows(300, 5)
    sums = fs.AsOfAggregate(OTHER, "x", "100us", stats=["sum", "count"], by="k")
    found = _outputs(sums, left, [right])
    one = pl.DataFrame(pl.from_arrow(left)).with_row_index("row").select("row", "t", "k")
    pairs = one.join(pl.DataFrame(pl.from_arrow(right)), on="k", suffix="_r").filter(
        (pl.col("t_r") <= pl.col("t"))
        & (pl.col("t_r") > pl.col("t") - pl.duration(microseconds=100))
    )
    wanted = one.join(pairs.group_by("row").agg(pl.col("x").sum(), pl.len()), on="row", how="left")
    wanted = wanted.sort("row")
    assert oracles.close_values(found["x_sum_100us"].to_pylist(), wanted["x"].to_list())
    assert found["x_count_100us"].to_pylist() == wanted["len"].fill_null(0).to_list()


def test_a_window_survives_being_built_and_read(tmp_path: Any) -> None:
    store = fs.FeatureStore.create(tmp_path / "store", workers=1)
    right, left = many_rows(300, 6, late=0.2), many_rows(200, 7).select(["t", "k"])
    how: dict[str, Any] = {"key": "k", "time": "t", "duplicates": "keep"}
    store.ingest(OTHER, right, partition_bytes=3000, **how)
    table = store.ingest("rows", left, partition_bytes=2000, **how)
    one = fs.AsOfWindow(OTHER, ["x"], 3, length=True, by="k", available="a")
    table.add(one)
    held = table.read([f"{OTHER}_last_3", f"{OTHER}_last_3_length"], as_="arrow")
    wanted = _outputs(one, table.read(["t", "k"], as_="arrow"), [right])
    cells = np.array(held[f"{OTHER}_last_3"].to_pylist(), np.float32)
    assert np.array_equal(
        cells[:, 2, 0], wanted[f"{OTHER}_last_3[2, 0]"].to_numpy(), equal_nan=True
    )
    assert held[f"{OTHER}_last_3_length"].equals(wanted[f"{OTHER}_last_3_length"])


def test_definitions_survive_json() -> None:
    for one in (
        fs.AsOfAggregate(OTHER, "x", "7d", stats="mean", available="a"),
        fs.AsOfWindow(OTHER, "x", 3, fill_value=math.nan, max_age="7d"),
    ):
        again = transformer_from_spec(one.spec())
        assert again == one
        assert again.fingerprint() == one.fingerprint()


@pytest.mark.parametrize(
    ("kind", "parameters", "match"),
    [
        (fs.AsOfAggregate, {"window": 0}, "positive length"),
        (fs.AsOfAggregate, {"window": "0s"}, "positive length"),
        (fs.AsOfAggregate, {"window": "1d", "lag": "2d"}, "too old before they are known"),
        (fs.AsOfAggregate, {"window": "1d", "stats": ["mode"]}, "use some of"),
        (fs.AsOfAggregate, {"window": "1d", "closed": "no"}, "use one of"),
        (fs.AsOfAggregate, {"window": "1d", "min_count": 0}, "min_count=0"),
        (fs.AsOfWindow, {"n": 0}, "n=0"),
        (fs.AsOfWindow, {"n": True}, "n=True"),
        (fs.AsOfWindow, {"n": 2, "max_age": "1d", "lag": "2d"}, "too old before they are known"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(
    kind: Any, parameters: dict[str, Any], match: str
) -> None:
    with pytest.raises(DefinitionError, match=match):
        kind(OTHER, "x", **parameters)


def test_texts_are_no_numbers() -> None:
    left, right = many_rows(2, 0), many_rows(2, 0)
    right = right.set_column(3, "x", pa.array(["a", "b"]))
    for one in (fs.AsOfAggregate(OTHER, "x", "7d"), fs.AsOfWindow(OTHER, "x", 2)):
        with pytest.raises(SchemaError, match=r"other\.x of type string"):
            one.outputs(_schema(left, right))


def test_of_events_of_one_key_and_time_the_last_that_is_known_counts() -> None:
    def rows(times: list[int], **columns: list[int]) -> pa.Table:
        named: dict[str, Any] = {"t": times, "k": [1] * len(times), **columns}
        stamps: dict[str, Any] = {
            one: pa.array(named[one], pa.timestamp("us")) for one in ("t", "a") if one in named
        }
        return pa.table({**named, **stamps})

    left, right = rows([5, 9]), rows([5, 5, 5], a=[5, 5, 9], x=[1, 2, 3])
    late: dict[str, Any] = {"by": "k", "available": "a"}
    wanted: list[tuple[Transformer, dict[str, list[int]]]] = [
        (fs.AsOfJoin(OTHER, "x", **late), {"x": [2, 3]}),
        (fs.AsOfJoin(OTHER, "x", by="k"), {"x": [3, 3]}),
        (fs.Lookup(OTHER, "x", **late), {"x": [2, 3]}),
        (fs.Lookup(OTHER, "x", by="k"), {"x": [3, 3]}),
        (
            fs.AsOfAggregate(OTHER, "x", "9us", stats=["first", "last", "count"], **late),
            {"x_first_9us": [1, 1], "x_last_9us": [2, 3], "x_count_9us": [2, 3]},
        ),
        (
            fs.AsOfWindow(OTHER, "x", 2, **late),
            {f"{OTHER}_last_2[0, 0]": [1, 2], f"{OTHER}_last_2[1, 0]": [2, 3]},
        ),
    ]
    for one, columns in wanted:
        found = _outputs(one, left, [right])
        assert {name: found[name].to_pylist() for name in columns} == columns, one


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("picked", [1, 300])
def test_rows_that_share_what_is_picked_see_their_own_part_of_it(
    monkeypatch: pytest.MonkeyPatch, picked: int, ordered: bool
) -> None:
    monkeypatch.setattr(event_windows, "PICKED", picked)
    random = np.random.default_rng(3)
    times = np.sort(random.integers(0, 90, 120))
    now = random.integers(0, 99, 150)
    now = np.sort(now) if ordered else now
    delays = np.where(random.random(120) < 0.3, random.integers(0, 40, 120), 0)
    known = Known(times + delays, random.random(120) < 0.1)
    mine, theirs = random.integers(0, 3, 150), random.integers(0, 3, 120)
    seen = event_windows.Seen.of(
        np, (mine, now), (theirs, times), known, event_windows.Span(back=25)
    )
    mixed = seen.mixed(np, seen.start)
    found: dict[int, list[int]] = {}
    for which, places, begin, end in seen.picks(np, mixed, seen.start[mixed]):
        for row, first, stop in zip(which, begin, end, strict=True):
            found[int(seen.order[mixed[row]])] = seen.events.order[places[first:stop]].tolist()
    assert len(found) == len(mixed) > 30
    for row, events in found.items():
        there = (theirs == mine[row]) & (times <= now[row]) & (times >= now[row] - 25)
        there &= (known.times <= now[row]) & ~known.never
        assert events == np.flatnonzero(there).tolist()
