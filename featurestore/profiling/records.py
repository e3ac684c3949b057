"""What a recording and a timeline consist of: samples, phases and spans.

The sampling process imports this: the standard library only, and ``execution.events``, which keeps
to that as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from featurestore.execution.events import STORE


class Sample(NamedTuple):
    """Resident memory at one moment.

    Parameters
    ----------
    seconds : float
        Since the measurement began.
    anonymous, file_backed, shared : int
        Bytes of this process.
    mapped : int
        How much of ``file_backed`` is data and not code: the kernel takes it back when it must.
    children : int
        Resident bytes of the processes below it, all kinds together.
    gpu : int
        Device bytes.
    """

    seconds: float
    anonymous: int
    file_backed: int
    shared: int = 0
    mapped: int = 0
    children: int = 0
    gpu: int = 0

    @property
    def resident(self) -> int:
        """All pages of this process."""
        return self.anonymous + self.file_backed + self.shared

    @property
    def code(self) -> int:
        return self.file_backed - self.mapped

    @property
    def held(self) -> int:
        """What counts against a memory limit: all but mapped data, of children too."""
        return self.resident - self.mapped + self.children


@dataclass(frozen=True, slots=True)
class Phase:
    """A named stretch of time.

    Parameters
    ----------
    label : str
    start, stop : float
        Seconds since the measurement began.
    kind : str
        ``"store"``, ``"framework"``, or ``"between"`` two steps.
    start_bytes, peak_bytes : int
        Resident memory of this process: when it began, and the most it was.
    exact : bool
        Whether ``peak_bytes`` is the kernel's high-water mark of this phase.
    projected_bytes, memory_limit : int
        What was projected for it and allowed, this process and its workers; 0 if not said.
    count : int
        How many phases of the run it stands for.
    """

    label: str
    start: float
    stop: float
    kind: str = STORE
    start_bytes: int = 0
    peak_bytes: int = 0
    exact: bool = False
    projected_bytes: int = 0
    memory_limit: int = 0
    count: int = 1

    @property
    def seconds(self) -> float:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """A task of a phase, most often a partition.

    Parameters
    ----------
    phase : int
        Position in the timeline's phases; in a recording that goes on, the phase's number.
    lane : int
        Tasks of one lane do not overlap: it is what a worker did.
    label : str
    start, stop : float
        Seconds since the measurement began.
    bytes : int
        What it was taken to need; 0 if not said.
    count : int
        How many tasks it stands for.
    """

    phase: int
    lane: int
    label: str
    start: float
    stop: float
    bytes: int = 0
    count: int = 1
