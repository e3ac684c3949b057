"""Words and characters of texts, and hashes of runs of them, the same wherever they are computed.

The rule, which uses no library's idea of a word: a *character* is a code point. A *word* is a longest run
of characters that are no separators; separators are all of ASCII but letters, digits and ``_``, and the
punctuation, spaces and symbols of the blocks in ``_SEPARATORS``. Nothing is normalised; texts are in
lower case before, if they shall be.

Always true: the hash of a token depends on its characters only, and can never change. Trade-off: languages
that write without spaces have one word per run of letters; use characters there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from featurestore.engines.arrow import HostArray
from featurestore.engines.hashing import hash_numbers, hash_strings, splitmix64

UNITS: Final = ("words", "characters")
_SEPARATORS: Final = (
    (0x00, 0x2F), (0x3A, 0x40), (0x5B, 0x5E), (0x60, 0x60), (0x7B, 0x7F),  # ASCII
    (0x80, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7),  # Latin-1
    (0x1680, 0x1680), (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2190, 0x23FF), (0x2500, 0x27BF),
    (0x3000, 0x3004), (0x3008, 0x3020), (0xFEFF, 0xFEFF), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40), (0xFF5B, 0xFF65), (0x1F300, 0x1FAFF),
)  # fmt: skip
"""General punctuation, currencies, arrows, symbols, CJK and full-width punctuation, emoji."""
_EDGES: Final = np.array([edge for a, b in _SEPARATORS for edge in (a, b + 1)])

Hashes = npt.NDArray[np.uint64]


def separators(points: HostArray) -> npt.NDArray[np.bool_]:
    """Return which code points are separators.

    Examples
    --------
    >>> separators(np.array([ord(one) for one in "a_9 -ä“。"])).tolist()
    [False, False, False, True, True, False, True, True]
    """
    return np.asarray(np.searchsorted(_EDGES, points, side="right") % 2 == 1)


def hash_tokens(offsets: HostArray, data: HostArray, unit: str) -> tuple[Hashes, HostArray]:
    """Return the hash of each word or character of some texts, in order, and whose it is.

    Parameters
    ----------
    offsets : array ``int64 [rows + 1]``
    data : array ``uint8``
        UTF-8.
    unit : {"words", "characters"}

    Returns
    -------
    hashes : array ``uint64 [tokens]``
    rows : array ``int64 [tokens]``
        Ascending.
    """
    leads = np.flatnonzero((data & 0xC0) != 0x80)
    points = _points(data, leads)
    first = np.searchsorted(leads, offsets)  # each row's first character
    if unit == "characters":
        hashes = np.asarray(hash_numbers(np, points))
        return hashes, np.searchsorted(first, np.arange(len(points)), side="right") - 1
    apart = separators(points)
    fresh = np.ones(
        len(points) + 1, np.bool_
    )  # where a word cannot go on from the character before
    fresh[1:-1] = apart[:-1]
    fresh[first] = True
    begins = np.flatnonzero(~apart & fresh[:-1])
    fresh[:-1] |= apart
    ends = np.flatnonzero(~apart & fresh[1:]) + 1
    limits = np.append(leads, len(data))
    sizes = limits[ends] - limits[begins]
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=bounds[1:])
    kept = data[np.repeat(~apart, np.diff(limits))]
    hashes = np.asarray(hash_strings(np, bounds, kept))
    return hashes, np.searchsorted(first, begins, side="right") - 1


def hash_runs(
    hashes: Hashes, rows: HostArray, sizes: Sequence[int], seed: int
) -> tuple[Hashes, HostArray]:
    """Return the hashes of all runs of so many tokens of one row, by their first token, then by size.

    Examples
    --------
    >>> hashes, rows = np.arange(3, dtype=np.uint64), np.array([0, 0, 1])
    >>> hash_runs(hashes, rows, (1, 2), 0)[1].tolist()
    [0, 0, 0, 1]
    """
    made, whose, places = [], [], []
    for number, size in enumerate(sizes):
        count = max(0, len(hashes) - size + 1)
        total = splitmix64(np, np.full(count, seed, np.uint64))
        for step in range(size):
            total = splitmix64(np, total ^ hashes[step : step + count])
        together = np.flatnonzero(rows[:count] == rows[size - 1 : size - 1 + count])
        made.append(total[together])
        whose.append(rows[together])
        places.append(together * len(sizes) + number)
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(made)[order], np.concatenate(whose)[order]


def _points(data: HostArray, leads: HostArray) -> HostArray:
    """Return the code point that begins at each of these bytes, as ``int64``."""
    first = data[leads].astype(np.int64)
    points = first.copy()
    padded = np.append(data, np.zeros(3, np.uint8)).astype(np.int64)
    for length, mark in ((2, 0xC0), (3, 0xE0), (4, 0xF0)):
        longer = np.flatnonzero(first >= mark)
        if not len(longer):
            break
        # What a shorter reading made of these is overwritten.
        value = first[longer] & (0x7F >> length)
        for step in range(1, length):
            value = value << 6 | (padded[leads[longer] + step] & 0x3F)
        points[longer] = value
    return points
