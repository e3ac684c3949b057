"""How many bytes each row of an Arrow column takes in memory.

Fixed-size values count their width, strings and lists their bytes plus 4 for the offset, at every
depth. Validity bits are not counted. Used to record the widest row of a partition, so that readers
can bound a slice before they read it.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_OFFSET: Final = 4

Widths: TypeAlias = "int | npt.NDArray[np.int64]"


def row_widths(array: pa.Array) -> Widths:
    """Return the bytes of each row of an array, ``int64 [rows]``, or one number if all are equal.

    Examples
    --------
    >>> row_widths(pa.array([1.0, None]))
    8
    >>> row_widths(pa.array(["", "four"])).tolist()
    [4, 8]
    >>> row_widths(pa.array([[1, 2], []], pa.list_(pa.int64()))).tolist()
    [20, 4]
    """
    type_ = array.type
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        return np.diff(array_offsets(array)).astype(np.int64) + _OFFSET
    if pa.types.is_list(type_):
        offsets = array_offsets(array).astype(np.int64)
        inner = row_widths(array.values)
        if isinstance(inner, int):
            return np.diff(offsets) * inner + _OFFSET
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(inner)])
        return np.asarray(ends[offsets[1:]] - ends[offsets[:-1]] + _OFFSET, dtype=np.int64)
    return max(1, -(-int(type_.bit_width) // 8))


def widest_row(table: pa.Table, tensor_bytes: int = 0) -> int:
    """Return the bytes of the widest row of a table, 0 if it has no rows.

    Parameters
    ----------
    table : pyarrow.Table
    tensor_bytes : int
        Added to every row.
    """
    widest = 0
    for batch in table.to_batches(max_chunksize=65_536):
        if batch.num_rows:
            widths = sum((row_widths(column) for column in batch.columns), start=_zero())
            widest = max(widest, int(np.max(widths)) + tensor_bytes)
    return widest


def _zero() -> Any:
    return np.int64(0)


def array_offsets(array: pa.Array) -> npt.NDArray[np.int32]:
    """Return the ``rows + 1`` offsets of an array, its slice considered."""
    if len(array) == 0:
        return np.zeros(1, np.int32)
    buffer = array.buffers()[1]
    return np.frombuffer(buffer, np.int32, count=len(array) + 1, offset=4 * array.offset)
