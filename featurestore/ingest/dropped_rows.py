"""Rows of a source that go, noted in any order and asked for in the order of the source.

Their numbers are spilled by range; the marks of one range are in memory at a time, one byte per row
of it. So memory does not grow with the rows, nor with how many of them go.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.ingest.arrays import to_arrow, to_numpy
from featurestore.storage.scratch import Scratch
from featurestore.storage.spill import Segments, SpillFile

_LEAST_SPAN: Final = 1 << 20
_RANGES: Final = 256
_PENDING: Final = 1 << 17
_ROW: Final = "row"

Mask = npt.NDArray[np.bool_]


class DroppedRows:
    """The numbers of rows that go.

    Parameters
    ----------
    rows : int
        Number of rows of the source.
    scratch : Scratch

    Examples
    --------
    >>> with DroppedRows(5, Scratch()) as dropped:
    ...     dropped.add(np.array([3, 1]))
    ...     dropped.between(0, 3).tolist(), dropped.between(3, 5).tolist()
    ([False, True, False], [True, False])
    """

    def __init__(self, rows: int, scratch: Scratch) -> None:
        self._span = max(_LEAST_SPAN, -(-rows // _RANGES))
        self._ranges = [Segments() for _ in range(-(-max(rows, 1) // self._span))]
        self._pending: list[npt.NDArray[np.int64]] = []
        self._count = 0
        self._loaded = -1
        self._marks: Mask = np.zeros(0, np.bool_)
        self._spill = SpillFile(scratch)

    def add(self, numbers: npt.NDArray[np.int64]) -> None:
        """Note more rows; all before the first is asked for."""
        self._pending.append(numbers.copy())
        self._count += len(numbers)
        if self._count > _PENDING:
            self._flush()

    def _flush(self) -> None:
        if not self._count:
            return
        numbers = np.sort(np.concatenate(self._pending))
        self._pending, self._count = [], 0
        ends = np.searchsorted(numbers, self._span * np.arange(1, len(self._ranges) + 1))
        for segments, start, end in zip(self._ranges, [0, *ends[:-1]], ends, strict=True):
            if start < end:
                part = pa.table({_ROW: to_arrow(numbers[start:end])})
                segments.append(self._spill.append(part))

    def between(self, start: int, stop: int) -> Mask:
        """Return for each row ``start <= row < stop`` whether it goes."""
        self._flush()
        found = np.zeros(stop - start, np.bool_)
        for index in range(start // self._span, -(-stop // self._span)):
            first = index * self._span
            low, high = max(start, first), min(stop, first + self._span)
            found[low - start : high - start] = self._of(index)[low - first : high - first]
        return found

    def _of(self, index: int) -> Mask:
        """Return the marks of a range; only those of one are kept."""
        if self._loaded != index:
            self._marks = np.zeros(self._span, np.bool_)
            for segment in self._ranges[index]:
                rows = to_numpy(self._spill.read(segment).column(_ROW))
                self._marks[rows - index * self._span] = True
            self._loaded = index
        return self._marks

    def close(self) -> None:
        """Give scratch space back."""
        self._spill.close()

    def __enter__(self) -> DroppedRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
