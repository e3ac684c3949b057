"""Sums of groups that come out the same bits however rows are cut, ordered or put together.

A sum is a fixed-point number of five limbs of 32 bits, each in an ``int64`` so that carries wait, and
``top``, the place of its highest limb: it stands for the sum over ``k`` of ``limb[k] * 2**(32 * (top - k))``.
``top`` follows from the largest exponent among the group's values alone, and what a value has below the
last limb is dropped from that value; so a sum is a function of the set of values.

Always true: sums are exact where values of a group lie within a factor of 2**50 of each other, integers and
squares of one size among them; else what is dropped of a value is below 2**-116 of the largest. Limbs hold 2**31
rows of a group. Trade-off: 44 bytes per sum, and three additions per value, where a float would take 8
and one. Exact expansions (Shewchuk 1997) would need no window but have no fixed size.

Source of the idea: long accumulators, U. Kulisch, "Computer Arithmetic and Validity", 2008; cut to a window as
in J. Demmel, H. D. Nguyen, "Fast Reproducible Floating-Point Summation", 2013.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.engines.blocks import blocks
from featurestore.engines.double_double import two_product
from featurestore.engines.protocol import Array
from featurestore.errors import LimitError

LIMBS: Final = 5
MOST_ROWS: Final = 2**31 - 1
"""Of one group: the limbs of its sum hold no more."""
NOTHING: Final = -(2**31)
"""The ``top`` of a sum of no values, or of zeros only."""
_BITS: Final = 32
_MASK: Final = 2**32 - 1
_MANTISSA: Final = 53
HostArray: TypeAlias = "np.ndarray[Any, Any]"
_Pieces: TypeAlias = tuple[Array, tuple[Array, Array, Array]]


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of groups.

    Parameters
    ----------
    top : Array
        ``int32 [groups]``.
    limbs : Array
        ``int64 [LIMBS, groups]``, highest first.
    """

    top: Array
    limbs: Array

    @classmethod
    def zeros(cls, xp: Any, groups: int) -> Sums:
        top = xp.full(groups, NOTHING, dtype=xp.int32)
        return cls(top, xp.zeros((LIMBS, groups), dtype=xp.int64))

    def at(self, rows: Array) -> Sums:
        """Return the sums of some groups."""
        return Sums(self.top[rows], self.limbs[:, rows])


def sum_groups(xp: Any, values: Array, groups: Array, count: int, *, squares: bool = False) -> Sums:
    """Return the sum, or the sum of squares, of the values of each group.

    Parameters
    ----------
    xp : module
    values : Array
        Numbers or booleans ``[rows]``; floats all finite.
    groups : Array
        ``int64 [rows]`` in ``[0, count)``.
    count : int
    squares : bool

    Examples
    --------
    >>> groups = np.zeros(3, dtype=np.int64)
    >>> sums = sum_groups(np, np.array([1e16, 1.0, -1e16]), groups, 1)
    >>> ratio(sums, np.array([1.0])).tolist()
    [1.0]
    """
    sums = Sums.zeros(xp, count)
    for where in blocks(int(values.shape[0]), xp):
        for low, _ in _pieces(xp, values[where], squares):
            xp.maximum.at(sums.top, groups[where], low)
    flat = sums.limbs.reshape(-1).view(xp.uint64)  # which every array library adds to in place
    for where in blocks(int(values.shape[0]), xp):
        group = groups[where]
        for top, parts in _pieces(xp, values[where], squares):
            # The place of the highest part; zeros are nowhere.
            place = xp.where(top == NOTHING, LIMBS, sums.top[group].astype(xp.int64) - top)
            for k, part in enumerate(parts):
                at = (place + k) * count + group
                inside = place + k < LIMBS
                added = part.view(xp.uint64)
                if not bool(inside.all()):
                    at, added = at[inside], added[inside]
                xp.add.at(flat, at, added)
    return sums


def check_rows(rows: int) -> None:
    """Refuse a group of more rows than a sum holds.

    Raises
    ------
    LimitError
    """
    if rows > MOST_ROWS:
        raise LimitError(
            f"a group has {rows} rows; its sums hold {MOST_ROWS}",
            "learn from fewer rows, or group by more columns",
        )


def merge_runs(sums: Sums, begins: HostArray, chosen: Any = None) -> Sums:
    """Return the sums of runs of adjacent sums.

    Parameters
    ----------
    sums : Sums
        On the host.
    begins : array of int
        Where each run begins; ascending, the first is 0.
    chosen : array of bool, optional
        Which of the sums count; runs without any are empty.
    """
    rows = len(sums.top)
    if not rows:
        return sums
    tops = sums.top if chosen is None else np.where(chosen, sums.top, np.int32(NOTHING))
    top = np.maximum.reduceat(tops, begins).astype(np.int32)
    lengths = np.diff(np.append(begins, rows))
    shift = np.repeat(top, lengths).astype(np.int64) - tops
    if chosen is not None:
        shift[~chosen] = LIMBS
    limbs = np.empty((LIMBS, len(begins)), dtype=np.int64)
    number = np.arange(rows)
    for k in range(LIMBS):
        # What stands at this place in the merged sum stands `shift` places higher in its own.
        own = np.maximum(k - shift, 0)
        part = sums.limbs[own, number]
        part[shift > k] = 0
        limbs[k] = np.add.reduceat(part, begins)
    return Sums(top, limbs)


def ratio(sums: Sums, divisor: HostArray) -> HostArray:
    """Return sums by divisors as ``float64``, right to about 1e-31 before the last rounding."""
    high, low, place = _scaled(sums)
    first = high / divisor
    product, error = two_product(first, divisor)
    with np.errstate(over="ignore"):
        return np.asarray(np.ldexp(first + (((high - product) - error) + low) / divisor, place))


def deviation(sums: Sums, squares: Sums, counts: HostArray) -> HostArray:
    """Return standard deviations (divisor ``n - 1``) of groups of at least two values.

    To about 2**-100 of the sum of squares: 1e-8 relative where the mean is 1e12 times the deviation. What
    is below that is 0, as it is of equal values.
    """
    high, low, place = _scaled(sums)
    whole, rest, scale = _scaled(squares)
    squared, error = two_product(high, high)
    error += 2.0 * high * low
    # In the unit of the squares, which are never less than the squared sum by the count.
    squared, error = (np.ldexp(one, 2 * place - scale) for one in (squared, error))
    first = squared / counts
    product, off = two_product(first, counts)
    spread = (whole - first) + (rest - (((squared - product) - off) + error) / counts)
    spread = np.where(spread <= whole * 2.0**-98, 0.0, spread)
    with np.errstate(over="ignore"):
        spread = np.sqrt(spread / (counts - 1.0))
        return np.asarray(np.ldexp(spread, scale // 2))


def as_numbers(xp: Any, sums: Sums) -> Array:
    """Return sums as ``float64``, rounded once; beyond its range they are infinite."""
    high, _, place = _scaled(sums, xp)
    with np.errstate(over="ignore"):
        return xp.ldexp(high, place)


def _scaled(sums: Sums, xp: Any = np) -> tuple[Array, Array, Array]:
    """Return ``high``, ``low`` and ``place`` of sums ``(high + low) * 2**place``, to 106 bits."""
    limbs = _carried(sums.limbs)
    negative = limbs[0] < 0
    if bool(negative.any()):
        # Digits of the magnitude have one sign, so that nothing cancels below.
        limbs = xp.where(negative, _carried(-sums.limbs), limbs)
    high, low = (xp.zeros(negative.shape[0], dtype=xp.float64) for _ in range(2))
    for k in range(LIMBS):
        # The highest limb holds its carries too: up to 63 bits, exact as two floats.
        for part, bits in ((limbs[k] >> _BITS, _BITS), (limbs[k] & _MASK, 0)):
            digit = part.astype(xp.float64) * 2.0 ** (bits - _BITS * k)
            total = high + digit
            low += digit - (total - high)
            high = total
    total = high + low
    low -= total - high
    sign = xp.where(negative, -1.0, 1.0)
    place = xp.where(sums.top == NOTHING, 0, sums.top).astype(xp.int64) * _BITS
    return sign * total, sign * low, place


def _carried(limbs: Array) -> Array:
    """Return limbs below 2**32 but for the highest, which has the sign."""
    out = limbs.copy()
    for k in range(LIMBS - 1, 0, -1):
        out[k - 1] += out[k] >> _BITS
        out[k] &= _MASK
    return out


def _pieces(xp: Any, values: Array, squares: bool) -> Iterator[_Pieces]:
    """Yield numbers that add up to each value, as the place of three limbs and these."""
    if values.dtype.kind in "bui":
        yield from (_square_of_integer if squares else _integer)(xp, values)
        return
    numbers = values.astype(xp.float64)
    if not squares:
        yield float_limbs(xp, numbers)
        return
    # Scaled by a power of two, so that neither square nor its rounding leaves the range of floats.
    mantissa, exponent = xp.frexp(numbers)
    product, error = two_product(mantissa, mantissa, xp)
    yield float_limbs(xp, product, 2 * exponent)
    yield float_limbs(xp, error, 2 * exponent)


def float_limbs(xp: Any, values: Array, scale: Any = 0) -> _Pieces:
    """Return finite floats times ``2**scale`` as the places of their highest limbs, and three limbs."""
    mantissa, exponent = xp.frexp(values)
    whole = xp.ldexp(mantissa, _MANTISSA).astype(xp.int64)
    return _limbs(xp, whole, exponent.astype(xp.int64) - _MANTISSA + scale)


def _limbs(xp: Any, whole: Array, exponent: Any) -> _Pieces:
    """Return ``whole * 2**exponent``, ``|whole| <= 2**53``, in limbs."""
    place = exponent >> 5
    shift = exponent - (place << 5)
    sign = xp.where(whole < 0, -1, 1)
    size = xp.abs(whole)
    lower, upper = (size & _MASK) << shift, (size >> _BITS) << shift
    middle = (lower >> _BITS) + (upper & _MASK)
    high = (upper >> _BITS) + (middle >> _BITS)
    top = xp.where(whole == 0, NOTHING, place + 2).astype(xp.int32)
    return top, (sign * high, sign * (middle & _MASK), sign * (lower & _MASK))


def _halves(xp: Any, values: Array) -> tuple[Array, Array]:
    """Return ``high`` and ``low`` in ``[0, 2**32)`` with ``values == high * 2**32 + low``."""
    if values.dtype == xp.uint64:
        high, low = values >> xp.uint64(_BITS), values & xp.uint64(_MASK)
        return high.astype(xp.int64), low.astype(xp.int64)
    whole = values.astype(xp.int64)
    return whole >> _BITS, whole & _MASK


def _integer(xp: Any, values: Array) -> Iterator[_Pieces]:
    # All at the same places: no integer is ever cut.
    high, low = _halves(xp, values)
    yield xp.ones(values.shape, dtype=xp.int32), (high, low, xp.zeros_like(low))


def _square_of_integer(xp: Any, values: Array) -> Iterator[_Pieces]:
    high, low = _halves(xp, values)
    yield _product(xp, high, high, 2)
    yield _product(xp, 2 * high, low, 1)
    yield _product(xp, low, low, 0)


def _product(xp: Any, a: Array, b: Array, place: int) -> _Pieces:
    """Return ``a * b * 2**(32 * place)`` in limbs; ``|a| <= 2**33``, ``0 <= |b| <= 2**32``."""
    sign = xp.where((a < 0) != (b < 0), -1, 1)
    a, b = xp.abs(a), xp.abs(b)
    # By halves of 16 bits, so that no product leaves 63 bits.
    first, second = (a & 0xFFFF) * b, (a >> 16) * b
    lower = first + ((second & 0xFFFF) << 16)
    upper = (second >> 16) + (lower >> _BITS)
    parts = (sign * (upper >> _BITS), sign * (upper & _MASK), sign * (lower & _MASK))
    return xp.full(a.shape, place + 2, dtype=xp.int32), parts
