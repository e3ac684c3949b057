"""Double-double arithmetic: a pair (high, low) stands for high + low, |low| <= ulp(high) / 2.

About 32 digits, of which sums and products lose at most the last (Dekker 1971; Knuth's two-sum). Always
true: elementwise, so that pairs of arrays broadcast. Trade-off: beyond 1e290 the low part is lost.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Pair: TypeAlias = "tuple[Floats, Floats]"


def two_sum(a: Any, b: Any) -> Any:
    """Return the sum of two numbers, and what rounding took of it."""
    total = a + b
    shifted = total - a
    return total, (a - (total - shifted)) + (b - shifted)


def _split(a: Any) -> Any:
    # Above 1e290 the split itself would overflow; such columns end in an infinite m2 anyway.
    scaled = 134217729.0 * a
    high = scaled - (scaled - a)
    return high, a - high


def two_product(a: Any, b: Any, xp: Any = np) -> Any:
    """Return the product of two numbers, and what rounding took of it; of ``xp``'s arrays."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, xp.where(xp.isfinite(error), error, 0.0)


def add(a: Pair, b: Pair) -> Pair:
    """Return the sum of two pairs."""
    high, low = two_sum(a[0], b[0])
    high_2, low_2 = two_sum(a[1], b[1])
    high, low = _quick(high, low + high_2)
    return _quick(high, low + low_2)


def _quick(a: Floats, b: Floats) -> Pair:
    total = a + b
    rest = b - (total - a)
    return total, np.where(np.isfinite(rest), rest, 0.0)


def multiply(a: Pair, b: Pair) -> Pair:
    """Return the product of two pairs."""
    product, error = two_product(a[0], b[0])
    return _quick(product, error + (a[0] * b[1] + a[1] * b[0]))


def divide(a: Pair, divisor: Floats) -> Pair:
    """Return a pair divided by numbers."""
    first = a[0] / divisor
    product, error = two_product(first, divisor)
    rest = ((a[0] - product) - error) + a[1]
    return _quick(first, rest / divisor)


def negate(a: Pair) -> Pair:
    """Return a pair with the other sign."""
    return -a[0], -a[1]


def choose(where: np.ndarray[Any, np.dtype[np.bool_]], a: Pair, b: Pair) -> Pair:
    """Return one pair where a condition holds, another elsewhere."""
    return np.where(where, a[0], b[0]), np.where(where, a[1], b[1])
