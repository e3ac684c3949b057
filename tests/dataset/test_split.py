"""Every row is in exactly one part or in an embargo, whatever the partitioning, order or appends."""

from __future__ import annotations

import datetime as dt
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dataset.selection import (
    HASH_SPACE,
    HashRange,
    Selection,
    TimeRange,
    condition,
)
from featurestore.dataset.split import HashSplit, Split, TimeSplit
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import (
    DefinitionError,
    InvalidInputError,
    NotFoundError,
    NotPartitionIndependentError,
    SchemaError,
)
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition
from featurestore.units import Duration

ENGINE = PolarsEngine()
INTEGER = TableSchema((Field("k", pa.string()), Field("t", pa.int64())), ("k",), "t")
times = st.integers(-20, 20)


def stamped(type_: pa.DataType) -> TableSchema:
    return TableSchema((Field("t", type_),), (), "t")


def rows(ts: list[int], keys: list[str | None] | None = None) -> Partition:
    columns = {"k": pa.array(keys or ["a"] * len(ts), pa.string()), "t": pa.array(ts, pa.int64())}
    return Partition(ENGINE.from_arrow(pa.table(columns)), INTEGER)


def masks(split: Split, partition: Partition) -> dict[str, list[bool]]:
    return {
        part: split.rows(part, partition.schema).mask(partition, ENGINE).tolist()
        for part in split.parts()
    }


# --- splits by time -----------------------------------------------------------------------------------


@given(st.lists(times, max_size=30), times, st.integers(1, 20), st.integers(0, 25), st.booleans())
@settings(deadline=None, max_examples=200)
def test_time_split_against_its_definition(
    ts: list[int], valid: int, gap: int, embargo: int, with_test: bool
) -> None:
    test = valid + gap if with_test else None
    split = TimeSplit(valid=valid, test=test, embargo=embargo)
    if test is not None and test - embargo <= valid:
        with pytest.raises(DefinitionError, match="leaves no rows"):
            split.rows("train", INTEGER)
        return
    found = masks(split, rows(ts))
    assert found["train"] == [t < valid - embargo for t in ts]
    stop = float("inf") if test is None else test - embargo
    assert found["valid"] == [valid <= t < stop for t in ts]
    if test is not None:
        assert found["test"] == [t >= test for t in ts]
    for i, t in enumerate(ts):
        in_parts = sum(mask[i] for mask in found.values())
        embargoed = any(b - embargo <= t < b for b in (valid, test) if b is not None)
        assert in_parts == (0 if embargoed else 1)


def test_boundary_row_belongs_to_the_later_part() -> None:
    found = masks(TimeSplit(valid=10, test=20), rows([9, 10, 19, 20]))
    assert found == {
        "train": [True, False, False, False],
        "valid": [False, True, True, False],
        "test": [False, False, False, True],
    }


def test_embargo_ends_exactly_at_the_boundary() -> None:
    found = masks(TimeSplit(valid=10, embargo=3), rows([6, 7, 9, 10]))
    assert found == {"train": [True, False, False, False], "valid": [False, False, False, True]}


@pytest.mark.parametrize(
    "boundary",
    [
        "2013-10-01",
        "2013-10-01T00:00:00",
        dt.date(2013, 10, 1),
        dt.datetime(2013, 10, 1),  # noqa: DTZ001 - the column has no zone
    ],
)
@pytest.mark.parametrize("type_", [pa.timestamp("ms"), pa.timestamp("ns"), pa.date32()])
def test_ways_to_write_a_boundary(boundary: object, type_: pa.DataType) -> None:
    split = TimeSplit(valid=boundary, embargo="1d")  # type: ignore[arg-type]
    steps = {"ms": 10**3, "ns": 10**9, "us": 10**6}[stamped(type_).time_unit or ""]
    october = 1380585600 * steps
    assert split.rows("valid", stamped(type_)).times == (TimeRange(october, None),)
    assert split.rows("train", stamped(type_)).times == (TimeRange(None, october - 86400 * steps),)
    assert split == TimeSplit(valid="2013-10-01T00:00:00", embargo=Duration.parse("24h"))


def test_offsets_of_boundaries_count() -> None:
    zoned = stamped(pa.timestamp("us", tz="America/New_York"))
    split = TimeSplit(valid="2013-10-01T00:00:00-04:00")
    assert split.rows("valid", zoned).times[0].lower == 1380600000 * 10**6
    with pytest.raises(InvalidInputError, match="no time zone"):
        TimeSplit(valid="2013-10-01").rows("valid", zoned)
    with pytest.raises(InvalidInputError, match="time zone"):
        split.rows("valid", stamped(pa.timestamp("us")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid": 5, "test": 5}, "not after"),
        ({"valid": 5, "test": 4}, "not after"),
        ({"valid": 5, "test": "2013-01-01"}, "different kinds"),
        ({"valid": "yesterday"}, "not a boundary"),
        ({"valid": None}, "not a boundary"),
        ({"valid": True}, "not a boundary"),
        ({"valid": 1.5}, "not a boundary"),
        ({"valid": "2013-01-01T00:00:00.1234567"}, "not a boundary"),
        ({"valid": 5, "embargo": -1}, "not a length"),
        ({"valid": 5, "embargo": True}, "not a length"),
    ],
)
def test_time_split_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TimeSplit(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("split", "schema", "message"),
    [
        (TimeSplit(valid="2013-02-01", test="2013-01-01"), stamped(pa.date32()), "not after"),
        (TimeSplit(valid=5), stamped(pa.date32()), "not a time"),
        (TimeSplit(valid="2013-02-01"), INTEGER, "integer"),
        (TimeSplit(valid=5, embargo="1d"), INTEGER, "does not measure"),
        (TimeSplit(valid="2013-02-01", embargo=5), stamped(pa.date32()), "does not measure"),
        (TimeSplit(valid="2013-02-01", embargo="5us"), stamped(pa.timestamp("ms")), "whole number"),
        (TimeSplit(valid=5), TableSchema((Field("x", pa.int64()),)), "no"),
        (HashSplit(), stamped(pa.date32()), "no key"),
        (HashSplit(by="nobody"), INTEGER, "no column"),
    ],
)
def test_split_that_does_not_fit_the_table(split: Split, schema: TableSchema, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        split.rows("train", schema)


def test_unknown_part() -> None:
    with pytest.raises(NotFoundError, match="no part 'test'"):
        TimeSplit(valid=5).rows("test", INTEGER)
    with pytest.raises(NotFoundError, match="no part 'valid'"):
        HashSplit(valid=0.0, test=0.5).rows("valid", INTEGER)


# --- splits by entity ---------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([*"abcdefgh", "é", "", None]), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([0.1, 0.5]),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_hash_split_keeps_entities_whole(
    keys: list[str | None], valid: float, test: float, seed: int, random: object
) -> None:
    split = HashSplit(valid=valid, test=test, seed=seed)
    found = masks(split, rows(list(range(len(keys))), keys))
    parts: dict[str | None, str] = {}
    for i, key in enumerate(keys):
        mine = [part for part, mask in found.items() if mask[i]]
        assert len(mine) == 1
        assert parts.setdefault(key, mine[0]) == mine[0]
    for key in set(keys):  # alone, in another row, at another time: the same part
        alone = masks(split, rows([99], [key]))
        assert alone[parts[key]] == [True]


def test_hash_split_vectors_never_change() -> None:
    keys = [f"entity-{i}" for i in range(24)]
    found = masks(HashSplit(valid=0.25, test=0.25), rows(list(range(24)), keys))
    text = "".join(
        next(part[1] for part, mask in found.items() if mask[i]) for i in range(len(keys))
    )
    assert text == "arrrerrarrrerarrreararre"


def test_shares_are_about_right_and_seeds_deal_anew() -> None:
    keys = [str(i) for i in range(20_000)]
    many = rows(list(range(20_000)), keys)
    one, other = (masks(HashSplit(valid=0.1, test=0.2, seed=seed), many) for seed in (0, 1))
    assert abs(np.mean(one["valid"]) - 0.1) < 0.01
    assert abs(np.mean(one["test"]) - 0.2) < 0.015
    both = np.mean(np.array(one["valid"]) & np.array(other["valid"]))
    assert both < 0.02


def test_validation_part_stays_when_the_test_share_changes() -> None:
    many = rows(list(range(500)), [str(i) for i in range(500)])
    one, other = (masks(HashSplit(valid=0.2, test=test), many) for test in (0.1, 0.4))
    assert one["valid"] == other["valid"]
    assert all(b for a, b in zip(one["test"], other["test"], strict=True) if a)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid": 0.5, "test": 0.5}, "sum|together"),
        ({"valid": 0.0, "test": 0.0}, "together"),
        ({"valid": -0.1}, "not a share"),
        ({"valid": 1}, "not a share"),
        ({"valid": float("nan")}, "not a share"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"by": []}, "by="),
        ({"by": ["k", "k"]}, "by="),
    ],
)
def test_hash_split_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        HashSplit(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "split",
    [
        TimeSplit(valid="2013-10-01", test="2013-11-15", embargo="1d"),
        TimeSplit(valid=3),
        TimeSplit(valid=3, test=9, embargo=2),
        HashSplit(),
        HashSplit(valid=0.0, test=0.3, by=["k", "t"], seed=7),
    ],
)
def test_specification_round_trip(split: Split) -> None:
    spec: dict[str, Any] = split.spec()
    again = type(split)(**spec["params"])
    assert spec["kind"] == type(split).__name__
    assert again == split
    assert again.fingerprint == split.fingerprint
    assert split.folds() == (split,)


# --- selections ---------------------------------------------------------------------------------------

bounds = st.one_of(st.none(), times)


@st.composite
def time_ranges(draw: st.DrawFn) -> tuple[TimeRange, ...]:
    cuts = sorted(draw(st.lists(times, min_size=2, max_size=6, unique=True)))
    cuts = cuts[: len(cuts) // 2 * 2]
    ranges = [TimeRange(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    if draw(st.booleans()):
        ranges[0] = TimeRange(None, ranges[0].upper)
    if draw(st.booleans()):
        ranges[-1] = TimeRange(ranges[-1].lower, None)
    return tuple(ranges) if draw(st.booleans()) else (TimeRange(draw(bounds), None),)


@given(time_ranges(), st.lists(times, min_size=1, max_size=12))
@settings(deadline=None, max_examples=200)
def test_covers_and_within_never_lie(ranges: tuple[TimeRange, ...], ts: list[int]) -> None:
    selection = Selection(ranges)
    partition = rows(sorted(ts))
    mask = selection.mask(partition, ENGINE)
    cover = selection.covers(min(ts), max(ts))
    if cover == "all":
        assert mask.all()
    if cover == "none":
        assert not mask.any()
    else:
        clipped = selection.within(min(ts), max(ts))
        assert (clipped.mask(partition, ENGINE) == mask).all()
        assert (cover == "all") == clipped.everything or not mask.any()
    assert Selection.from_json(selection.to_json()) == selection


def test_whole_partitions_share_one_simplest_selection() -> None:
    early, late = Selection((TimeRange(None, 50),)), Selection((TimeRange(None, 70),))
    assert early.within(0, 40).fingerprint == late.within(0, 40).fingerprint
    assert early.within(40, 60).fingerprint != late.within(40, 80).fingerprint
    assert early.within(40, 60) == Selection((TimeRange(30, 50),)).within(40, 60)


def test_covers_of_conditions_and_empty_selections() -> None:
    where = condition(nw.col("t") > 3, INTEGER)
    assert Selection(where=where).covers(0, 9) == "some"
    assert Selection((TimeRange(None, 0),), where=where).covers(0, 9) == "none"
    assert Selection(()).covers(0, 9) == "none"
    assert Selection(hashed=HashRange(("k",), 0, 5, 5)).covers(0, 9) == "none"
    assert Selection(hashed=HashRange(("k",), 0, 0, HASH_SPACE)).covers(0, 9) == "some"
    assert Selection().covers(None, None) == "all"
    assert Selection((TimeRange(3, None),)).covers(None, None) == "some"


def test_null_condition_counts_as_false() -> None:
    schema = TableSchema((Field("x", pa.float64()),))
    table = pa.table({"x": pa.array([1.0, None, -1.0, float("nan")])})
    selection = Selection(where=condition(~(nw.col("x") > 0), schema))
    mask = selection.mask(Partition(ENGINE.from_arrow(table), schema), ENGINE)
    assert mask.tolist()[:3] == [False, False, True]
    assert selection.columns(schema) == ("x",)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        (nw.col("t") + 1, DefinitionError),
        (nw.col("t") > nw.col("t").mean(), NotPartitionIndependentError),
        (nw.lit(True), DefinitionError),
        (nw.col("nobody") > 1, SchemaError),
        ("t > 1", DefinitionError),
    ],
)
def test_what_is_no_condition(where: nw.Expr, error: type[Exception]) -> None:
    with pytest.raises(error):
        condition(where, INTEGER)


def test_overlapping_ranges_are_refused() -> None:
    with pytest.raises(DefinitionError, match="overlap"):
        Selection((TimeRange(0, 5), TimeRange(4, 9)))
    with pytest.raises(DefinitionError, match="overlap"):
        Selection((TimeRange(0, None), TimeRange(4, 9)))


def test_hash_range_bounds() -> None:
    with pytest.raises(DefinitionError, match="hash range"):
        HashRange((), 0, 0, 1)
    with pytest.raises(DefinitionError, match="hash range"):
        HashRange(("k",), 0, 5, HASH_SPACE + 1)
    with pytest.raises(DefinitionError, match="hash range"):
        HashRange(("k",), 0, 5, -1)
