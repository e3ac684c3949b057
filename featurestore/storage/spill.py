"""Scratch space for rows that do not fit in memory: one nameless file, read back by segment.

The file has no name from the start (``O_TMPFILE`` or an immediate unlink), so the system frees its
space when the process ends, however it ends; nothing is ever left behind.

Trade-off: a segment's space is freed only with the whole file, so a spill takes as much disk as
the rows it got, until it is closed.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Final

import pyarrow as pa

from featurestore.storage.scratch import Scratch

# Rough bytes that a segment takes per column beside the values: padding, and where buffers lie.
COLUMN_OVERHEAD: Final = 200


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows in a spill file: an Arrow record batch at ``offset``, ``length`` bytes long."""

    offset: int
    length: int
    rows: int


class Segments:
    """Segments in order, 24 bytes each: a large ingest makes hundreds of thousands.

    Examples
    --------
    >>> segments = Segments()
    >>> segments.append(Segment(0, 100, 7))
    >>> len(segments), list(segments)
    (1, [Segment(offset=0, length=100, rows=7)])
    """

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers = array("q")

    def append(self, segment: Segment) -> None:
        self._numbers.extend((segment.offset, segment.length, segment.rows))

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[Segment]:
        for place in range(0, len(self._numbers), 3):
            yield Segment(*self._numbers[place : place + 3])


class SpillFile:
    """An append-only scratch file of Arrow tables of one schema.

    Parameters
    ----------
    scratch : Scratch, optional
        Where, and how much; by default the system's temporary directory, as much as it has.

    Examples
    --------
    >>> with SpillFile() as spill:
    ...     segment = spill.append(pa.table({"a": [1, 2]}))
    ...     spill.read(segment).column("a").to_pylist()
    [1, 2]
    """

    def __init__(self, scratch: Scratch | None = None) -> None:
        self._scratch = Scratch() if scratch is None else scratch
        with self._scratch.faults_as_errors():
            folder = self._scratch.folder
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._schema: pa.Schema | None = None
        self._taken = _Taken(self._scratch)
        self._closer = weakref.finalize(self, _close, self._file, self._taken)

    @property
    def bytes(self) -> int:
        """Bytes written so far."""
        return self._taken.bytes

    def append(self, table: pa.Table) -> Segment:
        """Write a table's rows and return where they lie.

        Raises
        ------
        DiskFullError
        LimitError
            If scratch space has a limit, and this is beyond it.
        """
        self._schema = table.schema if self._schema is None else self._schema
        batches = table.combine_chunks().to_batches()
        batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
        data = memoryview(batch.serialize())
        segment = Segment(self._taken.bytes, len(data), table.num_rows)
        with self._scratch.faults_as_errors():
            self._file.seek(segment.offset)
            self._taken.add(segment.length)
            while data:
                # An unbuffered file may take less than it was given.
                data = data[self._file.write(data) :]
        return segment

    def read(self, segment: Segment, columns: Iterable[str] | None = None) -> pa.Table:
        """Return a segment's rows, or some of their columns; in memory, not mapped.

        Raises
        ------
        FeatureStoreError
            If the disk does not give them back.
        """
        assert self._schema is not None
        with self._scratch.faults_as_errors():
            data = read_exactly(self._file.fileno(), segment.offset, segment.length)
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
        table = pa.Table.from_batches([batch])
        return table if columns is None else table.select(list(columns))

    def close(self) -> None:
        """Give the disk space back."""
        self._closer()

    def __enter__(self) -> SpillFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Taken:
    """What a file took of its scratch space; apart from the file, which may be forgotten unclosed."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self.bytes = 0

    def add(self, size: int) -> None:
        self._scratch.take(size)
        self.bytes += size

    def give_back(self) -> None:
        self._scratch.give_back(self.bytes)


def _close(file: IO[bytes], taken: _Taken) -> None:
    file.close()
    taken.give_back()


def read_exactly(file: int, offset: int, length: int) -> bytearray:
    """Return bytes of a scratch file, which has them.

    Raises
    ------
    OSError
        If it ends before.
    """
    data = bytearray(length)
    view, got = memoryview(data), 0
    while got < length:
        count = os.preadv(file, [view[got:]], offset + got)
        if not count:
            raise OSError(f"the scratch file ends at byte {offset + got}")
        got += count
    return data
