"""Medians and quantiles of windows, exactly.

Values are numbered in ascending order, and a wavelet matrix over these numbers says how many of a window's
values lie in the lower half of a range, then of half of that, and so on: the k-th value of a window is
found in ``log2`` (range) steps, for all windows at once (F. Claude, G. Navarro, A. Ordóñez, "The Wavelet
Matrix", 2015). Stretches of values that no window has in common, such as groups, are numbered by themselves.

Always true: a quantile is between two values of the window, so it depends on these only: not on where
a partition begins. Trade-off: ``O((n + q) log g)`` for stretches of ``g`` values, however wide windows are.

Written once for NumPy and CuPy (``xp``).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from featurestore.engines.blocks import blocks, whole_runs
from featurestore.engines.protocol import Array

MEDIAN: Final = "median"
_UINT16_VALUES: Final = 2**16
_INT32_VALUES: Final = 2**31 - 1


def level_of(name: str) -> float | None:
    """Return which quantile a statistic is, or None if it is none.

    Examples
    --------
    >>> level_of("median"), level_of("q0.9"), level_of("q1.5"), level_of("mean")
    (0.5, 0.9, None, None)
    """
    if name == MEDIAN:
        return 0.5
    digits = name[1:].replace(".", "", 1)
    # The shortest writing only, so that one quantile has one name.
    if not name.startswith("q") or not digits.isascii() or not digits.isdigit():
        return None
    level = float(name[1:])
    return level if 0.0 <= level <= 1.0 and name[1:] == f"{level:g}" else None


def quantiles(xp: Any, values: Array, begin: Array, end: Array, level: float) -> Array:
    """Return a quantile of each window, linearly interpolated between the two values next to it.

    Parameters
    ----------
    xp : module
    values : Array
        ``[m]``
    begin, end : Array
        ``int64 [q]``: the window holds ``values[begin:end]``; none if they are equal.
    level : float
        From 0 to 1.

    Returns
    -------
    Array
        ``float64 [q]``; NaN for windows that hold NaN; of empty windows, whatever.
    """
    size = values.shape[0]
    out = xp.zeros(begin.shape[0], dtype=xp.float64)
    if not size or not begin.shape[0]:
        return out
    number = _stretches(xp, size, begin, end)
    # Windows in order of where they begin; those without values may begin behind the last one.
    at = xp.minimum(begin, size - 1)
    order = None if bool((at[1:] >= at[:-1]).all()) else xp.argsort(at, kind="stable")
    at = at if order is None else at[order]
    for where in whole_runs(xp, number):
        first, last = (
            int(one) for one in xp.searchsorted(at, xp.asarray([where.start, where.stop]))
        )
        if first == last:
            continue
        chosen = slice(first, last) if order is None else order[first:last]
        low, high = (xp.minimum(one[chosen], where.stop) - where.start for one in (begin, end))
        out[chosen] = _of_stretches(xp, values[where], number[where], low, high, level)
    return out


def _of_stretches(
    xp: Any, values: Array, number: Array, begin: Array, end: Array, level: float
) -> Array:
    """Return the quantiles of windows of some stretches, of which ``number`` says which value is in which."""
    # Half as wide where places fit: all that follows moves them about.
    integer = xp.int32 if values.shape[0] < _INT32_VALUES else xp.int64
    begin, end = begin.astype(integer), end.astype(integer)
    share = xp.maximum(end - begin - 1, 0) * level
    low = xp.floor(share)
    share -= low
    low = low.astype(integer)
    ascending = (
        xp.lexsort(xp.stack([values, number])) if xp is not np else _ascending(values, number)
    )
    groups = _begins(xp, number).astype(integer)
    rank = xp.empty(values.shape[0], dtype=integer)
    rank[ascending] = xp.arange(values.shape[0], dtype=integer) - groups
    numbers = values[ascending].astype(xp.float64, copy=False)
    numbers += 0.0  # -0.0 and 0.0 are equal: which one is chance
    base = groups[xp.minimum(begin, values.shape[0] - 1)]
    del ascending, groups
    between = xp.flatnonzero(share > 0)
    share = share[between]
    low = xp.concatenate([low, low[between] + 1])
    begins, ends = (xp.concatenate([one, one[between]]) for one in (begin, end))
    at = _kth(xp, rank, begins, ends, low)
    del rank, low, begins, ends
    at += xp.concatenate([base, base[between]])
    picked = numbers[xp.clip(at, 0, values.shape[0] - 1, out=at)]
    del numbers, at
    out, above = picked[: begin.shape[0]], picked[begin.shape[0] :]
    if between.shape[0]:
        below = out[between]
        with np.errstate(all="ignore"):
            mixed = below * (1.0 - share) + above * share
        out[between] = xp.where(below == above, below, mixed)
    if values.dtype.kind == "f":
        missing = xp.zeros(values.shape[0] + 1, dtype=xp.int64)
        xp.cumsum(xp.isnan(values), out=missing[1:])
        out[missing[end] > missing[begin]] = xp.nan
    return out


def _ascending(values: Array, number: Array) -> Array:
    order = np.argsort(values)  # equal ones in any order: they are one value
    group = number[order]
    group -= number[0]
    if group.shape[0] <= _UINT16_VALUES:
        group = group.astype(np.uint16)  # which NumPy sorts by radix
    return order[np.argsort(group, kind="stable")]


def _stretches(xp: Any, size: int, begin: Array, end: Array) -> Array:
    """Return ``int64 [size]``: numbers of stretches of values such that no window has values of two."""
    wide = xp.flatnonzero(end - begin > 1)
    # How many windows go on from the value before into each value.
    across = xp.bincount(begin[wide] + 1, minlength=size + 1)[: size + 1]
    across = across - xp.bincount(end[wide], minlength=size + 1)
    fresh = xp.cumsum(across)[:size] == 0
    return xp.cumsum(fresh, dtype=xp.int64)


def _begins(xp: Any, number: Array) -> Array:
    """Return ``int64 [m]``: where the group of each value begins."""
    fresh = xp.ones(number.shape[0], dtype=xp.bool_)
    fresh[1:] = number[1:] != number[:-1]
    starts = xp.flatnonzero(fresh)
    return starts[xp.cumsum(fresh) - 1]


def _kth(xp: Any, rank: Array, begin: Array, end: Array, k: Array) -> Array:
    """Return the ``k``-th smallest (from 0) of ``rank[begin:end]``, for each query; queries are written to.

    All are integers of one width.
    """
    found = xp.zeros_like(k)
    ones = xp.zeros(rank.shape[0] + 1, dtype=rank.dtype)
    for bit in range(int(rank.max()).bit_length() - 1, -1, -1):
        upper = ((rank >> bit) & 1).astype(xp.bool_)
        xp.cumsum(upper, out=ones[1:])
        zeros = rank.shape[0] - int(ones[-1])
        for here in blocks(k.shape[0], xp):
            low, high = begin[here], end[here]
            first, last = ones.take(low), ones.take(high)
            low -= first
            high -= last
            less = high - low
            right = k[here] >= less
            less *= right
            k[here] -= less
            found[here] += right.astype(rank.dtype) << bit
            first += zeros
            last += zeros
            begin[here] = xp.where(right, first, low)
            end[here] = xp.where(right, last, high)
        rank = xp.concatenate([rank[~upper], rank[upper]])
    return found
