"""Expectations held against stored partitions: those of a table, or those that are about to be published.

Always true: partitions are read one slice after the other and only the columns of which something is
expected; what is counted of them is combined, so that memory does not grow with the table. Rows that are
to be unique are compared through scratch space. Nothing is published here.

Trade-off: what is written is read once more before it is published, its expected columns only.
"""

from __future__ import annotations

import json
import time as clock
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import ExpectationError, ExpectationWarning, InvalidInputError
from featurestore.execution.room import Need, holding
from featurestore.execution.states import Workplace
from featurestore.expectations.drift import ExpectDrift, bins_of
from featurestore.expectations.expectation import (
    REFUSE,
    ColumnExpectation,
    Expectation,
    ExpectFresh,
    ExpectUnique,
)
from featurestore.expectations.kinds import expectation_from_json
from featurestore.expectations.tally import Tally
from featurestore.ingest.duplicates import Duplicates
from featurestore.ingest.static_keys import StaticKeys
from featurestore.plan.table_files import TableFiles
from featurestore.report.validation import Finding
from featurestore.schema import TableSchema, time_unit
from featurestore.storage.column_group import iter_columns
from featurestore.storage.group_writer import ROW_GROUP_ROWS
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, TableEntry
from featurestore.units import Duration

BINS: Final = 10
_SAMPLED: Final = 100_000
_NANOSECONDS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_COPIES: Final = 6
"""A slice of a column as read, and what is made of it on the way."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Partitions that are held against expectations.

    Parameters
    ----------
    place : Workplace
    files : TableFiles
        The table.
    groups : mapping of str to sequence of PartitionEntry
        By column group, those that are judged.
    base : sequence of PartitionEntry
        All partitions of the table as it is with them, of which rows are unique and times fresh.
    """

    place: Workplace
    files: TableFiles
    groups: Mapping[str, Sequence[PartitionEntry]]
    base: Sequence[PartitionEntry]


def expectations_of(entry: TableEntry) -> tuple[Expectation, ...]:
    """Return what is expected of a table.

    Raises
    ------
    FormatError
        If a newer version of this package stated it.
    """
    return tuple(expectation_from_json(json.loads(one)) for one in entry.expectations)


def findings(judged: Judged, expectations: Sequence[Expectation]) -> tuple[Finding, ...]:
    """Return what is found of each expectation.

    Raises
    ------
    MemoryLimitError, LimitError, DiskFullError
        If a slice, or the keys in scratch space, do not fit.
    """
    tallies = _tallies(judged, expectations)
    return tuple(_finding(judged, one, tallies) for one in expectations)


def enforce(judged: Judged, expectations: Sequence[Expectation], what: str) -> tuple[Finding, ...]:
    """Hold what is about to be published against expectations; return those that are not met, all warnings.

    Parameters
    ----------
    judged : Judged
    expectations : sequence of Expectation
    what : str
        Such as ``"append to flights"``.

    Raises
    ------
    ExpectationError
        If one that refuses is not met.
    """
    failing = [one for one in findings(judged, expectations) if not one.ok]
    refused = [one for one in failing if one.on_failure == REFUSE]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ExpectationError(
            f"{what}: {refused[0]}{more}; nothing was published",
            "correct the values, or state what is expected anew: table.expect(..., replace=True), with "
            "on_failure='warn' to publish them all the same",
        )
    for one in failing:
        warnings.warn(f"{what}: {one}", ExpectationWarning, stacklevel=2)
    return tuple(failing)


def concerned(files: TableFiles, groups: Iterable[str], *, rows: bool) -> tuple[Expectation, ...]:
    """Return the expectations of a table that new values of some column groups can break.

    Parameters
    ----------
    files : TableFiles
    groups : iterable of str
    rows : bool
        Whether rows of the table change, and with them what is unique and how fresh it is.
    """
    if not files.entry.expectations:
        return ()
    written, owners = set(groups), files.graph.owners
    return tuple(
        one
        for one in expectations_of(files.entry)
        if (owners.get(one.column) in written if isinstance(one, ColumnExpectation) else rows)
    )


def with_reference(expectation: ExpectDrift, place: Workplace, files: TableFiles) -> ExpectDrift:
    """Return a drift expectation with the bins of its column in the version that it names.

    Parameters
    ----------
    expectation : ExpectDrift
    place : Workplace
    files : TableFiles
        The table in that version.

    Raises
    ------
    InvalidInputError
        If the column has no values there, or is not built everywhere.
    """
    files.schema[expectation.column]
    group = files.graph.owners[expectation.column]
    entries = [files.entries[group].get(one.partition) for one in files.base]
    built = [one for one in entries if one is not None]
    rows = sum(one.rows for one in built)
    if len(built) < len(entries) or not rows:
        raise InvalidInputError(
            f"column {expectation.column!r} has no values in {len(entries) - len(built)} of "
            f"{len(entries)} partitions of the version tagged {expectation.tag!r} ({rows} rows have)",
            "tag a version that has them",
        )
    read = _Reader(place, built, (expectation.column,))
    step = max(1, rows // _SAMPLED)
    sample = np.concatenate([_known(one.column(0))[::step] for _, _, one in read.slices()])
    if not sample.size:
        raise InvalidInputError(
            f"column {expectation.column!r} has no value but missing ones in the version tagged "
            f"{expectation.tag!r}",
            "expect that with ExpectNulls(at_most=1)",
        )
    at = np.arange(1, BINS) / BINS
    edges = np.unique(np.quantile(sample, at, method="lower"))
    edges = edges[np.isfinite(edges)]
    counts = np.zeros(len(edges) + 2, np.int64)
    for _, _, one in read.slices():
        counts += np.array(bins_of(one.column(0), edges.tolist()))
    return replace(expectation, edges=tuple(edges.tolist()), shares=tuple((counts / rows).tolist()))


def _known(values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    numbers = values.cast(pa.float64(), safe=False).drop_null().to_numpy()
    known: np.ndarray[Any, Any] = numbers[~np.isnan(numbers)]
    return known


@dataclass(frozen=True, slots=True)
class _Reader:
    """Columns of some partitions of one group, in slices."""

    place: Workplace
    entries: Sequence[PartitionEntry]
    columns: tuple[str, ...]

    def slices(self) -> Iterator[tuple[str, int, pa.Table]]:
        """Yield a partition's id, the number of the first row, and rows."""
        place = self.place
        for entry in self.entries:
            need = Need("holding values against expectations", self._bytes(entry), entry.partition)
            with holding(need, place.memory_limit, place.engine, "state fewer expectations"):
                start = 0
                for rows in iter_columns(place.store, entry, self.columns):
                    yield entry.partition, start, rows
                    start += rows.num_rows

    def _bytes(self, entry: PartitionEntry) -> int:
        size = sum(entry.column_bytes.get(one, 0) for one in self.columns)
        return _COPIES * size * min(ROW_GROUP_ROWS, entry.rows) // max(entry.rows, 1)


def _tallies(judged: Judged, expectations: Sequence[Expectation]) -> dict[int, Tally]:
    """Return what is counted for each expectation of a column's values; each partition is read once."""
    wanted: dict[str, list[ColumnExpectation]] = defaultdict(list)
    for one in expectations:
        if isinstance(one, ColumnExpectation):
            group = judged.files.graph.owners.get(one.column)
            if group in judged.groups:
                wanted[str(group)].append(one)
    tallies: dict[int, Tally] = {}
    for group, some in wanted.items():
        columns = tuple(dict.fromkeys(one.column for one in some))
        tallies |= {id(one): Tally() for one in some}
        for partition, start, rows in _Reader(judged.place, judged.groups[group], columns).slices():
            for one in some:
                counted = one.summarize(rows.column(one.column), partition, start)
                tallies[id(one)] = tallies[id(one)].combine(counted)
    return tallies


def _finding(judged: Judged, one: Expectation, tallies: Mapping[int, Tally]) -> Finding:
    missing = [name for name in one.columns if name not in judged.files.schema]
    if missing:
        problem = f"there is no column {missing[0]!r} any more"
        return Finding(str(one), one.kind, one.columns, one.on_failure, problem, 0)
    if isinstance(one, ExpectUnique):
        return _unique(judged, one)
    if isinstance(one, ExpectFresh):
        return _fresh(judged, one)
    assert isinstance(one, ColumnExpectation)
    tally = tallies.get(id(one), Tally())
    seen, limit, problem = one.judge(tally)
    return Finding(
        str(one), one.kind, one.columns, one.on_failure, problem, tally.rows, tally.failing, seen,
        limit,
        tuple((at.partition, at.row, at.value) for at in tally.examples),
        tally.worst_partitions(),
    )  # fmt: skip


def _fresh(judged: Judged, one: ExpectFresh) -> Finding:
    schema = judged.files.schema
    assert schema.time is not None
    unit = time_unit(schema[schema.time].type)
    newest = max(
        (entry.time_max for entry in judged.base if entry.time_max is not None), default=None
    )
    limit = Duration.parse(one.max_age).nanoseconds
    rows = sum(entry.rows for entry in judged.base)
    age = None
    problem = "the table has no rows"
    if newest is not None and unit is not None:
        age = clock.time_ns() - newest * _NANOSECONDS[unit]
        old = age > limit
        problem = (
            f"the newest row is {age / 1e9:,.0f} s old, at most {limit / 1e9:,.0f} s" if old else ""
        )
    return Finding(
        str(one), one.kind, (schema.time,), one.on_failure, problem, rows, 0,
        None if age is None else age / 1e9, limit / 1e9,
    )  # fmt: skip


def _unique(judged: Judged, one: ExpectUnique) -> Finding:
    place, names = judged.place, one.columns
    fields = tuple(judged.files.schema[name] for name in names)
    schema = TableSchema(fields, names, None)
    rows = sum(entry.rows for entry in judged.base)
    size = (
        sum(entry.column_bytes.get(name, 0) for entry in judged.base for name in names) + 8 * rows
    )
    memory = max(2**20, place.memory_limit // 16)
    need = Need("looking for repeated values", 2 * memory)
    repeated = Duplicates(schema, "error")
    with (
        holding(need, place.memory_limit, place.engine, "state fewer expectations"),
        StaticKeys(schema, rows, size, memory, place.scratch) as keys,
    ):
        keys.add(_complete(place.store, judged.base, names))
        keys.resolve(repeated)
    problem = repeated.error(None).problem if repeated.count else ""
    return Finding(
        str(one), one.kind, names, one.on_failure, problem, rows, repeated.count,
        float(repeated.count), 0.0,
    )  # fmt: skip


def _complete(
    store: ObjectStore, entries: Sequence[PartitionEntry], names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows without a null in some columns."""
    for entry in entries:
        for rows in iter_columns(store, entry, names):
            known = pa.array(np.ones(rows.num_rows, bool))
            for name in names:
                known = pc.and_(known, rows.column(name).is_valid())
            yield from rows.filter(known).to_batches()


def judged_table(place: Workplace, files: TableFiles) -> Judged:
    """Return a whole table, as far as it is built."""
    groups = {
        group: [one for base in files.base if (one := files.entries[group].get(base.partition))]
        for group in files.groups
    }
    return Judged(place, files, groups, files.base)


def noted(failing: Sequence[Finding]) -> str:
    """Return what the history says of values that were published with warnings."""
    return f" ({len(failing)} expectations not met)" if failing else ""
