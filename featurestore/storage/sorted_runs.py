"""Sorted runs of rows in scratch files, gone through side by side: range after range of their keys.

A run is rows in ascending order of its key columns, nulls last, written in segments of bounded size. Of
several runs ``key_ranges`` reads one segment each at a time and yields all rows below the smallest of
the keys that segments end with: what is still unread has none of these keys. So rows of one key come
together. Each time, runs of which less than half a segment is left unused are read on, so memory is that
of one and a half segments per run, and there are few ranges where runs have keys of the same kind.

Always true: the ranges follow each other in ascending order; together they are all rows; within a range
the rows of each run are together, runs in the order given. Trade-off: a key of which one run has many
rows is held with all of them, and a row is never divided, however wide it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from featurestore.storage.spill import Segments, SpillFile

Key: TypeAlias = "tuple[tuple[bool, Any], ...]"
"""For each key column whether it is null, and else its value: compares as Arrow sorts."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows in order of their keys, in segments of a scratch file."""

    spill: SpillFile
    segments: Segments


class RunWriter:
    """Writes one run; what is added small is written together, what is added large divided.

    Parameters
    ----------
    spill : SpillFile
        Of tables of one schema.
    segment_bytes : int
        The most Arrow bytes of a segment, unless it is a single row.

    Examples
    --------
    >>> with SpillFile() as spill:
    ...     writer = RunWriter(spill, 64)
    ...     writer.add(pa.table({"value": list(range(20))}))
    ...     run = writer.end()
    ...     [one.rows for one in run.segments]
    [5, 5, 5, 5]
    """

    def __init__(self, spill: SpillFile, segment_bytes: int) -> None:
        self._run = Run(spill, Segments())
        self._most = segment_bytes
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add(self, rows: pa.Table) -> None:
        """Write rows that come after those before, sooner or later."""
        for part in _divided(rows, self._most):
            size = part.nbytes
            if self._bytes + size > self._most:
                self._write()
            self._waiting.append(part)
            self._bytes += size

    def end(self) -> Run:
        """Write what is left, and return the run."""
        self._write()
        return self._run

    def _write(self) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting)
            self._run.segments.append(self._run.spill.append(rows))
        self._waiting, self._bytes = [], 0


def _divided(rows: pa.Table, most: int) -> Iterator[pa.Table]:
    """Yield rows in parts of at most so many bytes, or single rows."""
    if rows.num_rows <= 1 or rows.nbytes <= most:
        if rows.num_rows:
            yield rows
        return
    half = rows.num_rows // 2
    yield from _divided(rows.slice(0, half), most)
    yield from _divided(rows.slice(half), most)


def key_ranges(runs: Sequence[Run], order: Sequence[str]) -> Iterator[list[pa.Table]]:
    """Yield range after range of keys: of each run that has any, the rows of that range.

    Parameters
    ----------
    runs : sequence of Run
    order : sequence of str
        The columns that every run is in order of.

    Examples
    --------
    >>> with SpillFile() as spill:
    ...     runs = []
    ...     for values in ([1, 4, 6], [2, 3, 9]):
    ...         writer = RunWriter(spill, 8)
    ...         writer.add(pa.table({"value": values}))
    ...         runs.append(writer.end())
    ...     for parts in key_ranges(runs, ["value"]):
    ...         print([part["value"].to_pylist() for part in parts])
    [[1]]
    [[2]]
    [[3]]
    [[4, 6], [9]]
    """
    readers = [_Reader(run, order) for run in runs]
    while True:
        unfinished = [one for one in readers if one.unread]
        bound = min((one.last for one in unfinished), default=None)
        parts = [one.take(bound) for one in readers]
        parts = [part for part in parts if part.num_rows]
        if parts:
            yield parts
        del parts
        if bound is None:
            return
        for one in unfinished:
            if one.last == bound or one.is_half_used:
                one.read()


class _Reader:
    """Where in a run one is: the rows that were read and not taken."""

    def __init__(self, run: Run, order: Sequence[str]) -> None:
        self._run = run
        self._order = order
        self._segments = iter(run.segments)
        self.unread = len(run.segments)
        self._rows = pa.table({})
        self._half = 0
        self.last: Key = ()
        if self.unread:
            self.read()

    def read(self) -> None:
        """Read another segment."""
        rows = self._run.spill.read(next(self._segments))
        self._half = rows.nbytes // 2
        if self._rows.num_rows:  # one copy, that the segment before need not stay for its last row
            rows = pa.concat_tables([self._rows, rows]).combine_chunks()
        self._rows = rows
        self.last = self._key(rows.num_rows - 1)
        self.unread -= 1

    @property
    def is_half_used(self) -> bool:
        """Whether of what was read no more is left than half of the last segment."""
        return bool(self._rows.nbytes <= self._half)

    def take(self, bound: Key | None) -> pa.Table:
        """Return the rows below a key, or all of them, and forget them."""
        rows = self._rows
        count = rows.num_rows if bound is None else self._below(bound)
        self._rows = rows.slice(count)
        return rows.slice(0, count)

    def _below(self, bound: Key) -> int:
        low, high = 0, self._rows.num_rows
        while low < high:
            middle = (low + high) // 2
            if self._key(middle) < bound:
                low = middle + 1
            else:
                high = middle
        return low

    def _key(self, row: int) -> Key:
        values = [self._rows[name][row].as_py() for name in self._order]
        return tuple((value is None, value) for value in values)
