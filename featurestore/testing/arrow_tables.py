"""Hypothesis strategies for Arrow columns and tables of every type a store keeps."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from featurestore.schema import RESERVED_PREFIX

TIME_ZONES = ("UTC", "America/New_York", "Asia/Kolkata", "+05:30")

SIMPLE_TYPES: tuple[pa.DataType, ...] = (
    pa.bool_(),
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.string(), pa.binary(), pa.date32()),
    *(pa.timestamp(unit) for unit in ("ms", "us", "ns")),
    *(pa.timestamp("us", tz=zone) for zone in TIME_ZONES),
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.decimal128(5, 2), pa.decimal128(18, 0), pa.decimal128(38, 10)),
)
"""One type of each kind and parameter that scalar columns are stored with."""


def types() -> st.SearchStrategy[pa.DataType]:
    """Normalised types, lists up to three deep included."""
    return st.recursive(
        st.sampled_from(SIMPLE_TYPES), lambda inner: inner.map(pa.list_), max_leaves=3
    )


def values(type_: pa.DataType) -> st.SearchStrategy[Any]:
    """Values that ``pyarrow.array`` takes for a type, null excluded at the top."""
    if pa.types.is_list(type_):
        return st.lists(st.none() | values(type_.value_type), max_size=4)
    if pa.types.is_boolean(type_):
        return st.booleans()
    if pa.types.is_floating(type_):
        # Bit patterns, so that every infinity, subnormal and negative zero is met.
        width = type_.bit_width
        return st.floats(width=width).map(np.dtype(f"f{width // 8}").type)
    if pa.types.is_string(type_):
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    if pa.types.is_binary(type_):
        return st.binary(max_size=8)
    if pa.types.is_date32(type_):
        return st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31))
    if pa.types.is_decimal(type_):
        limit = 10**type_.precision - 1
        context = decimal.Context(prec=76)
        return st.integers(-limit, limit).map(
            lambda number: context.scaleb(decimal.Decimal(number), -type_.scale)
        )
    if pa.types.is_time(type_):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[type_.unit]
        return st.integers(0, 86_400 * per_second - 1)
    if pa.types.is_unsigned_integer(type_):
        return st.integers(0, 2**type_.bit_width - 1)
    return st.integers(-(2 ** (type_.bit_width - 1)), 2 ** (type_.bit_width - 1) - 1)


@st.composite
def arrays(draw: st.DrawFn, type_: pa.DataType, rows: int) -> pa.ChunkedArray:
    """Columns of one type with nulls, cut into chunks, sometimes a slice of something longer."""
    extra = draw(st.integers(0, 2))
    content = draw(
        st.lists(st.none() | values(type_), min_size=rows + extra, max_size=rows + extra)
    )
    array = pa.array(content, type_).slice(extra, rows)
    cut = draw(st.integers(0, rows))
    return pa.chunked_array([array[:cut], array[cut:]], type_)


def names() -> st.SearchStrategy[str]:
    """Column names: short, of any script, with dots and quotes."""
    return st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=6
    ).filter(lambda name: not name.startswith(RESERVED_PREFIX))


@st.composite
def tables(draw: st.DrawFn, max_rows: int = 12, max_columns: int = 4) -> pa.Table:
    """Tables of any normalised types, empty ones included; names are unique."""
    rows = draw(st.integers(0, max_rows))
    found = draw(
        st.lists(
            names() | st.sampled_from(["a", "a.b", "a.b.c"]),
            min_size=1,
            max_size=max_columns,
            unique=True,
        )
    )
    return pa.table({name: draw(arrays(draw(types()), rows)) for name in found})
