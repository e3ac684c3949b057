"""What a loader takes in memory: said before it runs, from the schema and what was recorded.

Three activities: writing the pack, an epoch (together where both fit), and handing pages to XGBoost. Each is
a :class:`Projection`: what this process held already, and the terms on top, whose sum stays within the
memory limit or the activity is refused before it begins.

Always true: pages of the mapped pack are not counted, the kernel takes them back when memory is short;
what a framework allocates is not counted, it is measured and reported apart (``training.run``).

Trade-off: batches are counted at their full size though the last is often smaller, and batches in
flight as if all queues were full, so that a projection holds whatever the consumer's pace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Final

import numpy as np

from featurestore.dataset.batch import DatasetPart, DatasetSchema
from featurestore.dataset.memory import PACKING_BYTES
from featurestore.errors import MemoryLimitError
from featurestore.execution.room import smallest_limit
from featurestore.units import format_bytes
from training.loading.arrangement import Arrangement
from training.loading.class_index import CLASS_BYTES, PIECE_BYTES
from training.loading.layout import pack_layout
from training.loading.padding import PADDING_BYTES, WEIGHT_BYTES, Last
from training.loading.queries import QUERY_BYTES
from training.loading.weight_index import WEIGHT_PIECE_BYTES

if TYPE_CHECKING:
    from training.loading.steps import Steps

WRITERS: Final = 4
"""Partitions that are written at a time, at most: more threads than that a disk does not follow."""
OWN_BATCHES: Final = 2
"""The batch that is being gathered, and the one its consumer still holds."""
_ALL: Final = 1 << 62
"""More bytes than any partition takes: it is not cut."""
_SLACK: Final = 6 * 2**20
"""Small things: threads' stacks, buffers of files and hashes, Python's own objects; and what the heap
keeps between arrays of different sizes."""
AHEAD_STRIPES: Final = 1
"""Stripes that are read ahead where there is no pack, if they fit."""
_NOT_HELD: Final = "leave hold= out: a pack lies on a disk"
_SMALLER_PARTITIONS: Final = "ingest with a smaller partition_bytes, or name fewer features"


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that is held at the peak: what, and how many bytes."""

    what: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Projection:
    """The projected peak of one activity of a loader.

    Parameters
    ----------
    activity : str
    limit, reserved : int
        Bytes: what this process may hold, and what it held when the loader was made.
    terms : tuple of Term
    remedy : str
        What else than a higher limit would make it fit; empty if nothing would.

    Examples
    --------
    >>> print(Projection("an epoch", 2**20, 2**19, (Term("2 batches", 2**18),)))
    an epoch
      reserved        512.0 KiB
      2 batches       256.0 KiB
      projected peak  768.0 KiB of 1.0 MiB
    """

    activity: str
    limit: int
    reserved: int
    terms: tuple[Term, ...]
    remedy: str = ""

    @property
    def added(self) -> int:
        """Bytes on top of what is reserved."""
        return sum(one.bytes for one in self.terms)

    @property
    def peak(self) -> int:
        """Bytes at the peak: reserved and added."""
        return self.reserved + self.added

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    def require(self) -> None:
        """Refuse the activity if it does not fit.

        Raises
        ------
        MemoryLimitError
            With the smallest limit that would do, and what else would.
        """
        if self.fits:
            return
        largest = max(self.terms, key=lambda one: one.bytes)
        raise MemoryLimitError(
            f"{self.activity} is projected to take {format_bytes(self.peak)} (this process held "
            f"{format_bytes(self.reserved)}; the largest term is {largest.what}, "
            f"{format_bytes(largest.bytes)}); the memory limit is {format_bytes(self.limit)}",
            f"set memory_limit to at least {smallest_limit(self.added, self.reserved)}"
            + (f", or {self.remedy}" if self.remedy else ""),
        )

    def __str__(self) -> str:
        rows = [("reserved", self.reserved), *((one.what, one.bytes) for one in self.terms)]
        width = max(len("projected peak"), *(len(what) for what, _ in rows))
        lines = [self.activity]
        lines += [f"  {what:<{width}}  {format_bytes(size)}" for what, size in rows]
        over = "" if self.fits else ": too much"
        lines.append(
            f"  {'projected peak':<{width}}  {format_bytes(self.peak)} of "
            f"{format_bytes(self.limit)}{over}"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class LoaderMemory:
    """The projections of everything that a loader is about to do; prints as a table.

    Parameters
    ----------
    activities : tuple of Projection
    """

    activities: tuple[Projection, ...]

    @property
    def limit(self) -> int:
        return self.activities[0].limit

    @property
    def reserved(self) -> int:
        return self.activities[0].reserved

    @property
    def peak(self) -> int:
        """Bytes: the largest of the activities, which come one after the other."""
        return max(one.peak for one in self.activities)

    @property
    def fits(self) -> bool:
        return all(one.fits for one in self.activities)

    def require(self) -> None:
        """Refuse what does not fit; raises as :meth:`Projection.require` does."""
        for one in self.activities:
            one.require()

    def __str__(self) -> str:
        return "\n".join(map(str, self.activities))


# --- the terms ---------------------------------------------------------------------------------------


def row_bytes(schema: DatasetSchema) -> int:
    """Return the bytes of one row over all arrays, label included."""
    return sum(one.row_bytes for one in pack_layout(schema, 1).values())


def items_bytes(part: DatasetPart, partition: int | None = None) -> int:
    """Return the most bytes that the items of lists take, of one partition or all."""
    which = range(len(part.partition_rows)) if partition is None else [partition]
    return sum(
        part.list_items(number, one.name)[1] * np.dtype(one.dtype).itemsize
        for one in part.schema.ragged
        for number in which
    )


@dataclass(frozen=True, slots=True)
class Writing:
    """What writing a part's pack may hold, and how many partitions are written at a time.

    Parameters
    ----------
    projection : Projection
    within : int
        Bytes that a slice of a partition may take.
    partitions : tuple of int
        Bytes that writing each partition takes.
    workers : int
        Partitions at a time, at most; fewer where more do not fit beside each other.
    """

    projection: Projection
    within: int
    partitions: tuple[int, ...]
    workers: int


def writing_memory(
    part: DatasetPart,
    arrangement: Arrangement,
    limit: int | None = None,
    reserved: int | None = None,
    beside: tuple[Term, ...] = (),
    activity: str = "",
) -> Writing:
    """Return what writing a part's pack takes.

    Parameters
    ----------
    part : DatasetPart
    arrangement : Arrangement
    limit : int, optional
        The part's own if not given.
    reserved : int, optional
        What this process holds now, with all loaded that reading needs, if not given.
    beside : tuple of Term
        What is held at the same time, as by an epoch that reads what is written.
    activity : str, optional
        What it is called, if not writing a pack.
    """
    limit = part.memory_limit if limit is None else limit
    reserved = part.reserved_bytes if reserved is None else reserved
    room = limit - reserved - sum(one.bytes for one in beside)
    within = room - arrangement.dealing_bytes(sliced=True) - PACKING_BYTES
    if part.schema.ragged and arrangement.mixed:
        within //= 2  # the items of a slice's lists exist once more, in the order of its rows
    needs = tuple(
        _writing_bytes(part, arrangement, one, within) for one in range(len(part.partition_rows))
    )
    largest = sorted(needs, reverse=True) or [0]
    taken = accumulate(one + PACKING_BYTES for one in largest)
    workers = max(1, sum(one <= room for one in islice(taken, min(WRITERS, part.workers))))
    several = f"{workers} largest partitions" if workers > 1 else "largest partition"
    terms = (
        Term(f"{several}: read, transformed, as arrays", sum(largest[:workers])),
        Term("files, hashes, and pages that come back late", workers * PACKING_BYTES),
    )
    if not activity:
        activity = "a first epoch, while the pack is written" if beside else "writing the pack"
    projection = Projection(activity, limit, reserved, (*terms, *beside), _SMALLER_PARTITIONS)
    return Writing(projection, within, tuple(one + PACKING_BYTES for one in needs), workers)


def _writing_bytes(part: DatasetPart, arrangement: Arrangement, partition: int, within: int) -> int:
    """Return what writing a partition takes, whose slices take ``within`` bytes each."""
    need, items = part.memory(partition, within), items_bytes(part, partition)
    if need < part.memory(partition, _ALL):
        dealt = min(items, need) if arrangement.mixed else 0
        return need + dealt + arrangement.dealing_bytes(sliced=True)
    # All at once: when its rows are dealt, nothing is left of what they were made of but items of lists,
    # which may be the engine's own.
    arrays = arrangement.partition_rows[partition] * arrangement.row_bytes
    dealt = 2 * items if arrangement.mixed else 0
    return max(need, arrays + items + dealt + arrangement.dealing_bytes(sliced=False))


@dataclass(frozen=True, slots=True)
class Streaming:
    """What streaming a part's rows without a pack may hold.

    Parameters
    ----------
    writing : Writing
        With the stripes, and the epoch that reads them.
    stripes : int
        How many are in memory at a time.
    """

    writing: Writing
    stripes: int


def streaming_memory(
    part: DatasetPart,
    arrangement: Arrangement,
    limit: int,
    reserved: int,
    beside: tuple[Term, ...],
) -> Streaming:
    """Return what an epoch without a pack takes: two stripes if they fit, else one.

    ``beside`` is what the epoch holds apart from that. The buffers are as large as the largest stripe.
    """
    rows = max((one.rows for one in arrangement.stripes), default=0)
    for stripes in range(min(AHEAD_STRIPES + 1, max(1, len(arrangement.stripes))), 0, -1):
        several = f"{stripes} stripes" if stripes > 1 else "a stripe"
        held = Term(f"{several} of {rows} rows", stripes * rows * arrangement.row_bytes)
        writing = writing_memory(
            part, arrangement, limit, reserved, (held, *beside), "an epoch without a pack"
        )
        if writing.projection.fits:
            break
    remedy = f"{_SMALLER_PARTITIONS}, or leave pack=False out"
    return Streaming(
        replace(writing, projection=replace(writing.projection, remedy=remedy)), stripes
    )


def holding_memory(
    part: DatasetPart,
    arrangement: Arrangement,
    limit: int,
    reserved: int,
    beside: tuple[Term, ...],
) -> Writing:
    """Return what the first epoch of a part held in memory takes, while its rows are read."""
    held = (held_term(arrangement), *beside)
    activity = "a first epoch, while rows are read into memory"
    writing = writing_memory(part, arrangement, limit, reserved, held, activity)
    return replace(writing, projection=replace(writing.projection, remedy=_NOT_HELD))


def held_epoch(epoch: Projection, arrangement: Arrangement) -> Projection:
    """Return what an epoch takes whose rows are held in memory."""
    return replace(epoch, terms=(held_term(arrangement), *epoch.terms), remedy=_NOT_HELD)


def held_term(arrangement: Arrangement) -> Term:
    """Return what holding all rows takes."""
    return Term(
        f"all {arrangement.rows} rows, held in memory", arrangement.rows * arrangement.row_bytes
    )


def project_epoch(
    steps: Steps,
    sample_bytes: int,
    limit: int,
    reserved: int,
    batches: int = OWN_BATCHES,
    workers: int = 0,
) -> Projection:
    """Return what an epoch takes while ``batches`` of its batches exist at once.

    ``sample_bytes`` is what a sample takes in a batch. ``workers`` processes, if any, read batches in
    place of this one, each with an order of its own.
    """
    left = limit - reserved
    largest = _largest_batch(steps, sample_bytes, left, batches, workers)
    narrow = replace(steps, order=replace(steps.order, window_blocks=1))
    remedy = f"use batch_size={largest}" if largest else ""
    if (
        not largest
        and _largest_batch(narrow, sample_bytes, left, batches, workers) >= steps.batch_size
    ):
        remedy = "use window_blocks=1"
    terms = epoch_terms(steps, sample_bytes, batches, workers)
    return Projection("an epoch", limit, reserved, terms, remedy)


def epoch_terms(
    steps: Steps, sample_bytes: int, batches: int = OWN_BATCHES, workers: int = 0
) -> tuple[Term, ...]:
    """Return what an epoch holds while ``batches`` of its batches exist at once."""
    order, padded = steps.order, steps.last is Last.PAD
    size = steps.batch_size if padded else min(steps.batch_size, max(1, order.rows))
    readers = max(1, workers)
    padding = size * (batches * WEIGHT_BYTES + readers * PADDING_BYTES)
    return (
        Term(f"{batches} batches of {size} rows", batches * size * sample_bytes),
        *((Term("weights, and row numbers with padding", padding),) if padded else ()),
        Term("order" if readers == 1 else f"{readers} orders", readers * steps.memory(size)),
        Term("objects and buffers", readers * _SLACK),
    )


def _largest_batch(steps: Steps, sample_bytes: int, left: int, batches: int, workers: int) -> int:
    """Return how many rows a batch may have if an epoch shall hold at most ``left`` bytes; 0 if none."""
    low, high = 0, max(1, steps.order.rows)
    while low < high:
        middle = (low + high + 1) // 2
        terms = epoch_terms(replace(steps, batch_size=middle), sample_bytes, batches, workers)
        if sum(one.bytes for one in terms) <= left:
            low = middle
        else:
            high = middle - 1
    return low


def index_terms(partition_rows: Iterable[int], classes: int) -> tuple[Term, ...]:
    """Return what indexing samples by class or weight holds, while no partition is being read."""
    largest = max(partition_rows, default=0)
    return (
        Term(f"a value of each of {largest} rows of the largest partition, twice", 16 * largest),
        Term("rows that are looked at together", PIECE_BYTES if classes else WEIGHT_PIECE_BYTES),
        *((Term(f"{classes} classes", CLASS_BYTES * classes),) if classes else ()),
        Term("objects and buffers", _SLACK),
    )


def page_terms(columns: int, rows: int, others: int, queries: int = 0) -> tuple[Term, ...]:
    """Return what handing over pages of ``rows`` rows to XGBoost holds, XGBoost's own left out.

    ``others`` columns are labels and what else it is told; ``queries`` those of a ranking.

    It lets go of a page before it asks for the next.
    """
    return (
        Term(f"page of {rows} rows", 4 * columns * rows),
        Term("labels and what else is told", 8 * rows * others),
        *((Term(f"{queries} queries", QUERY_BYTES * queries),) if queries else ()),
        Term("objects and buffers", _SLACK),
    )
