"""Copying rows out of row-major arrays: what batches are made by, wherever the arrays lie.

Arrays of a batch are aligned and its own; their memory may be that of a batch that is gone (``buffers``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.errors import InvalidInputError
from training.loading.buffers import Buffers
from training.loading.mixing import Rows


def copied(
    arrays: Mapping[str, HostArray], start: int, stop: int, buffers: Buffers
) -> dict[str, HostArray]:
    """Return rows ``[start, stop)`` of each array."""
    found = {}
    for key, source in arrays.items():
        found[key] = new_rows(stop - start, source, buffers)
        np.copyto(found[key], source[start:stop])
    return found


def taken(arrays: Mapping[str, HostArray], rows: Rows, buffers: Buffers) -> dict[str, HostArray]:
    """Return some rows of each array in the order given; numbers have been checked."""
    found = {}
    for key, source in arrays.items():
        found[key] = new_rows(rows.size, source, buffers)
        take_into(found[key], source, rows)
    return found


def take_into(out: HostArray, source: HostArray, rows: Rows) -> None:
    """Copy some rows of an array; their numbers have been checked."""
    # With "raise" NumPy would fill a second buffer first.
    np.take(source, rows, axis=0, out=out, mode="clip")


def new_rows(rows: int, like: HostArray, buffers: Buffers) -> HostArray:
    """Return an uninitialised array for so many rows of another."""
    return buffers.empty((rows, *like.shape[1:]), like.dtype)


def check_range(start: int, stop: int, rows: int) -> None:
    """Refuse rows ``[start, stop)`` that are not all among ``rows``; raises InvalidInputError."""
    if not 0 <= start <= stop <= rows:
        raise InvalidInputError(f"rows {start} to {stop} lie outside a pack of {rows}")


def checked_bounds(numbers: Rows, rows: int) -> tuple[int, int] | None:
    """Return the smallest and the largest of some row numbers; None if there are none.

    Raises
    ------
    InvalidInputError
        If one is outside ``[0, rows)``.
    """
    if not numbers.size:
        return None
    first, last = int(numbers.min()), int(numbers.max())
    if first < 0 or last >= rows:
        raise InvalidInputError(f"rows {first} to {last} lie outside a pack of {rows} rows")
    return first, last
