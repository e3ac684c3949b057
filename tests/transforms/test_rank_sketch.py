"""Ranks in bounded memory: the stated bound on hostile data, and the same bits however rows are cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.selection import get_engine
from featurestore.errors import CorruptionError
from featurestore.storage.states import decode_state, encode_state
from featurestore.testing.partitions import schema_of
from featurestore.transforms.base import Partition, State
from featurestore.transforms.quantiles import (
    column_quantiles,
    combine_quantiles,
    quantiles_bytes,
    sketches,
    summarize_quantiles,
)
from featurestore.transforms.rank_sketch import (
    HEAVIEST,
    MOST_CELLS,
    MOST_PICKS,
    Cells,
    RankSketch,
    sketch_sorted,
)

ENGINE = get_engine("polars")
ROWS = 120_000
SHARES = np.linspace(0, 1, 401)
Values = Any


def few_and_far(random: np.random.Generator) -> Values:
    """Half the rows within a thousand of 1e12, half over forty powers of ten: too much for cells."""
    near = 1e12 + random.normal(0, 1000, ROWS)
    far = np.exp(random.normal(0, 15, ROWS))
    return np.where(random.random(ROWS) < 0.5, near, far)


HOSTILE: dict[str, Callable[[np.random.Generator], Values]] = {
    "normal": lambda random: random.normal(size=ROWS),
    "ascending": lambda random: np.arange(ROWS) - 1000.0,
    "descending": lambda random: np.arange(ROWS)[::-1] ** 2.0,
    "zipf": lambda random: random.zipf(1.2, ROWS).astype(np.float64),
    "clustered": lambda random: 1e12 + random.normal(size=ROWS),
    "outliers": lambda random: np.where(
        np.arange(ROWS) % 1000 == 0, 1e300, 1e12 + random.random(ROWS)
    ),
    "denormal": lambda random: random.random(ROWS) * 1e-310,
    "whole range": lambda random: (random.random(ROWS) - 0.5) * 2 * 1.7e308,
    "one frequent": lambda random: np.where(
        random.random(ROWS) < 0.3, 100.0, random.normal(100, 10, ROWS)
    ),
    "few and far": few_and_far,
    "sawtooth": lambda random: np.arange(ROWS) % 7919 + np.arange(ROWS) / ROWS,
}
# Of these a cell with different values has more than 1% of the rows, so that picks answer.
PICKED = {"one frequent", "few and far"}


def sketch(values: Values) -> RankSketch:
    return sketch_sorted(np.sort(values) + 0.0, np, lambda one: one)


def merged(parts: Sequence[Values]) -> RankSketch:
    return reduce(RankSketch.merge, map(sketch, parts))


def wrong_by(answers: Values, values: Values) -> float:
    """Return by how many rows the rank of an answer is wrong, at most."""
    ordered = np.sort(values)
    place = SHARES * (len(values) - 1)
    least = np.searchsorted(ordered, answers, "left")
    most = np.searchsorted(ordered, answers, "right")
    # Between two ranks an answer is between their values.
    wrong: float = np.maximum(np.maximum(least - place - 1, place - most), 0).max()
    return wrong


def bound(rows: int) -> float:
    return rows * (2 + math.log2(max(2, rows / MOST_PICKS))) / MOST_PICKS


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("parts", [1, 5, 40])
def test_ranks_are_within_the_stated_bound(name: str, parts: int) -> None:
    values = HOSTILE[name](np.random.default_rng(7))
    found = merged(np.array_split(values, parts))
    assert found.rows == ROWS
    assert wrong_by(found.answering.quantiles(SHARES), values) <= found.rank_error
    if name in PICKED:
        assert found.rank_error == found.error + 1
        assert found.error <= bound(ROWS)
    else:
        assert found.rank_error <= HEAVIEST * ROWS
    ends = found.answering.quantiles(np.array([0.0, 1.0]))
    assert ends.tolist() == [values.min(), values.max()]
    assert len(found.cells) <= MOST_CELLS
    assert all(len(one) <= MOST_PICKS for one in found.picks.values())


@pytest.mark.parametrize("name", HOSTILE)
def test_picks_alone_are_within_their_bound(name: str) -> None:
    values = HOSTILE[name](np.random.default_rng(8))
    found = merged(np.array_split(values, 23))
    answers = found._of_picks()
    assert answers.rows == ROWS
    assert wrong_by(answers.quantiles(SHARES), values) <= found.error + 1 <= bound(ROWS)


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_cells_are_the_same_however_rows_are_cut_and_merged(name: str) -> None:
    random = np.random.default_rng(9)
    values = HOSTILE[name](random)
    whole = sketch(values)
    shuffled = random.permutation(values)
    cut = np.sort(random.integers(0, ROWS, 9))
    parts = list(map(sketch, np.split(shuffled, cut)))
    # As a tree, from the right, and from the left.
    left = reduce(RankSketch.merge, parts)
    right = reduce(lambda later, earlier: earlier.merge(later), reversed(parts))
    level = parts
    while len(level) > 1:
        level = [reduce(RankSketch.merge, level[i : i + 2]) for i in range(0, len(level), 2)]
    for one in (left, right, level[0]):
        assert one.depth == whole.depth
        assert same_cells(one.cells, whole.cells)
        if name not in PICKED:
            same = one.answering.quantiles(SHARES), whole.answering.quantiles(SHARES)
            assert same[0].tobytes() == same[1].tobytes()


def same_cells(one: Cells, other: Cells) -> bool:
    pairs = ((one.count, other.count), (one.smallest, other.smallest), (one.largest, other.largest))
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_the_same_rows_cut_the_same_give_the_same_bits() -> None:
    parts = np.array_split(few_and_far(np.random.default_rng(1)), 11)
    one, other = merged(parts), merged(parts)
    assert one.error == other.error
    assert [(k, v.tobytes()) for k, v in one.picks.items()] == [
        (k, v.tobytes()) for k, v in other.picks.items()
    ]


def test_many_small_and_few_large_parts_keep_the_bound() -> None:
    values = few_and_far(np.random.default_rng(2))
    sizes = [*[40] * 500, *[10_000] * 3, *[700] * 60]
    parts = np.split(values, np.cumsum(sizes))
    for order in (parts, parts[::-1]):
        found = merged(order)
        assert wrong_by(found.answering.quantiles(SHARES), values) <= found.rank_error
        assert found.error <= bound(ROWS)


numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, 1.0, 1e12, -1e-310])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_few_distinct_values_are_exact(values: list[float], cuts: list[int]) -> None:
    edges = [0, *sorted(min(one, len(values)) for one in cuts), len(values)]
    parts = [np.array(values[a:b]) for a, b in itertools.pairwise(edges)]
    found = merged(parts)
    assert found.rank_error == 0
    ordered = found.answering.order_statistics(np.arange(len(values)))
    assert ordered.tolist() == sorted(values)
    with np.errstate(over="ignore"):
        apart = max(values) - min(values)
    if np.isfinite(apart):
        exact = np.quantile(np.array(values) + 0.0, SHARES)
        np.testing.assert_allclose(
            found.answering.quantiles(SHARES), exact, rtol=1e-12, atol=1e-12 * apart
        )


def test_quantiles_never_leave_the_values_beside_them() -> None:
    largest = np.finfo(np.float64).max
    found = sketch(np.array([-largest, largest, largest]))
    answers = found.answering.quantiles(SHARES)
    assert np.all(np.isfinite(answers))
    assert np.all(np.diff(answers) >= 0)
    assert answers[0] == -largest
    assert answers[-1] == largest


def test_the_most_distinct_values_that_are_exact_and_one_more() -> None:
    exact = merged(np.array_split(np.arange(MOST_CELLS) * 3.0, 3))
    assert (exact.depth, exact.rank_error) == (0, 0)
    more = merged(np.array_split(np.arange(MOST_CELLS + 1) * 3.0, 3))
    assert more.depth > 0
    assert more.picks
    assert 0 < more.rank_error <= 0.01 * (MOST_CELLS + 1)


# --- as a state of columns ------------------------------------------------------------------------


def state_of(table: pa.Table) -> State:
    part = Partition(ENGINE.from_arrow(table), schema_of(table))
    return summarize_quantiles(part, table.column_names, ENGINE)


def test_nulls_nan_and_infinities_are_not_learnt_from() -> None:
    x = [None, 1.0, float("nan"), float("inf"), float("-inf"), -0.0, 3.0]
    table = pa.table(
        {"x": x, "none": pa.nulls(7, pa.float64()), "b": [True, False, None] + [True] * 4}
    )
    found = column_quantiles(state_of(table), lambda rows: (0, 0.5, 1))
    assert {name: one.tolist() for name, one in found.items()} == {
        "x": [0.0, 1.0, 3.0], "none": [], "b": [0.0, 1.0, 1.0],
    }  # fmt: skip
    assert not np.signbit(found["x"][0])


def test_states_survive_being_stored_and_keep_to_their_size() -> None:
    random = np.random.default_rng(3)
    table = pa.table(
        {
            "x": few_and_far(random),
            "y": random.integers(0, 9, ROWS),
            "z": pa.nulls(ROWS, pa.int32()),
        }
    )
    parts = [state_of(table.slice(start, 30_000)) for start in range(0, ROWS, 30_000)]
    for one in parts:
        assert sum(t.nbytes for t in one.values()) <= quantiles_bytes("xyz", 30_000)
    stored: list[State] = [decode_state(encode_state(one)) for one in parts]
    whole, again = reduce(combine_quantiles, parts), reduce(combine_quantiles, stored)
    assert all(whole[name].equals(again[name]) for name in whole)
    assert sum(t.nbytes for t in whole.values()) <= quantiles_bytes("xyz", ROWS)
    assert combine_quantiles({}, whole) is whole
    assert combine_quantiles(whole, {}) is whole
    assert {name: one.rows for name, one in sketches(whole).items()} == {
        "x": ROWS,
        "y": ROWS,
        "z": 0,
    }


def test_states_of_other_columns_and_broken_ones_are_refused() -> None:
    one, other = state_of(pa.table({"x": [1.0]})), state_of(pa.table({"y": [1.0]}))
    with pytest.raises(CorruptionError, match="cannot be merged"):
        combine_quantiles(one, other)
    with pytest.raises(CorruptionError, match="a state of quantiles"):
        sketches({"cells": one["cells"]})
