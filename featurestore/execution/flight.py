"""The tasks of one step in flight: announced, admitted by the byte budget, and trimmed after."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

from featurestore.allocators import WORTH_RELEASING, release_freed
from featurestore.execution.budget import THIS_HOST, Budget, budget_of
from featurestore.execution.events import Step
from featurestore.execution.sites import Site
from featurestore.plan.costs import THREAD_BYTES

T = TypeVar("T")
R = TypeVar("R")


class Flight:
    """The tasks of one step.

    Parameters
    ----------
    advance : Step
        Of the step that is announced.
    costs : sequence of int, optional
        Bytes per task; without, the budget is not asked.
    names : sequence of str
        What each task is about; may be empty.
    memory_limit : int, optional
    sites : sequence of Site
        Where tasks run, this host first; empty without costs.
    """

    def __init__(
        self,
        advance: Step,
        costs: Sequence[int] | None,
        names: Sequence[str],
        memory_limit: int | None,
        sites: Sequence[Site],
    ) -> None:
        self._step = advance
        self._costs = costs
        self._names = names
        self._limit = memory_limit
        self.sites = tuple(sites)
        self._stopped = Event()
        self.failure: BaseException | None = None
        # A step inside a task of this process is waited for by that task.
        self._waits = not budget_of().held_here

    def advance(self, done: int) -> None:
        """Announce that so many tasks are done."""
        self._step(done)

    def cost(self, index: int) -> int:
        return 0 if self._costs is None else self._costs[index]

    def stop(self, failure: BaseException | None = None) -> None:
        """Let no further task start, those that wait for room among them; keep the first failure."""
        if self.failure is None:
            self.failure = failure
        self._stopped.set()
        for host in {THIS_HOST, *(one.host for one in self.sites)}:
            _budget(host).wake()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    @contextmanager
    def announced(self, index: int) -> Iterator[None]:
        """Announce a task's begin and end."""
        name = self._names[index] if self._names else ""
        with self._step.task(index, name, self.cost(index)):
            yield

    @contextmanager
    def admitted(self, index: int, site: Site | None = None) -> Iterator[None]:
        """Wait until a task may start at a site, and hold its bytes inside the block.

        Raises
        ------
        WorkStoppedError
            If the step was stopped meanwhile.
        """
        if self._costs is None:
            yield
            return
        site = self.sites[0] if site is None else site
        # The budget of this host sees this process; what its workers hold is beside it.
        beside = site.reserved_bytes - site.own_bytes - THREAD_BYTES
        host, limit = site.host, sys.maxsize if self._limit is None else self._limit - beside
        with _budget(host).admit(
            self._costs[index] + THREAD_BYTES,
            limit,
            stopped=self._stopped.is_set,
            waits=self._waits,
        ):
            yield

    def call(self, function: Callable[[T], R], index: int, task: T) -> R:
        """Run a task in this thread."""
        with self.admitted(index), self.announced(index):
            try:
                return called(function, task, self.cost(index))
            except BaseException as error:
                # While its room is still held: whoever waits for that is not to start any more.
                self.stop(error)
                raise


def called(function: Callable[[T], R], task: T, cost: int) -> R:
    """Return a task's result, with what it freed given back. Runs where the task runs."""
    try:
        return function(task)
    finally:
        if cost >= WORTH_RELEASING:
            release_freed()


def _budget(host: str) -> Budget:
    # Of another host everything that is held there was measured on it.
    return budget_of(host, None if host == THIS_HOST else _nothing)


def _nothing() -> int:
    return 0
