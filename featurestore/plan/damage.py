"""What a verification found, sorted by what can be done about it: values, whole filesets, caches.

Only what the newest version names counts as damaged values; faults of older versions, of tags and
of snapshots stay in ``faults`` and belong to no group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from featurestore.errors import FeatureStoreError
from featurestore.plan.readers import readers
from featurestore.plan.stored_definitions import fingerprint_of
from featurestore.plan.table_files import TableFiles
from featurestore.storage.commit_log import HINT_FILE, CommitLog
from featurestore.storage.condemned import GC
from featurestore.storage.faults import Fault
from featurestore.storage.fileset import read_fileset
from featurestore.storage.intact_copies import stored_definitions
from featurestore.storage.journal import JOURNAL
from featurestore.storage.leases import LEASES
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    BASE_GROUP,
    FilesetRef,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    group_key,
)
from featurestore.storage.states import STATES

_CACHES: Final = tuple(f"{folder}/" for folder in (STATES, JOURNAL, LEASES, GC))


@dataclass(frozen=True, slots=True)
class GroupDamage:
    """The damaged values of one column group.

    Parameters
    ----------
    table, group : str
    columns : tuple of str
    fileset : FilesetRef
        As the newest version names it.
    unreadable : bool
        Whether the fileset itself is damaged, so that nobody knows what it named.
    partitions : frozenset of str
        Those whose values are damaged; all of the table if the fileset is.
    entries : mapping of str to PartitionEntry
        Everything the fileset names, by partition; empty if it is unreadable.
    definition : mapping, optional
        Of a feature whose fileset is damaged, if it was found elsewhere: its fingerprint is that
        in the snapshot.
    """

    table: str
    group: str
    columns: tuple[str, ...]
    fileset: FilesetRef
    unreadable: bool
    partitions: frozenset[str]
    entries: Mapping[str, PartitionEntry]
    definition: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """All that is damaged at a version.

    Parameters
    ----------
    groups : tuple of GroupDamage
    caches : tuple of str
        Damaged files that can be deleted: states, journal entries, leases, the hint.
    faults : tuple of Fault
    paths : frozenset of str
        Damaged files.
    """

    groups: tuple[GroupDamage, ...]
    caches: tuple[str, ...]
    faults: tuple[Fault, ...]
    paths: frozenset[str]

    @classmethod
    def of(cls, log: CommitLog, snapshot: Snapshot, faults: Sequence[Fault]) -> Damage:
        """Sort the faults of a verification of a snapshot, the newest of the log."""
        found: dict[tuple[str, str], list[Fault]] = defaultdict(list)
        for fault in faults:
            if group_key(fault.table, fault.group) in snapshot.entries:
                found[fault.table, fault.group].append(fault)
        groups = []
        for (table, group), own in found.items():
            entry = snapshot.group(table, group)
            assert entry is not None
            damaged = _group_damage(log, snapshot, entry, own)
            if damaged is not None:
                groups.append(damaged)
        caches = [one.file for one in faults if one.file.startswith(_CACHES)]
        caches += [one.file for one in faults if one.file == HINT_FILE]
        paths = frozenset(one.file for one in faults)
        return cls(tuple(groups), tuple(dict.fromkeys(caches)), tuple(faults), paths)

    def sound(self, files: TableFiles) -> TableFiles:
        """Return a table without the damaged values of features; reads all its filesets."""
        entries = dict(files.entries)
        for one in self.groups:
            if one.table == files.name and one.group != BASE_GROUP and one.group in entries:
                kept = entries[one.group].items()
                entries[one.group] = {
                    partition: entry for partition, entry in kept if partition not in one.partitions
                }
        return files.with_entries(entries)

    def readable(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot without the damaged filesets of features: nothing is built of these.

        Features whose definition is lost are not in it, nor those that read them.
        """
        entries = dict(snapshot.entries)
        lost: list[GroupDamage] = []
        for one in self.groups:
            if not one.unreadable or one.group == BASE_GROUP:
                continue
            key = group_key(one.table, one.group)
            entry = entries.pop(key)
            if one.definition is None:
                lost.append(one)
            else:
                entries[key] = {**entry, "fileset": None, "definition": one.definition}
        known = replace(snapshot, entries=entries)
        gone = [(one.table, set(one.columns)) for one in lost]
        while gone:
            for reader in list(readers(known, *gone.pop())):
                group = known.group(reader.table, reader.group)
                if group is not None:
                    gone.append((group.table, set(group.names)))
                    left = {key: one for key, one in known.entries.items() if key != group.key}
                    known = replace(known, entries=left)
        return known


def _group_damage(
    log: CommitLog, snapshot: Snapshot, group: GroupEntry, faults: Sequence[Fault]
) -> GroupDamage | None:
    if group.fileset is None:
        return None
    path = group.fileset.file.path
    damage = GroupDamage(
        group.table, group.group, group.names, group.fileset, True, frozenset(), {}
    )
    if any(one.file == path and not one.partition for one in faults):
        return replace(
            damage,
            partitions=_partitions(log.store, snapshot, group),
            definition=_definition(log, snapshot, group),
        )
    entries = {one.partition: one for one in read_fileset(log.store, group.fileset)}
    named = {file.path for one in entries.values() for file in one.all_files()} | {path}
    partitions = frozenset(
        one.partition for one in faults if one.partition in entries and one.file in named
    )
    if not partitions:
        return None
    return replace(damage, unreadable=False, partitions=partitions, entries=entries)


def _definition(log: CommitLog, snapshot: Snapshot, group: GroupEntry) -> Mapping[str, Any] | None:
    """Return the definition of a feature whose fileset is damaged, if it is to be found."""
    if group.group == BASE_GROUP:
        return None
    if group.definition is not None:  # of format 1: in the snapshot
        return group.definition
    assert group.fileset is not None
    for found in stored_definitions(log, group.table, group.group, group.fileset, snapshot.version):
        if fingerprint_of(found) == group.definition_fingerprint:
            return found
    return None


def _partitions(store: ObjectStore, snapshot: Snapshot, group: GroupEntry) -> frozenset[str]:
    """Return all partitions of a table; none if its own fileset is damaged as well."""
    base = None if group.group == BASE_GROUP else snapshot.group(group.table, BASE_GROUP)
    if base is None:
        return frozenset()
    try:
        return frozenset(one.partition for one in read_fileset(store, base.fileset))
    except FeatureStoreError:  # a fault of its own, which says so
        return frozenset()
