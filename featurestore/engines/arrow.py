"""Arrow at the edge of every engine: reading Parquet, normalising types, arrays to Arrow arrays.

Always true: what comes out has the types under which the store keeps columns, in one chunk each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from featurestore.errors import CorruptionError
from featurestore.schema import normalise_type
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, StoredFile

MICROSECONDS_PER_DAY: Final = 86_400_000_000
_COLUMNS_AT_ONCE: Final = 8

HostArray: TypeAlias = "np.ndarray[Any, Any]"


def normalise_table(table: pa.Table) -> pa.Table:
    """Return the table with every column of its stored type and in one chunk.

    Columns of type null keep it: only a caller who knows the schema can give them a type.
    """
    fields, arrays = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        type_ = field.type if pa.types.is_null(field.type) else normalise_type(field.type)
        one = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        arrays.append(one if one.type == type_ else one.cast(type_))
        fields.append(pa.field(field.name, type_))
    if not fields:
        return table
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def array_to_arrow(values: HostArray, valid: HostArray | None, type_: pa.DataType) -> pa.Array:
    """Return a host array as an Arrow array of ``type_``: the inverse of ``Engine.values``."""
    mask = None if valid is None or bool(valid.all()) else ~valid
    if pa.types.is_date32(type_):
        days = (values // MICROSECONDS_PER_DAY).astype(np.int32)
        return pa.array(days, mask=mask).view(type_)
    if pa.types.is_timestamp(type_) or pa.types.is_duration(type_) or pa.types.is_time64(type_):
        return pa.array(values.astype(np.int64, copy=False), mask=mask).view(type_)
    if pa.types.is_time32(type_):
        return pa.array(values.astype(np.int32, copy=False), mask=mask).view(type_)
    if pa.types.is_decimal(type_):
        return pa.array(values.astype(np.float64, copy=False), mask=mask).cast(type_)
    dtype = type_.to_pandas_dtype()
    return pa.array(values.astype(dtype, copy=False), mask=mask, type=type_)


def _read_some_at_once(
    parquet: Any, columns: Sequence[str], groups: Sequence[int] | None = None
) -> pa.Table:
    """Return columns, of which a few are decoded at once; of all row groups, or of some.

    While columns are read together, the reader keeps the last pages of each, compressed and not: of
    hundreds of columns, several times what the columns take.
    """
    found: dict[str, pa.ChunkedArray] = {}
    for start in range(0, max(1, len(columns)), _COLUMNS_AT_ONCE):
        several = list(columns[start : start + _COLUMNS_AT_ONCE])
        table = _read_columns(parquet, several, groups)
        # A reader takes "a" for the prefix of a path, so that a column "a.b" comes along.
        found.update({name: table.column(name) for name in several})
    return pa.table(found)


def _read_columns(
    parquet: Any, columns: Sequence[str], groups: Sequence[int] | None = None
) -> pa.Table:
    """Return columns of all row groups or of some; lists a row group at a time.

    The items of lists, and how deep each is, are collected in buffers that are copied as they grow: of a
    whole partition, four times what the lists take.
    """
    schema = parquet.schema_arrow
    if any(pa.types.is_nested(schema.field(name).type) for name in columns if name in schema.names):
        each = range(parquet.num_row_groups) if groups is None else groups
        found = [parquet.read_row_group(one, columns, use_threads=False) for one in each]
        if found:
            return pa.concat_tables(found)
    if groups is None:
        return parquet.read(columns=columns, use_threads=False)
    return parquet.read_row_groups(list(groups), columns=columns, use_threads=False)


def read_arrow(
    store: ObjectStore,
    files: Sequence[StoredFile],
    columns: Sequence[str],
    entry: PartitionEntry | None = None,
    rows: tuple[int, int] | None = None,
    coded: Collection[str] = (),
    until: tuple[str, int] | None = None,
) -> pa.Table:
    """Return columns of a partition's Parquet files as Arrow, page checksums verified.

    Given the partition's ``entry``, sizes in the files are compared with it before they are read.
    Given ``rows``, only the rows ``start <= row < stop`` are returned. Columns that are ``coded`` come as
    dictionaries where the files have them as such. Given a time column and ``until`` when, row groups in which
    all rows are later are left out.

    Raises
    ------
    CorruptionError
        If a file is missing or damaged, lacks a column, or has another number of rows.
    """
    from featurestore.storage.column_group import open_parquet
    from featurestore.storage.parquet_bounds import require_bounded
    from featurestore.storage.row_ranges import batch_rows, read_rows, row_groups_until

    found: dict[str, pa.ChunkedArray] = {}
    counts: dict[str, int] = {}
    for file in files:
        try:
            with open_parquet(store, file, coded) as parquet:
                stored = set(parquet.schema_arrow.names)
                wanted = [name for name in columns if name in stored]
                if entry is not None:
                    require_bounded(parquet, file, entry, wanted)
                if rows is None:
                    groups = None
                    if until is not None and until[0] in wanted:
                        footer, schema = parquet.metadata, parquet.schema_arrow
                        groups = row_groups_until(footer, schema, *until)
                    table = _read_some_at_once(parquet, wanted, groups)
                else:
                    at_once = batch_rows(0 if entry is None else entry.widest_row)
                    table = read_rows(parquet, wanted, *rows, at_once)
                for name in set(coded).intersection(wanted):
                    # Nobody else compares positions with how many values there are.
                    table[name].validate(full=True)
                counts[file.path] = parquet.metadata.num_rows
        except pa.ArrowMemoryError:  # an ArrowException too, but no damage
            raise
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise CorruptionError(
                f"{file.path} cannot be read: {error}", "run verify to see what else is damaged"
            ) from error
        found.update(zip(table.column_names, table.columns, strict=True))
    if len(set(counts.values())) > 1:
        raise CorruptionError(
            f"files of one partition have different numbers of rows: {counts}",
            "run verify to see what else is damaged",
        )
    missing = [name for name in columns if name not in found]
    if missing:
        raise CorruptionError(
            f"columns {missing} are in none of the files {[file.path for file in files]}",
            "run verify to see what else is damaged",
        )
    return pa.table({name: found[name] for name in columns})
