"""Events: what the core tells whoever wants to watch (progress bars, profilers, logs).

The core emits, observers subscribe; the core imports none of them. An observer that raises stops
the work: a broken observer should be seen, not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeAlias

# What a step's memory is spent by: this package, or the machine-learning framework it feeds.
STORE: Final = "store"
FRAMEWORK: Final = "framework"


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step of ``total`` units of work begins.

    ``projected_bytes`` is the peak of this process and its workers that was projected for it, and
    ``memory_limit`` the one it runs under, 0 if there is none. ``kind`` says whose memory it is:
    ``STORE`` or ``FRAMEWORK``.
    """

    step: int
    label: str
    total: int
    projected_bytes: int = 0
    memory_limit: int = 0
    kind: str = STORE


@dataclass(frozen=True, slots=True)
class StepAdvanced:
    """``done`` of a step's units are finished."""

    step: int
    done: int


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """One task of a step begins: ``label`` says on what, ``bytes`` what it is taken to need."""

    step: int
    task: int
    label: str = ""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """A task of a step has ended, whether or not it succeeded."""

    step: int
    task: int


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step has ended, whether or not it succeeded."""

    step: int


Event: TypeAlias = StepStarted | StepAdvanced | TaskStarted | TaskFinished | StepFinished
Observer: TypeAlias = Callable[[Event], None]

_observers: Final[list[Observer]] = []
_lock: Final = Lock()
_next_step = 0


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let ``observer`` receive every event of this process inside the block."""
    with _lock:
        _observers.append(observer)
    try:
        yield
    finally:
        with _lock:
            _observers.remove(observer)


def emit(event: Event) -> None:
    """Hand an event to all observers."""
    with _lock:
        current = tuple(_observers)
    for observer in current:
        observer(event)


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is announced: call it with the number of units that are done.

    ``number`` is what its events carry as ``step``.
    """

    number: int

    def __call__(self, done: int) -> None:
        emit(StepAdvanced(self.number, done))

    @contextmanager
    def task(self, task: int, label: str = "", needs: int = 0) -> Iterator[None]:
        """Announce one task of the step: on what (``label``), and the bytes it is taken to need."""
        emit(TaskStarted(self.number, task, label, needs))
        try:
            yield
        finally:
            emit(TaskFinished(self.number, task))


@contextmanager
def step(
    label: str,
    total: int,
    *,
    projected_bytes: int = 0,
    memory_limit: int = 0,
    kind: str = STORE,
) -> Iterator[Step]:
    """Announce a step and yield what reports its units and tasks; see :class:`StepStarted`.

    Examples
    --------
    >>> with step("write pack (rows)", 2000) as advance:
    ...     advance(1000)
    """
    global _next_step  # noqa: PLW0603 - a process-wide number keeps concurrent steps apart
    with _lock:
        _next_step += 1
        number = _next_step
    emit(StepStarted(number, label, total, projected_bytes, memory_limit, kind))
    try:
        yield Step(number)
    finally:
        emit(StepFinished(number))
