"""An open store as everything above sees it: its log, where work runs, and the snapshot it is at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from featurestore.errors import InvalidInputError, MemoryLimitError, NotFoundError
from featurestore.execution.dask import Executor
from featurestore.execution.events import observed_by
from featurestore.execution.states import Workplace
from featurestore.limits import resident_bytes
from featurestore.plan.staleness import Assessor
from featurestore.plan.table_files import TableFiles, load_table_files
from featurestore.storage.commit_log import Change, CommitLog
from featurestore.storage.leases import NO_LEASE, Lease, Leases
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, Snapshot
from featurestore.units import format_bytes


@dataclass(frozen=True, slots=True)
class Session:
    """What a store and its tables share.

    Parameters
    ----------
    log : CommitLog
    place : Workplace
    pinned : Snapshot, optional
        For a checkout; None follows the newest snapshot.
    lease : Lease
        What keeps a checkout's version from gc, for as long as anything holds this session.
    """

    log: CommitLog
    place: Workplace
    pinned: Snapshot | None = None
    lease: Lease = field(default=NO_LEASE, compare=False, repr=False)

    @property
    def objects(self) -> ObjectStore:
        return self.place.store

    @property
    def executor(self) -> Executor:
        return self.place.executor

    def snapshot(self) -> Snapshot:
        return self.pinned if self.pinned is not None else self.log.head()

    def at(self, snapshot: Snapshot) -> Session:
        """Return a session that stays at a snapshot, which gc keeps as long as it is used."""
        return Session(self.log, self.place, snapshot, self.hold(snapshot))

    def hold(self, snapshot: Snapshot) -> Lease:
        """Keep a version from gc until the lease is released or forgotten; see ``leases``.

        Raises
        ------
        NotFoundError
            If gc let the version go.
        """
        return Leases(self.objects).take(snapshot)

    @contextmanager
    def writing(self, snapshot: Snapshot) -> Iterator[Lease]:
        """Keep a version, and every file written inside the block, from gc.

        The lease is touched whenever a task inside finishes.

        Raises
        ------
        NotFoundError
            If gc let the version go.
        """
        with (
            Leases(self.objects).take(snapshot, writes=True) as lease,
            observed_by(lambda event: lease.touch()),
        ):
            yield lease

    @contextmanager
    def writing_newest(self) -> Iterator[Snapshot]:
        """Give the newest version, kept from gc inside the block as by :meth:`writing`."""
        snapshot, lease = self._newest_held()
        with lease, observed_by(lambda event: lease.touch()):
            yield snapshot

    def _newest_held(self) -> tuple[Snapshot, Lease]:
        while True:
            snapshot = self.snapshot()
            try:
                return snapshot, Leases(self.objects).take(snapshot, writes=True)
            except NotFoundError:
                # Others published and collected since: then there is a newer one to begin from.
                if self.snapshot().version == snapshot.version:
                    raise

    def require_writable(self) -> None:
        """Refuse changes to a checkout of an old version.

        Raises
        ------
        InvalidInputError
        """
        if self.pinned is not None:
            raise InvalidInputError(
                f"this is a checkout of version {self.pinned.version}, which cannot change",
                "open the store without checkout to write",
            )

    def commit(
        self, operation: str, change: Change, entries: Iterable[PartitionEntry] = ()
    ) -> Snapshot:
        """Publish a change, if the files of the new ``entries`` are all still there.

        A change may write filesets, which nothing names before the commit: so it runs under a lease,
        the one of :meth:`writing` if there is one.
        """
        self.require_writable()
        files = [file for entry in entries for file in entry.all_files()]
        with Leases(self.objects).join(self.log.read(0)):
            return self.log.commit(operation, change, requires=files)

    def memory_left(self) -> int:
        """Return the bytes of the memory limit that this process does not hold already.

        Raises
        ------
        MemoryLimitError
            If nothing is left.
        """
        reserved, limit = resident_bytes(), self.place.memory_limit
        if reserved >= limit:
            raise MemoryLimitError(
                f"this process holds {format_bytes(reserved)} already, the memory limit is "
                f"{format_bytes(limit)}",
                "raise memory_limit, or free what the process holds",
            )
        return limit - reserved

    def files(self, table: str, snapshot: Snapshot | None = None) -> TableFiles:
        return load_table_files(self.objects, snapshot or self.snapshot(), table)

    def sources(self, files: TableFiles) -> dict[str, TableFiles]:
        """Return the tables that a table's features read, directly or not, at the same snapshot."""
        found: dict[str, TableFiles] = {}
        waiting = [files]
        while waiting:
            for feature in waiting.pop().graph.features():
                name = feature.source_table
                if name is not None and name not in found:
                    own = name == files.name
                    found[name] = files if own else self.files(name, files.snapshot)
                    waiting.append(found[name])
        return found

    def assessor(self, files: TableFiles) -> Assessor:
        """Return the judge of a table's features and of all that they read."""
        tables = {**self.sources(files), files.name: files}
        return Assessor(tables, check_code=self.pinned is None)
