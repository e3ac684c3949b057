"""Rows of a table that are ingested again, because their partition gives way to another.

Read as every other source is: in bounded batches, as often as wanted. One row group is in memory
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from featurestore.ingest.columns import arrow_type
from featurestore.ingest.event_time import time_values
from featurestore.ingest.formats import bounded, rows_within
from featurestore.schema import Field
from featurestore.storage.column_group import iter_columns
from featurestore.storage.group_writer import ROW_GROUP_BYTES
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry
from featurestore.storage.tensor_group import read_tensor


class StoredRows:
    """The rows ``start <= row < stop`` of a partition of a base column group, as an ``Input``.

    Parameters
    ----------
    store : ObjectStore
    entry : PartitionEntry
    fields : sequence of Field
        The columns of the group.
    start, stop : int
    """

    text = False
    format = "stored partition"

    def __init__(
        self,
        store: ObjectStore,
        entry: PartitionEntry,
        fields: Sequence[Field],
        start: int,
        stop: int,
    ) -> None:
        self.name = f"partition {entry.partition} of the table"
        self.types = pa.schema([(one.name, _nested_type(one)) for one in fields])
        # A row group as stored and decoded.
        self.reading_bytes = min(entry.decoded_bytes, 2 * ROW_GROUP_BYTES)
        self._store, self._entry = store, entry
        self._start, self._stop = start, stop

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        entry = self._entry
        scalars = [name for name in columns if name in entry.nulls]
        size = sum(entry.column_bytes[name] for name in columns)
        rows = rows_within(batch_bytes, size / max(entry.rows, 1))
        begin = 0
        # To the end, also beyond ``stop``: the counts that the entry says are compared there.
        for table in iter_columns(self._store, entry, scalars or list(entry.nulls)[:1], rows):
            first, last = max(self._start, begin), min(self._stop, begin + table.num_rows)
            if first < last:
                part = self._joined(table.slice(first - begin, last - first), columns, types, first)
                yield from bounded(part, batch_bytes)
            begin += table.num_rows

    def _joined(
        self, scalars: pa.Table, columns: Sequence[str], types: pa.Schema, first: int
    ) -> pa.RecordBatch:
        """Return a slice's columns in order, tensors read for just these rows."""
        arrays = []
        for name in columns:
            if name in self._entry.tensors:
                last = first + scalars.num_rows
                values = read_tensor(self._store, self._entry, name, first, last)
                type_ = types.field(name).type
                flat = pa.array(values.reshape(-1), type_.value_type)
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type_.list_size))
            else:
                found = scalars.column(name).combine_chunks()
                whole = found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)
                arrays.append(whole)
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def close(self) -> None:
        """Nothing is held between calls."""


def _nested_type(field: Field) -> pa.DataType:
    """Return a field's type with a tensor's shape visible."""
    if field.shape is None:
        return arrow_type(field)
    type_ = field.type
    for size in reversed(field.shape):
        type_ = pa.list_(type_, size)
    return type_


def rows_before(store: ObjectStore, entry: PartitionEntry, time: str, step: int | None) -> int:
    """Return how many rows of a partition are earlier than a time; all for ``None``.

    Reads the time column only.
    """
    if step is None:
        return entry.rows
    return sum(
        int(np.count_nonzero(time_values(part.column(time)) < step))
        for part in iter_columns(store, entry, [time])
    )
