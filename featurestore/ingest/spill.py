"""Scratch space for rows that do not fit in memory: one nameless file, read back by segment.

The file has no name from the start (``O_TMPFILE`` or an immediate unlink), so the system frees its
space when the process ends, however it ends; nothing is ever left behind.

Trade-off: a segment's space is freed only with the whole file, so a spill takes as much disk as
the rows it got, until it is closed.
"""

from __future__ import annotations

import errno
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from featurestore.errors import DiskFullError
from featurestore.units import format_bytes


@contextmanager
def disk_full_as_error(folder: Path, written: int) -> Iterator[None]:
    """Turn the system's *no space left* into :class:`DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"the scratch directory {folder} is full after {format_bytes(written)} of rows",
            "free space there, or give another directory: scratch=, or the variable TMPDIR",
        ) from error


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows in a spill file: an Arrow IPC stream at ``offset``, ``length`` bytes long."""

    offset: int
    length: int
    rows: int


class SpillFile:
    """An append-only scratch file of Arrow tables.

    Parameters
    ----------
    scratch : Path, optional
        The directory whose disk is used; by default the system's temporary directory.

    Examples
    --------
    >>> with SpillFile() as spill:
    ...     segment = spill.append(pa.table({"a": [1, 2]}))
    ...     spill.read(segment).column("a").to_pylist()
    [1, 2]
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._folder = Path(tempfile.gettempdir()) if scratch is None else scratch
        with disk_full_as_error(self._folder, 0):
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        self._end = 0
        self._closer = weakref.finalize(self, self._file.close)

    @property
    def bytes(self) -> int:
        """Bytes written so far."""
        return self._end

    def append(self, table: pa.Table) -> Segment:
        """Write a table's rows and return where they lie.

        Raises
        ------
        DiskFullError
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data = memoryview(sink.getvalue())
        segment = Segment(self._end, len(data), table.num_rows)
        with disk_full_as_error(self._folder, self._end):
            self._file.seek(self._end)
            while data:
                # An unbuffered file may take less than it was given.
                data = data[self._file.write(data) :]
        self._end += segment.length
        return segment

    def read(self, segment: Segment, columns: Iterable[str] | None = None) -> pa.Table:
        """Return a segment's rows, or some of their columns; in memory, not mapped."""
        data = bytearray(segment.length)
        view, got = memoryview(data), 0
        self._file.seek(segment.offset)
        while got < segment.length:
            count = self._file.readinto(view[got:])
            if not count:
                raise OSError(errno.EIO, f"the scratch file ends at {segment.offset + got}")
            got += count
        table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
        return table if columns is None else table.select(list(columns))

    def close(self) -> None:
        """Give the disk space back."""
        self._closer()

    def __enter__(self) -> SpillFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
