"""Writing one partition of a dataset part to where its rows lie, in a pack's files or in memory.

Always true: memory holds one partition, or one slice of it where it does not fit, and beside it one
chunk that is being dealt; what is written of a partition is the same whichever slices it comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from featurestore.allocators import release_freed
from featurestore.dataset.batch import Batch, DatasetPart, DatasetSchema, HostArray
from featurestore.errors import SchemaError
from training.loading.arrangement import Arrangement, Chunk, Stripe
from training.loading.layout import ArrayLayout, arrays_of
from training.loading.list_values import gathered, spans_of

Arrays = Mapping[str, HostArray]


class RowTarget(Protocol):
    """Where rows of a part go, numbered as they lie in its pack; safe from several threads."""

    def write(self, start: int, arrays: Arrays) -> None:
        """Take rows of all arrays, the first of them as row ``start``."""

    def deal(self, chunk: Chunk, arrays: Arrays) -> None:
        """Take a chunk's rows, which are in the order in which it deals them."""


class ListTarget(Protocol):
    """Where items of columns of lists go; safe from several threads."""

    def append(self, key: str, values: HostArray) -> int:
        """Take items; return where the first is among all."""


class PartitionWriter:
    """Writes the rows of partitions; safe from several threads, each for partitions of its own.

    Parameters
    ----------
    part : DatasetPart
    arrangement : Arrangement
    layout : mapping of str to ArrayLayout
    target : RowTarget
    within : int
        Bytes that a slice of a partition may take.
    lists : ListTarget, optional
        Needed where columns are lists.
    """

    def __init__(
        self,
        part: DatasetPart,
        arrangement: Arrangement,
        layout: Mapping[str, ArrayLayout],
        target: RowTarget,
        within: int,
        lists: ListTarget | None = None,
    ) -> None:
        self._lists = lists
        self._part = part
        self._arrangement = arrangement
        self._layout = layout
        self._target = target
        self._within = within

    def write(
        self,
        stripe: Stripe,
        partition: int,
        wanted: Callable[[], bool],
        wrote: Callable[[int], None],
    ) -> bool:
        """Write the rows of a partition, and tell ``wrote`` how many after each slice.

        Returns whether all were written: ``wanted`` is asked before each slice.

        Raises
        ------
        SchemaError
            If an array is not of the dtype or shape that the part's schema says, or rows are missing.
        """
        expected = self._arrangement.partition_rows[partition]
        place = self._dealer(stripe, partition) if self._arrangement.mixed else None
        done = 0
        for batch in self._part.slices(partition, self._within):
            if not wanted():
                return False
            arrays, rows = _checked(batch, self._part.schema, self._layout), batch.rows
            items = {key: one.values for key, one in batch.lists.items()}
            if done + rows <= expected:
                if place is None:
                    arrays |= placed(self._lists, items, arrays)
                    self._target.write(stripe.start + done, arrays)
                else:
                    place.add(arrays, rows, items)
            done += rows
            wrote(rows)
            # Each library's allocator keeps what it freed, which the others cannot use.
            del batch, arrays, items
            release_freed()
        if done != expected:
            raise SchemaError(
                f"partition {partition} of a dataset part gave {done} rows instead of {expected}"
            )
        return True

    def _dealer(self, stripe: Stripe, partition: int) -> _Dealer:
        chunks = self._arrangement.chunks(stripe, partition)
        return _Dealer(self._target, chunks, self._layout, self._lists)


class _Dealer:
    """Collects rows until they are a chunk, which is then dealt."""

    def __init__(
        self,
        target: RowTarget,
        chunks: Iterator[Chunk],
        layout: Mapping[str, ArrayLayout],
        lists: ListTarget | None,
    ) -> None:
        self._lists = lists
        self._target = target
        self._chunks = chunks
        self._layout = layout
        self._chunk: Chunk | None = None
        self._held: dict[str, HostArray] = {}
        self._dealt: dict[str, HostArray] = {}
        self._count = 0

    def add(self, arrays: Arrays, rows: int, items: Arrays) -> None:
        """Take rows that follow those given before; spans of lists are of ``items``."""
        start = 0
        while start < rows:
            chunk = self._chunk = self._chunk or next(self._chunks)
            count = min(chunk.rows - self._count, rows - start)
            taken = {key: one[start : start + count] for key, one in arrays.items()}
            start += count
            if count == chunk.rows:
                self._deal(chunk, taken, items)
                continue
            self._keep(chunk, {**taken, **placed(self._lists, items, taken)}, count)
            if self._count == chunk.rows:
                self._deal(chunk, self._held, {})

    def _keep(self, chunk: Chunk, arrays: Arrays, count: int) -> None:
        """Copy what is not yet a whole chunk: its slice ends here."""
        self._held = self._held or self._buffers(chunk.rows)
        for key, held in self._held.items():
            held[self._count : self._count + count] = arrays[key]
        self._count += count

    def _deal(self, chunk: Chunk, arrays: Arrays, items: Arrays) -> None:
        # The first chunk is the largest. New memory for each would be paid for page by page.
        self._dealt = self._dealt or self._buffers(chunk.rows)
        for key, dealt in self._dealt.items():
            # Its numbers are right; with "raise" NumPy would fill a second buffer first.
            np.take(arrays[key][: chunk.rows], chunk.order, 0, dealt[: chunk.rows], mode="clip")
        # Items go as their rows do: those of a run lie together.
        dealt_spans = {key: self._dealt[key][: chunk.rows] for key in items}
        for key, spans in placed(self._lists, items, dealt_spans).items():
            self._dealt[key][: chunk.rows] = spans
        self._target.deal(chunk, self._dealt)
        self._chunk, self._count = None, 0

    def _buffers(self, rows: int) -> dict[str, HostArray]:
        return {
            key: np.empty((rows, *one.row_shape), one.element) for key, one in self._layout.items()
        }


def placed(lists: ListTarget | None, items: Arrays, arrays: Arrays) -> dict[str, HostArray]:
    """Write the items of some rows in the order of the rows; return their spans there.

    Parameters
    ----------
    lists : ListTarget, optional
    items : mapping of str to array
    arrays : mapping of str to array
        The spans among ``items``, under the same names.
    """
    found = {}
    for key, values in items.items():
        assert lists is not None, "a loader refuses lists where nothing takes them"
        one = gathered(values, arrays[key][:, 0], arrays[key][:, 1], own=False)
        found[key] = spans_of(one.offsets, lists.append(key, one.values))
    return found


def _checked(
    batch: Batch, schema: DatasetSchema, layout: Mapping[str, ArrayLayout]
) -> dict[str, HostArray]:
    """Return a slice's arrays as the pack stores them, after checking what they are."""
    spans = {key: spans_of(one.offsets) for key, one in batch.lists.items()}
    found: dict[str, Any] = {**arrays_of(batch, schema), **spans}
    if set(found) != set(layout):
        raise SchemaError(
            f"a dataset part gave arrays {sorted(found)} where its schema says {sorted(layout)}"
        )
    arrays = {}
    for key, one in layout.items():
        value = found[key]
        if value.shape != (batch.rows, *one.row_shape) or value.dtype.name != one.dtype:
            raise SchemaError(
                f"array {key or 'label'!r} of a dataset part is {value.dtype.name} "
                f"{list(value.shape)} where its schema says "
                f"{one.dtype} {[batch.rows, *one.row_shape]}"
            )
        arrays[key] = np.ascontiguousarray(value, dtype=one.element)
    for told in schema.ragged:
        if (seen := batch.lists[told.name].values.dtype.name) != told.dtype:
            raise SchemaError(
                f"lists {told.name!r} of a dataset part have {seen} items where its schema says "
                f"{told.dtype}"
            )
    return arrays
