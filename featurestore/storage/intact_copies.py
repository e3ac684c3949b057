"""Intact copies: what older kept versions, or the rest of a damaged file, still hold.

A feature that was built twice, or a column group that was rewritten, may lie in two files that hold
the same values: equal provenance says so. Only metadata is searched; a candidate's bytes are compared
with their checksums before it is offered. Definitions that are found in a damaged fileset are offered
as they are: the snapshot's fingerprint tells whether one is the right one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from featurestore.errors import CorruptionError, FeatureStoreError, NotFoundError
from featurestore.storage.checksum import has_checksum
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import MAX_BYTES, read_definition, read_fileset
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    FilesetRef,
    PartitionEntry,
    Snapshot,
)

_DEFINITION: Final = re.compile(rb'\{"(asked|fit_on|transformer)":')


@dataclass(frozen=True, slots=True)
class IntactCopy:
    """Values of a partition as an older version names them, their bytes compared."""

    version: int
    entry: PartitionEntry


def intact_copies(
    log: CommitLog,
    table: str,
    group: str,
    wanted: Collection[str],
    accept: Callable[[PartitionEntry], bool],
    below: int,
) -> dict[str, IntactCopy]:
    """Return intact copies of partitions of one column group, from the newest version that has any.

    Parameters
    ----------
    log : CommitLog
    table, group : str
    wanted : collection of str
        Partition ids.
    accept : callable
        Whether an entry holds the values that are sought; asked before any byte is read.
    below : int
        Only versions older than this are looked at.
    """
    found: dict[str, IntactCopy] = {}
    rejected: set[tuple[str, ...]] = set()
    for version, fileset in _filesets(log, table, group, below):
        for entry in _entries(log.store, fileset):
            paths = tuple(file.path for file in entry.all_files())
            if entry.partition in found or entry.partition not in wanted or paths in rejected:
                continue
            if accept(entry) and is_intact(log.store, entry):
                found[entry.partition] = IntactCopy(version, entry)
            else:
                rejected.add(paths)
        if len(found) == len(wanted):
            break
    return found


def is_intact(store: ObjectStore, entry: PartitionEntry) -> bool:
    """Whether all files of a partition are there with their bytes; reads them."""
    try:
        return all(
            store.size(file.path) == file.bytes and has_checksum(store, file)
            for file in entry.all_files()
        )
    except NotFoundError:
        return False


def stored_definitions(
    log: CommitLog, table: str, group: str, fileset: FilesetRef, below: int
) -> Iterator[dict[str, Any]]:
    """Yield what may be the definition of a feature whose fileset is damaged.

    An Arrow file has its metadata at both ends, uncompressed, so one of them outlives most damage;
    older versions may have it in other filesets.
    """
    yield from _salvaged(log.store, fileset.file.path)
    for _, older in _filesets(log, table, group, below):
        if older != fileset:
            try:
                yield read_definition(log.store, older)
            except FeatureStoreError:  # damaged too, or without one (format 1)
                continue


def _salvaged(store: ObjectStore, path: str) -> Iterator[dict[str, Any]]:
    try:
        if store.size(path) > MAX_BYTES:
            return
        data = store.read(path)
    except FeatureStoreError:  # gone, or unreadable: nothing is left in it
        return
    for match in _DEFINITION.finditer(data):
        text = data[match.start() :].decode("utf-8", errors="replace")
        try:
            found, _ = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):  # the damage is here
            continue
        yield found


def _filesets(
    log: CommitLog, table: str, group: str, below: int
) -> Iterator[tuple[int, FilesetRef]]:
    """Yield the distinct filesets of a group in readable versions, newest first."""
    seen: set[str] = set()
    for version in range(below - 1, 0, -1):
        snapshot = _readable(log, version)
        stored = None if snapshot is None else snapshot.group(table, group)
        fileset = None if stored is None else stored.fileset
        if fileset is not None and fileset.file.path not in seen:
            seen.add(fileset.file.path)
            yield version, fileset


def _readable(log: CommitLog, version: int) -> Snapshot | None:
    try:
        return log.read(version)
    except (NotFoundError, CorruptionError):  # let go by gc, or damaged itself: no source of copies
        return None


def _entries(store: ObjectStore, fileset: FilesetRef) -> tuple[PartitionEntry, ...]:
    try:
        return read_fileset(store, fileset)
    except FeatureStoreError:  # a damaged fileset is no source of copies; verify names it
        return ()
