"""Counts, moments and measures against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featurestore.preview.statistics import Counted, association, cramers_v, ranks

NUMBERS = st.one_of(
    st.none(), st.floats(width=32), st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NUMBERS, max_size=12), max_size=5))
def test_counts_and_moments_do_not_depend_on_the_parts(parts: list[list[float | None]]) -> None:
    counted = Counted()
    for one in parts:
        counted.add(pa.chunked_array([pa.array(one, pa.float64())]))
    values = [one for part in parts for one in part]
    found = counted.distribution(pa.chunked_array([pa.array(values, pa.float64())]))
    known = [one for one in values if one is not None]
    finite = [one for one in known if math.isfinite(one)]
    assert found.rows == len(values)
    assert found.nulls == values.count(None)
    assert found.nans == sum(math.isnan(one) for one in known)
    assert found.infinities == sum(math.isinf(one) for one in known)
    assert found.distinct == len(set(finite))
    assert sum(count for _, _, count in found.histogram) == len(finite)
    if not finite:
        assert found.mean is None
        assert found.quantiles == {}
        return
    scale = max(abs(one) for one in finite)
    assert found.mean == pytest.approx(math.fsum(finite) / len(finite), abs=1e-12 * scale)
    assert found.deviation == pytest.approx(float(np.std(finite)), rel=1e-6, abs=1e-7 * scale)
    ordered = sorted(finite)
    assert found.quantiles["0"] == ordered[0]
    assert found.quantiles["0.5"] == ordered[(len(ordered) - 1) // 2]
    assert found.quantiles["1"] == ordered[-1]


PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=30)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_correlations_are_scipys(pairs: list[tuple[float | None, float | None]]) -> None:
    left, right = (
        pa.chunked_array([pa.array(one, pa.float64())]) for one in zip(*pairs, strict=True)
    )
    found, rows = association(left, right)
    kept = [
        (x, y)
        for x, y in pairs
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    assert rows == len(kept)
    x, y = np.array(kept, float).reshape(-1, 2).T
    if len(kept) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        assert math.isnan(found["spearman"])
        return
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    if all(np.ptp(one) > 1e-9 * np.abs(one).max() for one in (x, y)):
        with np.errstate(all="ignore"):
            assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=16), max_size=30))
def test_ranks_are_scipys(values: list[float]) -> None:
    known = np.array([one for one in values if math.isfinite(one)])
    assert ranks(known).tolist() == (stats.rankdata(known) - 1).tolist()


def texts(values: Any) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([None if one is None else str(one) for one in values])])


def test_a_text_that_says_all_and_one_that_says_nothing() -> None:
    draw = np.random.default_rng(0)
    kind = draw.integers(0, 4, 4000)
    noise = draw.integers(0, 40, 4000)
    value = pa.chunked_array([pa.array(kind * 10.0)])
    assert association(texts(kind), value)[0] == {"correlation_ratio": pytest.approx(1.0)}
    assert association(value, texts(kind))[0] == {"correlation_ratio": pytest.approx(1.0)}
    # Not corrected, forty kinds of noise would give 0.1.
    assert association(texts(noise), value)[0]["correlation_ratio"] < 0.06
    assert association(texts(kind), texts(kind * 2))[0] == {"cramers_v": pytest.approx(1.0)}
    assert association(texts(kind), texts(noise))[0]["cramers_v"] < 0.06


def test_cramers_v_is_that_of_the_table() -> None:
    draw = np.random.default_rng(1)
    left = draw.integers(0, 3, 500)
    right = np.where(draw.random(500) < 0.5, left, draw.integers(0, 5, 500))
    table = np.zeros((3, 5))
    np.add.at(table, (left, right), 1)
    chi = stats.chi2_contingency(table, correction=False).statistic
    phi = max(0.0, chi / 500 - 2 * 4 / 499)
    expected = math.sqrt(phi / (min(3 - 4 / 499, 5 - 16 / 499) - 1))
    assert cramers_v(left, right) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [None, None], ["a", "a"], ["a", None]], ids=str)
def test_what_is_constant_or_unknown_has_no_measure(values: list[Any]) -> None:
    column = pa.chunked_array([pa.array(values, pa.string())])
    numbers = pa.chunked_array([pa.array(np.arange(len(values)), pa.int64())])
    assert math.isnan(association(column, numbers)[0]["correlation_ratio"])
    assert math.isnan(association(column, column)[0]["cramers_v"])


@pytest.mark.parametrize(
    "type_",
    [pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.decimal128(5, 2), pa.date32(),
     pa.timestamp("ms"), pa.string(), pa.binary(), pa.list_(pa.int64()), pa.duration("us")],
    ids=str,
)  # fmt: skip
def test_every_type_has_a_distribution(type_: pa.DataType) -> None:
    column = pa.chunked_array([pa.array([None, None], type_), pa.array([], type_)])
    counted = Counted()
    counted.add(column)
    found = counted.distribution(column)
    assert (found.rows, found.nulls, found.distinct, found.null_share) == (2, 2, 0, 1.0)
    if pa.types.is_integer(type_) or pa.types.is_temporal(type_):
        filled = pa.chunked_array([pa.array([3, 1, 2], pa.int64())])
        counted = Counted()
        counted.add(filled)
        assert counted.distribution(filled).quantiles["0.5"] == 2


def test_dates_have_quantiles() -> None:
    column = pa.chunked_array([pa.array([9, 1, 4], pa.int32()).cast(pa.date32())])
    counted = Counted()
    counted.add(column)
    found = counted.distribution(column)
    assert str(found.quantiles["0.5"]) == "1970-01-05"
    assert found.mean is None
