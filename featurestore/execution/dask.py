"""Dask runs the work: one task is one partition, and only small results come back.

By default tasks run in threads of this process through Dask's threaded scheduler. Given a
``distributed.Client`` (a ``LocalCluster``, a ``dask_cuda.LocalCUDACluster``, machines) the same tasks
run there, see ``cluster``. Tasks that say what they need enter through the byte budget, so that fewer
run at once where partitions are wide.

Always true: the first failure stops the hand-out of further tasks and is raised with its own type;
results are in task order; bytes in flight stay within the memory limit less what is reserved, except
for a single task alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from heapq import nlargest
from typing import Any, TypeVar

from featurestore.errors import InvalidInputError, UnsupportedError
from featurestore.execution.budget import WorkStoppedError
from featurestore.execution.cluster import ClusterRun
from featurestore.execution.events import step
from featurestore.execution.flight import Flight
from featurestore.execution.judging import judged
from featurestore.execution.sites import (
    Site,
    client_sites,
    own_site,
    settled_bytes,
    worker_processes,
)
from featurestore.plan.costs import THREAD_BYTES

T = TypeVar("T")
R = TypeVar("R")


class Executor:
    """Runs one function over many tasks.

    Parameters
    ----------
    workers : int, optional
        Tasks at once: threads in this process, or tasks on a client's workers together. If not
        given, the CPUs this process may use, or all threads of the client.
    client : distributed.Client, optional
        Where to run instead.
    memory_limit : int, optional
        Bytes that this process and its workers on this host may take together; each other host of
        the client may take as much. If not given, only ``workers`` limits.
    engine : str
        What tasks run with; its modules count as reserved memory.
    on_progress : callable, optional
        Called in the thread that runs the tasks, whenever one has finished.
    """

    def __init__(
        self,
        workers: int | None = None,
        client: Any = None,
        memory_limit: int | None = None,
        engine: str = "polars",
        on_progress: Callable[[], object] | None = None,
    ) -> None:
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise InvalidInputError(
                f"workers={workers!r} is no number of tasks", "use a whole number from 1 on"
            )
        self._limit = workers
        self._client = client
        self._memory_limit = memory_limit
        self._engine = engine
        self._on_progress = on_progress

    @property
    def workers(self) -> int:
        """How many tasks run at once, at most."""
        if self._client is None:
            return _cpus() if self._limit is None else self._limit
        threads = max(1, int(sum(self._client.nthreads().values())))
        return threads if self._limit is None else min(threads, self._limit)

    @property
    def in_process(self) -> bool:
        return self._client is None

    @property
    def memory_limit(self) -> int | None:
        return self._memory_limit

    def within(self, memory_limit: int, engine: str) -> Executor:
        """Return an executor of the same workers for a memory limit and an engine."""
        if (memory_limit, engine) == (self._memory_limit, self._engine):
            return self
        return Executor(self._limit, self._client, memory_limit, engine, self._on_progress)

    def watched_by(self, on_progress: Callable[[], object]) -> Executor:
        """Return an executor of the same workers that says when a task has finished."""
        return Executor(self._limit, self._client, self._memory_limit, self._engine, on_progress)

    def of_this_thread(self) -> Executor:
        """Return an executor that runs one task after the other here, whatever the client."""
        return Executor(1, None, self._memory_limit, self._engine, self._on_progress)

    def sites(self) -> tuple[Site, ...]:
        """Return where tasks run, this host first, with the memory that is reserved there."""
        if self._client is None:
            return (own_site(self._engine, self.workers),)
        return client_sites(self._client, self._engine)

    def processes(self) -> tuple[int, ...]:
        """Return the ids of the client's worker processes on this host, without this process."""
        return () if self._client is None else worker_processes(self._client)

    @property
    def reserved_bytes(self) -> int:
        """What is held without work on the host where most is."""
        return max(one.reserved_bytes for one in self.sites())

    @property
    def room(self) -> int | None:
        """The bytes that tasks may take, on the host where least is left; None without a limit."""
        limit = self._memory_limit
        return None if limit is None else max(0, limit - self.reserved_bytes)

    def room_for(self, size: int) -> int | None:
        """Return the room; if it is less than ``size``, after waiting for what was freed to go back."""
        room, limit = self.room, self._memory_limit
        if room is None or limit is None or room >= size or self._client is not None:
            return room
        return max(
            0, limit - THREAD_BYTES - settled_bytes(self._engine, limit - THREAD_BYTES - size)
        )

    def require_shared(self, url: str, shared: bool) -> None:
        """Refuse a store that workers in other processes cannot see.

        Raises
        ------
        UnsupportedError
        """
        if not self.in_process and not shared:
            raise UnsupportedError(
                f"the store {url} lives in this process, a Dask client's workers cannot see it",
                "keep the store in a directory or on S3, or build without a client",
            )

    def run(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        label: str,
        costs: Sequence[int] | None = None,
        names: Sequence[str] = (),
        on_result: Callable[[int, R], None] | None = None,
    ) -> list[R]:
        """Return ``[function(task) for task in tasks]``, computed side by side.

        Parameters
        ----------
        function : callable
            Picklable by cloudpickle when a client is used.
        tasks : sequence
        label : str
            What a progress bar shows.
        costs : sequence of int, optional
            The bytes that each task needs at most. If not given, only ``workers`` limits, and the
            step is not judged.
        names : sequence of str
            What each task is about, for those who watch: its partition.
        on_result : callable, optional
            Called in this thread with (index, result) as each task finishes, in any order.

        Warns
        -----
        MemoryProjectionWarning
            If the step took more memory than ``costs`` say.
        """
        results: list[Any] = [None] * len(tasks)
        done = 0
        with self._flight(label, len(tasks), costs, names) as flight:

            def finished(index: int, result: R) -> None:
                nonlocal done
                results[index] = result
                if on_result is not None:
                    on_result(index, result)
                if self._on_progress is not None:
                    self._on_progress()
                done += 1
                flight.advance(done)

            if self._client is not None:
                at_once = self.workers if self._limit is not None or costs is not None else None
                ClusterRun(self._client, flight, at_once).run(function, tasks, finished)
            elif len(tasks) <= 1 or self.workers == 1:
                for index, task in enumerate(tasks):
                    finished(index, flight.call(function, index, task))
            else:
                self._in_threads(function, tasks, flight, finished)
        return results

    @contextmanager
    def _flight(
        self, label: str, total: int, costs: Sequence[int] | None, names: Sequence[str]
    ) -> Iterator[Flight]:
        """Announce a step, and judge it where it runs in this process and says what it needs."""
        limit = self._memory_limit
        with ExitStack() as around:
            if costs is None or not total:
                advance = around.enter_context(step(label, total, memory_limit=limit or 0))
                yield Flight(advance, None, names, limit, ())
                return
            sites = self.sites()
            projected = max(projected_peak(costs, site, limit) for site in sites)
            if self.in_process:
                around.enter_context(judged(label, projected, sites[0].own_bytes))
            advance = around.enter_context(
                step(label, total, projected_bytes=projected, memory_limit=limit or 0)
            )
            yield Flight(advance, costs, names, limit, sites)

    def _in_threads(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        flight: Flight,
        finished: Callable[[int, R], None],
    ) -> None:
        from dask.callbacks import Callback
        from dask.threaded import get

        def posttask(key: Any, result: R, *_: Any) -> None:
            finished(key[1], result)

        # Dask re-raises the first failure at once and leaves running tasks behind: leaving the
        # pool's context waits for them, so that nobody writes files after this returns.
        graph = {
            ("task", i): (partial(flight.call, function, i, task),) for i, task in enumerate(tasks)
        }
        with ThreadPoolExecutor(self.workers) as pool, Callback(posttask=posttask):
            try:
                get(graph, list(graph), pool=pool)
            except WorkStoppedError:
                # One that waited heard of the failure before this thread did.
                if flight.failure is None:
                    raise
            except BaseException:  # Ctrl-C too: those that wait for room are not to start any more
                flight.stop()
                raise
        if flight.failure is not None:
            raise flight.failure


def projected_peak(costs: Sequence[int], site: Site, memory_limit: int | None) -> int:
    """Return the most memory that tasks of these costs take at a site, together with what is reserved.

    As many as there are threads run at once, the largest ones in the worst case; the budget holds
    them within the limit, or one alone. What the thread of one takes is reserved.
    """
    most = nlargest(site.threads, costs)
    together = sum(most) + THREAD_BYTES * max(0, len(most) - 1)
    if memory_limit is not None and costs and site.threads:
        together = min(together, max(memory_limit - site.reserved_bytes, *nlargest(1, costs)))
    return site.reserved_bytes + together


def _cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
