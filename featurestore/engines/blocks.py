"""Work on long arrays piece by piece, so that what is computed on the way stays small.

Always true: the pieces cover all elements once, in order; where each element is computed on its own,
the values are those of one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from featurestore.engines.protocol import Array

_BLOCK: Final = 16_384
_RUNS: Final = 2**16
"""So many numbers, and what is made of them, stay in a CPU's cache from step to step."""


def blocks(rows: int, xp: Any, block: int = _BLOCK) -> Iterator[slice]:
    """Yield slices that fit a CPU's cache, ``block`` rows each; on a GPU, all rows at once.

    Examples
    --------
    >>> list(blocks(20_000, np))
    [slice(0, 16384, None), slice(16384, 20000, None)]
    """
    size = block if xp is np else max(rows, 1)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def whole_runs(xp: Any, number: Array) -> Iterator[slice]:
    """Yield stretches of ascending numbers that end where these change, and fit a CPU's cache if runs do.

    On a GPU, all at once.

    Examples
    --------
    >>> list(whole_runs(np, np.array([0, 0, 1])))
    [slice(0, 3, None)]
    """
    start, size = 0, number.shape[0]
    while start < size:
        stop = start + _RUNS if xp is np else size
        if stop < size:
            stop = int(np.searchsorted(number, number[stop], side="left"))
            if stop <= start:
                stop = int(np.searchsorted(number, number[start], side="right"))
        yield slice(start, min(stop, size))
        start = stop


def mapped(values: Array, dtype: Any, xp: Any, one: Callable[[Array], Array]) -> Array:
    """Return what ``one`` makes of values as float64, a block at a time; it may write to what it gets.

    Examples
    --------
    >>> mapped(np.array([1, 2]), np.float32, np, lambda part: part * 0.5).tolist()
    [0.5, 1.0]
    """
    out = xp.empty(values.shape, dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for where in blocks(int(values.shape[0]), xp):
            out[where] = one(values[where].astype(xp.float64))
    return out
