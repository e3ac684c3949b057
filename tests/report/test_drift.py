"""Drift measures against their definitions, written out plainly."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.report.drift import decile_bins, ks, psi, psi_of_numbers

numbers = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=60).map(sorted)
counts = st.lists(st.integers(0, 50), min_size=1, max_size=8)


def plain_psi(reference: list[int], other: list[int]) -> float:
    kept = [
        (max(a, 0.5), max(b, 0.5)) for a, b in zip(reference, other, strict=True) if a > 0 or b > 0
    ]
    first, second = sum(a for a, _ in kept), sum(b for _, b in kept)
    return sum((b / second - a / first) * math.log((b / second) / (a / first)) for a, b in kept)


def plain_ks(reference: list[float], other: list[float]) -> float:
    return max(
        abs(
            sum(one <= point for one in reference) / len(reference)
            - sum(one <= point for one in other) / len(other)
        )
        for point in [*reference, *other]
    )


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_psi_is_its_definition(data: st.DataObject) -> None:
    first = data.draw(counts)
    second = data.draw(st.lists(st.integers(0, 50), min_size=len(first), max_size=len(first)))
    found = psi(np.array(first), np.array(second))
    if not sum(first) or not sum(second):
        assert found is None
    else:
        assert found == pytest.approx(plain_psi(first, second), abs=1e-12)
        assert found >= 0
        assert psi(np.array(second), np.array(first)) == pytest.approx(found)


@settings(deadline=None, max_examples=40)
@given(numbers, numbers)
def test_ks_is_its_definition(first: list[float], second: list[float]) -> None:
    found = ks(np.array(first), np.array(second))
    assert found == pytest.approx(plain_ks(first, second))
    assert ks(np.array(first), np.array(first)) == 0


@settings(deadline=None, max_examples=40)
@given(numbers, numbers)
def test_psi_of_numbers_counts_them_between_deciles_of_the_first(
    first: list[float], second: list[float]
) -> None:
    inner = decile_bins(np.array(first))
    assert len(inner) <= 9
    assert (np.diff(inner) > 0).all()

    def counted(values: list[float]) -> list[int]:
        edges = [-math.inf, *inner, math.inf]
        return [sum(low <= one < high for one in values) for low, high in pairwise(edges)]

    assert 0 not in counted(first)
    found = psi_of_numbers(np.array(first), np.array(second))
    assert found == pytest.approx(plain_psi(counted(first), counted(second)), abs=1e-12)


def test_a_moved_distribution_drifts_and_a_sample_of_the_same_does_not() -> None:
    random = np.random.default_rng(0)
    first, same = np.sort(random.normal(size=(2, 4096)))
    moved = np.sort(random.normal(1.0, size=4096))
    assert (psi_of_numbers(first, same) or 0) < 0.02
    assert (psi_of_numbers(first, moved) or 0) > 0.5
    # Two normal distributions a deviation apart differ by 2 * Phi(1/2) - 1 at most.
    assert ks(first, moved) == pytest.approx(0.383, abs=0.04)


def test_nothing_on_one_side_has_no_drift() -> None:
    none, some = np.zeros(0), np.array([1.0])
    assert ks(none, some) is None
    assert ks(some, none) is None
    assert psi_of_numbers(none, some) is None
    assert psi_of_numbers(some, none) is None
