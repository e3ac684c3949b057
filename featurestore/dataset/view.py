"""A table at one snapshot, as datasets see it: where its values are, and what reading may cost.

The table layer makes the view after it has refused missing and stale values, so everything here is
complete. The view holds metadata only; it can be handed to workers in other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from featurestore.engines.protocol import Engine
from featurestore.execution.dask import Executor
from featurestore.execution.reading import PartitionSource
from featurestore.schema import TableSchema
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import Snapshot
from featurestore.transforms.base import Partition

T = TypeVar("T")
R = TypeVar("R")

_DECODED_COPIES = 3
"""A partition's columns as read, filtered, and as the pipeline gives them back."""


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
    executor : Executor
        Runs tasks over partitions; in this process by default.
    """

    store: ObjectStore
    snapshot: Snapshot
    table: str
    schema: TableSchema
    partitions: tuple[PartitionSource, ...]
    engine_name: str
    memory_limit: int
    executor: Executor = field(default_factory=Executor, compare=False)

    @property
    def engine(self) -> Engine:
        from featurestore.engines.selection import get_engine

        return get_engine(self.engine_name)

    def read(self, i: int, columns: Sequence[str]) -> Partition:
        """Return columns of the i-th partition, put side by side from their column groups.

        Raises
        ------
        CorruptionError
            If files are damaged or row counts differ between groups.
        """
        return self.partitions[i].read(self.store, self.engine, columns, self.schema)

    def task(self) -> TableView:
        """Return the view as tasks carry it: without the executor, which stays with the driver."""
        return TableView(
            self.store, self.snapshot, self.table, self.schema, self.partitions,
            self.engine_name, self.memory_limit, Executor(1),
        )  # fmt: skip

    def run(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        label: str,
        columns: Sequence[str],
    ) -> list[R]:
        """Run tasks that each read ``columns`` of one partition, as many at once as memory allows."""
        widest = max((one.decoded_bytes(columns) for one in self.partitions), default=0)
        at_once = self.memory_limit // max(1, _DECODED_COPIES * widest)
        return self.executor.limited_to(at_once).run(function, tasks, label=label)
