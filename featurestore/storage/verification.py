"""Verification: every file of a snapshot, or of a whole store, against what the store says of it.

Quick compares existence and sizes; full reads every byte and compares checksums, which finds any
flipped bit. Beyond bytes, what the store says must fit together: rows and partitions across column
groups, event times in order, tensors and their rows, values and the definitions they were computed
by. Nothing is changed. A fault says which table, columns and partition it touches, and what to do.

Files are read by a few threads, in blocks: hashing leaves other threads alone, so this is as fast as
the storage or the cores, and memory stays at a few blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias

from featurestore.errors import CorruptionError, FeatureStoreError, NotFoundError
from featurestore.storage.checksum import has_checksum
from featurestore.storage.commit_log import HINT_FILE, STORE_FILE, CommitLog
from featurestore.storage.condemned import GC
from featurestore.storage.faults import Fault, VerifyReport
from featurestore.storage.fileset import read_checked, read_fileset
from featurestore.storage.head_search import last_version
from featurestore.storage.journal import JOURNAL, read_journal_file
from featurestore.storage.leases import LEASES
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    BASE_GROUP,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    StoredFile,
    group_key,
)
from featurestore.storage.sealed_json import unseal
from featurestore.storage.snapshot_file import SNAPSHOTS, is_let_go, snapshot_path
from featurestore.storage.states import STATES, read_state
from featurestore.storage.tags import TAGS, read_tag

_RESTORE = "restore the file from a backup"
_BUILD = "restore the file from a backup, or build the feature again"
_INGEST = "restore the file from a backup, or ingest the table again"
_THREADS: Final = 4

Definitions: TypeAlias = Callable[[ObjectStore, GroupEntry], AbstractSet[str]]
"""Gives the fingerprints that a group's definition may have; raises if it cannot be read."""
Progress: TypeAlias = Callable[[int, int], None]
"""Is told how many partitions of how many were looked at."""


def verify(
    store: ObjectStore,
    snapshot: Snapshot,
    full: bool = True,
    definitions: Definitions | None = None,
    on_progress: Progress | None = None,
) -> VerifyReport:
    """Compare all files of one snapshot with what it says of them.

    Parameters
    ----------
    store : ObjectStore
    snapshot : Snapshot
    full : bool
        Compare checksums of all bytes; else existence and sizes only.
    definitions : callable, optional
        What definitions mean is known above the storage; without it they are not looked at.
    on_progress : callable, optional
    """
    check = _Check(store, full, definitions, on_progress)
    check.versions()
    check.expect(snapshot)
    check.snapshot(snapshot)
    return check.report()


def verify_store(
    log: CommitLog,
    full: bool = True,
    definitions: Definitions | None = None,
    on_progress: Progress | None = None,
    only: Snapshot | None = None,
) -> VerifyReport:
    """Compare everything in a store: all versions that are kept, tags, states, journal and leases.

    Each file is looked at once, however many versions share it. With ``only`` one version instead of
    all is looked at; other parameters as for :func:`verify`.
    """
    check = _Check(log.store, full, definitions, on_progress)
    check.small_files(log)
    if only is not None:
        check.versions()
        check.expect(only)
        check.snapshot(only)
        return check.report()
    parent = log.store_id
    for version in range(1, _last_version(log) + 1):
        parent = check.version(log, version, parent)
    return check.report()


def verify_again(
    log: CommitLog,
    snapshot: Snapshot,
    report: VerifyReport,
    definitions: Definitions | None = None,
) -> VerifyReport:
    """Return a report without the faults that are mended since, as by a file that was restored.

    The column groups of ``snapshot`` that the report names, and the small files, are looked at again;
    faults of other versions stay as they were found.
    """
    named = {group_key(one.table, one.group) for one in report.faults if one.group}
    check = _Check(log.store, report.full, definitions)
    check.versions()
    check.small_files(log)
    check.snapshot(snapshot, only=named)
    small = (
        STORE_FILE,
        HINT_FILE,
        *(f"{folder}/" for folder in (TAGS, STATES, JOURNAL, LEASES, GC)),
    )
    judged = check.seen | {definition_of(one.group) for one in report.faults}
    others = [
        one
        for one in report.faults
        if not (one.file in judged or one.file.startswith(small) or one in check.faults)
    ]
    return replace(report, faults=(*check.faults, *others))


def definition_of(group: str) -> str:
    """Return what a fault names instead of a file if a definition itself is what is wrong."""
    return f"definition of {group}"


def _last_version(log: CommitLog) -> int:
    """Return the highest version there is a file of: the search for the newest ends at a lost one."""
    return max(log.newest_version(), last_version(_snapshot_names(log.store)))


def _snapshot_names(store: ObjectStore) -> list[str]:
    return [info.path.removeprefix(f"{SNAPSHOTS}/") for info in store.list(SNAPSHOTS)]


@dataclass(slots=True)
class _Check:
    """Counts and faults while a store is being walked."""

    store: ObjectStore
    full: bool
    definitions: Definitions | None = None
    on_progress: Progress | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)
    expected: int = 0
    done: int = 0

    def report(self) -> VerifyReport:
        return VerifyReport(self.full, faults=tuple(self.faults), **self.counts)

    def _count(self, what: str, more: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + more

    def versions(self) -> None:
        """Check that no version's file is lost; of those that are there only the names."""
        names = set(_snapshot_names(self.store))
        for version in range(1, last_version(names)):
            path = snapshot_path(version)
            if path.removeprefix(f"{SNAPSHOTS}/") not in names:
                self.faults.append(
                    Fault(path, "is lost; later versions are there", "restore it from a backup")
                )

    # --- one version ---------------------------------------------------------------------------

    def version(self, log: CommitLog, version: int, parent: str) -> str:
        """Check a version and what it names; return its commit for the next one to compare."""
        path = snapshot_path(version)
        try:
            file = log.read_file(version)
        except FeatureStoreError as error:
            self._fault(path, error)
            return ""
        self._count("files")
        if parent and file.parent != parent:
            self.faults.append(
                Fault(path, f"follows commit {file.parent}, but {parent} is before it", _RESTORE)
            )
        if file.entries is not None:
            before = len(self.faults)
            try:
                found = log.read(version)
                self.expect(found)
                self.snapshot(found)
            except FeatureStoreError as error:
                self._fault(path, error)
            if len(self.faults) > before and is_let_go(self.store, version):
                # By a gc that came in between. What later versions share with it, gc left alone.
                del self.faults[before:]
        return file.commit

    def expect(self, snapshot: Snapshot) -> None:
        """Count the partitions to be looked at, for whoever watches."""
        groups = [one for table in snapshot.tables() for one in snapshot.groups(table)]
        new = [one.fileset for one in groups if one.fileset is not None]
        self.expected += sum(one.partitions for one in new if one.file.path not in self.seen)

    def snapshot(self, snapshot: Snapshot, only: AbstractSet[str] | None = None) -> None:
        """Check what a version names; with ``only``, these column groups alone, by their keys."""
        self._count("snapshots")
        for table in snapshot.tables():
            rows: dict[str, int] | None = None
            for group in snapshot.groups(table):
                asked = only is None or group.key in only
                if not asked and group.group != BASE_GROUP:
                    continue
                found = self._group(group, rows) if asked else self._rows(group)
                if group.group == BASE_GROUP:
                    rows = found

    def _rows(self, group: GroupEntry) -> dict[str, int] | None:
        """Return the rows of a group's partitions as recorded, None if they are unknown."""
        try:
            return {one.partition: one.rows for one in read_fileset(self.store, group.fileset)}
        except FeatureStoreError:  # nobody asked what is wrong with this one
            return None

    def _group(self, group: GroupEntry, base: dict[str, int] | None) -> dict[str, int] | None:
        """Check a column group; return the rows of its partitions, None if they are unknown."""
        if group.fileset is None:
            self._definition(group)
            return {}
        path = group.fileset.file.path
        try:
            entries = read_fileset(self.store, group.fileset)
            if path not in self.seen:  # the fileset may come from a cache: look at its bytes too
                self._look_at_fileset(group.fileset.file)
        except FeatureStoreError as error:
            if path not in self.seen:
                self.seen.add(path)
                self._fault(path, error, table=group.table, group=group.group, columns=group.names)
            return None
        rows = {entry.partition: entry.rows for entry in entries}
        if path not in self.seen:
            self.seen.add(path)
            self._count("groups")
            self._order(group, entries)
            accepted = self._definition(group)
            for entry in entries:
                self._entry(group, entry, accepted)
            self._data(group, entries)
        for name, count in rows.items() if base is not None else ():
            if base is not None and base.get(name) != count:
                there = f"has {base[name]} there" if name in base else "has no such partition"
                self._misfit(group, name, f"says {count} rows, the table {there}")
        return rows

    def _misfit(self, group: GroupEntry, partition: str, problem: str) -> None:
        """Note that what a fileset says of a partition does not fit."""
        path = group.fileset.file.path if group.fileset is not None else ""
        remedy = _INGEST if group.group == BASE_GROUP else _BUILD
        self.faults.append(
            Fault(path, problem, remedy, group.table, group.group, group.names, partition)
        )

    def _definition(self, group: GroupEntry) -> AbstractSet[str]:
        """Return the fingerprints that values of a group may carry; none if all are fine."""
        if self.definitions is None or group.group == BASE_GROUP:
            return frozenset()
        try:
            return self.definitions(self.store, group)
        except FeatureStoreError as error:
            at = definition_of(group.group)
            if at not in self.seen:
                self.seen.add(at)
                self._fault(at, error, table=group.table, group=group.group, columns=group.names)
            return frozenset()

    def _order(self, group: GroupEntry, entries: Sequence[PartitionEntry]) -> None:
        """Check that partitions are there once, and in ingested data rise in time."""
        known: set[str] = set()
        newest: int | None = None
        for entry in entries:
            if entry.partition in known:
                self._misfit(group, entry.partition, "is named twice")
            known.add(entry.partition)
            if group.group != BASE_GROUP or entry.time_min is None or entry.time_max is None:
                continue
            if entry.time_min > entry.time_max or (newest is not None and entry.time_min <= newest):
                self._misfit(
                    group,
                    entry.partition,
                    f"has times {entry.time_min} to {entry.time_max}, not after {newest}",
                )
            newest = max(entry.time_max, entry.time_max if newest is None else newest)

    def _entry(self, group: GroupEntry, entry: PartitionEntry, accepted: AbstractSet[str]) -> None:
        """Check what a fileset says of one partition."""
        self._count("partitions")
        scalars = {one.name for one in group.fields if not one.is_tensor}
        tensors = {one.name for one in group.fields if one.is_tensor}
        if set(entry.nulls) != scalars or set(entry.tensors) != tensors:
            held = sorted({*entry.nulls, *entry.tensors})
            problem = f"holds columns {held}, the snapshot says {sorted(group.names)}"
            self._misfit(group, entry.partition, problem)
        definition = entry.provenance.definition
        if accepted and definition not in accepted:
            problem = f"holds values of the definition {definition}, not of {sorted(accepted)}"
            self._misfit(group, entry.partition, problem)

    # --- files of values -----------------------------------------------------------------------

    def _data(self, group: GroupEntry, entries: Sequence[PartitionEntry]) -> None:
        """Check the files of a column group, some at once."""
        parts = [one for entry in entries for one in self._parts(group, entry)]
        files = [file for _, _, file in parts]
        # Starting a thread costs as much as reading some small files.
        workers = min(_THREADS, len(files)) if sum(one.bytes for one in files) > 2**20 else 1
        with ThreadPoolExecutor(workers) as threads:
            found = (threads.map if workers > 1 else map)(self._file, files)
            for (entry, columns, file), (size, problem) in zip(parts, found, strict=True):
                self._count("files")
                self._count("bytes", size)
                if problem:
                    self.damaged[file.path] = problem
                    self._damage(group, entry, columns, file)
        damaged = {one.file for one in self.faults}
        scalars = tuple(one.name for one in group.fields if not one.is_tensor)
        for entry in entries:
            for file in entry.files:  # features may share a file: each of them is damaged
                if file.path in self.damaged:
                    self._damage(group, entry, scalars, file)
            for name, parts_of in entry.tensors.items():
                if damaged.isdisjoint(file.path for file in parts_of):
                    self._tensor(group, entry, name)
        self.done += len(entries)
        if self.on_progress is not None:
            self.on_progress(self.done, max(self.expected, self.done))

    def _damage(
        self,
        group: GroupEntry,
        entry: PartitionEntry,
        columns: tuple[str, ...],
        file: StoredFile,
    ) -> None:
        """Note that a file of values is damaged, once for each column group it belongs to."""
        at = f"{group.table}/{group.group}: {file.path}"
        if at not in self.seen:
            self.seen.add(at)
            remedy = _INGEST if group.group == BASE_GROUP else _BUILD
            problem = self.damaged[file.path]
            where = (group.table, group.group, columns, entry.partition)
            self.faults.append(Fault(file.path, problem, remedy, *where))

    def _parts(
        self, group: GroupEntry, entry: PartitionEntry
    ) -> Iterator[tuple[PartitionEntry, tuple[str, ...], StoredFile]]:
        """Yield the files of a partition that were not looked at yet, with the columns in them."""
        scalars = tuple(one.name for one in group.fields if not one.is_tensor)
        files = [(scalars, file) for file in entry.files]
        files += [((name,), file) for name, of in entry.tensors.items() for file in of]
        for columns, file in files:
            if file.path not in self.seen:
                self.seen.add(file.path)
                yield entry, columns, file

    def _file(self, file: StoredFile) -> tuple[int, str]:
        """Return the size of a data file, and what is wrong with it, or nothing."""
        size = 0
        try:
            size = self.store.size(file.path)
            if size != file.bytes:
                return size, f"has {size} bytes, not {file.bytes}"
            if self.full and not has_checksum(self.store, file):
                return size, "does not match its checksum"
        except NotFoundError:
            return size, "is missing"
        except FeatureStoreError as error:
            return size, f"cannot be read: {error.problem}"
        return size, ""

    def _tensor(self, group: GroupEntry, entry: PartitionEntry, name: str) -> None:
        from featurestore.storage.tensor_group import stored_layout

        try:
            stored_layout(self.store, entry, name)
        except FeatureStoreError as error:
            self._misfit(group, entry.partition, error.problem)

    def _look_at_fileset(self, file: StoredFile) -> None:
        read_checked(self.store, file)
        self._count("files")
        self._count("bytes", file.bytes)

    # --- files beside the snapshots ------------------------------------------------------------

    def small_files(self, log: CommitLog) -> None:
        """Check ``store.json``, the hint, tags, states, the journal, leases and files of gc."""
        self._small(STORE_FILE, partial(unseal, path=STORE_FILE))
        if self.store.exists(HINT_FILE):  # it comes with the 32nd version
            self._small(HINT_FILE, partial(unseal, path=HINT_FILE))
        checks: dict[str, Callable[[str, bytes], object]] = {
            TAGS: partial(_check_tag, log),
            STATES: _check_state,
            JOURNAL: read_journal_file,
            LEASES: _check_passing,
            GC: _check_passing,
        }
        for folder, check in checks.items():
            for info in self.store.list(folder):
                self._small(info.path, partial(check, info.path), passing=True)

    def _small(self, path: str, check: Callable[[bytes], object], *, passing: bool = False) -> None:
        """Check a file that is read whole; one that is ``passing`` may go while others work."""
        try:
            try:
                data = self.store.read(path)
            except NotFoundError:
                if passing:
                    return
                raise
            self._count("files")
            self._count("bytes", len(data))
            check(data)
        except FeatureStoreError as error:
            self._fault(path, error)

    def _fault(
        self,
        path: str,
        error: FeatureStoreError,
        table: str = "",
        group: str = "",
        columns: tuple[str, ...] = (),
    ) -> None:
        self.faults.append(Fault(path, error.problem, error.remedy, table, group, columns))


def _check_tag(log: CommitLog, path: str, data: bytes) -> None:
    tag = read_tag(path, data)
    if tag.version and log.read_file(tag.version).commit != tag.commit:
        raise CorruptionError(
            f"{path} names {tag.id}, which this history does not have", "move the tag"
        )


def _check_state(path: str, data: bytes) -> None:  # the path is in the fault already
    read_state(data, path.removeprefix(f"{STATES}/").removesuffix(".arrow"))


def _check_passing(path: str, data: bytes) -> None:
    """Check a file that says what somebody is doing right now; a torn one ended with its writer.

    Such files are not synced: a power loss, which may tear them, ends all who wrote one.
    """
    if data.endswith(b"}"):
        unseal(data, path, "delete the file if nobody uses the store")
