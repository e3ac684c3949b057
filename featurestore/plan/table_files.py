"""What of a table exists at a snapshot: its partitions in order and each column group's files.

Columns, groups and which feature reads which are known from the snapshot alone. A group's fileset, with
its files and its definition, is read when something first asks for it, so that one column of a table of
thousands costs what the column costs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

from featurestore.errors import CorruptionError
from featurestore.plan.definition import Feature, StoredDefinition
from featurestore.plan.graph import FeatureGraph, build_graph
from featurestore.schema import TableSchema
from featurestore.storage.fileset import read_fileset, read_provenance, with_definition
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.record_checks import read_as
from featurestore.storage.records import (
    BASE_GROUP,
    GroupEntry,
    PartitionEntry,
    Snapshot,
    TableEntry,
)
from featurestore.transforms.base import Scope, SourceTransformer


class GroupFiles(Mapping[str, Mapping[str, PartitionEntry]]):
    """For each column group its partitions by id, in table order."""

    @abstractmethod
    def provenance(self, group: str) -> Mapping[str, Provenance]:
        """Return a group's provenance by partition, without keeping all that its fileset says."""


class _StoredGroups(GroupFiles):
    """What a snapshot names; a fileset is read when its group is asked for.

    May be used by several threads: two that ask at once read the same.
    """

    def __init__(self, store: ObjectStore, groups: Mapping[str, GroupEntry]) -> None:
        self._store = store
        self._groups = groups
        self._read: dict[str, Mapping[str, PartitionEntry]] = {}

    def __getitem__(self, group: str) -> Mapping[str, PartitionEntry]:
        if group not in self._read:
            entries = read_fileset(self._store, self._groups[group].fileset)
            self._read[group] = {one.partition: one for one in entries}
        return self._read[group]

    def provenance(self, group: str) -> Mapping[str, Provenance]:
        if group in self._read:
            return _provenance(self._read[group])
        return read_provenance(self._store, self._groups[group].fileset)

    def __contains__(self, group: object) -> bool:
        return group in self._groups

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


class _GivenGroups(GroupFiles):
    """Partitions that are known already, whatever a store has."""

    def __init__(self, groups: Mapping[str, Mapping[str, PartitionEntry]]) -> None:
        self._groups = groups

    def __getitem__(self, group: str) -> Mapping[str, PartitionEntry]:
        return self._groups[group]

    def provenance(self, group: str) -> Mapping[str, Provenance]:
        return _provenance(self._groups[group])

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


class _OtherGroups(GroupFiles):
    """The partitions of other groups, without some and with empty ones beside."""

    def __init__(self, inner: GroupFiles, removed: frozenset[str], empty: frozenset[str]) -> None:
        self._inner = inner
        self._removed = removed
        self._empty = empty

    def __getitem__(self, group: str) -> Mapping[str, PartitionEntry]:
        if group in self._empty:
            return {}
        if group in self._removed:
            raise KeyError(group)
        return self._inner[group]

    def provenance(self, group: str) -> Mapping[str, Provenance]:
        if group in self._empty:
            return {}
        return self._inner.provenance(group)

    def __iter__(self) -> Iterator[str]:
        hidden = self._removed | self._empty
        yield from (one for one in self._inner if one not in hidden)
        yield from self._empty

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _provenance(entries: Mapping[str, PartitionEntry]) -> Mapping[str, Provenance]:
    return {name: one.provenance for name, one in entries.items()}


@dataclass(frozen=True, slots=True)
class TableFiles:
    """A table at a snapshot.

    Parameters
    ----------
    snapshot : Snapshot
    entry : TableEntry
    schema : TableSchema
        All columns, built or not.
    groups : mapping of str to GroupEntry
    entries : GroupFiles
        Group, then partition id, in table order; a partition that is not there was not built.
    graph : FeatureGraph
    """

    snapshot: Snapshot
    entry: TableEntry
    schema: TableSchema
    groups: Mapping[str, GroupEntry]
    entries: GroupFiles
    graph: FeatureGraph
    _base: list[tuple[PartitionEntry, ...]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    _ends: list[tuple[int, ...]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def base(self) -> tuple[PartitionEntry, ...]:
        """The partitions, in table order."""
        if not self._base:
            self._base.append(tuple(self.entries[BASE_GROUP].values()))
        return self._base[0]

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.base)

    def rows_between(self, start: int, stop: int) -> int:
        """Return how many rows the partitions ``start <= position < stop`` have together."""
        if not self._ends:  # two threads at once put the same there
            self._ends.append(tuple(accumulate((one.rows for one in self.base), initial=0)))
        return self._ends[0][stop] - self._ends[0][start]

    def widest_row(
        self,
        position: int,
        columns: Iterable[str],
        built: Mapping[str, Mapping[str, PartitionEntry]] | None = None,
    ) -> int:
        """Return the most bytes of a row of a partition, as recorded of the files of these columns.

        Parameters
        ----------
        position : int
        columns : iterable of str
        built : mapping of str to mapping of str to PartitionEntry, optional
            Partitions by group that take the place of the table's own.
        """
        partition = self.base[position].partition
        groups = dict.fromkeys(self.graph.owners[name] for name in columns)
        widest = 0
        for group in groups:
            entry = None if built is None else built.get(group, {}).get(partition)
            entry = self.entries[group].get(partition) if entry is None else entry
            widest += 0 if entry is None else entry.widest_row
        return widest

    def provenance(self, group: str) -> Mapping[str, Provenance]:
        """Return what a group's values were computed from, by partition; cheaper than ``entries``."""
        return self.entries.provenance(group)

    def groups_of(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return self.graph.groups_of(columns)

    def with_entries(self, entries: Mapping[str, Mapping[str, PartitionEntry]]) -> TableFiles:
        """Return the table with other partitions, for all of its groups."""
        return replace(self, entries=_GivenGroups(entries))

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
        schema = schema.with_fields(tuple(field for one in features for field in one.outputs))
        new = {one.group: group_entry(self.name, one, schema) for one in features}
        return TableFiles(
            self.snapshot,
            self.entry,
            schema,
            {**kept, **new},
            _OtherGroups(self.entries, removed, frozenset(new)),
            build_graph(kept[BASE_GROUP].fields, (*staying, *features)),
        )


def source_of(
    feature: Feature, files: TableFiles, tables: Mapping[str, TableFiles]
) -> tuple[TableFiles, tuple[str, ...]] | None:
    """Return what a feature of ``files`` joins: a table and its columns; None if it reads its own rows alone.

    ``tables`` has it by name; it may be the feature's own.
    """
    transformer = feature.transformer
    if not isinstance(transformer, SourceTransformer):
        return None
    return tables[transformer.source_table], transformer.source_inputs(files.schema)


def summarized_of(
    feature: Feature, files: TableFiles, tables: Mapping[str, TableFiles]
) -> tuple[TableFiles, tuple[str, ...]]:
    """Return the table, and the columns, that a feature's summaries are made of."""
    return source_of(feature, files, tables) or (files, feature.inputs)


def schema_of(snapshot: Snapshot, table: str) -> TableSchema:
    """Return a table's schema; among its sources is the table itself, as it was ingested.

    Features are left out there: one that reads its own table could otherwise need itself.
    """
    own = snapshot.schema(table)
    base = snapshot.groups(table)[0]
    sources = {**own.sources, table: TableSchema(base.fields, own.key, own.time)}
    return TableSchema(own.fields, own.key, own.time, sources)


def group_entry(table: str, feature: Feature, schema: TableSchema) -> GroupEntry:
    """Return the entry of a feature of which nothing is published; its definition is in it.

    Parameters
    ----------
    table : str
    feature : Feature
    schema : TableSchema
        Of the table.
    """
    definition, transformer = feature.definition, feature.transformer
    reads = {}
    if isinstance(transformer, SourceTransformer):
        reads[transformer.source_table] = transformer.source_inputs(schema)
    return GroupEntry(
        table=table,
        group=feature.group,
        fields=feature.outputs,
        definition=definition.to_json(),
        definition_fingerprint=definition.fingerprint,
        inputs=feature.inputs,
        kind=definition.kind,
        reads=reads,
        asked=definition.asked,
        looks_ahead=transformer.scope is Scope.SUFFIX,
    )


def load_table_files(store: ObjectStore, snapshot: Snapshot, table: str) -> TableFiles:
    """Return what exists of a table; filesets are read when they are asked for.

    Raises
    ------
    NotFoundError
        If the snapshot has no such table.
    """
    groups = {one.group: one for one in snapshot.groups(table)}
    if BASE_GROUP not in groups:
        raise CorruptionError(f"table {table!r} has no ingested columns", "run verify")
    for name, one in groups.items():
        if bool(one.kind) == (name == BASE_GROUP):
            raise CorruptionError(
                f"column group {name!r} of table {table!r} has the kind {one.kind!r}", "run verify"
            )
    features = tuple(
        Feature(
            one.group,
            StoredDefinition(one, partial(_definition, store, one)),
            one.inputs,
            one.fields,
        )
        for one in groups.values()
        if one.kind
    )
    return TableFiles(
        snapshot,
        snapshot.table(table),
        schema_of(snapshot, table),
        groups,
        _StoredGroups(store, groups),
        read_as(
            f"the graph of table {table!r}",
            lambda: build_graph(groups[BASE_GROUP].fields, features),
        ),
    )


def _definition(store: ObjectStore, group: GroupEntry) -> Mapping[str, Any]:
    found = with_definition(store, group).definition
    if found is None:
        raise CorruptionError(
            f"the definition of {list(group.names)} in table {group.table!r} is in no fileset",
            "drop the feature and define it again",
        )
    return found
