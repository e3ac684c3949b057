"""Where a partition is cut into slices: as few as keep each within its limits.

Columns of fixed width need no look: a slice has so many rows. Those of varying width are read once, a few
rows at a time, and so are the times where a cut must lie between two of them. So a row that is far wider
than the others, or many rows of one time, make for uneven slices instead of a larger peak.

Always true: the slices cover the partition in order, none is empty, none exceeds its limits, and where
times are kept whole no time is in two slices; else it is refused.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import MemoryLimitError
from featurestore.execution.reading import PartitionSource
from featurestore.plan.slicing import SliceLimits
from featurestore.schema import TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.row_width import row_widths
from featurestore.transforms.event_time import arrow_times
from featurestore.units import format_bytes

Rows = tuple[int, int]
"""A slice: the rows ``start <= row < stop``."""


@dataclass(frozen=True, slots=True)
class CutTask:
    """One partition and what its slices may not exceed.

    Parameters
    ----------
    url : str
    source : PartitionSource
        With the columns that are limited, and the time where times stay whole.
    schema : TableSchema
    limits : SliceLimits
    what : str
        What is to be computed in slices, for messages.
    bytes : int
        What a slice within the limits needs at its peak, for messages; 0 if that is not known.
    memory_limit : int
        For which the slices were made so small, for messages.
    at_once : int
        How many slices they were to fit beside each other.
    """

    url: str
    source: PartitionSource
    schema: TableSchema
    limits: SliceLimits
    what: str
    bytes: int = 0
    memory_limit: int = 0
    at_once: int = 1


def cut_partition(task: CutTask) -> tuple[Rows, ...]:
    """Return the slices of a partition.

    Raises
    ------
    MemoryLimitError
        If a single time, which must stay whole, or a single row exceeds the limits.
    """
    return tuple(slices(open_object_store(task.url), task))


def slices(store: ObjectStore, task: CutTask) -> Iterator[Rows]:
    """Yield the slices of a partition; see :func:`cut_partition`."""
    limits, rows = task.limits, task.source.rows
    columns = list(limits.column_bytes)
    time = task.schema.time if limits.whole_times else None
    if time is not None:
        columns = list(dict.fromkeys((*columns, time)))
    if not columns:
        for start in range(0, rows, limits.rows):
            yield start, min(start + limits.rows, rows)
        return
    cutter = _Cutter(limits)
    for block in task.source.blocks(store, columns):
        widths = [_widths(block[name]) for name in limits.column_bytes]
        times = None if time is None else arrow_times(block[time])
        try:
            yield from cutter.cut(block.num_rows, widths, times)
        except _Uncuttable as stuck:
            raise _refusal(task, stuck, *_of_its_time(store, task, stuck)) from None
    yield from cutter.rest()


class _Uncuttable(Exception):
    """More rows than a slice may have, and no place to cut between them."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


def _of_its_time(store: ObjectStore, task: CutTask, stuck: _Uncuttable) -> tuple[int, float]:
    """Return how many rows have the time of the row where no slice could end, or it alone without times.

    And how many times as large as a slice they are.
    """
    limits, schema = task.limits, task.schema
    time = schema.time if limits.whole_times else None
    columns = [*limits.column_bytes, *([] if time is None else [time])]
    rows, done, value = 0, 0, None
    sizes = dict.fromkeys(limits.column_bytes, 0)
    for block in task.source.blocks(store, list(dict.fromkeys(columns))):
        at = stuck.start - done
        if time is None:
            same = np.arange(block.num_rows) == at
        else:
            times = arrow_times(block[time])
            if value is None and at < len(times):
                value = times[at]
            same = np.zeros(len(times), np.bool_) if value is None else times == value
        rows += int(np.count_nonzero(same))
        for name in sizes:
            sizes[name] += int(_widths(block[name])[same].sum())
        done += block.num_rows
    shares = [size / limits.column_bytes[name] for name, size in sizes.items()]
    return rows, max([rows / limits.rows, *shares])


def _refusal(task: CutTask, stuck: _Uncuttable, rows: int, share: float) -> MemoryLimitError:
    limits = task.limits
    what = f"the {rows} rows of one time" if limits.whole_times else "a row"
    problem = (
        f"{task.what} cannot be computed in slices of partition {task.source.partition}: {what} from "
        f"row {stuck.start} on must stay together, a slice may have {limits.rows} rows"
    )
    if limits.column_bytes:
        problem += f" and of its columns {dict(limits.column_bytes)} bytes"
    if not task.bytes:
        return MemoryLimitError(problem, "raise memory_limit")
    # What a slice needs grows at most in proportion to its rows, or to the bytes of a column.
    more = task.at_once * math.ceil(task.bytes * (share - 1))
    return MemoryLimitError(
        f"{problem} ({format_bytes(task.bytes)})",
        f"raise memory_limit to at least {-(-(task.memory_limit + more) // 2**20)}MiB",
    )


class _Cutter:
    """Takes the rows' widths and times in order, and says where to cut."""

    def __init__(self, limits: SliceLimits) -> None:
        self._rows = limits.rows
        self._most = tuple(limits.column_bytes.values())
        self._done = 0
        self._total = [0] * len(self._most)
        # The slice that is open, and the last place where it may be closed.
        self._start, self._before = 0, list(self._total)
        self._place, self._at_place = 0, list(self._total)
        self._last_time: int | None = None

    def cut(
        self,
        rows: int,
        widths: Sequence[npt.NDArray[np.int64]],
        times: npt.NDArray[np.int64] | None,
    ) -> Iterator[Rows]:
        """Yield the slices that end within the next rows."""
        sums = [np.concatenate([np.zeros(1, np.int64), np.cumsum(one)]) for one in widths]
        allowed = None if times is None else self._new_times(times)
        while True:
            fitting = self._fitting(rows, sums)
            place = fitting if allowed is None else _last_up_to(allowed, fitting)
            if place is not None and self._done + place > self._place:
                self._place = self._done + place
                self._at_place = [
                    total + int(one[place]) for total, one in zip(self._total, sums, strict=True)
                ]
            if fitting == rows:
                break
            if self._place == self._start:
                raise _Uncuttable(self._start)
            yield self._start, self._place
            self._start, self._before = self._place, self._at_place
        self._done += rows
        self._total = [total + int(one[-1]) for total, one in zip(self._total, sums, strict=True)]

    def rest(self) -> Iterator[Rows]:
        """Yield the last slice."""
        if self._start < self._done:
            yield self._start, self._done

    def _fitting(self, rows: int, sums: Sequence[npt.NDArray[np.int64]]) -> int:
        """Return how many of these rows the open slice may take."""
        fitting = min(rows, self._start + self._rows - self._done)
        for one, most, before, total in zip(
            sums, self._most, self._before, self._total, strict=True
        ):
            room = most + before - total
            fitting = min(fitting, int(np.searchsorted(one, room, side="right")) - 1)
        return fitting

    def _new_times(self, times: npt.NDArray[np.int64]) -> list[int]:
        """Return the rows that have another time than the row before them."""
        if not len(times):
            return []
        found = (np.flatnonzero(times[1:] != times[:-1]) + 1).tolist()
        if self._last_time is not None and int(times[0]) != self._last_time:
            found.insert(0, 0)
        self._last_time = int(times[-1])
        return list(found)


def _last_up_to(places: Sequence[int], limit: int) -> int | None:
    """Return the largest of some ascending places that is at most ``limit``, if there is one."""
    at = bisect_right(places, limit)
    return places[at - 1] if at else None


def _widths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the bytes of each row."""
    parts = []
    for chunk in column.chunks:
        found = row_widths(chunk)
        parts.append(np.full(len(chunk), found, np.int64) if isinstance(found, int) else found)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
