"""The byte budget: how much of this process's work may be in memory at once.

All work of a process enters through one budget, whichever store, build or thread it belongs to. Work
says what it needs at most and which limit it was given; it starts when

    reserved + bytes in flight + its own <= limit

or when nothing is in flight, so that nothing waits for ever: whether it fits at all is decided before
(see ``room``). What work that has just ended freed may take a moment to go back to the system; work that
does not fit beside it waits that long. ``reserved`` is what the process holds without work. It is measured whenever nothing
is in flight, and is never taken for less than what is resident now beyond the bytes in flight.

Always true: work starts in order of arrival, so a wide partition is not overtaken for ever by narrow
ones; whatever ends a wait or the work (an error, Ctrl-C) leaves nothing behind. The trade-off: while
a wide one waits, narrow ones behind it wait too.

Another host has a budget of its own, kept here: work for its workers is admitted where it is handed
out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, get_ident
from time import monotonic
from typing import Final

from featurestore.errors import InvalidInputError
from featurestore.limits import resident_bytes

THIS_HOST: Final = ""
DRIFT: Final = 8 * 2**20
"""By how much a process's own memory differs between one call and the next: caches, modules."""
SETTLING_SECONDS: Final = 2.5
"""Until freed pages are given back: 1.5 were measured. The allocator that takes so long cannot be asked."""
_LOOK_AGAIN: Final = 0.5
"""Seconds: memory that others free is announced by nobody, and a signal may just miss a wait."""


class WorkStoppedError(Exception):
    """The wait was ended because the work is no longer wanted; seen by nobody but who ended it."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """One piece of work, waiting or in flight."""

    bytes: int
    limit: int
    thread: int


@dataclass(slots=True, eq=False)
class FlightRecord:
    """The most bytes that were in flight at once while it was kept."""

    most_bytes: int = 0


class Budget:
    """The bytes in flight on one host, and who waits for his turn.

    Parameters
    ----------
    reserved : callable, optional
        Returns the bytes that the host's processes hold now, work in flight included. If not given,
        the resident memory of this process.

    Examples
    --------
    >>> budget = Budget(reserved=lambda: 100)
    >>> with budget.admit(50, limit=200):
    ...     budget.in_flight
    50
    >>> budget.in_flight
    0
    """

    def __init__(self, reserved: Callable[[], int] | None = None) -> None:
        self._resident = resident_bytes_now if reserved is None else reserved
        self._changed = Condition()
        self._waiting: dict[_Ticket, None] = {}  # in order of arrival
        self._flying: dict[_Ticket, None] = {}
        self._records: list[FlightRecord] = []
        self._idle: int | None = None
        # What was held when work began after there was none, and when the last ended.
        self._before = 0
        self._ended = -SETTLING_SECONDS

    @property
    def in_flight(self) -> int:
        """Bytes of all work that has started and not ended."""
        return sum(one.bytes for one in tuple(self._flying))

    @property
    def waiting(self) -> int:
        """How many pieces of work wait."""
        return len(self._waiting)

    @property
    def reserved(self) -> int:
        """Bytes that are held without work; measured now if nothing is in flight."""
        with self._changed:
            return self._reserved()

    @property
    def held_here(self) -> bool:
        """Whether this thread holds bytes, as in a task whose function reads another table."""
        return any(one.thread == get_ident() for one in tuple(self._flying))

    @contextmanager
    def admit(
        self,
        cost: int,
        limit: int,
        *,
        stopped: Callable[[], bool] | None = None,
        waits: bool | None = None,
    ) -> Iterator[None]:
        """Wait for room, and hold ``cost`` bytes inside the block.

        Parameters
        ----------
        cost : int
            Bytes.
        limit : int
            Of the memory of all processes that the budget is for.
        stopped : callable, optional
            Asked while it waits, after each change and after :meth:`wake`; True ends the wait.
        waits : bool, optional
            False for work that other work in flight waits for: nobody could end its wait. Its bytes
            are counted. If not given, whether this thread holds none yet (:attr:`held_here`).

        Raises
        ------
        InvalidInputError
            If the cost is negative.
        WorkStoppedError
            If it was stopped before it started.
        """
        if cost < 0:
            raise InvalidInputError(f"work cannot need {cost} bytes", "give 0 or more")
        waits = not self.held_here if waits is None else waits
        ticket = _Ticket(cost, limit, get_ident())
        try:
            self._start(ticket, stopped, waits)
            yield
        finally:
            self._end(ticket)

    def wake(self) -> None:
        """Let those who wait ask again whether they are stopped."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def recorded(self) -> Iterator[FlightRecord]:
        """Keep a record of the most bytes in flight inside the block."""
        record = FlightRecord()
        try:
            with self._changed:
                record.most_bytes = self.in_flight
                self._records.append(record)
            yield record
        finally:
            with self._changed:
                self._records[:] = [one for one in self._records if one is not record]

    def _start(self, ticket: _Ticket, stopped: Callable[[], bool] | None, waits: bool) -> None:
        with self._changed:
            if waits:
                self._waiting[ticket] = None
                while not self._may_start(ticket):
                    if stopped is not None and stopped():
                        raise WorkStoppedError
                    self._changed.wait(_LOOK_AGAIN)
            if stopped is not None and stopped():
                raise WorkStoppedError
            if not self._flying:
                self._before = self._reserved()
            self._flying[ticket] = None
            self._waiting.pop(ticket, None)
            for record in self._records:
                record.most_bytes = max(record.most_bytes, self.in_flight)
            self._changed.notify_all()  # the next one may fit beside it

    def _may_start(self, ticket: _Ticket) -> bool:
        if next(iter(self._waiting)) is not ticket:
            return False
        reserved, flying = self._reserved(), self.in_flight
        if reserved + flying + ticket.bytes <= ticket.limit:
            return True
        return not self._flying and not self._settles(ticket, reserved)

    def _settles(self, ticket: _Ticket, reserved: int) -> bool:
        """Whether it would fit without what was freed a moment ago, which may be on its way back."""
        fits = self._before + ticket.bytes <= ticket.limit and reserved > self._before + DRIFT
        return fits and monotonic() - self._ended < SETTLING_SECONDS

    def _end(self, ticket: _Ticket) -> None:
        with self._changed:
            self._waiting.pop(ticket, None)
            if ticket in self._flying:
                self._flying.pop(ticket)
                self._ended = monotonic()
            self._changed.notify_all()

    def _reserved(self) -> int:
        resident = self._resident()
        if not self._flying or self._idle is None:
            self._idle = resident
        return max(self._idle, resident - self.in_flight)


def resident_bytes_now() -> int:
    """Return what this process holds, as ``limits`` tells it."""
    return resident_bytes()


# By process, as a fork has no part in its parent's work; and by host.
_budgets: Final[dict[tuple[int, str], Budget]] = {}


def budget_of(host: str = THIS_HOST, reserved: Callable[[], int] | None = None) -> Budget:
    """Return the budget of a host; that of this process and its host if none is named.

    Parameters
    ----------
    host : str
    reserved : callable, optional
        See :class:`Budget`; for a host that is asked for the first time.
    """
    key = os.getpid(), host
    return _budgets.get(key) or _budgets.setdefault(key, Budget(reserved))
