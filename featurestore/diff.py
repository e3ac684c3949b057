"""Differences between two versions of a store: rows by content, features by definition and provenance.

Partitions of equal ids hold equal rows and are not read. The rows of the others are compared as
multisets of 64-bit hashes of all ingested columns (see ``engines.row_hashing``), so rows that were only
cut anew, as by a compaction, differ in nothing. Where the table has event times only partitions that
overlap in time are compared with each other; memory is 64 bytes for each row of such partitions (hash,
time, and both sorted), and one slice of rows. Everything else is metadata.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.engines.row_hashing import hash_rows
from featurestore.execution.room import Need, holding
from featurestore.fingerprint import canonical_json
from featurestore.plan.definition import Feature
from featurestore.plan.table_files import TableFiles
from featurestore.report.differences import (
    FeatureDiff,
    RowsDiff,
    StoreDiff,
    TableDiff,
    TimeRange,
)
from featurestore.report.progress import counted_progress
from featurestore.session import Session
from featurestore.storage.column_group import iter_columns
from featurestore.storage.group_writer import ROW_GROUP_ROWS
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import BASE_GROUP, PartitionEntry, Snapshot
from featurestore.storage.tensor_group import read_tensor
from featurestore.times import from_steps

_ROW_BYTES: Final = 64
_Side = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]  # hash and time of rows


def diff(session: Session, before: Snapshot, after: Snapshot, rows: bool) -> StoreDiff:
    """Compare two versions; see ``FeatureStore.diff``."""
    found = []
    with counted_progress("diff") as report:
        tables = sorted({*before.tables(), *after.tables()})
        for number, table in enumerate(tables, 1):
            one = _table(session, before, after, table, rows)
            if not one.is_empty or one.rows.partitions_added or one.rows.partitions_removed:
                found.append(one)
            report(number, len(tables))
    return StoreDiff(before.id, after.id, tuple(found))


def _table(
    session: Session, before: Snapshot, after: Snapshot, table: str, rows: bool
) -> TableDiff:
    old = session.files(table, before) if table in before.tables() else None
    new = session.files(table, after) if table in after.tables() else None
    if old is None or new is None:
        files = new if old is None else old
        assert files is not None
        change = "added" if old is None else "removed"
        gone = () if old is None else old.base
        come = () if new is None else new.base
        features = tuple(FeatureDiff(one.names, change) for one in files.graph.features())
        return TableDiff(table, change, _counted(files, gone, come, compared=rows), features)
    if _identity(old) != _identity(new):
        anew = _counted(new, old.base, new.base, compared=rows)
        return TableDiff(table, "ingested anew", anew, _features(old, new, recut=False))
    kept = {one.partition for one in old.base} & {one.partition for one in new.base}
    gone = tuple(one for one in old.base if one.partition not in kept)
    come = tuple(one for one in new.base if one.partition not in kept)
    counted = _counted(new, gone, come, compared=False)
    if rows:
        counted = _compared(session, new, counted, gone, come)
    recut = rows and not counted.added and not counted.removed
    return TableDiff(table, "", counted, _features(old, new, recut))


def _identity(files: TableFiles) -> tuple[Any, ...]:
    """Return what makes the rows of two versions comparable."""
    fields = sorted(files.groups[BASE_GROUP].fields, key=lambda one: one.name)
    return fields, files.entry.key, files.entry.time


# --- rows --------------------------------------------------------------------------------------


def _counted(
    files: TableFiles,
    gone: Sequence[PartitionEntry],
    come: Sequence[PartitionEntry],
    compared: bool,
) -> RowsDiff:
    """Return the difference as metadata has it; ``compared`` where all these rows differ anyway."""
    added, removed = sum(one.rows for one in come), sum(one.rows for one in gone)
    return RowsDiff(
        len(come),
        len(gone),
        added,
        removed,
        added if compared else None,
        removed if compared else None,
        _span(files, [(one.time_min, one.time_max) for one in come]),
        _span(files, [(one.time_min, one.time_max) for one in gone]),
    )


def _compared(
    session: Session,
    files: TableFiles,
    counted: RowsDiff,
    gone: Sequence[PartitionEntry],
    come: Sequence[PartitionEntry],
) -> RowsDiff:
    added, removed = [], []
    store = session.objects
    for old, new in _overlapping(gone, come):
        need = _need(files.name, sum(one.rows for one in (*old, *new)))
        place = session.place
        with holding(need, place.memory_limit, place.engine, "compare with rows=False"):
            before, after = _hashes(store, files, old), _hashes(store, files, new)
            added.append(_surplus(after, before))
            removed.append(_surplus(before, after))
            del before, after
    return RowsDiff(
        counted.partitions_added,
        counted.partitions_removed,
        counted.stored_added,
        counted.stored_removed,
        sum(count for count, _, _ in added),
        sum(count for count, _, _ in removed),
        _span(files, [(low, high) for count, low, high in added if count]),
        _span(files, [(low, high) for count, low, high in removed if count]),
    )


def _need(table: str, rows: int) -> Need:
    what = f"comparing {rows:,} rows of {table!r} that overlap in time"
    return Need(what, rows * _ROW_BYTES)


def _overlapping(
    gone: Sequence[PartitionEntry], come: Sequence[PartitionEntry]
) -> Iterator[tuple[list[PartitionEntry], list[PartitionEntry]]]:
    """Yield partitions of both versions that can hold the same rows: those that overlap in time."""
    waiting = [(0, one) for one in gone if one.rows] + [(1, one) for one in come if one.rows]
    if any(one.time_min is None for _, one in waiting):
        yield [one for side, one in waiting if not side], [one for side, one in waiting if side]
        return
    waiting.sort(key=lambda each: each[1].time_min or 0)
    sides: tuple[list[PartitionEntry], list[PartitionEntry]] = ([], [])
    newest: int | None = None
    for side, one in waiting:
        assert one.time_min is not None
        assert one.time_max is not None
        if newest is not None and one.time_min > newest:
            yield sides
            sides = ([], [])
        sides[side].append(one)
        newest = one.time_max if newest is None else max(newest, one.time_max)
    if waiting:
        yield sides


def _hashes(store: ObjectStore, files: TableFiles, entries: Sequence[PartitionEntry]) -> _Side:
    """Return hash and time of all rows of some partitions; one slice of rows is in memory at once."""
    time = files.schema.time
    fields = files.groups[BASE_GROUP].fields
    scalars = [one.name for one in fields if not one.is_tensor]
    tensors = [one.name for one in fields if one.is_tensor]
    hashes, times = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for entry in entries:
        start = 0
        for table in _slices(store, entry, scalars):
            stop = start + table.num_rows if scalars else entry.rows
            arrays = {name: read_tensor(store, entry, name, start, stop) for name in tensors}
            hashes.append(hash_rows(table, arrays))
            if time is not None:
                times.append(_steps(table.column(time)))
            start = stop
    return np.concatenate(hashes), np.concatenate(times)


def _slices(
    store: ObjectStore, entry: PartitionEntry, scalars: Sequence[str]
) -> Iterator[pa.Table]:
    if scalars:
        yield from iter_columns(store, entry, scalars, ROW_GROUP_ROWS)
    else:
        yield pa.table({})


def _steps(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    values: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return values


def _surplus(rows: _Side, others: _Side) -> tuple[int, int | None, int | None]:
    """Return how many rows are not among others, counting repetitions, and their times' range."""
    found, first, counts = np.unique(rows[0], return_index=True, return_counts=True)
    known, known_counts = np.unique(others[0], return_counts=True)
    place = np.searchsorted(known, found)
    place[place == len(known)] = 0
    same = known[place] == found if len(known) else np.zeros(len(found), bool)
    left = counts - np.where(same, known_counts[place] if len(known) else 0, 0)
    surplus = left > 0
    if not surplus.any():
        return 0, None, None
    times = rows[1][first[surplus]] if len(rows[1]) else np.zeros(0, np.int64)
    span = (int(times.min()), int(times.max())) if len(times) else (None, None)
    return int(left[surplus].sum()), *span


def _span(files: TableFiles, ranges: Sequence[tuple[int | None, int | None]]) -> TimeRange:
    known = [(low, high) for low, high in ranges if low is not None and high is not None]
    if not known or files.schema.time is None:
        return None
    type_ = files.schema[files.schema.time].type
    low, high = min(one[0] for one in known), max(one[1] for one in known)
    return from_steps(low, type_), from_steps(high, type_)


# --- features ----------------------------------------------------------------------------------


def _features(old: TableFiles, new: TableFiles, recut: bool) -> tuple[FeatureDiff, ...]:
    """Compare all features; ``recut`` where both versions have the same rows, maybe cut anew."""
    before = {name: one for one in old.graph.features() for name in one.names}
    after = {name: one for one in new.graph.features() for name in one.names}
    found = []
    for feature in new.graph.features():
        earlier = next((before[name] for name in feature.names if name in before), None)
        found.append(_feature(old, new, earlier, feature, recut))
    for feature in old.graph.features():
        if not any(name in after for name in feature.names):
            found.append(FeatureDiff(feature.names, "removed"))
    return tuple(one for one in found if not one.is_empty)


def _feature(
    old: TableFiles, new: TableFiles, before: Feature | None, after: Feature, recut: bool
) -> FeatureDiff:
    had = {} if before is None else old.entries[before.group]
    has = new.entries[after.group]
    lacked = {one.partition for one in old.base} - had.keys() if before is not None else set()
    change, source = "", ""
    parameters: tuple[tuple[str, str, str], ...] = ()
    if before is None:
        change = "added"
    elif before.group != after.group:
        change = "redefined"
        one, other = before.definition.to_json(), after.definition.to_json()
        parameters, source = _parameters(one, other), _source(one, other, after.names[0])
    # The same rows had values everywhere and have: as a compaction leaves it, nothing was built.
    everywhere = len(had) == len(old.base) and len(has) == len(new.base)
    merged = has.keys() - had.keys() if recut and everywhere else frozenset()
    return FeatureDiff(
        after.names,
        change,
        parameters,
        source,
        built=len(has.keys() - had.keys() - merged),
        changed=sum(
            had[name].provenance != entry.provenance for name, entry in has.items() if name in had
        ),
        missing=sum(one.partition not in has and one.partition not in lacked for one in new.base),
    )


def _parameters(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[tuple[str, str, str], ...]:
    """Return the parameters that differ, functions by name only."""
    one, other = _flat(before), _flat(after)
    names = sorted({*one, *other})
    return tuple(
        (name, one.get(name, "-"), other.get(name, "-"))
        for name in names
        if one.get(name) != other.get(name)
    )


def _flat(definition: Mapping[str, Any]) -> dict[str, str]:
    transformer = definition["transformer"]
    values = {"kind": transformer.get("kind"), "version": transformer.get("version")}
    values |= {"fit_on": definition.get("fit_on"), **transformer.get("params", {})}
    for name, value in values.items():
        stored = _function(value)
        if stored is not None:
            values[name] = f"{stored.get('module')}:{stored.get('qualname')} {stored.get('code')}"
    return {
        name: value if isinstance(value, str) else canonical_json(value).decode()
        for name, value in values.items()
    }


def _function(value: Any) -> Mapping[str, Any] | None:
    """Return a stored reference to a function, if a parameter is one."""
    found = value.get("$function") if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _source(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> str:
    old, new = _lines(before), _lines(after)
    return "\n".join(difflib.unified_diff(old, new, f"{name} before", f"{name} after", lineterm=""))


def _lines(definition: Mapping[str, Any]) -> list[str]:
    params = definition["transformer"].get("params", {}).values()
    found = [stored for stored in map(_function, params) if stored is not None]
    return "".join(str(stored.get("source", "")) for stored in found).splitlines()
