"""A snapshot in memory with the complete one it is written against, and the files of both.

Always true: the entries of a head come from the files that it names. A complete snapshot is used again
for the next head only if it is the same commit, not only the same number: its file may have been given
up, or the whole store replaced, since it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featurestore.errors import CorruptionError, NotFoundError
from featurestore.storage.records import Snapshot
from featurestore.storage.snapshot_file import (
    Entries,
    SnapshotFile,
    difference,
    merge,
    outweighs,
    snapshot_path,
)

ReadFile = Callable[[int], SnapshotFile]


@dataclass(frozen=True, slots=True)
class Head:
    """A snapshot, its base, and the files of both: the base's first, unless it is the same or 0."""

    snapshot: Snapshot
    base: int
    base_entries: Entries
    files: tuple[SnapshotFile, ...] = ()


def load_head(file: SnapshotFile, read: ReadFile, known: Head | None = None) -> Head:
    """Return the head that a version's file makes, reading its base if ``known`` does not have it.

    Raises
    ------
    NotFoundError
        If gc let the version go, or its base is not there.
    CorruptionError
        If its base is damaged, no complete version, or another commit than it was written against.
    """
    if file.entries is None:
        raise NotFoundError(
            f"version {file.version} ({file.operation}, {file.created}) was let go by gc",
            "tag the versions you want to keep",
        )
    if file.base is None:
        entries = merge({}, file.entries)
        return Head(file.complete(entries), file.version, entries, (file,))
    base, base_entries = _base(file, read, known)
    entries = merge(base_entries, file.entries)
    return Head(file.complete(entries), file.base, base_entries, (*base, file))


def _base(
    file: SnapshotFile, read: ReadFile, known: Head | None
) -> tuple[tuple[SnapshotFile, ...], Entries]:
    """Return the file of the complete version that a difference was written against, and its entries."""
    version, commit = file.base, file.base_commit
    if not version:
        return (), {}
    if known is not None and known.base == version and known.files[0].commit == commit:
        return known.files[:1], known.base_entries
    base = read(version)
    if base.base is not None or base.entries is None:
        raise CorruptionError(
            f"{snapshot_path(version)} is not complete, but later versions build on it",
            "restore it from a backup",
        )
    if commit not in (None, base.commit):  # files of earlier versions do not say
        raise CorruptionError(
            f"{snapshot_path(version)} is commit {base.commit}, but version {file.version} was "
            f"written against {commit}",
            "restore it from a backup",
        )
    return (base,), merge({}, base.entries)


def next_head(head: Head, entries: Entries, commit: str, operation: str, now: str) -> Head:
    """Return the head after ``head``; the data of its last file are what is to be written."""
    version = head.snapshot.version + 1
    base, base_entries = head.base, head.base_entries
    written: Mapping[str, Mapping[str, Any] | None] = difference(base_entries, entries)
    if outweighs(written, version - base, base_entries):
        base, base_entries, written = version, entries, entries
    file = SnapshotFile(
        version,
        commit,
        head.snapshot.commit,
        max(now, head.snapshot.created),  # see history: times never run backwards
        operation,
        None if base == version else base,
        written,
        head.files[0].commit if 0 < base < version else None,
    )
    file = replace(file, data=file.encode())
    files = (file,) if base == version else (*head.files[: base > 0], file)
    return Head(file.complete(entries), base, base_entries, files)
