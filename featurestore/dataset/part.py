"""One part of a dataset: the rows a model trains on, or is tuned or judged on.

Nothing is read before it is needed. Counting rows reads only the columns that decide which rows are
in, and only where a boundary cuts a partition or a condition or hash concerns it; arrays are made
one partition at a time.

Always true: rows come in table order; rows, values and digest do not change with commits that do not
touch these columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.dataset.assembly import ASSEMBLY_VERSION, to_batch
from featurestore.dataset.batch import Batch, DatasetSchema, HostArray
from featurestore.dataset.learned import LearnedColumns
from featurestore.dataset.memory import (
    array_needs,
    kept_of,
    pipeline_bytes,
    slice_limits,
    sliced_bytes,
    widest_list,
)
from featurestore.dataset.row_counts import COUNTING_BYTES, Piece, counted_rows
from featurestore.dataset.selection import Selection, cut, keep
from featurestore.dataset.view import TableView
from featurestore.engines.hashing import hash_columns
from featurestore.engines.protocol import Array
from featurestore.errors import DefinitionError, InvalidInputError
from featurestore.execution.collecting import check_kind, convert, empty_table
from featurestore.execution.cutting import CutTask, Rows
from featurestore.execution.cutting import slices as cut_slices
from featurestore.execution.room import Need
from featurestore.execution.sites import settled_bytes
from featurestore.execution.task_costs import read_extent, reading_cost
from featurestore.execution.tasks import with_row_count
from featurestore.fingerprint import fingerprint
from featurestore.plan.slicing import SliceLimits
from featurestore.transforms.base import Partition
from featurestore.transforms.extent import Extent
from featurestore.transforms.frames import to_arrow

_COPIES: Final = {"pandas": 2}
"""How often the values exist at once while they are converted; once for all other kinds."""


class Part:
    """The rows of a dataset that belong to one part of its split; see :class:`Dataset`.

    Implements ``DatasetPart``, what loaders read from.
    """

    def __init__(
        self, learned: LearnedColumns, view: TableView, name: str, selection: Selection
    ) -> None:
        self._learned = learned
        self._view = view
        self._name = name
        self._selection = selection

    @property
    def name(self) -> str:
        """``"train"``, ``"valid"``, ``"test"`` or ``"all"``."""
        return self._name

    @property
    def selection(self) -> Selection:
        """Which rows belong to it."""
        return self._selection

    @property
    def schema(self) -> DatasetSchema:
        """The columns, after the pipeline; fits it on first use."""
        return self._learned.schema

    @property
    def snapshot_id(self) -> str:
        """The snapshot the values come from."""
        return self._view.snapshot.id

    @property
    def rows(self) -> int:
        """Number of selected rows."""
        return sum(self.partition_rows)

    @property
    def partition_rows(self) -> tuple[int, ...]:
        """Selected rows of each partition that has any, in table order."""
        return tuple(one.rows for one in self._pieces)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the values this part gives, in order.

        It covers columns, rows and the fitted pipeline, by what they were computed from; not the
        snapshot, so that it outlives commits that do not touch them.
        """
        view, columns = self._view, self._learned.columns
        sources = [
            [
                view.partitions[i].provenance(columns.reads),
                "all" if within.everything else within.fingerprint,
                view.partitions[i].provenance(within.columns(view.schema)),
            ]
            for i, within in view.touching(self._selection)
        ]
        return fingerprint(
            "part", ASSEMBLY_VERSION, list(columns.model), columns.label,
            self._learned.pipeline.fingerprint, self.schema.to_json(), sources,
        )  # fmt: skip

    @property
    def memory_limit(self) -> int:
        """Bytes that reading it may take: of the store's handle that the dataset was made from."""
        return self._view.memory_limit

    @property
    def reserved_bytes(self) -> int:
        """Bytes that this process holds before rows are read, with all loaded that reading needs.

        Where a partition does not fit beside them, this waits for what learning freed to go back.
        """
        needs = [self._needs(one)(self._extent(one)) for one in self._pieces]
        left = self._view.memory_limit - max(needs, default=0)
        return settled_bytes(self._view.engine_name, left)

    @property
    def workers(self) -> int:
        """How many partitions are read at once at most: as many as the store's work runs tasks."""
        return self._view.executor.workers

    def arrays(self, partition: int) -> Batch:
        """Return all selected rows of one partition, as the arrays a model is fed.

        Parameters
        ----------
        partition : int
            From 0 to ``len(partition_rows) - 1``.

        Raises
        ------
        InvalidInputError
            For another number.
        DefinitionError
            If the label is null in selected rows.
        """
        return to_batch(self.frame(partition), self.schema, self._view.engine)

    def memory(self, partition: int, within: int) -> int:
        """Return the bytes that reading one partition takes at its peak, its arrays included.

        Said from what was recorded when it was written; nothing is read.

        Parameters
        ----------
        partition : int
        within : int
            Bytes that :meth:`slices` would be given. The result is more if no slice is that small.
        """
        piece = self._piece(partition)
        table, extent = self._view.schema, self._extent(piece)
        return sliced_bytes(table, extent, self._limits(piece, within), self._needs(piece))

    def list_items(self, partition: int, column: str) -> tuple[int, int]:
        """Return how many items one list of a column has at most, and all of a partition together.

        Said from what was recorded when they were written, so both may be more than there are: rows that
        are not selected count, and texts and lists that were written with them count as items of the
        widest row. Nothing is read.

        Parameters
        ----------
        partition : int
        column : str
            An input of lists of any length.
        """
        piece, columns = self._piece(partition), self._learned.columns
        extent, calls = self._extent(piece), self._learned.calls()
        size = max(1, columns.outputs[column].type.value_type.bit_width // 8)
        total = pipeline_bytes(calls, extent).columns[column] // size
        made = {out.name for one in calls for out in one.transformer.outputs(one.before)}
        for group, entry in self._view.partitions[piece.position].groups:
            if column in group.names and column not in made:
                widest = widest_list(group.fields, column, entry.widest_row)
                return min(total, widest // size), total
        return total, total  # of what a step makes, only all rows together are known

    def slices(self, partition: int, within: int) -> Iterator[Batch]:
        """Yield what :meth:`arrays` returns, in as few slices as take at most ``within`` bytes.

        Slices follow the order of the table; some may have no rows. See :meth:`memory`.

        Raises
        ------
        DefinitionError
            If the label is null in selected rows.
        MemoryLimitError
            If the rows of one time, which the pipeline wants together, do not fit.
        """
        piece, view = self._piece(partition), self._view
        limits = self._limits(piece, within)
        if limits is None:
            yield to_batch(self._frame(piece), self.schema, view.engine)
            return
        source, what = view.partitions[piece.position], f"part {self._name!r}"
        # A larger limit gives each of those who share it as much more.
        shares = max(1, (view.memory_limit - view.reserved_bytes) // max(1, within))
        needed = self.memory(partition, within)
        task = CutTask(
            view.store.url, source, view.schema, limits, what, needed, view.memory_limit, shares
        )
        for rows in cut_slices(view.store, task):
            yield to_batch(self._frame(piece, rows), self.schema, view.engine)

    def entities(self, partition: int, by: Sequence[str] | None = None) -> HostArray:
        """Return a hash of each selected row's entity, in table order.

        Parameters
        ----------
        partition : int
        by : sequence of str, optional
            Columns of the table that tell entities apart; its key if not given.

        Returns
        -------
        uint64 array [rows]
            All 0 without such columns. Of a million entities two are alike once in 30 million tables.

        Raises
        ------
        NotFoundError
            If the table lacks a column.
        MemoryLimitError
            Before anything is read, if a partition does not fit the memory limit.
        """
        view = self._view
        names = view.schema.key if by is None else tuple(by)
        kept = self._columns(self._piece(partition), names, "entities")
        if not names:
            return np.zeros(kept.rows, dtype=np.uint64)
        return view.engine.to_host(hash_columns(view.engine, kept.frame, names))

    def numbers(self, partition: int, column: str) -> HostArray:
        """Return the values of a column of the table in each selected row, in table order.

        Parameters
        ----------
        partition : int
        column : str
            A numeric one, of the features or not; as it is before the pipeline.

        Returns
        -------
        float64 array [rows]
            NaN where the value is null; booleans are 0 and 1.

        Raises
        ------
        NotFoundError
            If the table lacks the column.
        DefinitionError
            If it is not numeric.
        MemoryLimitError
            Before anything is read, if a partition does not fit the memory limit.
        """
        engine = self._view.engine
        field = self._view.schema[column]
        if not field.is_numeric:
            raise DefinitionError(
                f"column {column!r} is of type {field.type}, not a number",
                "name a numeric column, or make one with fs.Expression",
            )
        kept = self._columns(self._piece(partition), (column,), f"column {column!r}")
        values, valid = engine.values(kept.frame[column])
        numbers = engine.to_host(values).astype(np.float64)
        numbers[~engine.to_host(valid)] = np.nan
        return numbers

    def times(self, partition: int) -> HostArray:
        """Return the event time of each selected row, in steps of the time column, in table order.

        Returns
        -------
        int64 array [rows]

        Raises
        ------
        DefinitionError
            If the table has no time column.
        MemoryLimitError
            Before anything is read, if a partition does not fit the memory limit.
        """
        engine, name = self._view.engine, self._view.schema.time
        if name is None:
            raise DefinitionError("the table has no time column", "ingest it with time=")
        kept = self._columns(self._piece(partition), (name,), f"column {name!r}")
        return engine.to_host(engine.values(kept.frame[name])[0]).astype(np.int64)

    def _columns(self, piece: Piece, names: Sequence[str], what: str) -> Partition:
        """Return the selected rows of some columns as they are in the table."""
        view = self._view
        for one in names:
            if view.schema[one].is_tensor:  # refuses what is no column, too
                raise DefinitionError(
                    f"column {one!r} holds tensors; {what} are told by scalars",
                    "name another column",
                )
        wanted = with_row_count((*names, *piece.selection.columns(view.schema)), view.schema)
        source = view.partitions[piece.position]
        need = reading_cost(source, wanted, view.schema) + COUNTING_BYTES * source.rows
        view.require_room(Need(f"{what} of part {self._name!r}", need), "name fewer columns")
        read = view.read(piece.position, wanted)
        return keep(read, piece.selection.mask(read, view.engine), view.engine)

    def frame(self, partition: int) -> Partition:
        """Return all selected rows of one partition after the pipeline, as a frame and tensors.

        Raises
        ------
        InvalidInputError
            If ``partition`` is not from 0 to ``len(partition_rows) - 1``.
        MemoryLimitError
            Before anything is read, if a partition does not fit the memory limit.
        """
        piece = self._piece(partition)
        need = Need(f"part {self._name!r}", self._needs(piece)(self._extent(piece)))
        self._view.require_room(need, "name fewer features")
        return self._frame(piece)

    def _frame(self, piece: Piece, rows: Rows | None = None) -> Partition:
        engine = self._view.engine
        # What was read is let go of where nothing but the result of the next line needs it.
        after, mask = self._transformed(piece, rows)
        names = [one for one in self._learned.columns.names if not after.schema[one].is_tensor]
        tensors = {
            one: after.tensors[one] for one in self._learned.columns.names if one in after.tensors
        }
        # Rows are taken before columns: a part of tensors only still needs a column to count by.
        out = keep(Partition(after.frame, after.schema, tensors), mask, engine)
        return Partition(out.frame.select(names), out.schema, out.tensors)

    def _transformed(self, piece: Piece, rows: Rows | None) -> tuple[Partition, Array | None]:
        view = self._view
        read = view.read(piece.position, self._wanted(piece), rows)
        kept, mask = cut(read, piece.selection, view.engine)
        del read
        return self._learned.transform(kept, self._selection), mask

    def frames(self) -> Iterator[Partition]:
        """Yield the processed rows, one partition at a time."""
        for partition in range(len(self._pieces)):
            yield self.frame(partition)

    def read(self, as_: str = "polars") -> Any:
        """Return features and label after the pipeline, in memory.

        Parameters
        ----------
        as_ : {"polars", "pandas", "arrow", "narwhals", "cudf"}
            Tensor columns come as (nested) fixed-size lists.

        Raises
        ------
        MemoryLimitError
            Before anything is read, if the values would exceed the memory limit.
        """
        check_kind(as_)
        self._require_memory(_COPIES.get(as_, 1))
        engine = self._view.engine
        tables = [to_arrow(one, self._learned.columns.names, engine) for one in self.frames()]
        schema = self._learned.columns.outputs
        return convert(
            pa.concat_tables(tables)
            if tables
            else empty_table(schema, self._learned.columns.names),
            as_,
        )

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"<part {self._name!r} of {self._learned.name}>"

    # --- memory ----------------------------------------------------------------------------------------

    def _limits(self, piece: Piece, within: int) -> SliceLimits | None:
        steps = self._learned.columns.pipeline.steps
        return slice_limits(
            self._view.schema, self._extent(piece), steps, self._needs(piece), within
        )

    def _extent(self, piece: Piece) -> Extent:
        return read_extent(self._view.partitions[piece.position], self._wanted(piece))

    def _needs(self, piece: Piece) -> Callable[[Extent], int]:
        """Return what tells the bytes that making arrays of some rows of a partition takes."""
        view, names = self._view, self._learned.columns.names
        return array_needs(
            view.schema,
            kept_of(piece.selection, piece.rows),
            self._learned.calls(),
            names,
            self.schema,
            view.partitions[piece.position].rows,
        )

    def _piece(self, partition: int) -> Piece:
        if not 0 <= partition < len(self._pieces):
            raise InvalidInputError(
                f"part {self._name!r} has {len(self._pieces)} partitions with rows, not one of "
                f"number {partition}",
                "count from 0",
            )
        return self._pieces[partition]

    def _wanted(self, piece: Piece) -> tuple[str, ...]:
        """Return what is read of a partition."""
        schema = self._view.schema
        return with_row_count(
            (*self._learned.columns.reads, *piece.selection.columns(schema)), schema
        )

    @cached_property
    def _pieces(self) -> tuple[Piece, ...]:
        view = self._view
        parts = view.touching(self._selection)
        unsure = [(i, within) for i, within in parts if not within.everything]
        rows = counted_rows(view, self._name, unsure)
        counted = dict(zip((i for i, _ in unsure), rows, strict=True))
        rows = [counted.get(i, view.partitions[i].rows) for i, _ in parts]
        return tuple(
            Piece(i, within, count) for (i, within), count in zip(parts, rows, strict=True) if count
        )

    def _require_memory(self, copies: int) -> None:
        """Refuse to hold all rows after the pipeline, and one partition while it is made."""
        columns = self._learned.columns
        making = (self._needs(one)(self._extent(one)) for one in self._pieces)
        lists = sum(
            pipeline_bytes(self._learned.calls(), self._extent(one)).columns[name]
            for one in self._pieces
            for name in columns.lists
        )
        need = copies * (self.rows * columns.row_bytes + lists) + max(making, default=0)
        self._view.require_room(
            Need(f"reading part {self._name!r}", need), "iterate over frames(), name fewer features"
        )
