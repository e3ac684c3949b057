"""Some rows of a Parquet file: only the row groups that hold them are read, a few rows at a time.

Always true: beside the rows that are wanted, at most one batch of decoded rows is in memory, and the
compressed pages of one row group. How many rows a batch has follows from the widest row that is recorded,
so that one batch stays small where rows are wide. The price of starting within a row group is that the
rows before are decoded as well, and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.storage.group_writer import ROW_GROUP_BYTES

_BATCH_BYTES: Final = 4 * 2**20
_MOST_ROWS: Final = 8192
_LEAST_ROWS: Final = 64


def batch_rows(widest_row: int) -> int:
    """Return how many rows are decoded at once, for rows of at most so many bytes.

    Examples
    --------
    >>> batch_rows(100), batch_rows(8192), batch_rows(100 * 2**20)
    (8192, 512, 64)
    """
    return max(_LEAST_ROWS, min(_MOST_ROWS, _BATCH_BYTES // max(1, widest_row)))


def batch_bytes(widest_row: int, column_bytes: Mapping[str, int]) -> int:
    """Return the most Arrow bytes that one batch of these columns can have.

    Parameters
    ----------
    widest_row : int
        Of all columns of the file, as recorded.
    column_bytes : mapping of str to int
        Of the columns that are read, as recorded of all rows.

    Examples
    --------
    >>> batch_bytes(100, {"x": 10**9}), batch_bytes(100, {"x": 800})
    (819200, 800)
    """
    by_width = batch_rows(widest_row) * widest_row
    # The writer cuts row groups so that none of several rows is larger.
    by_group = max(2 * ROW_GROUP_BYTES, widest_row)
    return min(sum(column_bytes.values()), by_width, by_group)


def iter_rows(
    parquet: pq.ParquetFile, names: Sequence[str], start: int, stop: int, at_once: int
) -> Iterator[pa.Table]:
    """Yield the columns' rows ``start <= row < stop`` in order, at most ``at_once`` rows each."""
    groups: list[int] = []
    begin = first = 0
    for index in range(parquet.metadata.num_row_groups):
        count = parquet.metadata.row_group(index).num_rows
        if first < stop and first + count > start:
            begin = begin if groups else first
            groups.append(index)
        first += count
    if start >= stop or not groups:
        return
    batches = parquet.iter_batches(
        batch_size=at_once, row_groups=groups, columns=list(names), use_threads=False
    )
    for batch in batches:
        low, high = max(start - begin, 0), min(stop - begin, batch.num_rows)
        begin += batch.num_rows
        if low < high:
            # Parquet takes "a" for the prefix of a path, so that a column "a.b" comes along.
            yield pa.Table.from_batches([batch.slice(low, high - low)]).select(list(names))
        if begin >= stop:
            return


def row_groups_until(
    metadata: pq.FileMetaData, schema: pa.Schema, time: str, until: int
) -> list[int] | None:
    """Return the row groups of a file in order of time that hold all rows up to a time, at least the first.

    None, which means all of them, where the footer does not say.
    """
    type_, leaves = schema.field(time).type, metadata.schema
    if not (pa.types.is_timestamp(type_) or pa.types.is_int64(type_)):
        return None
    place = [leaves.column(one).path for one in range(len(leaves))].index(time)
    for group in range(1, metadata.num_row_groups):
        found = metadata.row_group(group).column(place).statistics
        if found is None or not found.has_min_max:
            return None
        if found.min_raw > until:
            return list(range(group))
    return None


def read_rows(
    parquet: pq.ParquetFile, names: Sequence[str], start: int, stop: int, at_once: int
) -> pa.Table:
    """Return the columns' rows ``start <= row < stop``."""
    schema = parquet.schema_arrow.remove_metadata()
    empty = pa.schema([schema.field(name) for name in names]).empty_table()
    found = list(iter_rows(parquet, names, start, stop, at_once))
    return pa.concat_tables(found) if found else empty
