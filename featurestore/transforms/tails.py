"""The last rows of a run of rows: the state of transformers that look back.

A tail is an Arrow table with columns ``by_0, by_1, ...``, ``time`` and ``column_0, ...`` in table
order. Which rows it keeps is a :class:`Keep`. Cutting a tail twice is the same as cutting it once, so
``combine(a, b) = cut(a + b)`` is associative, and an empty run changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.arrow import HostArray
from featurestore.engines.joins import last_of_group
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.engines.windows import INT64_MAX, Groups
from featurestore.transforms.base import State
from featurestore.transforms.event_time import arrow_times, frame_times

TAIL = "tail"
TIME = "time"


@dataclass(frozen=True, slots=True)
class Keep:
    """Which rows a tail keeps: those within ``span`` of the newest, or the last ``rows`` per group."""

    span: int | None = None
    rows: int | None = None


def by_names(count: int) -> list[str]:
    return [f"by_{i}" for i in range(count)]


def column_name(position: int) -> str:
    return f"column_{position}"


def positional(frame: Frame, by: Sequence[str], time: str | None, columns: Sequence[str]) -> Frame:
    """Return the columns of a tail under their positional names (a column may occur twice)."""
    chosen = [nw.col(name).alias(f"by_{i}") for i, name in enumerate(by)]
    chosen += [nw.col(time).alias(TIME)] if time is not None else []
    chosen += [nw.col(name).alias(column_name(i)) for i, name in enumerate(columns)]
    return frame.select(*chosen)


def key_rows(engine: Engine, frame: Frame, by: Sequence[str]) -> pa.Table:
    """Return the groups that rows are in, in columns as a tail has them."""
    return engine.to_arrow(positional(frame, by, None, []))


def summarize_tail(engine: Engine, frame: Frame, keep: Keep, name: str = TAIL) -> State:
    """Return the tail of a positional frame; no rows give the empty state."""
    if len(frame) == 0:
        return {}
    xp = engine.xp
    if keep.span is not None:
        times = frame_times(engine, frame, TIME)
        # Differences of times can exceed int64; compare with the threshold in Python's integers.
        since = max(int(times.max()) - keep.span, -(2**63))
        positions = xp.flatnonzero(times >= since)
    else:
        by = [column for column in frame.columns if column.startswith("by_")]
        positions = last_of_group(xp, engine.codes(frame, by), keep.rows or 1)
    return {name: engine.to_arrow(engine.take(frame, positions))}


def combine_tails(earlier: State, later: State, keep: Keep, name: str = TAIL) -> State:
    """Return the tail of two adjacent runs."""
    if not earlier or not later:
        return earlier or later
    table = pa.concat_tables([earlier[name], later[name]]).combine_chunks()
    if keep.span is not None:
        times = arrow_times(table[TIME])
        positions = np.flatnonzero(times >= max(int(times.max()) - keep.span, -(2**63)))
    else:
        by = [column for column in table.column_names if column.startswith("by_")]
        positions = last_of_group(np, arrow_codes(table, by), keep.rows or 1)
    return {name: table if len(positions) == len(table) else table.take(pa.array(positions))}


def arrow_codes(table: pa.Table, columns: Sequence[str]) -> HostArray:
    """Return group codes of Arrow columns, equal exactly where ``Engine.codes`` has equal ones."""
    codes, known = np.zeros(len(table), dtype=np.int64), 1
    for name in columns:
        column = table[name]
        if pa.types.is_floating(column.type):
            column = _float_bits(column.combine_chunks())
        indices, many = _encoded(column)
        if known * many > INT64_MAX:  # not each of them is there
            found, codes = np.unique(codes, return_inverse=True)
            codes, known = codes.reshape(-1).astype(np.int64, copy=False), max(len(found), 1)
        codes *= many
        codes += indices
        known *= many
    return codes


def _encoded(column: pa.Array | pa.ChunkedArray) -> tuple[HostArray, int]:
    """Return a number for each value, equal ones for equal values, and how many there are."""
    if pa.types.is_dictionary(column.type) and isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()  # each piece may have a dictionary of its own
    encoded = column.dictionary_encode(null_encoding="encode")
    if not isinstance(encoded, pa.ChunkedArray):
        return encoded.indices.to_numpy(zero_copy_only=False), max(len(encoded.dictionary), 1)
    pieces = [one.indices.to_numpy(zero_copy_only=False) for one in encoded.chunks]
    many = max((len(one.dictionary) for one in encoded.chunks), default=0)
    return np.concatenate([np.zeros(0, np.int32), *pieces]), max(many, 1)


def _float_bits(column: pa.Array) -> pa.Array:
    valid = np.asarray(column.is_valid())
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0
    values = np.where(np.isnan(values), np.nan, values)
    return pa.array(values.view(np.int64), mask=~valid)


@dataclass(frozen=True, slots=True)
class Extended:
    """A partition's rows with the tail of earlier ones before them, under positional names.

    Parameters
    ----------
    engine : Engine
    frame : Frame
    before : int
        How many rows belong to the tail.
    by_count : int
    after : int
        How many rows belong to the head of later ones, behind them (:mod:`heads`).
    """

    engine: Engine
    frame: Frame
    before: int
    by_count: int
    after: int = 0

    @classmethod
    def of(cls, engine: Engine, frame: Frame, state: State, by_count: int) -> Extended:
        tail = state.get(TAIL)
        if tail is None or len(tail) == 0:
            return cls(engine, frame, 0, by_count)
        earlier = engine.from_arrow(tail.select(frame.columns))
        return cls(engine, nw.concat([earlier, frame], how="vertical"), len(tail), by_count)

    @property
    def rows(self) -> int:
        """Rows of the partition itself."""
        return len(self.frame) - self.before - self.after

    def codes(self) -> Array:
        return self.engine.codes(self.frame, by_names(self.by_count))

    def times(self) -> Array:
        return frame_times(self.engine, self.frame, TIME)

    def own(self, order: Array) -> tuple[Array | slice, Array]:
        """Return where in ``order`` (of all rows) the partition's own are, and which they are."""
        if not self.before and not self.after:
            return slice(None), order
        inside = order >= self.before
        if self.after:
            inside &= order < self.before + self.rows
        own = self.engine.xp.flatnonzero(inside)
        target = order[own]
        target -= self.before
        return own, target

    def values(self, position: int) -> tuple[Array, Array]:
        return self.engine.values(self.frame[column_name(position)])


def rows_before(rows: Extended, groups: Groups, count: int) -> tuple[Array, Array]:
    """Return, for each own row, the row of its group ``count`` rows before, and if there is one."""
    xp = rows.engine.xp
    own, target = rows.own(groups.order)
    earlier = xp.arange(groups.order.shape[0], dtype=xp.int64)[own]
    earlier -= count
    valid = earlier >= groups.begin[own]
    positions = groups.order[xp.maximum(earlier, 0, out=earlier)]
    positions[~valid] = 0
    return scattered(xp, (positions, valid), target)


def scattered(xp: Any, one: tuple[Array, Array], target: Array) -> tuple[Array, Array]:
    """Return values and validity put back from sorted order into the rows' own order."""
    values, valid = xp.empty_like(one[0]), xp.empty_like(one[1])
    values[target], valid[target] = one
    return values, valid
