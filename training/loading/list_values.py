"""The items of lists in a pack: one array per column, in which each row has a span of its own.

A pack has two arrays of a column of lists: the span of each row, int64 ``[rows, 2]``, where its items
begin and how many they are; and all items, in the order in which they came. Spans are of one width, so
rows lie, are dealt, mixed and gathered as those of any array; their items never move.

Always true: items are in the file before the span that names them; each span lies within the items.

The trade-off: what a partition wrote before it was left half-way stays in the file until the pack goes,
and the file grows as items come: its size is not known before the last.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.dataset.ragged import Ragged
from featurestore.errors import CorruptionError
from training.loading.buffers import aligned_empty
from training.loading.layout import ArrayLayout
from training.loading.mixing import Rows

_PIECE_ITEMS: Final = 1 << 16
"""Items whose places are computed at once."""


class ListFile:
    """The items of one column on their way into a pack; safe from several threads.

    Parameters
    ----------
    path : Path
        Of the pack.
    layout : ArrayLayout
        Of the items; how many is not looked at.
    """

    def __init__(self, path: Path, layout: ArrayLayout) -> None:
        self._layout = layout
        self._count = 0
        self._lock = threading.Lock()
        file = path / layout.file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)

    @property
    def layout(self) -> ArrayLayout:
        """That of the items there are by now."""
        return self._layout.of_rows(self._count)

    def append(self, values: HostArray, write: Callable[[int, memoryview, int], None]) -> int:
        """Write items with ``write(handle, bytes, place)``; return where the first is among all."""
        with self._lock:
            start = self._count
            self._count += len(values)
        data = np.ascontiguousarray(values, dtype=self._layout.element)
        write(self.handle, data.view(np.uint8).data, start * self._layout.row_bytes)
        return start

    def end(self, write: Callable[[int, memoryview, int], None]) -> None:
        """Fill up the last block and write the index of all."""
        layout = self.layout
        os.truncate(self.handle, layout.index_start)
        write(self.handle, memoryview(layout.index()), layout.index_start)


class ListItems:
    """The items of one column in a pack's file, mapped, also while more are written.

    Parameters
    ----------
    file : Path
    layout : ArrayLayout
        Of as many items as there are if the pack is whole.
    """

    def __init__(self, file: Path, layout: ArrayLayout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._items: HostArray = np.empty(0, dtype=layout.element)
        try:
            self._handle = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise CorruptionError(
                f"the items of lists in {file} cannot be read: {error}"
            ) from error
        weakref.finalize(self, os.close, self._handle)

    def take(self, spans: HostArray) -> Ragged:
        """Return the lists of some spans in their order, as arrays of their own.

        Raises
        ------
        CorruptionError
            If a span is beyond the items.
        """
        starts, lengths = spans[:, 0], spans[:, 1]
        stop = int((starts + lengths).max(initial=0))
        return gathered(self._of(stop), starts, lengths)

    def _of(self, count: int) -> HostArray:
        """Return at least so many items."""
        if len(self._items) < count:
            with self._lock:
                size = os.fstat(self._handle).st_size // self._layout.row_bytes
                if size < count:
                    raise CorruptionError(f"a pack names {count} items of lists, and has {size}")
                mapped = mmap.mmap(
                    self._handle, size * self._layout.row_bytes, access=mmap.ACCESS_READ
                )
                self._items = np.frombuffer(mapped, dtype=self._layout.element)
        return self._items


def gathered(items: HostArray, starts: Rows, lengths: Rows, *, own: bool = True) -> Ragged:
    """Return lists that lie anywhere among some items, one after the other.

    Parameters
    ----------
    items : array [n]
    starts, lengths : int64 array [rows]
        Where the items of each row begin, and how many they are; within ``items``.
    own : bool
        False to give a view of the items where they lie one after the other already.

    Examples
    --------
    >>> found = gathered(np.arange(10), np.array([7, 0, 2]), np.array([2, 0, 3]))
    >>> found.values.tolist(), found.offsets.tolist()
    ([7, 8, 2, 3, 4], [0, 2, 2, 5])
    """
    offsets = aligned_empty((len(starts) + 1,), np.dtype(np.int64))
    offsets[0] = 0
    np.cumsum(lengths, out=offsets[1:])
    count = int(offsets[-1])
    together = len(starts) > 0 and bool((starts[1:] == starts[:-1] + lengths[:-1]).all())
    if together and not own:  # as in table order
        return Ragged(items[starts[0] : starts[0] + count], offsets)
    values = aligned_empty((count,), items.dtype)
    if together:
        values[:] = items[starts[0] : starts[0] + count]
        return Ragged(values, offsets)
    # Rows are cut where their items pass a multiple of a piece: all of a piece but its last row are
    # shorter than it.
    cuts = np.searchsorted(offsets[:-1], np.arange(0, len(values), _PIECE_ITEMS))
    bounds = [*cuts.tolist(), len(starts)]
    for first, stop in itertools.pairwise(bounds):
        last = stop - 1
        if last < first:
            continue
        begin, long = int(offsets[first]), int(offsets[last])
        index = np.arange(begin, long)
        index += np.repeat(starts[first:last] - offsets[first:last], lengths[first:last])
        np.take(items, index, out=values[begin:long], mode="clip")
        source = int(starts[last])
        values[long : offsets[stop]] = items[source : source + int(lengths[last])]
    return Ragged(values, offsets)


def spans_of(offsets: HostArray, first: int = 0) -> HostArray:
    """Return the spans of rows whose items lie one after the other, from item ``first`` on.

    Examples
    --------
    >>> spans_of(np.array([0, 2, 2, 5]), 10).tolist()
    [[10, 2], [12, 0], [12, 3]]
    """
    spans: HostArray = np.empty((len(offsets) - 1, 2), dtype=np.int64)
    spans[:, 0] = offsets[:-1]
    spans[:, 0] += first
    np.subtract(offsets[1:], offsets[:-1], out=spans[:, 1])
    return spans
