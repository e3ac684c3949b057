"""Repeated keys in tables without time, whose rows are not sorted: found by hash, on disk.

Key columns and row numbers are spilled into buckets by a hash of the key, so equal keys meet in one
bucket; each bucket's distinct keys fit in memory. The numbers of rows that go are spilled too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.ingest.arrays import to_arrow, to_numpy
from featurestore.ingest.dropped_rows import DroppedRows
from featurestore.ingest.duplicates import Duplicates, equals_previous
from featurestore.ingest.runs import sort_rows
from featurestore.schema import TableSchema
from featurestore.storage.scratch import Scratch
from featurestore.storage.spill import Segments, SpillFile

_ROW: Final = "__fs_row"
_EXISTING: Final = -1
_MOST_PARTS: Final = 1024


class StaticKeys:
    """Finds the rows whose key another row repeats later.

    Parameters
    ----------
    schema : TableSchema
        Has a key and no time.
    rows : int
        Number of rows to come.
    size : int
        Bytes of their key columns and numbers, with those of rows that the table has.
    memory : int
        Bytes to use.
    scratch : Scratch

    Raises
    ------
    LimitError, DiskFullError
        If scratch space is too small.
    """

    def __init__(
        self, schema: TableSchema, rows: int, size: int, memory: int, scratch: Scratch
    ) -> None:
        scratch.require(size + size // 4 + 8 * rows, "looking for repeated keys")
        self._schema = schema
        self._keys = list(schema.key)
        self.existing = 0
        """How many rows that the table has already are repeated by new ones."""
        self._memory = memory
        # A quarter: a bucket is held with its sorted copy and the keys kept so far.
        self._parts = max(1, min(_MOST_PARTS, -(-size * 4 // memory)))
        self._buckets = [Segments() for _ in range(self._parts)]
        self._spill = SpillFile(scratch)
        try:
            self._dropped = DroppedRows(rows, scratch)
        except BaseException:  # Ctrl-C too: scratch space goes back, and the error goes on
            self._spill.close()
            raise

    def add(self, batches: Iterable[pa.RecordBatch], existing: bool = False) -> None:
        """Take in key columns; rows that the table has already have no number."""
        pending: list[pa.Table] = []
        size = start = 0
        for batch in batches:
            count = batch.num_rows
            numbers = np.full(count, _EXISTING) if existing else np.arange(start, start + count)
            table = pa.Table.from_batches([batch.select(self._keys)])
            pending.append(table.append_column(_ROW, to_arrow(numbers)))
            start, size = start + count, size + table.nbytes + 8 * count
            if size > self._memory // 4:
                self._flush(pending)
                pending, size = [], 0
        self._flush(pending)

    def _flush(self, pending: list[pa.Table]) -> None:
        if not pending:
            return
        table = pa.concat_tables(pending)
        place = _hashes(table.select(self._keys)) % np.uint64(self._parts)
        order = np.argsort(place.astype(np.uint16), kind="stable")
        table = table.take(to_arrow(order))
        ends = np.cumsum(np.bincount(place.astype(np.int64), minlength=self._parts))
        for bucket, begin, end in zip(self._buckets, [0, *ends[:-1]], ends, strict=True):
            if begin < end:
                bucket.append(self._spill.append(table.slice(begin, end - begin)))

    def resolve(self, into: Duplicates) -> None:
        """Mark all but the last row of each key; count and note the repeated ones."""
        for bucket in self._buckets:
            kept: pa.Table | None = None
            for part in self._parted(bucket):
                table = part if kept is None else pa.concat_tables([kept, part])
                kept = self._last_of_each(table, into)
                release_freed()

    def _parted(self, bucket: Segments) -> Iterator[pa.Table]:
        """Yield a bucket's rows in a few parts: what is kept is sorted anew with each of them."""
        pending: list[pa.Table] = []
        size = 0
        for segment in bucket:
            pending.append(self._spill.read(segment))
            size += segment.length
            if size > self._memory // 8:
                yield pa.concat_tables(pending)
                pending, size = [], 0
        if pending:
            yield pa.concat_tables(pending)

    def _last_of_each(self, table: pa.Table, into: Duplicates) -> pa.Table:
        """Return the last row of each key; the others go."""
        # Existing rows have the number -1 and sort first.
        table = sort_rows(table, [*self._keys, _ROW])
        same = equals_previous(table, self._keys)
        if not same.any():
            return table
        into.note(table, same)
        goes = np.append(same[1:], False)
        numbers = to_numpy(table.column(_ROW))[goes]
        self.existing += int((numbers == _EXISTING).sum())
        self._dropped.add(numbers[numbers != _EXISTING])
        return table.filter(to_arrow(~goes))

    def last_only(self, runs: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield runs in the order of the source without the marked rows."""
        start = 0
        for run in runs:
            goes = self._dropped.between(start, start + run.num_rows)
            start += run.num_rows
            kept = run.filter(to_arrow(~goes)) if goes.any() else run
            if kept.num_rows:
                yield kept

    def __enter__(self) -> StaticKeys:
        return self

    def __exit__(self, *_: object) -> None:
        self._dropped.close()
        self._spill.close()


def _hashes(keys: pa.Table) -> npt.NDArray[np.uint64]:
    import polars as pl

    frame = pl.from_arrow(keys)
    assert isinstance(frame, pl.DataFrame)
    # -0.0 and 0.0 are one key and must meet.
    zero = [pl.col(n) + 0.0 for n, t in frame.schema.items() if t.is_float()]
    return frame.with_columns(zero).hash_rows(seed=0).to_numpy()
