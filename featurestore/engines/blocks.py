"""Work on long arrays piece by piece, so that what is computed on the way stays small.

Always true: the pieces cover all elements once, in order; where each element is computed on its own,
the values are those of one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

_BLOCK: Final = 16_384


def blocks(rows: int, xp: Any) -> Iterator[slice]:
    """Yield slices that fit a CPU's cache; on a GPU, all rows at once.

    Examples
    --------
    >>> list(blocks(20_000, np))
    [slice(0, 16384, None), slice(16384, 20000, None)]
    """
    size = _BLOCK if xp is np else max(rows, 1)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
