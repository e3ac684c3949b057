"""What the steps that transformers share take in memory, per row: the words their models are made of.

Always true: what is said is at least what is taken, however keys and values are spread. Numbers per row
are sums of the arrays that are alive at once, with a quarter more for what allocators round up and keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import pyarrow as pa

from featurestore.schema import Field, TableSchema
from featurestore.transforms.extent import Extent

VIEW: Final = 16
"""What an engine holds for one text beside its characters."""
_OFFSET: Final = 8
_POSITION: Final = 14  # 64 bits, and the engine's own 32
_BUFFER: Final = 128
"""Arrow pads its buffers, and counts bits in whole bytes."""


def is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_binary(type_))


def is_varying(type_: pa.DataType) -> bool:
    """Whether rows of a type differ in their bytes."""
    return is_text(type_) or bool(pa.types.is_list(type_))


def row_bits(type_: pa.DataType) -> int:
    """Return the bits that every row of a type has, null mark not counted."""
    return 32 if is_varying(type_) else int(type_.bit_width)


def fixed_bytes(field: Field, rows: int) -> int:
    """Return the most Arrow bytes of a column without what varies: values or offsets, and null marks.

    Examples
    --------
    >>> fixed_bytes(Field("x", pa.float64()), 800) - _BUFFER
    6500
    """
    if field.shape is not None:
        cells = 1
        for size in field.shape:
            cells *= size
        return rows * cells * int(field.type.bit_width) // 8
    return rows * (row_bits(field.type) + 1) // 8 + _BUFFER


def copied_bytes(schema: TableSchema, names: Sequence[str], extent: Extent) -> int:
    """Return the most Arrow bytes of a copy of columns, in which each may gain null marks."""
    marks = extent.rows // 8 + _BUFFER
    return sum(extent.bytes_of([name]) + marks for name in names)


def grouping_bytes(schema: TableSchema, by: Iterable[str], rows: int) -> int:
    """Return what numbering the groups of rows takes, the numbers (8 bytes per row) included.

    Numbers and times are sorted; texts are hashed where groups are few, else sorted.
    """
    kinds = [schema[name].type for name in by]
    plain = [is_varying(one) or pa.types.is_decimal(one) for one in kinds]
    if not kinds:
        return 8 * rows
    return rows * ((72 if any(plain) else 36) + (16 if len(kinds) > 1 else 0))


def taking_bytes(types: Iterable[pa.DataType], rows: int) -> int:
    """Return what taking rows of columns by position takes beside the rows as Arrow has them."""
    views = sum(VIEW if is_text(one) else _OFFSET for one in types if is_varying(one))
    return (_POSITION + views) * rows


def state_rows(schema: TableSchema, names: Sequence[str], extent: Extent) -> int:
    """Return the most rows that a state with these columns can have."""
    bits = sum(row_bits(schema[name].type) for name in names)
    within = 8 * extent.state_bytes // max(1, bits)
    return min(within, extent.state_rows) if extent.state_rows else within


def tail_memory(
    schema: TableSchema, by: Sequence[str], types: Sequence[pa.DataType], state: int, rows: int
) -> int:
    """Return what summarising a tail takes, the tail included."""
    return max(
        grouping_bytes(schema, by, rows),
        52 * rows,
        12 * rows + taking_bytes(types, rows) + state,
    )
