"""Where partitions end: sorted runs cut into tables of about the wanted size.

The cut depends on the rows alone (their order and widths), not on runs, batches, files or the
sample. Time groups are whole: a group belongs to the partition in whose share its middle lies, so
that partitions differ from the target by at most about the groups at their ends, and there is no
tiny last one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.ingest.event_time import time_values
from featurestore.ingest.widths import row_widths
from featurestore.schema import TableSchema


def cut(
    runs: Iterable[pa.Table], schema: TableSchema, total: int, target: int
) -> Generator[pa.Table, None, None]:
    """Yield partitions.

    Parameters
    ----------
    runs : iterable of pyarrow.Table
        In order; of a table with time, sorted and with whole time groups.
    schema : TableSchema
    total : int
        Decoded bytes of all runs together (more is allowed: rows may have been dropped).
    target : int
        Decoded bytes of a partition.

    Examples
    --------
    >>> from featurestore.schema import Field
    >>> schema = TableSchema((Field("t", pa.int64()),), time="t")
    >>> rows = pa.table({"t": [1, 1, 1, 2, 3, 4]})
    >>> [part.column("t").to_pylist() for part in cut([rows], schema, 48, 24)]
    [[1, 1, 1], [2, 3, 4]]
    """
    share = total / max(1, round(total / target))
    pending: list[pa.Table] = []
    before, current = 0, 0
    source: Any = closing(runs) if hasattr(runs, "close") else nullcontext()
    with source:
        for run in runs:
            starts, numbers, size = _numbered(run, schema, before, share)
            before += size
            # Rows at which another partition begins.
            changes = np.flatnonzero(
                np.concatenate([[numbers[0] != current], np.diff(numbers) != 0])
            )
            position = 0
            for change in changes:
                row = int(starts[change])
                if row > position:
                    pending.append(run.slice(position, row - position))
                if pending:
                    yield pa.concat_tables(pending)
                pending, position, current = [], row, int(numbers[change])
            pending.append(run.slice(position))
            current = int(numbers[-1])
    if pending:
        yield pa.concat_tables(pending)


def _numbered(
    run: pa.Table, schema: TableSchema, before: int, share: float
) -> tuple[Any, Any, int]:
    """Return the first row of each group, the number of its partition, and the run's bytes."""
    widths = row_widths(run, schema)
    if schema.time is None:
        starts = np.arange(run.num_rows)
    else:
        times = time_values(run.column(schema.time))
        starts = np.concatenate([[0], np.flatnonzero(times[1:] != times[:-1]) + 1])
    groups = np.add.reduceat(widths, starts)
    middles = before + np.cumsum(groups) - groups / 2
    return starts, (middles // share).astype(np.int64), int(widths.sum())
