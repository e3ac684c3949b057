"""A table at one snapshot, as datasets see it: where its values are, and what reading may cost.

The table layer makes the view after it has refused missing and stale values, so everything here is
complete. The view holds metadata only; it can be handed to workers in other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from featurestore.dataset.selection import Selection
from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.errors import MemoryLimitError
from featurestore.execution.dask import Executor
from featurestore.execution.reading import PartitionSource
from featurestore.schema import TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.leases import NO_LEASE, Lease
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import Snapshot
from featurestore.transforms.base import Partition
from featurestore.units import format_bytes

T = TypeVar("T")
R = TypeVar("R")

_DECODED_COPIES = 3
"""A partition's columns as read, filtered, and as the pipeline gives them back."""


@dataclass(frozen=True, slots=True)
class ReadTask:
    """One partition of a table, as a worker in another process is told of it."""

    url: str
    engine_name: str
    source: PartitionSource
    schema: TableSchema

    @property
    def engine(self) -> Engine:
        return get_engine(self.engine_name)

    @property
    def store(self) -> ObjectStore:
        return open_object_store(self.url)

    def read(self, columns: Sequence[str]) -> Partition:
        """Return columns of the partition."""
        return self.source.read(self.store, self.engine, columns, self.schema)


@dataclass(frozen=True, slots=True)
class TableView:
    """What a dataset reads.

    Parameters
    ----------
    store : ObjectStore
    snapshot : Snapshot
    table : str
    schema : TableSchema
        All columns of the table.
    partitions : tuple of PartitionSource
        In table order, each with every column group a dataset may need.
    engine_name : str
        ``"polars"`` or ``"cudf"``.
    memory_limit : int
        Bytes.
    cardinalities : mapping of str to int
        The number of codes of each stored categorical column.
    lineage : mapping of str to str
        Fingerprint of what each column is computed from.
    executor : Executor
        Runs tasks over partitions; in this process by default.
    lease : Lease
        Keeps the snapshot from gc as long as the view is used, in the process that made it.
    """

    store: ObjectStore
    snapshot: Snapshot
    table: str
    schema: TableSchema
    partitions: tuple[PartitionSource, ...]
    engine_name: str
    memory_limit: int
    executor: Executor = field(default_factory=Executor, compare=False)
    cardinalities: Mapping[str, int] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    lease: Lease = field(default=NO_LEASE, compare=False, repr=False)

    @property
    def engine(self) -> Engine:
        return get_engine(self.engine_name)

    def read(self, i: int, columns: Sequence[str]) -> Partition:
        """Return columns of the i-th partition, put side by side from their column groups.

        Raises
        ------
        CorruptionError
            If files are damaged or row counts differ between groups.
        """
        self.lease.touch()
        return self.partitions[i].read(self.store, self.engine, columns, self.schema)

    def touching(self, selection: Selection) -> list[tuple[int, Selection]]:
        """Return the partitions that may hold selected rows, each with the simplest selection.

        Judged by recorded time ranges; nothing is read.
        """
        return [
            (i, selection.within(one.base.time_min, one.base.time_max))
            for i, one in enumerate(self.partitions)
            if one.rows and selection.covers(one.base.time_min, one.base.time_max) != "none"
        ]

    def task(self, i: int) -> ReadTask:
        """Return what a worker needs to read the i-th partition."""
        self.lease.touch()
        return ReadTask(self.store.url, self.engine_name, self.partitions[i], self.schema)

    def run(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        label: str,
        columns: Sequence[str],
    ) -> list[R]:
        """Run tasks that each read ``columns`` of one partition, as many at once as memory allows.

        Raises
        ------
        MemoryLimitError
            Before anything is read, if one partition does not fit the memory limit.
        """
        at_once = self.require_memory(columns)
        return self.executor.limited_to(at_once).run(function, tasks, label=label)

    def require_memory(self, columns: Sequence[str]) -> int:
        """Return how many partitions of these columns fit the memory limit at once.

        Raises
        ------
        MemoryLimitError
            If not even one does.
        """
        widest = max((one.decoded_bytes(columns) for one in self.partitions), default=0)
        needed = max(1, _DECODED_COPIES * widest)
        if needed > self.memory_limit:
            raise MemoryLimitError(
                f"a partition of columns {list(columns)} takes {format_bytes(widest)} in memory, "
                f"{format_bytes(needed)} with what is made of it; the memory limit is "
                f"{format_bytes(self.memory_limit)}",
                f"set memory_limit to at least {format_bytes(needed)}, name fewer features, or "
                "ingest with a smaller partition_bytes",
            )
        return self.memory_limit // needed
