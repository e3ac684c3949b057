"""How many bytes each row of an Arrow column takes in memory.

Fixed-size values count their width, strings and lists their bytes plus 4 for the offset, at every
depth. Validity bits are not counted. Used to record the widest row of a partition, so that readers
can bound a slice before they read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

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


class RowCounts:
    """How many rows there are of which width, so that it can be said what the widest of them take.

    Rows are told apart by the power of two that their width is below.

    Examples
    --------
    >>> counts = RowCounts()
    >>> counts.add(pa.table({"x": ["a" * 96, "b" * 96, "c", "d"]}))
    >>> counts.widest_bytes(None), counts.widest_bytes(1), counts.widest_bytes(3)
    (210, 100, 205)
    """

    def __init__(self) -> None:
        self._rows = np.zeros(64, np.int64)
        self._bytes = np.zeros(64, np.int64)
        self._widest = np.zeros(64, np.int64)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        for widths in _table_widths(table):
            at = np.frexp(widths.astype(np.float64))[1]
            self._rows += np.bincount(at, minlength=64)
            np.add.at(self._bytes, at, widths)
            np.maximum.at(self._widest, at, widths)

    def widest_bytes(self, most: int | None) -> int:
        """Return the most bytes that so many of the rows have together; None for all of them."""
        left, found = int(self._rows.sum()) if most is None else most, 0
        for at in reversed(range(64)):
            rows = int(self._rows[at])
            if rows > left:
                return found + min(int(self._bytes[at]), left * int(self._widest[at]))
            found, left = found + int(self._bytes[at]), left - rows
        return found


def widest_row(table: pa.Table, tensor_bytes: int = 0) -> int:
    """Return the bytes of the widest row of a table, 0 if it has no rows.

    Parameters
    ----------
    table : pyarrow.Table
    tensor_bytes : int
        Added to every row.
    """
    return max((int(one.max()) + tensor_bytes for one in _table_widths(table)), default=0)


def _table_widths(table: pa.Table) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the bytes of each row, a few at a time."""
    for batch in table.to_batches(max_chunksize=65_536):
        if batch.num_rows:
            widths = np.zeros(batch.num_rows, np.int64)
            for column in batch.columns:
                widths += row_widths(column)
            yield widths


def array_offsets(array: pa.Array) -> npt.NDArray[np.int32]:
    """Return the ``rows + 1`` offsets of an array, its slice considered."""
    if len(array) == 0:
        return np.zeros(1, np.int32)
    buffer = array.buffers()[1]
    return np.frombuffer(buffer, np.int32, count=len(array) + 1, offset=4 * array.offset)
