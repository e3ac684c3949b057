"""Queries of a ranking: against a walk from row to row."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError
from training.loading import queries
from training.loading.queries import first_of_each, measure_queries, queries_of


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 7))
def test_runs_are_those_of_a_walk_whatever_is_read_at_once(values: list[int], block: int) -> None:
    ids = np.array(values, dtype=np.int64)
    runs = [(key, len(list(rows))) for key, rows in groupby(values)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(queries, "_BLOCK_ROWS", block)
        assert measure_queries(ids, len(ids)) == (len(runs), max((n for _, n in runs), default=0))
        if len({key for key, _ in runs}) < len(runs):
            with pytest.raises(InvalidInputError, match="one run of rows"):
                queries_of(ids, len(ids), "q")
            return
        found = queries_of(ids, len(ids), "q")
    starts = [0]
    for _, rows in runs:
        starts.append(starts[-1] + rows)
    assert found.starts.tolist() == starts
    numbers = [number for number, (_, rows) in enumerate(runs) for _ in range(rows)]
    assert found.numbers(0, len(ids)).tolist() == numbers
    for row in range(len(ids) + 1):
        assert found.end(row) == max(one for one in starts if one <= row)
    for first in starts:
        for last in (one for one in starts if one >= first):
            assert found.numbers(first, last).tolist() == numbers[first:last]
            assert found.within(first, last).tolist() == [
                one for one in starts if first <= one <= last
            ]


def test_a_query_that_comes_back_is_named() -> None:
    message = "group 'day' has value 5 from row 1 on and again from row 4 on"
    with pytest.raises(InvalidInputError, match=message):
        queries_of(np.array([2, 5, 5, 3, 5]), 5, "day")


def test_weights_of_a_query_must_agree() -> None:
    starts: Any = np.array([0, 2, 5])
    values = np.array([1, 1, 2, 2, 2], dtype=np.float32)
    assert first_of_each(values, starts, "the weight").tolist() == [1, 2]
    values[3] = 4
    with pytest.raises(
        InvalidInputError, match=r"the weight is 2\.0 and 4\.0 in rows of one query"
    ):
        first_of_each(values, starts, "the weight")
