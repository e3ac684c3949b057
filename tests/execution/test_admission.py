"""Tasks that say what they need: fewer at once where they are large, announced, and judged."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.errors import InvalidInputError, MemoryLimitError, MemoryProjectionWarning
from featurestore.execution.budget import THIS_HOST, budget_of
from featurestore.execution.dask import Executor, projected_peak
from featurestore.execution.events import (
    Event,
    StepStarted,
    TaskFinished,
    TaskStarted,
    observed_by,
)
from featurestore.execution.room import Need, holding, require_each, require_room, smallest_limit
from featurestore.execution.sites import Site, reserved_bytes
from featurestore.plan.costs import THREAD_BYTES
from featurestore.testing.clusters import busy, loopback_client
from featurestore.units import parse_bytes

MIB = 2**20
GIB = 2**30


class Watched:
    """A task that notes how many of it, and how many bytes, run at once."""

    def __init__(self, costs: list[int], seconds: float = 0.01) -> None:
        self._costs, self._seconds = costs, seconds
        self._lock = threading.Lock()
        self.running: list[int] = []
        self.most: list[int] = []
        self.order: list[int] = []

    def __call__(self, index: int) -> int:
        with self._lock:
            self.running.append(self._costs[index])
            self.order.append(index)
            self.most = max(self.most, list(self.running), key=sum)
        time.sleep(self._seconds)
        with self._lock:
            self.running.remove(self._costs[index])
        return index


def test_fewer_tasks_run_at_once_where_they_are_large() -> None:
    room = 100 * MIB
    limit = reserved_bytes("polars") + room
    # Each has a thread beside it.
    for size, at_once in [(8 * MIB, 4), (30 * MIB, 2), (60 * MIB, 1), (500 * MIB, 1)]:
        costs = [size] * 12
        watched = Watched(costs)
        executor = Executor(workers=4, memory_limit=limit)
        found = executor.run(watched, range(12), label="sized", costs=costs)
        assert found == list(range(12))
        assert len(watched.most) <= at_once
        assert (len(watched.most) > 1) == (at_once > 1)
    assert budget_of().in_flight == 0


def test_without_a_limit_only_workers_count() -> None:
    costs = [100 * GIB] * 8
    watched = Watched(costs, 0.05)
    Executor(workers=3).run(watched, range(8), label="free", costs=costs)
    assert len(watched.most) == 3


def test_builds_of_one_process_share_one_budget() -> None:
    size, room = 60 * MIB, 100 * MIB
    costs = [size] * 6
    watched = Watched(costs)
    executor = Executor(workers=2, memory_limit=reserved_bytes("polars") + room)
    run = partial(executor.run, watched, range(6), label="one of two", costs=costs)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert len(watched.order) == 12
    assert len(watched.most) == 1


def test_a_failure_ends_those_that_wait_for_room() -> None:
    limit = reserved_bytes("polars") + 100 * MIB

    def fail(started: list[int], index: int) -> None:
        started.append(index)
        time.sleep(0.01)
        raise ZeroDivisionError

    # Who hears of it first, those that wait or the thread that runs the step, is left to chance.
    for _ in range(30):
        started: list[int] = []
        with pytest.raises(ZeroDivisionError):
            Executor(workers=4, memory_limit=limit).run(
                partial(fail, started), range(20), label="failing", costs=[90 * MIB] * 20
            )
        assert len(started) == 1
        assert (budget_of().in_flight, budget_of().waiting) == (0, 0)


def test_a_step_inside_a_task_does_not_wait_for_that_task() -> None:
    limit = reserved_bytes("polars") + 100 * MIB
    executor = Executor(workers=2, memory_limit=limit)

    def inner(number: int) -> int:
        return number

    def outer(number: int) -> list[int]:
        with holding(Need("reading", 50 * MIB), limit, "polars", ""):
            return executor.run(inner, range(4), label="inner", costs=[90 * MIB] * 4)

    found = executor.run(outer, range(3), label="outer", costs=[90 * MIB] * 3)
    assert found == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_are_announced_with_what_they_need(workers: int) -> None:
    seen: list[Event] = []
    executor = Executor(workers=workers, memory_limit=8 * GIB)
    with observed_by(seen.append):
        executor.run(abs, [5, 6, 7], label="numbers", costs=[10, 30, 20], names=["a", "b", "c"])
    [step] = (one for one in seen if isinstance(one, StepStarted))
    tasks = {one.task: one for one in seen if isinstance(one, TaskStarted)}
    assert {(one.label, one.bytes) for one in tasks.values()} == {("a", 10), ("b", 30), ("c", 20)}
    assert all(one.step == step.step for one in tasks.values())
    assert sorted(one.task for one in seen if isinstance(one, TaskFinished)) == [0, 1, 2]
    together = 30 if workers == 1 else 60
    assert abs(step.projected_bytes - together - reserved_bytes("polars")) < 64 * MIB
    assert step.memory_limit == 8 * GIB


def test_a_task_that_fails_is_announced_as_finished() -> None:
    seen: list[Event] = []

    def fail(_: int) -> None:
        raise InvalidInputError("no")

    with observed_by(seen.append), pytest.raises(InvalidInputError):
        Executor(workers=2).run(fail, range(2), label="failing")
    started = {one.task for one in seen if isinstance(one, TaskStarted)}
    assert {one.task for one in seen if isinstance(one, TaskFinished)} == started


def test_the_projected_peak_of_tasks() -> None:
    site = Site(THIS_HOST, 2, 1000)
    both = 1070 + THREAD_BYTES  # that of one thread is reserved
    assert projected_peak([5, 40, 30], site, None) == both
    assert projected_peak([5, 40, 30], site, both - 20) == both - 20
    assert projected_peak([5, 40, 30], site, 1010) == 1040  # the largest, alone
    assert projected_peak([5], site, 5000) == 1005
    assert projected_peak([], site, 5000) == 1000


# --- judged --------------------------------------------------------------------------------------


def take(size: int) -> None:
    block = np.ones(size, np.uint8)
    assert block[-1] == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_that_takes_more_than_projected_is_a_warning_with_numbers(workers: int) -> None:
    executor = Executor(workers=workers, memory_limit=8 * GIB)
    with pytest.warns(MemoryProjectionWarning, match=r"'greedy' took .* at its peak") as caught:
        executor.run(take, [128 * MIB], label="greedy", costs=[32 * MIB])
    assert "in flight" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        executor.run(take, [128 * MIB], label="honest", costs=[128 * MIB])
        executor.run(take, [128 * MIB], label="silent")
        with pytest.raises(ZeroDivisionError):
            executor.run(lambda _: 1 // 0, [1], label="failing", costs=[0])


def test_what_another_step_holds_is_not_this_ones(tmp_path: Path) -> None:
    executor = Executor(workers=1, memory_limit=16 * GIB)
    began, go = threading.Event(), threading.Event()

    def hold(size: int) -> None:
        block = np.ones(size, np.uint8)
        began.set()
        assert go.wait(60)
        assert block[-1] == 1

    def beside() -> None:
        executor.run(hold, [128 * MIB], label="large", costs=[128 * MIB])

    thread = threading.Thread(target=beside)

    def start(_: int) -> None:
        thread.start()
        assert began.wait(60)

    executor.run(start, [0], label="small", costs=[MIB])
    go.set()
    thread.join(60)


# --- whether it fits at all ----------------------------------------------------------------------


def test_a_refusal_says_what_would_do() -> None:
    need = Need("sorting rows", 300 * MIB, "p1")
    require_room(need, 500 * MIB, 200 * MIB, "sort fewer")
    with pytest.raises(MemoryLimitError) as caught:
        require_room(need, 500 * MIB - 1, 200 * MIB, "sort fewer")
    assert "sorting rows needs 300.0 MiB for partition p1" in caught.value.problem
    assert caught.value.remedy == "raise memory_limit to at least 508MiB, or sort fewer"
    assert parse_bytes(smallest_limit(300 * MIB, 200 * MIB)) == 508 * MIB
    with pytest.raises(MemoryLimitError, match=r"508MiB$"):
        require_room(need, 100, 200 * MIB, "")


def test_the_largest_task_decides() -> None:
    executor = Executor(workers=1, memory_limit=reserved_bytes("polars") + 100 * MIB)
    require_each("merging", [MIB, 2 * MIB], ["a", "b"], executor, "")
    with pytest.raises(MemoryLimitError, match=r"merging needs 1\.0 GiB for partition b"):
        require_each("merging", [MIB, GIB], ["a", "b"], executor, "")
    require_each("merging", [], [], executor, "")
    require_each("merging", [GIB], ["a"], Executor(workers=1), "")


def test_what_is_held_is_in_flight_and_released() -> None:
    before = budget_of().in_flight
    limit = reserved_bytes("polars") + 200 * MIB
    with holding(Need("reading", 50 * MIB), limit, "polars", "read less"):
        assert budget_of().in_flight == before + 50 * MIB
    assert budget_of().in_flight == before
    with (
        pytest.raises(MemoryLimitError, match="read less"),
        holding(Need("reading", GIB), limit, "polars", "read less"),
    ):
        pytest.fail("it does not fit")


# --- a cluster -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with loopback_client() as client:
        yield client


def test_workers_of_this_host_share_its_limit(client: Any, tmp_path: Path) -> None:
    [site] = Executor(client=client).sites()
    assert (site.host, site.threads, len(site.workers)) == (THIS_HOST, 2, 2)
    alone = reserved_bytes("polars")
    assert site.reserved_bytes > alone + 2 * 50 * MIB  # each worker has its own modules
    work = partial(busy, tmp_path)
    for room, most in [(250 * MIB, 2), (150 * MIB, 1)]:
        limit = Executor(client=client).sites()[0].reserved_bytes + room
        executor = Executor(client=client, memory_limit=limit)
        seen: list[Event] = []
        with observed_by(seen.append):
            found = executor.run(work, range(6), label="busy", costs=[100 * MIB] * 6)
        assert max(found) <= most
        assert len(found) == 6
        [step] = (one for one in seen if isinstance(one, StepStarted))
        assert step.projected_bytes <= limit
        assert len([one for one in seen if isinstance(one, TaskStarted)]) == 6
        assert len([one for one in seen if isinstance(one, TaskFinished)]) == 6
    assert (budget_of().in_flight, budget_of().waiting) == (0, 0)


def fails(folder: Path, index: int) -> None:
    (folder / str(index)).touch()
    raise InvalidInputError("not this one", "leave it out")


def test_a_failure_on_a_worker_leaves_nothing_in_flight(client: Any, tmp_path: Path) -> None:
    limit = Executor(client=client).sites()[0].reserved_bytes + 150 * MIB
    executor = Executor(client=client, memory_limit=limit)
    with pytest.raises(InvalidInputError, match="not this one"):
        executor.run(partial(fails, tmp_path), range(10), label="failing", costs=[100 * MIB] * 10)
    assert len(list(tmp_path.iterdir())) == 1
    assert (budget_of().in_flight, budget_of().waiting) == (0, 0)
    assert executor.run(abs, [-2], label="again", costs=[MIB]) == [2]
