"""Where a loader is: which batch was handed out last, and which the next iteration begins with.

Always true: only the newest pass moves the position, so that a framework's thread that still draws
from an iterator it gave up does not; a pass counts a batch when its consumer gets it, not when it is
read; an epoch counts once its last batch was handed out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


class Position:
    """The position of a loader, shared by the passes over it; safe from several threads.

    Examples
    --------
    >>> position = Position()
    >>> one = position.begin()
    >>> one.hand_out(0, of=2)
    >>> position.next, position.start
    ((0, 1), (0, 0))
    >>> one.hand_out(1, of=2)
    >>> position.next, position.start
    ((1, 0), (1, 0))
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

    def _hand_out(self, one: Pass, step: int, of: int) -> None:
        with self._lock:
            if self._newest is not one:
                return
            self._next = (one.epoch, step + 1)
            if step + 1 == of:
                self._start = self._next = (one.epoch + 1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One iteration over an epoch, or over the rest of a resumed one."""

    position: Position
    epoch: int
    first: int

    def hand_out(self, step: int, of: int) -> None:
        """Count batch ``step`` of ``of`` as the consumer's."""
        self.position._hand_out(self, step, of)
