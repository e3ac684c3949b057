"""Partitions too large for the memory limit, in slices: how many rows each may have, and what that costs.

A slice is a run of rows of one partition. By the three verbs a transformer's values are the same however
rows are cut, so a partition may be processed slice by slice where its ``slicing`` allows it: what was
written is gone before the next slice is read, and a prefix state is carried from slice to slice.

Always true: no slice has more rows, nor more bytes in any column of varying width, than its limits say,
whatever the partition looks like inside; so the projected cost of a slice does not rest on averages. Where
slices end is found by reading those columns once (``execution.cutting``). Only one row that is as wide as
the widest on record, or one time that must stay whole, cannot be cut; the limits leave room for the row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from featurestore.errors import InvalidInputError
from featurestore.plan.costs import (
    THREAD_BYTES,
    carrying_bytes,
    feature_bytes,
    lone_row_bytes,
    reading_bytes,
    sifting_bytes,
    slices_bytes,
    summary_work_bytes,
    with_counted,
)
from featurestore.schema import TableSchema
from featurestore.storage.group_writer import ROW_GROUP_BYTES, ROW_GROUP_ROWS
from featurestore.storage.records import PartitionEntry
from featurestore.storage.row_ranges import batch_bytes
from featurestore.storage.tensor_group import CHUNK_BYTES
from featurestore.transforms.base import (
    Scope,
    Slicing,
    SourceTransformer,
    Transformer,
    row_width,
)
from featurestore.transforms.extent import Extent

MOST_SLICES: Final = 10_000
"""Of one partition: each is a row group at least, and all of them are in the file's footer."""
_MOST_CARRIED: Final = 200
"""Where a tail is carried: it is put together anew for each slice, however small that is."""
_SLACK: Final = 1.25
"""How far a column of varying width may exceed its average before a slice ends early."""

_CARRIED: Final = (Scope.PREFIX, Scope.SUFFIX)
_COLUMN_TURNOVER: Final = 2 * 2**20
"""The most that a column's decoder and the encoder of what is made of it take."""


@dataclass(frozen=True, slots=True)
class SliceLimits:
    """What no slice of a partition exceeds.

    Parameters
    ----------
    rows : int
    column_bytes : mapping of str to int
        Bytes of each column of varying width, null marks not counted.
    whole_times : bool
        Whether a slice ends between two times only.

    Raises
    ------
    InvalidInputError
        If there is no row in a slice.
    """

    rows: int
    column_bytes: Mapping[str, int] = field(default_factory=dict)
    whole_times: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InvalidInputError(f"a slice cannot have {self.rows} rows", "give at least 1")


@dataclass(frozen=True, slots=True)
class Portions:
    """How one transformer processes a partition: all rows at once, or in slices.

    Parameters
    ----------
    bytes : int
        What a task that does nothing else needs at its peak.
    limits : SliceLimits, optional
        Of the slices; None for all rows at once.
    """

    bytes: int
    limits: SliceLimits | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One verb of one transformer on one partition, by itself.

    Parameters
    ----------
    transformer : Transformer
    schema : TableSchema
        Of the transformer's own table.
    reads : TableSchema
        Of the table whose partition is read: another one where a source transformer summarizes.
    extent : Extent
        Of the whole partition: the columns that the verb reads, and its widest row.
    time_bytes : int
        Of the time column, which is read where the verb reads no scalar.
    summarizes : bool
        Whether it summarizes; else it applies.
    cut : bool
        Whether it summarizes some of the rows only.
    one_time : bool
        Whether all rows of the partition have the same time.
    """

    transformer: Transformer
    schema: TableSchema
    reads: TableSchema
    extent: Extent
    time_bytes: int = 0
    summarizes: bool = False
    cut: bool = False
    one_time: bool = False

    def portions(self, room: int) -> Portions:
        """Return how it is processed within so many bytes; all at once if it does not fit at all.

        Slices are as large as fits. Where one holds a row group or more, its rows are a multiple of
        those of a row group, so that slices end where row groups do unless rows vary in width.
        """
        whole = self.whole_bytes
        if whole <= room:
            return Portions(whole)
        least = self._least_rows()
        if least is None or self.sliced(least).bytes > room:
            return Portions(whole)
        low, high = least, max(least, self.extent.rows)
        while high - low > max(1, low // 64):
            middle = (low + high) // 2
            low, high = (middle, high) if self.sliced(middle).bytes <= room else (low, middle)
        aligned = low - low % row_group_rows(self.extent)
        return self.sliced(aligned if aligned >= least else low)

    @property
    def whole_bytes(self) -> int:
        """What it needs for all rows at once."""
        return self._bytes(self.extent) + (self._lone_bytes if self.extent.rows == 1 else 0)

    @property
    def own_bytes(self) -> int:
        """What it needs for all rows at once, beside what it reads."""
        return self._own_bytes(self.extent) + (self._lone_bytes if self.extent.rows == 1 else 0)

    def of_a_part(self, share: float) -> Work:
        """Return the verb on a smaller partition, which has at most such a share of the rows and bytes.

        Where a state is carried, what the other parts leave in it comes on top: all of them may lie before.
        """
        extent, learnt, known = self.extent, self.extent.state_bytes, self.extent.state_rows
        if carries_state(self.transformer) and not self.summarizes:
            # Of a state that nobody knows how many rows it was learnt of, it stays so.
            known = known + extent.rows if known or not learnt else 0
            learnt += self.transformer.state_bytes(self.schema, extent)
        sizes = {}
        for name, size in extent.column_bytes.items():
            varies = name in self.reads and row_width(self.reads[name]) is None
            least = min(size, extent.widest_row) if varies else 0
            sizes[name] = max(least, math.ceil(size * share))
        part = replace(
            extent,
            rows=min(extent.rows, max(1, math.ceil(extent.rows * share))),
            column_bytes=sizes,
            state_bytes=learnt,
            state_rows=known,
            nulls={name: math.ceil(one * share) for name, one in extent.nulls.items()},
        )
        return replace(self, extent=part, time_bytes=math.ceil(self.time_bytes * share))

    @property
    def least(self) -> Portions:
        """How it needs the least: in the smallest slices, or all at once if it may not be cut."""
        rows, whole = self._least_rows(), Portions(self.whole_bytes)
        return whole if rows is None else min(whole, self.sliced(rows), key=lambda one: one.bytes)

    def sliced(self, rows: int) -> Portions:
        """Return what it needs in slices of at most so many rows.

        That is what the largest slice needs, and beside it: what goes on from slice to slice in
        allocators, decoders and encoders; the batch that is being decoded (as pages and as columns), rows of tensors that wait until their chunk is full, and the state that is
        carried from slice to slice, while it is combined with that of a slice.
        """
        transformer = self.transformer
        limits = slice_limits(transformer, self.reads, self.extent, rows)
        one = slice_extent(self.reads, self.extent, limits)
        needed = _turnover(self.extent) + self._lone_bytes  # a slice may be one row
        needed += 2 * batch_bytes(self.extent.widest_row, self.extent.column_bytes)
        if self.summarizes:
            carried = transformer.state_bytes(self.schema, self.extent)
            if transformer.scope in _CARRIED:
                own = transformer.state_bytes(self.schema, one)
                return Portions(needed + self._bytes(one) + carrying_bytes(carried, own), limits)
            # The slice's own is counted; the one so far, and both combined.
            return Portions(needed + self._bytes(one) + 2 * carried, limits)
        needed += slices_bytes(transformer.memory(self.schema, self.handed(one)))
        needed += sum(
            min(CHUNK_BYTES, (row_width(field) or 0) * self.extent.rows)
            for field in transformer.outputs(self.schema)
            if field.is_tensor
        )
        if carries_state(transformer):
            carried = transformer.state_bytes(self.schema, self.extent)
            own = transformer.state_bytes(self.schema, one)
            one = replace(one, state_bytes=one.state_bytes + carried)
            # Values are written by then.
            summarized = own + transformer.summarize_memory(self.schema, one)
            needed += max(summarized, carrying_bytes(one.state_bytes, own))
            return Portions(needed + self._bytes(one, carries=True), limits)
        return Portions(needed + self._bytes(one), limits)

    def handed(self, extent: Extent) -> Extent:
        """Return rows with the state that ``apply`` is handed for them: of a keyed one, what has their keys."""
        if self.summarizes or not self.transformer.is_keyed:
            return extent
        return self.transformer.handed(self.schema, extent)

    def sifts(self, limits: SliceLimits | None) -> bool:
        """Return whether of the state only what has the keys of the rows is read, in such slices."""
        if limits is None:
            return self.handed(self.extent).state_bytes < self.extent.state_bytes
        if carries_state(self.transformer):  # what is carried from slice to slice is of all keys
            return False
        one = slice_extent(self.reads, self.extent, limits)
        return self.handed(one).state_bytes < one.state_bytes

    def _least_rows(self) -> int | None:
        """Return the rows of the smallest slices; None if the partition may not be cut."""
        uncut = self.one_time and self.transformer.slicing is Slicing.TIMES
        least = None if uncut else least_rows(self.transformer, self.extent)
        if least is None or self.transformer.scope not in _CARRIED:
            return least
        return max(least, -(-self.extent.rows // _MOST_CARRIED))

    def _bytes(self, extent: Extent, *, carries: bool = False) -> int:
        share = -(-self.time_bytes * extent.rows // max(1, self.extent.rows))
        sizes = with_counted(self.reads, extent.column_bytes, share)
        read = reading_bytes(self.reads, sizes, extent.rows, extent.widest_row)
        return read + self._own_bytes(extent, carries=carries)

    @property
    def _lone_bytes(self) -> int:
        extent = self.extent
        return lone_row_bytes(self.reads, extent.column_bytes, extent.widest_row)

    def _own_bytes(self, extent: Extent, *, carries: bool = False) -> int:
        if self.summarizes:
            return summary_work_bytes(self.transformer, self.schema, extent, cut=self.cut)
        handed = extent if carries else self.handed(extent)
        sifting = 0
        if handed.state_bytes < extent.state_bytes:
            keys = self.transformer.inputs(self.schema)
            sifting = sifting_bytes(extent.rows, extent.bytes_of(keys))
        return feature_bytes(self.transformer, self.schema, handed) + sifting


def _turnover(extent: Extent) -> int:
    """Return what many slices in a row keep in use, however small they are, beyond any task's thread."""
    columns = sum(min(_COLUMN_TURNOVER, size) for size in extent.column_bytes.values())
    return max(0, columns - THREAD_BYTES)


def slice_limits(
    transformer: Transformer, schema: TableSchema, extent: Extent, rows: int
) -> SliceLimits:
    """Return the limits of slices of at most so many rows for one transformer."""
    return row_limits(schema, extent, rows, transformer.slicing is Slicing.TIMES)


def row_limits(schema: TableSchema, extent: Extent, rows: int, whole_times: bool) -> SliceLimits:
    """Return the limits of slices of at most so many rows.

    A column of varying width may have a quarter more than its average in so many rows, and always as
    much as the widest row on record.

    Parameters
    ----------
    schema : TableSchema
        Of the table that is read.
    extent : Extent
        Of the whole partition: the columns that are read, and the widest row.
    rows : int
    whole_times : bool
        Whether they may end between two times only.
    """
    rows = max(1, min(rows, extent.rows))
    varying = {
        name: size
        for name, size in extent.column_bytes.items()
        if name in schema and row_width(schema[name]) is None
    }
    widest = _widest_of(varying, schema, extent)
    share = _SLACK * rows / max(1, extent.rows)
    most = {name: max(widest, math.ceil(share * size)) for name, size in varying.items()}
    # All rows at once cannot exceed what they have.
    return SliceLimits(rows, most if rows < extent.rows else {}, whole_times)


def slice_extent(schema: TableSchema, extent: Extent, limits: SliceLimits) -> Extent:
    """Return the largest slice: the most rows and bytes that a verb is handed at once."""
    rows = min(limits.rows, extent.rows)
    if rows == extent.rows:
        return extent
    sizes = {}
    for name, size in extent.column_bytes.items():
        if name in limits.column_bytes:
            # Null marks, which limits do not count: a bit per row, and per element of a list.
            most = limits.column_bytes[name]
            marks = rows // 8 + 1 + (most // 8 if pa.types.is_list(schema[name].type) else 0)
            sizes[name] = min(size, most + marks)
        else:
            sizes[name] = math.ceil(size * rows / extent.rows) + 1
    return replace(extent, rows=rows, column_bytes=sizes)


def carries_state(transformer: Transformer) -> bool:
    """Return whether a slice needs the state of the slices before it, or of those behind it."""
    return transformer.scope in _CARRIED and not isinstance(transformer, SourceTransformer)


def least_rows(transformer: Transformer, extent: Extent) -> int | None:
    """Return the rows of the smallest slices that a partition may be cut into; None if it may not."""
    if transformer.slicing is Slicing.NONE or extent.rows == 0:
        return None
    return max(1, -(-extent.rows // MOST_SLICES))


def is_one_time(entry: PartitionEntry) -> bool:
    """Return whether all rows of a partition are known to have the same time."""
    return entry.time_min is not None and entry.time_min == entry.time_max


def row_group_rows(extent: Extent) -> int:
    """Return how many rows a row group has, if the columns are all that its file holds."""
    row_bytes = max(1, extent.input_bytes // max(1, extent.rows))
    return max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // row_bytes))


def _widest_of(varying: Mapping[str, int], schema: TableSchema, extent: Extent) -> int:
    """Return the most bytes that one row's value of a column of varying width can take.

    The widest row on record is that of whole files, so columns of fixed width have their part in it.
    """
    fixed = sum(
        # Without the null mark, which is not counted in a row's bytes.
        (row_width(schema[name]) or 0) - (not schema[name].is_tensor)
        for name in extent.column_bytes
        if name in schema and name not in varying
    )
    return min(max(0, extent.widest_row - fixed) + 4, max(varying.values(), default=0))
