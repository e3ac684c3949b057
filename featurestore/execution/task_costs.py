"""Tasks that are about to run, with what they take: of sizes that were recorded by now.

The same terms as in a plan, which had to estimate columns and states that the build itself makes.
Verbs that do not fit memory together become several tasks; where a partition is processed in slices,
where it is cut is looked up first (``cutting``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from featurestore.execution.budget import DRIFT
from featurestore.execution.cutting import CutTask, Rows, cut_partition
from featurestore.execution.dask import Executor
from featurestore.execution.reading import PartitionSource
from featurestore.execution.room import require_each
from featurestore.execution.tasks import (
    ApplyTask,
    ApplyWork,
    SummarizeTask,
    with_row_count,
)
from featurestore.plan.costs import reading_bytes
from featurestore.plan.packing import Load, loads
from featurestore.plan.slicing import Work, is_one_time
from featurestore.schema import TableSchema
from featurestore.transforms.base import row_width
from featurestore.transforms.extent import Extent

_LESS: Final = "ingest with a smaller partition_bytes"

Task = TypeVar("Task", SummarizeTask, ApplyTask)


def column_bytes(source: PartitionSource, columns: Sequence[str]) -> dict[str, int]:
    """Return the recorded size of each of some columns of a partition."""
    return source.column_bytes(columns)


def read_extent(source: PartitionSource, columns: Sequence[str]) -> Extent:
    """Return how much columns of a partition are."""
    wanted = set(columns)
    widest = sum(entry.widest_row for group, entry in source.groups if wanted & set(group.names))
    nulls = {
        name: entry.nulls[name]
        for group, entry in source.groups
        for name in wanted.intersection(group.names)
        if name in entry.nulls
    }
    return Extent(source.rows, column_bytes(source, columns), widest, nulls=nulls)


def part_extent(
    source: PartitionSource, columns: Sequence[str], schema: TableSchema, rows: int
) -> Extent:
    """Return the most that columns of so many rows of a partition are, wherever its widest row lies."""
    extent = read_extent(source, columns)
    if rows >= extent.rows:
        return extent
    sizes = {
        name: math.ceil(size * rows / extent.rows) for name, size in extent.column_bytes.items()
    }
    for name, share in sizes.items():
        if row_width(schema[name]) is None:
            # A row's bytes are recorded without its null mark, and a column has one offset more.
            most = rows * (extent.widest_row + 1) + 8
            sizes[name] = max(share, min(extent.column_bytes[name], most))
    return replace(extent, rows=rows, column_bytes=sizes)


def reading_cost(source: PartitionSource, columns: Sequence[str], schema: TableSchema) -> int:
    """Return what reading columns of a partition takes, the columns included."""
    extent = read_extent(source, with_row_count(columns, schema))
    return reading_bytes(schema, extent.column_bytes, extent.rows, extent.widest_row)


@dataclass(frozen=True, slots=True)
class Packed(Generic[Task]):
    """Tasks that fit memory, and what each takes."""

    tasks: tuple[Task, ...]
    costs: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """The partition of each."""
        return [one.source.partition for one in self.tasks]


def packed_summaries(
    tasks: Sequence[SummarizeTask],
    schemas: Mapping[str, TableSchema],
    executor: Executor,
    planned: bool,
) -> Packed[SummarizeTask]:
    """Return tasks that summarize, divided where they do not fit memory.

    Parameters
    ----------
    tasks : sequence of SummarizeTask
    schemas : mapping of str to TableSchema
        Of the transformers' own tables, by key of the summary.
    executor : Executor
    planned : bool
        Whether it was found before that they fit.

    Raises
    ------
    MemoryLimitError
        If one does not fit, and that was not planned.
    """
    works = [
        [
            Work(
                one.transformer,
                schemas[one.key],
                task.schema,
                read_extent(task.source, one.columns),
                _time_bytes(task),
                summarizes=True,
                cut=one.time_range is not None,
                one_time=is_one_time(task.source.base),
            )
            for one in task.work
        ]
        for task in tasks
    ]
    return _packed(tasks, works, executor, planned)


def packed_values(
    tasks: Sequence[ApplyTask], states: Mapping[str, int], executor: Executor
) -> Packed[ApplyTask]:
    """Return tasks that compute values, divided where they do not fit memory.

    Parameters
    ----------
    tasks : sequence of ApplyTask
    states : mapping of str to int
        Bytes of the states that are kept, by key.
    executor : Executor
    """
    works = [
        [
            Work(
                one.feature.transformer,
                task.schema,
                task.schema,
                _extent(task, one, states),
                _time_bytes(task),
                one_time=is_one_time(task.source.base),
            )
            for one in task.work
        ]
        for task in tasks
    ]
    return _packed(tasks, works, executor, planned=True)


def _extent(task: ApplyTask, work: ApplyWork, states: Mapping[str, int]) -> Extent:
    rows = () if work.rows is None else work.rows.partitions
    columns = () if work.rows is None else work.rows.columns
    return replace(
        read_extent(task.source, work.feature.inputs),
        state_bytes=states.get(work.state_key, 0),
        source_rows=sum(one.rows for one in rows),
        source_bytes=sum(one.decoded_bytes(columns) for one in rows),
        source_widest_row=work.widest_row if work.rows is None else work.rows.widest_row,
        state_rows=work.learnt_rows,
    )


def _time_bytes(task: SummarizeTask | ApplyTask) -> int:
    time = task.schema.time
    return 0 if time is None else task.source.decoded_bytes((time,))


def _packed(
    tasks: Sequence[Task], works: Sequence[Sequence[Work]], executor: Executor, planned: bool
) -> Packed[Task]:
    # An earlier step of the same build may have just freed what was room when it was planned.
    room = executor.room_for(max((one.whole_bytes for verbs in works for one in verbs), default=0))
    found = [
        (task, verbs, load)
        for task, verbs in zip(tasks, works, strict=True)
        for load in loads(verbs, room, executor.workers)
    ]
    parts = [(task, load) for task, _, load in found]
    # What was planned may need more by now, with states that were not known then.
    if room is not None and any(load.bytes > room + DRIFT * planned for _, load in parts):
        task, load = max(parts, key=lambda part: part[1].bytes)
        what = ", ".join(_names(task, load))
        require_each(what, [load.bytes], [task.source.partition], executor, _LESS)
    cuts = _cut([part for part in parts if part[1].limits is not None], executor)
    return Packed(
        tuple(
            _part(task, load, verbs, cuts.get((id(task), load.verbs)))
            for task, verbs, load in found
        ),
        tuple(load.bytes for _, load in parts),
    )


def _part(task: Task, load: Load, verbs: Sequence[Work], rows: tuple[Rows, ...] | None) -> Task:
    if isinstance(task, ApplyTask):
        work: Any = tuple(
            replace(task.work[one], slices=rows, sifts=verbs[one].sifts(load.limits))
            for one in load.verbs
        )
    else:
        work = tuple(replace(task.work[one], slices=rows) for one in load.verbs)
    part: Task = replace(task, work=work)
    return part


def _cut(
    parts: Sequence[tuple[SummarizeTask | ApplyTask, Load]], executor: Executor
) -> dict[tuple[int, tuple[int, ...]], tuple[Rows, ...]]:
    """Return where partitions are cut that are processed in slices."""
    cuts, costs = [], []
    for task, load in parts:
        assert load.limits is not None
        what = ", ".join(_names(task, load))
        cuts.append(
            CutTask(
                task.url,
                task.source,
                task.schema,
                load.limits,
                what,
                load.bytes,
                executor.memory_limit or 0,
                executor.workers,
            )
        )
        costs.append(load.bytes)
    found = (
        executor.run(
            cut_partition,
            cuts,
            label="look where to cut",
            costs=costs,
            names=[one.source.partition for one in cuts],
        )
        if cuts
        else []
    )
    keys = [(id(task), load.verbs) for task, load in parts]
    return dict(zip(keys, found, strict=True))


def _names(task: SummarizeTask | ApplyTask, load: Load) -> list[str]:
    if isinstance(task, ApplyTask):
        return [name for one in load.verbs for name in task.work[one].feature.names]
    return [type(task.work[one].transformer).__name__ for one in load.verbs]
