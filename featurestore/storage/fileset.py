"""Filesets: one immutable Arrow IPC file per column group and state of it, one row per partition.

Written by ``write_fileset`` (made durable by the commit that names it), read at most once per
process while it stays in the cache. Always true: what is returned was checked against the size and
checksum that the snapshot holds.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from featurestore.errors import CorruptionError, InvalidInputError, NotFoundError
from featurestore.fingerprint import digest
from featurestore.storage.checksum import write_hashed
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import FilesetRef, PartitionEntry, Provenance, StoredFile

FILESETS: Final = "filesets"
MAX_BYTES: Final = 2**30
_CACHED_PARTITIONS: Final = 200_000  # some 200 MB of records at most

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
    ]
)

# What a file written before these were added does not have.
_OPTIONAL: Final = frozenset({"footer", "state", "time_min", "time_max"})

_cache: OrderedDict[tuple[str, str], tuple[PartitionEntry, ...]] = OrderedDict()
_cache_lock: Final = threading.Lock()


def write_fileset(store: ObjectStore, entries: Sequence[PartitionEntry]) -> FilesetRef:
    """Write a fileset under a new name and return its reference.

    The file is not synced: ``CommitLog.commit`` does that for all filesets it publishes.

    Parameters
    ----------
    entries : sequence of PartitionEntry
        In the order of the table's partitions; ids are unique.

    Raises
    ------
    CorruptionError
        If two entries have the same partition id.
    """
    ids = [entry.partition for entry in entries]
    if len(set(ids)) != len(ids):
        raise CorruptionError("a fileset names a partition twice", "report this")
    table = pa.Table.from_pylist([_to_row(entry) for entry in entries], schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, _SCHEMA, options=options) as writer:
        writer.write_table(table)
    path = f"{FILESETS}/{secrets.token_hex(12)}.arrow"
    file = write_hashed(store, path, memoryview(sink.getvalue()))
    return FilesetRef(file, len(entries), sum(entry.rows for entry in entries))


def read_fileset(store: ObjectStore, ref: FilesetRef | None) -> tuple[PartitionEntry, ...]:
    """Return a fileset's entries; those of no fileset at all are none.

    Raises
    ------
    CorruptionError
        If the file is missing, or not what the reference says.
    """
    if ref is None:
        return ()
    key = (store.url, ref.file.path)
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    entries = _decode(ref, read_checked(store, ref.file))
    with _cache_lock:
        _cache[key] = entries
        while len(_cache) > 1 and sum(map(len, _cache.values())) > _CACHED_PARTITIONS:
            _cache.popitem(last=False)
    return entries


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
        raise CorruptionError(
            f"{file.path} is missing", "restore it from a backup, or check out an earlier version"
        ) from error
    if size != file.bytes or size > MAX_BYTES:
        raise CorruptionError(
            f"{file.path} has {size} bytes, not {file.bytes} (limit {MAX_BYTES})",
            "restore it from a backup, or check out an earlier version",
        )
    data = store.read(file.path)
    if digest(data) != file.checksum:
        raise CorruptionError(
            f"{file.path} does not match its checksum",
            "restore it from a backup, or check out an earlier version",
        )
    return data


def _decode(ref: FilesetRef, data: bytes) -> tuple[PartitionEntry, ...]:
    remedy = "restore it from a backup, or check out an earlier version"
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            if not _fits(reader.schema, _SCHEMA):
                raise CorruptionError(
                    f"{ref.file.path} lacks columns of a fileset, or has them with other types: it "
                    f"has {reader.schema.to_string(show_schema_metadata=False)}",
                    remedy,
                )
            known = [one for one in _SCHEMA.names if one in reader.schema.names]
            rows = reader.read_all().select(known).to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise CorruptionError(f"{ref.file.path} is not an Arrow file: {error}", remedy) from error
    try:
        entries = tuple(_from_row(row) for row in rows)
    except (TypeError, InvalidInputError) as error:  # a null where there must be a value
        raise CorruptionError(f"{ref.file.path} is no fileset: {error}", remedy) from error
    found = (len(entries), sum(entry.rows for entry in entries))
    if found != (ref.partitions, ref.rows):
        raise CorruptionError(
            f"{ref.file.path} holds {found[0]} partitions and {found[1]} rows, the snapshot says "
            f"{ref.partitions} and {ref.rows}",
            remedy,
        )
    return entries


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
    }


def _from_row(row: Mapping[str, Any]) -> PartitionEntry:
    return PartitionEntry(
        partition=row["partition"],
        rows=row["rows"],
        files=tuple(_stored(file) for file in row["files"]),
        tensors={
            one["name"]: tuple(_stored(file) for file in one["files"]) for one in row["tensors"]
        },
        provenance=Provenance(row["definition"], row["inputs"], row.get("state", "")),
        decoded_bytes=row["decoded_bytes"],
        column_bytes={one["name"]: one["value"] for one in row["column_bytes"]},
        widest_row=row["widest_row"],
        nulls={one["name"]: one["value"] for one in row["nulls"]},
        time_min=row.get("time_min"),
        time_max=row.get("time_max"),
    )


def _stored(file: Mapping[str, Any]) -> StoredFile:
    return StoredFile(file["path"], file["bytes"], file["checksum"], file.get("footer", ""))


def _file_row(file: StoredFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "bytes": file.bytes,
        "checksum": file.checksum,
        "footer": file.footer,
    }


def _count_rows(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in counts.items()]
