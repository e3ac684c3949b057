"""The first pass: what the rows are like, from the columns that decide how they are cut.

Reads key, time and columns of varying width only; the width of all others is known from their
types. Memory: a batch, and a sample of at most ``_SAMPLE`` times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.arguments import format_names
from featurestore.errors import InvalidInputError, LateRowsError, SchemaError, SourceError
from featurestore.ingest.arrays import to_numpy
from featurestore.ingest.event_time import Steps, time_text, time_values
from featurestore.ingest.memory import ROW_BYTES
from featurestore.ingest.sources import Piece, Source
from featurestore.ingest.widths import Widths, fixed_width, row_widths
from featurestore.schema import Field, TableSchema

Progress: TypeAlias = Callable[[int, "int | None", str], None]
"""Called with rows done, rows in all (None while unknown) and the phase."""

_SAMPLE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Survey:
    """What the first pass found.

    Parameters
    ----------
    rows, bytes : int
        Number of rows and their decoded size.
    ordered : bool
        Whether the rows come in order of time.
    first, last : int, optional
        Range of time in steps.
    largest_group : int
        Bytes to hold of the largest run of equal times; all rows of one time if ``ordered``.
    sample : TimeSample
    widest : int
        Decoded bytes of the widest row.
    key_bytes : int
        Decoded bytes of the key columns.
    """

    rows: int
    bytes: int
    ordered: bool
    first: int | None
    last: int | None
    largest_group: int
    sample: TimeSample
    widest: int
    key_bytes: int


class TimeSample:
    """A uniform random sample of rows' times and widths, of bounded size.

    Each row is kept with the same probability, halved whenever the sample gets too large (Bernoulli
    sampling; a fixed seed, so that a run can be repeated).
    """

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._chance = 1.0
        self._times: Steps = np.zeros(0, np.int64)
        self._widths: Widths = np.zeros(0, np.int64)

    def add(self, times: Steps, widths: Widths) -> None:
        """Consider more rows."""
        kept = slice(None) if self._chance == 1 else self._random.random(len(times)) < self._chance
        self._times = np.concatenate([self._times, times[kept]])
        self._widths = np.concatenate([self._widths, widths[kept]])
        while len(self._times) > _SAMPLE:
            half = self._random.random(len(self._times)) < 0.5
            self._times, self._widths = self._times[half], self._widths[half]
            self._chance /= 2

    def cuts(self, parts: int, first: int, last: int) -> Steps:
        """Return times that part ``[first, last]`` into about ``parts`` pieces of equal bytes.

        A piece is ``cuts[i-1] <= time < cuts[i]``. There is at least one cut if ``first < last``;
        a time heavier than a piece gets one of its own.
        """
        order = np.argsort(self._times, kind="stable")
        times, weights = self._times[order], np.cumsum(self._widths[order])
        if len(times) == 0:
            times, weights = np.array([first]), np.array([1])
        marks = weights[-1] * np.arange(1, parts) / max(parts, 1)
        chosen = times[np.minimum(np.searchsorted(weights, marks), len(times) - 1)]
        heavy = chosen[1:][chosen[1:] == chosen[:-1]]
        after = heavy[heavy < last] + 1
        cuts = np.unique(np.concatenate([chosen, after]))
        cuts = cuts[(cuts > first) & (cuts <= last)]
        if len(cuts) == 0 and first < last:
            cuts = np.array([first // 2 + last // 2 + 1])
            cuts = np.clip(cuts, first + 1, last)
        return cuts.astype(np.int64)


class _Missing:
    """Counts of null key and time values, per input and column."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, list[int]]] = {}

    def add(self, piece: Piece, name: str) -> None:
        column = piece.batch.column(name)
        is_float = pa.types.is_floating(column.type)
        if column.null_count == 0 and not is_float:
            return
        missing = pc.is_null(column, nan_is_null=is_float)
        rows = np.flatnonzero(to_numpy(missing))
        if len(rows):
            count, first = self._found.get((piece.where, name), (0, []))
            first = (first + [int(row) + piece.start + 1 for row in rows[:3]])[:3]
            self._found[piece.where, name] = (count + len(rows), first)

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self, schema: TableSchema) -> SchemaError:
        parts = [
            f"column {name!r} of {where}: {count} rows (the first: {', '.join(map(str, first))})"
            for (where, name), (count, first) in list(self._found.items())[:5]
        ]
        roles = f"key {list(schema.key)}" + (f" and time {schema.time!r}" if schema.time else "")
        return SchemaError(
            f"null values (NaN counts as null) in {roles}: " + "; ".join(parts),
            "fill them or drop those rows before ingest; data rows are counted from 1",
        )


class _Clock:
    """Order, range and groups of the times seen so far."""

    def __init__(self, after: int | None) -> None:
        self.first: int | None = None
        self.last: int | None = None
        self.ordered = True
        self.largest_group = 0
        self._after = after
        self._end: int | None = None
        self._group = 0
        self.late = 0
        self.latest_late: int | None = None

    def add(self, times: Steps, widths: Widths) -> None:
        low, high = int(times.min()), int(times.max())
        self.first = low if self.first is None else min(self.first, low)
        self.last = high if self.last is None else max(self.last, high)
        if self._after is not None and low <= self._after:
            late = times[times <= self._after]
            self.late += len(late)
            self.latest_late = max(int(late.max()), self.latest_late or int(late.max()))
        if self.ordered:
            joined = self._end is None or self._end <= int(times[0])
            self.ordered = joined and bool((times[1:] >= times[:-1]).all())
        starts = np.concatenate([[0], np.flatnonzero(times[1:] != times[:-1]) + 1])
        groups = np.add.reduceat(widths, starts)
        if self._end == int(times[0]):
            groups[0] += self._group
        self.largest_group = max(self.largest_group, int(groups.max()))
        self._end, self._group = int(times[-1]), int(groups[-1])


def survey(
    source: Source,
    schema: TableSchema,
    after: int | None,
    batch_bytes: int,
    on_progress: Progress | None,
) -> Survey:
    """Read the source once and return what its rows are like.

    Raises
    ------
    SourceError
        If there are no rows.
    SchemaError
        If key or time hold nulls, with the file, column, count and first rows.
    LateRowsError
        If rows are not newer than ``after``.
    """
    varying = [one for one in schema if fixed_width(one) is None]
    constant = sum(fixed_width(one) or 0 for one in schema)
    checked = [*schema.key, *([schema.time] if schema.time is not None else [])]
    keys = [schema[name] for name in schema.key]
    missing, clock, sample = _Missing(), _Clock(after), TimeSample()
    rows = total = widest = key_bytes = 0
    for piece in source.pieces(_reading(schema, checked, varying), batch_bytes):
        for name in checked:
            missing.add(piece, name)
        widths = row_widths(piece.batch, varying) + constant
        rows, total = rows + piece.batch.num_rows, total + int(widths.sum())
        widest = max(widest, int(widths.max()))
        key_bytes += int(row_widths(piece.batch, keys).sum())
        if schema.time is not None and not missing:
            times = time_values(piece.batch.column(schema.time))
            clock.add(times, widths + ROW_BYTES)
            sample.add(times, widths)
        if on_progress is not None:
            on_progress(rows, None, "survey")
    if rows == 0:
        raise SourceError(
            f"there are no rows in {format_names(source.files, most=3)}",
            "give files that hold rows",
        )
    if missing:
        raise missing.error(schema)
    if clock.late:
        raise _late(clock, rows, schema, after)
    return Survey(
        rows,
        total,
        clock.ordered,
        clock.first,
        clock.last,
        clock.largest_group,
        sample,
        widest,
        key_bytes,
    )


def count_within(source: Source, field: Field, lower: int | None, upper: int | None) -> int:
    """Return how many rows there are, all of which must have ``lower <= time < upper``.

    Parameters
    ----------
    source : Source
        With the table's columns.
    field : Field
        The time column.
    lower, upper : int, optional
        ``None`` is an open end.

    Raises
    ------
    InvalidInputError
        If one lies outside; the first is named.
    """
    rows = 0
    for piece in source.pieces([field.name]):
        column = piece.batch.column(field.name)
        known = np.flatnonzero(to_numpy(column.is_valid()))  # nulls are refused by the survey
        times = time_values(column.drop_null())
        outside = np.zeros(len(times), np.bool_)
        if lower is not None:
            outside |= times < lower
        if upper is not None:
            outside |= times >= upper
        if outside.any():
            first = int(np.argmax(outside))
            start, stop = (
                None if one is None else time_text(one, field.type) for one in (lower, upper)
            )
            raise InvalidInputError(
                f"row {piece.start + int(known[first]) + 1} of {piece.where} has {field.name!r} "
                f"{time_text(int(times[first]), field.type)}, and what is replaced goes from "
                f"{start or 'the beginning'} up to, not including, {stop or 'the end'}",
                "widen the range, or leave such rows out",
            )
        rows += piece.batch.num_rows
    return rows


def _reading(schema: TableSchema, checked: Sequence[str], varying: Sequence[Any]) -> list[str]:
    """Return the columns to read: those that matter, or the cheapest if none does."""
    names = {*checked, *(one.name for one in varying)}
    return [name for name in schema.names if name in names] or [schema.names[0]]


def _late(clock: _Clock, rows: int, schema: TableSchema, after: int | None) -> LateRowsError:
    assert schema.time is not None
    assert after is not None
    assert clock.first is not None
    assert clock.latest_late is not None
    type_ = schema[schema.time].type
    return LateRowsError(
        f"{clock.late} of {rows} rows have a {schema.time!r} from {time_text(clock.first, type_)} "
        f"to {time_text(clock.latest_late, type_)}, not after the table's newest, "
        f"{time_text(after, type_)}",
        "append only newer rows; to change older ones, use replace",
    )
