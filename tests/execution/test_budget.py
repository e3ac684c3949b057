"""The byte budget: never more in flight than fits, in order, and nothing waits for ever."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError
from featurestore.execution.budget import Budget, WorkStoppedError, budget_of
from featurestore.limits import resident_bytes

WAIT = 30.0
"""Seconds after which a test gives up; nothing here takes a tenth of one."""


def a_budget(reserved: int = 0) -> Budget:
    return Budget(reserved=lambda: reserved)


def until(condition: Callable[[], bool]) -> None:
    stop = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < stop, "it never came to that"
        time.sleep(0.001)


class Work:
    """A thread that asks for bytes, and holds them until it is let go."""

    def __init__(self, budget: Budget, cost: int, limit: int) -> None:
        self._go, self.started = threading.Event(), threading.Event()
        waiting = budget.waiting
        self._thread = threading.Thread(target=self._run, args=(budget, cost, limit), daemon=True)
        self._thread.start()
        until(lambda: self.started.is_set() or budget.waiting > waiting)

    def _run(self, budget: Budget, cost: int, limit: int) -> None:
        with budget.admit(cost, limit):
            self.started.set()
            assert self._go.wait(WAIT)

    def end(self) -> None:
        self._go.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


def test_work_enters_while_it_fits_beside_what_is_reserved_and_in_flight() -> None:
    budget = a_budget(reserved=100)
    first, second = Work(budget, 60, 200), Work(budget, 41, 200)
    assert first.started.is_set()
    assert not second.started.is_set()
    assert (budget.in_flight, budget.waiting, budget.reserved) == (60, 1, 100)
    first.end()
    assert second.started.wait(WAIT)
    third = Work(budget, 59, 200)
    assert third.started.is_set()
    assert budget.in_flight == 100
    second.end()
    third.end()
    assert (budget.in_flight, budget.waiting) == (0, 0)


def test_what_is_too_large_starts_once_nothing_is_in_flight() -> None:
    budget = a_budget(reserved=100)
    small = Work(budget, 10, 200)
    large = Work(budget, 5000, 200)
    assert not large.started.is_set()
    small.end()
    assert large.started.wait(WAIT)
    large.end()


def test_a_narrow_one_does_not_overtake_a_wide_one() -> None:
    budget = a_budget()
    first, wide, narrow = Work(budget, 60, 100), Work(budget, 80, 100), Work(budget, 1, 100)
    assert not wide.started.is_set()
    assert not narrow.started.is_set()
    first.end()
    assert wide.started.wait(WAIT)
    assert narrow.started.wait(WAIT)
    wide.end()
    narrow.end()


def test_each_is_held_to_its_own_limit() -> None:
    budget = a_budget()
    roomy = Work(budget, 500, 1000)
    strict = Work(budget, 50, 100)
    assert not strict.started.is_set()
    roomy.end()
    assert strict.started.wait(WAIT)
    strict.end()


def test_an_error_releases_and_nothing_remains() -> None:
    budget = a_budget()
    with pytest.raises(ZeroDivisionError), budget.admit(50, 100):
        raise ZeroDivisionError
    assert (budget.in_flight, budget.waiting) == (0, 0)
    with pytest.raises(InvalidInputError, match="cannot need -1 bytes"), budget.admit(-1, 100):
        pass


def test_a_wait_can_be_ended_and_leaves_no_trace() -> None:
    budget, stopped = a_budget(), threading.Event()
    failure: list[BaseException] = []

    def wait() -> None:
        try:
            with budget.admit(50, 100, stopped=stopped.is_set):
                pytest.fail("it was stopped")
        except WorkStoppedError as error:
            failure.append(error)

    first = Work(budget, 60, 100)
    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: budget.waiting == 1)
    behind = Work(budget, 40, 100)
    assert not behind.started.is_set()
    stopped.set()
    budget.wake()
    thread.join(WAIT)
    assert len(failure) == 1
    assert behind.started.wait(WAIT)  # it fits, and nobody is before it any more
    first.end()
    behind.end()
    assert (budget.in_flight, budget.waiting) == (0, 0)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were started with SIGINT ignored, as by ``pytest &``."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_while_waiting_leaves_no_trace() -> None:
    budget = a_budget()
    first = Work(budget, 60, 100)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until(lambda: budget.waiting == 1)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    entered = []
    with pytest.raises(KeyboardInterrupt), budget.admit(60, 100):
        entered.append("in")
    thread.join(WAIT)
    assert entered == []
    assert (budget.in_flight, budget.waiting) == (60, 0)
    first.end()
    with budget.admit(60, 100):
        assert budget.in_flight == 60


def test_work_that_other_work_waits_for_does_not_wait_and_is_counted() -> None:
    budget = a_budget()
    held = [budget.held_here]
    with budget.admit(80, 100):
        held.append(budget.held_here)
        with budget.admit(80, 100, waits=not budget.held_here):
            assert budget.in_flight == 160
    other = Work(budget, 50, 100)
    held.append(budget.held_here)  # by that thread, not by this one
    other.end()
    assert held == [False, True, False]


def test_reserved_is_measured_when_nothing_is_in_flight_and_grows_with_what_is_resident() -> None:
    resident = [100]
    budget = Budget(reserved=lambda: resident[0])
    assert budget.reserved == 100
    with budget.admit(50, 1000):
        resident[0] = 140  # of the 50 bytes that are in flight
        assert budget.reserved == 100
        resident[0] = 180
        assert budget.reserved == 130
    resident[0] = 90
    assert budget.reserved == 90


def test_a_record_has_the_most_that_was_in_flight() -> None:
    budget = a_budget()
    with budget.admit(10, 100), budget.recorded() as outer:
        with budget.admit(20, 100), budget.recorded() as inner:
            assert inner.most_bytes == 30
        with budget.admit(5, 100):
            pass
    assert (outer.most_bytes, inner.most_bytes) == (30, 30)
    with budget.recorded() as empty:
        pass
    assert empty.most_bytes == 0


def test_there_is_one_budget_for_this_process_and_one_for_each_other_host() -> None:
    assert budget_of() is budget_of("")
    assert budget_of("elsewhere") is budget_of("elsewhere") is not budget_of()
    reserved = budget_of().reserved
    assert abs(reserved - resident_bytes()) < 2**28


@settings(deadline=None, max_examples=25)
@given(
    costs=st.lists(st.integers(0, 120), min_size=1, max_size=40),
    threads=st.integers(1, 8),
    reserved=st.integers(0, 60),
    limit=st.integers(40, 160),
    seed=st.integers(0, 2**16),
)
def test_never_more_in_flight_than_the_budget_but_a_single_one(
    costs: list[int], threads: int, reserved: int, limit: int, seed: int
) -> None:
    budget, lock = a_budget(reserved), threading.Lock()
    running: list[int] = []
    problems: list[list[int]] = []
    pending, rng = iter(costs), random.Random(seed)
    fails = [rng.random() < 0.2 for _ in costs]
    ended: list[int] = []

    def work() -> None:
        while True:
            with lock:
                cost = next(pending, None)
                failing = fails[len(ended) % len(fails)]
            if cost is None:
                return
            try:
                with budget.admit(cost, limit):
                    with lock:
                        running.append(cost)
                        if len(running) > 1 and reserved + sum(running) > limit:
                            problems.append(list(running))
                    time.sleep(0)
                    with lock:
                        running.remove(cost)
                    if failing:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            with lock:
                ended.append(cost)

    pool = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    with ExitStack() as joined:
        for one in pool:
            one.start()
            joined.callback(one.join, WAIT)
    assert not any(one.is_alive() for one in pool), "somebody waits for ever"
    assert sorted(ended) == sorted(costs)
    assert problems == []
    assert (budget.in_flight, budget.waiting) == (0, 0)
