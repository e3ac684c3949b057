"""What rows of a dataset take in memory, said from metadata before anything is read.

Two tasks: making arrays of a partition, and learning from it. Sizes are Arrow bytes as recorded when
the columns were written, and what the pipeline's transformers say of themselves; terms add up as in
``plan.costs``. Where all rows of a partition do not fit, the task goes through it slice by slice, if
every transformer allows that.

Trade-off: a selection is taken to keep the widest rows, and of a slice as many as it may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from featurestore.dataset.assembly import COLUMNS_AT_ONCE
from featurestore.dataset.batch import DatasetSchema, Role
from featurestore.dataset.selection import Selection
from featurestore.plan.costs import (
    THREAD_BYTES,
    keeping_bytes,
    lone_row_bytes,
    reading_bytes,
    slices_bytes,
)
from featurestore.plan.slicing import MOST_SLICES, SliceLimits, row_limits, slice_extent
from featurestore.schema import Field, TableSchema
from featurestore.storage.row_ranges import batch_bytes
from featurestore.transforms.base import Slicing, State, Transformer, row_width
from featurestore.transforms.extent import Extent

PACKING_BYTES: Final = 4 * 2**20 + THREAD_BYTES
"""Beside the partition that a pack is written of: files, hashes, Python's objects; and as beside any task."""

_VALUE_BYTES = 9
"""A column as an array of its own: at most eight bytes a value, and whether it is valid."""

_OFFSET = 4

_LIST_COPIES = 2
"""How often lists exist as items while arrays of them are made: as the engine gives them, and as arrays."""

_LIST_BYTES = 24
"""Of each row of a column of lists while arrays are made: how many items it has, twice, and its offset."""

_CHOOSING_BYTES = 32
"""Of each row, to tell whether it is selected: a hash of its key, or a condition, and the mask."""


@dataclass(frozen=True, slots=True)
class StepCall:
    """One transformer at its place in a pipeline, and how much it learnt.

    Parameters
    ----------
    transformer : Transformer
    before : TableSchema
    state_bytes : int
        Arrow bytes of its state.
    state_rows : int
        The most rows of a table of its state; 0 if nobody knows.
    """

    transformer: Transformer
    before: TableSchema
    state_bytes: int = 0
    state_rows: int = 0

    @classmethod
    def of(cls, transformer: Transformer, before: TableSchema, state: State | None) -> StepCall:
        """Return the step with the sizes of what it learnt."""
        tables = [] if state is None else list(state.values())
        rows = max((one.num_rows for one in tables), default=0)
        return cls(transformer, before, sum(one.nbytes for one in tables), rows)


@dataclass(frozen=True, slots=True)
class PipelineBytes:
    """What applying steps to some rows takes.

    Parameters
    ----------
    working : int
        The most that one step needs beside inputs, state and outputs.
    outputs : int
        What all steps give together: replaced columns are held as long as the input is.
    columns : mapping of str to int
        Bytes of each column afterwards.
    """

    working: int
    outputs: int
    columns: Mapping[str, int]


def pipeline_bytes(steps: Sequence[StepCall], extent: Extent) -> PipelineBytes:
    """Return what applying steps, one after the other, to columns takes."""
    sizes = dict(extent.column_bytes)
    working = made = 0
    for one in steps:
        seen = _seen(one, sizes, extent, one.transformer.inputs(one.before))
        working = max(working, one.transformer.memory(one.before, seen))
        outputs = one.transformer.output_bytes(one.before, seen)
        made += outputs
        sizes.update(_shares(one, outputs, extent.rows))
    return PipelineBytes(working, made, sizes)


@dataclass(frozen=True, slots=True)
class Kept:
    """Which of the rows that are read go on.

    Parameters
    ----------
    rows : int
        How many at most.
    cut : bool
        Whether some are taken away before the pipeline.
    masked : bool
        Whether some are taken away after it.
    """

    rows: int
    cut: bool = False
    masked: bool = False


def kept_of(selection: Selection, rows: int) -> Kept:
    """Return which rows of a partition a selection keeps, ``rows`` at most."""
    rest = replace(selection, hashed=None)
    return Kept(rows, not rest.everything, selection.hashed is not None)


def array_bytes(
    table: TableSchema,
    extent: Extent,
    kept: Kept,
    steps: Sequence[StepCall],
    model: Sequence[str],
    schema: DatasetSchema,
    *,
    sliced: bool = False,
) -> int:
    """Return what making arrays of some rows takes at its peak, the arrays included.

    Parameters
    ----------
    table : TableSchema
    extent : Extent
        What is read.
    kept : Kept
    steps : sequence of StepCall
        The pipeline.
    model : sequence of str
        The columns that arrays are made of.
    schema : DatasetSchema
        The arrays.
    sliced : bool
        Whether other rows of the partition come before or after them, one slice after the other.
    """
    seen, copied = _after_cut(table, extent, kept)
    after = pipeline_bytes(steps, seen)
    rows = min(extent.rows, kept.rows)
    lists = sum(after.columns[one.name] for one in schema.ragged)
    taken = 0
    if kept.masked:
        plain = sum(after.columns[one] for one in model) - lists
        taken = math.ceil(plain * rows / max(1, seen.rows)) + lists
    return (
        _reading(table, extent)
        + copied
        + after.outputs
        + after.working
        + taken
        + _making_bytes(schema, rows)
        + _LIST_COPIES * lists
        + (slices_bytes(after.working) if sliced else 0)
    )


def array_needs(
    table: TableSchema,
    kept: Kept,
    steps: Sequence[StepCall],
    model: Sequence[str],
    schema: DatasetSchema,
    whole: int,
) -> Callable[[Extent], int]:
    """Return what tells :func:`array_bytes` of some rows of a partition that has ``whole`` rows."""
    return lambda extent: array_bytes(
        table, extent, kept, steps, model, schema, sliced=extent.rows < whole
    )


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one step learns of some rows, after the steps before it."""

    step: StepCall
    columns: tuple[str, ...]


def learning_bytes(
    table: TableSchema,
    extent: Extent,
    kept: Kept,
    steps: Sequence[StepCall],
    lessons: Sequence[Lesson],
) -> int:
    """Return what summarising some rows for several steps takes, and keeping what was learnt.

    Parameters
    ----------
    table : TableSchema
    extent : Extent
        What is read.
    kept : Kept
    steps : sequence of StepCall
        Those that are applied on the way.
    lessons : sequence of Lesson
    """
    seen, copied = _after_cut(table, extent, kept)
    after = pipeline_bytes(steps, seen)
    # For each lesson the selected rows are taken of all columns there are.
    taken = sum(after.columns.values()) if kept.masked else 0
    work = 0
    for one in lessons:
        columns = _seen(one.step, after.columns, seen, one.columns)
        transformer, before = one.step.transformer, one.step.before
        state = transformer.state_bytes(before, columns)
        work = max(
            work,
            transformer.summarize_memory(before, columns)
            + keeping_bytes(state, columns.widest_row),
        )
    return _reading(table, extent) + copied + after.outputs + max(after.working, taken + work)


def widest_list(fields: Sequence[Field], column: str, widest_row: int) -> int:
    """Return the most bytes that the items of a list may take, of columns whose widest row is known.

    Examples
    --------
    >>> import pyarrow as pa
    >>> fields = [Field("tags", pa.list_(pa.int64())), Field("x", pa.float64()), Field("s", pa.string())]
    >>> widest_list(fields, "tags", 40)  # 4 for each offset and 8 for x
    24
    """
    least = [row_width(one) for one in fields if one.name != column and not one.is_tensor]
    # Recorded without null marks; of what varies, an offset.
    others = sum(_OFFSET if width is None else width - 1 for width in least)
    return max(0, widest_row - _OFFSET - others)


# --- slices ------------------------------------------------------------------------------------------


def slice_limits(
    table: TableSchema,
    extent: Extent,
    steps: Sequence[Transformer],
    needs: Callable[[Extent], int],
    within: int,
) -> SliceLimits | None:
    """Return how a partition is cut so that each slice takes at most ``within`` bytes.

    Parameters
    ----------
    table : TableSchema
    extent : Extent
        Of the whole partition.
    steps : sequence of Transformer
        Those that work on the slices.
    needs : callable
        Returns what rows of an extent take.
    within : int

    Returns
    -------
    SliceLimits, optional
        None where all rows at once fit, and where the partition cannot be cut; the smallest slices
        there are if these do not fit either.
    """
    slicings = {one.slicing for one in steps}
    if needs(extent) <= within or Slicing.NONE in slicings or not extent.rows:
        return None
    whole_times = Slicing.TIMES in slicings
    low, high = max(1, -(-extent.rows // MOST_SLICES)), extent.rows
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        limits = row_limits(table, extent, middle, whole_times)
        fits = sliced_bytes(table, extent, limits, needs) <= within
        low, high = (middle, high) if fits else (low, middle)
    return row_limits(table, extent, low, whole_times)


def sliced_bytes(
    table: TableSchema,
    extent: Extent,
    limits: SliceLimits | None,
    needs: Callable[[Extent], int],
) -> int:
    """Return what the largest slice takes, with the rows around it that are decoded to get at it."""
    if limits is None:
        return needs(extent)
    decoded = 2 * batch_bytes(extent.widest_row, extent.column_bytes)
    # A slice may be one row.
    lone = _lone_bytes(table, extent)
    return decoded + lone + needs(slice_extent(table, extent, limits))


# --- terms -------------------------------------------------------------------------------------------


def _reading(table: TableSchema, extent: Extent) -> int:
    """Return what reading columns takes."""
    read = reading_bytes(table, extent.column_bytes, extent.rows, extent.widest_row)
    return read + (_lone_bytes(table, extent) if extent.rows == 1 else 0)


def _lone_bytes(table: TableSchema, extent: Extent) -> int:
    return lone_row_bytes(table, extent.column_bytes, extent.widest_row)


def _after_cut(table: TableSchema, extent: Extent, kept: Kept) -> tuple[Extent, int]:
    """Return the rows that a pipeline sees, and what choosing and copying them takes."""
    choosing = _CHOOSING_BYTES * extent.rows if kept.cut or kept.masked else 0
    if not kept.cut:
        return extent, choosing
    # How many a mask takes away later is not known apart.
    rows = extent.rows if kept.masked else min(extent.rows, kept.rows)
    sizes = {
        name: size
        if row_width(table[name]) is None
        else math.ceil(size * rows / max(1, extent.rows))
        for name, size in extent.column_bytes.items()
    }
    return replace(extent, rows=rows, column_bytes=sizes), choosing + sum(sizes.values())


def _making_bytes(schema: DatasetSchema, rows: int) -> int:
    """Return the bytes of arrays of some rows, and of what exists while they are made.

    Tensors are arrays already.
    """
    made = [one for one in schema.columns if one.role not in (Role.TENSOR, Role.RAGGED)]
    one_row = sum(np.dtype(one.dtype).itemsize for one in made)
    one_row += _LIST_BYTES * len(schema.ragged)
    at_once = min(COLUMNS_AT_ONCE, len(schema.numeric)) + (len(schema.inputs) < len(schema.columns))
    return rows * (one_row + at_once * _VALUE_BYTES)


def _seen(
    step: StepCall, sizes: Mapping[str, int], extent: Extent, columns: Sequence[str]
) -> Extent:
    return Extent(
        extent.rows,
        {name: sizes.get(name, 0) for name in columns},
        extent.widest_row,
        step.state_bytes,
        state_rows=step.state_rows,
    )


def _shares(step: StepCall, total: int, rows: int) -> dict[str, int]:
    """Return how the bytes of a step's outputs are spread over them."""
    widths = {one.name: row_width(one) for one in step.transformer.outputs(step.before)}
    fixed = {name: width * rows for name, width in widths.items() if width is not None}
    varying = [name for name, width in widths.items() if width is None]
    rest = max(0, total - sum(fixed.values()))
    return {**fixed, **dict.fromkeys(varying, rest)}
