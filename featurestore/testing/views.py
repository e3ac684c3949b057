"""A table written into a store and viewed as datasets see it, for tests below the table layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.dataset.view import TableView
from featurestore.engines.arrow import normalise_table
from featurestore.engines.selection import get_engine
from featurestore.execution.dask import Executor
from featurestore.execution.reading import PartitionSource
from featurestore.fingerprint import digest, fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.storage.column_group import write_partition
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import (
    BASE_GROUP,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    TableEntry,
    group_key,
    table_key,
)


def table_view(
    store: ObjectStore,
    columns: pa.Table,
    cuts: Sequence[int] = (),
    *,
    key: Sequence[str] = (),
    time: str | None = None,
    features: Sequence[str] = (),
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    memory_limit: int = 8 * 2**30,
    workers: int = 2,
    version: int = 1,
) -> TableView:
    """Write a table in partitions cut before the rows ``cuts``, and return a view of it.

    Parameters
    ----------
    store : ObjectStore
    columns : pyarrow.Table
        The scalar columns, rows in table order.
    cuts : sequence of int
        Positions where a new partition begins; equal or extreme ones give empty partitions.
    features : sequence of str
        Columns that are kept in a second column group instead of the base group.
    tensors : mapping of str to array, optional
        Tensor columns of the second group.
    """
    columns, tensors = normalise_table(columns), dict(tensors or {})
    fields = tuple(Field(one.name, one.type) for one in columns.schema)
    extra = tuple(one for one in fields if one.name in features) + tuple(
        Field(name, pa.from_numpy_dtype(value.dtype), value.shape[1:])
        for name, value in tensors.items()
    )
    base = tuple(one for one in fields if one.name not in features)
    groups = [GroupEntry("t", BASE_GROUP, base)]
    groups += [GroupEntry("t", "f_extra-00000000", extra)] if extra else []
    edges = [0, *sorted(cuts), columns.num_rows]
    partitions = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        pieces = columns.slice(start, stop - start)
        values = {name: value[start:stop] for name, value in tensors.items()}
        entries = tuple(
            (group, _write(store, group, f"p{number:08d}-0", pieces, values, time))
            for group in groups
        )
        partitions.append(PartitionSource(entries[0][1], entries))
    table = TableEntry("t", tuple(key), time, 2**27)
    return TableView(
        store,
        Snapshot(
            version,
            f"{version:032x}",
            "2026-01-01T00:00:00+00:00",
            "test",
            {
                table_key("t"): table.to_json(),
                **{group_key("t", one.group): one.to_json() for one in groups},
            },
        ),
        "t",
        TableSchema((*base, *extra), tuple(key), time),
        tuple(partitions),
        "polars",
        memory_limit,
        Executor(workers),
    )


def _write(
    store: ObjectStore,
    group: GroupEntry,
    partition: str,
    columns: pa.Table,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    time: str | None,
) -> PartitionEntry:
    names = [name for name in group.names if name in columns.column_names]
    mine = columns.select(names).combine_chunks()
    arrays = {name: value for name, value in tensors.items() if name in group.names}
    content = [[name, str(mine[name].to_pylist())] for name in names]
    content += [[name, digest(value.tobytes())] for name, value in arrays.items()]
    time_range = None
    if time in names and mine.num_rows:
        engine = get_engine("polars")
        steps, _ = engine.values(engine.from_arrow(mine.select([time])).get_column(str(time)))
        time_range = (int(steps.min()), int(steps.max()))
    return write_partition(
        store,
        table="t",
        group=group.group,
        partition=partition,
        columns=mine if names else None,
        tensors=arrays,
        provenance=Provenance("ingest", fingerprint("content", content)),
        time_range=time_range,
    )
