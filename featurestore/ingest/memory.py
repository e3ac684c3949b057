"""What ingest needs of the memory limit: its model in bytes, decided before a row is written.

While partitions are written there are at once: the reader's buffers and pages; a few batches; a *run*
of rows (read, sorted, and a copy between, and a few numbers per row); a partition being gathered and
the same once more while it is encoded; a little for each column; and what allocators and codecs keep
of that. So

    peak = reader + columns + kept + 4 batches + 3 runs + 2 partitions

above what the process holds after imports. Runs are made as large as the rest of the limit allows,
up to a partition. All rows of one time lie in one run and one partition, and a row is never parted,
so the largest such group, or the widest row, is what may not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from featurestore.errors import MemoryLimitError
from featurestore.execution.room import smallest_limit
from featurestore.units import format_bytes

_LEAST: Final = 256 << 10
_MOST_BATCH: Final = 16 << 20
ROW_BYTES: Final = 40
"""Bytes per row of a run besides its values: sort order, times, widths and places of groups."""
_COLUMN: Final = 16 << 10
"""Bytes per column whatever its rows: fields, buffers, statistics, measured over 10,000 columns."""
_KEPT: Final = {"mimalloc": 40 << 20}
_KEPT_BY_OTHERS: Final = 20 << 20


@dataclass(frozen=True, slots=True)
class IngestMemory:
    """How a memory limit is shared out.

    Parameters
    ----------
    limit : int
        Bytes that ingest may take above the process after imports.
    partition : int
        Decoded bytes of a partition.
    reader : int
        Bytes that a reader holds besides its batches.
    columns : int
        Number of columns.
    kept : int
        What allocators keep, see :func:`kept_bytes`.
    reserved : int
        Bytes that the process holds besides: what the caller calls the limit has them in it.
    group : int
        Bytes of the largest rows that stay together, if they are known: what is named as the remedy has
        room for them too.

    Raises
    ------
    MemoryLimitError
        If such partitions do not fit; the message names the smallest limit that would do.
    """

    limit: int
    partition: int
    reader: int = 0
    columns: int = 0
    kept: int = 0
    reserved: int = 0
    group: int = 0

    def __post_init__(self) -> None:
        rows = 2 * self.partition + 3 * _LEAST
        if self._fixed + rows > self.limit:
            least = self._least_with(rows)
            fitting = self._fitting_partition()
            smaller = f"lower partition_bytes to {fitting} ({format_bytes(fitting)}), or "
            raise MemoryLimitError(
                f"ingest of partitions of {format_bytes(self.partition)} needs "
                f"{format_bytes(least)}{self._reading()}{_limit(self.limit, self.reserved)}",
                f"{smaller if fitting >= _LEAST else ''}raise memory_limit to at least "
                f"{smallest_limit(least, self.reserved)}",
            )

    def _reading(self) -> str:
        return f", {format_bytes(self.reader)} of them to read the source" if self.reader else ""

    @property
    def _fixed(self) -> int:
        """Bytes that are needed whatever the size of runs and partitions."""
        return self._without_batches + 4 * self.batch

    @property
    def _without_batches(self) -> int:
        return self.reader + _COLUMN * self.columns + self.kept

    def _fitting_partition(self) -> int:
        """Return the size of partitions that would do in this limit; may be negative."""
        free = self.limit - self._fixed
        # Rows that stay together are sorted at once, and may make a partition larger by themselves.
        return free // 4 if self.group <= free // 6 else (free - 5 * self.group) // 2

    def _least_with(self, rows: int) -> int:
        """Return the least limit for so many bytes of rows, and for the largest that stay together."""
        together = self._group_rows(self.group) if self.group > _LEAST else 0
        return self._least_for(max(rows, together))

    def _group_rows(self, group: int) -> int:
        return 3 * group + 2 * (self.partition + group)

    def _least_for(self, rows: int) -> int:
        """Return the least limit that has room for so many bytes of runs and partitions.

        Batches grow with the limit: they are a 64th of it, four times, so a 60th of the rest.
        """
        rest = self._without_batches + rows
        return rest + 4 * min(_MOST_BATCH, max(_LEAST, -(-rest // 60)))

    @property
    def free(self) -> int:
        """Bytes for rows while no partition is gathered or written."""
        return max(_LEAST, self.limit - self._fixed)

    @property
    def batch(self) -> int:
        """Bytes of a batch as it is read."""
        return min(_MOST_BATCH, max(_LEAST, self.limit // 64))

    @property
    def run(self) -> int:
        """Bytes of a run of rows that is sorted at once."""
        free = self.limit - self._fixed - 2 * self.partition
        return max(_LEAST, min(free // 3, self.partition))

    @property
    def projected(self) -> int:
        """Bytes at the peak, what the process held before included."""
        return self.reserved + self._fixed + 3 * self.run + 2 * self.partition

    def check_group(self, group: int, where: str, remedy: str) -> None:
        """Refuse rows that stay together and cannot be sorted and written within the limit.

        Parameters
        ----------
        group : int
            Their bytes.
        where, remedy : str
            Words for the message: what they are, and what helps besides a larger limit.

        Raises
        ------
        MemoryLimitError
        """
        rows = self._group_rows(group)
        if group > self.run and self._fixed + rows > self.limit:
            least = self._least_with(rows)
            raise MemoryLimitError(
                f"{where} take {format_bytes(group)} and are kept together; sorting and writing them "
                f"needs {format_bytes(least)}{self._reading()}{_limit(self.limit, self.reserved)}",
                f"raise memory_limit to at least {smallest_limit(least, self.reserved)}, or {remedy}",
            )


def kept_bytes(size: int) -> int:
    """Return what allocators keep of what was freed, and codecs for themselves: measured.

    Arrow's own choice, mimalloc, gives pages back a tenth of a second after they were freed, and has a
    heap for each thread; ``ARROW_DEFAULT_MEMORY_POOL=system`` (or ``jemalloc``) needs half of that.

    Parameters
    ----------
    size : int
        Decoded bytes of all rows: no more can be kept than there was.
    """
    return min(_KEPT.get(pa.default_memory_pool().backend_name, _KEPT_BY_OTHERS), size)


def _limit(left: int, reserved: int) -> str:
    """Return the end of a message: what the limit is, and how much of it is in use."""
    beside = f" beside {format_bytes(reserved)} already in use" if reserved else ""
    return f"{beside}; the memory limit is {format_bytes(left + reserved)}"


def check_reading(
    limit: int, reader: int, columns: int, batch: int, source: str, reserved: int = 0
) -> int:
    """Return what reading takes; refuse a source whose pages, blocks or batches alone do not fit.

    Raises
    ------
    MemoryLimitError
        Before a row is read.
    """
    needed = reader + _COLUMN * columns + 2 * batch
    if needed > limit:
        raise MemoryLimitError(
            f"reading {source} takes up to {format_bytes(needed)}: its {columns} columns have "
            f"pages, lines or batches of {format_bytes(reader)} that are read as a whole"
            f"{_limit(limit, reserved)}",
            f"raise memory_limit, to at least {smallest_limit(2 * needed, reserved)} for the whole "
            "ingest, or write the source in smaller pages or batches, without overlong texts",
        )
    return needed
