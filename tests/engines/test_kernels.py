"""Array kernels: what the transformers' own tests cannot see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engines import joins, windows
from featurestore.engines.ranks import SortedGroups
from featurestore.errors import InvalidInputError


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(st.data(), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=80))
def test_a_fold_depends_on_the_window_alone(data: st.DataObject, values: list[float]) -> None:
    length = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(length, len(values)))
    whole = np.array(values)
    alone = whole[end - length : end]

    def run(array: np.ndarray, end: int, merge: windows.Merge) -> list[float]:
        nothing = np.zeros_like(array)
        parts = windows.fold(
            np, (array, nothing, nothing), np.array([end]), np.array([length]), merge
        )
        return [float(part[0]) for part in parts]

    assert run(whole, end, windows.merge_moments) == run(alone, length, windows.merge_moments)
    if length:
        mean, squares, _ = run(whole, end, windows.merge_moments)
        assert math.isclose(mean, alone.mean(), rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(
            squares, ((alone - alone.mean()) ** 2).sum(), rel_tol=1e-6, abs_tol=1e-6
        )


@settings(
    deadline=None, max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.data(), st.integers(1, 60), st.booleans())
def test_windows_are_folded_in_portions(
    monkeypatch: pytest.MonkeyPatch, data: st.DataObject, size: int, ascending: bool
) -> None:
    values = np.array(data.draw(st.lists(st.floats(-1e3, 1e3), min_size=size, max_size=size)))
    ends = data.draw(st.lists(st.integers(0, size), max_size=50))
    end = np.array(sorted(ends) if ascending else ends, np.int64)
    longest = data.draw(st.integers(0, 5) | st.just(size))
    length = np.array([min(longest, data.draw(st.integers(0, one))) for one in ends], np.int64)
    length = np.minimum(length, end)
    whole = windows.fold(np, (values,), end, length, windows.merge_sums)[0]
    monkeypatch.setattr(windows, "_PORTION", 3)
    monkeypatch.setattr(windows, "_WINDOWS", 1)
    portions = windows._portions(np, size, end, length)
    # All windows once, in order; few values at a time where windows are short and in order.
    assert [one for rows, _ in portions for one in range(len(end))[rows]] == list(range(len(end)))
    again = windows.fold(np, (values,), end, length, windows.merge_sums)[0]
    assert again.tolist() == whole.tolist()


def test_few_values_are_folded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_PORTION", 64)
    end = np.arange(1, 1001)
    portions = windows._portions(np, 1000, end, np.minimum(end, 4))
    assert len(portions) == 16
    assert max(near.stop - near.start for _, near in portions) == 67
    # In no order, each portion would hold all values.
    shuffled = np.random.default_rng(0).permutation(end)
    assert windows._portions(np, 1000, shuffled, np.minimum(shuffled, 4)) == [
        (slice(0, 1000), slice(0, 1000))
    ]


def test_moments_do_not_cancel_on_a_large_offset() -> None:
    values = 1e9 + np.array([0.0, 1.0, 2.0, 3.0] * 1000)
    _, squares, _ = windows.fold(
        np,
        (values, np.zeros_like(values), np.zeros_like(values)),
        np.array([4000]),
        np.array([4000]),
        windows.merge_moments,
    )
    assert squares[0] == pytest.approx(1.25 * 4000, rel=1e-12)


def test_sums_are_as_good_as_pairwise() -> None:
    values = np.full(2**17, 0.1)
    total = windows.fold(
        np, (values,), np.array([len(values)]), np.array([len(values)]), windows.merge_sums
    )[0][0]
    assert total == pytest.approx(math.fsum(values), rel=1e-14)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=80)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 4))
def test_last_of_group(codes: list[int], count: int) -> None:
    found = joins.last_of_group(np, np.array(codes, np.int64), count).tolist()
    expected = [i for i, code in enumerate(codes) if codes[i + 1 :].count(code) < count]
    assert found == expected


@pytest.mark.parametrize("largest", [5, 2**16 - 1, 2**16, 2**40])
def test_stable_order_of_small_and_large_codes(largest: int) -> None:
    codes = np.array([largest, 0, largest, 3, 0], np.int64)
    assert windows.stable_order(np, codes).tolist() == sorted(range(5), key=lambda i: codes[i])


def test_scale_times_refuses_overflow() -> None:
    assert joins.scale_times(np, np.array([5]), 1000).tolist() == [5000]
    assert joins.scale_times(np, np.array([], np.int64), 1000).tolist() == []
    with pytest.raises(InvalidInputError, match="do not fit 64 bits"):
        joins.scale_times(np, np.array([2**61]), 1000)


def test_joins_with_nothing_on_the_right_find_nothing() -> None:
    none, left = np.array([], np.int64), np.array([0, 1])
    for positions, found in (
        joins.asof_positions(np, (left, left), (none, none)),
        joins.lookup_positions(np, left, none),
    ):
        assert positions.tolist() == [0, 0]
        assert found.tolist() == [False, False]


def test_asof_needs_no_order() -> None:
    rng = np.random.default_rng(0)
    left = (rng.integers(0, 3, 50), rng.integers(0, 100, 50))
    right = (rng.integers(0, 3, 40), rng.permutation(100)[:40])
    positions, found = joins.asof_positions(np, left, right, lag=3, max_age=20)
    order = np.argsort(right[1])
    again, found_again = joins.asof_positions(
        np, left, (right[0][order], right[1][order]), lag=3, max_age=20
    )
    assert found.tolist() == found_again.tolist()
    assert positions[found].tolist() == order[again[found]].tolist()


def test_groups_without_counted_rows() -> None:
    groups = SortedGroups.of(np, np.array([0, 0]), np.array([1.0, 2.0]), np.array([False, False]))
    assert groups.rank().tolist() == [0.0, 0.0]
    assert groups.zscore().tolist() == [0.0, 0.0]
