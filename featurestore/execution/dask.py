"""Dask runs the work: one task is one partition, and only small results come back.

By default tasks run in threads of this process through Dask's threaded scheduler. Given a
``distributed.Client`` (a ``LocalCluster``, a ``dask_cuda.LocalCUDACluster``, machines) the same tasks
run there; at most two per worker thread are in flight, so that a million partitions do not become a
million scheduler entries at once.

Always true: the first failure stops the hand-out of further tasks and is raised with its own type;
results are in task order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from featurestore.errors import InvalidInputError, UnsupportedError
from featurestore.execution.events import step

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
    """

    def __init__(self, workers: int | None = None, client: Any = None) -> None:
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise InvalidInputError(
                f"workers={workers!r} is no number of tasks", "use a whole number from 1 on"
            )
        self._limit = workers
        self._client = client

    @property
    def workers(self) -> int:
        """How many tasks run at once, at most."""
        if self._client is None:
            return _cpus() if self._limit is None else self._limit
        threads = max(1, int(sum(self._client.nthreads().values())))
        return threads if self._limit is None else min(threads, self._limit)

    def limited_to(self, workers: int) -> Executor:
        """Return an executor that runs at most ``workers`` tasks at once, never more than this."""
        return Executor(max(1, min(workers, self.workers)), self._client)

    @property
    def in_process(self) -> bool:
        return self._client is None

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
        on_result : callable, optional
            Called in this thread with (index, result) as each task finishes, in any order.
        """
        results: list[Any] = [None] * len(tasks)
        done = 0
        with step(label, len(tasks)) as advance:

            def finished(index: int, result: R) -> None:
                nonlocal done
                results[index] = result
                if on_result is not None:
                    on_result(index, result)
                done += 1
                advance(done)

            if self._client is not None:
                self._on_cluster(function, tasks, finished)
            elif len(tasks) <= 1 or self.workers == 1:
                for index, task in enumerate(tasks):
                    finished(index, function(task))
            else:
                self._in_threads(function, tasks, finished)
        return results

    def _in_threads(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        finished: Callable[[int, R], None],
    ) -> None:
        from dask.callbacks import Callback
        from dask.threaded import get

        def posttask(key: Any, result: R, *_: Any) -> None:
            finished(key[1], result)

        # Dask re-raises the first failure at once and leaves running tasks behind: leaving the
        # pool's context waits for them, so that nobody writes files after this returns.
        graph = {("task", i): (partial(function, task),) for i, task in enumerate(tasks)}
        with ThreadPoolExecutor(self.workers) as pool, Callback(posttask=posttask):
            get(graph, list(graph), pool=pool)

    def _on_cluster(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        finished: Callable[[int, R], None],
    ) -> None:
        from distributed import as_completed, wait

        indices: dict[str, int] = {}

        def submit(index: int, task: T) -> Any:
            future = self._client.submit(function, task, pure=False)
            indices[future.key] = index
            return future

        # Two per thread keep the workers busy between tasks; a limit is a limit on memory.
        at_once = 2 * self.workers if self._limit is None else self.workers
        pending = iter(enumerate(tasks))
        queue = as_completed([submit(*one) for one in islice(pending, at_once)])
        futures = set(queue.futures)
        try:
            for future in queue:
                finished(indices[future.key], future.result())
                futures.discard(future)
                for one in islice(pending, 1):
                    following = submit(*one)
                    futures.add(following)
                    queue.add(following)
        finally:
            # After a failure. What already runs on a worker cannot be taken back: wait for the few
            # that were handed out, so that nobody writes files after this returns.
            if futures:
                wait(list(futures))


def _cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
