"""Rows in this process's memory, laid out as in a pack: some of a part's stripes, or all of them."""

from __future__ import annotations

from collections.abc import Mapping

from featurestore.dataset.batch import HostArray
from training.loading.arrangement import Chunk
from training.loading.buffers import Empty, aligned_empty
from training.loading.layout import ArrayLayout


class RowMemory:
    """Arrays for rows ``[start, start + rows)`` of a part, numbered as they lie in its pack.

    Threads may write different rows at once.

    Parameters
    ----------
    arrays : mapping of str to array
        Of at least ``rows`` rows each; see :func:`empty_arrays`.
    start, rows : int
    """

    def __init__(self, arrays: Mapping[str, HostArray], start: int, rows: int) -> None:
        self.start = start
        self.whole = dict(arrays)
        """What it was given."""
        self.arrays = {key: one[:rows] for key, one in arrays.items()}

    def write(self, start: int, arrays: Mapping[str, HostArray]) -> None:
        """Take rows of all arrays, the first of them as row ``start`` of the part."""
        for key, out in self.arrays.items():
            first = start - self.start
            out[first : first + len(arrays[key])] = arrays[key]

    def deal(self, chunk: Chunk, arrays: Mapping[str, HostArray]) -> None:
        """Take a chunk's rows, which are in the order in which it deals them."""
        starts = (chunk.starts - self.start).tolist()
        lengths = chunk.lengths.tolist()
        for key, out in self.arrays.items():
            dealt, at = arrays[key], 0
            for start, length in zip(starts, lengths, strict=True):
                out[start : start + length] = dealt[at : at + length]
                at += length


def empty_arrays(
    layout: Mapping[str, ArrayLayout], rows: int, empty: Empty = aligned_empty
) -> dict[str, HostArray]:
    """Return uninitialised arrays for so many rows."""
    return {key: empty((rows, *one.row_shape), one.element) for key, one in layout.items()}
