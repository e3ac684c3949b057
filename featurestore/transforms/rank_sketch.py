"""One column's distribution in bounded memory: of which rank a value is, and which value a rank has.

Two summaries of the same values, side by side.

* *Cells.* The line of float64 is cut into cells whose ends share their leading bits, all at one depth:
  the finest at which at most ``MOST_CELLS`` cells hold values. Of each are kept how many values it holds,
  the smallest and the largest. The depth follows from the values alone, and cells of a depth are put
  together from those of a finer one by adding. So the cells of a column **do not depend on the order of
  its values, nor on how they were cut and merged, bit for bit**. Few distinct values have a cell each, and
  everything is exact. Else a rank is off by at most the values of one cell with two different values.
* *Picks.* Values that stand for ``2**h`` values each, at most ``MOST_PICKS`` of each weight. Where a weight
  has more, every second of them goes and the rest stand for twice as many (Manku, Rajagopalan, Lindsay
  1998; merged as in Agarwal et al. 2012, which of two goes is decided by the number of rows). That moves no rank by more than ``2**h``,
  and the sum of all that is kept as ``error``. A weight's values are halved at most ``n / (MOST_PICKS *
  2**h)`` times, so that ``error <= n * (2 + log2(n / MOST_PICKS)) / MOST_PICKS``: 0.7% for ten million
  rows, 1% for a billion.

Cells answer as long as no cell with two different values has more than ``HEAVIEST`` of the rows: then a
rank is off by at most that, and the answer is the same for every partitioning. Picks answer for the rest,
where half the rows are in a range too narrow for the cells that the other half needs. Their answer depends on
how rows were cut, within twice ``error``; the smallest and largest value are exact either way.

Always true: what is kept of rows in a given order, cut and merged in a given way, is the same bits each
time; there is no random number. Trade-off: no deterministic summary that is bounded, the same however
it was merged, and right for any data can be much smaller than the square of 1 / error, so there are two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.engines.protocol import Array

MOST_CELLS: Final = 4096
MOST_PICKS: Final = 2048
HEAVIEST: Final = 0.01
"""Of the rows: as many may be in one cell with different values, where cells answer."""
_DEEPEST: Final = 63

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Words: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"


@dataclass(frozen=True, slots=True)
class Cells:
    """How many values there are from a smallest to a largest, in ascending order; arrays of one length."""

    count: Integers
    smallest: Floats
    largest: Floats

    def __len__(self) -> int:
        return len(self.count)

    @property
    def rows(self) -> int:
        return int(self.count.sum())

    @property
    def heaviest(self) -> int:
        """The most values of a cell whose values are not all equal."""
        unequal = self.count[self.smallest < self.largest]
        return int(unequal.max(initial=0))

    def order_statistics(self, ranks: Integers) -> Floats:
        """Return the values that have these ranks (0 the smallest); inside of a cell, evenly spread."""
        ends = np.cumsum(self.count)
        cell = np.searchsorted(ends, ranks, side="right")
        inside = ranks - (ends[cell] - self.count[cell])
        low, high = self.smallest[cell], self.largest[cell]
        share = inside / np.maximum(self.count[cell] - 1, 1)
        # Halves, so that a cell may span all of float64.
        between = 2 * (low / 2 * (1 - share) + high / 2 * share)
        between = np.where((share == 0) | (low == high), low, between)
        return np.clip(np.where(share == 1, high, between), low, high)

    def quantiles(self, shares: Floats) -> Floats:
        """Return quantiles: between two values in proportion, as NumPy's ``linear`` (type 7)."""
        place = shares * (self.rows - 1)
        # A share that means a rank is that rank, whatever rounding made of it: 0.3 of 10 is 3.
        rank = np.rint(place)
        place = np.where(np.abs(place - rank) <= 1e-14 * self.rows, rank, place)
        below = np.floor(place).astype(np.int64)
        low = self.order_statistics(below)
        high = self.order_statistics(np.minimum(below + 1, self.rows - 1))
        part = place - below
        with np.errstate(over="ignore", invalid="ignore"):
            apart = high - low
            near = np.where(part < 0.5, low + apart * part, high - apart * (1 - part))
        far = 2 * (low / 2 * (1 - part) + high / 2 * part)
        return np.clip(np.where(np.isfinite(apart), near, far), low, high)


@dataclass(frozen=True, slots=True)
class RankSketch:
    """A column's finite values.

    Parameters
    ----------
    depth : int
        How many of the last bits the values of a cell may differ in; 0: each distinct value has its own.
    error : int
        By how many rows the picks may be wrong about a rank, at most.
    cells : Cells
    picks : mapping of int to array
        By ``h``, those that stand for ``2**h`` values, ascending; empty while ``depth`` is 0.
    """

    depth: int
    error: int
    cells: Cells
    picks: dict[int, Floats]

    @property
    def rows(self) -> int:
        return self.cells.rows

    @property
    def answering(self) -> Cells:
        """What ranks and quantiles are taken from."""
        if self.depth == 0 or self.cells.heaviest <= HEAVIEST * self.rows:
            return self.cells
        return self._of_picks()

    @property
    def rank_error(self) -> int:
        """By how many rows an answer may be wrong, at most; 0: it is exact."""
        if self.depth == 0 or self.cells.heaviest <= HEAVIEST * self.rows:
            return self.cells.heaviest
        return self.error + 1

    def _of_picks(self) -> Cells:
        values = np.concatenate(list(self.picks.values()))
        weights = np.repeat(
            [2**one for one in self.picks], [len(one) for one in self.picks.values()]
        )
        order = np.argsort(values, kind="stable")
        values, weights = values[order], weights[order].astype(np.int64)
        # One of what the first stands for is the smallest, and one of the last's the largest.
        weights[0] -= 1
        weights[-1] -= 1
        some = weights > 0
        ends = self.cells.smallest[:1], self.cells.largest[-1:]
        values = np.concatenate([ends[0], values[some], ends[1]])
        weights = np.concatenate([[1], weights[some], [1]])
        return Cells(weights, values, values)

    def merge(self, other: RankSketch) -> RankSketch:
        """Return the sketch of both columns' values together."""
        if not other.rows or not self.rows:
            return self if self.rows else other
        depth, cells = _merged_cells(self, other)
        if depth == 0:
            return RankSketch(0, 0, cells, {})
        picks: dict[int, list[Floats]] = {}
        for one in (self, other):
            for level, values in (one.picks or _weighted(one.cells)).items():
                picks.setdefault(level, []).append(values)
        kept, lost = _halved(picks, cells.rows)
        return RankSketch(depth, self.error + other.error + lost, cells, kept)


def empty_sketch() -> RankSketch:
    """Return the sketch of no values."""
    none = np.zeros(0)
    return RankSketch(0, 0, Cells(np.zeros(0, dtype=np.int64), none, none), {})


def sketch_sorted(values: Array, xp: Any, to_host: Any) -> RankSketch:
    """Return the sketch of finite float64 values in ascending order, none of them ``-0.0``."""
    rows = int(values.shape[0])
    if rows == 0:
        return empty_sketch()
    gaps = _words(values, xp)
    gaps = gaps[1:] ^ gaps[:-1]
    depth = _depth(gaps, 0, xp)
    begins = xp.flatnonzero(gaps >= xp.uint64(1 << depth)) + 1
    del gaps
    begins = xp.concatenate([xp.zeros(1, dtype=begins.dtype), begins])
    ends = xp.concatenate([begins[1:], xp.full(1, rows, dtype=begins.dtype)])
    cells = Cells(
        to_host(ends - begins).astype(np.int64), to_host(values[begins]), to_host(values[ends - 1])
    )
    if depth == 0:
        return RankSketch(0, 0, cells, {})
    picks, error = _picked(values, xp, to_host)
    return RankSketch(depth, error, cells, picks)


def _words(values: Array, xp: Any) -> Array:
    """Return unsigned integers that are in the order of float64 values."""
    bits = values.view(xp.int64)
    return (bits ^ ((bits >> 63) & xp.int64(2**63 - 1))).view(xp.uint64) ^ xp.uint64(2**63)


def _depth(gaps: Array, least: int, xp: Any) -> int:
    """Return the least depth at which values, given where neighbours differ, are in few enough cells."""
    low, high = least, _DEEPEST
    while low < high:
        middle = (low + high) // 2
        if int(xp.count_nonzero(gaps >= xp.uint64(1 << middle))) < MOST_CELLS:
            high = middle
        else:
            low = middle + 1
    return low


def _merged_cells(one: RankSketch, other: RankSketch) -> tuple[int, Cells]:
    a, b = one.cells, other.cells
    low = np.concatenate([a.smallest, b.smallest])
    # Of two cells of one range, whichever begins first: their values are put together below.
    order = np.argsort(low, kind="stable")
    low = low[order]
    high = np.concatenate([a.largest, b.largest])[order]
    count = np.concatenate([a.count, b.count])[order]
    words = _words(low, np)
    gaps = words[1:] ^ words[:-1]
    depth = _depth(gaps, max(one.depth, other.depth), np)
    begins = np.concatenate([[0], np.flatnonzero(gaps >= np.uint64(1 << depth)) + 1])
    return depth, Cells(
        np.add.reduceat(count, begins), low[begins], np.maximum.reduceat(high, begins)
    )


def _picked(values: Array, xp: Any, to_host: Any) -> tuple[dict[int, Floats], int]:
    """Return the middle of each run of ``2**h`` ascending values, and by how much ranks are off."""
    rows = int(values.shape[0])
    level = max(0, (-(-rows // MOST_PICKS) - 1).bit_length())
    width = 1 << level
    whole = rows // width
    picks = {level: to_host(values[width // 2 : whole * width : width])}
    start = whole * width
    for lower in reversed(range(level)):
        if (rows - start) >> lower:
            middle = start + (1 << lower) // 2
            picks[lower] = to_host(values[middle : middle + 1])
            start += 1 << lower
    return {one: np.array(picks[one]) for one in sorted(picks)}, width // 2


def _weighted(cells: Cells) -> dict[int, Floats]:
    """Return values of exact cells as picks: a value that is there 5 times stands for 4 and for 1."""
    highest = int(cells.count.max(initial=0)).bit_length()
    found = {level: cells.smallest[(cells.count >> level) & 1 == 1] for level in range(highest)}
    return {level: values for level, values in found.items() if len(values)}


def _halved(picks: dict[int, list[Floats]], rows: int) -> tuple[dict[int, Floats], int]:
    """Return picks of which no weight has too many, and by how much more ranks are off."""
    kept: dict[int, Floats] = {}
    lost, level = 0, 0
    while picks:
        values = np.sort(np.concatenate(picks.pop(level, [np.zeros(0)])))
        if len(values) > MOST_PICKS:
            # An odd one stays, the largest. Which of each two goes alternates as rows are added.
            even = len(values) // 2 * 2
            second = rows // (MOST_PICKS << level) & 1
            picks.setdefault(level + 1, []).append(values[second:even:2])
            values = values[even:]
            lost += 1 << level
        if len(values):
            kept[level] = values
        level += 1
    return kept, lost
