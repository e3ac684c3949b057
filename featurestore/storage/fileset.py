"""Filesets: one immutable Arrow IPC file per column group and state of it, one row per partition.

A feature's definition is in the file's schema metadata, also while nothing of it is built.

Written by ``write_fileset`` (made durable by the commit that names it), read at most once per
process while it stays in the cache. Always true: what is returned was checked against the size and
checksum that the snapshot holds.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pyarrow as pa

from featurestore.allocators import WORTH_RELEASING, release_freed
from featurestore.errors import CorruptionError, NotFoundError
from featurestore.fingerprint import Json, canonical_json
from featurestore.storage.arrow_bounds import read_arrow_file
from featurestore.storage.checksum import hasher_of, is_checksum, write_sealed
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.record_checks import count, read_as, text
from featurestore.storage.records import (
    FilesetRef,
    GroupEntry,
    PartitionEntry,
    StoredFile,
)

FILESETS: Final = "filesets"
MAX_BYTES: Final = 2**30
_CACHED_PARTITIONS: Final = 100_000
"""At 1.3 kB and 3 bytes per column each: 130 MB of records, 205 MB with 250 columns, unless one fileset has more."""
_AT_ONCE: Final = 16
"""Entries that are dictionaries at a time, on their way from and to Arrow: 250 kB each with 250 columns."""

_FILE: Final = pa.struct(
    [
        pa.field("path", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("checksum", pa.string()),
        pa.field("footer", pa.string()),
    ]
)
_COUNT: Final = pa.struct([pa.field("name", pa.string()), pa.field("value", pa.int64())])
_SCHEMA: Final = pa.schema(
    [
        pa.field("partition", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("files", pa.list_(_FILE)),
        pa.field(
            "tensors",
            pa.list_(
                pa.struct([pa.field("name", pa.string()), pa.field("files", pa.list_(_FILE))])
            ),
        ),
        pa.field("definition", pa.string()),
        pa.field("inputs", pa.string()),
        pa.field("state", pa.string()),
        pa.field("decoded_bytes", pa.int64()),
        pa.field("column_bytes", pa.list_(_COUNT)),
        pa.field("widest_row", pa.int64()),
        pa.field("nulls", pa.list_(_COUNT)),
        pa.field("time_min", pa.int64()),
        pa.field("time_max", pa.int64()),
        pa.field("until", pa.int64()),
        pa.field("seen", pa.string()),
    ]
)

# What a file written before these were added does not have.
_OPTIONAL: Final = frozenset({"footer", "state", "time_min", "time_max", "until", "seen"})
_DEFINITION: Final = b"featurestore.definition"
_REMEDY: Final = "restore it from a backup, or check out an earlier version"


class _Content:
    """What a fileset holds: rows as they were read, and as records once somebody asks for those.

    Judging whether values are fresh needs their provenance alone, which is much less.
    """

    def __init__(self, path: str, table: pa.Table) -> None:
        self.definition: bytes = (table.schema.metadata or {}).get(_DEFINITION, b"")
        self.partitions = int(table.num_rows)
        self._path = path
        self._held: pa.Table | tuple[PartitionEntry, ...] = table

    def entries(self) -> tuple[PartitionEntry, ...]:
        held = self._held
        if isinstance(held, tuple):
            return held
        # Two threads at once decode the same.
        self._held = entries = read_as(f"fileset in {self._path}", partial(_all_decoded, held))
        worth_releasing = held.nbytes > WORTH_RELEASING
        del held
        if worth_releasing:
            release_freed()
        return entries

    def provenance(self) -> dict[str, Provenance]:
        held = self._held
        if isinstance(held, tuple):
            return {one.partition: one.provenance for one in held}
        names = ("partition", "definition", "inputs", "state")
        columns = [held[one] for one in names if one in held.column_names]
        if any(one.null_count for one in columns):
            raise CorruptionError(f"{self._path} lacks a partition's provenance", _REMEDY)
        rows = zip(*(one.to_pylist() for one in columns), strict=True)
        found = {partition: Provenance(*parts) for partition, *parts in rows}
        if "until" not in held.column_names or held["until"].null_count == len(held):
            return found
        settled = (held[one].to_pylist() for one in ("partition", "until", "seen"))
        return {
            partition: replace(found[partition], until=until, seen=text(seen))
            for partition, until, seen in zip(*settled, strict=True)
        }


class _Cache:
    """The filesets that were read last, by store and path; as many as their partitions allow."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], _Content] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str]) -> _Content | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[str, str], content: _Content) -> None:
        with self._lock:
            if key not in self._kept:
                self._weight += 1 + content.partitions
            self._kept[key] = content
            while len(self._kept) > 1 and self._weight > _CACHED_PARTITIONS:
                self._weight -= 1 + self._kept.popitem(last=False)[1].partitions

    def values(self) -> list[_Content]:
        with self._lock:
            return list(self._kept.values())

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._weight = 0


_cache: Final = _Cache()


def write_fileset(
    store: ObjectStore,
    entries: Sequence[PartitionEntry],
    definition: Mapping[str, Json] | None = None,
) -> FilesetRef:
    """Write a fileset under a new name and return its reference.

    The file is not synced: ``CommitLog.commit`` does that for all filesets it publishes.

    Parameters
    ----------
    entries : sequence of PartitionEntry
        In the order of the table's partitions; ids are unique.
    definition : mapping, optional
        Of a feature. To change the partitions of a group that has one, use :func:`with_partitions`.

    Raises
    ------
    CorruptionError
        If two entries have the same partition id.
    """
    ids = [entry.partition for entry in entries]
    if len(set(ids)) != len(ids):
        raise CorruptionError("a fileset names a partition twice", "report this")
    schema = _SCHEMA
    if definition is not None:
        schema = schema.with_metadata({_DEFINITION: canonical_json(definition)})
    table = _encoded(entries, schema)
    sink = pa.BufferOutputStream()
    # In this thread, which alone can give back what it allocates.
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        writer.write_table(table)
    worth_releasing = table.nbytes > WORTH_RELEASING
    del table
    if worth_releasing:
        release_freed()
    path = f"{FILESETS}/{secrets.token_hex(12)}.arrow"
    file = write_sealed(store, path, memoryview(sink.getvalue()))
    return FilesetRef(file, len(entries), sum(entry.rows for entry in entries))


def read_fileset(store: ObjectStore, ref: FilesetRef | None) -> tuple[PartitionEntry, ...]:
    """Return a fileset's entries; those of no fileset at all are none.

    Raises
    ------
    CorruptionError
        If the file is missing, or not what the reference says.
    """
    return () if ref is None else _read(store, ref).entries()


def read_provenance(store: ObjectStore, ref: FilesetRef | None) -> dict[str, Provenance]:
    """Return what each partition's values were computed from, by partition id in order.

    The same as from :func:`read_fileset` at a fraction of its time and memory.

    Raises
    ------
    CorruptionError
        As :func:`read_fileset`.
    """
    return {} if ref is None else _read(store, ref).provenance()


def read_definition(store: ObjectStore, ref: FilesetRef) -> dict[str, Any]:
    """Return the definition that a feature's fileset holds, as JSON.

    Raises
    ------
    CorruptionError
        If it holds none, or as :func:`read_fileset`.
    """
    written = _read(store, ref).definition
    try:
        found = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{ref.file.path} holds no definition: {error}", _REMEDY) from error
    if not isinstance(found, dict):
        raise CorruptionError(f"the definition in {ref.file.path} is no object", _REMEDY)
    return found


def with_partitions(
    store: ObjectStore,
    group: GroupEntry,
    entries: Sequence[PartitionEntry],
    definition: Mapping[str, Json] | None = None,
) -> GroupEntry:
    """Write a new fileset for a column group and return its entry; its definition goes along.

    Parameters
    ----------
    store : ObjectStore
    group : GroupEntry
    entries : sequence of PartitionEntry
        In the order of the table's partitions.
    definition : mapping, optional
        To be put into the fileset. If it is not given it stays what and where it is: in the
        fileset, or for entries of format 1 in the entry.
    """
    if definition is not None:
        group = replace(group, definition=None)
    elif group.definition is None and group.kind and group.fileset is not None:
        definition = read_definition(store, group.fileset)
    return replace(group, fileset=write_fileset(store, entries, definition))


def with_definition(store: ObjectStore, group: GroupEntry) -> GroupEntry:
    """Return a column group's entry with its definition in it, read from its fileset if need be.

    Raises
    ------
    CorruptionError
        As :func:`read_definition`.
    """
    if group.definition is not None or not group.kind or group.fileset is None:
        return group
    return replace(group, definition=read_definition(store, group.fileset))


def _read(store: ObjectStore, ref: FilesetRef) -> _Content:
    key = (store.url, ref.file.path)
    content = _cache.get(key)
    if content is None:
        content = _decode(ref, read_checked(store, ref.file))
        _cache.put(key, content)
    return content


def read_checked(store: ObjectStore, file: StoredFile) -> bytes:
    """Return a file's bytes after comparing them with its record.

    Raises
    ------
    CorruptionError
        If it is missing, has another size or checksum, or claims more than 1 GiB.
    """
    try:
        size = store.size(file.path)
    except NotFoundError as error:
        raise CorruptionError(f"{file.path} is missing", _REMEDY) from error
    if size != file.bytes or size > MAX_BYTES:
        raise CorruptionError(
            f"{file.path} has {size} bytes, not {file.bytes} (limit {MAX_BYTES})",
            _REMEDY,
        )
    data = store.read(file.path)
    hasher = hasher_of(file)
    hasher.update(data)
    if not is_checksum(hasher, file):
        raise CorruptionError(
            f"{file.path} does not match its checksum",
            _REMEDY,
        )
    return data


def _decode(ref: FilesetRef, data: bytes) -> _Content:
    def accept(schema: pa.Schema) -> None:
        if not _fits(schema, _SCHEMA):
            raise CorruptionError(
                f"{ref.file.path} lacks columns of a fileset, or has them with other types: it "
                f"has {schema.to_string(show_schema_metadata=False)}",
                _REMEDY,
            )

    table = read_arrow_file(data, ref.file.path, _REMEDY, accept)
    table = table.select([one for one in _SCHEMA.names if one in table.column_names])
    if len(set(table["partition"].to_pylist())) != table.num_rows:
        raise CorruptionError(f"{ref.file.path} names a partition twice", _REMEDY)
    found = (table.num_rows, sum(one or 0 for one in table["rows"].to_pylist()))
    if found != (ref.partitions, ref.rows):
        raise CorruptionError(
            f"{ref.file.path} holds {found[0]} partitions and {found[1]} rows, the snapshot says "
            f"{ref.partitions} and {ref.rows}",
            _REMEDY,
        )
    return _Content(ref.file.path, table)


def _fits(found: Any, wanted: Any) -> bool:
    """Whether a type or schema has all that is wanted; it may have further members at any depth."""
    if isinstance(wanted, pa.ListType):
        return isinstance(found, pa.ListType) and _fits(found.value_type, wanted.value_type)
    if not isinstance(wanted, pa.Schema | pa.StructType):
        return bool(found == wanted)
    if not isinstance(found, pa.Schema | pa.StructType):
        return False
    names = [member.name for member in found]
    return all(
        _fits(found.field(member.name).type, member.type)
        if names.count(member.name) == 1
        else member.name not in names and member.name in _OPTIONAL
        for member in wanted
    )


def _encoded(entries: Sequence[PartitionEntry], schema: pa.Schema) -> pa.Table:
    blocks = [
        pa.Table.from_pylist([_to_row(one) for one in entries[start : start + _AT_ONCE]], schema)
        for start in range(0, len(entries), _AT_ONCE)
    ]
    return pa.concat_tables(blocks).combine_chunks() if blocks else schema.empty_table()


def _all_decoded(table: pa.Table) -> tuple[PartitionEntry, ...]:
    starts = range(0, table.num_rows, _AT_ONCE)
    blocks = (table.slice(start, _AT_ONCE).to_pylist() for start in starts)
    return tuple(_from_row(row) for rows in blocks for row in rows)


def _to_row(entry: PartitionEntry) -> dict[str, Any]:
    return {
        "partition": entry.partition,
        "rows": entry.rows,
        "files": [_file_row(file) for file in entry.files],
        "tensors": [
            {"name": name, "files": [_file_row(file) for file in files]}
            for name, files in entry.tensors.items()
        ],
        "definition": entry.provenance.definition,
        "inputs": entry.provenance.inputs,
        "state": entry.provenance.state,
        "decoded_bytes": entry.decoded_bytes,
        "column_bytes": _count_rows(entry.column_bytes),
        "widest_row": entry.widest_row,
        "nulls": _count_rows(entry.nulls),
        "time_min": entry.time_min,
        "time_max": entry.time_max,
        "until": entry.provenance.until,
        "seen": entry.provenance.seen,
    }


def _from_row(row: Mapping[str, Any]) -> PartitionEntry:
    return PartitionEntry(
        partition=text(row["partition"]),
        rows=count(row["rows"]),
        files=tuple(_stored(file) for file in row["files"]),
        tensors={
            text(one["name"]): tuple(_stored(file) for file in one["files"])
            for one in row["tensors"]
        },
        provenance=Provenance(
            text(row["definition"]),
            text(row["inputs"]),
            text(row.get("state", "")),
            row.get("until"),
            text(row.get("seen", "")),
        ),
        decoded_bytes=count(row["decoded_bytes"]),
        column_bytes={text(one["name"]): count(one["value"]) for one in row["column_bytes"]},
        widest_row=count(row["widest_row"]),
        nulls={text(one["name"]): count(one["value"]) for one in row["nulls"]},
        time_min=row.get("time_min"),
        time_max=row.get("time_max"),
    )


def _stored(file: Mapping[str, Any]) -> StoredFile:
    return StoredFile(
        text(file["path"]),
        count(file["bytes"]),
        text(file["checksum"]),
        text(file.get("footer", "")),
    )


def _file_row(file: StoredFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "bytes": file.bytes,
        "checksum": file.checksum,
        "footer": file.footer,
    }


def _count_rows(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in counts.items()]
