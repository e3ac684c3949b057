"""Sums of groups: against fractions, in any order and any cut."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.exact_sums import Sums, deviation, merge_runs, ratio, sum_groups

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
