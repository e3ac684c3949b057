"""Values brought together: columns of many partitions as one table in memory, or as a Dask frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from featurestore.arguments import format_names, shown
from featurestore.engines.protocol import Engine
from featurestore.errors import InvalidInputError
from featurestore.execution.importing import require
from featurestore.execution.reading import PartitionSource
from featurestore.execution.room import Need, holding
from featurestore.execution.states import Workplace
from featurestore.execution.task_costs import part_extent
from featurestore.execution.tasks import with_row_count
from featurestore.plan.costs import lone_row_bytes, reading_bytes
from featurestore.schema import TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.row_ranges import batch_bytes
from featurestore.transforms.frames import to_arrow

KINDS: Final = ("polars", "pandas", "arrow", "narwhals", "cudf")

_COPIES: Final = {"polars": 2, "arrow": 1, "narwhals": 2, "pandas": 3, "cudf": 1}
"""How often the values exist at once while they are converted; pandas puts columns into blocks."""
_LESS: Final = "name fewer columns or rows=slice(...), or use a dataset or to_dask()"


def collect_rows(
    partitions: Sequence[PartitionSource],
    place: Workplace,
    schema: TableSchema,
    columns: Sequence[str],
    rows: slice | None,
    kind: str,
) -> Any:
    """Return columns of some rows, in table order.

    Parameters
    ----------
    partitions : sequence of PartitionSource
    rows : slice, optional
        Positions in the table; all if not given.
    kind : str
        One of ``KINDS``.

    Raises
    ------
    MemoryLimitError
        Before anything is read, if the values would not fit the limit.
    """
    check_kind(kind)
    start, stop = _bounds(rows, sum(one.rows for one in partitions))
    pieces = _pieces(partitions, start, stop)
    need = needed(pieces, schema, columns, _COPIES[kind])
    with holding(need, place.memory_limit, place.engine, _LESS):
        engine = _engine(place.engine)
        wanted = with_row_count(columns, schema)
        tables = []
        for source, first, last in pieces:
            some = None if last - first == source.rows else (first, last)
            part = source.read(place.store, engine, wanted, schema, some)
            tables.append(to_arrow(part, columns, engine))
            del part
        table = pa.concat_tables(tables) if tables else empty_table(schema, columns)
        del tables
        return convert(table, kind)


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of frame."""
    if kind not in KINDS:
        raise InvalidInputError(f"cannot read as {kind!r}", f"use one of {list(KINDS)}")


def _bounds(rows: slice | None, total: int) -> tuple[int, int]:
    if rows is None:
        return 0, total
    try:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(total)
            if step == 1:
                return start, max(start, stop)
    except (TypeError, ValueError):
        pass  # bounds that are no whole numbers; the message below says what was expected
    raise InvalidInputError(
        f"rows={shown(rows)} is not a plain slice", "use slice(start, stop) of whole numbers"
    )


def _pieces(
    partitions: Sequence[PartitionSource], start: int, stop: int
) -> list[tuple[PartitionSource, int, int]]:
    """Return the partitions that hold these positions, and which of their rows."""
    pieces, before = [], 0
    for source in partitions:
        first, last = max(start - before, 0), min(stop - before, source.rows)
        if first < last:
            pieces.append((source, first, last))
        before += source.rows
    return pieces


def needed(
    pieces: Sequence[tuple[PartitionSource, int, int]],
    schema: TableSchema,
    columns: Sequence[str],
    copies: int,
) -> Need:
    """Return what bringing pieces together takes: all of them, and one as it is being read."""
    kept = reading = 0
    for source, first, last in pieces:
        part = part_extent(source, with_row_count(columns, schema), schema, last - first)
        kept += part.bytes_of(columns)
        read = reading_bytes(schema, part.column_bytes, part.rows, part.widest_row)
        if part.rows < source.rows:
            read += 2 * batch_bytes(part.widest_row, part.column_bytes)
        if part.rows == 1:
            read += lone_row_bytes(schema, part.column_bytes, part.widest_row)
        reading = max(reading, read)
    return Need(f"reading {format_names(columns)}", copies * kept + reading)


def empty_table(schema: TableSchema, columns: Sequence[str]) -> pa.Table:
    """Return no rows of some columns, with their types."""
    types = []
    for name in columns:
        type_ = schema[name].type
        for size in reversed(schema[name].shape or ()):
            type_ = pa.list_(type_, size)
        types.append((name, type_))
    return pa.schema(types).empty_table()


def convert(table: pa.Table, kind: str) -> Any:
    """Return an Arrow table as another library's frame."""
    if kind == "arrow":
        return table
    if kind == "pandas":
        return table.to_pandas()
    if kind == "cudf":
        return require("cudf", "gpu").DataFrame.from_arrow(table)
    frame = _engine("polars").from_arrow(table)
    return frame if kind == "narwhals" else frame.to_native()


def _engine(name: str) -> Engine:
    from featurestore.engines.selection import get_engine

    return get_engine(name)


@dataclass(frozen=True, slots=True)
class _PandasPartition:
    """Reads one partition on a Dask worker."""

    url: str
    schema: TableSchema
    columns: tuple[str, ...]
    kind: str

    def __call__(self, source: PartitionSource) -> Any:
        engine = _engine("cudf" if self.kind == "cudf" else "polars")
        wanted = with_row_count(self.columns, self.schema)
        part = source.read(open_object_store(self.url), engine, wanted, self.schema)
        return convert(to_arrow(part, self.columns, engine), self.kind)


def dask_frame(
    partitions: Sequence[PartitionSource],
    place: Workplace,
    schema: TableSchema,
    columns: Sequence[str],
) -> Any:
    """Return a Dask DataFrame, one of its partitions per partition of the table."""
    import dask.dataframe as dd

    kind = "cudf" if place.engine == "cudf" else "pandas"
    read = _PandasPartition(place.store.url, schema, tuple(columns), kind)
    meta = convert(empty_table(schema, columns), kind)
    if not partitions:
        return dd.from_pandas(meta, npartitions=1)
    return dd.from_map(read, list(partitions), meta=meta, enforce_metadata=False)
