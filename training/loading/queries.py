"""The queries of a ranking: runs of rows in table order that belong together.

Learning to rank compares rows of one query with each other, so a query must be one run of rows. Ids say
nothing but which rows are of one: what a model is given is the number of the run, which rises from row
to row as XGBoost wants it.

Always true: what :func:`queries_of` returns begins with row 0, and no id occurs in two runs. Trade-off:
the ids are read twice, once to say what the runs take before they are held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.errors import InvalidInputError
from training.loading.mixing import Rows

QUERY_BYTES: Final = 48
"""Of each query while runs are checked: where it begins, its id, the ids sorted, and their order."""
_BLOCK_ROWS: Final = 1 << 16
Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.uint32]]"


@dataclass(frozen=True, slots=True)
class Queries:
    """Where queries begin.

    Parameters
    ----------
    starts : int64 array [queries + 1]
        The first row of each, and the number of rows.

    Examples
    --------
    >>> queries = queries_of(np.array([7, 7, 3, 3, 3, 9]), 6, "day")
    >>> queries.starts, queries.end(4), queries.numbers(2, 6)
    (array([0, 2, 5, 6]), 2, array([1, 1, 1, 2], dtype=uint32))
    """

    starts: Rows

    def end(self, row: int) -> int:
        """Return the last row from which on no query is cut, ``row`` or before it."""
        return int(self.starts[np.searchsorted(self.starts, row, side="right") - 1])

    def within(self, start: int, stop: int) -> Rows:
        """Return where the queries of rows ``[start, stop)`` begin, and ``stop``; both are ends."""
        first, last = np.searchsorted(self.starts, [start, stop])
        return self.starts[first : last + 1]

    def numbers(self, start: int, stop: int) -> Numbers:
        """Return for rows ``[start, stop)`` the number of their query; both are ends."""
        first = int(np.searchsorted(self.starts, start))
        rows = np.diff(self.within(start, stop))
        return np.repeat(np.arange(first, first + len(rows), dtype=np.uint32), rows)


def measure_queries(ids: HostArray, rows: int) -> tuple[int, int]:
    """Return how many runs of equal ids there are, and the rows of the longest; holds none of them."""
    count, longest, last = 0, 0, 0
    for starts in _starts(ids, rows):
        count += len(starts)
        if len(starts):
            longest = max(longest, int(np.diff(starts, prepend=last).max()))
            last = int(starts[-1])
    return count, max(longest, rows - last)


def queries_of(ids: HostArray, rows: int, column: str) -> Queries:
    """Return the queries of a pack's rows.

    Parameters
    ----------
    ids : integer array [rows]
    rows : int
    column : str
        What they are called, for people.

    Raises
    ------
    InvalidInputError
        If an id comes back after rows of another query.
    """
    starts = np.concatenate([*_starts(ids, rows), np.array([rows], dtype=np.int64)])
    values = np.asarray(ids[starts[:-1]])
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    if again.size:
        first, second = (int(starts[order[again[0] + one]]) for one in (0, 1))
        raise InvalidInputError(
            f"group {column!r} has value {ids[first]} from row {first} on and again from row {second} "
            f"on, with other queries between them ({again.size} such pairs): a query is one run of "
            "rows in table order",
            "ingest the table sorted by the group, or with a key or time that keeps a query together",
        )
    return Queries(starts)


def first_of_each(values: HostArray, starts: Rows, what: str) -> HostArray:
    """Return one value for each query, which all its rows must have.

    Parameters
    ----------
    values : array [rows]
    starts : int64 array [queries + 1]
        Within ``values``.
    what : str
        For people.

    Raises
    ------
    InvalidInputError
        If two rows of a query differ.
    """
    found = values[starts[:-1]]
    differs = np.flatnonzero(values != np.repeat(found, np.diff(starts)))
    if differs.size:
        query = int(np.searchsorted(starts, differs[0], side="right")) - 1
        raise InvalidInputError(
            f"{what} is {found[query]} and {values[differs[0]]} in rows of one query; a ranking weighs "
            "whole queries",
            "give all rows of a query the same weight",
        )
    return found


def _starts(ids: HostArray, rows: int) -> Iterator[Rows]:
    """Yield the rows at which another id begins than the row before has, some rows at a time."""
    for start in range(0, rows, _BLOCK_ROWS):
        block = ids[max(0, start - 1) : min(start + _BLOCK_ROWS, rows)]
        found = np.flatnonzero(block[1:] != block[:-1]) + max(1, start)
        yield found if start else np.concatenate([np.zeros(1, dtype=np.int64), found])
