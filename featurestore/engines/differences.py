"""Differences of whole numbers, exact or refused: never wrapped, never rounded."""

from __future__ import annotations

from typing import Any

from featurestore.engines.protocol import Array
from featurestore.errors import InvalidInputError


def whole_difference(xp: Any, new: Array, old: Array, known: Array) -> Array:
    """Return the exact differences of integers as int64; whatever where they are not known.

    Raises
    ------
    InvalidInputError
        If one does not fit 64 bits.
    """
    if new.dtype == xp.uint64:
        made = (new - old).view(xp.int64)  # integers wrap
        wrong = (made >= 0) != (new >= old)
    else:
        new, old = (one.astype(xp.int64, copy=False) for one in (new, old))
        made = new - old
        wrong = ((new ^ old) & (new ^ made)) < 0
    if bool(xp.any(wrong & known)):
        raise InvalidInputError(
            "the difference of two integers does not fit 64 bits",
            "cast the column to float64 first",
        )
    return made
