"""Tasks on the workers of a ``distributed.Client``, admitted here, host by host.

Each host has a feeder, a thread of this process that takes the next task when the host has a thread
free, waits for room in the host's budget and hands the task to the host's workers. Without costs at
most two per worker thread are handed out, so that a million partitions do not become a million
scheduler entries at once.

Always true: the first failure stops the hand-out; when ``run`` returns, nothing of it runs any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any, TypeVar

from featurestore.execution.budget import THIS_HOST, WorkStoppedError
from featurestore.execution.flight import Flight, called
from featurestore.execution.sites import Site

T = TypeVar("T")
R = TypeVar("R")


class ClusterRun:
    """One step on a client's workers.

    Parameters
    ----------
    client : distributed.Client
    flight : Flight
    at_once : int, optional
        Tasks handed out at once, on all hosts together; if not given, two per thread.
    """

    def __init__(self, client: Any, flight: Flight, at_once: int | None) -> None:
        self._client = client
        self._flight = flight
        threads = int(sum(client.nthreads().values()))
        # Two per thread keep workers busy between tasks; a limit is a limit on memory.
        self._at_once = max(1, 2 * threads if at_once is None else at_once)
        # Without costs any worker takes any task.
        self._sites = [one for one in flight.sites if one.threads] or [
            Site(THIS_HOST, self._at_once, 0)
        ]
        self._changed = Condition()
        self._out: Counter[str] = Counter()
        self._futures: dict[str, Any] = {}
        self._rooms: dict[int, ExitStack] = {}
        self._events: dict[int, ExitStack] = {}
        self._done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def run(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        finished: Callable[[int, R], None],
    ) -> None:
        """Run all tasks; ``finished`` gets index and result in this thread."""
        pending = iter(enumerate(tasks))
        feeders = [
            Thread(target=self._feed, args=(site, function, pending), name="featurestore-feeder")
            for site in self._sites
        ]
        try:
            for one in feeders:
                one.start()
            for _ in tasks:
                index, future, failure = self._done.get()
                if failure is not None:
                    raise failure
                self._events.pop(index).close()
                finished(index, future.result())
                del self._futures[future.key]
        finally:
            self._end(feeders)

    def _end(self, feeders: Sequence[Thread]) -> None:
        """Hand out nothing more, and wait for the few that run: they cannot be taken back."""
        from distributed import wait

        with self._changed:
            self._flight.stop()
            self._changed.notify_all()
        for one in feeders:
            if one.ident is not None:
                one.join()
        if self._futures:
            wait(list(self._futures.values()))
        for held in (*self._rooms.values(), *self._events.values()):
            held.close()

    def _feed(
        self, site: Site, function: Callable[[T], R], pending: Iterator[tuple[int, T]]
    ) -> None:
        try:
            while True:
                found = self._next(site, pending)
                if found is None:
                    return
                self._submit(site, function, *found)
        except WorkStoppedError:
            return
        except BaseException as error:  # noqa: BLE001 - raised by run, in the thread that asked
            self._done.put((-1, None, error))

    def _next(self, site: Site, pending: Iterator[tuple[int, T]]) -> tuple[int, T] | None:
        """Wait for a free thread and return the next task; None if there is none, or it is over."""
        with self._changed:
            while not self._flight.stopped and (
                self._out[site.host] >= site.threads or self._out.total() >= self._at_once
            ):
                self._changed.wait()
            if self._flight.stopped:
                return None
            found = next(pending, None)
            if found is not None:
                self._out[site.host] += 1
            return found

    def _submit(self, site: Site, function: Callable[[T], R], index: int, task: T) -> None:
        with ExitStack() as held:
            held.enter_context(self._flight.admitted(index, site))
            with ExitStack() as events:
                events.enter_context(self._flight.announced(index))
                future = self._client.submit(
                    called,
                    function,
                    task,
                    self._flight.cost(index),
                    pure=False,
                    workers=list(site.workers) or None,
                )
                self._futures[future.key] = future
                self._events[index] = events.pop_all()
            self._rooms[index] = held.pop_all()

        def ended(over: Any) -> None:
            if over.status != "finished":  # before its room is free: nobody is to start in it
                self._flight.stop()
            self._rooms.pop(index).close()
            with self._changed:
                self._out[site.host] -= 1
                self._changed.notify_all()
            self._done.put((index, over, None))

        future.add_done_callback(ended)
