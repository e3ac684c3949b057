"""The executor: results in order, first error with its own type, nothing runs on afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from featurestore.errors import InvalidInputError, UnsupportedError
from featurestore.execution.dask import Executor
from featurestore.execution.events import (
    Event,
    StepAdvanced,
    StepFinished,
    StepStarted,
    observed_by,
)
from featurestore.testing.clusters import loopback_client


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    with loopback_client() as client:
        yield Executor(client=client)


@pytest.fixture(params=["one", "threads", "cluster"])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "cluster":
        return request.getfixturevalue("cluster")  # type: ignore[no-any-return]
    return Executor(workers=1 if request.param == "one" else 3)


def square(number: int) -> int:
    time.sleep(0.002 * (number % 5))
    return number * number


def test_results_are_in_task_order_however_tasks_finish(executor: Executor) -> None:
    seen: dict[int, int] = {}
    results = executor.run(square, range(40), label="square", on_result=seen.__setitem__)
    assert results == [number * number for number in range(40)]
    assert seen == dict(enumerate(results))
    assert executor.run(square, [], label="nothing") == []


def leave_a_mark(folder: Path, number: int) -> None:
    if number % 10 == 3:  # Dask chooses the order of tasks
        raise InvalidInputError("three is not wanted", "leave it out")
    time.sleep(0.05)
    (folder / str(number)).touch()


def test_the_first_error_surfaces_and_nothing_runs_afterwards(
    executor: Executor, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="three is not wanted") as caught:
        executor.run(partial(leave_a_mark, tmp_path), range(200), label="marks")
    assert caught.value.remedy == "leave it out"
    left = len(list(tmp_path.iterdir()))
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == left < 60


def record(into: list[Event]) -> Callable[[Event], None]:
    return into.append


def test_events_are_balanced_whether_or_not_work_succeeds(
    executor: Executor, tmp_path: Path
) -> None:
    events: list[Event] = []
    with observed_by(record(events)):
        executor.run(square, range(9), label="square")
        with pytest.raises(InvalidInputError):
            executor.run(partial(leave_a_mark, tmp_path), range(9), label="marks")
    executor.run(square, range(3), label="unseen")
    first, second = (one for one in events if isinstance(one, StepStarted))
    assert (first.label, first.total) == ("square", 9)
    assert first.step != second.step
    done = [one.done for one in events if isinstance(one, StepAdvanced) and one.step == first.step]
    assert done == list(range(1, 10))
    assert [one.step for one in events if isinstance(one, StepFinished)] == [
        first.step,
        second.step,
    ]
    assert isinstance(events[-1], StepFinished)


def test_an_observer_that_raises_stops_the_work(executor: Executor, tmp_path: Path) -> None:
    def broken(event: Event) -> None:
        if isinstance(event, StepAdvanced):
            raise ZeroDivisionError("observer")

    with observed_by(broken), pytest.raises(ZeroDivisionError, match="observer"):
        executor.run(square, range(50), label="square")
    assert executor.run(square, [2], label="still works") == [4]


def test_no_more_tasks_at_once_than_workers() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def task(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return number

    Executor(workers=2).run(task, range(12), label="count")
    assert most == 2


def test_what_makes_no_executor() -> None:
    with pytest.raises(InvalidInputError, match="workers=0 is no number"):
        Executor(workers=0)


def test_a_client_needs_a_store_that_its_workers_see(cluster: Executor) -> None:
    with pytest.raises(UnsupportedError, match=r"memory://.*\n.*directory or on S3"):
        cluster.require_shared("memory://here", shared=False)
    cluster.require_shared("/data", shared=True)
    assert cluster.workers == 2
