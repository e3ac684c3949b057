"""Deleting rows: one task per partition says which rows go, and writes the others anew.

Only the columns of the condition are read where no row or every row goes. The rows that stay are
copied as Arrow, never through a dataframe library, so their values and types are exactly as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.execution.reading import PartitionSource
from featurestore.execution.task_costs import read_extent, reading_cost
from featurestore.schema import Field, TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import (
    ingested,
    read_columns,
    require_intact,
    sync_partition,
    write_partition,
)
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.storage.tensor_group import read_tensor
from featurestore.transforms.base import EMPTY_STATE
from featurestore.transforms.expression import Expression

_COPIES: Final = 3
"""The rows as read, those that stay, and these while they are encoded."""


@dataclass(frozen=True, slots=True)
class DeleteTask:
    """One partition: which rows go, and under which id the others are written.

    Parameters
    ----------
    url, engine : str
    table : str
    source : PartitionSource
        With the columns of the condition.
    schema : TableSchema
    fields : tuple of Field
        The ingested columns.
    condition : Expression
        With one output, true for rows that go.
    partition : str
        The new id.
    """

    url: str
    engine: str
    table: str
    source: PartitionSource
    schema: TableSchema
    fields: tuple[Field, ...]
    condition: Expression
    partition: str

    @property
    def peak_bytes(self) -> int:
        """Bytes it needs at most."""
        names = self.condition.columns
        extent = read_extent(self.source, names)
        work = self.condition.memory(self.schema, extent)
        outputs = self.condition.output_bytes(self.schema, extent)
        rows = _COPIES * self.source.base.decoded_bytes
        return reading_cost(self.source, names, self.schema) + work + outputs + rows


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many rows of a partition go, and where the others are; None if all or none go."""

    removed: int
    kept: PartitionEntry | None


def delete_rows(task: DeleteTask) -> Deleted:
    """Write a partition's rows that stay as a new partition, durable, if some go and some stay."""
    store, engine = open_object_store(task.url), get_engine(task.engine)
    goes = _condition(task, store, engine)
    removed = int(np.count_nonzero(goes))
    if removed in (0, task.source.rows):
        return Deleted(removed, None)
    entry = task.source.base
    require_intact(store, entry)
    scalars = [one.name for one in task.fields if not one.is_tensor]
    columns = read_columns(store, entry, scalars).filter(pa.array(~goes)) if scalars else None
    written = write_partition(
        store,
        table=task.table,
        group=BASE_GROUP,
        partition=task.partition,
        columns=columns,
        tensors={name: read_tensor(store, entry, name)[~goes] for name in entry.tensors},
        provenance=Provenance("ingest", ""),
        time_range=None if columns is None else _time_range(columns, task.schema, engine),
    )
    sync_partition(store, written)
    return Deleted(removed, ingested(written, list(task.schema.key), task.schema.time))


def _condition(task: DeleteTask, store: ObjectStore, engine: Engine) -> npt.NDArray[np.bool_]:
    """Return for which rows the condition is true."""
    partition = task.source.read(store, engine, task.condition.columns, task.schema)
    frame: Any = task.condition.apply(partition, EMPTY_STATE, engine).frame
    true, known = engine.values(frame.get_column(frame.columns[0]))
    return engine.to_host(true & known)


def _time_range(columns: pa.Table, schema: TableSchema, engine: Engine) -> tuple[int, int] | None:
    if schema.time is None:
        return None
    times = columns.select([schema.time])
    ends = pa.concat_tables([times.slice(0, 1), times.slice(times.num_rows - 1)])
    first, last = engine.to_host(engine.values(engine.from_arrow(ends)[schema.time])[0])
    return int(first), int(last)
