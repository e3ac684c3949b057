"""Publishing: what a build or an append made becomes one visible commit, or nothing does.

Each function returns a *change*: given the newest snapshot it returns the entries to write, or
raises ``ConflictError`` if the work no longer applies there. It is called again on every newer
snapshot after a lost race. A concurrent append leaves the new features missing on its partitions,
visibly; they are never filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from featurestore.errors import ConflictError, NameTakenError
from featurestore.plan.definition import Feature
from featurestore.plan.table_files import group_entry
from featurestore.storage.fileset import read_fileset, write_fileset
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    BASE_GROUP,
    FilesetRef,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    TableEntry,
    group_key,
    table_key,
)

Change: TypeAlias = Callable[[Snapshot], Mapping[str, "Mapping[str, Any] | None"]]


def create_table(
    store: ObjectStore, entry: TableEntry, base: GroupEntry, entries: Sequence[PartitionEntry]
) -> Change:
    """Publish a new table."""
    fileset = write_fileset(store, entries)

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        if table_key(entry.name) in head.entries:
            raise NameTakenError(
                f"table {entry.name!r} exists already", "use append, or choose another name"
            )
        group = _with_fileset(base, fileset)
        return {table_key(entry.name): entry.to_json(), _key(group): group.to_json()}

    return change


def append_partitions(
    store: ObjectStore, table: str, seen: GroupEntry, entries: Sequence[PartitionEntry]
) -> Change:
    """Publish further partitions at the end of a table.

    Parameters
    ----------
    seen : GroupEntry
        The base group on which the append was prepared.
    """

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        group = _group(head, table, BASE_GROUP)
        if group.fields != seen.fields:
            raise ConflictError(
                f"the columns of {table!r} changed while rows were appended", "append again"
            )
        before = read_fileset(store, group.fileset)
        _check_later(table, before, entries, unchanged=group.fileset == seen.fileset)
        new = _with_fileset(group, write_fileset(store, (*before, *entries)))
        return {_key(new): new.to_json()}

    return change


def _check_later(
    table: str,
    before: Sequence[PartitionEntry],
    entries: Sequence[PartitionEntry],
    unchanged: bool,
) -> None:
    """Refuse rows that a concurrent append made late, or may have made duplicates."""
    newest = max((one.time_max for one in before if one.time_max is not None), default=None)
    oldest = min((one.time_min for one in entries if one.time_min is not None), default=None)
    applies = unchanged if newest is None or oldest is None else oldest > newest
    if not applies:
        raise ConflictError(
            f"another append to {table!r} was published first, and these rows do not come after it",
            "append again; rows that are late by then are named",
        )


def publish_features(
    store: ObjectStore,
    table: str,
    features: Sequence[Feature],
    built: Mapping[str, Mapping[str, PartitionEntry]],
    removed: frozenset[str] = frozenset(),
) -> Change:
    """Publish features' definitions and the values that were built.

    Parameters
    ----------
    features : sequence of Feature
        New ones, and existing ones that got values.
    built : mapping of str to mapping of str to PartitionEntry
        Group, then partition id.
    removed : frozenset of str
        Groups that the new ones replace.
    """

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        base = read_fileset(store, _group(head, table, BASE_GROUP).fileset)
        groups = {one.group: one for one in head.groups(table)}
        entries: dict[str, Mapping[str, Any] | None] = {}
        for group in removed & groups.keys():
            entries[group_key(table, group)] = None
        kept = [one for name, one in groups.items() if name not in removed]
        own = {feature.group for feature in features}
        taken = {name for one in kept if one.group not in own for name in one.names}
        available = taken | {name for feature in features for name in feature.names}
        for feature in features:
            _check_applies(feature, table, taken, available)
            before = groups.get(feature.group)
            values = dict(built.get(feature.group, {}))
            if before is not None:
                old = {one.partition: one for one in read_fileset(store, before.fileset)}
                values = {**old, **values}
            ordered = [values[one.partition] for one in base if one.partition in values]
            fresh = group_entry(table, feature) if before is None else before
            fileset = write_fileset(store, ordered) if ordered else None
            entries[group_key(table, feature.group)] = _with_fileset(fresh, fileset).to_json()
        return entries

    return change


def _check_applies(feature: Feature, table: str, taken: set[str], available: set[str]) -> None:
    clash = taken.intersection(feature.names)
    if clash:
        raise ConflictError(
            f"column {min(clash)!r} was added to {table!r} by someone else meanwhile",
            "choose another name, or drop theirs",
        )
    gone = set(feature.inputs) - available
    if gone:
        raise ConflictError(
            f"column {min(gone)!r} of {table!r}, which {feature.names[0]!r} reads, was dropped "
            "meanwhile",
            "define it again, or drop this feature",
        )


def drop_groups(table: str, groups: frozenset[str]) -> Change:
    """Publish that features are gone."""

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        kept = [one for one in head.groups(table) if one.group not in groups]
        dropped = {name for one in head.groups(table) if one.group in groups for name in one.names}
        for one in kept:
            needed = dropped.intersection(one.inputs)
            if needed:
                raise ConflictError(
                    f"{one.names[0]!r} was added meanwhile and reads {min(needed)!r}",
                    "drop that feature first",
                )
        return {group_key(table, group): None for group in groups}

    return change


def _group(head: Snapshot, table: str, group: str) -> GroupEntry:
    entry = head.entries.get(group_key(table, group))
    if entry is None:
        raise ConflictError(f"table {table!r} was removed meanwhile", "ingest it again")
    return GroupEntry.from_json(entry)


def _key(group: GroupEntry) -> str:
    return group_key(group.table, group.group)


def _with_fileset(group: GroupEntry, fileset: FilesetRef | None) -> GroupEntry:
    return replace(group, fileset=fileset)
