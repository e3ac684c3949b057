"""Garbage collection: lets old versions go and removes files that nothing needs.

What is kept:

* every version that is the newest, tagged, among the ``keep_versions`` newest, or younger than the
  safety age, and the complete snapshot it builds on; with all files they name;
* every file younger than the safety age: somebody may be about to publish it;
* the journal of a table while any of its entries is younger than the safety age (its build is
  alive), with all files the entries name. The entries of a dead journal go; the files they name go
  with the next collection;
* states (a cache) that are younger than ``state_age_seconds``;
* every file whose name this package does not give: somebody put it there.

Versions that are let go keep their number, time and operation, only their entries go: their names
must stay taken, see ``commit_log``. Each fileset is read once, however many versions share it. If
anything that is kept cannot be read, nothing is removed at all.

Two rules close the races. Files are listed before the newest version is looked up, so a file that
was published meanwhile is seen as needed. Tags and journals are looked at again after versions were
let go; a version tagged meanwhile is restored, and the run stops if a journal came alive.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from featurestore.errors import CorruptionError, InvalidInputError, NotFoundError
from featurestore.storage.column_group import DATA
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import FILESETS, read_fileset
from featurestore.storage.journal import JOURNAL, read_journal_entry
from featurestore.storage.local import STAGING
from featurestore.storage.object_store import ObjectInfo, ObjectStore
from featurestore.storage.records import FilesetRef
from featurestore.storage.snapshot_file import SNAPSHOTS, SnapshotFile, snapshot_path
from featurestore.storage.states import STATES
from featurestore.units import format_bytes

DAY: Final = 86_400.0
_SHOWN: Final = 20
_PARTITION: Final = r"/[^/]+/[^/]+/[^/]+-[0-9a-f]{12}(\.parquet|\.\d+\.zarr/.+)"
_OURS: Final = re.compile(
    rf"{DATA}{_PARTITION}|{FILESETS}/[0-9a-f]{{24}}\.arrow|{STATES}/[^/]+\.arrow"
    rf"|{STAGING}/\d+-[0-9a-f]+|{JOURNAL}/[^/]+/[^/]+\.json"
)
_VERSION: Final = re.compile(rf"{SNAPSHOTS}/(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that was, or would be, removed, and why."""

    path: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection did, or with ``dry_run`` would do.

    Parameters
    ----------
    dry_run : bool
    removed : tuple of Garbage
        In order of their paths.
    expired, kept : tuple of int
        Versions that were let go, and those that are readable.
    """

    dry_run: bool
    removed: tuple[Garbage, ...]
    expired: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of the removed files."""
        return sum(one.bytes for one in self.removed)

    def __str__(self) -> str:
        verb = "would remove" if self.dry_run else "removed"
        head = (
            f"{verb} {len(self.removed)} files ({format_bytes(self.bytes)}) and let "
            f"{len(self.expired)} versions go; {len(self.kept)} versions are kept"
        )
        lines = [f"  {one.path} ({one.reason})" for one in self.removed[:_SHOWN]]
        more = len(self.removed) - len(lines)
        return "\n".join([head, *lines, *([f"  and {more} more"] if more else [])])


def gc(
    log: CommitLog,
    *,
    safety_age_seconds: float = DAY,
    keep_versions: int = 10,
    state_age_seconds: float = 30 * DAY,
    dry_run: bool = False,
) -> GcReport:
    """Remove what nothing needs; see the module for the rules.

    Parameters
    ----------
    log : CommitLog
    safety_age_seconds : float
        Nothing younger is removed. It must exceed the time from writing a file to publishing it,
        journals apart, and the difference between the clocks of this machine and the storage.
    keep_versions : int
        How many of the newest versions stay readable, at least 1.
    state_age_seconds : float
        States older than this are removed, and computed again when they are needed.
    dry_run : bool
        Change nothing, only report.

    Raises
    ------
    InvalidInputError
        For a negative age or fewer than one version.
    CorruptionError
        If something that is kept cannot be read; nothing was removed.
    """
    if not (safety_age_seconds >= 0 and state_age_seconds >= 0 and keep_versions >= 1):
        raise InvalidInputError(
            f"ages of {safety_age_seconds} and {state_age_seconds} s with {keep_versions} versions",
            "ages must not be negative, and at least one version is kept",
        )
    store = log.store
    before = time.time() - safety_age_seconds
    old_state = time.time() - max(safety_age_seconds, state_age_seconds)
    candidates = _old_files(store, before)  # first: see the module on races
    journal = _Journals.read(store, before)
    versions = _Versions.choose(log, before, keep_versions)
    needed = _needed(store, versions.keep.values()) | journal.files
    removed = [
        Garbage(info.path, info.bytes, _reason(info.path))
        for info in candidates
        if info.path not in needed
        and (not info.path.startswith(STATES + "/") or info.modified < old_state)
    ]
    removed += [Garbage(one.path, one.bytes, "entry of a dead build") for one in journal.dead]
    removed.sort(key=lambda one: one.path)
    kept = tuple(sorted(versions.keep))
    report = GcReport(dry_run, tuple(removed), tuple(sorted(versions.expire)), kept)
    if not dry_run:
        _expire(log, versions)
        if _Journals.read(store, before).alive - journal.alive:
            return GcReport(False, (), report.expired, kept)
        store.delete(one.path for one in removed)
    return report


def _old_files(store: ObjectStore, before: float) -> list[ObjectInfo]:
    return [
        info
        for directory in (DATA, FILESETS, STATES, STAGING)
        for info in store.list(directory)
        if info.modified < before and _OURS.fullmatch(info.path)
    ]


def _reason(path: str) -> str:
    return {
        STATES: "state not used for long",
        STAGING: "left by an interrupted write",
        FILESETS: "fileset of no kept version",
    }.get(path.split("/", 1)[0], "named by no kept version")


def _needed(store: ObjectStore, versions: Iterable[SnapshotFile]) -> set[str]:
    """Return the paths that versions name; each fileset is read once.

    What a version says of its own and what its base says together name everything it needs.
    """
    filesets: dict[str, FilesetRef] = {}
    for version in versions:
        for entry in (version.entries or {}).values():
            value = None if entry is None else entry.get("fileset")
            if value is not None and value["path"] not in filesets:
                filesets[value["path"]] = FilesetRef.from_json(value)
    needed = set(filesets)
    for ref in filesets.values():
        for partition in read_fileset(store, ref):
            needed.update(file.path for file in partition.all_files())
    return needed


@dataclass(frozen=True, slots=True)
class _Journals:
    """The journals of all tables: which are alive, the files they name, the entries of dead ones."""

    alive: frozenset[str]
    files: frozenset[str]
    dead: tuple[ObjectInfo, ...]

    @classmethod
    def read(cls, store: ObjectStore, before: float) -> _Journals:
        infos = [one for one in store.list(JOURNAL) if _OURS.fullmatch(one.path)]
        alive = frozenset(one.path.split("/")[1] for one in infos if one.modified >= before)
        files: set[str] = set()
        for info in infos:
            try:
                entry = read_journal_entry(info.path, store.read(info.path))
            except NotFoundError:  # cleared since the listing: its build has published
                continue
            except CorruptionError:  # names nothing; a build ignores it as well
                continue
            files.update(file.path for file in entry.all_files())
        dead = tuple(one for one in infos if one.path.split("/")[1] not in alive)
        return cls(alive, frozenset(files), dead)


@dataclass(frozen=True, slots=True)
class _Versions:
    """Which versions stay readable, and which are let go."""

    keep: dict[int, SnapshotFile]
    expire: dict[int, SnapshotFile]

    @classmethod
    def choose(cls, log: CommitLog, before: float, keep_versions: int) -> _Versions:
        newest = log.newest_version()
        young = {
            int(match[1])
            for info in log.store.list(SNAPSHOTS)
            if info.modified >= before and (match := _VERSION.fullmatch(info.path))
        }
        tagged = set(log.tags().values()) - {0}
        files = {version: log.read_file(version) for version in range(1, newest + 1)}
        readable = {version for version, file in files.items() if file.entries is not None}
        wanted = tagged | {newest} - {0}
        if not wanted <= readable:
            raise CorruptionError(
                f"versions {sorted(wanted - readable)} are tagged or newest, but have no entries",
                "remove tags that name versions let go earlier",
            )
        keep = readable & (wanted | young | set(range(newest - keep_versions + 1, newest)))
        bases = {base for version in keep if (base := files[version].base)}
        if not bases <= readable:
            raise CorruptionError(
                f"versions {sorted(bases - readable)} have no entries, but later ones build on them",
                "restore their files from a backup",
            )
        keep |= bases
        return cls(
            {version: files[version] for version in sorted(keep)},
            {version: files[version] for version in sorted(readable - keep)},
        )


def _expire(log: CommitLog, versions: _Versions) -> None:
    """Let versions go, then restore those that were tagged meanwhile."""
    for version, file in versions.expire.items():
        log.store.replace(snapshot_path(version), file.expire().encode())
    tagged = set(log.tags().values()) & set(versions.expire)
    for version in tagged:
        log.store.replace(snapshot_path(version), versions.expire[version].encode())
    if tagged:
        raise CorruptionError(
            f"versions {sorted(tagged)} were tagged while gc ran; they were restored and no file "
            "was removed",
            "run gc again",
        )
