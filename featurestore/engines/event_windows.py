"""The visible events of another table around the time of each row: all of a trailing window, or the last few.

Events lie sorted by group and time (:class:`~featurestore.engines.joins.Events`). Those known at their time
are a run of sorted positions; where some within the run were not known yet, the visible ones are picked
one by one, once for all rows between which no late event became known, and for so many rows at a time that
what is picked stays small.

Always true: what a row gets follows from the events that are visible to it and from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featurestore.engines.blocks import blocks
from featurestore.engines.joins import Events, Known, passed, time_order
from featurestore.engines.protocol import Array
from featurestore.engines.windows import (
    Parts,
    Windows,
    changes,
    fold,
    numbered,
    stable_order,
)

PICKED: Final = 2**18
"""How many events are looked at one by one at a time, unless a single row has more."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which events a row sees, in steps of the common unit.

    Parameters
    ----------
    lag : int
        How long after its time an event is known at the earliest.
    back : int, optional
        How old an event may be; None: as old as it likes.
    newest, oldest : bool
        Whether one that becomes known at the row's time belongs to it, and one that is exactly ``back``
        old.
    """

    lag: int = 0
    back: int | None = None
    newest: bool = True
    oldest: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """For each row the run of events that holds all it sees; not all of the run need be visible.

    Parameters
    ----------
    events : Events
    order : Array
        ``int64 [n]``: the rows by group, in which the others are.
    start, end : Array
        ``int64 [n]``: the run ``[start, end)`` of sorted positions; its last event is visible.
    wanted : Array
        ``int64 [n]``: an event of the run is visible if its own key is smaller.
    late : bool
        Whether events may be known later than at their time.
    """

    events: Events
    order: Array
    start: Array
    end: Array
    wanted: Array
    late: bool

    @classmethod
    def of(
        cls,
        xp: Any,
        left: tuple[Array, Array],
        right: tuple[Array, Array],
        known: Known | None,
        span: Span,
    ) -> Seen:
        """Look up rows.

        Parameters
        ----------
        left, right : tuple of Array
            ``(codes, times)`` of rows and of events, ``int64``, in any order; times in one unit.
        known : Known, optional
            When events become known, ``lag`` not counted; by default at their time.
        span : Span
        """
        codes, when = left
        events = Events.of(xp, *right, known)
        late = events.own is not events.keys
        order = stable_order(xp, codes)
        wanted = events.seen(xp, when, span.lag, span.newest)
        wanted += codes * events.stride
        wanted = wanted[order]
        end = _found(xp, events.keys, wanted)
        timed = events if known is None else Events.of(xp, *right)  # the same order, by time alone
        oldest = codes * timed.stride
        if span.back is not None:
            oldest += passed(xp, timed.moments, when, span.back, inclusive=not span.oldest)
        start = _found(xp, timed.keys, oldest[order])
        return cls(events, order, start, xp.maximum(start, end), wanted, late)

    def mixed(self, xp: Any, start: Array) -> Array:
        """Return the rows, in sorted order, of which some event in ``[start, end)`` is not visible."""
        if not self.late:
            return xp.zeros(0, dtype=xp.int64)

        def later(older: Parts, younger: Parts, _older: Any, _younger: Any) -> Parts:
            return (xp.maximum(older[0], younger[0]),)

        newest = fold(xp, (self.events.own,), self.end, self.end - start, later)[0]
        return xp.flatnonzero((newest >= self.wanted) & (self.end > start))

    def picks(
        self, xp: Any, rows: Array, start: Array, least: int = 1
    ) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Yield the visible events of some rows, a bounded number of events at a time.

        Parameters
        ----------
        rows : Array
            In sorted order; each has an event in ``[start, end)``.
        start : Array
            ``int64 [rows]``: from where on events are looked at.
        least : int
            How many events a row counts for at least.

        Yields
        ------
        which : Array
            Some of ``rows``, as positions in it; each comes once.
        picked : Array
            Sorted positions of visible events; those of one row beside each other, in their order.
        begin, end : Array
            Where those of each row lie in ``picked``.
        """
        if not rows.shape[0]:
            return
        wanted = self.wanted[rows]
        order = time_order(xp, wanted)
        if order is not None:
            rows, start, wanted = rows[order], start[order], wanted[order]
        end = self.end[rows]
        fresh = self._shared(xp, wanted, start, end, least)
        first = xp.flatnonzero(fresh)
        last = xp.concatenate((first[1:], xp.asarray([rows.shape[0]], dtype=xp.int64))) - 1
        low, length = start[first], end[last] - start[first]
        for here in _portions(xp, xp.maximum(length, least * (last + 1 - first))):
            mine = slice(int(first[here.start]), int(last[here.stop - 1]) + 1)
            stop = xp.cumsum(length[here], dtype=xp.int64)
            shift = stop - length[here] - low[here]
            flags = xp.zeros(int(stop[-1]), dtype=xp.bool_)
            flags[stop - length[here]] = True
            owner = numbered(xp, flags)
            at = xp.arange(owner.shape[0], dtype=xp.int64)
            at -= shift[owner]
            visible = self.events.own[at] < wanted[last[here]][owner]
            del owner, flags
            count = xp.zeros(visible.shape[0] + 1, dtype=xp.int64)
            count[1:] = xp.cumsum(visible, dtype=xp.int64)
            of_row = shift[numbered(xp, fresh[mine])]
            which = (
                xp.arange(mine.start, mine.stop, dtype=xp.int64) if order is None else order[mine]
            )
            yield which, at[visible], count[start[mine] + of_row], count[end[mine] + of_row]

    def _shared(self, xp: Any, wanted: Array, start: Array, end: Array, least: int) -> Array:
        """Return where rows, in order of ``wanted``, can no longer share what is picked for those before.

        An event that is known in its turn, before all later ones of its group, is visible to every row whose
        run it is in. So rows between which no other event becomes known see parts of one sequence.
        """
        own, keys, rows = self.events.own, self.events.keys, wanted.shape[0]
        belated = xp.sort(own[own > keys])
        changed = changes(xp, wanted // self.events.stride)
        changed |= changes(xp, xp.searchsorted(belated, wanted, side="left"))
        # What is picked for several rows at a time is not much more than for one.
        changed |= changes(xp, start // max(1, PICKED // 2))
        changed |= changes(xp, xp.arange(rows, dtype=xp.int64) // max(1, PICKED // (4 * least)))
        changed[1:] |= (start[1:] < start[:-1]) | (end[1:] < end[:-1])
        return changed


def _found(xp: Any, keys: Array, wanted: Array) -> Array:
    """Return how many keys are smaller than each of those wanted."""
    found = xp.empty(wanted.shape[0], dtype=xp.int64)
    for where in blocks(wanted.shape[0], xp):
        found[where] = xp.searchsorted(keys, wanted[where], side="left")
    return found


def _portions(xp: Any, length: Array) -> Iterator[slice]:
    """Yield runs of rows that together have few events, or are one row."""
    stop, total = 0, xp.cumsum(length, dtype=xp.int64)
    while stop < length.shape[0]:
        start, done = stop, int(total[stop - 1]) if stop else 0
        stop = max(start + 1, int(xp.searchsorted(total, done + PICKED, side="right")))
        yield slice(start, stop)


def window_statistics(
    xp: Any,
    seen: Seen,
    values: Array,
    valid: Array,
    stats: Sequence[str],
    min_count: int,
) -> list[tuple[Array, Array]]:
    """Return statistics of the events each row sees: values and which are not null, in sorted order.

    Parameters
    ----------
    seen : Seen
    values, valid : Array
        ``[m]``: of the events, in sorted order.
    stats : sequence of str
        Of :data:`~featurestore.engines.windows.STATISTICS`.
    min_count : int
        As in :meth:`~featurestore.engines.windows.Windows.statistic`.
    """
    start, mixed = seen.start, seen.mixed(xp, seen.start)
    if mixed.shape[0]:
        start = start.copy()
        start[mixed] = seen.end[mixed]
    windows = Windows.of(xp, values, valid, start, seen.end)
    found = [windows.statistic(stat, min_count) for stat in stats]
    del windows, start
    for which, picked, begin, end in seen.picks(xp, mixed, seen.start[mixed]):
        few = Windows.of(xp, values[picked], valid[picked], begin, end)
        for stat, (results, there) in zip(stats, found, strict=True):
            results[mixed[which]], there[mixed[which]] = few.statistic(stat, min_count)
    return found


def last_events(xp: Any, seen: Seen, count: int) -> Iterator[tuple[Array, Array]]:
    """Yield the last ``count`` visible events of all rows, some rows at a time.

    Yields
    ------
    rows : Array
        ``int64 [c]``: as they were given.
    picked : Array
        ``int64 [c, count]``: the events' rows, oldest first; -1, in front, where there are fewer.
    """
    start = xp.maximum(seen.start, seen.end - count)
    pending = seen.mixed(xp, start)
    whole = xp.ones(start.shape[0], dtype=xp.bool_)
    whole[pending] = False
    size = max(1, PICKED // count)
    for first in range(0, start.shape[0], size):
        rows = xp.flatnonzero(whole[first : first + size]) + first
        if rows.shape[0]:
            yield _last(xp, seen, rows, None, (start[rows], seen.end[rows]), count)
    back = 2 * count
    while pending.shape[0]:
        low = xp.maximum(seen.start[pending], seen.end[pending] - back)
        unfinished = []
        for which, picked, begin, end in seen.picks(xp, pending, low, count):
            # Fewer than asked for are enough where the run has no more.
            done = (end - begin >= count) | (low[which] == seen.start[pending[which]])
            run = begin[done], end[done]
            yield _last(xp, seen, pending[which[done]], picked, run, count)
            unfinished.append(pending[which[~done]])
        pending, back = xp.concatenate(unfinished), 4 * back


def _last(
    xp: Any,
    seen: Seen,
    rows: Array,
    picked: Array | None,
    run: tuple[Array, Array],
    count: int,
) -> tuple[Array, Array]:
    """Return rows as they were given, and the last events of runs of sorted positions, or of ``picked``."""
    at = run[1][:, None] - xp.arange(count, 0, -1, dtype=xp.int64)[None, :]
    missing = at < run[0][:, None]
    at[missing] = 0
    events = seen.events.order
    if events.shape[0]:
        at = events[at if picked is None else picked[at]]
    at[missing] = -1
    return seen.order[rows], at
