"""How the rows of a dataset part lie in its pack: in table order, or mixed once for all.

A pack is a sequence of *stripes*, each made of whole partitions, so that rows of a stripe can be read
as soon as its partitions were written, whatever else is still missing. In table order a stripe is one
partition. Mixed, a stripe is several partitions drawn from all over the table; each is cut into chunks,
whose rows are dealt in runs over the *beds* of the stripe, like cards over players. A bed thus holds
about as many rows of each of its stripe's chunks, and so does a block that a loader reads.

Always true: where a row lies depends on the part's partitions and the width of its rows alone, not on
memory, on threads, or on the order in which partitions are written; every place holds one row.

The trade-off: only rows of one stripe are mixed with each other when they are written; the order of an
epoch mixes blocks of many stripes. A larger stripe mixes better, and the first batch waits for it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.fingerprint import fingerprint
from training.loading.mixing import Rows, key_of, permutation

ARRANGEMENT_VERSION: Final = 1
STRIPE_PARTITIONS: Final = 8
STRIPE_ROWS: Final = 1 << 18
STRIPE_BYTES: Final = 1 << 28
"""A mixed stripe has at least so many partitions, and so many rows or bytes, unless the part has less."""
CHUNK_BYTES: Final = 1 << 23
_CHUNK_ROWS: Final = 1 << 20
_BED_ROWS: Final = 8192
_MOST_BEDS: Final = 1024

Counts: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


@dataclass(frozen=True, slots=True)
class Stripe:
    """Partitions whose rows lie together: rows ``[start, start + rows)`` of the pack."""

    number: int
    start: int
    rows: int
    partitions: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.rows


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive rows of a partition, and where they go.

    Parameters
    ----------
    partition, first, rows : int
        Rows ``[first, first + rows)`` of the partition.
    order : int64 array [rows]
        The chunk's rows, in the order in which they are dealt.
    starts, lengths : int64 array [runs]
        Each run's first row in the pack, and how many of the dealt rows it takes.
    """

    partition: int
    first: int
    rows: int
    order: Rows
    starts: Counts
    lengths: Counts


@dataclass(frozen=True)
class Arrangement:
    """The places of a part's rows.

    Parameters
    ----------
    partition_rows : tuple of int
        Rows of each partition, in table order.
    row_bytes : int
        Of one row over all arrays.
    mixed : bool
        Whether rows are mixed; else they lie in table order.

    Examples
    --------
    >>> Arrangement((3, 2), 8).stripes[1]
    Stripe(number=1, start=3, rows=2, partitions=(1,))
    >>> Arrangement((3, 2), 8, mixed=True).stripes[0].rows
    5
    """

    partition_rows: tuple[int, ...]
    row_bytes: int
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.row_bytes < 0 or any(one < 1 for one in self.partition_rows):
            raise InvalidInputError(
                f"rows of {self.row_bytes} bytes in partitions of {self.partition_rows} rows",
                "leave out partitions without rows",
            )

    @property
    def rows(self) -> int:
        return sum(self.partition_rows)

    @property
    def name(self) -> str:
        """What it is called in a pack's manifest."""
        return "mixed" if self.mixed else "table"

    @cached_property
    def digest(self) -> str:
        """Fingerprint of all places."""
        if not self.mixed:
            return fingerprint("arrangement", "table")
        limits = (
            STRIPE_PARTITIONS,
            STRIPE_ROWS,
            STRIPE_BYTES,
            self._chunk_rows,
            _BED_ROWS,
            _MOST_BEDS,
        )
        return fingerprint(
            "arrangement", "mixed", ARRANGEMENT_VERSION, *limits, list(self.partition_rows)
        )

    @cached_property
    def stripes(self) -> tuple[Stripe, ...]:
        """In the order in which they lie in the pack; together each partition once."""
        groups = self._groups()
        sizes = [sum(self.partition_rows[one] for one in group) for group in groups]
        starts = [0, *accumulate(sizes)]
        return tuple(
            Stripe(number, starts[number], size, group)
            for number, (group, size) in enumerate(zip(groups, sizes, strict=True))
        )

    @cached_property
    def _starts(self) -> list[int]:
        return [one.start for one in self.stripes]

    def stripes_of(self, first: int, last: int) -> range:
        """Return the numbers of the stripes that hold the pack's rows ``first`` to ``last``."""
        if not self.stripes:
            return range(0)
        return range(bisect_right(self._starts, first) - 1, bisect_right(self._starts, last))

    def chunks(self, stripe: Stripe, partition: int) -> Iterator[Chunk]:
        """Yield the chunks of one partition of a stripe, in the order of its rows."""
        if not self.mixed:
            yield from self._in_order(stripe, partition)
            return
        deal = _deal(self, stripe.number)
        for number, (first, rows) in enumerate(self._cuts(partition)):
            order = _dealt_order(rows, key_of(partition, first))
            starts, lengths = deal.runs(partition, number)
            yield Chunk(partition, first, rows, order, starts, lengths)

    def _in_order(self, stripe: Stripe, partition: int) -> Iterator[Chunk]:
        for first, rows in self._cuts(partition):
            start = np.array([stripe.start + first], dtype=np.int64)
            order = np.arange(rows, dtype=np.int64)
            yield Chunk(partition, first, rows, order, start, np.array([rows], dtype=np.int64))

    def _groups(self) -> list[tuple[int, ...]]:
        count = len(self.partition_rows)
        if not self.mixed:
            return [(one,) for one in range(count)]
        enough = max(self.rows // STRIPE_ROWS, self.rows * self.row_bytes // STRIPE_BYTES)
        groups = max(1, min(count // STRIPE_PARTITIONS, enough))
        drawn = permutation(count, key_of(ARRANGEMENT_VERSION, count)).tolist()
        cuts = [number * count // groups for number in range(groups + 1)]
        return [tuple(drawn[a:b]) for a, b in pairwise(cuts) if a < b]

    @property
    def _chunk_rows(self) -> int:
        """Rows of a chunk: enough for long runs, few enough to be held beside a partition."""
        return max(1, min(_CHUNK_ROWS, CHUNK_BYTES // max(1, self.row_bytes)))

    def dealing_bytes(self, *, sliced: bool) -> int:
        """Return what dealing a partition's rows takes beside them: nothing in table order.

        The dealt rows of a chunk, their order while it is made, what is known of a stripe's runs; and,
        where partitions come in slices, the rows of a chunk that a slice cut.
        """
        if not self.mixed or not self.partition_rows:
            return 0
        rows = min(self._chunk_rows, max(self.partition_rows))
        largest = max(self.stripes, key=lambda one: one.rows)
        chunks = sum(-(-self.partition_rows[one] // self._chunk_rows) for one in largest.partitions)
        beds = min(_MOST_BEDS, math.ceil(largest.rows / _BED_ROWS))
        return rows * ((1 + sliced) * self.row_bytes + 6 * 8) + 5 * 8 * chunks * beds

    def _cuts(self, partition: int) -> Iterator[tuple[int, int]]:
        """Yield first row and number of rows of each chunk of a partition."""
        rows = self.partition_rows[partition]
        for first in range(0, rows, self._chunk_rows):
            yield first, min(self._chunk_rows, rows - first)


@dataclass(frozen=True, slots=True, eq=False)
class _Deal:
    """How the rows of a stripe's chunks are spread over its beds.

    The runs of a bed lie in the order of a permutation of the chunks, not in that of the partitions:
    a part of a bed holds rows of partitions from all over it, too.
    """

    lengths: Counts  # [chunks, beds]
    starts: Counts  # [chunks, beds], in the pack
    numbers: dict[int, int]  # of each partition, that of its first chunk

    def runs(self, partition: int, number: int) -> tuple[Counts, Counts]:
        """Return starts and lengths of the runs of a partition's chunk, those of no rows left out."""
        row = self.numbers[partition] + number
        lengths = self.lengths[row]
        taken = lengths > 0
        return self.starts[row][taken], lengths[taken]


# A few stripes are written at a time.
@lru_cache(maxsize=4)
def _deal(arrangement: Arrangement, number: int) -> _Deal:
    stripe = arrangement.stripes[number]
    beds = min(_MOST_BEDS, math.ceil(stripe.rows / _BED_ROWS))
    sizes: list[int] = []
    numbers: dict[int, int] = {}
    for partition in stripe.partitions:
        numbers[partition] = len(sizes)
        sizes += [rows for _, rows in arrangement._cuts(partition)]
    rows = np.array(sizes, dtype=np.int64)[:, None]
    # Chunks that cannot be divided evenly give the rows that are left to different beds.
    phase = np.array([key_of(number, one) % beds for one in range(len(sizes))], dtype=np.int64)
    bounds = (np.arange(beds + 1, dtype=np.int64) * rows + phase[:, None]) // beds
    lengths = np.diff(bounds, axis=1)
    bed_starts = stripe.start + np.cumsum(lengths.sum(axis=0)) - lengths.sum(axis=0)
    drawn = permutation(len(sizes), key_of(number, len(sizes)))
    starts = np.empty_like(lengths)
    starts[drawn] = bed_starts + np.cumsum(lengths[drawn], axis=0) - lengths[drawn]
    return _Deal(lengths, starts, numbers)


def _dealt_order(rows: int, key: int) -> Rows:
    """Return a permutation of a chunk's rows.

    Chunks of a size share one, begun at different places: the rows at one place of a chunk, which may
    have something in common, go to different beds.
    """
    return np.roll(_base_order(rows), -(key % rows))


@lru_cache(maxsize=2)
def _base_order(rows: int) -> Rows:
    return permutation(rows, key_of(ARRANGEMENT_VERSION, rows))
