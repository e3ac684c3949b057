"""Joins by sort and search: which row on the right answers each row on the left.

Written once for NumPy and CuPy (``xp``). Group codes are those of the left and right key columns put
one below the other, so that equal keys have equal codes. The result is a position per left row and
whether there is one; there is always exactly one answer per left row, in the left rows' order.
"""

from __future__ import annotations

from typing import Any, Final

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array
from featurestore.engines.windows import (
    INT64_MIN,
    changes,
    numbered,
    stable_order,
    subtract_floor,
)
from featurestore.errors import InvalidInputError

INT64_MAX: Final = 2**63 - 1


def scale_times(xp: Any, times: Array, factor: int) -> Array:
    """Return times in steps that are ``factor`` times finer.

    Raises
    ------
    InvalidInputError
        If a time does not fit 64 bits in the finer unit.
    """
    if factor == 1 or not times.shape[0]:
        return times
    low, high = int(times.min()), int(times.max())
    if low * factor < INT64_MIN or high * factor > INT64_MAX:
        raise InvalidInputError(
            f"times between {low} and {high} do not fit 64 bits in steps {factor} times finer",
            "give both tables time columns of the same unit",
        )
    return times * factor


def asof_positions(
    xp: Any,
    left: tuple[Array, Array],
    right: tuple[Array, Array],
    *,
    lag: int = 0,
    max_age: int | None = None,
    exact: bool = True,
) -> tuple[Array, Array]:
    """Return, for each left row, the newest right row of its group that is visible at its time.

    Parameters
    ----------
    left, right : tuple of Array
        ``(codes, times)``, ``int64``; times in one unit. Rows need no order; among right rows that
        share group and time the last one counts.
    lag, max_age : int
        A right row is visible at ``t`` when ``time + lag <= t`` and ``t - time <= max_age``.
    exact : bool
        Whether ``time + lag == t`` is visible.

    Returns
    -------
    positions, found : Array
        ``int64 [left]`` and ``bool [left]``; positions are 0 where nothing was found.
    """
    (left_codes, left_times), (codes, times) = left, right
    rows = left_codes.shape[0]
    if not times.shape[0]:
        return xp.zeros(rows, dtype=xp.int64), xp.zeros(rows, dtype=xp.bool_)
    order, keys, unique = _by_group_and_time(xp, codes, times)
    stride = unique.shape[0] + 1
    positions = xp.empty(rows, dtype=xp.int64)
    found = xp.empty(rows, dtype=xp.bool_)
    for where in blocks(rows, xp):
        here, group = left_times[where], left_codes[where]
        threshold, below = subtract_floor(xp, here, lag)
        visible = xp.searchsorted(unique, threshold, side="right" if exact else "left")
        visible = xp.where(below, 0, visible)
        at = xp.searchsorted(keys, group * stride + visible, side="left") - 1
        newest = order[xp.maximum(at, 0)]
        hit = (at >= 0) & (codes[newest] == group)
        if max_age is not None:
            oldest, _ = subtract_floor(xp, here, max_age)
            hit &= times[newest] >= oldest
        positions[where], found[where] = xp.where(hit, newest, 0), hit
    return positions, found


def _by_group_and_time(xp: Any, codes: Array, times: Array) -> tuple[Array, Array, Array]:
    """Return rows sorted by group, then time; a key that ascends with them; the different times.

    The key of group ``g`` and the ``i``-th of ``n`` different times is ``g * (n + 1) + i``: far inside
    int64 whatever the times are.
    """
    by_time = xp.argsort(times, kind="stable")
    unique = times[by_time]
    fresh = changes(xp, unique)
    unique = unique[fresh]
    order = stable_order(xp, codes[by_time])
    rank = numbered(xp, fresh)[order]
    order = by_time[order]
    del by_time
    keys = codes[order]
    keys *= unique.shape[0] + 1
    keys += rank
    return order, keys, unique


def lookup_positions(xp: Any, left_codes: Array, codes: Array) -> tuple[Array, Array]:
    """Return, for each left row, the last right row of its code, and whether there is one."""
    rows = left_codes.shape[0]
    if not codes.shape[0]:
        return xp.zeros(rows, dtype=xp.int64), xp.zeros(rows, dtype=xp.bool_)
    order = stable_order(xp, codes)
    ordered = codes[order]
    positions = xp.empty(rows, dtype=xp.int64)
    found = xp.empty(rows, dtype=xp.bool_)
    for where in blocks(rows, xp):
        group = left_codes[where]
        at = xp.searchsorted(ordered, group, side="right") - 1
        last = order[xp.maximum(at, 0)]
        hit = (at >= 0) & (codes[last] == group)
        positions[where], found[where] = xp.where(hit, last, 0), hit
    return positions, found


def last_of_group(xp: Any, codes: Array, count: int = 1) -> Array:
    """Return the positions of the last ``count`` rows of each code, ascending."""
    order = stable_order(xp, codes)
    rows = order.shape[0]
    fresh = changes(xp, codes[order])
    del codes
    ends = xp.concatenate((xp.flatnonzero(fresh)[1:], xp.asarray([rows], dtype=xp.int64)))
    group = numbered(xp, fresh)
    kept = xp.empty(rows, dtype=xp.bool_)
    for where in blocks(rows, xp):
        here = xp.arange(where.start, where.stop, dtype=xp.int64)
        kept[where] = ends[group[where]] - here <= count
    del fresh, group, ends
    last = order[kept]
    last.sort()
    return last
