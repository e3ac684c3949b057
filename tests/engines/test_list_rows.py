"""Rows of lists by position, against Python's own lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines import list_rows
from featurestore.engines.list_rows import can_take, take_lists
from featurestore.engines.selection import get_engine

rows = st.lists(st.none() | st.lists(st.none() | st.integers(-9, 9), max_size=12), max_size=20)


@settings(deadline=None)
@given(rows, st.data(), st.sampled_from([pa.int8(), pa.float64()]), st.sampled_from([1, 7, 1000]))
def test_rows_are_those_at_the_positions(
    lists: list[Any], data: st.DataObject, type_: pa.DataType, at_once: int
) -> None:
    cut = data.draw(st.integers(0, len(lists)))
    array = pa.array(lists, pa.large_list(type_)).slice(cut)
    positions = data.draw(st.lists(st.integers(cut, len(lists) - 1))) if len(array) else []
    valid = data.draw(
        st.none() | st.lists(st.booleans(), min_size=len(positions), max_size=len(positions))
    )
    held = None if valid is None else np.array(valid, dtype=bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_rows, "_ITEMS", at_once)
        taken = take_lists(array, np.array(positions, dtype=np.int64) - cut, held)
    taken.validate(full=True)
    wanted = [lists[one] for one in positions]
    if valid is not None:
        wanted = [one if there else None for one, there in zip(wanted, valid, strict=True)]
    assert taken.to_pylist() == wanted


@pytest.mark.parametrize(
    "values",
    [
        [["a", None], None, ["bc"]],
        [[[1], None], [], [[2, 3]]],
        [[True, None], None, []],
        [[1.5, None], None, [2.5]],
    ],
    ids=["texts", "lists", "booleans", "numbers"],
)
def test_an_engine_takes_lists_of_anything_beside_other_columns(values: list[Any]) -> None:
    engine = get_engine("polars")
    table = pa.table({"a": [1, 2, 3], "v": values, "b": ["x", "y", None]})
    valid = np.array([True, True, False, True])
    taken = engine.take(engine.from_arrow(table), np.array([2, 0, 1, 1]), valid)
    found = engine.to_arrow(taken)
    assert found.column_names == table.column_names
    for name in table.column_names:
        one = table[name].to_pylist()
        assert found[name].to_pylist() == [one[2], one[0], None, one[1]]


def test_only_lists_of_numbers_are_taken_here() -> None:
    assert can_take(pa.large_list(pa.uint8()))
    assert not can_take(pa.large_list(pa.string()))
    assert not can_take(pa.large_list(pa.bool_()))
