"""What expectations count, against brute force, however rows are cut."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import FormatError, InvalidInputError
from featurestore.expectations.drift import (
    bins_of,
    largest_difference,
    population_stability,
)
from featurestore.expectations.expectation import ColumnExpectation, Expectation
from featurestore.expectations.kinds import expectation_from_json
from featurestore.expectations.tally import EXAMPLES, Tally, combined
from featurestore.fingerprint import canonical_json
from featurestore.schema import Field, TableSchema

VALUES = st.lists(
    st.one_of(
        st.none(),
        st.sampled_from([0.0, -0.0, 1.0, 2.5, math.nan, math.inf, -math.inf]),
        st.floats(width=32),
    ),
    max_size=30,
)
WHOLE = st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=30)


def column(values: list[Any], type_: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, type_)])


def counted(
    one: ColumnExpectation, values: list[Any], type_: pa.DataType, cuts: list[int]
) -> Tally:
    """Count values in partitions, as cut, each in two slices."""
    bounds = [0, *sorted(min(at, len(values)) for at in cuts), len(values)]
    tallies = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        half = (stop - start) // 2
        for begin, end in ((start, start + half), (start + half, stop)):
            part = column(values[begin:end], type_)
            tallies.append(one.summarize(part, f"p{number}", begin - start))
    return combined(tallies)


def assert_counts(
    one: ColumnExpectation,
    values: list[Any],
    type_: pa.DataType,
    cuts: list[int],
    wrong: list[bool],
) -> None:
    tally = counted(one, values, type_, cuts)
    whole = counted(one, values, type_, [])
    assert (tally.rows, tally.failing) == (len(values), sum(wrong))
    assert (tally.lowest, tally.highest, tally.bins) == (whole.lowest, whole.highest, whole.bins)
    assert sum(count for _, count in tally.worst) == sum(wrong)
    bounds = [0, *sorted(min(at, len(values)) for at in cuts), len(values)]
    places = [at for at, flag in enumerate(wrong) if flag][:EXAMPLES]
    found = [bounds[int(one.partition[1:])] + one.row for one in tally.examples]
    assert found == places
    assert bool(one.judge(tally)[2]) == (bool(values) and sum(wrong) / len(values) > one.at_most)  # type: ignore[attr-defined]


@settings(max_examples=80, deadline=None)
@given(VALUES, st.lists(st.integers(0, 30), max_size=3), st.sampled_from([0.0, 0.3]))
def test_ranges_of_doubles(values: list[Any], cuts: list[int], most: float) -> None:
    one = fs.ExpectRange("x", low=-1.5, high=2, at_most=most)
    wrong = [value is not None and not -1.5 <= value <= 2 for value in values]
    assert_counts(one, values, pa.float64(), cuts, wrong)


@settings(max_examples=80, deadline=None)
@given(
    WHOLE, st.lists(st.integers(0, 30), max_size=3),
    st.one_of(st.none(), st.integers(-(2**64), 2**64), st.floats(-10, 10)),
    st.one_of(st.none(), st.integers(-(2**64), 2**64), st.floats(-10, 10)),
)  # fmt: skip
def test_ranges_of_whole_numbers_are_exact(
    values: list[Any], cuts: list[int], low: float | None, high: float | None
) -> None:
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return
    one = fs.ExpectRange("x", low=low, high=high)
    wrong = [
        value is not None
        and ((low is not None and value < low) or (high is not None and value > high))
        for value in values
    ]
    assert_counts(one, values, pa.int64(), cuts, wrong)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.lists(st.integers(0, 30), max_size=3))
def test_missing_values(values: list[Any], cuts: list[int]) -> None:
    wrong = [value is None or math.isnan(value) for value in values]
    assert_counts(fs.ExpectNulls("x", at_most=0.3), values, pa.float64(), cuts, wrong)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "", "ä"])), max_size=20),
    st.lists(st.integers(0, 20), max_size=3),
)
def test_allowed_texts(values: list[Any], cuts: list[int]) -> None:
    wrong = [value is not None and value not in ("a", "ä") for value in values]
    assert_counts(fs.ExpectValues("x", ["a", "ä"]), values, pa.string(), cuts, wrong)


@settings(max_examples=50, deadline=None)
@given(WHOLE, st.lists(st.integers(0, 20), max_size=3))
def test_allowed_numbers(values: list[Any], cuts: list[int]) -> None:
    allowed = [0, -(2**63), 2**70, *values[:2]]
    one = fs.ExpectValues("x", [value for value in allowed if value is not None])
    wrong = [value is not None and value not in allowed for value in values]
    assert_counts(one, values, pa.int64(), cuts, wrong)


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES, VALUES)
def test_tallies_are_a_monoid(one: list[Any], two: list[Any], three: list[Any]) -> None:
    drift = fs.ExpectDrift("x", tag="t", edges=[-1.0, 0.0, 2.0], shares=[0.2] * 5)
    for expectation in (drift, fs.ExpectRange("x", low=0)):
        a, b, c = (expectation.summarize(column(v, pa.float64()), "p") for v in (one, two, three))
        assert a.combine(b).combine(c) == a.combine(b.combine(c))
        assert a.combine(Tally()) == a == Tally().combine(a)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.lists(st.floats(-3, 3), min_size=1, max_size=5, unique=True))
def test_bins(values: list[Any], edges: list[float]) -> None:
    edges = sorted(set(edges))
    found = bins_of(column(values, pa.float64()), edges)
    known = [one for one in values if one is not None and not math.isnan(one)]
    lower = [-math.inf, *edges]
    expected = [
        sum((low < one or low == -math.inf) and one <= high for one in known)
        for low, high in zip(lower, [*edges, math.inf], strict=True)
    ]
    assert list(found) == [*expected, len(values) - len(known)]


def test_measures_of_drift_by_hand() -> None:
    p, q = np.array([0.5, 0.4, 0.1]), np.array([0.2, 0.7, 0.1])
    by_hand = (0.2 - 0.5) * math.log(0.2 / 0.5) + (0.7 - 0.4) * math.log(0.7 / 0.4)
    assert population_stability(p, q) == pytest.approx(by_hand)
    assert population_stability(p, p) == 0
    assert largest_difference(p, q) == pytest.approx(0.5 / 0.9 - 0.2 / 0.9)
    none = np.array([0.0, 0.0, 1.0])
    assert largest_difference(p, none) == 1.0
    assert largest_difference(none, none) == 0.0


def test_an_empty_bin_has_a_finite_measure() -> None:
    assert 0 < population_stability(np.array([0.5, 0.5]), np.array([1.0, 0.0])) < 10


@pytest.mark.parametrize(
    "one",
    [
        fs.ExpectRange("x", low=0, at_most=0.1, on_failure="warn"),
        fs.ExpectNulls("x"),
        fs.ExpectValues("x", ["a", "ä"]),
        fs.ExpectUnique(["x", "y"]),
        fs.ExpectFresh("36h"),
        fs.ExpectDrift("x", tag="t", ks=0.1, edges=[0.1, 0.2], shares=[0.5, 0.25, 0.25, 0.0]),
    ],
    ids=lambda one: one.kind,
)
def test_they_are_plain_json(one: Expectation) -> None:
    assert expectation_from_json(json.loads(canonical_json(one.to_json()))) == one
    assert type(one).__name__ in str(one)
    newer = {**one.to_json(), "stranger": 1}
    with pytest.raises(FormatError, match="newer"):
        expectation_from_json(newer)


def test_an_unknown_kind_is_of_a_newer_version() -> None:
    with pytest.raises(FormatError, match="newer"):
        expectation_from_json({"kind": "magic"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: fs.ExpectRange("x"),
        lambda: fs.ExpectRange("x", low=2, high=1),
        lambda: fs.ExpectRange("x", low=math.nan),
        lambda: fs.ExpectRange("x", high=math.inf),
        lambda: fs.ExpectRange("x", low="0"),
        lambda: fs.ExpectRange("x", low=0, at_most=2),
        lambda: fs.ExpectNulls("x", at_most=-0.1),
        lambda: fs.ExpectNulls("x", on_failure="shout"),
        lambda: fs.ExpectValues("x", []),
        lambda: fs.ExpectValues("x", [None]),
        lambda: fs.ExpectValues("x", "EWR"),
        lambda: fs.ExpectValues("x", 3),  # type: ignore[arg-type]
        lambda: fs.ExpectValues("x", None),  # type: ignore[arg-type]
        lambda: fs.ExpectUnique([]),
        lambda: fs.ExpectUnique(["a", "a"]),
        lambda: fs.ExpectFresh("a while"),
        lambda: fs.ExpectDrift("x"),
        lambda: fs.ExpectDrift("x", tag="t", psi=None),
        lambda: fs.ExpectDrift("x", tag="t", psi=-1),
        lambda: fs.ExpectDrift("x", tag="t", psi=math.inf),
        lambda: fs.ExpectDrift("x", tag="t", least="20"),  # type: ignore[arg-type]
        lambda: fs.ExpectDrift("x", tag="t", least=-1),
    ],
)
def test_what_cannot_be_expected_is_refused(make: Any) -> None:
    with pytest.raises(InvalidInputError):
        make()


def test_numbers_of_numpy_are_taken_as_python_has_them() -> None:
    assert fs.ExpectRange("x", low=np.int64(3), high=np.float32(4)) == fs.ExpectRange("x", 3, 4)
    assert fs.ExpectValues("x", np.array([1, 2])) == fs.ExpectValues("x", [1, 2])
    assert type(fs.ExpectDrift("x", tag="t", least=np.int64(5)).least) is int


SCHEMA = TableSchema(
    (
        Field("text", pa.string()), Field("number", pa.int8()), Field("flag", pa.bool_()),
        Field("list", pa.list_(pa.int64())), Field("tensor", pa.float32(), (3,)),
        Field("when", pa.timestamp("ms")), Field("half", pa.float16()),
        Field("money", pa.decimal128(9, 2)),
    ),
    (), None,
)  # fmt: skip


@pytest.mark.parametrize(
    "one",
    [
        fs.ExpectRange("text", low=0), fs.ExpectRange("when", low=0), fs.ExpectRange("flag", low=0),
        fs.ExpectValues("number", ["a"]), fs.ExpectValues("number", [True]),
        fs.ExpectValues("flag", [1]), fs.ExpectValues("text", [1]), fs.ExpectValues("half", [1]),
        fs.ExpectNulls("list"), fs.ExpectNulls("tensor"), fs.ExpectUnique("tensor"),
        fs.ExpectNulls("nowhere"), fs.ExpectUnique(["text", "nowhere"]), fs.ExpectFresh("1d"),
        fs.ExpectDrift("text", tag="t"),
    ],
    ids=str,
)  # fmt: skip
def test_types_that_cannot_be_judged_are_refused(one: Expectation) -> None:
    with pytest.raises(InvalidInputError):
        one.check(SCHEMA)


@pytest.mark.parametrize(
    ("one", "type_", "values", "failing"),
    [
        (fs.ExpectRange("half", low=0), pa.float16(), [np.float16(1), np.float16(-1), None], 1),
        (fs.ExpectRange("money", high=2), pa.decimal128(9, 2), [1, 3, None], 1),
        (fs.ExpectRange("number", low=-500), pa.int8(), [1, -100], 0),
        (fs.ExpectRange("number", low=500), pa.int8(), [1, None, 3], 2),
        (fs.ExpectValues("number", [1, 500]), pa.int8(), [1, None, 3], 1),
        (fs.ExpectValues("flag", [True]), pa.bool_(), [True, False, None], 1),
        (fs.ExpectNulls("half"), pa.float16(), [np.float16(math.nan), None, np.float16(0)], 2),
        (fs.ExpectNulls("text"), pa.string(), ["a", None], 1),
        (fs.ExpectNulls("when"), pa.timestamp("ms"), [3, None], 1),
    ],
    ids=str,
)
def test_every_type_that_can_be_judged(
    one: ColumnExpectation, type_: pa.DataType, values: list[Any], failing: int
) -> None:
    one.check(SCHEMA)
    assert one.summarize(column(values, type_), "p").failing == failing
    assert one.summarize(column([], type_), "p") == Tally()
