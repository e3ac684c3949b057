"""What the steps that transformers share take in memory, per row: the words their models are made of.

Always true: what is said is at least what is taken, however keys and values are spread. Numbers per row
are sums of the arrays that are alive at once, with a quarter more for what allocators round up and keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa

from featurestore.engines.list_rows import can_take
from featurestore.schema import Field, TableSchema
from featurestore.transforms.extent import Extent

VIEW: Final = 16
"""What an engine holds for one text beside its characters."""
_KEPT_TEXT: Final = 28
"""Where a text begins, in 64 bits, before it is said in 32, as it is put into one piece."""
_LIST: Final = 40  # where it begins and ends, here and there
_POSITION: Final = 14  # 64 bits, and the engine's own 32
_BUFFER: Final = 128
"""Arrow pads its buffers, and counts bits in whole bytes."""
_ROUNDED: Final = 16 * 2**10
"""What a column of its own takes beyond its bytes: each of its buffers is rounded up to whole pages."""


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


def rounding_bytes(fields: Iterable[Field], rows: int) -> int:
    """Return what making columns takes beside their bytes; it counts where there are hundreds."""
    return sum(min(_ROUNDED, fixed_bytes(one, rows)) for one in fields)


def copied_bytes(schema: TableSchema, names: Sequence[str], extent: Extent) -> int:
    """Return the most Arrow bytes of a copy of columns, in which each may gain null marks."""
    marks = extent.rows // 8 + _BUFFER
    return sum(extent.bytes_of([name]) + marks for name in names)


def kept_bytes(
    schema: TableSchema, by: Sequence[str], names: Sequence[str], kept: int, extent: Extent
) -> int:
    """Return the most Arrow bytes of a copy of columns of the last ``kept`` rows of each group.

    Fewer than all rows where no groups are named, or their types have few values: booleans and numbers of up to
    16 bits. So a state that is carried through slices of rows is known to stay small.
    """
    whole, rows = copied_bytes(schema, names, extent), kept_rows(schema, by, kept, extent)
    if rows >= extent.rows:
        return whole
    varying = sum(
        min(extent.bytes_of([name]), rows * (extent.widest_row or extent.input_bytes))
        for name in names
        if is_varying(schema[name].type)
    )
    # Nested null marks of lists too, at most a byte where there is one of data.
    return min(whole, sum(fixed_bytes(schema[name], rows) for name in names) + 2 * varying)


def kept_rows(schema: TableSchema, by: Sequence[str], kept: int, extent: Extent) -> int:
    """Return the most rows that remain if ``kept`` of each group do."""
    groups = 1
    for name in by:
        type_ = schema[name].type
        bits = int(type_.bit_width) if _has_few_values(type_) else 64
        groups *= 2**bits + 1  # null is a group
    return min(groups * kept, extent.rows)


def _has_few_values(type_: pa.DataType) -> bool:
    whole = pa.types.is_boolean(type_) or pa.types.is_integer(type_)
    return bool(whole and type_.bit_width <= 16)


def grouping_bytes(schema: TableSchema, by: Iterable[str], rows: int) -> int:
    """Return what numbering the groups of rows takes, the numbers (8 bytes per row) included.

    Numbers and times are sorted; texts are hashed where groups are few, else sorted.
    """
    kinds = [schema[name].type for name in by]
    plain = [is_varying(one) or pa.types.is_decimal(one) for one in kinds]
    if not kinds:
        return 8 * rows
    return rows * ((68 if any(plain) else 36) + (16 if len(kinds) > 1 else 0))


def sorting_bytes(schema: TableSchema, by: Sequence[str], rows: int, then: int) -> int:
    """Return what numbering the groups of rows takes, and arrays of so many bytes after it.

    Texts are numbered by an engine, whose allocator does not give back in between what it freed.
    """
    grouping = grouping_bytes(schema, by, rows)
    texts = any(is_text(schema[name].type) for name in by)
    return grouping + then if texts else max(grouping, then)


def taking_bytes(types: Iterable[pa.DataType], rows: int) -> int:
    """Return what taking rows of columns by position takes beside the rows as Arrow has them."""
    views = sum(VIEW if is_text(one) else _LIST for one in types if is_varying(one))
    return (_POSITION + views) * rows


def is_grown(type_: pa.DataType) -> bool:
    """Whether what is taken of a type grows as it is taken, and may be copied as a whole meanwhile."""
    return bool(pa.types.is_list(type_)) and not can_take(type_)


def state_rows(schema: TableSchema, names: Sequence[str], extent: Extent) -> int:
    """Return the most rows that a state with these columns can have."""
    bits = sum(row_bits(schema[name].type) for name in names)
    within = 8 * extent.state_bytes // max(1, bits)
    return min(within, extent.state_rows) if extent.state_rows else within


def handed_extent(
    schema: TableSchema, names: Sequence[str], rows: int, extent: Extent, further: int = 0
) -> Extent:
    """Return an extent whose state has no more than so many rows with these columns.

    Each row has ``further`` bytes beside them. What varies in width is bounded by the widest row of the table
    that it was learnt of; where nobody knows that, by the state as it is.
    """
    rows = min(rows, extent.state_rows) if extent.state_rows else rows
    size = sum(fixed_bytes(schema[name], rows) for name in names) + further * rows
    if any(is_varying(schema[name].type) for name in names):
        if not extent.source_widest_row:
            return extent
        size += rows * extent.source_widest_row
    if size >= extent.state_bytes:
        return extent
    return replace(extent, state_bytes=size, state_rows=rows)


def tail_memory(
    schema: TableSchema, by: Sequence[str], types: Sequence[pa.DataType], state: int, rows: int
) -> int:
    """Return what summarising a tail takes, the tail included."""
    varying = [one for one in types if is_varying(one)]
    kept = sum(_KEPT_TEXT if is_text(one) else _LIST for one in varying)
    return max(
        grouping_bytes(schema, by, rows),
        52 * rows,
        (12 + kept) * rows + taking_bytes(types, rows) + state,
    )
