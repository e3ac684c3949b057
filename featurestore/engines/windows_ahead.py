"""Windows over the rows of a group that come after each row: the mirror of :mod:`windows`.

Rows come in table order, sorted by group inside. The row itself is in none of its windows. A window is
*complete* when no row that may still be appended can belong to it; what that means is said per kind.
"""

from __future__ import annotations

from typing import Any

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array
from featurestore.engines.windows import (
    INT64_MAX,
    Groups,
    changes,
    numbered,
    ranked,
    runs_of_ranks,
    stable_order,
)


def rows_ahead(xp: Any, groups: Groups, count: int) -> tuple[Array, Array, Array]:
    """Return the windows of the ``count`` rows after each row, and which have so many.

    Returns
    -------
    start, end : Array
        ``int64 [n]`` per sorted position: the window is ``[start, end)``.
    complete : Array
        ``bool [n]``
    """
    size = groups.order.shape[0]
    start = xp.arange(1, size + 1, dtype=xp.int64)
    ends = xp.searchsorted(groups.number, groups.number, side="right").astype(xp.int64, copy=False)
    last = start + count
    complete = last <= ends
    return start, xp.minimum(last, ends, out=last), complete


def times_ahead(
    xp: Any, groups: Groups, times: Array, width: int, newest: int
) -> tuple[Array, Array, Array]:
    """Return the windows ``(t, t + width]`` after each row, and which end by the time ``newest``.

    Parameters
    ----------
    groups : Groups
    times : Array
        ``int64 [n]`` in table order, ascending.
    width : int
        In steps of the time, 1 or more.
    newest : int
        The newest time that any row has.

    Returns
    -------
    start, end : Array
        ``int64 [n]`` per sorted position: the window is ``[start, end)``.
    complete : Array
        ``bool [n]``
    """
    unique, rank = ranked(xp, groups, times)
    # A sum that does not fit 64 bits is beyond every time: saturated, and never complete.
    beyond = unique > INT64_MAX - width
    upper = xp.where(beyond, INT64_MAX, unique + xp.where(beyond, 0, width))
    first = xp.arange(1, unique.shape[0] + 1, dtype=xp.int64)
    last = xp.searchsorted(unique, upper, side="right")
    start, end = runs_of_ranks(xp, groups, rank, first, last)
    complete = ~beyond & (upper <= newest)
    return start, end, complete[rank]


def first_of_group(xp: Any, codes: Array, count: int = 1) -> Array:
    """Return the positions of the first ``count`` rows of each code, ascending."""
    order = stable_order(xp, codes)
    fresh = changes(xp, codes[order])
    del codes
    begins, group = xp.flatnonzero(fresh), numbered(xp, fresh)
    kept = fresh
    for where in blocks(order.shape[0], xp):
        here = xp.arange(where.start, where.stop, dtype=xp.int64)
        kept[where] = here - begins[group[where]] < count
    del begins, group
    first = order[kept]
    first.sort()
    return first
