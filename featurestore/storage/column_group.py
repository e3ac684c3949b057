"""Column groups: the values of some columns in one partition, written together and never changed.

Scalars, strings and lists go to one Parquet file: row groups of at most 65,536 rows and about
64 MiB, page checksums, statistics, dictionaries for strings. Tensors go to one Zarr array each (see
``tensor_group``). Names of columns never become part of a path.

Always true: what is read has the row count and the null counts that the partition's entry says, and
pages that match their checksums; anything else is a ``CorruptionError`` that names file, columns,
partition and remedy. The footer has a checksum of its own. What remains, the
headers of pages, is covered by the file's checksum, which ``verify`` and reads of small files
compare.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import (
    CorruptionError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
)
from featurestore.fingerprint import Json, fingerprint
from featurestore.storage.checksum import has_checksum
from featurestore.storage.dictionary_pages import kept_as_dictionaries
from featurestore.storage.fileset import read_checked
from featurestore.storage.group_writer import (
    ROW_GROUP_ROWS,
    begin_partition,
)
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.parquet_bounds import require_bounded
from featurestore.storage.parquet_footer import footer_length, read_footer
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry, StoredFile
from featurestore.storage.row_ranges import batch_rows, iter_rows

# A file this small is read as a whole and compared with its checksum; it costs a millisecond.
CHECKED_WHOLE: Final = 2**20
_TAIL: Final = 64 * 2**10
_REMEDY: Final = (
    "restore the file from a backup; a feature can be built again, ingested rows ingested again"
)


def new_partition_id(sequence: int) -> str:
    """Return a new id for a partition; ids of higher sequence numbers sort later.

    Examples
    --------
    >>> new_partition_id(7)[:10]
    'p00000007-'
    """
    if sequence < 0:
        raise InvalidInputError(f"a partition's sequence number must be >= 0, not {sequence}")
    return f"p{sequence:08d}-{secrets.token_hex(4)}"


def write_partition(
    store: ObjectStore,
    *,
    table: str,
    group: str,
    partition: str,
    columns: pa.Table | None,
    tensors: Mapping[str, npt.NDArray[Any]],
    provenance: Provenance,
    time_range: tuple[int, int] | None = None,
) -> PartitionEntry:
    """Write one partition of a column group under new names; see :func:`sync_partition`.

    One slice of a :func:`begin_partition`.

    Parameters
    ----------
    store : ObjectStore
    table, group, partition : str
        Become part of the path.
    columns : pyarrow.Table, optional
        Scalar columns of normalised types, unique names. May have no rows.
    tensors : mapping of str to array ``[rows, ...]``
    provenance : Provenance
    time_range : tuple of int, optional
        First and last event time, in steps of its unit.

    Returns
    -------
    PartitionEntry
        Files are complete but not synced.

    Raises
    ------
    SchemaError
        If a type cannot be stored, names repeat, or there is no column at all.
    InvalidInputError
        If columns and tensors differ in their row counts.
    DiskFullError
        If the disk is full. Files written before stay; they are unreferenced, gc finds them.
    """
    counts = [len(values) for values in tensors.values()]
    if columns is not None and columns.num_columns:
        counts = [columns.num_rows]
    with begin_partition(
        store, table=table, group=group, partition=partition, rows=counts[0] if counts else 0
    ) as writer:
        writer.write(columns, tensors)
        return writer.finish(provenance, time_range)


def ingested(entry: PartitionEntry, *meaning: Json) -> PartitionEntry:
    """Return a base group's entry with the provenance of ingested rows.

    Parameters
    ----------
    entry : PartitionEntry
    *meaning
        What, beside the bytes, the values computed from the rows depend on: the key and time by
        which features group and order them unless told otherwise.
    """
    inputs = fingerprint([file.checksum for file in entry.all_files()], *meaning)
    return replace(entry, provenance=Provenance("ingest", inputs))


def sync_partition(store: ObjectStore, entry: PartitionEntry) -> None:
    """Return once all files of a partition are durable."""
    store.sync(file.path for file in entry.all_files())


def read_columns(store: ObjectStore, entry: PartitionEntry, names: Sequence[str]) -> pa.Table:
    """Return scalar columns of a partition, in the order asked for.

    Raises
    ------
    NotFoundError
        If the partition does not hold such a scalar column.
    CorruptionError
        If the file is missing, has the wrong size, row count or null counts, or damaged pages.
    """
    file = _parquet_file(entry, names)
    if file is None:
        return pa.table({})
    with _damage(file, entry, names), open_parquet(store, file) as parquet:
        require_bounded(parquet, file, entry, names)
        table = _select(parquet.read(columns=list(names)), names)
    nulls = {name: table.column(name).null_count for name in names}
    _check_counts(file, entry, table.num_rows, nulls)
    return table


def iter_columns(
    store: ObjectStore, entry: PartitionEntry, names: Sequence[str], max_rows: int = ROW_GROUP_ROWS
) -> Iterator[pa.Table]:
    """Yield a partition's columns in slices of at most ``max_rows`` rows, in order.

    One row group is in memory at a time. Raises as :func:`read_columns` does, for the counts at the
    end.
    """
    if max_rows < 1:
        raise InvalidInputError(f"a slice needs at least 1 row, not {max_rows}")
    file = _parquet_file(entry, names)
    if file is None:
        return
    rows, nulls = 0, dict.fromkeys(names, 0)
    with _damage(file, entry, names), open_parquet(store, file) as parquet:
        require_bounded(parquet, file, entry, names)
        for index in range(parquet.num_row_groups):
            group = _select(parquet.read_row_group(index, columns=list(names)), names)
            rows += group.num_rows
            for name in names:
                nulls[name] += group.column(name).null_count
            for start in range(0, group.num_rows, max_rows):
                yield group.slice(start, max_rows)
    _check_counts(file, entry, rows, nulls)


def iter_batches(
    store: ObjectStore, entry: PartitionEntry, names: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield a partition's columns a few rows at a time, in order.

    What is in memory at once is bounded however wide some rows are, see ``row_ranges``. Raises as
    :func:`iter_columns` does.
    """
    file = _parquet_file(entry, names)
    if file is None:
        return
    rows, nulls = 0, dict.fromkeys(names, 0)
    with _damage(file, entry, names), open_parquet(store, file) as parquet:
        require_bounded(parquet, file, entry, names)
        for part in iter_rows(parquet, names, 0, entry.rows, batch_rows(entry.widest_row)):
            rows += part.num_rows
            for name in names:
                nulls[name] += part.column(name).null_count
            yield part
    _check_counts(file, entry, rows, nulls)


def require_intact(store: ObjectStore, entry: PartitionEntry) -> None:
    """Compare every byte of a partition's files with their checksums.

    Before rows are copied into new files: those would get checksums of their own, and damage that
    was copied along could never be found again.

    Raises
    ------
    CorruptionError
    """
    for file in entry.all_files():
        try:
            intact = has_checksum(store, file)
        except NotFoundError as error:
            raise CorruptionError(f"{file.path} is missing", _REMEDY) from error
        if not intact:
            raise CorruptionError(
                f"{file.path} (partition {entry.partition}) does not match its checksum", _REMEDY
            )


def open_parquet(
    store: ObjectStore, file: StoredFile, coded: Collection[str] = ()
) -> pq.ParquetFile:
    """Open a Parquet file with page checksums compared; close it, or use it in a ``with``.

    Parameters
    ----------
    store : ObjectStore
    file : StoredFile
    coded : collection of str
        Columns that are to come as Arrow dictionaries if they are kept as such.

    Raises
    ------
    CorruptionError
        If the file is missing, or its size or footer are not those recorded.
    """
    if file.bytes <= CHECKED_WHOLE:
        source: Any = pa.BufferReader(read_checked(store, file))
        found = kept_as_dictionaries(pq.read_metadata(source), coded) if coded else None
        return pq.ParquetFile(source, read_dictionary=found, page_checksum_verification=True)
    try:
        size = store.size(file.path)
        if size != file.bytes:
            raise CorruptionError(f"{file.path} has {size} bytes, not {file.bytes}", _REMEDY)
        metadata = read_footer(file, _tail(store, file))
        local = store.local_path(file.path)
        source = store.open_read(file.path) if local is None else str(local)
        return pq.ParquetFile(
            source,
            metadata=metadata,
            read_dictionary=kept_as_dictionaries(metadata, coded),
            page_checksum_verification=True,
            pre_buffer=local is None,
        )
    except (NotFoundError, FileNotFoundError) as error:
        raise CorruptionError(f"{file.path} is missing", _REMEDY) from error


# --- reading -----------------------------------------------------------------------------------


def _parquet_file(entry: PartitionEntry, names: Sequence[str]) -> StoredFile | None:
    missing = [name for name in names if name not in entry.nulls]
    if missing:
        raise NotFoundError(
            f"partition {entry.partition} holds no scalar columns {missing}",
            f"it holds {sorted(entry.nulls)} and the tensors {sorted(entry.tensors)}",
        )
    return entry.files[0] if entry.files else None


def _tail(store: ObjectStore, file: StoredFile) -> bytes:
    """Return the last bytes of a file, its footer included."""
    length = min(file.bytes, _TAIL)
    tail = store.read(file.path, file.bytes - length, length)
    length = min(file.bytes, footer_length(tail))
    return tail if length <= len(tail) else store.read(file.path, file.bytes - length, length)


def _select(table: pa.Table, names: Sequence[str]) -> pa.Table:
    # Parquet readers take "a" as the prefix of a nested path, so that "a.b" comes along.
    return table if table.column_names == list(names) else table.select(list(names))


def _check_counts(
    file: StoredFile, entry: PartitionEntry, rows: int, nulls: Mapping[str, int]
) -> None:
    expected = {name: entry.nulls[name] for name in nulls}
    if rows != entry.rows or dict(nulls) != expected:
        raise CorruptionError(
            f"{file.path} (partition {entry.partition}) holds {rows} rows with nulls "
            f"{dict(nulls)}, not {entry.rows} with {expected}",
            _REMEDY,
        )


@contextmanager
def _damage(file: StoredFile, entry: PartitionEntry, names: Sequence[str]) -> Iterator[None]:
    """Say which file, columns and partition a reader's complaint is about."""
    try:
        yield
    except CorruptionError as error:
        raise CorruptionError(
            f"{error.problem} (partition {entry.partition}, columns {list(names)})", error.remedy
        ) from error
    except pa.ArrowMemoryError:  # an ArrowException too, but no damage
        raise
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise FeatureStoreError(
                f"cannot open {file.path}: {error}", "raise the limit of open files (ulimit -n)"
            ) from error
        raise CorruptionError(
            f"{file.path} (partition {entry.partition}, columns {list(names)}) is damaged: {error}",
            _REMEDY,
        ) from error
