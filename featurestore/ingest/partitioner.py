"""From a source larger than memory to the partitions of a table's base column group.

Two bounded passes: the first surveys key, time and widths; the second makes sorted runs, cuts them
into partitions and writes each. Always true afterwards: partitions are in order of time and no time
is in two of them; within one, rows are sorted by (time, key columns), equal ones as they came;
tables without time keep the order of the source. Either all files are there and durable, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from featurestore.errors import DuplicateRowsError, SchemaError
from featurestore.ingest.cuts import cut
from featurestore.ingest.duplicates import Duplicates, check_policy
from featurestore.ingest.memory import IngestMemory, check_reading, kept_bytes
from featurestore.ingest.partition_writer import PartitionWriter
from featurestore.ingest.runs import Runs
from featurestore.ingest.sources import Source
from featurestore.ingest.static_keys import StaticKeys
from featurestore.ingest.survey import Progress, Survey, survey
from featurestore.schema import Field, TableSchema
from featurestore.storage.column_group import iter_columns
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, TableEntry
from featurestore.storage.scratch import Scratch

Report: TypeAlias = Callable[[int, "int | None", str, int], None]
"""Called with rows done, rows in all (None while unknown), the phase, and the peak projected for it."""


def write_partitions(
    store: ObjectStore,
    source: Source,
    entry: TableEntry,
    *,
    schema: tuple[Field, ...] | None,
    after: int | None,
    first_sequence: int,
    memory_limit: int,
    reserved: int = 0,
    on_progress: Report | None = None,
    existing: Sequence[PartitionEntry] = (),
    scratch: Path | Scratch | None = None,
) -> list[PartitionEntry]:
    """Write all rows of a source as new partitions; nothing is published.

    Parameters
    ----------
    store : ObjectStore
    source : Source
        From ``open_source``; the caller closes it.
    entry : TableEntry
        Key, time, partition size and how duplicates are treated.
    schema : tuple of Field or None
        The base columns of a table that exists: the source must have the same, castable without
        loss. ``None`` for a new table.
    after : int or None
        The newest time of the table, in steps: rows up to it are refused as late.
    first_sequence : int
        Number of the first new partition.
    memory_limit : int
        Bytes: the limit.
    reserved : int
        Bytes of it that the process holds already; ingest takes no more than the rest.
    on_progress : callable, optional
        ``on_progress(rows_done, rows_in_all_or_None, phase, bytes_projected)``.
    existing : sequence of PartitionEntry
        The table's partitions; needed to append to a table with a key and no time, whose keys must
        stay unique.
    scratch : Path or Scratch, optional
        Where rows are spilled, and how much; default the system's temporary directory. Nothing is
        left there, however the process ends.

    Returns
    -------
    list of PartitionEntry
        In table order, their files durable.

    Raises
    ------
    InvalidInputError
        For anything wrong with the rows (``SchemaError``, ``SourceError``, ``DuplicateRowsError``,
        ``LateRowsError``); the store is as before.
    MemoryLimitError
        If what is read as a whole, the partitions, or the rows of one time do not fit the limit.
    LimitError
        If rows need more scratch space than its limit.
    DiskFullError
        If scratch space or the store is full, or scratch space would be; the store is as before.
    """
    check_policy(entry.duplicates)
    if schema is not None:
        source = source.conforming(schema)
    columns = table_schema(source, entry)
    place = Scratch.of(scratch)
    # Small batches for the survey; how large a partition can be is known only after it.
    left, file = memory_limit - reserved, source.files[0]
    least = IngestMemory(left, min(entry.partition_bytes, left // 4), reserved=reserved)
    reading = check_reading(
        left, source.reading_bytes, len(columns.names), least.batch, file, reserved
    )
    surveyed = _phases(on_progress, reserved + reading + kept_bytes(left))
    found = survey(source, columns, after, least.batch, surveyed)
    memory = _memory(found, entry, left, reserved, source, columns)
    duplicates, phases = (
        Duplicates(columns, entry.duplicates),
        _phases(on_progress, memory.projected),
    )
    runs = Runs(source, columns, found, memory, place, phases)
    rows = _unique(store, runs, source, columns, found, memory, duplicates, existing, place)
    with (
        PartitionWriter(store, entry.name, columns, first_sequence, found.rows, phases) as writer,
        # Closed before files are taken back: scratch space first.
        closing(cut(rows, columns, found.bytes, memory.partition)) as parts,
    ):
        for part in parts:
            # After a duplicate, the rest is read only to count them.
            if duplicates.unique:
                writer.write(part)
        if not duplicates.unique:
            raise duplicates.error(source)
        return writer.finish()


def _phases(report: Report | None, projected: int) -> Progress | None:
    """Return what phases report to, with what is projected for them."""
    if report is None:
        return None
    return lambda done, rows, phase: report(done, rows, phase, projected)


def _memory(
    found: Survey, entry: TableEntry, left: int, reserved: int, source: Source, schema: TableSchema
) -> IngestMemory:
    """Return how the limit is shared out, or refuse rows that would not fit however it is."""
    partition = min(entry.partition_bytes, max(found.bytes, 1))
    memory = IngestMemory(
        left,
        partition,
        source.reading_bytes,
        len(schema.names),
        kept_bytes(found.bytes),
        reserved,
        found.widest if schema.time is None else max(found.widest, found.largest_group),
    )
    memory.check_group(
        found.widest, "the values of one row", "shorten or leave out its longest value"
    )
    if schema.time is not None:
        what = "the rows of one time" if found.ordered else "some rows of one time"
        memory.check_group(found.largest_group, what, "give a finer time column")
    return memory


def table_schema(source: Source, entry: TableEntry) -> TableSchema:
    """Return the columns that a source gives a table.

    Raises
    ------
    SchemaError
        If key or time is missing, of a type that cannot be one, or repeated.
    """
    fields = {one.name: one for one in source.fields}
    for name in entry.key:
        field = fields.get(name)
        if field is not None and (field.is_tensor or pa.types.is_nested(field.type)):
            raise SchemaError(
                f"key column {name!r} has type {field.type}", "use numbers, strings, dates or times"
            )
    if len(set(entry.key)) != len(entry.key):
        raise SchemaError(f"key {list(entry.key)} names a column twice", "name each once")
    time = fields.get(entry.time) if entry.time is not None else None
    if time is not None and time.is_string:
        raise SchemaError(
            f"time column {time.name!r} of {source.files[0]} is text, not a time",
            "write times like 2013-01-31 or 2013-01-31 18:05:00 (ISO 8601, all with a time zone or "
            "none), or convert the column before ingest",
        )
    return TableSchema(tuple(source.fields), entry.key, entry.time)


def _unique(
    store: ObjectStore,
    runs: Iterable[pa.Table],
    source: Source,
    schema: TableSchema,
    found: Survey,
    memory: IngestMemory,
    duplicates: Duplicates,
    existing: Sequence[PartitionEntry],
    scratch: Scratch,
) -> Generator[pa.Table, None, None]:
    """Yield runs with the policy on duplicates applied."""
    policy = duplicates.policy
    if schema.time is not None or not schema.key or policy == "keep":
        yield from (duplicates.filter(run) for run in runs)
        return
    names = list(schema.key)
    size = found.key_bytes + sum(one.column_bytes[name] for one in existing for name in names)
    rows = found.rows + sum(one.rows for one in existing)
    with StaticKeys(schema, found.rows, size + 8 * rows, memory.free // 2, scratch) as keys:
        parts = (part for one in existing for part in iter_columns(store, one, names))
        keys.add((batch for part in parts for batch in part.to_batches()), existing=True)
        keys.add(source.batches(schema.key, memory.batch))
        keys.resolve(duplicates)
        if policy == "error" and duplicates.count:
            raise duplicates.error(source)
        if keys.existing:
            raise DuplicateRowsError(
                f"{keys.existing} rows repeat a key {list(schema.key)} that the table has already",
                "append only rows with new keys; to change rows, delete them first",
            )
        yield from keys.last_only(runs)
