"""Sums of integers of up to 64 bits, exact in 128: of runs, of runs of runs, and as numbers of 64 bits.

A sum is a pair ``(uint64, int64)``: its lower and its upper half. Written once for NumPy and CuPy (``xp``).

Always true: fewer than 2**32 integers are added without error, whatever their order.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from featurestore.engines.protocol import Array
from featurestore.errors import InvalidInputError

Wide: TypeAlias = "tuple[Array, Array]"
_WORD: Final = 2.0**64


def wide(xp: Any, values: Array, valid: Array | None = None) -> Wide:
    """Return integers or booleans in 128 bits; 0 where they are not valid."""
    whole = values if values.dtype == xp.uint64 else values.astype(xp.int64)
    if valid is not None:
        whole = xp.where(valid, whole, whole.dtype.type(0))
    low = whole.astype(xp.uint64) if whole.dtype == xp.uint64 else whole.view(xp.uint64)
    high = xp.zeros(low.shape[0], dtype=xp.int64)
    if whole.dtype != xp.uint64:
        high[whole < 0] = -1
    return low, high


def added(older: Wide, younger: Wide) -> Wide:
    """Return sums of two."""
    low = older[0] + younger[0]
    high = older[1] + younger[1]
    high += low < older[0]  # the carry
    return low, high


def between(xp: Any, numbers: Wide, begin: Array, end: Array) -> Wide:
    """Return the sums of the runs ``[begin, end)`` of numbers."""
    # In words of 32 bits, of which sums do not wrap.
    low, high = numbers
    word, half = xp.uint64(2**32 - 1), xp.uint64(32)
    first = _run(xp, low & word, begin, end)
    second = _run(xp, low >> half, begin, end) + (first >> half)
    third = _run(xp, high, begin, end) + (second >> half).view(xp.int64)
    return (second << half) | (first & word), third


def _run(xp: Any, words: Array, begin: Array, end: Array) -> Array:
    before = xp.zeros(words.shape[0] + 1, dtype=words.dtype)
    xp.cumsum(words, out=before[1:])
    return before[end] - before[begin]


def in_64_bits(xp: Any, sums: Wide, *, unsigned: bool, what: str) -> Array:
    """Return sums in 64 bits.

    Raises
    ------
    InvalidInputError
        If one does not fit; ``what`` says what it is.
    """
    low, high = sums
    if unsigned:
        out, fits = low, high == 0
    else:
        out = low.view(xp.int64)
        fits = high == (out >> 63)
    if not bool(fits.all()):
        raise InvalidInputError(
            f"{what}, about {float(as_numbers(xp, sums)[~fits][0]):.3g}, does not fit 64 bits",
            "cast the column to float64 first",
        )
    return out


def as_numbers(xp: Any, sums: Wide) -> Array:
    """Return sums as ``float64``: rounded once where they fit ``int64``, at most twice beyond."""
    low, high = sums
    near = low.view(xp.int64)
    far = high.astype(xp.float64) * _WORD + low.astype(xp.float64)
    return xp.where(high == (near >> 63), near.astype(xp.float64), far)
