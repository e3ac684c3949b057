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

from featurestore.engines.protocol import Array
from featurestore.engines.time_trees import Merge, Parts
from featurestore.errors import InvalidInputError

Leaves: TypeAlias = "Callable[[Any, Array, Array, Array], Parts]"
"""``leaves(xp, values, valid, times)``: the folds of single rows."""

_WORD: Final = 2.0**64


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
    """

    name: str
    empty: tuple[float, ...]
    leaves: Leaves
    merge: Merge
    exact: bool = True


def _added(xp: Any, older: Parts, younger: Parts) -> Parts:
    return tuple(a + b for a, b in zip(older, younger, strict=True))


def _counted(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    return (valid.astype(xp.int64),)


COUNT: Final = Fold("count", (0,), _counted, _added)
"""How many values: ``(int64,)``."""


def _numbers(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    # Not 0.0: that would turn -0.0 into 0.0 when it is added.
    return (xp.where(valid, values.astype(xp.float64, copy=False), -0.0),)


SUM: Final = Fold("sum", (-0.0,), _numbers, _added, exact=False)
"""Sums of floats: ``(float64,)``."""


def _wide(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
    whole = values if values.dtype == xp.uint64 else values.astype(xp.int64)
    whole = xp.where(valid, whole, whole.dtype.type(0))
    low = whole.astype(xp.uint64) if whole.dtype == xp.uint64 else whole.view(xp.uint64)
    high = xp.zeros(low.shape[0], dtype=xp.int64)
    if whole.dtype != xp.uint64:
        high[whole < 0] = -1
    return low, high


def _added_wide(xp: Any, older: Parts, younger: Parts) -> Parts:
    low = older[0] + younger[0]
    high = older[1] + younger[1]
    high += low < older[0]  # the carry
    return low, high


WHOLE: Final = Fold("whole", (0, 0), _wide, _added_wide)
"""Exact sums of integers of up to 64 bits: their 128 bits as ``(uint64, int64)``."""


def whole_sums(xp: Any, parts: Parts, *, unsigned: bool) -> Array:
    """Return sums of integers in 64 bits.

    Raises
    ------
    InvalidInputError
        If one does not fit.
    """
    low, high = parts
    if unsigned:
        out, fits = low, high == 0
    else:
        out = low.view(xp.int64)
        fits = high == (out >> 63)
    if not bool(fits.all()):
        raise InvalidInputError(
            f"a running sum of integers, about {float(wide_numbers(xp, parts)[~fits][0]):.3g}, does "
            "not fit 64 bits",
            "cast the column to float64 first",
        )
    return out


def wide_numbers(xp: Any, parts: Parts) -> Array:
    """Return sums of integers as ``float64``."""
    low, high = parts
    near = low.view(xp.int64)
    far = high.astype(xp.float64) * _WORD + low.astype(xp.float64)
    return xp.where(high == (near >> 63), near.astype(xp.float64), far)


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


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its error, which together are exact."""
    total = a + b
    shifted = total - a
    return total, (a - (total - shifted)) + (b - shifted)


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


MIN: Final = Fold("min", (0, 0), _known, _picked(lambda xp, a, b: xp.minimum(a, b)))
MAX: Final = Fold("max", (0, 0), _known, _picked(lambda xp, a, b: xp.maximum(a, b)))
FIRST: Final = Fold("first", (0, 0), _known, _picked(lambda xp, a, b: a))
LAST: Final = Fold("last", (0, 0), _known, _picked(lambda xp, a, b: b))
LAST_TIME: Final = Fold("last_time", (0, 0), _timed, _picked(lambda xp, a, b: b))
LAST_TRUE: Final = Fold("last_true", (0, 0), _timed_true, _picked(lambda xp, a, b: b))
"""Whether there is a value, and which: ``(bool, the column's dtype)``; of the last ones, its time."""
FOLDS: Final = {
    one.name: one
    for one in (COUNT, SUM, WHOLE, MOMENTS, MIN, MAX, FIRST, LAST, LAST_TIME, LAST_TRUE)
}


def deviations(xp: Any, parts: Parts) -> Array:
    """Return standard deviations with ``ddof=1`` of moments; 0 for fewer than two values."""
    with np.errstate(all="ignore"):
        return xp.sqrt(parts[3] / xp.maximum(parts[0] - 1.0, 1.0))
