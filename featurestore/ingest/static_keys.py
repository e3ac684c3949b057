"""Repeated keys in tables without time, whose rows are not sorted: found by hash, on disk.

Key columns and row numbers are spilled into buckets by a hash of the key, so equal keys meet in one
bucket; each bucket's distinct keys fit in memory. A row that goes is marked in a file of one byte
per row.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.ingest.arrays import to_arrow, to_numpy
from featurestore.ingest.duplicates import Duplicates, equals_previous
from featurestore.ingest.runs import sort_rows
from featurestore.ingest.spill import Segment, SpillFile, disk_full_as_error
from featurestore.schema import TableSchema

_ROW: Final = "__fs_row"
_EXISTING: Final = -1


class StaticKeys:
    """Finds the rows whose key another row repeats later.

    Parameters
    ----------
    schema : TableSchema
        Has a key and no time.
    rows : int
        Number of rows to come.
    size : int
        Decoded bytes of their key columns, about.
    memory : int
        Bytes to use.
    scratch : Path, optional
    """

    def __init__(
        self, schema: TableSchema, rows: int, size: int, memory: int, scratch: Path | None
    ) -> None:
        self._schema = schema
        self._keys = list(schema.key)
        self.existing = 0
        """How many rows that the table has already are repeated by new ones."""
        self._memory = memory
        folder = Path(tempfile.gettempdir()) if scratch is None else scratch
        # A quarter: a bucket is held with its sorted copy and the keys kept so far.
        self._parts = max(1, min(1024, -(-(size + 8 * rows) * 4 // memory)))
        self._buckets: list[list[Segment]] = [[] for _ in range(self._parts)]
        self._spill = SpillFile(folder)
        try:
            with disk_full_as_error(folder, 0):
                self._marks = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                # Real blocks, not a hole: a full disk under a map would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._marks.fileno(), 0, max(rows, 1))
                self._marks.truncate(max(rows, 1))
        except BaseException:  # Ctrl-C too: scratch space goes back, and the error goes on
            self._spill.close()
            raise
        self._dropped = np.memmap(self._marks, np.bool_, "r+", shape=(max(rows, 1),))

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
            for segment in bucket:
                part = self._spill.read(segment)
                table = part if kept is None else pa.concat_tables([kept, part])
                # Existing rows have the number -1 and sort first.
                table = sort_rows(table, [*self._keys, _ROW])
                same = equals_previous(table, self._keys)
                if same.any():
                    into.note(table, same)
                    goes = np.append(same[1:], False)
                    numbers = to_numpy(table.column(_ROW))[goes]
                    self.existing += int((numbers == _EXISTING).sum())
                    self._dropped[numbers[numbers != _EXISTING]] = True
                    table = table.filter(to_arrow(~goes))
                kept = table

    def last_only(self, runs: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield runs in the order of the source without the marked rows."""
        start = 0
        for run in runs:
            goes = np.asarray(self._dropped[start : start + run.num_rows])
            start += run.num_rows
            kept = run.filter(to_arrow(~goes)) if goes.any() else run
            if kept.num_rows:
                yield kept

    def __enter__(self) -> StaticKeys:
        return self

    def __exit__(self, *_: object) -> None:
        del self._dropped
        self._marks.close()
        self._spill.close()


def _hashes(keys: pa.Table) -> npt.NDArray[np.uint64]:
    import polars as pl

    frame = pl.from_arrow(keys)
    assert isinstance(frame, pl.DataFrame)
    # -0.0 and 0.0 are one key and must meet.
    zero = [pl.col(n) + 0.0 for n, t in frame.schema.items() if t.is_float()]
    return frame.with_columns(zero).hash_rows(seed=0).to_numpy()
