"""The data files of a pack while it is written: of their full size at once, filled at any place.

Always true: the disk's space is taken before the first row, where the system can do so; threads may
write different rows at once; what :meth:`PackFiles.digest` says is of the bytes as the files have them.

The trade-off: the checksum of an array is made of those of its stripes, so that each can be computed as
soon as its rows are there, whatever comes before or after it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import xxhash

from featurestore.dataset.batch import HostArray
from training.loading.arrangement import Chunk
from training.loading.layout import ArrayLayout
from training.loading.list_values import ListFile

_PIECE: Final = 2**20
"""Bytes hashed at once."""

_SYNCED: Final = 64 * 2**20
"""Bytes that are written before they are made durable."""

_Read: TypeAlias = Callable[[memoryview, int], int]
"""Fills a buffer from a place of a file, and returns how many bytes there were."""


class PackFiles:
    """New files of a pack's arrays.

    Parameters
    ----------
    build : Path
        Directory of the pack.
    layout : mapping of str to ArrayLayout
    items : mapping of str to ArrayLayout
        Of the items of columns of lists.
    """

    def __init__(
        self, build: Path, layout: Mapping[str, ArrayLayout], items: Mapping[str, ArrayLayout]
    ) -> None:
        self._lists: dict[str, ListFile] = {}
        self._layout = {key: one for key, one in layout.items() if one.rows}
        self._handles: dict[str, int] = {}
        self._lock = threading.Lock()
        self._unsynced = 0
        try:
            for key, one in self._layout.items():
                self._handles[key] = _new_file(build / one.file, one.file_bytes)
                _write(self._handles[key], memoryview(one.index()), one.index_start)
            for key, one in items.items():
                self._lists[key] = ListFile(build, one)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files; what was mapped of them stays."""
        while self._handles:
            os.close(self._handles.popitem()[1])
        while self._lists:
            os.close(self._lists.popitem()[1].handle)

    def write(self, start: int, arrays: Mapping[str, HostArray]) -> None:
        """Write rows of all arrays, the first of them as row ``start`` of the pack."""
        for key, handle in self._handles.items():
            _write(handle, _bytes(arrays[key]), start * self._layout[key].row_bytes)
        self._wrote(sum(arrays[key].nbytes for key in self._handles))

    def deal(self, chunk: Chunk, arrays: Mapping[str, HostArray]) -> None:
        """Write a chunk's rows, which are in the order in which it deals them."""
        runs = list(zip(chunk.starts.tolist(), chunk.lengths.tolist(), strict=True))
        for key, handle in self._handles.items():
            size = self._layout[key].row_bytes
            dealt = _bytes(arrays[key])
            for start, length in runs:
                piece, dealt = dealt[: length * size], dealt[length * size :]
                _write(handle, piece, start * size)
        self._wrote(sum(chunk.rows * self._layout[key].row_bytes for key in self._handles))

    def append(self, key: str, values: HostArray) -> int:
        """Write items of a column of lists; return where the first is among all."""
        start = self._lists[key].append(values, _write)
        self._wrote(values.nbytes)
        return start

    def end_lists(self) -> dict[str, tuple[ArrayLayout, str]]:
        """End the files of items; return what each is, and its checksum."""
        found = {}
        for key, one in self._lists.items():
            one.end(_write)
            found[key] = (one.layout, array_checksum(_digests(one.handle, one.layout, ())))
        return found

    def sync(self) -> None:
        """Make durable what was written."""
        for handle in (*self._handles.values(), *(one.handle for one in self._lists.values())):
            os.fsync(handle)

    def _wrote(self, count: int) -> None:
        """Let the system write out what has come together: under a limit it would else wait for it."""
        with self._lock:
            self._unsynced += count
            if self._unsynced < _SYNCED:
                return
            self._unsynced = 0
        self.sync()

    def digest(self, start: int, stop: int) -> dict[str, bytes]:
        """Return the checksum of rows ``[start, stop)`` of each array."""
        return {
            key: _range_digest(_reader(handle), *_range(self._layout[key], start, stop))
            for key, handle in self._handles.items()
        }

    def rest_digest(self) -> dict[str, bytes]:
        """Return the checksum of what follows the rows of each array."""
        return {
            key: _range_digest(_reader(handle), *_rest(self._layout[key]))
            for key, handle in self._handles.items()
        }


def array_checksum(digests: Iterable[bytes]) -> str:
    """Return the checksum of an array: that of its stripes' checksums in their order, and the rest's."""
    return xxhash.xxh3_128(b"".join(digests)).hexdigest()


def file_checksum(path: Path, layout: ArrayLayout, stripes: Iterable[int]) -> str:
    """Return the checksum of an array's file, read once, given the rows of the stripes it has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return array_checksum(_digests(handle, layout, stripes))
    finally:
        os.close(handle)


def _digests(handle: int, layout: ArrayLayout, stripes: Iterable[int]) -> list[bytes]:
    """Return the checksums of the stripes of an array, and of what follows them."""
    ranges = [_range(layout, *one) for one in pairwise([0, *accumulate(stripes)])]
    # Items of lists have no stripes.
    ranges = ranges or [_range(layout, 0, layout.rows)]
    read = _reader(handle)
    return [_range_digest(read, *one) for one in [*ranges, _rest(layout)]]


def _range(layout: ArrayLayout, start: int, stop: int) -> tuple[int, int]:
    return start * layout.row_bytes, stop * layout.row_bytes


def _rest(layout: ArrayLayout) -> tuple[int, int]:
    return layout.rows * layout.row_bytes, layout.file_bytes


def _range_digest(read: _Read, start: int, stop: int) -> bytes:
    """Return the checksum of some bytes: XXH3 with 128 bits. Of a file that ends before, of what it has."""
    buffer = memoryview(bytearray(min(_PIECE, stop - start)))
    hasher = xxhash.xxh3_128()
    while start < stop and (count := read(buffer[: stop - start], start)):
        hasher.update(buffer[:count])
        start += count
    return hasher.digest()


def _reader(handle: int) -> _Read:
    return lambda buffer, at: os.preadv(handle, [buffer], at)


def _new_file(path: Path, size: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.truncate(handle, size)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _bytes(rows: HostArray) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


def _write(handle: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count
