"""What the store says about its files: the immutable records that filesets and snapshots are made of.

A *fileset* lists one column group's files, one :class:`PartitionEntry` per partition. A *snapshot*
is a flat mapping from entry keys to entries (one per table, one per column group), so that a commit
can say what it changed without repeating the rest.

A column group's entry holds what is asked of every group at every opening; its definition, which is
longer and seldom asked for, is in its fileset. So all entries together stay small, and with them
what a commit writes (see ``snapshot_file``).

Always true: every path is relative to the store and was validated; a partition's identity is its
``partition`` id, never its position, so a group that lacks a partition is visibly missing there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from featurestore.errors import CorruptionError, NotFoundError
from featurestore.fingerprint import Json, canonical_json
from featurestore.schema import Field, TableSchema, check_name, type_from_text, type_to_text
from featurestore.storage.counts import Counts
from featurestore.storage.provenance import Provenance
from featurestore.storage.record_checks import count, counts, read_as, text, texts, whole

FORMAT_VERSION: Final = 3
BASE_GROUP: Final = "base"
_INGESTED: Final = "ingest"
_REMEMBERED: Final = 20_000  # some 30 MB at most
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")


def check_path(path: str) -> str:
    """Return ``path`` if it stays inside the store.

    Raises
    ------
    CorruptionError
        If it is absolute, climbs (``..``), or has other characters than the store writes.
    """
    if not _PATH.fullmatch(path) or ".." in path or len(path) > 1024:
        raise CorruptionError(
            f"the store names a file {path!r}, which is not a path this package writes",
            "run verify; do not trust this store if you did not write it",
        )
    return path


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One immutable file: its path in the store, its size in bytes and its checksum.

    ``footer`` is the checksum of a Parquet file's footer alone (its metadata, their length and the
    closing magic), which the checksums of the pages do not cover; empty for other files.
    """

    path: str
    bytes: int
    checksum: str
    footer: str = ""

    def __post_init__(self) -> None:
        check_path(self.path)


@dataclass(frozen=True, slots=True)
class PartitionEntry:
    """One column group's values in one partition.

    Parameters
    ----------
    partition : str
        The partition's id, equal in all column groups of a table.
    rows : int
    files : tuple of StoredFile
        The Parquet file of the scalar columns, if the group has any.
    tensors : mapping of str to tuple of StoredFile
        For each tensor column the files of its Zarr array: ``zarr.json`` first, then its chunks.
    provenance : Provenance
    decoded_bytes : int
        Size of all columns in memory (Arrow), tensors included.
    column_bytes : mapping of str to int
        The same, per column.
    widest_row : int
        Bytes of the widest row, so that slices can be bounded.
    nulls : mapping of str to int
        Null count per scalar column.
    time_min, time_max : int, optional
        Range of the time column in steps of its unit (see ``schema.time_unit``); base group only.
    """

    partition: str
    rows: int
    files: tuple[StoredFile, ...]
    tensors: Mapping[str, tuple[StoredFile, ...]]
    provenance: Provenance
    decoded_bytes: int
    column_bytes: Mapping[str, int]
    widest_row: int
    nulls: Mapping[str, int]
    time_min: int | None = None
    time_max: int | None = None

    def __post_init__(self) -> None:
        check_name(self.partition, "partition")
        if self.rows < 0:
            raise CorruptionError(f"partition {self.partition} has {self.rows} rows")
        object.__setattr__(self, "column_bytes", Counts(self.column_bytes))
        object.__setattr__(self, "nulls", Counts(self.nulls))

    def all_files(self) -> tuple[StoredFile, ...]:
        return (*self.files, *(one for files in self.tensors.values() for one in files))

    def to_json(self) -> dict[str, Json]:
        """Return the entry as JSON values (the journal's form)."""
        source = self.provenance
        return {
            "partition": self.partition,
            "rows": self.rows,
            "files": [[f.path, f.bytes, f.checksum, f.footer] for f in self.files],
            "tensors": {
                name: [[f.path, f.bytes, f.checksum, f.footer] for f in files]
                for name, files in self.tensors.items()
            },
            "provenance": [source.definition, source.inputs, source.state],
            "settled": list(source.settled),
            "decoded_bytes": self.decoded_bytes,
            "column_bytes": dict(self.column_bytes),
            "widest_row": self.widest_row,
            "nulls": dict(self.nulls),
            "time_min": self.time_min,
            "time_max": self.time_max,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartitionEntry:
        """Read what :meth:`to_json` gave; members and list items that are not known are ignored.

        Raises
        ------
        CorruptionError
            If it is something else.
        """
        return read_as(
            "an entry of a partition",
            lambda: cls(
                partition=text(value["partition"]),
                rows=count(value["rows"]),
                files=tuple(_stored_file(*one[:4]) for one in value["files"]),
                tensors={
                    text(name): tuple(_stored_file(*one[:4]) for one in files)
                    for name, files in value["tensors"].items()
                },
                provenance=Provenance.from_json(value["provenance"], value.get("settled", ())),
                decoded_bytes=count(value["decoded_bytes"]),
                column_bytes=counts(value["column_bytes"]),
                widest_row=count(value["widest_row"]),
                nulls=counts(value["nulls"]),
                time_min=whole(value.get("time_min")),
                time_max=whole(value.get("time_max")),
            ),
        )


@dataclass(frozen=True, slots=True)
class FilesetRef:
    """Where a fileset is, and what it must be: the reference a snapshot holds."""

    file: StoredFile
    partitions: int
    rows: int

    def to_json(self) -> dict[str, Json]:
        return {
            "path": self.file.path,
            "bytes": self.file.bytes,
            "checksum": self.file.checksum,
            "partitions": self.partitions,
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FilesetRef:
        return read_as(
            "a reference to a fileset",
            lambda: cls(
                _stored_file(value["path"], value["bytes"], value["checksum"]),
                count(value["partitions"]),
                count(value["rows"]),
            ),
        )


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A table as a snapshot knows it: key, time and target partition size.

    Its ingested columns are the column group ``base``; that group's fileset gives the partitions
    and their order. ``identity`` is unique to one ingest; ``""`` in stores of earlier versions.
    ``expectations`` are those of its values, each as canonical JSON.
    """

    name: str
    key: tuple[str, ...]
    time: str | None
    partition_bytes: int
    duplicates: str = "error"
    identity: str = ""
    expectations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "table")

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name,
            "key": list(self.key),
            "time": self.time,
            "partition_bytes": self.partition_bytes,
            "duplicates": self.duplicates,
            **({"identity": self.identity} if self.identity else {}),
            **(
                {"expectations": [json.loads(one) for one in self.expectations]}
                if self.expectations
                else {}
            ),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TableEntry:
        """Read what :meth:`to_json` gave; members that are not known are ignored."""
        time = value.get("time")
        return read_as(
            "an entry of a table",
            lambda: cls(
                text(value["name"]),
                texts(value["key"]),
                None if time is None else text(time),
                count(value["partition_bytes"]),
                text(value.get("duplicates", "error")),
                text(value.get("identity", "")),
                tuple(canonical_json(dict(one)).decode() for one in value.get("expectations", ())),
            ),
        )


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """A column group as a snapshot knows it.

    Parameters
    ----------
    table, group : str
        ``group`` is ``"base"`` for ingested columns, else unique per feature.
    fields : tuple of Field
        The columns the group holds.
    fileset : FilesetRef, optional
        ``None`` in stores of format 1 while nothing was built.
    definition : mapping, optional
        As JSON, where it is not in the fileset: in entries of format 1, and before it is published.
    definition_fingerprint : str
        ``"ingest"`` for ingested columns.
    inputs : tuple of str
        The columns of its own table that the definition reads.
    kind : str
        Of the transformer; ``""`` for ingested columns.
    reads : mapping of str to tuple of str
        The other table that the definition reads, and its columns. Not known of format 1.
    asked : str
        See :class:`~featurestore.plan.definition.FeatureDefinition`.
    looks_ahead : bool
        Whether values depend on later rows. Not known of format 1.
    """

    table: str
    group: str
    fields: tuple[Field, ...]
    fileset: FilesetRef | None = None
    definition: Mapping[str, Any] | None = None
    definition_fingerprint: str = _INGESTED
    inputs: tuple[str, ...] = ()
    kind: str = ""
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asked: str = ""
    looks_ahead: bool = False

    def __post_init__(self) -> None:
        check_name(self.table, "table")
        check_name(self.group, "column group")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.fields)

    @property
    def key(self) -> str:
        """The key under which a snapshot has it, which says its table and its name."""
        return group_key(self.table, self.group)

    def to_json(self) -> dict[str, Json]:
        """Return the value that a snapshot has under :attr:`key`; what is empty is left out."""
        members: dict[str, Json] = {
            "fileset": None if self.fileset is None else self.fileset.to_json(),
            "fingerprint": None
            if self.definition_fingerprint == _INGESTED
            else self.definition_fingerprint,
            "inputs": list(self.inputs),
            "kind": self.kind,
            "reads": {table: list(columns) for table, columns in self.reads.items()},
            "asked": self.asked,
            "ahead": self.looks_ahead,
            "definition": None if self.definition is None else dict(self.definition),
        }
        fields = [_field_json(one) for one in self.fields]
        return {"fields": fields, **{name: value for name, value in members.items() if value}}

    @classmethod
    def from_json(cls, key: str, value: Mapping[str, Any]) -> GroupEntry:
        """Read what :meth:`to_json` gave, or an entry of format 1, and the key it is found under.

        Members that are not known are ignored.

        Raises
        ------
        CorruptionError
            If it is something else.
        """
        return read_as(f"the entry {key!r}", lambda: cls._from_json(key, value))

    @classmethod
    def _from_json(cls, key: str, value: Mapping[str, Any]) -> GroupEntry:
        _, table, group = key.split(":")
        fileset, definition = value.get("fileset"), value.get("definition")
        kind, asked = value.get("kind", ""), value.get("asked", "")
        if definition is not None:  # of format 1
            kind, asked = definition["transformer"]["kind"], definition.get("asked", "")
            _ = definition["fit_on"]
        old = value.get("definition_fingerprint", _INGESTED)
        return cls(
            table,
            group,
            tuple(_field_from_json(one) for one in value["fields"]),
            None if fileset is None else FilesetRef.from_json(fileset),
            definition,
            text(value.get("fingerprint", old)),
            texts(value.get("inputs", ())),
            text(kind),
            {name: texts(columns) for name, columns in value.get("reads", {}).items()},
            text(asked),
            value.get("ahead", False) is True,
        )


def _field_json(one: Field) -> Json:
    """Return a column as a list: name, type, and for a tensor the shape of one row."""
    written = [one.name, type_to_text(one.type)]
    return written if one.shape is None else [*written, list(one.shape)]


def _field_from_json(value: Any) -> Field:
    if isinstance(value, Mapping):  # of format 1
        return Field.from_json(value)
    shape = tuple(count(size) for size in value[2]) if len(value) > 2 else None
    return Field(text(value[0]), type_from_text(text(value[1])), shape)


def _stored_file(path: Any, size: Any, checksum: Any, footer: Any = "") -> StoredFile:
    return StoredFile(text(path), count(size), text(checksum), text(footer))


def table_key(table: str) -> str:
    return f"table:{table}"


def group_key(table: str, group: str) -> str:
    return f"group:{table}:{group}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One immutable version of the whole store.

    Parameters
    ----------
    version : int
        0 is the empty store.
    commit : str
        The id of the commit that published it, unique to that attempt.
    created : str
        UTC, ISO 8601.
    operation : str
        What was done, in words: ``"ingest flights"``.
    entries : mapping of str to JSON
        ``table:<name>`` and ``group:<table>:<group>``.
    """

    version: int
    commit: str
    created: str
    operation: str
    entries: Mapping[str, Mapping[str, Any]]
    # What was made of the entries already: they are asked for again by every property of a table.
    _parsed: dict[tuple[str, str], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshot, (self.version, self.commit, self.created, self.operation, self.entries)

    @property
    def id(self) -> str:
        """Version and commit together: names exactly this snapshot of exactly this history."""
        return f"{self.version}-{self.commit}"

    def tables(self) -> tuple[str, ...]:
        return tuple(sorted(k.split(":")[1] for k in self.entries if k.startswith("table:")))

    def table(self, name: str) -> TableEntry:
        entry = self.entries.get(table_key(name))
        if entry is None:
            raise NotFoundError(f"there is no table {name!r}", f"tables are {list(self.tables())}")
        found = TableEntry.from_json(entry)
        if found.name != name:
            raise CorruptionError(
                f"the store has a table {found.name!r} under the name {name!r}", "run verify"
            )
        return found

    def group(self, table: str, group: str) -> GroupEntry | None:
        """Return one column group; None if there is no such group or table."""
        key = group_key(table, group)
        value = self.entries.get(key)
        return None if value is None else _group_of(key, value)

    def groups(self, table: str) -> tuple[GroupEntry, ...]:
        """Return the table's column groups: ``base`` first, then in order of their names."""
        at = "groups", table
        if at not in self._parsed:
            self._parsed[at] = self._groups(table)
        found: tuple[GroupEntry, ...] = self._parsed[at]
        return found

    def _groups(self, table: str) -> tuple[GroupEntry, ...]:
        prefix = group_key(table, "")
        found = [
            _group_of(key, value) for key, value in self.entries.items() if key.startswith(prefix)
        ]
        if not found:
            raise NotFoundError(f"there is no table {table!r}", f"tables are {list(self.tables())}")
        return tuple(sorted(found, key=lambda one: (one.group != BASE_GROUP, one.group)))

    def schema(self, table: str) -> TableSchema:
        """Return all columns of a table, built or not, with the schemas of the other tables."""
        sources = {name: self._own_schema(name) for name in self.tables() if name != table}
        own = self._own_schema(table)
        return TableSchema(own.fields, own.key, own.time, sources)

    def _own_schema(self, table: str) -> TableSchema:
        at = "schema", table
        if at not in self._parsed:
            entry = self.table(table)
            fields = tuple(one for group in self.groups(table) for one in group.fields)
            self._parsed[at] = read_as(
                f"the schema of table {table!r}", lambda: TableSchema(fields, entry.key, entry.time)
            )
        found: TableSchema = self._parsed[at]
        return found


# A commit leaves most values of the snapshot before as they are, the same objects: so all of a table of
# thousands need not be read again for one that changed. A value is kept with what was made of it, so
# that its number stays its own.
_groups: Final[dict[int, tuple[str, Mapping[str, Any], GroupEntry]]] = {}


def _group_of(key: str, value: Mapping[str, Any]) -> GroupEntry:
    known = _groups.get(id(value))
    if known is not None and known[0] == key and known[1] is value:
        return known[2]
    made = GroupEntry.from_json(key, value)
    if len(_groups) >= _REMEMBERED:
        _groups.clear()
    _groups[id(value)] = key, value, made
    return made
