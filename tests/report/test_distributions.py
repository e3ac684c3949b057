"""Distributions of sampled values, against plain counts, for every type a column can have."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.report.distributions import (
    BINS,
    CATEGORIES,
    TEXT,
    compact,
    distribution,
    no_distribution,
)
from featurestore.report.drift import FEWEST
from featurestore.report.facts import ColumnValues
from featurestore.schema import Field

floats = st.lists(st.none() | st.floats(width=64), max_size=40)


def of(type_: pa.DataType, *parts: list[Any], drifts: bool = True) -> ColumnValues:
    columns = [compact(pa.chunked_array([pa.array(part, type_)])) for part in parts]
    found = distribution(type_, columns, drifts)
    json.dumps(found.to_json(), allow_nan=False)
    return found


@settings(deadline=None)
@given(floats, floats)
def test_every_value_is_counted_once_whatever_it_is(first: list[Any], second: list[Any]) -> None:
    found = of(pa.float64(), first, second)
    for part, values in zip(found.parts, (first, second), strict=True):
        finite = [one for one in values if one is not None and math.isfinite(one)]
        assert part.rows == len(values)
        assert part.nulls == sum(one is None for one in values)
        assert part.odd == len(values) - part.nulls - len(finite)
        assert sum(part.counts) == len(finite)
        assert bool(part.quantiles) == bool(finite)
    bars = len(found.labels) if found.labels else max(0, len(found.edges) - 1)
    assert all(len(one.counts) == bars for one in found.parts)
    assert list(found.edges) == sorted(set(found.edges))
    assert found.distinct == len(
        {one for one in first + second if one is not None and math.isfinite(one)}
    )


def test_numbers_are_binned_over_their_middle_and_outliers_are_in_the_outer_bins() -> None:
    values = [*np.linspace(0, 1, 1000), 1e12]
    found = of(pa.float64(), values)
    assert (found.form, len(found.edges)) == ("numbers", BINS + 1)
    assert found.edges[0] == pytest.approx(0.005, abs=0.002)
    assert found.edges[-1] == pytest.approx(0.995, abs=0.002)
    (part,) = found.parts
    assert min(part.counts) > 40
    assert part.quantiles[0] == 0
    assert part.quantiles[-1] == 1e12
    assert part.quantiles[3] == pytest.approx(0.5, abs=0.01)
    assert part.psi is None
    assert part.ks is None


def test_numbers_near_the_largest_there_is_do_no_harm() -> None:
    found = of(pa.float64(), [one * 0.0346e308 for one in range(-49, 50, 2)])
    assert sum(found.parts[0].counts) == 50
    assert found.parts[0].deviation is None


def test_few_numbers_are_bars_of_their_own_and_drift_as_such() -> None:
    found = of(pa.int32(), [1] * 200 + [2] * 200, [1] * 320 + [2] * 80, [None] * 3)
    assert found.labels == ("1", "2")
    assert [one.counts for one in found.parts] == [(200, 200), (320, 80), (0, 0)]
    assert found.parts[1].psi == pytest.approx(0.415888, abs=1e-6)
    assert found.parts[1].ks == 0.3
    assert found.parts[0].psi is None
    assert found.parts[2].psi is None


def test_the_first_part_with_values_is_what_others_are_compared_with() -> None:
    found = of(pa.float64(), [None, None], [*range(400)], [*range(200, 600)])
    assert [one.psi is None for one in found.parts] == [True, True, False]
    assert found.parts[2].ks == 0.5
    apart = [0.0] * FEWEST, [1.0] * FEWEST
    assert all(one.psi is None for one in of(pa.float64(), *apart, drifts=False).parts)


def test_of_too_few_values_no_drift_is_told() -> None:
    for type_, first, second in ((pa.float64(), 0.0, 1.0), (pa.string(), "a", "b")):
        for left, right in ((FEWEST, FEWEST), (FEWEST - 1, FEWEST), (FEWEST, FEWEST - 1)):
            found = of(type_, [first] * left, [second] * right).parts[1]
            assert (found.psi is not None) == (left == right)
            assert found.ks is None or left == right


def test_texts_are_counted_and_the_rare_ones_together() -> None:
    labels = [f"c{one:02}" for one in range(30) for _ in range(40 - one)]
    found = of(pa.string(), labels, [f"new{one % 25}" for one in range(50)] + ["c00"] * 150, [None])
    assert (found.form, found.others, found.distinct) == ("categories", True, 55)
    assert found.labels == tuple(f"c{one:02}" for one in range(CATEGORIES - 1))
    assert found.parts[0].counts[0] == 40
    assert found.parts[1].counts == (150, *[0] * (CATEGORIES - 2), 50)
    assert sum(found.parts[0].counts) == len(labels)
    assert (found.parts[1].psi or 0) > 1
    assert (found.parts[2].rows, found.parts[2].nulls, found.parts[2].psi) == (1, 1, None)


def test_a_text_of_any_length_is_kept_short() -> None:
    column = compact(pa.chunked_array([["é" * 1_000_000, "short", None]]))
    assert column.to_pylist() == ["é" * TEXT, "short", None]
    assert column.nbytes < 1000


def test_times_are_seconds_since_1970() -> None:
    days = [dt.date(2024, 1, 1) + dt.timedelta(one) for one in range(100)]
    found = of(pa.date32(), days)
    assert found.form == "times"
    assert found.parts[0].quantiles[0] == 1_704_067_200
    moments = [dt.datetime(2024, 1, 1) + dt.timedelta(hours=one) for one in range(100)]  # noqa: DTZ001
    for unit in ("s", "ms", "us", "ns"):
        assert of(pa.timestamp(unit), moments).parts[0].quantiles[0] == 1_704_067_200
    assert of(pa.duration("ms"), [dt.timedelta(seconds=2)]).labels == ("2",)
    assert of(pa.time32("s"), [dt.time(0, 1)]).labels == ("60",)
    assert of(pa.time64("us"), [dt.time(0, 1)]).labels == ("60",)


@pytest.mark.parametrize(
    ("type_", "values", "labels"),
    [
        (pa.bool_(), [True, False, True, None], ("true", "false")),
        (pa.uint64(), [2**64 - 1], ("1.84467e+19",)),
        (pa.decimal128(10, 2), [1, 2], ("1", "2")),
        (pa.float16(), [np.float16(0.5)], ("0.5",)),
        (pa.string(), ["", "</script>"], ("", "</script>")),
    ],
    ids=str,
)
def test_every_scalar_type_has_a_distribution(
    type_: pa.DataType, values: list[Any], labels: tuple[str, ...]
) -> None:
    assert no_distribution(Field("x", type_)) == ""
    assert of(type_, values).labels == labels


def test_nothing_at_all_is_no_error() -> None:
    for type_ in (pa.float64(), pa.string(), pa.timestamp("us")):
        for parts in ([], [[]], [[], []], [[None]]):
            found = of(type_, *parts)
            assert len(found.parts) == len(parts)
            assert found.distinct == 0


def test_tensors_lists_and_bytes_have_none_and_say_so() -> None:
    for field in (
        Field("x", pa.float32(), (3,)),
        Field("x", pa.list_(pa.int64())),
        Field("x", pa.binary()),
    ):
        assert "no distribution" in no_distribution(field)
