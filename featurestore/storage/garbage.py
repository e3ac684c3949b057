"""Garbage collection: lets old versions go and removes files that nothing needs.

What is kept:

* every version that is the newest, tagged, leased (see ``leases``), among the ``keep_versions``
  newest, or younger than the safety age, and the complete snapshot it builds on; with all files
  they name;
* every file younger than the safety age: somebody may be about to publish it. While somebody writes
  under a lease, every file younger than that lease, whatever the safety age;
* the journal of a table while any of its files is younger than the safety age (its build is
  alive), with all files the entries name. A dead journal goes; the files its entries name go with
  the next collection. Of a table that the newest version does not have, each journal file goes by
  its own age;
* states (a cache) that are younger than ``state_age_seconds``;
* files that are being written, while they are younger than ten minutes, whatever the safety age;
* every file whose name this package does not give: somebody put it there.

Versions that are let go keep their number, time and operation, only their entries go: their names
must stay taken, see ``commit_log``. Each fileset is read once, however many versions share it; a
version that is gone is not read again. If anything that is kept cannot be read, nothing is removed
at all; an old version that cannot be read and would not be kept is left as it is.

What closes the races. Files are listed before leases and the newest version are looked up, so a file
that was published meanwhile is seen as needed. A gc first decides, which changes nothing; then says
which versions it lets go (see ``condemned``); then looks again at leases, tags and journals, and
decides anew if any of them came in between. Only then it changes something. Several may run at once.

The trade-off: files that were already old when somebody who holds no lease publishes them (copies
taken from a version that goes at this moment) are not protected; hold a lease on that version.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from featurestore.errors import (
    ConflictError,
    CorruptionError,
    DiskFullError,
    InvalidInputError,
    NotFoundError,
)
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.condemned import Condemned
from featurestore.storage.fileset import FILESETS, read_fileset
from featurestore.storage.group_writer import DATA
from featurestore.storage.journal import JOURNAL, read_journal_file
from featurestore.storage.kept_versions import (
    KeptVersions,
    OvertakenError,
    choose_versions,
    held_versions,
)
from featurestore.storage.leases import LeaseFile, Leases
from featurestore.storage.local import STAGING
from featurestore.storage.object_store import ObjectInfo, ObjectStore
from featurestore.storage.records import FilesetRef
from featurestore.storage.snapshot_file import is_let_go, snapshot_path
from featurestore.storage.states import STATES
from featurestore.units import format_bytes

DAY: Final = 86_400.0
_SHOWN: Final = 20
_ATTEMPTS: Final = 10
_STAGED_SECONDS: Final = 600.0
_CLOCKS_SECONDS: Final = 60.0  # that a writer's clock may be ahead of the storage's
_PARTITION: Final = r"/[^/]+/[^/]+/[^/]+-[0-9a-f]{12}(\.parquet|\.\d+\.zarr/.+)"
_OURS: Final = re.compile(
    rf"{DATA}{_PARTITION}|{FILESETS}/[0-9a-f]{{24}}\.arrow|{STATES}/[^/]+\.arrow"
    rf"|{STAGING}/\d+-[0-9a-f]+|{JOURNAL}/[^/]+/[^/]+\.json"
)


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
    reasons : mapping of int to str
        Why each version is kept.
    unreadable : mapping of int to str
        Old versions that were left alone, and what is wrong with them; ``verify`` says more.
    """

    dry_run: bool
    removed: tuple[Garbage, ...]
    expired: tuple[int, ...]
    kept: tuple[int, ...]
    reasons: Mapping[int, str] = field(default_factory=dict)
    unreadable: Mapping[int, str] = field(default_factory=dict)

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
        lines += [f"  and {more} more"] if more else []
        shown = list(self.reasons.items())[-_SHOWN:]
        lines += [f"  version {version} is kept: {why}" for version, why in shown]
        lines += [
            f"  version {version} cannot be read and is left alone: {problem}"
            for version, problem in list(self.unreadable.items())[:_SHOWN]
        ]
        return "\n".join([head, *lines])


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
        Nothing younger is removed. It must exceed the time from writing a file to publishing it
        where that is done without a lease, journals apart, and the difference between the clocks
        of this machine and the storage.
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
    ConflictError
        If others kept tagging, leasing or removing what was to go; nothing was removed.
    """
    if not (safety_age_seconds >= 0 and state_age_seconds >= 0 and keep_versions >= 1):
        raise InvalidInputError(
            f"ages of {safety_age_seconds} and {state_age_seconds} s with {keep_versions} versions",
            "ages must not be negative, and at least one version is kept",
        )
    ages = safety_age_seconds, state_age_seconds
    try:
        return _collect(log, *ages, keep_versions, dry_run)
    except DiskFullError:
        # To let versions go takes some small files: what no version names at all makes room for them.
        first = _collect(log, *ages, sys.maxsize, dry_run)
        if not first.removed:
            raise
    then = _collect(log, *ages, keep_versions, dry_run)
    both = sorted((*first.removed, *then.removed), key=lambda one: one.path)
    return replace(then, removed=tuple(both))


def _collect(
    log: CommitLog, safety_age: float, state_age: float, keep_versions: int, dry_run: bool
) -> GcReport:
    for _ in range(_ATTEMPTS):
        try:
            found = _Findings.of(log, safety_age, state_age, keep_versions)
        except OvertakenError:  # by another gc
            continue
        if dry_run:
            return found.report(dry_run=True)
        with Condemned(log.store).announced(found.versions.expire):
            if found.still_holds(log.store):
                _carry_out(log.store, found)
                return found.report(dry_run=False)
    raise ConflictError(
        f"others kept changing what was to go, {_ATTEMPTS} times",
        "run gc again when fewer tags, leases and collections come and go at once",
    )


@dataclass(frozen=True, slots=True)
class _Findings:
    """What a gc decided, before it changes anything.

    Parameters
    ----------
    before : float
        What changed at this time or later is young.
    youngest : float
        When the youngest of the files that are to go, journals apart, changed.
    versions : KeptVersions
    removed : tuple of Garbage
    journals : frozenset of str
        Tables whose journals are alive.
    """

    before: float
    youngest: float
    versions: KeptVersions
    removed: tuple[Garbage, ...]
    journals: frozenset[str]

    @classmethod
    def of(
        cls, log: CommitLog, safety_age: float, state_age: float, keep_versions: int
    ) -> _Findings:
        store, now = log.store, time.time()
        candidates = _old_files(store, now - safety_age)  # first: see the module on races
        leases = Leases(store).live()
        # A writer that comes later writes what was not listed.
        before = min(now - safety_age, _writers_floor(leases))
        ages = {STATES: min(before, now - state_age), STAGING: min(before, now - _STAGED_SECONDS)}
        journal = _Journals.read(store, before)
        versions = choose_versions(
            log, now - safety_age, keep_versions, [one.version for one in leases]
        )
        needed = _needed(store, versions) | journal.files
        removed = [
            Garbage(info.path, info.bytes, _reason(info.path))
            for info in candidates
            if info.path not in needed
            and info.modified < ages.get(info.path.split("/", 1)[0], before)
        ]
        removed += [
            Garbage(one.path, one.bytes, "entry of a dead build")
            for one in journal.dead(versions.tables)
        ]
        removed += [
            Garbage(one.path, one.bytes, "lease that ended") for one in Leases(store).dead()
        ]
        removed += [Garbage(one.path, one.bytes, "dead gc") for one in Condemned(store).dead()]
        removed.sort(key=lambda one: one.path)
        gone = {one.path for one in removed}
        youngest = max((one.modified for one in candidates if one.path in gone), default=0.0)
        return cls(before, youngest, versions, tuple(removed), journal.alive)

    def still_holds(self, store: ObjectStore) -> bool:
        """Whether nobody tagged, leased, wrote or resumed meanwhile what is to go.

        Leases are looked at before tags: who tags holds a lease until the tag is there.
        """
        leases = Leases(store).live()
        if _writers_floor(leases) <= self.youngest:
            return False
        held = held_versions(store, [one.version for one in leases])
        came_alive = _Journals.read(store, self.before).alive - self.journals
        return not set(held) & set(self.versions.expire) and not came_alive

    def report(self, *, dry_run: bool) -> GcReport:
        versions = self.versions
        return GcReport(
            dry_run,
            self.removed,
            tuple(versions.expire),
            tuple(versions.keep),
            versions.keep,
            versions.unreadable,
        )


def _carry_out(store: ObjectStore, found: _Findings) -> None:
    for version, stub in found.versions.expire.items():
        store.replace(snapshot_path(version), stub.encode())
    store.delete(one.path for one in found.removed)
    if found.versions.gone is not None:
        found.versions.gone.write(store)


def _writers_floor(leases: Iterable[LeaseFile]) -> float:
    """Return the time from which on files may be those of somebody who writes under a lease."""
    return min((one.since - _CLOCKS_SECONDS for one in leases if one.writes), default=math.inf)


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


def _needed(store: ObjectStore, versions: KeptVersions) -> set[str]:
    """Return the paths that the kept versions name; each fileset is read once.

    What a version says of its own and what its base says together name everything it needs.
    """
    needed: set[str] = set()
    for ref in versions.filesets:
        needed.add(ref.file.path)
        needed.update(_named_by(store, ref, versions))
    return needed


def _named_by(store: ObjectStore, ref: FilesetRef, versions: KeptVersions) -> Iterable[str]:
    try:
        entries = read_fileset(store, ref)
    except CorruptionError as error:
        if any(is_let_go(store, version) for version in versions.keep):
            raise OvertakenError from error
        raise
    return (file.path for entry in entries for file in entry.all_files())


@dataclass(frozen=True, slots=True)
class _Journals:
    """The journals of all tables: which are alive, and the files they name."""

    before: float
    infos: tuple[ObjectInfo, ...]
    alive: frozenset[str]
    files: frozenset[str]

    @classmethod
    def read(cls, store: ObjectStore, before: float) -> _Journals:
        infos = tuple(one for one in store.list(JOURNAL) if _OURS.fullmatch(one.path))
        alive = frozenset(_table(one) for one in infos if one.modified >= before)
        files: set[str] = set()
        for info in infos:
            try:
                entries = read_journal_file(info.path, store.read(info.path))
            except NotFoundError:  # cleared since the listing: its build has published
                continue
            except CorruptionError:  # names nothing; a build ignores it as well
                continue
            files.update(file.path for one in entries.values() for file in one.all_files())
        return cls(before, infos, alive, frozenset(files))

    def dead(self, tables: frozenset[str]) -> list[ObjectInfo]:
        """Return the files whose builds are dead, given the tables that there are."""
        return [
            one
            for one in self.infos
            if one.modified < self.before and (_table(one) not in self.alive & tables)
        ]


def _table(info: ObjectInfo) -> str:
    return info.path.split("/")[1]
