"""What of a table exists at a snapshot: its partitions in order and each column group's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurestore.fingerprint import fingerprint
from featurestore.plan.definition import Feature, FeatureDefinition
from featurestore.plan.graph import FeatureGraph, build_graph
from featurestore.schema import TableSchema
from featurestore.storage.fileset import read_fileset
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    BASE_GROUP,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    TableEntry,
)


@dataclass(frozen=True, slots=True)
class TableFiles:
    """A table at a snapshot.

    Parameters
    ----------
    snapshot : Snapshot
    entry : TableEntry
    schema : TableSchema
        All columns, built or not.
    base : tuple of PartitionEntry
        The partitions, in table order.
    groups : mapping of str to GroupEntry
    entries : mapping of str to mapping of str to PartitionEntry
        Group, then partition id; a partition that is not there was not built.
    graph : FeatureGraph
    """

    snapshot: Snapshot
    entry: TableEntry
    schema: TableSchema
    base: tuple[PartitionEntry, ...]
    groups: Mapping[str, GroupEntry]
    entries: Mapping[str, Mapping[str, PartitionEntry]]
    graph: FeatureGraph

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.base)

    def groups_of(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return self.graph.groups_of(columns)

    def with_features(self, features: tuple[Feature, ...]) -> TableFiles:
        """Return the table as it will be with further features, none of them built."""
        entries = {**self.entries, **{one.group: {} for one in features}}
        groups = {**self.groups, **{one.group: group_entry(self.name, one) for one in features}}
        fields = tuple(field for one in features for field in one.outputs)
        base = groups[BASE_GROUP].fields
        graph = build_graph(base, (*self.graph.features(), *features))
        return TableFiles(
            self.snapshot, self.entry, self.schema.with_fields(fields), self.base, groups,
            entries, graph,
        )  # fmt: skip

    def without_groups(self, removed: frozenset[str]) -> TableFiles:
        """Return the table as it will be without some features."""
        groups = {name: one for name, one in self.groups.items() if name not in removed}
        gone = {name for group in removed for name in self.groups[group].names}
        fields = tuple(one for one in self.schema.fields if one.name not in gone)
        features = tuple(one for one in self.graph.features() if one.group not in removed)
        return TableFiles(
            self.snapshot,
            self.entry,
            TableSchema(fields, self.schema.key, self.schema.time, self.schema.sources),
            self.base,
            groups,
            {name: one for name, one in self.entries.items() if name not in removed},
            build_graph(groups[BASE_GROUP].fields, features),
        )

    def stored_fingerprint(self, columns: tuple[str, ...], partition: str) -> str | None:
        """Return the fingerprint of columns' stored values in a partition; None if not built."""
        parts = []
        for group in sorted(self.groups_of(columns)):
            entry = self.entries[group].get(partition)
            if entry is None:
                return None
            parts.append([group, entry.provenance.fingerprint])
        return fingerprint("columns", parts)


def group_entry(table: str, feature: Feature) -> GroupEntry:
    """Return the snapshot entry of a feature of which nothing is built."""
    return GroupEntry(
        table=table,
        group=feature.group,
        fields=feature.outputs,
        definition=feature.definition.to_json(),
        definition_fingerprint=feature.definition.fingerprint,
        inputs=feature.inputs,
    )


def load_table_files(store: ObjectStore, snapshot: Snapshot, table: str) -> TableFiles:
    """Read what exists of a table: one fileset per column group, nothing else.

    Raises
    ------
    NotFoundError
        If the snapshot has no such table.
    """
    schema = snapshot.schema(table)
    groups = {one.group: one for one in snapshot.groups(table)}
    filesets = {name: read_fileset(store, one.fileset) for name, one in groups.items()}
    features = tuple(_feature(one) for one in groups.values() if one.definition is not None)
    return TableFiles(
        snapshot,
        snapshot.table(table),
        schema,
        filesets[BASE_GROUP],
        groups,
        {name: {one.partition: one for one in entries} for name, entries in filesets.items()},
        build_graph(groups[BASE_GROUP].fields, features),
    )


def _feature(group: GroupEntry) -> Feature:
    assert group.definition is not None
    definition = FeatureDefinition.from_json(group.definition)
    return Feature(group.group, definition, group.inputs, group.fields)
