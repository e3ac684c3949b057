"""Writing partitions in the background, and taking back all of them when one fails.

Always true: after a clean exit all files are durable; after an exception none is left. One
partition is being written while the next is gathered, never more.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.ingest.arrays import to_numpy
from featurestore.ingest.event_time import time_values
from featurestore.ingest.survey import Progress
from featurestore.schema import Field, TableSchema
from featurestore.storage.column_group import (
    ingested,
    new_partition_id,
    write_partition,
)
from featurestore.storage.group_writer import DATA
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import BASE_GROUP, PartitionEntry


class PartitionWriter:
    """Writes partitions, one in the background at a time; takes them all back if anything fails.

    Parameters
    ----------
    store : ObjectStore
    table : str
    schema : TableSchema
    first_sequence : int
    rows : int
        Rows to come, for ``on_progress``.
    on_progress : callable, optional
    """

    def __init__(
        self,
        store: ObjectStore,
        table: str,
        schema: TableSchema,
        first_sequence: int,
        rows: int,
        on_progress: Progress | None,
    ) -> None:
        self._store = store
        self._table = table
        self._schema = schema
        self._sequence = first_sequence
        self._rows = rows
        self._on_progress = on_progress
        self._written: list[PartitionEntry] = []
        self._begun: str | None = None
        # Encoding runs in C and leaves the other core to reading and sorting.
        self._thread = ThreadPoolExecutor(1, "featurestore-ingest")
        self._busy: Future[None] | None = None

    def write(self, rows: pa.Table) -> None:
        """Begin to write one partition, once the one before is written.

        Raises
        ------
        DiskFullError
            If the partition before did not fit.
        """
        self._wait()
        self._busy = self._thread.submit(self._write, rows)

    def _wait(self) -> None:
        busy, self._busy = self._busy, None
        if busy is not None:
            busy.result()
            if self._on_progress is not None:
                self._on_progress(sum(one.rows for one in self._written), self._rows, "write")

    def _write(self, rows: pa.Table) -> None:
        scalars = [one.name for one in self._schema if not one.is_tensor]
        self._begun = new_partition_id(self._sequence + len(self._written))
        written = write_partition(
            self._store,
            table=self._table,
            group=BASE_GROUP,
            partition=self._begun,
            columns=rows.select(scalars) if scalars else None,
            tensors={
                one.name: _tensor(rows.column(one.name), one)
                for one in self._schema
                if one.is_tensor
            },
            provenance=Provenance("ingest", ""),
            time_range=self._range(rows),
        )
        self._written.append(ingested(written, list(self._schema.key), self._schema.time))
        release_freed()

    def _range(self, rows: pa.Table) -> tuple[int, int] | None:
        if self._schema.time is None:
            return None
        column = rows.column(self._schema.time)
        first = time_values(column.slice(0, 1))
        last = time_values(column.slice(len(column) - 1))
        return int(first[0]), int(last[0])

    def finish(self) -> list[PartitionEntry]:
        """Make all files durable and return their entries."""
        self._wait()
        self._store.sync([file.path for one in self._written for file in one.all_files()])
        return self._written

    def __enter__(self) -> PartitionWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            return
        paths = [file.path for one in self._written for file in one.all_files()]
        if self._begun is not None:
            # The partition that was being written has no entry: its files are found by its id.
            base = f"{DATA}/{self._table}/{BASE_GROUP}"
            begun = f"{base}/{self._begun}-"
            paths += [one.path for one in self._store.list(base) if one.path.startswith(begun)]
        self._store.delete(dict.fromkeys(paths))


def _tensor(column: pa.ChunkedArray, field: Field) -> np.ndarray[Any, Any]:
    """Return a tensor column as an array ``[rows, *shape]``."""
    assert field.shape is not None
    flat = column.combine_chunks()
    values = (flat if isinstance(flat, pa.Array) else pa.concat_arrays(flat.chunks)).flatten()
    return to_numpy(values).reshape(len(column), *field.shape)
