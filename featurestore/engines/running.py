"""Statistics of everything so far, as folds for :mod:`time_trees`: what a row is, and how runs are merged.

Always true: a run without values changes nothing, bit for bit. Folds of counts, integers, extremes and
first or last values are exact, so their order does not matter; sums of floats and moments have the order
that the tree gives them. Arrays under runs without values hold what ``empty`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.engines.double_double import two_sum
from featurestore.engines.protocol import Array
from featurestore.engines.time_trees import Merge, Parts
from featurestore.engines.wide_sums import added, as_numbers, between, in_64_bits, wide

Leaves: TypeAlias = "Callable[[Any, Array, Array, Array], Parts]"
"""``leaves(xp, values, valid, places)``: the folds of single rows; where they are is a time, or a number."""
Scan: TypeAlias = "Callable[[Any, Parts, Array], Parts]"
"""``scan(xp, leaves, begin)``: the fold of what comes before each leaf in its group, which begins there."""
Shift: TypeAlias = "Callable[[Any, Parts, Array], Parts]"
"""``shift(xp, parts, by)``: the same folds if places are numbers and all are so much larger."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One kind of fold.

    Parameters
    ----------
    name : str
    empty : tuple of float
        What each part is for no rows.
    leaves, merge : callable
    exact : bool
        Whether the order of merges cannot be seen in the result.
    scan : callable, optional
        A shorter way than a tree, for exact ones.
    shift : callable, optional
        For those that know places.
    """

    name: str
    empty: tuple[float, ...]
    leaves: Leaves
    merge: Merge
    exact: bool = True
    scan: Scan | None = None
    shift: Shift | None = None

    @property
    def is_added(self) -> bool:
        """Whether it is one integer, which is added."""
        return self.merge is _added and self.exact


def _added(xp: Any, older: Parts, younger: Parts) -> Parts:
    return tuple(a + b for a, b in zip(older, younger, strict=True))


def _counted(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    return (valid.astype(xp.int64),)


def _each(xp: Any, values: Array, valid: Array, places: Array) -> Parts:
    return (xp.ones(valid.shape[0], dtype=xp.int64),)


def added_before(xp: Any, leaves: Parts, begin: Array) -> Parts:
    """Return the sums of integers before each leaf in its group; they wrap."""
    out = []
    for part in leaves:
        before = xp.cumsum(part)
        before -= part
        before -= before[begin]
        out.append(before)
    return tuple(out)


COUNT: Final = Fold("count", (0,), _counted, _added, scan=added_before)
"""How many values: ``(int64,)``."""
ROWS: Final = Fold("rows", (0,), _each, _added, scan=added_before)
"""How many rows: ``(int64,)``."""


def _numbers(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    # Not 0.0: that would turn -0.0 into 0.0 when it is added.
    return (xp.where(valid, values.astype(xp.float64, copy=False), -0.0),)


SUM: Final = Fold("sum", (-0.0,), _numbers, _added, exact=False)
"""Sums of floats: ``(float64,)``."""


def _wide(xp: Any, values: Array, valid: Array, places: Array) -> Parts:
    return wide(xp, values, valid)


def _added_wide(xp: Any, older: Parts, younger: Parts) -> Parts:
    return added((older[0], older[1]), (younger[0], younger[1]))


def _wide_before(xp: Any, leaves: Parts, begin: Array) -> Parts:
    return between(xp, (leaves[0], leaves[1]), begin, xp.arange(begin.shape[0], dtype=xp.int64))


WHOLE: Final = Fold("whole", (0, 0), _wide, _added_wide, scan=_wide_before)
"""Exact sums of integers of up to 64 bits: their 128 bits as ``(uint64, int64)``."""


def whole_sums(xp: Any, parts: Parts, *, unsigned: bool) -> Array:
    """Return sums of integers in 64 bits.

    Raises
    ------
    InvalidInputError
        If one does not fit.
    """
    what = "a running sum of integers"
    return in_64_bits(xp, (parts[0], parts[1]), unsigned=unsigned, what=what)


def wide_numbers(xp: Any, parts: Parts) -> Array:
    """Return sums of integers as ``float64``."""
    return as_numbers(xp, (parts[0], parts[1]))


# --- moments --------------------------------------------------------------------------------------


def _moment_leaves(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    numbers = values.astype(xp.float64, copy=False)
    # One bit pattern for all that has no deviation.
    numbers = xp.where(xp.isfinite(numbers), numbers, xp.nan)
    zero = xp.zeros(numbers.shape[0], dtype=xp.float64)
    return valid.astype(xp.float64), xp.where(valid, numbers, 0.0), zero, zero.copy()


def merge_weighted(
    xp: Any, older: tuple[Array, ...], younger: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Merge ``(weight, mean, low part of the mean, sum of weighted squared deviations)``.

    The mean is kept in two numbers, so that deviations are right even where they are 1e12 times smaller.
    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, 1979; two-sum of D. E. Knuth.
    """
    (one, mean, low, squares), (other, mean_2, low_2, squares_2) = older, younger
    total = one + other
    delta, error = two_sum(mean_2, -mean)
    delta = delta + (error + (low_2 - low))
    share = other / xp.where(total > 0, total, 1.0)
    high, rest = two_sum(mean, delta * share)
    made = (total, *two_sum(high, rest + low), squares + squares_2 + delta * delta * (one * share))
    alone = xp.where(one == 0, True, False), xp.where(other == 0, True, False)
    return tuple(
        xp.where(alone[0], b, xp.where(alone[1], a, c))
        for a, b, c in zip(older, younger, made, strict=True)
    )


MOMENTS: Final = Fold("moments", (0.0, 0.0, 0.0, 0.0), _moment_leaves, merge_weighted, exact=False)
"""Count, mean (in two numbers) and sum of squared deviations."""


# --- values of rows -------------------------------------------------------------------------------


def _known(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)  # -0.0 and 0.0 are equal: which one is chance
    return valid, xp.where(valid, values, values.dtype.type(0))


def _timed(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    return valid, xp.where(valid, times, 0)


def _timed_true(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    return _timed(xp, values, valid & values, times)


def _picked(pick: Callable[[Any, Array, Array], Array]) -> Merge:
    def merge(xp: Any, older: Parts, younger: Parts) -> Parts:
        both = pick(xp, older[1], younger[1])
        value = xp.where(younger[0], xp.where(older[0], both, younger[1]), older[1])
        return older[0] | younger[0], value

    return merge


def _first_before(xp: Any, leaves: Parts, begin: Array) -> Parts:
    valid, values = leaves
    found = xp.flatnonzero(valid)
    count = xp.cumsum(valid, dtype=xp.int64)
    count -= valid
    earlier = count[begin]
    return _at_found(xp, values, found, earlier, count > earlier)


def _last_before(xp: Any, leaves: Parts, begin: Array) -> Parts:
    valid, values = leaves
    found = xp.flatnonzero(valid)
    count = xp.cumsum(valid, dtype=xp.int64)
    count -= valid
    return _at_found(xp, values, found, count - 1, count > count[begin])


def _at_found(xp: Any, values: Array, found: Array, number: Array, known: Array) -> Parts:
    if not found.shape[0]:
        return known, xp.zeros_like(values)
    at = found[xp.clip(number, 0, found.shape[0] - 1)]
    return known, xp.where(known, values[at], values.dtype.type(0))


MIN: Final = Fold("min", (0, 0), _known, _picked(lambda xp, a, b: xp.minimum(a, b)))
MAX: Final = Fold("max", (0, 0), _known, _picked(lambda xp, a, b: xp.maximum(a, b)))
FIRST: Final = Fold("first", (0, 0), _known, _picked(lambda xp, a, b: a), scan=_first_before)
LAST: Final = Fold("last", (0, 0), _known, _picked(lambda xp, a, b: b), scan=_last_before)
LAST_TIME: Final = Fold("last_time", (0, 0), _timed, _picked(lambda xp, a, b: b), scan=_last_before)
LAST_TRUE: Final = Fold(
    "last_true", (0, 0), _timed_true, _picked(lambda xp, a, b: b), scan=_last_before
)
"""Whether there is a value, and which: ``(bool, the column's dtype)``; of the last ones, its time."""
FOLDS: Final = {
    one.name: one
    for one in (COUNT, ROWS, SUM, WHOLE, MOMENTS, MIN, MAX, FIRST, LAST, LAST_TIME, LAST_TRUE)
}


def deviations(xp: Any, parts: Parts) -> Array:
    """Return standard deviations with ``ddof=1`` of moments; 0 for fewer than two values."""
    with np.errstate(all="ignore"):
        return xp.sqrt(parts[3] / xp.maximum(parts[0] - 1.0, 1.0))
