"""Verification: every file of a snapshot, or of a whole store, against what the store says of it.

Quick compares existence and sizes; full reads every byte and compares checksums, which finds any
flipped bit. Nothing is changed. A fault says which table, columns and partition it touches, and
what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from featurestore.errors import CorruptionError, FeatureStoreError, NotFoundError
from featurestore.storage.checksum import file_checksum
from featurestore.storage.commit_log import HINT_FILE, STORE_FILE, CommitLog
from featurestore.storage.fileset import read_checked, read_fileset
from featurestore.storage.journal import JOURNAL, read_journal_entry
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    BASE_GROUP,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    StoredFile,
)
from featurestore.storage.sealed_json import unseal
from featurestore.storage.snapshot_file import snapshot_path
from featurestore.storage.states import STATES, decode_state
from featurestore.storage.tags import TAGS, read_tag
from featurestore.units import format_bytes

_RESTORE = "restore the file from a backup"
_BUILD = "restore the file from a backup, or build the feature again"
_INGEST = "restore the file from a backup, or ingest the table again"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    ``table``, ``group``, ``columns`` and ``partition`` are empty for files that belong to none.
    """

    file: str
    problem: str
    remedy: str
    table: str = ""
    group: str = ""
    columns: tuple[str, ...] = ()
    partition: str = ""

    def __str__(self) -> str:
        where = " ".join(
            f"{what} {value}"
            for what, value in (
                ("table", self.table),
                ("columns", ", ".join(self.columns)),
                ("partition", self.partition),
            )
            if value
        )
        return f"{self.file}: {self.problem}{f' ({where})' if where else ''}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong.

    Parameters
    ----------
    full : bool
        Whether bytes were compared, or sizes only.
    snapshots, groups, partitions, files, bytes : int
        How many were looked at; ``bytes`` is the size of those files.
    faults : tuple of Fault
    """

    full: bool
    snapshots: int = 0
    groups: int = 0
    partitions: int = 0
    files: int = 0
    bytes: int = 0
    faults: tuple[Fault, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        head = (
            f"{'full' if self.full else 'quick'} verification of {self.snapshots} snapshots, "
            f"{self.groups} column groups, {self.partitions} partitions, {self.files} files "
            f"({format_bytes(self.bytes)}): "
        )
        return "\n".join(
            [head + ("no fault" if self.ok else f"{len(self.faults)} faults")]
            + [f"  {fault}" for fault in self.faults]
        )


def verify(store: ObjectStore, snapshot: Snapshot, full: bool = True) -> VerifyReport:
    """Compare all files of one snapshot with what it says of them.

    Parameters
    ----------
    store : ObjectStore
    snapshot : Snapshot
    full : bool
        Compare checksums of all bytes; else existence and sizes only.
    """
    check = _Check(store, full)
    check.snapshot(snapshot)
    return check.report()


def verify_store(log: CommitLog, full: bool = True) -> VerifyReport:
    """Compare everything in a store: all versions that are kept, tags, states and the journal.

    Each file is looked at once, however many versions share it.
    """
    check = _Check(log.store, full)
    check.small_files(log)
    parent = log.store_id
    for version in range(1, log.newest_version() + 1):
        parent = check.version(log, version, parent)
    return check.report()


@dataclass(slots=True)
class _Check:
    """Counts and faults while a store is being walked."""

    store: ObjectStore
    full: bool
    counts: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def report(self) -> VerifyReport:
        return VerifyReport(self.full, faults=tuple(self.faults), **self.counts)

    def _count(self, what: str, more: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + more

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
            try:
                self.snapshot(log.read(version))
            except FeatureStoreError as error:
                self._fault(path, error)
        return file.commit

    def snapshot(self, snapshot: Snapshot) -> None:
        self._count("snapshots")
        for table in snapshot.tables():
            rows: dict[str, int] | None = None
            for group in snapshot.groups(table):
                found = self._group(group, rows)
                if group.group == BASE_GROUP:
                    rows = found

    def _group(self, group: GroupEntry, base: dict[str, int] | None) -> dict[str, int] | None:
        """Check a column group; return the rows of its partitions, None if they are unknown."""
        if group.fileset is None:
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
            for entry in entries:
                self._partition(group, entry)
        for name, count in rows.items() if base is not None else ():
            if base is not None and base.get(name) != count:
                self.faults.append(
                    Fault(
                        path,
                        f"says {count} rows, the table has "
                        + (f"{base[name]} there" if name in base else "no such partition"),
                        _BUILD,
                        group.table,
                        group.group,
                        group.names,
                        name,
                    )
                )
        return rows

    def _look_at_fileset(self, file: StoredFile) -> None:
        read_checked(self.store, file)
        self._count("files")
        self._count("bytes", file.bytes)

    def _partition(self, group: GroupEntry, entry: PartitionEntry) -> None:
        self._count("partitions")
        remedy = _INGEST if group.group == BASE_GROUP else _BUILD
        scalars = tuple(one.name for one in group.fields if not one.is_tensor)
        tensors = {one.name for one in group.fields if one.is_tensor}
        if set(entry.nulls) != set(scalars) or set(entry.tensors) != tensors:
            held = sorted({*entry.nulls, *entry.tensors})
            self.faults.append(
                Fault(
                    group.fileset.file.path if group.fileset else "",
                    f"holds columns {held}, the snapshot says {sorted(group.names)}",
                    remedy,
                    group.table,
                    group.group,
                    group.names,
                    entry.partition,
                )
            )
        parts = [(file, scalars) for file in entry.files]
        parts += [(file, (name,)) for name, files in entry.tensors.items() for file in files]
        for file, columns in parts:
            problem = self._file(file)
            if problem:
                self.faults.append(
                    Fault(
                        file.path,
                        problem,
                        remedy,
                        group.table,
                        group.group,
                        columns,
                        entry.partition,
                    )
                )

    def _file(self, file: StoredFile) -> str:
        """Return what is wrong with a data file, or nothing; each is looked at once."""
        if file.path in self.seen:
            return ""
        self.seen.add(file.path)
        self._count("files")
        try:
            size = self.store.size(file.path)
            self._count("bytes", size)
            if size != file.bytes:
                return f"has {size} bytes, not {file.bytes}"
            if self.full and file_checksum(self.store, file.path) != file.checksum:
                return "does not match its checksum"
        except NotFoundError:
            return "is missing"
        except FeatureStoreError as error:
            return f"cannot be read: {error.problem}"
        return ""

    # --- files beside the snapshots ------------------------------------------------------------

    def small_files(self, log: CommitLog) -> None:
        """Check ``store.json``, the hint, tags, states and the journal."""
        self._small(STORE_FILE, partial(unseal, path=STORE_FILE))
        if self.store.exists(HINT_FILE):  # it comes with the 32nd version
            self._small(HINT_FILE, partial(unseal, path=HINT_FILE))
        for info in self.store.list(TAGS):
            self._small(info.path, partial(_check_tag, log, info.path))
        for info in self.store.list(STATES):
            self._small(info.path, decode_state)
        for info in self.store.list(JOURNAL):
            self._small(info.path, partial(read_journal_entry, info.path))

    def _small(self, path: str, check: Callable[[bytes], object]) -> None:
        try:
            data = self.store.read(path)
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
