"""The rows of a table: ingested, appended, replaced by range of time, deleted by condition.

Rows of a partition never change under its id: what is touched gives way to new partitions, and
features are missing there until ``build``. Always true: a change is one commit or nothing; partitions
that it does not touch are not read; memory is that of an ingest, or of a few partitions.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.arguments import column_names
from featurestore.dataset.selection import condition
from featurestore.errors import InvalidInputError, NameTakenError
from featurestore.execution.deleting import Deleted, DeleteTask, delete_rows
from featurestore.execution.publish import append_partitions, create_table, replace_partitions
from featurestore.execution.room import all_room, require_each
from featurestore.execution.states import Available
from featurestore.expectations.checking import Judged, concerned, enforce, noted
from featurestore.features import FeatureSet
from featurestore.ingest.partitioner import Report, write_partitions
from featurestore.ingest.sources import Source, open_source
from featurestore.ingest.stored_rows import StoredRows, rows_before
from featurestore.ingest.survey import count_within
from featurestore.plan.replacement import Replacement
from featurestore.plan.table_files import TableFiles
from featurestore.report.progress import ingest_progress, progress_bars
from featurestore.report.tables import RowsReport
from featurestore.schema import check_name
from featurestore.session import Session
from featurestore.storage.column_group import new_partition_id, require_intact
from featurestore.storage.group_writer import DATA
from featurestore.storage.records import BASE_GROUP, GroupEntry, PartitionEntry, TableEntry
from featurestore.times import TimeLike, to_steps
from featurestore.transforms.expression import Expression
from featurestore.units import parse_bytes

if TYPE_CHECKING:
    import narwhals as nw

TimeRange: TypeAlias = "tuple[TimeLike | None, TimeLike | None]"
"""``start <= time < stop``; ``None`` is an open end."""


def new_table(
    session: Session,
    name: str,
    key: str | Sequence[str],
    time: str | None,
    partition_bytes: int | str,
    duplicates: str,
) -> TableEntry:
    """Return a table that is to be made, with an identity of its own; see ``FeatureStore.ingest``.

    Raises
    ------
    NameTakenError
        If there is one of that name.
    """
    session.require_writable()
    check_name(name, "table")
    if name in session.snapshot().tables():
        raise NameTakenError(
            f"table {name!r} exists already", "use append to add rows, or another name"
        )
    size, identity = parse_bytes(partition_bytes), secrets.token_hex(8)
    return TableEntry(name, column_names(key), time, size, duplicates, identity)


def ingest_rows(
    limited: Session, entry: TableEntry, source: Any, types: dict[str, str] | None
) -> None:
    """Publish a new table with the rows of a source."""
    with (
        limited.writing_newest() as (session, _),
        open_source(source, types=types, scratch=session.place.scratch) as opened,
        all_room(session.place.memory_limit, session.place.engine) as reserved,
        ingest_progress(f"ingest {entry.name}", session.place.memory_limit) as report,
    ):
        entries = write_partitions(
            session.objects,
            opened,
            entry,
            schema=None,
            after=None,
            first_sequence=0,
            memory_limit=session.place.memory_limit,
            reserved=reserved,
            scratch=session.place.scratch,
            on_progress=session.touching(report),
        )
        group = GroupEntry(entry.name, BASE_GROUP, opened.fields)
        change = create_table(session.objects, entry, group, entries)
        session.commit(f"ingest {entry.name}", change, entries)


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows of one table.

    Parameters
    ----------
    session : Session
    table : str
    """

    session: Session
    table: str

    def append(self, source: Any, types: dict[str, str] | None) -> int:
        """Add rows as new partitions; see ``Table.append``."""
        self.session.require_writable()
        with self.session.writing_newest() as (session, snapshot):
            files = session.files(self.table, snapshot)
            return RowSet(session, self.table)._append(files, source, types)

    def _append(self, files: TableFiles, source: Any, types: dict[str, str] | None) -> int:
        base, place = files.groups[BASE_GROUP], self.session.place
        newest = max((one.time_max for one in files.base if one.time_max is not None), default=None)
        with (
            open_source(source, types=types, scratch=place.scratch) as opened,
            all_room(place.memory_limit, place.engine) as reserved,
            ingest_progress(f"append to {self.table}", place.memory_limit) as report,
        ):
            entries = write_partitions(
                self.session.objects,
                opened,
                files.entry,
                schema=base.fields,
                after=newest,
                first_sequence=len(files.base),
                memory_limit=place.memory_limit,
                reserved=reserved,
                on_progress=self.session.touching(report),
                existing=files.base,
                scratch=place.scratch,
            )
        what = f"append to {self.table}"
        what += self._held(files, entries, (*files.base, *entries), what)
        change = append_partitions(self.session.objects, files.entry, base, entries)
        self.session.commit(what, change, entries)
        return sum(one.rows for one in entries)

    def _held(
        self,
        files: TableFiles,
        new: Sequence[PartitionEntry],
        base: Sequence[PartitionEntry],
        what: str,
    ) -> str:
        """Hold new partitions against the table's expectations; return what the history says of it.

        Raises
        ------
        ExpectationError
            Nothing is left of the partitions then.
        """
        expected = concerned(files, [BASE_GROUP], rows=True) if new else ()
        try:
            judged = Judged(self.session.place, files, {BASE_GROUP: new}, base)
            return noted(enforce(judged, expected, what))
        except BaseException:  # Ctrl-C too: what was written goes, and the error goes on
            self._remove({one.partition for one in new})
            raise

    # --- replace -------------------------------------------------------------------------------

    def replace(
        self, source: Any, time_range: TimeRange, types: dict[str, str] | None
    ) -> RowsReport:
        """Let the rows of a range of times give way to others; see ``Table.replace``."""
        self.session.require_writable()
        with self.session.writing_newest() as (session, snapshot):
            files = session.files(self.table, snapshot)
            span = self._steps(files, time_range)
            return RowSet(session, self.table)._replace(files, source, span, types)

    def _replace(
        self,
        files: TableFiles,
        source: Any,
        span: tuple[int | None, int | None],
        types: dict[str, str] | None,
    ) -> RowsReport:
        touched = Replacement.of(files.base, *span)
        with (
            open_source(source, types=types, scratch=self.session.place.scratch) as opened,
            ingest_progress(f"replace in {self.table}", self.session.place.memory_limit) as report,
        ):
            fields = files.groups[BASE_GROUP].fields
            conforming = opened.conforming(fields)
            new = count_within(conforming, files.schema[str(files.schema.time)], *span)
            before, after = self._kept(files, touched, span)
            kept = before.count + after.count
            removed = sum(one.rows for one in (*touched.whole, *touched.cut)) - kept
            if not new and not removed:
                return RowsReport(0, 0, 0, files.snapshot.version)
            entries: list[PartitionEntry] = []
            if new or kept:
                rows = conforming.between(before.inputs, after.inputs)
                entries = self._write(files, touched, rows, report)
        what = f"replace in {self.table}"
        gone = {one.partition for one in (*touched.whole, *touched.cut)}
        staying = [one for one in files.base if one.partition not in gone]
        what += self._held(files, entries, (*staying, *entries), what)
        replaced = touched.replaced(entries)
        change = replace_partitions(
            self.session.objects,
            files.entry,
            files.groups[BASE_GROUP],
            replaced,
            () if replaced else entries,
            span,
        )
        snapshot = self.session.commit(what, change, entries)
        written = sum(one.rows for one in entries) - kept
        return RowsReport(removed, written, len(replaced), snapshot.version)

    def _steps(self, files: TableFiles, time_range: TimeRange) -> tuple[int | None, int | None]:
        time = files.schema.time
        if time is None:
            raise InvalidInputError(
                f"table {self.table!r} has no time column, so no range of times can be replaced",
                "delete the rows that change and append the new ones",
            )
        if not isinstance(time_range, tuple | list) or len(time_range) != 2:
            raise InvalidInputError(
                f"{time_range!r} is no range of times", "give (start, stop), None for an open end"
            )
        type_ = files.schema[time].type
        lower, upper = (None if one is None else to_steps(one, type_, time) for one in time_range)
        if lower is not None and upper is not None and lower >= upper:
            raise InvalidInputError(
                f"the range from {time_range[0]!r} to {time_range[1]!r} holds no time",
                "let stop be later than start; it does not belong to the range",
            )
        return lower, upper

    def _kept(
        self, files: TableFiles, touched: Replacement, span: tuple[int | None, int | None]
    ) -> tuple[_Kept, _Kept]:
        """Return the rows of cut partitions that lie before the range, and those after it."""
        store, fields = self.session.objects, files.groups[BASE_GROUP].fields
        time = str(files.schema.time)
        before, after = [], []
        count_before = count_after = 0
        for one in touched.cut:
            first = 0 if span[0] is None else rows_before(store, one, time, span[0])
            last = rows_before(store, one, time, span[1])
            if first:
                before.append(StoredRows(store, one, fields, 0, first))
            if last < one.rows:
                after.append(StoredRows(store, one, fields, last, one.rows))
            count_before += first
            count_after += one.rows - last
        return _Kept(count_before, before), _Kept(count_after, after)

    def _write(
        self, files: TableFiles, touched: Replacement, rows: Source, report: Report
    ) -> list[PartitionEntry]:
        for one in touched.cut:
            require_intact(self.session.objects, one)
        place = self.session.place
        with all_room(place.memory_limit, place.engine) as reserved:
            return write_partitions(
                self.session.objects,
                rows,
                files.entry,
                schema=files.groups[BASE_GROUP].fields,
                after=None,
                first_sequence=touched.position,
                memory_limit=place.memory_limit,
                reserved=reserved,
                on_progress=self.session.touching(report),
                scratch=place.scratch,
            )

    # --- delete --------------------------------------------------------------------------------

    def delete(self, where: nw.Expr) -> RowsReport:
        """Remove the rows for which a condition is true; see ``Table.delete``."""
        self.session.require_writable()
        with self.session.writing_newest() as (session, snapshot):
            files = session.files(self.table, snapshot)
            return RowSet(session, self.table)._delete(files, where)

    def _delete(self, files: TableFiles, where: nw.Expr) -> RowsReport:
        columns = condition(where, files.schema).columns
        FeatureSet(self.session, self.table).require_fresh(files, columns)
        tasks = self._delete_tasks(files, where, columns)
        found = self._run(tasks)
        replaced = {
            task.source.partition: () if one.kept is None else (one.kept,)
            for task, one in zip(tasks, found, strict=True)
            if one.removed
        }
        if not replaced:
            return RowsReport(0, 0, 0, files.snapshot.version)
        change = replace_partitions(
            self.session.objects, files.entry, files.groups[BASE_GROUP], replaced
        )
        entries = [one for new in replaced.values() for one in new]
        snapshot = self.session.commit(f"delete from {self.table}", change, entries)
        removed = sum(one.removed for one in found)
        return RowsReport(removed, 0, len(replaced), snapshot.version)

    def _delete_tasks(
        self, files: TableFiles, where: nw.Expr, columns: Sequence[str]
    ) -> list[DeleteTask]:
        place, available = self.session.place, Available(files, {})
        return [
            DeleteTask(
                place.store.url,
                place.engine,
                self.table,
                available.at(position, columns),
                files.schema,
                files.groups[BASE_GROUP].fields,
                Expression(condition=where),
                new_partition_id(position),
            )
            for position, one in enumerate(files.base)
            if one.rows
        ]

    def _run(self, tasks: Sequence[DeleteTask]) -> list[Deleted]:
        """Run the tasks, as many at once as memory allows; nothing is left of them on failure."""
        if not tasks:
            return []
        place = self.session.place
        costs = [one.peak_bytes for one in tasks]
        names = [one.source.partition for one in tasks]
        instead = "ingest with a smaller partition_bytes"
        require_each(f"deleting from {self.table}", costs, names, place.executor, instead)
        try:
            with progress_bars():
                return place.executor.run(
                    delete_rows,
                    tasks,
                    label=f"delete from {self.table}",
                    costs=costs,
                    names=names,
                )
        except BaseException:  # Ctrl-C too: what was written goes, and the error goes on
            self._remove({one.partition for one in tasks})
            raise

    def _remove(self, partitions: set[str]) -> None:
        """Remove all files of partitions that were begun; a file's name begins with their id."""
        store, folder = self.session.objects, f"{DATA}/{self.table}/{BASE_GROUP}"
        names = tuple(f"{folder}/{one}-" for one in partitions)
        store.delete([one.path for one in store.list(folder) if one.path.startswith(names)])


@dataclass(frozen=True, slots=True)
class _Kept:
    """Rows of cut partitions that stay."""

    count: int
    inputs: list[StoredRows]
