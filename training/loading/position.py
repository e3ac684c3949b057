"""Where a loader is: which batch was handed out last, and which the next iteration begins with.

Always true: only the newest pass moves the position, so that a framework's thread that still draws
from an iterator it gave up does not; a pass counts a batch when its consumer gets it, not when it is
read; an epoch counts once its last batch was handed out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass


class Position:
    """The position of a loader, shared by the passes over it; safe from several threads.

    Examples
    --------
    >>> position = Position()
    >>> for turn in position.begin().turns(of=2):
    ...     turn.hand_out()
    ...     print(position.next, position.start)
    (0, 1) (0, 0)
    (1, 0) (1, 0)
    """

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        self._lock = threading.Lock()
        self._newest: Pass | None = None
        self._start = self._next = (epoch, step)

    @property
    def start(self) -> tuple[int, int]:
        """Epoch and step that the next pass begins with."""
        return self._start

    @property
    def next(self) -> tuple[int, int]:
        """Epoch and step after the batch that the newest pass handed out last."""
        return self._next

    def move(self, epoch: int, step: int = 0) -> None:
        """Let the next pass begin there; those under way do not count any more."""
        with self._lock:
            self._newest = None
            self._start = self._next = (epoch, step)

    def begin(self) -> Pass:
        """Return a new pass over what is left of the epoch."""
        with self._lock:
            self._next = self._start
            self._newest = Pass(self, *self._start)
            return self._newest

    def hand_out(self, turn: Turn) -> None:
        """Count a batch as the consumer's, if it is of the newest pass."""
        one = turn.of_pass
        with self._lock:
            if self._newest is not one:
                return
            self._next = (one.epoch, turn.step + 1)
            if turn.step + 1 == turn.steps:
                self._start = self._next = (one.epoch + 1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One iteration over an epoch, or over the rest of a resumed one."""

    position: Position
    epoch: int
    first: int

    def turns(self, of: int) -> Iterator[Turn]:
        """Yield the turns of the batches that are left of an epoch of so many."""
        return (Turn(self, step, of) for step in range(self.first, of))


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of one batch in a pass, to be counted when its consumer gets it.

    Parameters
    ----------
    of_pass : Pass
    step : int
        Of the epoch.
    steps : int
        How many the epoch has.
    """

    of_pass: Pass
    step: int
    steps: int

    @property
    def epoch(self) -> int:
        return self.of_pass.epoch

    def hand_out(self) -> None:
        """Count the batch as the consumer's."""
        self.of_pass.position.hand_out(self)
