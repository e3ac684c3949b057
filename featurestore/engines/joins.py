"""Joins by sort and search: which row on the right answers each row on the left.

Written once for NumPy and CuPy (``xp``). Group codes are those of the left and right key columns put
one below the other, so that equal keys have equal codes. The result is a position per left row and
whether there is one; there is always exactly one answer per left row, in the left rows' order.

Trade-off: left rows are looked up group by group rather than as they come, which costs a sort of their
codes and saves most of the search: neighbours find their answers beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array
from featurestore.engines.windows import (
    INT64_MAX,
    INT64_MIN,
    changes,
    numbered,
    stable_order,
    subtract_floor,
)
from featurestore.errors import InvalidInputError


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


@dataclass(frozen=True, slots=True)
class Known:
    """When right rows become known, where that is not at their time.

    Parameters
    ----------
    times : Array
        ``int64 [m]``: never before the row's own time.
    never : Array
        ``bool [m]``: rows that never do, whatever ``times`` says.
    """

    times: Array
    never: Array


def known_from(xp: Any, times: Array, available: Array, *, factor: int, lag: int) -> Known:
    """Return when rows become known that some column says, ``lag`` not counted.

    Parameters
    ----------
    times : Array
        ``int64 [m]``: of the rows themselves.
    available : Array
        ``int64 [m]``: when they became known, in steps that are ``factor`` times coarser.
    factor : int
    lag : int
        How long after its time a row is known at the earliest.
    """
    # What does not fit 64 bits lies before or after every time there is.
    low, high = -(INT64_MAX // factor), INT64_MAX // factor
    scaled = xp.clip(available, low, high) * factor
    earliest, _ = subtract_floor(xp, scaled, lag)
    earliest = xp.where(available < low, INT64_MIN, earliest)
    return Known(xp.maximum(times, earliest), available > high)


@dataclass(frozen=True, slots=True)
class Events:
    """Right rows by group, then time, then the order they had, and what is visible of them when.

    What is visible of a group at a time is a subset of its rows, and all after some position is not:
    the smallest time from a position to the end of its group, at which something there becomes known,
    only grows with the position, so that one search finds the newest visible row.

    Parameters
    ----------
    order : Array
        ``int64 [m]``: the row at each sorted position.
    moments : Array
        ``int64 [u]``: the different times at which rows become known, ascending.
    keys : Array
        ``int64 [m]``: group and place among ``moments`` as one number; the smallest from here on, so
        ascending.
    own : Array
        ``int64 [m]``: the same of each position itself; ``keys`` where rows are known at their time.
    """

    order: Array
    moments: Array
    keys: Array
    own: Array

    @classmethod
    def of(cls, xp: Any, codes: Array, times: Array, known: Known | None = None) -> Events:
        """Sort right rows; of one group and time they stay in the order they have."""
        by_time = time_order(xp, times)
        ordered = times if by_time is None else times[by_time]
        order = stable_order(xp, codes if by_time is None else codes[by_time])
        if known is None:
            fresh = changes(xp, ordered)
            moments, keys = ordered[fresh], numbered(xp, fresh)[order]
            del fresh
        order = order if by_time is None else by_time[order]
        del by_time, ordered
        if known is not None:
            moments, keys = _ranked(xp, known, order)
        for where in blocks(keys.shape[0], xp):
            keys[where] += codes[order[where]] * (moments.shape[0] + 1)
        return cls(order, moments, keys if known is None else _least_after(xp, keys), keys)

    @property
    def stride(self) -> int:
        """By how much the keys of neighbouring groups differ; far inside int64 whatever times are."""
        return int(self.moments.shape[0]) + 1

    def seen(self, xp: Any, times: Array, lag: int, exact: bool) -> Array:
        """Return how many of ``moments`` have passed, each ``lag`` later, at these times."""
        return passed(xp, self.moments, times, lag, inclusive=exact)


def time_order(xp: Any, times: Array) -> Array | None:
    """Return the positions that sort times, equal ones in the order they have; None if they are sorted."""
    if not bool(xp.any(times[1:] < times[:-1])):
        return None
    return xp.argsort(times, kind="stable")


def passed(xp: Any, moments: Array, times: Array, span: int, *, inclusive: bool) -> Array:
    """Return how many of some ascending moments lie before ``time - span`` (or at it: ``inclusive``)."""
    count = xp.empty(times.shape[0], dtype=xp.int64)
    for where in blocks(times.shape[0], xp):
        threshold, below = subtract_floor(xp, times[where], span)
        found = xp.searchsorted(moments, threshold, side="right" if inclusive else "left")
        count[where] = xp.where(below, 0, found)
    return count


def _ranked(xp: Any, known: Known, order: Array) -> tuple[Array, Array]:
    """Return the different moments, and the rank of each row in sorted order."""
    moments = xp.sort(known.times[~known.never])
    moments = moments[changes(xp, moments)]
    ranks = xp.searchsorted(moments, known.times[order], side="left").astype(xp.int64, copy=False)
    ranks[known.never[order]] = moments.shape[0]
    return moments, ranks


def _least_after(xp: Any, keys: Array) -> Array:
    """Return the smallest of each element and all after it; groups ascend, so none reaches another's."""
    least, size = keys, 1
    while size < keys.shape[0] and bool(xp.any(least[1:] < least[:-1])):
        # What a step reads lies after what it writes, and a copy keeps it as it was.
        longer = least.copy()
        longer[:-size] = xp.minimum(least[:-size], least[size:])
        least, size = longer, 2 * size
    return least


def asof_positions(
    xp: Any,
    left: tuple[Array, Array],
    right: tuple[Array, Array],
    *,
    lag: int = 0,
    max_age: int | None = None,
    exact: bool = True,
    known: Known | None = None,
) -> tuple[Array, Array]:
    """Return, for each left row, the newest right row of its group that is visible at its time.

    Parameters
    ----------
    left, right : tuple of Array
        ``(codes, times)``, ``int64``; times in one unit. Rows need no order; among right rows that
        share group and time the last visible one counts.
    lag, max_age : int
        A right row is visible at ``t`` when ``known + lag <= t`` and ``t - time <= max_age``.
    exact : bool
        Whether ``known + lag == t`` is visible.
    known : Known, optional
        When right rows become known, ``lag`` not counted; by default at their time.

    Returns
    -------
    positions, found : Array
        ``int64 [left]`` and ``bool [left]``; positions are 0 where nothing was found.
    """
    (left_codes, left_times), (codes, times) = left, right
    rows = left_codes.shape[0]
    if not times.shape[0]:
        return xp.zeros(rows, dtype=xp.int64), xp.zeros(rows, dtype=xp.bool_)
    positions = xp.empty(rows, dtype=xp.int64)
    events = Events.of(xp, codes, times, known)
    # In the left rows' own order, which is that of time: the search goes forward.
    wanted = events.seen(xp, left_times, lag, exact)
    wanted += left_codes * events.stride
    order = stable_order(xp, left_codes)
    for where in blocks(rows, xp):
        here = order[where]
        at = xp.searchsorted(events.keys, wanted[here], side="left")
        at -= 1
        hit = at >= 0
        # All keys of a group are at least its number times the stride.
        hit &= events.keys[xp.maximum(at, 0, out=at)] >= left_codes[here] * events.stride
        newest = events.order[at]
        if max_age is not None:
            oldest, _ = subtract_floor(xp, left_times[here], max_age)
            hit &= times[newest] >= oldest
        # To the rows' own places once: what is written there and here and there is what costs.
        positions[here] = xp.where(hit, newest, -1)
    found = positions >= 0
    return xp.maximum(positions, 0, out=positions), found


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


def last_known(
    xp: Any,
    codes: Array,
    times: Array,
    available: Array,
    factors: Sequence[int],
    count: int,
) -> Array:
    """Return the rows that rows after them may see, ascending: of each code the last ``count`` known when its
    newest happened, and all that were not known yet.

    Parameters
    ----------
    codes, times, available : Array
        ``int64 [m]``; rows of a code in order of time.
    factors : sequence of int
        How many steps of the finer of both units a step of ``times`` and one of ``available`` is.
    count : int
    """
    order = stable_order(xp, codes)
    if not order.shape[0]:
        return order
    fresh = changes(xp, codes[order])
    number = numbered(xp, fresh)
    rows = xp.asarray([order.shape[0]], dtype=xp.int64)
    ends = xp.concatenate((xp.flatnonzero(fresh)[1:], rows))
    newest = times[order[ends - 1]]
    kept = xp.empty(order.shape[0], dtype=xp.bool_)
    for where in blocks(order.shape[0], xp):
        kept[where] = _by_then(available[order[where]], newest[number[where]], factors)
    known = xp.zeros(order.shape[0] + 1, dtype=xp.int64)
    known[1:] = xp.cumsum(kept, dtype=xp.int64)
    for where in blocks(order.shape[0], xp):
        # How many of its code are known from this row on.
        more = known[ends[number[where]]] - known[where]
        kept[where] = ~kept[where] | (more <= count)
    last = order[kept]
    last.sort()
    return last


def _by_then(available: Array, times: Array, factors: Sequence[int]) -> Array:
    """Return where ``available <= times``, in units that may differ; nothing is scaled up."""
    of_times, of_available = factors
    if of_available > 1:
        return available <= times // of_available
    whole = available // of_times
    return (whole < times) | ((whole == times) & (whole * of_times == available))
