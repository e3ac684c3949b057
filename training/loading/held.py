"""A part's rows held in memory: what a pack is to others, without a disk.

    Loader(data.train, 4096, shuffle=True, hold="memory")

Rows lie as they would in a pack, so that the order of every epoch, and every batch, is that of a loader
with a pack. They are read through the pipeline once, while the first epoch is under way.

Always true: what is held is projected, with an epoch and with reading, and refused before anything is
read if it exceeds the memory limit.

The trade-off: rows are read anew by each process; they are this process's own memory, which the kernel
cannot take back as it can the pages of a pack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from featurestore.dataset.batch import Batch, DatasetPart
from featurestore.errors import UnsupportedError
from training.loading.arrangement import Arrangement, Stripe
from training.loading.assembly import Assembly
from training.loading.gathering import check_range, checked_bounds, copied, taken
from training.loading.layout import batch_of, pack_layout
from training.loading.memory import Writing
from training.loading.mixing import Rows
from training.loading.pack_writer import PartitionWriter
from training.loading.row_memory import RowMemory, empty_arrays


class HeldRows(Assembly):
    """All rows of a part in memory, random access; safe to use from several threads.

    Parameters
    ----------
    part : DatasetPart
    arrangement : Arrangement
    writing : Writing
        What reading may hold beside the rows.

    Raises
    ------
    MemoryLimitError
        Before anything is read, if the rows do not fit.
    """

    activity = "read rows into memory (rows)"
    shared = False
    """Other processes cannot read them."""

    def __init__(self, part: DatasetPart, arrangement: Arrangement, writing: Writing) -> None:
        super().__init__(part, arrangement, writing)
        self.schema = part.schema
        self.rows = part.rows
        layout = pack_layout(part.schema, part.rows)
        self._memory = RowMemory(empty_arrays(layout, self.rows), 0, self.rows)
        self._writer = PartitionWriter(part, arrangement, layout, self._memory, writing.within)

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            "rows held in memory are this process's own",
            "read them here, as with num_workers=0, or leave hold= out: processes share a pack",
        )

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` as they lie, as arrays of their own."""
        check_range(start, stop, self.rows)
        self.require(start, stop - 1)
        return batch_of(copied(self._memory.arrays, start, stop, self.buffers), self.schema)

    def view(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` as they lie, read-only and not copied."""
        check_range(start, stop, self.rows)
        self.require(start, stop - 1)
        arrays = {key: one[start:stop] for key, one in self._memory.arrays.items()}
        for one in arrays.values():
            one.flags.writeable = False
        return batch_of(arrays, self.schema)

    def gather(self, rows: Rows) -> Batch:
        """Return some rows in the order given, as arrays of their own.

        Raises
        ------
        InvalidInputError
            If one is outside.
        """
        bounds = checked_bounds(rows, self.rows)
        if bounds is not None:
            self.require(*bounds)
        return batch_of(taken(self._memory.arrays, rows, self.buffers), self.schema)

    def prefetch(self, starts: Rows, count: int) -> None:
        """Do nothing: rows are in memory, or on their way to it."""

    def _place(
        self,
        stripe: Stripe,
        partition: int,
        wanted: Callable[[], bool],
        wrote: Callable[[int], None],
    ) -> bool:
        return self._writer.write(stripe, partition, wanted, wrote)

    def _settle(self, stripe: Stripe) -> None:
        """Do nothing: rows are where they stay."""

    def _finish(self) -> None:
        """Do nothing: rows are where they stay."""
