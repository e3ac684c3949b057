"""Which rows of a table a report looks at: some slices of each part that is compared.

Rows are taken in runs, because a row costs as much to read as the row group it is in, and at even
distances, so that the same table gives the same report. So a part's sample is spread over its whole time,
but its rows are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from featurestore.dataset.selection import Selection
from featurestore.storage.records import PartitionEntry

ROWS: Final = 4096
"""Rows of a part that are sampled, about."""
SLICES: Final = 4
"""Runs of rows that they are taken in, at most."""
PARTS: Final = 8
"""Parts of a table without a split, at most."""
FEWEST_ROWS: Final = 500
"""Rows of such a part, if there are to be more than two: differences of smaller samples are chance."""
_SPARSE: Final = 8
"""How many rows are read for one that is selected, at most."""

Mask = npt.NDArray[np.bool_]
Masks = Callable[[int, Selection], Mask]
"""Returns which rows of a partition a selection takes; reads it."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of rows of one partition.

    Parameters
    ----------
    position : int
        Of the partition in the table.
    start, stop : int
    kept : array of bool ``[stop - start]``, optional
        Which of them are looked at; None for all.
    """

    position: int
    start: int
    stop: int
    kept: Mask | None = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        return self.stop - self.start if self.kept is None else int(self.kept.sum())


def slices_in_order(sizes: Sequence[int]) -> tuple[tuple[Slice, ...], ...]:
    """Return slices of two to eight parts of equally many rows, in table order.

    Parameters
    ----------
    sizes : sequence of int
        Rows of each partition.
    """
    total = sum(sizes)
    parts = min(PARTS, max(2, total // FEWEST_ROWS), total)
    bounds = [total * part // parts for part in range(parts + 1)] if parts else []
    return tuple(
        tuple(one for run in _runs(start, stop) for one in _within(sizes, *run))
        for start, stop in pairwise(bounds)
    )


def slices_of(
    partitions: Sequence[PartitionEntry], selection: Selection, masks: Masks
) -> tuple[Slice, ...]:
    """Return slices of the rows of a selection, spread over the partitions that it touches.

    A partition that is taken in part is asked for its rows: as many of these as there are slices, at most.
    """
    touched = [
        position
        for position, one in enumerate(partitions)
        if one.rows and selection.covers(one.time_min, one.time_max) != "none"
    ]
    sizes = [partitions[position].rows for position in touched]
    runs = _runs(0, sum(sizes))
    asked: dict[int, list[Slice]] = {}
    for run in runs:
        for one in _within(sizes, *run):
            asked.setdefault(touched[one.position], []).append(one)
    found: list[Slice] = []
    for position, wanted in asked.items():
        entry = partitions[position]
        within = selection.within(entry.time_min, entry.time_max)
        if within.everything:
            found += [Slice(position, one.start, one.stop) for one in wanted]
        else:
            mask = masks(position, within)
            found += _distinct(_selected(position, one, mask) for one in wanted)
    return tuple(found)


def _runs(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of about ``ROWS`` positions together, at even distances; all if there are no more."""
    size = ROWS // SLICES
    if stop - start <= ROWS:
        if start < stop:
            yield start, stop
        return
    for one in range(SLICES):
        first, last = (start + (stop - start) * edge // SLICES for edge in (one, one + 1))
        middle = (first + last - size) // 2
        yield middle, middle + size


def _within(sizes: Sequence[int], start: int, stop: int) -> Iterator[Slice]:
    """Yield the parts of partitions that a range of positions of all their rows covers."""
    for position, end in enumerate(accumulate(sizes)):
        begin = end - sizes[position]
        first, last = max(start - begin, 0), min(stop - begin, sizes[position])
        if first < last:
            yield Slice(position, first, last)


def _selected(position: int, wanted: Slice, mask: Mask) -> Slice | None:
    """Return as many selected rows as were wanted, as far along the selected rows as those were."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return None
    count = min(len(rows), wanted.stop - wanted.start)
    spare = len(mask) - (wanted.stop - wanted.start)
    first = (len(rows) - count) * wanted.start // spare if spare else 0
    start = int(rows[first])
    stop = min(int(rows[first + count - 1]) + 1, start + _SPARSE * (wanted.stop - wanted.start))
    return Slice(position, start, stop, mask[start:stop].copy())


def _distinct(found: Iterable[Slice | None]) -> Iterator[Slice]:
    """Yield slices without those rows that an earlier one has."""
    done = 0
    for one in found:
        if one is None or one.stop <= done:
            continue
        start = max(one.start, done)
        kept = None if one.kept is None else one.kept[start - one.start :]
        yield Slice(one.position, start, one.stop, kept)
        done = one.stop
