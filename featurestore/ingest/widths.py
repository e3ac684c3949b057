"""How many bytes each row takes when decoded: the measure by which partitions are cut.

The width of a row depends on its values alone, never on batches or files, so that equal rows are
always cut into equal partitions. Validity bits are left out; a boolean counts as one byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.schema import Field

Widths = npt.NDArray[np.int64]
_OFFSET = 4


def fixed_width(field: Field) -> int | None:
    """Return a column's bytes per row, or None where they vary with the value.

    Examples
    --------
    >>> fixed_width(Field("e", pa.float32(), (2, 3)))
    24
    """
    if pa.types.is_boolean(field.type):
        return 1
    if pa.types.is_list(field.type) or _is_bytes(field.type):
        return None
    return int(field.type.bit_width) // 8 * math.prod(field.shape or (1,))


def row_widths(table: pa.Table | pa.RecordBatch, fields: Iterable[Field]) -> Widths:
    """Return each row's bytes over ``fields``: ``int64 [rows]``."""
    total = np.zeros(table.num_rows, np.int64)
    for field in fields:
        width = fixed_width(field)
        if width is not None:
            total += width
            continue
        column = table.column(field.name)
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        total += np.concatenate([np.zeros(0, np.int64), *map(_value_widths, chunks)])
    return total


def _value_widths(column: pa.Array) -> Widths:
    """Return the bytes of each value of an array; a null takes its offset only."""
    if _is_bytes(column.type):
        return _OFFSET + np.asarray(pc.fill_null(pc.binary_length(column), 0), np.int64)
    if pa.types.is_list(column.type):
        inner = np.concatenate([np.zeros(1, np.int64), np.cumsum(_value_widths(column.values))])
        ends = inner[column.offsets.to_numpy()]
        widths = ends[1:] - ends[:-1]
        if column.null_count:
            widths[np.asarray(column.is_null())] = 0
        return _OFFSET + widths
    width = fixed_width(Field("value", column.type))
    return np.full(len(column), width, np.int64)


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_binary(type_))
