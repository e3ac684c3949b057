"""Merging partitions: one task writes the files of one merge; the driver publishes them all at once.

Always true: rows keep their order and values their bits; damaged files are refused, never copied into
new ones that would then look sound. What is recorded of a merged partition follows from what is
recorded of its parts; sizes in memory are the sums of theirs, which is a little more than it takes (each
part counted its own last offset), so that a second compaction finds nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.execution.dask import Executor
from featurestore.plan.compaction import CompactionPlan, Merge, Merged, Piece
from featurestore.plan.relayout import Relayout, relaid
from featurestore.plan.staleness import Standing
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import (
    CHECKED_WHOLE,
    ingested,
    read_columns,
    require_intact,
    write_partition,
)
from featurestore.storage.fileset import with_partitions
from featurestore.storage.journal import Journal
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import (
    BASE_GROUP,
    PartitionEntry,
    Snapshot,
    StoredFile,
    group_key,
)
from featurestore.storage.tensor_group import read_tensor

SHARED: Final = "features"
"""The folder of files that several features share; no column group has this name."""
_UNSTAMPED: Final = Provenance("compacted", "")


@dataclass(frozen=True, slots=True)
class MergeTask:
    """One merge, where it can be pickled to."""

    url: str
    table: str
    merge: Merge


def merge_all(
    store: ObjectStore, plan: CompactionPlan, executor: Executor
) -> dict[tuple[str, str], tuple[Piece, PartitionEntry]]:
    """Write all merges of a plan that the journal does not have; return all by group and partition."""
    keys = frozenset(journal_keys(plan))
    finished = Journal(store, plan.table).finished(keys) if keys else {}
    todo, merged = [], {}
    for merge in plan.merges:
        done = [finished.get(merge.key(piece)) for piece in merge.pieces]
        for piece, entry in zip(merge.pieces, done, strict=True):
            if entry is not None:
                merged[piece.group.group, merge.partition] = piece, entry
        if any(entry is None for entry in done):
            todo.append(MergeTask(store.url, plan.table, merge))

    def collect(index: int, entries: Sequence[PartitionEntry]) -> None:
        merge = todo[index].merge
        for piece, entry in zip(merge.pieces, entries, strict=True):
            merged[piece.group.group, merge.partition] = piece, entry

    executor.run(
        merge_partitions,
        todo,
        label=f"compact {plan.table}",
        costs=[one.merge.peak_bytes for one in todo],
        names=[one.merge.partition for one in todo],
        on_result=collect,
    )
    return merged


def journal_keys(plan: CompactionPlan) -> list[str]:
    """Return the keys under which a plan's merges are journaled."""
    return [merge.key(piece) for merge in plan.merges for piece in merge.pieces]


def merge_partitions(task: MergeTask) -> list[PartitionEntry]:
    """Write and journal one merge; return the entries of its pieces."""
    store, merge = open_object_store(task.url), task.merge
    for piece in merge.pieces:
        for part in piece.parts:
            # Small files and tensors are compared with their checksums where they are read.
            if any(file.bytes > CHECKED_WHOLE for file in part.files):
                require_intact(store, part)
    if len(merge.pieces) > 1:
        entries = _write_shared(store, task.table, merge)
    else:
        entries = [_write_alone(store, task.table, merge.partition, merge.pieces[0])]
    Journal(store, task.table).record_all(
        (merge.key(piece), entry) for piece, entry in zip(merge.pieces, entries, strict=True)
    )
    return entries


def _write_alone(store: ObjectStore, table: str, partition: str, piece: Piece) -> PartitionEntry:
    written = write_partition(
        store,
        table=table,
        group=piece.group.group,
        partition=partition,
        columns=_scalars(store, piece) if piece.scalars else None,
        tensors={name: _tensor(store, piece, name) for name in piece.tensors},
        provenance=_UNSTAMPED,
    )
    entry = _entry(partition, piece, written.files, written.tensors)
    if piece.group.group != BASE_GROUP:
        return entry
    # The parts' provenance says by which key and time they are grouped and ordered.
    return ingested(entry, [part.provenance.fingerprint for part in piece.parts])


def _write_shared(store: ObjectStore, table: str, merge: Merge) -> list[PartitionEntry]:
    columns: dict[str, pa.ChunkedArray] = {}
    for piece in merge.pieces:
        found = _scalars(store, piece)
        columns |= {name: found.column(name) for name in piece.scalars}
        del found
    files = write_partition(
        store,
        table=table,
        group=SHARED,
        partition=merge.partition,
        columns=pa.table(columns),
        tensors={},
        provenance=_UNSTAMPED,
    ).files
    columns.clear()
    return [
        _entry(merge.partition, piece, files, _tensor_files(store, table, merge.partition, piece))
        for piece in merge.pieces
    ]


def _tensor_files(
    store: ObjectStore, table: str, partition: str, piece: Piece
) -> Mapping[str, tuple[StoredFile, ...]]:
    """Return the files of a piece's tensors; those of a single partition stay where they are."""
    if len(piece.parts) == 1 or not piece.tensors:
        return piece.parts[0].tensors
    return write_partition(
        store,
        table=table,
        group=piece.group.group,
        partition=partition,
        columns=None,
        tensors={name: _tensor(store, piece, name) for name in piece.tensors},
        provenance=_UNSTAMPED,
    ).tensors


def _scalars(store: ObjectStore, piece: Piece) -> pa.Table:
    return pa.concat_tables([read_columns(store, part, piece.scalars) for part in piece.parts])


def _tensor(store: ObjectStore, piece: Piece, name: str) -> npt.NDArray[Any]:
    """Return a tensor of all parts; beside it, one part is in memory."""
    out: npt.NDArray[Any] | None = None
    start = 0
    for part in piece.parts:
        values = read_tensor(store, part, name)
        if out is None:
            rows = sum(one.rows for one in piece.parts)
            out = np.empty((rows, *values.shape[1:]), dtype=values.dtype)
        out[start : start + part.rows] = values
        start += part.rows
    assert out is not None
    return out


def _entry(
    partition: str,
    piece: Piece,
    files: tuple[StoredFile, ...],
    tensors: Mapping[str, tuple[StoredFile, ...]],
) -> PartitionEntry:
    parts = piece.parts

    def added(counts: Callable[[PartitionEntry], Mapping[str, int]]) -> dict[str, int]:
        return {name: sum(counts(one)[name] for one in parts) for name in counts(parts[0])}

    times = [one for part in parts for one in (part.time_min, part.time_max) if one is not None]
    return PartitionEntry(
        partition=partition,
        rows=sum(one.rows for one in parts),
        files=files,
        tensors=tensors,
        # Of a single partition it is what it was; of several it is stamped when it is published.
        provenance=parts[0].provenance if len(parts) == 1 else _UNSTAMPED,
        decoded_bytes=sum(one.decoded_bytes for one in parts),
        column_bytes=added(lambda one: one.column_bytes),
        widest_row=max(one.widest_row for one in parts),
        nulls=added(lambda one: one.nulls),
        time_min=min(times, default=None),
        time_max=max(times, default=None),
    )


class Compaction:
    """What a plan and what was written for it make of a snapshot, evaluated once per snapshot.

    Parameters
    ----------
    store : ObjectStore
    plan : CompactionPlan
    merged : mapping
        Of :func:`merge_all`.
    standing : callable
        Returns how all tables of a snapshot stand.
    """

    def __init__(
        self,
        store: ObjectStore,
        plan: CompactionPlan,
        merged: Merged,
        standing: Callable[[Snapshot], Standing],
    ) -> None:
        self._store = store
        self._plan = plan
        self._merged = merged
        self._standing = standing
        self._last: tuple[str, Relayout] | None = None

    def at(self, head: Snapshot) -> Relayout:
        """Return what becomes of the tables.

        Raises
        ------
        ConflictError
            If the plan no longer applies there.
        """
        if self._last is None or self._last[0] != head.id:
            self._last = head.id, relaid(self._standing(head), self._plan, self._merged)
        return self._last[1]

    @property
    def published(self) -> Relayout:
        """What was returned last: what a commit that succeeded has published."""
        assert self._last is not None
        return self._last[1]

    def change(self, head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        """Return the entries to write; see ``publish``."""
        result = self.at(head)
        return {
            group_key(table, group): with_partitions(
                self._store, result.tables[table].groups[group], result.entries(table, group)
            ).to_json()
            for table, group in result.changed
        }
