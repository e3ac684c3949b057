"""What ingest needs of the memory limit: its model in bytes, decided before a row is written.

While partitions are written there are at once: the reader's
buffers and pages; a few batches; a *run* of rows (read, sorted, and a
copy between, and a few numbers per row); a partition being gathered and the same once more while it is encoded. So

    peak = reader + 4 batches + 3 runs + 2 partitions

above what the process holds after imports. Runs are made as large as the rest of the limit allows,
up to a partition. All rows of one time lie in one run and one partition, so the largest such group
is what may not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from featurestore.errors import MemoryLimitError
from featurestore.units import format_bytes

_LEAST: Final = 256 << 10
_MOST_BATCH: Final = 16 << 20
ROW_BYTES: Final = 40
"""Bytes per row of a run besides its values: sort order, times, widths and places of groups."""


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

    Raises
    ------
    MemoryLimitError
        If such partitions do not fit; the message names the smallest limit that would do.
    """

    limit: int
    partition: int
    reader: int = 0

    def __post_init__(self) -> None:
        least = self.reader + 2 * self.partition + 4 * self.batch + 3 * _LEAST
        if least > self.limit:
            fitting = max((self.limit - self.reader) // 4, _LEAST)
            raise MemoryLimitError(
                f"ingest of partitions of {format_bytes(self.partition)} needs "
                f"{format_bytes(least)}; the memory limit is {format_bytes(self.limit)}",
                f"lower partition_bytes to {fitting} ({format_bytes(fitting)}), or raise "
                f"memory_limit to at least {least}",
            )

    @property
    def batch(self) -> int:
        """Bytes of a batch as it is read."""
        return min(_MOST_BATCH, max(_LEAST, self.limit // 64))

    @property
    def run(self) -> int:
        """Bytes of a run of rows that is sorted at once."""
        free = self.limit - self.reader - 4 * self.batch - 2 * self.partition
        return max(_LEAST, min(free // 3, self.partition))

    def check_group(self, group: int, where: str) -> None:
        """Refuse a time group (all rows of one time) that cannot be sorted within the limit.

        Raises
        ------
        MemoryLimitError
        """
        peak = self.reader + 4 * self.batch + 3 * max(group, self.run)
        peak += 2 * (self.partition + group)
        if group > self.run and peak > self.limit:
            raise MemoryLimitError(
                f"the rows of {where} take {format_bytes(group)} and are kept together; sorting "
                f"and writing them needs {format_bytes(peak)}, the memory limit is "
                f"{format_bytes(self.limit)}",
                f"raise memory_limit to at least {peak}, or give a finer time column",
            )
