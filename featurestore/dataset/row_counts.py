"""How many rows of each partition a part has, told without reading where that is certain.

What must be looked at is counted once, where the data is; the store keeps the count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from featurestore.dataset.selection import Selection
from featurestore.dataset.view import ReadTask, TableView
from featurestore.execution.room import Need
from featurestore.execution.task_costs import reading_cost
from featurestore.execution.tasks import with_row_count
from featurestore.fingerprint import fingerprint
from featurestore.storage.states import StateStore

COUNTING_BYTES: Final = 32
"""Of each row, to tell whether it is selected: a hash of its key or a condition, and the mask."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a part has of one partition: its position in the table, and which rows, how many."""

    position: int
    selection: Selection
    rows: int


@dataclass(frozen=True, slots=True)
class CountTask:
    """Count the selected rows of one partition."""

    source: ReadTask
    columns: tuple[str, ...]
    selection: Selection


def count_rows(task: CountTask) -> int:
    """Return how many rows of a partition are selected. Runs where the data is."""
    engine = task.source.engine
    return int(task.selection.mask(task.source.read(task.columns), engine).sum())


def counted_rows(view: TableView, name: str, parts: Sequence[tuple[int, Selection]]) -> list[int]:
    """Return how many rows are selected of partitions that must be looked at.

    The counts are kept in the store under what they depend on, so that the next process that
    opens the same part looks at nothing.
    """
    states = StateStore(view.store)
    if not parts:
        return []
    key = fingerprint(
        "selected rows",
        [
            [within.fingerprint, view.partitions[i].provenance(within.columns(view.schema))]
            for i, within in parts
        ],
    )
    kept = states.get(key)
    if kept is not None:
        return [int(count) for count in kept["rows"]["rows"].to_pylist()]
    tasks = [
        CountTask(view.task(i), with_row_count(within.columns(view.schema), view.schema), within)
        for i, within in parts
    ]
    needs = [
        Need(
            f"counting rows of {name}",
            reading_cost(task.source.source, task.columns, view.schema)
            + COUNTING_BYTES * task.source.source.rows,
            task.source.source.partition,
        )
        for task in tasks
    ]
    counts = view.run(count_rows, tasks, label=f"count rows of {name}", needs=needs)
    states.put(key, {"rows": pa.table({"rows": pa.array(counts, pa.int64())})})
    return counts
