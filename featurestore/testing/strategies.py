"""Hypothesis strategies: small tables with everything that goes wrong in large ones.

Ties in time, one key or a key per row, null keys, nulls, NaN, infinities, -0.0, unicode, no rows.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, 1.0, -2.5, float("nan"), float("inf"), float("-inf")]),
    st.floats(-1e6, 1e6, allow_subnormal=False),
)
INTEGERS = st.one_of(st.none(), st.integers(-5, 5), st.integers(-(2**40), 2**40))
TEXTS = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ä", "日本", "a" * 40]))


@st.composite
def tables(
    draw: st.DrawFn,
    *,
    time_type: pa.DataType | None = None,
    max_rows: int = 30,
    null_keys: bool = True,
    keys: int = 3,
) -> pa.Table:
    """Return a table in time order with columns ``t k g x n b s``.

    ``k`` is a string key (null allowed), ``g`` a nullable integer, ``x`` a float, ``n`` an integer,
    ``b`` a boolean, ``s`` a string.
    """
    type_ = pa.timestamp("us") if time_type is None else time_type
    rows = draw(st.integers(0, max_rows))
    spread = draw(st.sampled_from([1, 4, 20, 200]))
    times = sorted(draw(st.lists(st.integers(0, spread), min_size=rows, max_size=rows)))
    names: list[Any] = [f"k{i}" for i in range(draw(st.integers(1, keys)))]
    if null_keys and draw(st.booleans()):
        names.append(None)
    own = draw(st.integers(0, 7)) == 7  # a key per row

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=rows, max_size=rows))

    return pa.table(
        {
            "t": pa.array(times, pa.int32() if pa.types.is_date32(type_) else pa.int64()).cast(
                type_
            ),
            "k": pa.array(
                [f"k{i}" for i in range(rows)] if own else column(st.sampled_from(names)),
                pa.string(),
            ),
            "g": pa.array(column(st.sampled_from([None, 1, 2])), pa.int32()),
            "x": pa.array(column(NUMBERS), pa.float64()),
            "n": pa.array(column(INTEGERS), pa.int64()),
            "b": pa.array(column(st.sampled_from([None, True, False])), pa.bool_()),
            "s": pa.array(column(TEXTS), pa.string()),
        }
    )


def cuts() -> st.SearchStrategy[list[int]]:
    """Return where to cut a table; see ``oracles.cut``."""
    return st.lists(st.integers(0, 40), max_size=6)
