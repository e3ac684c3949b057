"""Ragged runs of items put into rows of one length.

Always true: what is computed on the way is that of a few thousand rows, however many there are.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from featurestore.engines.arrow import HostArray

_CELLS: Final = 2**17
KEPT: Final = ("first", "last")


def fill_rows(
    out: HostArray, begins: HostArray, ends: HostArray, items: HostArray, keep: str
) -> None:
    """Put the items ``begins[i]`` up to ``ends[i]`` at the front of row ``i`` of ``out``.

    Parameters
    ----------
    out : array ``[rows, n]``
        What is in it stays where there are no items.
    begins, ends : array ``[rows]``
    items : array
    keep : {"first", "last"}
        Which ``n`` items of more than ``n``.

    Examples
    --------
    >>> out = np.zeros((2, 2), int)
    >>> fill_rows(out, np.array([0, 3]), np.array([3, 4]), np.array([5, 6, 7, 8]), "last")
    >>> out.tolist()
    [[6, 7], [8, 0]]
    """
    rows, length = out.shape
    places = np.arange(length)
    step = max(1, _CELLS // length)
    for start in range(0, rows, step):
        where = slice(start, start + step)
        sizes = np.minimum(ends[where] - begins[where], length)
        first = begins[where] if keep == "first" else ends[where] - sizes
        there = places < sizes[:, None]
        out[where][there] = items[(first[:, None] + places)[there]]
