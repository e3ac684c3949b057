"""Sums of groups: against fractions, in any order and any cut."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.exact_folds import EXACT_SUM, FINITE, exact_numbers
from featurestore.engines.exact_sums import (
    MOST_ROWS,
    Sums,
    check_rows,
    deviation,
    merge_runs,
    ratio,
    sum_groups,
)
from featurestore.engines.time_trees import Parts, TimeTree
from featurestore.errors import LimitError

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LIKE_SIZED = st.floats(-1e9, 1e9, allow_subnormal=False).filter(
    lambda one: one == 0 or abs(one) > 1e-3
)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "float64": LIKE_SIZED,
    "float32": st.floats(-1e6, 1e6, width=32).filter(lambda one: one == 0 or abs(one) > 1e-2),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "int8": st.integers(-128, 127),
    "bool": st.booleans(),
}


def one_group(values: Any, *, squares: bool = False) -> Sums:
    array = np.asarray(values)
    return sum_groups(np, array, np.zeros(len(array), np.int64), 1, squares=squares)


def together(*parts: Sums) -> Sums:
    tops = np.concatenate([one.top for one in parts])
    limbs = np.concatenate([one.limbs for one in parts], axis=1)
    return merge_runs(Sums(tops, limbs), np.zeros(1, np.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_deviations_are_those_of_fractions(kind: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(KINDS[kind], min_size=2, max_size=12))
    def check(values: list[Any]) -> None:
        array = np.array(values, dtype=kind)
        exact = [Fraction(one.item()) for one in array]
        count = np.array([float(len(exact))])
        mean = sum(exact, Fraction(0)) / len(exact)
        assert ratio(one_group(array), count)[0] == pytest.approx(float(mean), rel=2**-52)
        spread = sum(((one - mean) ** 2 for one in exact), Fraction(0)) / (len(exact) - 1)
        found = deviation(one_group(array), one_group(array, squares=True), count)[0]
        largest = float(max(map(abs, exact)))
        assert math.isclose(found, math.sqrt(spread), rel_tol=1e-9, abs_tol=largest * 2**-48)

    check()


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOATS, max_size=12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_the_same_bits_in_any_order_and_any_cut(values: list[float], at: int, random: Any) -> None:
    whole = one_group(np.array(values, float))
    cut = together(one_group(np.array(values[:at], float)), one_group(np.array(values[at:], float)))
    random.shuffle(values)
    for other in (cut, one_group(np.array(values, float))):
        assert np.array_equal(other.top, whole.top)
        assert np.array_equal(other.limbs, whole.limbs)


def test_runs_leave_out_what_is_not_chosen() -> None:
    parts = [one_group([0.0]), one_group([1.0]), one_group([2.0**70])]
    sums = Sums(np.concatenate([p.top for p in parts]), np.concatenate([p.limbs for p in parts], 1))
    begins = np.array([0, 1])
    for chosen, wanted in (([1, 1, 1], [0, 1 + 2.0**70]), ([1, 1, 0], [0, 1]), ([1, 0, 0], [0, 0])):
        merged = merge_runs(sums, begins, np.array(chosen, dtype=bool))
        assert ratio(merged, np.ones(2)).tolist() == wanted


def test_what_floats_would_lose_is_kept() -> None:
    assert ratio(one_group([1e16, 1.0, -1e16]), np.ones(1)).tolist() == [1.0]
    assert ratio(one_group([1.7e308] * 5), np.array([5.0])).tolist() == [1.7e308]
    assert ratio(one_group([5e-324] * 2), np.array([2.0])).tolist() == [5e-324]
    equal = one_group([0.1] * 1001), one_group([0.1] * 1001, squares=True)
    assert deviation(*equal, np.array([1001.0])).tolist() == [0.0]


def leaves_of(values: list[float]) -> Parts:
    array = np.array(values, np.float64)
    return EXACT_SUM.leaves(np, array, np.ones(len(array), np.bool_), array)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(), max_size=8), max_size=4))
def test_sums_before_a_row_are_those_of_the_rows_before_it(groups: list[list[float]]) -> None:
    values = [one for some in groups for one in some]
    begin = np.array(
        [sum(map(len, groups[:i])) for i, some in enumerate(groups) for _ in some], int
    )
    found = EXACT_SUM.scan(np, leaves_of(values), begin)  # type: ignore[misc]
    wanted = [
        one_group([one for one in some[:at] if math.isfinite(one)])
        for some in groups
        for at in range(len(some))
    ]
    assert [one.item() for one in found[0]] == [one.top[0].item() for one in wanted]
    limbs = np.stack(found[1:]).T.tolist()
    assert limbs == [one.limbs[:, 0].tolist() for one in wanted]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=12), st.data())
def test_sums_of_runs_are_the_same_in_any_tree(values: list[float], data: st.DataObject) -> None:
    level = np.array([0, *data.draw(st.permutations(range(1, len(values))))], np.uint8)
    found = TimeTree.of(np, level).fold(leaves_of(values), EXACT_SUM.merge)
    exact = one_group([one for one in values if math.isfinite(one)])
    assert [part[0].item() for part in found] == [exact.top[0], *exact.limbs[:, 0]]


@settings(max_examples=100, deadline=None)
@given(st.lists(LIKE_SIZED, min_size=1, max_size=12))
def test_sums_are_rounded_once(values: list[float]) -> None:
    sums = one_group(values)
    found = exact_numbers(np, (sums.top, *sums.limbs))
    assert found.tolist() == [math.fsum(values)]


def test_only_finite_values_are_summed_and_counted() -> None:
    values = np.array([1.0, np.nan, np.inf, 2.5, 4.0])
    valid = np.array([True, True, True, True, False])
    assert FINITE.leaves(np, values, valid, values)[0].tolist() == [1, 0, 0, 1, 0]
    leaves = EXACT_SUM.leaves(np, values, valid, values)
    assert exact_numbers(np, leaves).tolist() == [1.0, 0.0, 0.0, 2.5, 0.0]


def test_more_rows_than_a_sum_holds_are_refused() -> None:
    check_rows(MOST_ROWS)
    with pytest.raises(LimitError, match="2147483648 rows"):
        check_rows(MOST_ROWS + 1)
