"""Compaction: many small partitions become full ones, and many features' files become one.

Nothing that readers see changes but the layout: rows, order, values and what is fresh stay. Files of
the old layout stay as long as older versions name them. Always true: values that somebody built on the
old partitions while they were merged are taken along, or nothing is published.

The trade-off: writers are not locked out, so work that others overtake is planned again on their
version. What was merged by then is kept in the journal and not done again.
"""

from __future__ import annotations

import time as clock
from typing import Final

from featurestore.errors import ConflictError
from featurestore.execution.compaction import Compaction, journal_keys, merge_all
from featurestore.execution.room import require_each
from featurestore.execution.state_moves import move_states
from featurestore.plan.compaction import plan_compaction
from featurestore.plan.relayout import Relayout
from featurestore.plan.staleness import Standing
from featurestore.plan.table_files import TableFiles, load_table_files
from featurestore.report.progress import progress_bars
from featurestore.report.tables import CompactReport
from featurestore.session import Session
from featurestore.storage.journal import Journal
from featurestore.storage.records import Snapshot
from featurestore.units import parse_bytes

_ATTEMPTS: Final = 10


def compact(
    session: Session, table: str, partition_bytes: int | str | None, merge_groups: bool
) -> CompactReport:
    """Merge a table's small partitions; see ``Table.compact``."""
    session.require_writable()
    started = clock.perf_counter()
    target = None if partition_bytes is None else parse_bytes(partition_bytes)
    work = _Work(session, table, target, merge_groups)
    with progress_bars():
        for attempt in range(_ATTEMPTS):
            try:
                result, snapshot = work.attempt()
                break
            except ConflictError:
                if attempt + 1 == _ATTEMPTS:
                    raise
    Journal(session.objects, table).clear(work.journaled)
    before, after = result.before.tables[table], result.tables[table]
    old, new = _files(before), _files(after)
    return CompactReport(
        table=table,
        partitions_before=len(before.base),
        partitions_after=len(after.base),
        files_before=len(old),
        files_after=len(new),
        bytes_written=sum(size for path, size in new.items() if path not in old),
        missing=result.missing,
        version=snapshot.version,
        seconds=clock.perf_counter() - started,
    )


class _Work:
    """One compaction: what it was asked for, and what it journaled so far."""

    def __init__(
        self, session: Session, table: str, target: int | None, merge_groups: bool
    ) -> None:
        self._session = session
        self._table = table
        self._target = target
        self._merge_groups = merge_groups
        self._seen: tuple[str, Standing] | None = None
        self.journaled: set[str] = set()

    def attempt(self) -> tuple[Relayout, Snapshot]:
        """Plan on the newest version, merge, publish.

        Raises
        ------
        ConflictError
            If others published something meanwhile on which the plan does not apply.
        """
        with self._session.writing_newest() as (session, head):
            return self._attempt(session, head)

    def _attempt(self, session: Session, head: Snapshot) -> tuple[Relayout, Snapshot]:
        place = session.place
        standing = self._standing(head)
        files = standing.tables[self._table]
        target = files.entry.partition_bytes if self._target is None else self._target
        plan = plan_compaction(standing, self._table, target, self._merge_groups)
        if plan.is_empty:
            return Relayout.unchanged(standing, self._table), head
        self.journaled.update(journal_keys(plan))
        executor = place.executor
        if plan.merges:
            worst = max(plan.merges, key=lambda one: one.peak_bytes)
            require_each(
                str(worst), [worst.peak_bytes], [worst.partition], executor,
                "pass a smaller partition_bytes",
            )  # fmt: skip
        merged = merge_all(session.objects, plan, executor)
        compaction = Compaction(session.objects, plan, merged, self._standing)
        planned = compaction.at(head)
        # Before anything is published: a kill must not leave a table without its states.
        move_states(planned, self._table, place, executor)
        entries = [entry for _, entry in merged.values()]
        snapshot = session.commit(f"compact {self._table}", compaction.change, entries)
        if compaction.published is not planned:
            move_states(compaction.published, self._table, place, executor)
        return compaction.published, snapshot

    def _standing(self, snapshot: Snapshot) -> Standing:
        """Return how the tables of a snapshot stand; that of the last one is kept."""
        if self._seen is None or self._seen[0] != snapshot.id:
            snapshot.table(self._table)
            found = {
                name: load_table_files(self._session.objects, snapshot, name)
                for name in snapshot.tables()
            }
            self._seen = snapshot.id, Standing.of(found)
        return self._seen[1]


def _files(files: TableFiles) -> dict[str, int]:
    """Return the sizes of a table's data files by path."""
    entries = [one for group in files.entries.values() for one in group.values()]
    return {file.path: file.bytes for one in entries for file in one.all_files()}
