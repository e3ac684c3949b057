"""Publishing: what a build or an append made becomes one visible commit, or nothing does.

Each function returns a *change*: given the newest snapshot it returns the entries to write, or
raises ``ConflictError`` if the work no longer applies there. It is called again on every newer
snapshot after a lost race. A concurrent append leaves the new features missing on its partitions,
visibly; they are never filled in. A table that was dropped and ingested again is another table,
whatever its name: nothing that was made for the one is published into the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from featurestore.errors import ConflictError, NameTakenError
from featurestore.plan.definition import Feature
from featurestore.plan.layout import with_replaced
from featurestore.plan.readers import changed_columns, readers
from featurestore.plan.replacement import Replacement
from featurestore.plan.table_files import TableFiles, group_entry, schema_of
from featurestore.schema import Field
from featurestore.storage.commit_log import Change
from featurestore.storage.fileset import read_fileset, with_partitions, write_fileset
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    BASE_GROUP,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    TableEntry,
    group_key,
    table_key,
)
from featurestore.transforms.base import SourceTransformer, UnknownTransformer


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
        group = replace(base, fileset=fileset)
        return {table_key(entry.name): entry.to_json(), group.key: group.to_json()}

    return change


def state_expectations(seen: TableEntry, expectations: Sequence[str]) -> Change:
    """Publish that a table has other expectations; ``seen`` is its entry on which that was decided."""

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        _base(head, seen)
        new = replace(seen, expectations=tuple(expectations))
        return {table_key(seen.name): new.to_json()}

    return change


def append_partitions(
    store: ObjectStore, entry: TableEntry, seen: GroupEntry, entries: Sequence[PartitionEntry]
) -> Change:
    """Publish further partitions at the end of a table.

    Parameters
    ----------
    entry : TableEntry
    seen : GroupEntry
        The table and its base group on which the append was prepared.
    """

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        group = _base(head, entry)
        before = read_fileset(store, group.fileset)
        _check_later(entry, before, entries, unchanged=group.fileset == seen.fileset)
        new = with_partitions(store, group, (*before, *entries))
        return {new.key: new.to_json()}

    return change


def _check_later(
    table: TableEntry,
    before: Sequence[PartitionEntry],
    entries: Sequence[PartitionEntry],
    unchanged: bool,
) -> None:
    """Refuse rows that a concurrent append made late, or may have made duplicates."""
    newest = max((one.time_max for one in before if one.time_max is not None), default=None)
    oldest = min((one.time_min for one in entries if one.time_min is not None), default=None)
    if table.time is None:
        # Keys were compared with those of the table as it was.
        applies = unchanged or not table.key or table.duplicates == "keep"
    else:
        applies = newest is None or oldest is None or oldest > newest
    if not applies:
        raise ConflictError(
            f"somebody else changed the rows of {table.name!r} first, and these do not follow on them",
            "append again; rows that are late or repeat a key by then are named",
        )


def replace_partitions(
    store: ObjectStore,
    entry: TableEntry,
    seen: GroupEntry,
    replaced: Mapping[str, Sequence[PartitionEntry]],
    inserted: Sequence[PartitionEntry] = (),
    span: tuple[int | None, int | None] | None = None,
) -> Change:
    """Publish that partitions of a table gave way to others; features lose their values there.

    Applies also where partitions were appended, or others than these rewritten, meanwhile.

    Parameters
    ----------
    entry : TableEntry
    seen : GroupEntry
        The table and its base group on which the work was prepared.
    replaced, inserted
        As for :func:`~featurestore.plan.layout.with_replaced`.
    span : (int or None, int or None), optional
        The range of times that the new rows stand for: nobody may have added rows there.
    """
    table = entry.name
    known = {one.partition for one in read_fileset(store, seen.fileset)}

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        group = _base(head, entry)
        before = read_fileset(store, group.fileset)
        layout = with_replaced(table, before, replaced, inserted)
        if span is not None:
            _check_untouched(table, [one for one in before if one.partition not in known], span)
        new = with_partitions(store, group, layout)
        return {new.key: new.to_json(), **values_gone(store, head, table, replaced.keys())}

    return change


def values_gone(
    store: ObjectStore, head: Snapshot, table: str, partitions: AbstractSet[str]
) -> dict[str, Mapping[str, Any]]:
    """Return the entries of the features that lose their values in some partitions.

    Such values would be no part of any table, and ``gc`` could not remove deleted rows' files.
    """
    entries: dict[str, Mapping[str, Any]] = {}
    for group in head.groups(table):
        before = read_fileset(store, group.fileset)
        kept = [one for one in before if one.partition not in partitions]
        if group.group != BASE_GROUP and len(kept) < len(before):
            entries[group.key] = with_partitions(store, group, kept).to_json()
    return entries


def _check_untouched(
    table: str, added: Sequence[PartitionEntry], span: tuple[int | None, int | None]
) -> None:
    """Refuse a range of times in which rows were added meanwhile."""
    found = Replacement.of(added, *span)
    for one in (*found.whole, *found.cut):
        raise ConflictError(
            f"rows were added to {table!r} meanwhile in the range of times that is replaced "
            f"(partition {one.partition})",
            "replace it again: those rows then give way too, or are seen and can be kept",
        )


def publish_features(
    store: ObjectStore,
    files: TableFiles,
    features: Sequence[Feature],
    built: Mapping[str, Mapping[str, PartitionEntry]],
    new: frozenset[str],
    removed: frozenset[str] = frozenset(),
) -> Change:
    """Publish features' definitions and the values that were built.

    Values that somebody else wrote since the build began stay: those are of what is newer.

    Parameters
    ----------
    files : TableFiles
        The table that the features were bound to, with the values that the build found.
    features : sequence of Feature
        New ones, and existing ones that got values. An existing one that was dropped meanwhile
        stays dropped.
    built : mapping of str to mapping of str to PartitionEntry
        Group, then partition id.
    new : frozenset of str
        Groups that this defines.
    removed : frozenset of str
        Groups that the new ones replace.
    """
    table = files.name

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        base = read_fileset(store, _base(head, files.entry).fileset)
        groups = {one.group: one for one in head.groups(table)}
        present = [one for one in features if one.group in groups or one.group in new]
        own = {one.group for one in present}
        columns = _fields(groups.values())
        kept = _fields(one for one in groups.values() if one.group not in own | removed)
        after = {**kept, **{field.name: field for one in present for field in one.outputs}}
        for feature in present:
            _check_applies(feature, files, head, kept, after)
        _check_unread(head, table, changed_columns(columns, after), own | removed)
        entries: dict[str, Mapping[str, Any] | None] = {
            group_key(table, group): None for group in removed & groups.keys()
        }
        for feature in present:
            before = groups.get(feature.group)
            old = () if before is None else read_fileset(store, before.fileset)
            seen = files.entries[feature.group]
            values = unless_written(old, seen, built.get(feature.group, {}))
            ordered = tuple(values[one.partition] for one in base if one.partition in values)
            entry, definition = _entry(files, feature, before)
            if entry is before and ordered == old:
                continue  # somebody else did the same
            published = with_partitions(store, entry, ordered, definition)
            entries[published.key] = published.to_json()
        return entries

    return change


def unless_written(
    now: Iterable[PartitionEntry],
    seen: Mapping[str, PartitionEntry],
    values: Mapping[str, PartitionEntry | None],
) -> dict[str, PartitionEntry]:
    """Return a group's entries with some exchanged, but for those that somebody wrote or removed since.

    Parameters
    ----------
    now : iterable of PartitionEntry
        The group as it is.
    seen : mapping of str to PartitionEntry
        The group as it was when the work began, by partition id.
    values : mapping of str to PartitionEntry or None
        What the work made, by partition id; None takes an entry out.

    Examples
    --------
    >>> from featurestore.testing.entries import partition_entry
    >>> old, new, theirs = (partition_entry("p1", rows) for rows in (1, 2, 3))
    >>> unless_written([old], {"p1": old}, {"p1": new})["p1"].rows
    2
    >>> unless_written([theirs], {"p1": old}, {"p1": new})["p1"].rows
    3
    """
    found = {one.partition: one for one in now}
    for partition, value in values.items():
        if found.get(partition) != seen.get(partition):
            continue
        if value is not None:
            found[partition] = value
        else:
            found.pop(partition, None)
    return found


def _entry(
    files: TableFiles, feature: Feature, before: GroupEntry | None
) -> tuple[GroupEntry, Mapping[str, Any] | None]:
    """Return a feature's entry, and the definition to put into its fileset if it is not there."""
    if before is None:
        new = group_entry(files.name, feature, files.schema)
        return new, new.definition
    if before.definition is None or isinstance(feature.transformer, UnknownTransformer):
        return before, None
    new = group_entry(files.name, feature, files.schema)
    # Of format 1. What is stored stays as it is: values were computed from it.
    return replace(
        new, fileset=before.fileset, definition_fingerprint=before.definition_fingerprint
    ), before.definition


def _fields(groups: Iterable[GroupEntry]) -> dict[str, Field]:
    return {field.name: field for group in groups for field in group.fields}


def _check_applies(
    feature: Feature,
    files: TableFiles,
    head: Snapshot,
    kept: Mapping[str, Field],
    after: Mapping[str, Field],
) -> None:
    """Refuse a feature whose names were taken, or whose inputs are no longer what it was bound to."""
    clash = kept.keys() & set(feature.names)
    if clash:
        raise ConflictError(
            f"column {min(clash)!r} was added to {files.name!r} by someone else meanwhile",
            "choose another name, or drop theirs",
        )
    read = [(files.name, files.schema[name], after.get(name)) for name in feature.inputs]
    transformer = feature.transformer
    if isinstance(transformer, SourceTransformer):
        source = transformer.source_table
        if head.group(source, BASE_GROUP) is None:
            raise _gone(source)
        then, now = files.schema.source(source), schema_of(head, files.name).source(source)
        if (then.key, then.time) != (now.key, now.time):
            raise ConflictError(
                f"table {source!r}, which {feature.names[0]!r} joins, was ingested again with another "
                "key or time meanwhile",
                "define the feature again, or drop it",
            )
        found = {field.name: field for field in now}
        columns = transformer.source_inputs(files.schema)
        read += [(source, then[name], found.get(name)) for name in columns]
    for table, wanted, field in read:
        if field != wanted:
            raise ConflictError(
                f"column {wanted.name!r} of {table!r}, which {feature.names[0]!r} reads, was "
                f"{'dropped' if field is None else 'replaced by one of another type'} meanwhile",
                "define the feature again, or drop it",
            )


def _check_unread(
    head: Snapshot, table: str, columns: set[str], except_groups: AbstractSet[str]
) -> None:
    """Refuse that columns go, or change their type, while a feature that stays reads them."""
    for reader in readers(head, table, columns):
        if reader.table != table or reader.group not in except_groups:
            raise ConflictError(f"{reader}, and was added meanwhile", "drop that feature first")


def exchange_features(
    store: ObjectStore,
    seen: Snapshot,
    new: Sequence[tuple[TableFiles, Sequence[Feature]]],
    removed: Mapping[str, AbstractSet[str]],
) -> Change:
    """Publish definitions without values in several tables at once, and that others are gone.

    It was judged as a whole on one snapshot, so it applies there alone: whoever published anything
    meanwhile may have changed what was judged.

    Parameters
    ----------
    store : ObjectStore
    seen : Snapshot
    new : sequence of (TableFiles, sequence of Feature)
        Tables as they will be, and the features among theirs that are not there yet.
    removed : mapping of str to set of str
        Groups by table.
    """

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        require_unchanged(seen, head)
        entries: dict[str, Mapping[str, Any] | None] = {
            group_key(table, group): None for table, groups in removed.items() for group in groups
        }
        for files, features in new:
            for feature in features:
                entry = group_entry(files.name, feature, files.schema)
                published = with_partitions(store, entry, (), entry.definition)
                entries[published.key] = published.to_json()
        return entries

    return change


def require_unchanged(seen: Snapshot, head: Snapshot) -> None:
    """Refuse a store that says something else than it did.

    Raises
    ------
    ConflictError
    """
    if head.entries != seen.entries:
        raise ConflictError(
            f"the store is at version {head.version} ({head.operation}), and not at version "
            f"{seen.version} any more, which this was made for",
            "look at the new plan, and apply that",
        )


def drop_groups(files: TableFiles, groups: frozenset[str]) -> Change:
    """Publish that features are gone."""
    table = files.name
    columns = {name for group in groups for name in files.groups[group].names}

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        _base(head, files.entry)
        others = _fields(one for one in head.groups(table) if one.group not in groups)
        replaced = columns & others.keys()
        if replaced:
            raise ConflictError(
                f"column {min(replaced)!r} of {table!r} was replaced meanwhile",
                "drop it again if the new one should go as well",
            )
        _check_unread(head, table, columns, groups)
        return {group_key(table, group): None for group in groups}

    return change


def drop_table(seen: Snapshot, table: str) -> Change:
    """Publish that a table is gone, with all its features; nobody may have changed it since."""
    known = _entries_of(seen, table)
    columns = {name for group in seen.groups(table) for name in group.names}

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        found = _entries_of(head, table)
        if found and found != known:
            raise ConflictError(
                f"table {table!r} was changed by someone else meanwhile",
                "look at it, and drop it again if it should still go",
            )
        for reader in readers(head, table, columns) if found else ():
            if reader.table != table:
                raise ConflictError(f"{reader}, and was added meanwhile", "drop that feature first")
        return dict.fromkeys(found)

    return change


def _entries_of(snapshot: Snapshot, table: str) -> dict[str, Mapping[str, Any]]:
    """Return a table's own entry and those of its column groups; none if there is no such table."""
    prefix = group_key(table, "")
    return {
        key: value
        for key, value in snapshot.entries.items()
        if key == table_key(table) or key.startswith(prefix)
    }


def _base(head: Snapshot, entry: TableEntry) -> GroupEntry:
    """Return the base group of a table, if it is still the one that the work was prepared on.

    Rows were sorted by the key and time of that table, features bound to its columns.
    """
    group = head.group(entry.name, BASE_GROUP)
    if group is None:
        raise _gone(entry.name)
    now = head.table(entry.name)
    if now != entry and replace(now, expectations=entry.expectations) == entry:
        raise ConflictError(
            f"the expectations of table {entry.name!r} were changed by someone else meanwhile",
            "do it again: what is written is held against them",
        )
    if now != entry:
        raise ConflictError(
            f"table {entry.name!r} was dropped and ingested again meanwhile",
            "look at it, and do it again if it should be done to the new table as well",
        )
    return group


def _gone(table: str) -> ConflictError:
    return ConflictError(f"table {table!r} was removed meanwhile", "ingest it again")
