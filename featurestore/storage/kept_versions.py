"""Which versions a gc keeps, and why; which it lets go; which it must leave alone.

Kept are the newest version, those that are tagged or leased, the few newest, those younger than the
safety age, and the complete snapshots that any of them builds on. One of these that cannot be read
stops everything. Any other version is let go, or, if it cannot be read, left as it is.

Reads the file of every version that may have entries, once. Versions known to be gone (see
``condemned``) are not read again, so that the cost goes by the versions that are new or kept. Entries
are dropped as soon as their filesets are noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from featurestore.errors import CorruptionError, FormatError, NotFoundError
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.condemned import GoneVersions, as_ranges
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import FilesetRef
from featurestore.storage.snapshot_file import SNAPSHOTS, SnapshotFile, is_let_go
from featurestore.storage.tags import Tags

_VERSION: Final = re.compile(rf"{SNAPSHOTS}/(\d{{20}})\.json")


class OvertakenError(Exception):
    """Another gc let go what this one keeps."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A version that was read: its file without entries, and what these name."""

    stub: SnapshotFile
    base: int | None
    has_entries: bool
    filesets: frozenset[str]
    tables: Mapping[str, bool]  # by name: whether it is there, of those that the entries speak of


@dataclass(slots=True)
class KeptVersions:
    """The decision about all versions of a store.

    Parameters
    ----------
    keep : dict of int to str
        Why each version stays readable.
    expire : dict of int to SnapshotFile
        Those to be let go, each as its file will be.
    unreadable : dict of int to str
        Those that are left alone, and what is wrong with them.
    gone : GoneVersions, optional
        For the next gc; None if the last one left the same.
    filesets : tuple of FilesetRef
        Those that the kept versions name.
    tables : frozenset of str
        The newest version's.
    """

    keep: dict[int, str] = field(default_factory=dict)
    expire: dict[int, SnapshotFile] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    gone: GoneVersions | None = None
    filesets: tuple[FilesetRef, ...] = ()
    tables: frozenset[str] = frozenset()


def held_versions(store: ObjectStore, leased: Iterable[int]) -> dict[int, str]:
    """Return the versions that are tagged or leased, each with why.

    Raises
    ------
    CorruptionError
        If a tag cannot be read.
    """
    held = dict.fromkeys(leased, "in use")
    for name, tag in Tags(store).all().items():
        held[tag.version] = f"tagged {name}"
    held.pop(0, None)
    return held


def choose_versions(
    log: CommitLog, before: float, keep_versions: int, leased: Iterable[int]
) -> KeptVersions:
    """Decide about all versions; changes nothing.

    Parameters
    ----------
    log : CommitLog
    before : float
        Versions whose files changed at this time or later are young.
    keep_versions : int
    leased : iterable of int

    Raises
    ------
    CorruptionError
        If a version that must be kept, or what it builds on, cannot be read or has no entries.
    OvertakenError
        If it had entries when this began.
    """
    newest = log.newest_version()
    modified = {
        int(match[1]): info.modified
        for info in log.store.list(SNAPSHOTS)
        if (match := _VERSION.fullmatch(info.path))
    }
    young = {version for version, changed in modified.items() if before <= changed}
    recent = range(max(1, newest - keep_versions + 1), newest + 1)
    why = dict.fromkeys((version for version in young if 0 < version <= newest), "young")
    why.update(dict.fromkeys(recent, f"among the {keep_versions} newest"))
    held = held_versions(log.store, leased)
    why.update(held)
    if newest:
        why[newest] = "the newest"
    known_gone = GoneVersions.read(log.store).among(modified) - set(why)
    return _Choice(log, why, held, newest, known_gone).decide(modified)


class _Choice:
    """The work of :func:`choose_versions`."""

    def __init__(
        self, log: CommitLog, why: dict[int, str], held: dict[int, str], newest: int, gone: set[int]
    ) -> None:
        self._log = log
        self._why = why
        self._held = held
        self._newest = newest
        self._gone = gone
        self._refs: dict[str, FilesetRef] = {}
        self._seen: dict[int, _Seen] = {}
        self._unreadable: dict[int, str] = {}

    def decide(self, modified: Mapping[int, float]) -> KeptVersions:
        keep = self._kept()
        others = (one for one in range(1, self._newest + 1) if one not in self._gone)
        for version in others:
            if version not in self._seen:
                self._look(version)
        with_entries = [n for n, one in self._seen.items() if one.has_entries]
        gone = self._gone | {n for n, one in self._seen.items() if not one.has_entries}
        filesets = {path for version in keep for path in self._seen[version].filesets}
        return KeptVersions(
            keep=dict(sorted(keep.items())),
            expire={n: self._seen[n].stub for n in sorted(with_entries) if n not in keep},
            unreadable=dict(sorted(self._unreadable.items())),
            gone=None
            if gone == self._gone
            else GoneVersions(max(modified.values(), default=0.0), as_ranges(gone)),
            filesets=tuple(self._refs[path] for path in sorted(filesets)),
            tables=self._tables(),
        )

    def _kept(self) -> dict[int, str]:
        keep: dict[int, str] = {}
        for version, why in sorted(self._why.items()):
            if self._must(version, f"is kept ({why})").has_entries:
                keep[version] = why
            elif version == self._newest:
                if self._log.newest_version() > version:
                    raise OvertakenError
                raise CorruptionError(
                    f"version {version} is {why}, but has no entries", "restore it from a backup"
                )
            # Others were let go before they were tagged or leased, as whoever did that is told.
        bases = {
            base: version for version in keep if (base := self._seen[version].base) is not None
        }
        for base, version in sorted(bases.items()):
            if base and base not in keep:
                if not self._must(base, f"is what version {version} builds on").has_entries:
                    if is_let_go(self._log.store, version):
                        raise OvertakenError
                    raise CorruptionError(
                        f"version {base} has no entries, but version {version} builds on it",
                        "restore its file from a backup",
                    )
                keep[base] = f"what version {version} builds on"
        return keep

    def _must(self, version: int, reason: str) -> _Seen:
        found = self._seen.get(version) or self._look(version)
        if found is None:
            raise CorruptionError(
                f"version {version} {reason}, but {self._unreadable[version]}; nothing was removed",
                "restore its file from a backup; if it is the newest it can be given up, if it is "
                "tagged the tag can be removed",
            )
        return found

    def _look(self, version: int) -> _Seen | None:
        """Read a version; None if it cannot be read."""
        try:
            file = self._log.read_file(version)
            seen = _Seen(
                file.expire(),
                file.base,
                file.entries is not None,
                frozenset(self._filesets(file)),
                _tables(file.entries or {}),
            )
        # What is only refused at this moment may be read again later, and then names its files.
        except (CorruptionError, FormatError, NotFoundError) as error:
            self._unreadable[version] = error.problem
            return None
        self._seen[version] = seen
        return seen

    def _filesets(self, file: SnapshotFile) -> Iterable[str]:
        """Note the filesets that a version names; yield their paths."""
        for entry in (file.entries or {}).values():
            value = None if entry is None else entry.get("fileset")
            if value is not None:
                ref = FilesetRef.from_json(value)
                yield self._refs.setdefault(ref.file.path, ref).file.path

    def _tables(self) -> frozenset[str]:
        newest = self._seen.get(self._newest)
        if newest is None:
            return frozenset()
        base = self._seen[newest.base].tables if newest.base else {}
        return frozenset(name for name, there in {**base, **newest.tables}.items() if there)


def _tables(entries: Mapping[str, Any]) -> dict[str, bool]:
    return {
        key.removeprefix("table:"): entry is not None
        for key, entry in entries.items()
        if key.startswith("table:")
    }
