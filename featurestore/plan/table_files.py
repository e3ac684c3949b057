"""What of a table exists at a snapshot: its partitions in order and each column group's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurestore.errors import FormatError
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
from featurestore.transforms.base import UnknownTransformer


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

    def with_features(
        self, features: tuple[Feature, ...], removed: frozenset[str] = frozenset()
    ) -> TableFiles:
        """Return the table as it will be with further features, none built, and without others.

        Raises
        ------
        MissingColumnError, DependencyCycleError
            If a feature that stays or comes reads what is not there, or itself.
        """
        kept = {name: one for name, one in self.groups.items() if name not in removed}
        gone = {name for group in removed for name in self.groups[group].names}
        fields = tuple(one for one in self.schema.fields if one.name not in gone)
        schema = TableSchema(fields, self.schema.key, self.schema.time, self.schema.sources)
        staying = tuple(one for one in self.graph.features() if one.group not in removed)
        entries = {name: one for name, one in self.entries.items() if name not in removed}
        return TableFiles(
            self.snapshot,
            self.entry,
            schema.with_fields(tuple(field for one in features for field in one.outputs)),
            self.base,
            {**kept, **{one.group: group_entry(self.name, one) for one in features}},
            {**entries, **{one.group: {} for one in features}},
            build_graph(kept[BASE_GROUP].fields, (*staying, *features)),
        )


def schema_of(snapshot: Snapshot, table: str) -> TableSchema:
    """Return a table's schema; among its sources is the table itself, as it was ingested.

    Features are left out there: one that reads its own table could otherwise need itself.
    """
    own = snapshot.schema(table)
    base = snapshot.groups(table)[0]
    sources = {**own.sources, table: TableSchema(base.fields, own.key, own.time)}
    return TableSchema(own.fields, own.key, own.time, sources)


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
    schema = schema_of(snapshot, table)
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
    try:
        definition = FeatureDefinition.from_json(group.definition)
    except FormatError as error:
        # Of a package that is not imported here: its values can be read all the same.
        stored = group.definition["transformer"]
        definition = FeatureDefinition(UnknownTransformer(stored, error))
    return Feature(group.group, definition, group.inputs, group.fields)
