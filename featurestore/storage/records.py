"""What the store says about its files: the immutable records that filesets and snapshots are made of.

A *fileset* lists one column group's files, one :class:`PartitionEntry` per partition. A *snapshot*
is a flat mapping from entry keys to entries (one per table, one per column group), so that a commit
can say what it changed without repeating the rest.

Always true: every path is relative to the store and was validated; a partition's identity is its
``partition`` id, never its position, so a group that lacks a partition is visibly missing there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from featurestore.errors import CorruptionError, FormatError, NotFoundError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import Field, TableSchema, check_name

FORMAT_VERSION: Final = 1
BASE_GROUP: Final = "base"
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
    """One immutable file: its path in the store, its size in bytes and its BLAKE2b-128 checksum.

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
class Provenance:
    """What a partition's values were computed from; equal provenance means equal values.

    Parameters
    ----------
    definition : str
        Fingerprint of the feature's definition; for ingested data ``"ingest"``.
    inputs : str
        Fingerprint of the input columns' values in this partition; for ingested data of the bytes.
    state : str
        Fingerprint of the state ``apply`` was given, or ``""``.
    """

    definition: str
    inputs: str
    state: str = ""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.definition, self.inputs, self.state)


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

    def all_files(self) -> tuple[StoredFile, ...]:
        return (*self.files, *(one for files in self.tensors.values() for one in files))

    def to_json(self) -> dict[str, Json]:
        """Return the entry as JSON values (the journal's form)."""
        return {
            "partition": self.partition,
            "rows": self.rows,
            "files": [[f.path, f.bytes, f.checksum, f.footer] for f in self.files],
            "tensors": {
                name: [[f.path, f.bytes, f.checksum, f.footer] for f in files]
                for name, files in self.tensors.items()
            },
            "provenance": [
                self.provenance.definition,
                self.provenance.inputs,
                self.provenance.state,
            ],
            "decoded_bytes": self.decoded_bytes,
            "column_bytes": dict(self.column_bytes),
            "widest_row": self.widest_row,
            "nulls": dict(self.nulls),
            "time_min": self.time_min,
            "time_max": self.time_max,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartitionEntry:
        """Read what :meth:`to_json` gave; members and list items that are not known are ignored."""
        return cls(
            partition=value["partition"],
            rows=value["rows"],
            files=tuple(StoredFile(*one[:4]) for one in value["files"]),
            tensors={
                name: tuple(StoredFile(*one[:4]) for one in files)
                for name, files in value["tensors"].items()
            },
            provenance=Provenance(*value["provenance"][:3]),
            decoded_bytes=value["decoded_bytes"],
            column_bytes=value["column_bytes"],
            widest_row=value["widest_row"],
            nulls=value["nulls"],
            time_min=value.get("time_min"),
            time_max=value.get("time_max"),
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
        return cls(
            StoredFile(value["path"], value["bytes"], value["checksum"]),
            value["partitions"],
            value["rows"],
        )


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A table as a snapshot knows it: key, time and target partition size.

    Its ingested columns are the column group ``base``; that group's fileset gives the partitions
    and their order.
    """

    name: str
    key: tuple[str, ...]
    time: str | None
    partition_bytes: int
    duplicates: str = "error"

    def __post_init__(self) -> None:
        check_name(self.name, "table")

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name,
            "key": list(self.key),
            "time": self.time,
            "partition_bytes": self.partition_bytes,
            "duplicates": self.duplicates,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TableEntry:
        """Read what :meth:`to_json` gave; members that are not known are ignored."""
        return cls(
            value["name"],
            tuple(value["key"]),
            value.get("time"),
            value["partition_bytes"],
            value.get("duplicates", "error"),
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
        ``None`` while nothing was built.
    definition : mapping, optional
        The transformer's specification as JSON; ``None`` for ingested columns.
    definition_fingerprint : str
    inputs : tuple of str
        The columns of its own table that the definition reads.
    """

    table: str
    group: str
    fields: tuple[Field, ...]
    fileset: FilesetRef | None = None
    definition: Mapping[str, Any] | None = None
    definition_fingerprint: str = "ingest"
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.table, "table")
        check_name(self.group, "column group")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.fields)

    def to_json(self) -> dict[str, Json]:
        return {
            "table": self.table,
            "group": self.group,
            "fields": [one.to_json() for one in self.fields],
            "fileset": None if self.fileset is None else self.fileset.to_json(),
            "definition": None if self.definition is None else dict(self.definition),
            "definition_fingerprint": self.definition_fingerprint,
            "inputs": list(self.inputs),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GroupEntry:
        """Read what :meth:`to_json` gave; members that are not known are ignored."""
        fileset = value.get("fileset")
        return cls(
            value["table"],
            value["group"],
            tuple(Field.from_json(one) for one in value["fields"]),
            None if fileset is None else FilesetRef.from_json(fileset),
            value.get("definition"),
            value["definition_fingerprint"],
            tuple(value.get("inputs", ())),
        )


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
        return TableEntry.from_json(entry)

    def groups(self, table: str) -> tuple[GroupEntry, ...]:
        """Return the table's column groups: ``base`` first, then in order of their names."""
        prefix = group_key(table, "")
        found = [
            GroupEntry.from_json(value)
            for key, value in self.entries.items()
            if key.startswith(prefix)
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
        entry = self.table(table)
        fields = tuple(one for group in self.groups(table) for one in group.fields)
        return TableSchema(fields, entry.key, entry.time)


def check_format(version: object) -> None:
    """Refuse a store of a newer format.

    Raises
    ------
    FormatError
    """
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"format version {version!r} is not a number from 1 on", "check the path")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"the store has format version {version}, this package reads up to {FORMAT_VERSION}",
            "upgrade featurestore",
        )
