"""A store of its own for a preview: a few partitions of some tables, in scratch space, removed afterwards.

What a preview needs of the table's columns, ingested or computed, is ingested there, so that everything
that works on a store (build, plan, leak check) does what it always does, and nothing can be left behind in
the store that is looked at.

Always true: of the original, rows are read and nothing is written; one partition's columns are in memory at
a time. Trade-off: these columns are written once more, a few partitions of them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.engines.selection import get_engine
from featurestore.execution.dask import Executor
from featurestore.execution.publish import create_table
from featurestore.execution.room import Need, holding
from featurestore.execution.states import Available, Workplace
from featurestore.execution.task_costs import reading_cost
from featurestore.execution.tasks import with_row_count
from featurestore.plan.table_files import TableFiles
from featurestore.preview.sample import decoded_bytes
from featurestore.session import Session
from featurestore.storage.column_group import ingested, new_partition_id, write_partition
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.local import LocalStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import BASE_GROUP, GroupEntry, PartitionEntry, TableEntry
from featurestore.transforms.frames import to_arrow

_COPIES = 3
"""A partition's columns as read, as Arrow, and as they are encoded."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Some columns of some partitions of a table.

    Parameters
    ----------
    files : TableFiles
    columns : tuple of str
        Stored ones.
    positions : sequence of int
        In table order.
    """

    files: TableFiles
    columns: tuple[str, ...]
    positions: Sequence[int]


@contextmanager
def copied(session: Session, excerpts: Sequence[Excerpt]) -> Iterator[Session]:
    """Give a store that holds excerpts of tables, for as long as the block runs.

    Raises
    ------
    LimitError, DiskFullError
        If scratch space does not do.
    MemoryLimitError
        If a partition does not fit.
    """
    place = session.place
    size = sum(decoded_bytes(one.files, one.columns, one.positions) for one in excerpts)
    place.scratch.require(size, "a preview")
    with place.scratch.faults_as_errors():
        folder = Path(tempfile.mkdtemp(prefix="featurestore-preview-", dir=place.scratch.folder))
    place.scratch.take(size)
    try:
        objects = LocalStore(folder / "store")
        log = CommitLog.create(objects)
        copy = Session(log, replace(place, store=objects, executor=Executor(1)))
        for one in excerpts:
            _copy(place, one, copy)
        yield copy
    finally:
        place.scratch.give_back(size)
        shutil.rmtree(folder)


def _copy(place: Workplace, excerpt: Excerpt, copy: Session) -> None:
    files = excerpt.files
    columns = with_row_count(excerpt.columns, files.schema)
    fields = tuple(one for one in files.schema if one.name in columns)
    entries = [
        _copied(place, excerpt, columns, position, sequence, copy)
        for sequence, position in enumerate(excerpt.positions)
    ]
    entry = TableEntry(
        files.name, files.entry.key, files.entry.time, files.entry.partition_bytes, "keep"
    )
    copy.objects.sync([file.path for one in entries for file in one.all_files()])
    base = GroupEntry(files.name, BASE_GROUP, fields)
    change = create_table(copy.objects, entry, base, entries)
    copy.commit(f"preview {files.name}", change, entries)


def _copied(
    place: Workplace,
    excerpt: Excerpt,
    columns: Sequence[str],
    position: int,
    sequence: int,
    copy: Session,
) -> PartitionEntry:
    files, engine = excerpt.files, get_engine(place.engine)
    source = Available(files, {}).at(position, columns)
    need = Need(
        "a preview", _COPIES * reading_cost(source, columns, files.schema), source.partition
    )
    with holding(need, place.memory_limit, place.engine, "preview fewer features at once"):
        part = source.read(place.store, engine, columns, files.schema)
        scalars = [name for name in columns if name not in part.tensors]
        first, last = source.base.time_min, source.base.time_max
        written = write_partition(
            copy.objects,
            table=files.name,
            group=BASE_GROUP,
            partition=new_partition_id(sequence),
            columns=to_arrow(part, scalars, engine) if scalars else None,
            tensors={name: engine.to_host(values) for name, values in part.tensors.items()},
            provenance=Provenance("preview", ""),
            time_range=None if first is None or last is None else (first, last),
        )
    return ingested(written, list(files.entry.key), files.entry.time)
