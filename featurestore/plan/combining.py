"""How the summaries of a table become one state, and what that takes: said from their sizes.

In memory they are combined one after the other, which takes several times all of them. Where that does
not fit and the transformer allows it (``Transformer.state_order``), they are written to scratch space in
order of their keys and combined range by range; if there are more than can be read side by side, in
several passes. Both ways give the same state, bit for bit.

Always true: the way depends on the sizes and on the room alone; what combining by ranges takes is bounded
by the room, but for a row or key that is larger by itself, and the values that are kept in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from featurestore.plan.costs import combine_bytes
from featurestore.transforms.base import Scope, Transformer

LEAST_SEGMENT: Final = 64 * 2**10
"""Of a run: less costs more calls than bytes are saved."""
_MOST_SEGMENT: Final = 2 * 2**20
"""Of a run: more is read no faster."""
_MERGED_PART: Final = 3
"""Of the room, a third is for merging; the rest for the values that are kept, which are not known yet."""
_MERGING: Final = 6
"""One and a half segments of each run, and the work on a range of them, as so many times a segment."""
_RANGE: Final = 5
"""A range of rows as so many times itself: read of each run, together, put in order, and the result."""
_BESIDE: Final = 8 * 2**20
"""What allocators keep of what is freed between one range and the next, whatever their size (measured)."""
_READING: Final = 2
"""A state as it is read and verified, as so many times its bytes: its file's, and as a table."""
_ORDERING: Final = 6
"""What putting a state in order of its keys takes, as so many times the state, the state included."""
_KEEPING: Final = 3
"""Values that are kept, as so many times themselves: they, and as they are narrowed, put together and taken."""
_FINISHING: Final = 3
"""The same, while they are put in order and written: they, the state made of them, and that in order."""


@dataclass(frozen=True, slots=True)
class Combining:
    """How states are combined, and what it takes.

    Parameters
    ----------
    bytes : int
        Of memory. In memory: all, or what is expected of a state whose size is known only as it
        grows; by ranges: all but the values that are kept.
    scratch_bytes : int
        0 in memory.
    fan_in : int
        How many runs are read side by side; 0 in memory.
    segment_bytes : int
        How much of each run is read at a time.
    """

    bytes: int
    scratch_bytes: int = 0
    fan_in: int = 0
    segment_bytes: int = 0

    @property
    def by_ranges(self) -> bool:
        return self.fan_in > 0

    def range_bytes(self, rows: int, kept: int) -> int:
        """Return what combining one range takes that has rows of so many bytes, beside those kept."""
        return _BESIDE + _RANGE * rows + _KEEPING * kept

    def keeping_bytes(self, kept: int) -> int:
        """Return what combining range by range takes while values of so many bytes are kept."""
        return _BESIDE + _MERGING * self.fan_in * self.segment_bytes + _KEEPING * kept


def combines_by_ranges(transformer: Transformer) -> bool:
    """Whether what a transformer learns can be combined by ranges of keys."""
    return transformer.scope is Scope.FIT and bool(transformer.state_order())


def chains_by_ranges(transformer: Transformer) -> bool:
    """Whether prefix states of a transformer can be combined by ranges of keys."""
    return transformer.scope is Scope.PREFIX and transformer.is_keyed


def finishing_bytes(kept: int) -> int:
    """Return what it takes to make a state of the values that are kept, and to write it."""
    return _FINISHING * kept


def keeping_room(kept: int) -> int:
    """Return a room in which values of so many bytes can be kept, whatever they are combined of.

    Of a larger room more is used for merging, so that it is a little more than what one way needs.

    Examples
    --------
    >>> way = combining([2**20] * 90, keeping_room(2**24), by_ranges=True)
    >>> way.by_ranges, way.keeping_bytes(2**24) <= keeping_room(2**24)
    (True, True)
    """
    merging = max(kept * _KEEPING // (_MERGED_PART - 1), 2 * LEAST_SEGMENT * _MERGING)
    return max(_BESIDE + merging + _KEEPING * kept, finishing_bytes(kept))


def combining(sizes: Sequence[int], room: int | None, *, by_ranges: bool) -> Combining:
    """Return how states of some sizes are combined.

    Parameters
    ----------
    sizes : sequence of int
        Arrow bytes of each.
    room : int, optional
        Bytes of memory that it may take; without, all is done in memory.
    by_ranges : bool
        Whether they may be combined by ranges of their keys.

    Examples
    --------
    >>> combining([2**20] * 20, 2**30, by_ranges=True).by_ranges
    False
    >>> found = combining([2**20] * 20, 50 * 2**20, by_ranges=True)
    >>> found.by_ranges, found.fan_in, found.bytes < 50 * 2**20
    (True, 20, True)
    """
    largest, together = max(sizes, default=0), sum(sizes)
    if not by_ranges:
        return Combining(combine_bytes(largest, largest))
    in_memory = Combining(combine_bytes(together, 0))
    if room is None:
        return in_memory
    external = _by_ranges(len(sizes), largest, together, room)
    return in_memory if in_memory.bytes <= max(room, external.bytes) else external


def chaining(sizes: Sequence[int], room: int | None, held: int = 0) -> Combining:
    """Return how a prefix state that fits memory no more is combined with further states, by ranges.

    Where it can be in memory it is: how large it gets is known as it grows (``execution.chaining``).

    Parameters
    ----------
    sizes : sequence of int
        Arrow bytes of each of the further states.
    room : int, optional
        Bytes of memory that it may take.
    held : int
        Arrow bytes of the prefix state so far.
    """
    largest, together = max(sizes, default=0), sum(sizes)
    room = 2**62 if room is None else room
    found = _by_ranges(len(sizes) + 1, largest, held + together, room, _ORDERING)
    # Scratch space has the state so far, the further ones, and what they become.
    scratch = found.scratch_bytes + (held + together) * 17 // 16
    return Combining(found.bytes, scratch, found.fan_in, found.segment_bytes)


def joining_bytes(earlier: int, later: int) -> int:
    """Return what combining two states of rows by key takes in memory, both included, and keeping the result.

    Half as much again as what counts are: texts are numbered in tables that grow (measured, 14 times the result).
    """
    return combine_bytes(earlier, later) * 3 // 2


def expected_chaining(sizes: Sequence[int], room: int | None, held: int) -> Combining:
    """Return what combining a prefix state with further states is expected to take.

    The state is expected to become no larger than it is known to be, as keys occur again.

    Parameters
    ----------
    sizes, room, held
        As for :func:`chaining`; ``held`` is what the state is expected to be.
    """
    largest = max(sizes, default=0)
    in_memory = Combining(joining_bytes(held, largest))
    if room is None or in_memory.bytes <= room:
        return in_memory
    return chaining(sizes, room, held)


def most_combining(sizes: Sequence[int], room: int | None, *, by_ranges: bool) -> Combining:
    """Return the most that combining states takes of which no more than the largest sizes are known."""
    found = combining(sizes, room, by_ranges=by_ranges)
    if not found.by_ranges or room is None:
        return found
    # Smaller ones may fit memory, and then take up to all there is.
    most = max(found.bytes, room)
    return Combining(most, found.scratch_bytes, found.fan_in, found.segment_bytes)


def _by_ranges(
    count: int, largest: int, together: int, room: int, reading: int = _READING
) -> Combining:
    segments = max(0, room - _BESIDE) // _MERGED_PART // _MERGING
    fan_in = max(2, min(count, segments // LEAST_SEGMENT))
    segment = LEAST_SEGMENT
    # Not larger than is of use: a dozen ranges cost no more than one.
    beside_one = (room - _BESIDE - reading * largest) // 2
    most = min(_MOST_SEGMENT, largest // 8, segments // fan_in, beside_one)
    while 2 * segment <= most:
        segment *= 2
    passes = 1 if count <= fan_in else 2  # of more than two, one is read while the next is written
    # What a segment has beside its rows; of the first of each table the file has more.
    scratch = passes * (together + together // 16)
    work = max(_MERGING * fan_in * segment, reading * largest + 2 * segment)
    return Combining(_BESIDE + work, scratch, fan_in, segment)
