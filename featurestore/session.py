"""An open store as everything above sees it: its log, where work runs, and the snapshot it is at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from featurestore.configuration import directory, load_configuration
from featurestore.enforcement import enforced
from featurestore.errors import InvalidInputError
from featurestore.execution.dask import Executor
from featurestore.execution.states import Workplace
from featurestore.limits import memory_limit as resolve_memory_limit
from featurestore.plan.staleness import Assessor
from featurestore.plan.table_files import TableFiles, load_table_files
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import Change, CommitLog
from featurestore.storage.leases import NO_LEASE, Lease, Leases
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, Snapshot
from featurestore.storage.scratch import Scratch
from featurestore.units import parse_bytes

P = ParamSpec("P")
R = TypeVar("R")


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
        What keeps a version from gc: a checkout's for as long as anything holds this session, else
        the one that work under way began from. Whatever the session does touches it.
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
        """Return the version this session is at.

        Raises
        ------
        NotFoundError
            If it is a checkout that nobody used for too long, so that gc let its version go.
        """
        if self.pinned is None:
            return self.log.head()
        self.lease.touch()
        return self.pinned

    def at(self, snapshot: Snapshot) -> Session:
        """Return a session that stays at a snapshot, which gc keeps as long as it is used."""
        return Session(self.log, self.place, snapshot, self.hold(snapshot))

    def limited(self, memory_limit: int | str | None) -> Session:
        """Return this session with another memory limit; itself for None.

        Raises
        ------
        MemoryLimitError
            If the kernel keeps a smaller one.
        """
        if memory_limit is None:
            return self
        limit, kept = parse_bytes(memory_limit), self.place.enforcement
        kept = None if kept is None else kept.lowered_to(limit)
        return replace(self, place=replace(self.place, memory_limit=limit, enforcement=kept))

    def hold(self, snapshot: Snapshot) -> Lease:
        """Keep a version from gc until the lease is released or forgotten; see ``leases``.

        Raises
        ------
        NotFoundError
            If gc let the version go.
        """
        return Leases(self.objects).take(snapshot)

    def newest_held(self) -> tuple[Snapshot, Lease]:
        """Return the version this session is at, kept from gc as by :meth:`hold`.

        Where others publish and collect at this moment, it is the version that they published.
        """
        return Leases(self.objects).take_newest(self.snapshot)

    @contextmanager
    def holding_newest(self) -> Iterator[tuple[Session, Snapshot]]:
        """Give what reads the version this session is at, which gc keeps inside the block.

        The session that is given touches the lease whenever a task of its executor finishes.
        """
        snapshot, lease = self.newest_held()
        with lease:
            yield self._under(lease), snapshot

    @contextmanager
    def writing_newest(self) -> Iterator[tuple[Session, Snapshot]]:
        """Give what writes on the newest version; as :meth:`holding_newest`.

        gc keeps every file that is written inside the block, too.
        """
        snapshot, lease = Leases(self.objects).take_newest(self.snapshot, writes=True)
        with lease:
            yield self._under(lease), snapshot

    def _under(self, lease: Lease) -> Session:
        place = replace(self.place, executor=self.executor.watched_by(lease.touch))
        return replace(self, place=place, lease=lease)

    def touching(self, report: Callable[P, R]) -> Callable[P, R]:
        """Return a callback for long work that is no executor's: it touches the lease as well."""

        def touch_and_report(*args: P.args, **kwargs: P.kwargs) -> R:
            self.lease.touch()
            return report(*args, **kwargs)

        return touch_and_report

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
        the one of :meth:`writing_newest` if there is one.
        """
        self.require_writable()
        files = [file for entry in entries for file in entry.all_files()]
        with Leases(self.objects).join(self.log.read(0)):
            return self.log.commit(operation, change, requires=files)

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


def workplace(
    url: str | Path,
    memory_limit: int | str | None,
    engine: str,
    workers: int | None,
    client: Any,
    enforce: bool,
    scratch: str | Path | None,
    scratch_limit: int | str | None,
) -> Workplace:
    """Return where work on a store runs; parameters as in ``FeatureStore.create``."""
    from featurestore.engines.selection import get_engine

    if engine not in ("polars", "cudf", "auto"):
        raise InvalidInputError(f"there is no engine {engine!r}", "use 'polars', 'cudf' or 'auto'")
    objects = open_object_store(url)
    executor = Executor(workers, client)
    executor.require_shared(objects.url, objects.shared)
    limit = resolve_memory_limit(memory_limit)
    place = scratch_space(scratch, scratch_limit)
    kept = enforced(limit, executor.processes()) if enforce else None
    return Workplace(objects, get_engine(engine).name, executor, limit, kept, place)


def scratch_space(folder: str | Path | None, limit: int | str | None) -> Scratch:
    """Return where large steps put what does not fit in memory: as given, else as configured."""
    said = load_configuration()
    return Scratch(
        said.scratch_folder if folder is None else directory(folder),
        said.scratch_limit if limit is None else parse_bytes(limit),
    )
