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
