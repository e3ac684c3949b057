"""Rows routed by time into spilled buckets, each small enough to be sorted in memory.

Cuts come from a sample, so a bucket may turn out too large: it is then routed again by a sample of
its own, until it fits or holds a single time. Always true: buckets are in order of time, no time is
in two of them, and within a bucket rows keep the order in which they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.ingest.arrays import to_arrow
from featurestore.ingest.event_time import Steps, time_values
from featurestore.ingest.memory import ROW_BYTES
from featurestore.ingest.survey import TimeSample
from featurestore.ingest.widths import row_widths
from featurestore.schema import TableSchema
from featurestore.storage.spill import COLUMN_OVERHEAD, Segment, Segments, SpillFile

FAN_OUT: Final = 256
"""Buckets made at once: more would make their segments in the spill file too small."""


@dataclass(slots=True)
class Bucket:
    """Rows between two cuts.

    Parameters
    ----------
    first, last : int
        Range of their times in steps.
    bytes : int
        Decoded size.
    """

    segments: Segments = field(default_factory=Segments)
    bytes: int = 0
    rows: int = 0
    first: int = 0
    last: int = 0

    @property
    def held(self) -> int:
        """Bytes that sorting takes into account: the rows and what goes with each."""
        return self.bytes + ROW_BYTES * self.rows

    def add(self, segment: Segment, size: int, first: int, last: int) -> None:
        """Count a segment in."""
        self.first = min(self.first, first) if self.segments else first
        self.last = max(self.last, last) if self.segments else last
        self.segments.append(segment)
        self.bytes += size
        self.rows += segment.rows


class Router:
    """Writes rows to buckets.

    Parameters
    ----------
    spill : SpillFile
    schema : TableSchema
        Has a time.
    buffer : int
        Bytes of rows that are gathered before they are written.
    on_rows : callable
        Called with the number of rows routed each time.
    """

    def __init__(
        self,
        spill: SpillFile,
        schema: TableSchema,
        buffer: int,
        on_rows: Callable[[int], None] = lambda rows: None,
    ) -> None:
        assert schema.time is not None
        self._spill = spill
        self._schema = schema
        self._time = schema.time
        self._buffer = buffer
        self._on_rows = on_rows

    def route(self, batches: Iterable[pa.RecordBatch], cuts: Steps) -> list[Bucket]:
        """Write rows to the buckets between ``cuts`` and return those that got any, in order."""
        buckets = [Bucket() for _ in range(len(cuts) + 1)]
        pending: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            pending.append(batch)
            size += batch.nbytes
            self._on_rows(batch.num_rows)
            if size >= self._buffer:
                self._flush(pending, cuts, buckets)
                pending, size = [], 0
        if pending:
            self._flush(pending, cuts, buckets)
        return [one for one in buckets if one.rows]

    def _flush(self, pending: list[pa.RecordBatch], cuts: Steps, buckets: list[Bucket]) -> None:
        table = pa.Table.from_batches(pending)
        pending.clear()
        # 16-bit numbers are sorted by radix, stably: arrival order is kept.
        place = np.searchsorted(cuts, time_values(table.column(self._time)), side="right")
        order = np.argsort(place.astype(np.uint16), kind="stable")
        table = table.take(to_arrow(order))
        release_freed()
        widths = row_widths(table, self._schema)
        times = time_values(table.column(self._time))
        ends = np.cumsum(np.bincount(place, minlength=len(buckets)))
        for bucket, start, end in zip(buckets, [0, *ends[:-1]], ends, strict=True):
            if start < end:
                part = times[start:end]
                segment = self._spill.append(table.slice(start, end - start))
                size = int(widths[start:end].sum())
                bucket.add(segment, size, int(part.min()), int(part.max()))
        del table, place, order, widths, times
        release_freed()

    def refine(self, bucket: Bucket, most: int) -> list[Bucket]:
        """Return the bucket parted into buckets of at most ``most`` bytes or one time each."""
        if bucket.held <= most or bucket.first == bucket.last:
            return [bucket]
        sample = TimeSample()
        for segment in bucket.segments:
            table = self._spill.read(segment)
            sample.add(time_values(table.column(self._time)), row_widths(table, self._schema))
        cuts = sample.cuts(self.parts_for(bucket.held, most), bucket.first, bucket.last)
        rows = (batch for one in bucket.segments for batch in self._spill.read(one).to_batches())
        return [fine for part in self.route(rows, cuts) for fine in self.refine(part, most)]

    def parts_for(self, size: int, most: int) -> int:
        """Return how many buckets to make so that most of them fit although cuts are estimates."""
        return max(
            2, min(fan_out(self._buffer, len(self._schema.names)) - 1, -(-size * 3 // (2 * most)))
        )


def fan_out(buffer: int, columns: int) -> int:
    """Return how many buckets may be made at once.

    Each flush of the buffer makes a segment for each bucket, and each segment costs a little for
    each column: a quarter of the rows' own bytes, at most.
    """
    return max(4, min(FAN_OUT, buffer // (4 * COLUMN_OVERHEAD * max(1, columns))))


def spilled_bytes(size: int, held: int, most: int, buffer: int, columns: int) -> int:
    """Return the scratch space that sorting rows by way of buckets takes, about.

    Parameters
    ----------
    size, held : int
        Bytes of all rows, and what sorting them takes into account.
    most : int
        Of the latter, those of a bucket that is sorted at once.
    buffer, columns : int
        As for :class:`Router`.
    """
    fan = fan_out(buffer, columns)
    buckets = max(2, -(-held * 3 // (2 * most)))
    # Buckets that are still too large are written once more.
    levels = max(1, math.ceil(math.log(buckets) / math.log(fan) - 1e-9))
    segments = levels * min(fan, buckets) * max(1, -(-size // max(1, buffer)))
    # A twentieth for validity, and for buckets that come out too large.
    return levels * (size + size // 20) + segments * COLUMN_OVERHEAD * columns
