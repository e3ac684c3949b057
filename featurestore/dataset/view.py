"""A table at one snapshot, as datasets see it: where its values are, and what reading may cost.

The table layer makes the view after it has refused missing and stale values, so everything here is
complete. The view holds metadata only; it can be handed to workers in other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from featurestore.dataset.selection import Selection
from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.execution.dask import Executor
from featurestore.execution.reading import PartitionSource
from featurestore.execution.room import Need, holding, require_room
from featurestore.execution.sites import Site, reserved_bytes
from featurestore.plan.costs import THREAD_BYTES
from featurestore.schema import TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.leases import NO_LEASE, Lease
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import Snapshot
from featurestore.storage.scratch import Scratch
from featurestore.transforms.base import Partition

T = TypeVar("T")
R = TypeVar("R")


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

    def read(self, columns: Sequence[str], rows: tuple[int, int] | None = None) -> Partition:
        """Return columns of the partition; only the rows ``start <= row < stop`` if given."""
        return self.source.read(self.store, self.engine, columns, self.schema, rows)


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
    scratch : Scratch
        Where large steps put what does not fit in memory.
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
    scratch: Scratch = field(default_factory=Scratch, compare=False, repr=False)
    lease: Lease = field(default=NO_LEASE, compare=False, repr=False)

    @property
    def engine(self) -> Engine:
        return get_engine(self.engine_name)

    def read(
        self, i: int, columns: Sequence[str], rows: tuple[int, int] | None = None
    ) -> Partition:
        """Return columns of the i-th partition, put side by side from their column groups.

        Parameters
        ----------
        i : int
        columns : sequence of str
        rows : tuple of int, optional
            Only the rows ``start <= row < stop``.

        Raises
        ------
        CorruptionError
            If files are damaged or row counts differ between groups.
        """
        self.lease.touch()
        return self.partitions[i].read(self.store, self.engine, columns, self.schema, rows)

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
        needs: Sequence[Need],
        instead: str = "",
        before: int | None = None,
    ) -> list[R]:
        """Run tasks of which each ``needs`` so much, as many at once as memory allows.

        Raises
        ------
        MemoryLimitError
            Before anything is read, if one task does not fit the memory limit; ``instead`` is what
            the caller can do other than raising it, ``before`` as for :meth:`reserved_since`.
        """
        if not tasks:
            return []
        self.require_largest(needs, instead, before)
        executor = self.executor.within(self.memory_limit, self.engine_name)
        return executor.run(
            function,
            tasks,
            label=label,
            costs=[one.bytes for one in needs],
            names=[one.partition for one in needs],
        )

    @property
    def reserved_bytes(self) -> int:
        """What the processes of the host that holds most hold without work."""
        executor = self.executor.within(self.memory_limit, self.engine_name)
        return max(one.reserved_bytes for one in executor.sites())

    def reserved_since(self, before: int | None, size: int = 0) -> int:
        """Return what is held without work, where work goes on that was judged as a whole.

        Threads have kept by now what was counted for them when it began, and is counted again.

        Parameters
        ----------
        before : int, optional
            ``reserved_bytes`` when it began; None where nothing was done yet.
        size : int
            Bytes of what is to be done: if it does not fit, this waits for what was freed to go back.
        """
        self.room_for(size)
        now = self.reserved_bytes
        return now if before is None or now <= before else max(before, now - THREAD_BYTES)

    def room_for(self, size: int) -> int:
        """Return the bytes that tasks may take; less than ``size`` only after waiting for what was freed."""
        room = self.executor.within(self.memory_limit, self.engine_name).room_for(size)
        return 0 if room is None else room

    def require_largest(
        self,
        needs: Sequence[Need],
        instead: str,
        before: int | None = None,
        then: Callable[[int], int] | None = None,
    ) -> int:
        """Refuse work of which the largest piece does not fit; return what is held without work.

        ``then`` tells, for the bytes that there would have to be, those that what is done next takes.

        Raises
        ------
        MemoryLimitError
        """
        largest = max(needs, key=lambda one: one.bytes)
        reserved, limit = self.reserved_since(before, largest.bytes), self.memory_limit
        refused = then is not None and reserved + largest.bytes > limit
        more = then(largest.bytes) if then is not None and refused else 0
        require_room(largest, limit, reserved, instead, more)
        return reserved

    @property
    def own_site(self) -> Site:
        """This host, with what is held there without work."""
        return self.executor.within(self.memory_limit, self.engine_name).sites()[0]

    def require_room(self, need: Need, instead: str) -> None:
        """Refuse work of this process that does not fit the memory limit.

        Raises
        ------
        MemoryLimitError
        """
        require_room(need, self.memory_limit, reserved_bytes(self.engine_name), instead)

    def holding(self, need: Need, instead: str) -> AbstractContextManager[None]:
        """Refuse work of this thread that does not fit; hold its bytes inside the block.

        Raises
        ------
        MemoryLimitError
            Before anything is done.
        """
        return holding(need, self.memory_limit, self.engine_name, instead)
