"""Runs: the source's rows as sorted tables, one after the other, each small enough for memory.

Always true: runs come in order of time and hold whole time groups; within a run rows are sorted by
(time, key columns), equal ones in the order in which they came. Together they are the source's rows,
each once. Tables without time keep the order of the source.

Sorted sources stream straight through; all others take a detour through spilled buckets.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.allocators import release_freed
from featurestore.errors import SourceError
from featurestore.ingest.arrays import to_numpy
from featurestore.ingest.buckets import Bucket, Router, spilled_bytes
from featurestore.ingest.event_time import time_text, time_values
from featurestore.ingest.memory import ROW_BYTES, IngestMemory
from featurestore.ingest.sources import Source
from featurestore.ingest.survey import Progress, Survey
from featurestore.schema import TableSchema
from featurestore.storage.scratch import Scratch
from featurestore.storage.spill import SpillFile


def sort_rows(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the rows sorted by these columns, ascending and stable."""
    if table.num_rows < 2 or not names:
        return table
    keys = table.select(list(dict.fromkeys(names)))
    # As fields: of a plain text pyarrow takes "[0]" and ".x" for ways into the table.
    ways = [(pc.field(name), "ascending") for name in keys.column_names]
    order = pc.sort_indices(keys, sort_keys=ways)
    positions = to_numpy(order)
    if bool((positions[1:] > positions[:-1]).all()):
        return table
    ordered = table.take(order)
    del table, keys, order, positions
    release_freed()
    return ordered


class Runs:
    """Makes runs of a surveyed source.

    Parameters
    ----------
    source : Source
    schema : TableSchema
    found : Survey
    memory : IngestMemory
    scratch : Scratch
    on_progress : callable, optional
    """

    def __init__(
        self,
        source: Source,
        schema: TableSchema,
        found: Survey,
        memory: IngestMemory,
        scratch: Scratch,
        on_progress: Progress | None,
    ) -> None:
        self._source = source
        self._schema = schema
        self._found = found
        self._memory = memory
        self._scratch = scratch
        self._on_progress = on_progress
        self._order = [*([schema.time] if schema.time is not None else []), *schema.key]
        self._routed = 0

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the runs.

        Raises
        ------
        MemoryLimitError
            Before the first run, if the rows of one time are too many for the limit.
        LimitError, DiskFullError
            Before the first run, if scratch space is too small.
        SourceError
            If the source has other rows than when it was surveyed.
        """
        if self._schema.time is None:
            return self._gathered()
        if self._found.ordered:
            return (sort_rows(run, self._order) for run in self._whole_groups())
        if self._held <= self._memory.run:
            return (sort_rows(run, self._order) for run in self._gathered(whole=True))
        columns = len(self._schema.names)
        needed = spilled_bytes(
            self._found.bytes, self._held, self._memory.run, self._buffer(), columns
        )
        self._scratch.require(needed, "sorting the rows")
        return self._spilled()

    @property
    def _held(self) -> int:
        return self._found.bytes + ROW_BYTES * self._found.rows

    def _counted(self) -> Generator[pa.RecordBatch, None, None]:
        """Yield the source's batches, and check that it still is what was surveyed."""
        rows = 0
        for batch in self._source.batches(batch_bytes=self._memory.batch):
            rows += batch.num_rows
            if rows > self._found.rows:
                break
            yield batch
        if rows != self._found.rows:
            raise SourceError(
                f"{self._source.files[0]} or a file beside it changed while it was read: "
                f"{self._found.rows} rows first, {'more' if rows > self._found.rows else rows} then",
                "ingest files that nobody writes to",
            )

    def _gathered(self, whole: bool = False) -> Iterator[pa.Table]:
        """Yield batches put together to about a run each, or all in one."""
        pending: list[pa.RecordBatch] = []
        size = 0
        for batch in self._counted():
            pending.append(batch)
            size += batch.nbytes + ROW_BYTES * batch.num_rows
            if size >= self._memory.run and not whole:
                yield pa.Table.from_batches(pending)
                pending, size = [], 0
        if pending:
            yield pa.Table.from_batches(pending)

    def _whole_groups(self) -> Iterator[pa.Table]:
        """Yield runs of a source in order of time; the last time of each waits for the next."""
        rest: pa.Table | None = None
        for table in self._gathered():
            joined = table if rest is None else pa.concat_tables([rest, table])
            times = time_values(joined.column(str(self._schema.time)))
            end = int(np.searchsorted(times, times[-1]))
            rest = joined.slice(end)
            if end:
                yield joined.slice(0, end)
        if rest is not None:
            yield rest

    def _spilled(self) -> Iterator[pa.Table]:
        with SpillFile(self._scratch) as spill:
            router = Router(spill, self._schema, self._buffer(), self._count_routed)
            for bucket in self._buckets(router):
                segments = (spill.read(one) for one in bucket.segments)
                yield sort_rows(pa.concat_tables(segments), self._order)

    def _buckets(self, router: Router) -> list[Bucket]:
        found, most = self._found, self._memory.run
        assert found.first is not None
        assert found.last is not None
        cuts = found.sample.cuts(router.parts_for(self._held, most), found.first, found.last)
        with closing(self._counted()) as batches:
            coarse: Iterable[Bucket] = router.route(batches, cuts)
        # All of them before the first is written: a refusal comes before any work is lost.
        buckets = [fine for one in coarse for fine in router.refine(one, most)]
        for one in buckets:
            type_ = self._schema[str(self._schema.time)].type
            self._memory.check_group(
                one.held,
                f"the rows of {self._schema.time} {time_text(one.first, type_)}",
                "give a finer time column",
            )
        return buckets

    def _buffer(self) -> int:
        """Bytes to gather while routing: no partition is in memory then."""
        return max(self._memory.batch, min(64 << 20, self._memory.free // 4))

    def _count_routed(self, rows: int) -> None:
        self._routed = min(self._routed + rows, self._found.rows)
        if self._on_progress is not None:
            self._on_progress(self._routed, self._found.rows, "route")
