"""Windows over the rows of a group: which rows they hold, and folds of the values in them.

Written once for NumPy and CuPy (``xp``). Rows come in table order, that is by time; inside, they are
sorted by group, so that a window is a run ``[start, end)`` of sorted positions.

Folds use binary doubling: level ``k`` holds, for each value, the fold of the ``2**k`` values that end
there, and a window of ``n`` values is put together along the bits of ``n``, its newest values first.
The result therefore depends on the window's own values and on nothing else: not on where a partition
begins, and a NaN outside the window cannot reach it, as it would in a running sum.

Trade-off: ``O(n log w)`` work instead of the ``O(n)`` of a running sum, for the same bits whatever
the partitioning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array
from featurestore.engines.quantiles import level_of, quantiles
from featurestore.engines.wide_sums import Wide, as_numbers, between, in_64_bits, wide
from featurestore.errors import InvalidInputError

STATISTICS: Final = ("mean", "std", "sum", "min", "max", "count", "first", "last")
CLOSED: Final = ("right", "left", "both", "none")
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
_UINT16_VALUES: Final = 2**16
_PORTION: Final = 2**16
"""So many windows, and what is folded on the way, stay in a CPU's cache."""
_WINDOWS: Final = 8
"""How many times as long as a window a portion is at least."""

Parts: TypeAlias = "tuple[Array, ...]"
Merge: TypeAlias = "Callable[[Parts, Parts, Any, Any], Parts]"


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows sorted by group, in table order within a group.

    Parameters
    ----------
    order : Array
        ``int64 [n]``: the row at each sorted position.
    number : Array
        ``int64 [n]``: the group at each sorted position, 0, 1, 2, ... ascending.
    begin : Array
        ``int64 [n]``: the sorted position at which that group begins.
    """

    order: Array
    number: Array
    begin: Array


def stable_order(xp: Any, codes: Array) -> Array:
    """Return the positions that sort ``codes``, equal ones in the order they have."""
    if xp is np and codes.size and int(codes.max()) < _UINT16_VALUES:
        codes = codes.astype(np.uint16)  # NumPy sorts 16-bit integers by radix, seven times faster
    return xp.argsort(codes, kind="stable").astype(xp.int64, copy=False)


def changes(xp: Any, values: Array) -> Array:
    """Return ``bool [n]``: where a sorted array begins a new value; True at the first."""
    flags = xp.ones(values.shape[0], dtype=xp.bool_)
    flags[1:] = values[1:] != values[:-1]
    return flags


def group_rows(xp: Any, codes: Array) -> Groups:
    """Return the rows sorted by group code."""
    order = stable_order(xp, codes)
    starts = changes(xp, codes[order])
    number = numbered(xp, starts)
    return Groups(order, number, xp.flatnonzero(starts)[number])


def numbered(xp: Any, starts: Array) -> Array:
    """Return ``int64 [n]``: 0, 1, 2, ... for the runs that begin where ``starts`` is True."""
    number = xp.cumsum(starts, dtype=xp.int64)
    number -= 1
    return number


def check_time_order(xp: Any, times: Array) -> None:
    """Refuse times that are not in ascending order.

    Raises
    ------
    InvalidInputError
    """
    if times.shape[0] > 1 and bool(xp.any(times[1:] < times[:-1])):
        raise InvalidInputError(
            "rows are not in order of time, so windows over them would be wrong",
            "sort the rows by the time column first",
        )


def subtract_floor(xp: Any, times: Array, span: int) -> tuple[Array, Array]:
    """Return ``times - span`` and where that is below the smallest integer (and so meaningless)."""
    below = times < INT64_MIN + span
    return xp.where(below, INT64_MIN, times - span), below


def time_windows(
    xp: Any, groups: Groups, times: Array, *, width: int, lag: int, closed: str
) -> tuple[Array, Array]:
    """Return the windows between ``t - lag - width`` and ``t - lag``, as runs of sorted positions.

    Parameters
    ----------
    groups : Groups
    times : Array
        ``int64 [n]`` in table order, ascending.
    width, lag : int
        In steps of the time; ``width >= 1``, ``lag >= 0``.
    closed : {"right", "left", "both", "none"}
        Which ends belong to the window. All rows of one time are in it or out of it together.

    Returns
    -------
    start, end : Array
        ``int64 [n]`` per sorted position: the window is ``[start, end)``.
    """
    unique, rank = ranked(xp, groups, times)
    lower, below = subtract_floor(xp, unique, lag + width)
    first = xp.searchsorted(unique, lower, side="left" if closed in ("left", "both") else "right")
    first = xp.where(below, 0, first)
    upper, below = subtract_floor(xp, unique, lag)
    last = xp.searchsorted(unique, upper, side="right" if closed in ("right", "both") else "left")
    last = xp.where(below, 0, last)
    return runs_of_ranks(xp, groups, rank, first, last)


def ranked(xp: Any, groups: Groups, times: Array) -> tuple[Array, Array]:
    """Return the different times, ascending, and which of them each sorted position has.

    Raises
    ------
    InvalidInputError
        If times are not in ascending order.
    """
    check_time_order(xp, times)
    fresh = changes(xp, times)
    return times[fresh], numbered(xp, fresh)[groups.order]


def runs_of_ranks(
    xp: Any, groups: Groups, rank: Array, first: Array, last: Array
) -> tuple[Array, Array]:
    """Return the run of each position's group whose times are from the ``first`` to before the ``last``.

    Both are given per different time, as a number of different times.
    """
    # Ranks instead of times: group * stride + rank stays far inside int64 whatever the times are.
    stride = first.shape[0] + 1
    keys = groups.number * stride
    keys += rank
    start, end = xp.empty_like(rank), xp.empty_like(rank)
    for where in blocks(rank.shape[0], xp):
        base, at = groups.number[where] * stride, rank[where]
        start[where] = xp.searchsorted(keys, base + first[at], side="left")
        end[where] = xp.searchsorted(keys, base + last[at], side="left")
        end[where] = xp.maximum(start[where], end[where])
    return start, end


def row_windows(
    xp: Any, groups: Groups, *, width: int, lag: int, closed: str
) -> tuple[Array, Array]:
    """Return windows of ``width`` rows that end ``lag`` rows before each row, its own group only.

    ``closed="right"`` ends with that row, ``"left"`` holds the ``width`` rows before it, ``"both"``
    those and the row, ``"none"`` the ``width - 1`` rows before it (as in pandas).
    """
    here = xp.arange(groups.order.shape[0], dtype=xp.int64)
    end = here - lag + (1 if closed in ("right", "both") else 0)
    start = here - lag - width + (0 if closed in ("left", "both") else 1)
    start = xp.maximum(start, groups.begin)
    return start, xp.maximum(start, end)


def fold(xp: Any, leaves: Parts, end: Array, length: Array, merge: Merge) -> Parts:
    """Fold the ``length`` values that end before ``end``, for each window, by binary doubling.

    Parameters
    ----------
    leaves : tuple of Array
        The folds of single values, ``[m]`` each.
    end, length : Array
        ``int64 [q]``; ``0 <= length <= end <= m``. Windows of length 0 fold to zeros.
    merge : callable
        ``merge(older, younger, older_count, younger_count)`` of two adjacent runs.

    Returns
    -------
    tuple of Array
        ``[q]`` each.
    """
    total = tuple(xp.zeros(end.shape[0], dtype=part.dtype) for part in leaves)
    for rows, near in _portions(xp, leaves[0].shape[0], end, length):
        _fold_into(
            xp,
            [part[rows] for part in total],
            tuple(part[near] for part in leaves),
            end[rows] - near.start,
            length[rows],
            merge,
        )
    return total


def _portions(xp: Any, size: int, end: Array, length: Array) -> list[tuple[slice, slice]]:
    """Return runs of windows, and of the values that theirs lie in, both few enough for a CPU's cache.

    What windows of different runs have in common is folded once for each, so runs are several times as
    long as a window; windows in no order, which have all values in common, are one run.
    """
    count = end.shape[0]
    if not count or not size:
        return []
    longest = int(length.max())
    found = []
    for rows in blocks(count, xp, max(_PORTION, _WINDOWS * longest)):
        last = int(end[rows].max())
        found.append((rows, slice(min(last, int((end[rows] - length[rows]).min())), last)))
    if sum(near.stop - near.start for _, near in found) > 2 * (size + count):
        return [(slice(0, count), slice(0, size))]
    return found


def _fold_into(
    xp: Any, total: list[Array], leaves: Parts, end: Array, length: Array, merge: Merge
) -> None:
    longest = int(length.max())
    end -= 1
    level, size = leaves, 1
    with np.errstate(all="ignore"):  # runs across group borders are computed and never used
        while size <= longest:
            for rows in blocks(end.shape[0], xp):
                _add_runs(
                    xp, level, size, merge, [part[rows] for part in total], end[rows], length[rows]
                )
            if 2 * size <= longest:
                level = _doubled(xp, level, size, merge, in_place=size > 1)
            size *= 2


def _add_runs(
    xp: Any, level: Parts, size: int, merge: Merge, total: list[Array], at: Array, length: Array
) -> None:
    """Put the runs of ``size`` values before the folds of those windows that have one, in place."""
    chosen = xp.flatnonzero(length & size)
    if not chosen.shape[0]:
        return
    # level[j] ends at value j + size - 1: runs that would begin before 0 do not exist
    where = at[chosen] - (size - 1)
    older = tuple(part[where] for part in level)
    count = length[chosen] & (size - 1)
    younger = tuple(part[chosen] for part in total)
    merged = merge(older, younger, size, xp.maximum(count, 1))
    for part, old, new in zip(total, older, merged, strict=True):
        part[chosen] = xp.where(count == 0, old, new)
    at[chosen] -= size


def _doubled(xp: Any, level: Parts, size: int, merge: Merge, *, in_place: bool) -> Parts:
    """Return the folds of twice as many values; ``in_place`` the level itself becomes them."""
    count = level[0].shape[0] - size
    out = tuple((part if in_place else xp.empty_like(part))[:count] for part in level)
    for here in blocks(count, xp):
        there = slice(here.start + size, here.stop + size)
        early, late = tuple(part[here] for part in level), tuple(part[there] for part in level)
        # What a block overwrites no later one reads: those read further on.
        for part, new in zip(out, merge(early, late, size, size), strict=True):
            part[here] = new
    return out


def merge_sums(older: Parts, younger: Parts, _older: Any, _younger: Any) -> Parts:
    """Merge ``(sum,)``."""
    return (older[0] + younger[0],)


def merge_moments(older: Parts, younger: Parts, older_count: Any, younger_count: Any) -> Parts:
    """Merge ``(mean, sum of squared deviations, what rounding took of the mean)`` of two runs.

    Without the last, a mean far larger than the deviations would cost their digits.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979.
    """
    share = younger_count / (older_count + younger_count)
    delta = (younger[0] - older[0]) + (younger[2] - older[2])
    step = delta * share
    mean = older[0] + step
    shifted = mean - older[0]
    rest = older[2] + ((older[0] - (mean - shifted)) + (step - shifted))
    delta *= delta
    delta *= older_count * share
    return mean, older[1] + younger[1] + delta, rest


@dataclass(frozen=True, slots=True)
class Windows:
    """The non-null values of one column and each window's run of them.

    Parameters
    ----------
    xp : module
    values : Array
        ``[m]``: the values in sorted order, nulls left out.
    begin, end : Array
        ``int64 [q]``: the window holds ``values[begin:end]``.
    """

    xp: Any
    values: Array
    begin: Array
    end: Array

    @classmethod
    def of(cls, xp: Any, values: Array, valid: Array, start: Array, end: Array) -> Windows:
        """Drop the nulls of a column in sorted order from runs ``[start, end)`` of positions."""
        if bool(valid.all()):
            return cls(xp, values, start, end)
        seen = xp.zeros(values.shape[0] + 1, dtype=xp.int64)
        xp.cumsum(valid, dtype=xp.int64, out=seen[1:])
        return cls(xp, values[valid], seen[start], seen[end])

    @property
    def count(self) -> Array:
        return self.end - self.begin

    def _fold(self, leaves: Parts, merge: Merge) -> Parts:
        return fold(self.xp, leaves, self.end, self.count, merge)

    def _numbers(self) -> Array:
        return self.values.astype(self.xp.float64, copy=False)

    def sum(self) -> Array:
        """Return sums: ``float64`` of floats; exact ``int64`` (``uint64``) of integers and booleans.

        Raises
        ------
        InvalidInputError
            If a sum of integers does not fit 64 bits.
        """
        xp, kind = self.xp, self.values.dtype.kind
        if kind == "f":
            return self._fold((self._numbers(),), merge_sums)[0]
        whole = self._whole_sums()
        if not isinstance(whole, tuple):
            return whole
        unsigned = self.values.dtype == xp.uint64
        return in_64_bits(xp, whole, unsigned=unsigned, what="the sum of a window of integers")

    def _whole_sums(self) -> Array | Wide:
        """Return exact sums of integers: in 64 bits if it is known that they fit, else in 128."""
        xp, values = self.xp, self.values
        whole = values.astype(xp.uint64 if values.dtype == xp.uint64 else xp.int64)
        if whole.shape[0] and self.end.shape[0]:
            limit = 2**64 if whole.dtype.kind == "u" else 2**63
            largest = max(abs(int(whole.min())), abs(int(whole.max())))
            if largest * int(self.count.max()) >= limit:
                return between(xp, wide(xp, values), self.begin, self.end)
        # Integers wrap, so a difference of running sums is exact wherever the true sum fits.
        running = xp.zeros(whole.shape[0] + 1, dtype=whole.dtype)
        xp.cumsum(whole, out=running[1:])
        return running[self.end] - running[self.begin]

    def mean(self) -> Array:
        """Return means; of integers, of their exact sums."""
        if self.values.dtype.kind == "f":
            sums = self._fold((self._numbers(),), merge_sums)[0]
        else:
            whole = self._whole_sums()
            sums = (
                as_numbers(self.xp, whole)
                if isinstance(whole, tuple)
                else whole.astype(self.xp.float64)
            )
        count = self.count
        with np.errstate(all="ignore"):
            sums /= self.xp.maximum(count, 1, out=count)
        return sums

    def std(self) -> Array:
        """Return standard deviations with ``ddof=1``; NaN where the window holds NaN or an infinity."""
        xp, numbers = self.xp, self._numbers()
        numbers = xp.where(xp.isfinite(numbers), numbers, xp.nan)
        zeros = xp.zeros_like(numbers)
        squares = self._fold((numbers, zeros, zeros), merge_moments)[1]
        count = self.count
        count -= 1
        with np.errstate(all="ignore"):
            squares /= xp.maximum(count, 1, out=count)
            return xp.sqrt(squares, out=squares)

    def min(self) -> Array:
        return self._extreme(self.xp.minimum)

    def max(self) -> Array:
        return self._extreme(self.xp.maximum)

    def _extreme(self, pick: Callable[[Array, Array], Array]) -> Array:
        def merge(older: Parts, younger: Parts, _older: Any, _younger: Any) -> Parts:
            return (pick(older[0], younger[0]),)

        values = self.values
        if values.dtype.kind == "f":
            values = values + values.dtype.type(0)  # -0.0 and 0.0 are equal: which one is chance
        return self._fold((values,), merge)[0]

    def quantile(self, level: float) -> Array:
        """Return quantiles, as float64 (:mod:`quantiles`)."""
        return quantiles(self.xp, self.values, self.begin, self.end, level)

    def first(self) -> Array:
        return self._at(self.begin)

    def last(self) -> Array:
        return self._at(self.end - 1)

    def _at(self, positions: Array) -> Array:
        xp = self.xp
        if not self.values.shape[0]:
            return xp.zeros(positions.shape[0], dtype=self.values.dtype)
        return self.values[xp.clip(positions, 0, self.values.shape[0] - 1)]

    def statistic(self, name: str, min_count: int) -> tuple[Array, Array]:
        """Return one of ``STATISTICS``, or a quantile, per window and where it is not null.

        Null are: everything but ``count`` in windows of fewer than ``min_count`` values, and
        ``std`` of fewer than two.
        """
        xp, count = self.xp, self.count
        if name == "count":
            return count, xp.ones(count.shape[0], dtype=xp.bool_)
        valid = count >= max(min_count, 2 if name == "std" else 1)
        level = level_of(name)
        made = getattr(self, name)() if level is None else self.quantile(level)
        return canonical(xp, made, valid), valid


def canonical(xp: Any, values: Array, valid: Array) -> Array:
    """Return values with 0 under nulls and one bit pattern for NaN, so equal values are equal bits."""
    values = xp.where(valid, values, values.dtype.type(0))
    if values.dtype.kind == "f":
        values[xp.isnan(values)] = values.dtype.type(xp.nan)
    return values
