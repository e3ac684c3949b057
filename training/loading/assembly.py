"""Putting a part's rows together, partition by partition, while the first of them are read already.

Partitions are read by whoever has time: threads that work ahead of an epoch, or the reader that needs
rows nobody has begun with. A reader waits for the stripes of its rows, no others. Where rows go is
that of the subclasses: files of a pack, or memory.

Always true: a partition that was left half-way is read again, to the same places; the work that is
admitted at a time fits what was projected; threads end with the block they were started for, and an
error in one is raised where rows are read.
"""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final, Self

from featurestore.dataset.batch import DatasetPart
from featurestore.execution.budget import WorkStoppedError, budget_of
from featurestore.execution.events import step
from training.loading.arrangement import Arrangement, Stripe
from training.loading.buffers import Buffers
from training.loading.memory import Writing

_STATM: Final = Path("/proc/self/statm")


class Assembly(ABC):
    """The rows of a part on their way.

    Parameters
    ----------
    part : DatasetPart
    arrangement : Arrangement
    writing : Writing
        What it may hold, and how many partitions at a time.

    Raises
    ------
    MemoryLimitError
        Before anything is read, if a partition does not fit, nor a slice of it.
    """

    activity: str | None = None
    """What observers are told that it does, if anything."""

    def __init__(self, part: DatasetPart, arrangement: Arrangement, writing: Writing) -> None:
        writing.projection.require()
        self.part = part
        self.arrangement = arrangement
        self.writing = writing
        self.buffers = Buffers()
        """Of batches that are made of what is in memory."""
        self._state = threading.Condition()
        stripes = arrangement.stripes
        self._open = [deque(one.partitions) for one in stripes]  # that nobody reads or has read
        self._missing = [len(one.partitions) for one in stripes]  # partitions not there
        self._wanted: deque[int] = deque()  # stripes that a reader waits for
        self._plan: deque[int] = deque()  # those that are read next
        self._threads = 0
        self._failed: BaseException | None = None
        self._ending = threading.Lock()
        self._whole = False
        self._file_pages = _file_pages()

    # --- what subclasses do ---------------------------------------------------------------------------

    @abstractmethod
    def _place(
        self,
        stripe: Stripe,
        partition: int,
        wanted: Callable[[], bool],
        wrote: Callable[[int], None],
    ) -> bool:
        """Read a partition to where its rows go; see ``PartitionWriter.write``."""

    @abstractmethod
    def _settle(self, stripe: Stripe) -> None:
        """Take note that a stripe is there."""

    @abstractmethod
    def _finish(self) -> None:
        """Do what is left when all rows are there."""

    def _errors(self) -> AbstractContextManager[None]:
        """Return a block in which errors of what rows go to become errors of ours."""
        return nullcontext()

    # --- reading --------------------------------------------------------------------------------------

    def require(self, first: int, last: int) -> None:
        """Return once rows ``first`` to ``last`` are there; raises what went wrong."""
        if not self._whole:
            for number in self.arrangement.stripes_of(first, last):
                self._wait_for(number)

    def complete(self) -> Self:
        """Return it when all rows are there, having read what is missing."""
        with self.ahead(()):
            for number in range(len(self.arrangement.stripes)):
                self._wait_for(number)
        return self

    @contextmanager
    def ahead(self, stripes: Iterable[int]) -> Iterator[None]:
        """Read in threads of their own inside the block: ``stripes`` first, then all others.

        Leaving the block ends the threads, after the slices they are at.

        Raises
        ------
        FeatureStoreError
            At the end, what went wrong in a thread.
        """
        with self.buffers.used(), self._reading_ahead(stripes):
            yield

    @contextmanager
    def _reading_ahead(self, stripes: Iterable[int]) -> Iterator[None]:
        if self._whole:
            yield
            return
        numbers = self._planned(stripes)
        stop = threading.Event()
        with self._announced(sum(self._rows_left(one) for one in numbers)) as advance:
            with self._state:
                self._plan = deque(numbers)
            with self._working(stop, _Progress(advance)):
                yield
        self._end()

    def _planned(self, stripes: Iterable[int]) -> list[int]:
        """Return which stripes are read ahead, in order."""
        return list(dict.fromkeys([*stripes, *range(len(self.arrangement.stripes))]))

    @contextmanager
    def _working(self, stop: threading.Event, progress: _Progress) -> Iterator[None]:
        working: set[int] = set()
        try:
            for number in range(self.writing.workers):
                one = threading.Thread(
                    target=self._work,
                    args=(number, working, stop, progress),
                    name=f"pack {number}",
                    daemon=True,
                )
                with self._state:
                    # It waits for this lock at its end: it cannot end before it is counted.
                    one.start()
                    working.add(number)
                    self._threads += 1
            yield
        finally:
            stop.set()
            budget_of().wake()
            # Not joined: that would make Python keep a thread of a framework, which may run this.
            with self._state:
                self._state.notify_all()
                # When Python ends, threads do not go on any more, and would never end.
                while working and not sys.is_finalizing():
                    self._state.wait(1.0)
            failed, self._failed = self._failed, None  # who tries again begins anew
        if failed is not None:
            raise failed

    @contextmanager
    def _announced(self, rows: int) -> Iterator[Callable[[int], None]]:
        if not rows or self.activity is None:
            yield silent
            return
        memory = self.writing.projection
        with step(
            self.activity, rows, projected_bytes=memory.peak, memory_limit=memory.limit
        ) as advance:
            yield advance

    def _rows_left(self, number: int) -> int:
        return self.arrangement.stripes[number].rows if self._missing[number] else 0

    # --- who reads what -------------------------------------------------------------------------------

    def _wait_for(self, number: int) -> None:
        """Return once a stripe is there, having read it if nobody else does."""
        while True:
            with self._state:
                if not self._missing[number]:
                    return
                if self._failed is not None:
                    raise self._failed
                task = None if self._threads else self._take(number)
                if task is None:
                    self._want(number)
                    self._state.wait(1.0)
                    continue
            self._write(*task, threading.Event(), _Progress(silent))

    def _want(self, number: int) -> None:
        """Let a stripe be read before others."""
        if number not in self._wanted:
            self._wanted.append(number)

    def _work(
        self, number: int, working: set[int], stop: threading.Event, progress: _Progress
    ) -> None:
        """Read partition after partition until all are taken."""
        try:
            while not stop.is_set():
                with self._state:
                    task = self._next()
                    if task is None:
                        if not self._more:
                            return
                        self._state.wait(1.0)
                        continue
                self._write(*task, stop, progress)
        except BaseException as error:  # noqa: BLE001 - it is raised where the rows are read
            self._failed = error
        finally:
            with self._state:
                working.discard(number)
                self._threads -= 1
                self._state.notify_all()

    def _next(self) -> tuple[Stripe, int] | None:
        """Return the partition to read next, if there is one now."""
        for queue in (self._wanted, self._plan):
            while queue:
                task = self._take(queue[0])
                if task is not None:
                    return task
                queue.popleft()
        return None

    @property
    def _more(self) -> bool:
        """Whether there may be more to read later, when there is nothing now."""
        return False

    def _take(self, number: int) -> tuple[Stripe, int] | None:
        """Return a partition of a stripe that nobody has begun to read, for the caller to read."""
        if not self._open[number]:
            return None
        return self.arrangement.stripes[number], self._open[number].popleft()

    def _write(
        self, stripe: Stripe, partition: int, stop: threading.Event, progress: _Progress
    ) -> None:
        written = False
        try:
            with self._errors(), self._admitted(partition, stop):
                written = self._place(stripe, partition, lambda: not stop.is_set(), progress.add)
        except WorkStoppedError:
            pass
        finally:
            with self._state:
                if written:
                    self._missing[stripe.number] -= 1
                else:
                    self._open[stripe.number].appendleft(partition)
                    self._put_off(stripe.number)
                self._state.notify_all()
        if written and not self._missing[stripe.number]:
            self._settle(stripe)

    def _put_off(self, number: int) -> None:
        """Read what is left of a stripe later."""
        self._plan.append(number)

    @contextmanager
    def _admitted(self, partition: int, stop: threading.Event) -> Iterator[None]:
        # Pages of a pack that a reader has mapped count as resident, and are the kernel's to take.
        mapped = max(0, _file_pages() - self._file_pages)
        limit = self.writing.projection.limit + mapped
        with budget_of().admit(self.writing.partitions[partition], limit, stopped=stop.is_set):
            yield

    def _end(self) -> None:
        """Finish if all is there."""
        with self._ending:
            if self._whole or any(self._missing):
                return
            self._finish()
            self._whole = True


class _Progress:
    """Adds up the rows that several threads read."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self._done = 0

    def add(self, rows: int) -> None:
        with self._lock:
            self._done += rows
            self._advance(self._done)


def silent(done: int) -> None:
    """Progress that nobody is told of."""


def _file_pages() -> int:
    """Return the bytes of files that are resident in this process because they are mapped."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")
