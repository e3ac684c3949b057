"""Rows that are streamed from the table in every epoch, without a pack: no disk, and few stripes in memory.

    Loader(data.train, 4096, shuffle=True, pack=False)

An epoch visits one stripe after the other (``striped_order``). The stripe that is visited is put together
in memory, mixed as in a pack, while threads read the next one; what the epoch has left is let go of, and
its memory used for the one after.

Always true: at most ``stripes`` of them are in memory, whoever asks for rows, from however many threads;
rows and their places are those of a pack; what a batch holds is a copy, so memory is used again only
when nobody reads it. When the last pass ends, nothing is held.

The trade-off: every epoch reads and transforms the whole part. A batch asked for by itself reads the
stripe it lies in, unless that is there still.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np

from featurestore.dataset.batch import Batch, DatasetPart, HostArray
from featurestore.errors import UnsupportedError
from training.loading.arrangement import Arrangement, Stripe
from training.loading.assembly import Assembly
from training.loading.gathering import check_range, checked_bounds, take_into
from training.loading.layout import batch_of, pack_layout
from training.loading.memory import Streaming
from training.loading.mixing import Rows
from training.loading.pack_writer import PartitionWriter
from training.loading.row_memory import RowMemory, empty_arrays


class StreamedRows(Assembly):
    """The rows of a part, of which a few stripes are in memory at a time.

    Parameters
    ----------
    part : DatasetPart
    arrangement : Arrangement
    streaming : Streaming
        How many stripes at a time, and what reading may hold beside them.

    Raises
    ------
    MemoryLimitError
        Before anything is read, if that does not fit.
    """

    shared = False
    """Other processes cannot read them."""

    def __init__(self, part: DatasetPart, arrangement: Arrangement, streaming: Streaming) -> None:
        super().__init__(part, arrangement, streaming.writing)
        self.schema = part.schema
        self.rows = part.rows
        self._layout = pack_layout(part.schema, part.rows)
        self._starts = np.array([one.start for one in arrangement.stripes], dtype=np.int64)
        self._most = max((one.rows for one in arrangement.stripes), default=0)
        self._stripes = streaming.stripes
        self._held: dict[int, RowMemory] = {}  # stripes that are there, or on their way
        self._free: list[dict[str, HostArray]] = []
        self._users: Counter[int] = Counter()  # who reads a stripe, or waits for it
        self._passes = 0

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            "rows that are streamed without a pack are this process's own",
            "read them here, as with num_workers=0 (threads read ahead), or leave pack=False out: "
            "processes share a pack",
        )

    @property
    def held(self) -> tuple[int, ...]:
        """The numbers of the stripes that are in memory, or on their way there."""
        with self._state:
            return tuple(self._held)

    # --- reading --------------------------------------------------------------------------------------

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` as they lie in a pack, as arrays of their own."""
        check_range(start, stop, self.rows)
        return self.gather(np.arange(start, stop, dtype=np.int64))

    def gather(self, rows: Rows) -> Batch:
        """Return some rows in the order given, as arrays of their own.

        Stripe after stripe, so that rows of more stripes than fit memory are found, too.

        Raises
        ------
        InvalidInputError
            If one is outside.
        """
        checked_bounds(rows, self.rows)
        found = empty_arrays(self._layout, rows.size, self.buffers.empty)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in _in_order(numbers):
            places = np.flatnonzero(numbers == number)
            with self._using(number) as memory:
                _fill(found, memory, places, rows)
        return batch_of(found, self.schema)

    def prefetch(self, starts: Rows, count: int) -> None:
        """Do nothing: whole stripes are read ahead."""

    @contextmanager
    def ahead(self, stripes: Iterable[int]) -> Iterator[None]:
        """Read in threads of their own inside the block: these stripes in order, as many as fit."""
        with self._state:
            self._passes += 1
        try:
            with super().ahead(stripes):
                yield
        finally:
            with self._state:
                self._passes -= 1
                if not self._passes:
                    self._let_go()

    @contextmanager
    def _using(self, number: int) -> Iterator[RowMemory]:
        """Keep a stripe in memory inside the block, reading it first if it is not there."""
        with self._state:
            self._users[number] += 1  # from now on it is not dropped
            while number in self._plan and self._plan[0] != number:
                self._plan.popleft()
            self._state.notify_all()
        try:
            self._wait_for(number)
            yield self._held[number]
        finally:
            with self._state:
                self._users[number] -= 1
                self._state.notify_all()

    # --- which stripes are in memory ------------------------------------------------------------------

    def _take(self, number: int) -> tuple[Stripe, int] | None:
        return super()._take(number) if self._has_place(number) else None

    def _has_place(self, number: int) -> bool:
        """Whether a stripe has its place in memory, which it gets if there is one."""
        if number in self._held:
            return True
        if len(self._held) == self._stripes and not self._dropped_for(number):
            return False
        arrays = self._free.pop() if self._free else empty_arrays(self._layout, self._most)
        stripe = self.arrangement.stripes[number]
        self._held[number] = RowMemory(arrays, stripe.start, stripe.rows)
        return True

    def _dropped_for(self, number: int) -> bool:
        """Drop the stripe that is needed last, if it is needed after another or not at all."""
        unused = [one for one in self._held if not self._users[one] and not self._being_read(one)]
        if not unused:
            return False
        last = max(unused, key=self._needed)
        if not self._users[number] and self._needed(last) <= self._needed(number):
            return False
        self._drop(last)
        return True

    def _needed(self, number: int) -> int:
        """Return when a stripe is needed: its place in the plan, which it has left if it is not in it."""
        return self._plan.index(number) if number in self._plan else len(self.arrangement.stripes)

    def _being_read(self, number: int) -> bool:
        return self._missing[number] > len(self._open[number])

    def _drop(self, number: int) -> None:
        stripe = self.arrangement.stripes[number]
        self._free.append(self._held.pop(number).whole)
        self._open[number] = deque(stripe.partitions)
        self._missing[number] = len(stripe.partitions)

    def _let_go(self) -> None:
        """Drop what nobody reads, and its memory."""
        for number in list(self._held):
            if not self._users[number] and not self._being_read(number):
                self._drop(number)
        self._free.clear()

    # --- who reads what -------------------------------------------------------------------------------

    def _planned(self, stripes: Iterable[int]) -> list[int]:
        return list(dict.fromkeys(stripes))

    def _next(self) -> tuple[Stripe, int] | None:
        wanted = [one for one, users in self._users.items() if users and self._missing[one]]
        for number in wanted:
            task = self._take(number)
            if task is not None:
                return task
        if any(one not in self._held for one in wanted):
            return None  # the next place is theirs
        for number in self._plan:
            task = self._take(number)
            if task is not None or number not in self._held:
                return task
        return None

    @property
    def _more(self) -> bool:
        return True  # as soon as the reader has left a stripe

    def _want(self, number: int) -> None:
        """Do nothing: who uses a stripe wants it."""

    def _put_off(self, number: int) -> None:
        """Do nothing: what is in the plan is read, and nothing else."""

    def _place(
        self,
        stripe: Stripe,
        partition: int,
        wanted: Callable[[], bool],
        wrote: Callable[[int], None],
    ) -> bool:
        target = self._held[stripe.number]
        writer = PartitionWriter(
            self.part, self.arrangement, self._layout, target, self.writing.within
        )
        return writer.write(stripe, partition, wanted, wrote)

    def _settle(self, stripe: Stripe) -> None:
        """Do nothing: who waits for it was told."""

    def _end(self) -> None:
        """Do nothing: it is never whole."""

    def _finish(self) -> None:
        """Do nothing: it is never whole."""


def _in_order(numbers: Rows) -> list[int]:
    """Return the different ones of some numbers, in the order in which they come first."""
    found, first = np.unique(numbers, return_index=True)
    order: list[int] = found[np.argsort(first)].tolist()
    return order


def _fill(found: dict[str, HostArray], memory: RowMemory, places: Rows, rows: Rows) -> None:
    """Copy the rows at some places of a batch from the stripe they lie in."""
    first, stop = int(places[0]), int(places[-1]) + 1
    together = stop - first == places.size  # as in every order but a shuffled one of all stripes
    numbers = rows[first:stop] - memory.start if together else rows[places] - memory.start
    for key, source in memory.arrays.items():
        if together:
            take_into(found[key][first:stop], source, numbers)
        else:
            found[key][places] = source[numbers]
