"""How many bytes a column takes in memory as one Arrow array, though it comes in pieces.

Always true: the result does not depend on where the column is cut, and of an array from a buffer's start
it is its ``nbytes``. Pieces on their own take a little more than the column they make up, as each run of
bits is rounded up to a byte, and differ in whether they mark nulls.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from featurestore.storage.row_width import array_offsets

_OFFSET_BITS: Final = 32


class ColumnSize:
    """Adds up the size of a column of a stored type.

    Parameters
    ----------
    type_ : pyarrow.DataType

    Examples
    --------
    >>> size = ColumnSize(pa.string())
    >>> size.add(pa.chunked_array([["a", "bcd"], ["e"]]))
    >>> size.bytes == pa.array(["a", "bcd", "e"]).nbytes
    True
    """

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        depth = 1
        while pa.types.is_list(type_):
            type_, depth = type_.value_type, depth + 1
        self._leaf = type_
        # Of the column itself, then of what its lists hold, to the innermost.
        self._rows = [0] * depth
        self._marked = [False] * depth
        self._text = 0

    def add(self, column: pa.ChunkedArray) -> None:
        """Add the rows of a piece, the next in order."""
        for chunk in column.chunks:
            self._add(chunk)

    def _add(self, array: pa.Array) -> None:
        for depth in range(len(self._rows)):
            self._rows[depth] += len(array)
            # An array may carry null marks without having a null.
            self._marked[depth] |= array.buffers()[0] is not None
            if pa.types.is_list(array.type):
                first, last = _ends(array)
                array = array.values.slice(first, last - first)
        if self._is_text:
            first, last = _ends(array)
            self._text += last - first

    @property
    def _is_text(self) -> bool:
        return bool(pa.types.is_string(self._leaf) or pa.types.is_binary(self._leaf))

    @property
    def bytes(self) -> int:
        """Arrow bytes of everything added so far."""
        size = self._text
        for depth, rows in enumerate(self._rows):
            if depth + 1 < len(self._rows) or self._is_text:
                size += _whole_bytes(rows * _OFFSET_BITS)
            else:
                size += _whole_bytes(rows * self._leaf.bit_width)
            size += _whole_bytes(rows) if self._marked[depth] else 0
        return size


def _ends(array: pa.Array) -> tuple[int, int]:
    """Return where the values of strings or lists begin and end."""
    found = array_offsets(array)
    return int(found[0]), int(found[-1])


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8)
