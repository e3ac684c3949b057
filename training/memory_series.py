"""Memory of this process over a run: a few hundred moments, however long it takes.

Always true: no more than ``points`` moments are held, evenly spaced, and the largest value that was seen
is among them. Trade-off: what comes and goes between two samples is not seen; ``fit_peak`` in
``memory.json`` is the kernel's own mark and misses nothing.
"""

from __future__ import annotations

import csv
import os
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from featurestore.errors import InvalidInputError
from featurestore.limits import resident_bytes

POINTS: Final = 240
INTERVAL: Final = 0.25
"""Seconds between the first samples; doubled whenever there are as many as may be."""
_STATM: Final = Path("/proc/self/statm")


class Moment(NamedTuple):
    """What the process held.

    Parameters
    ----------
    seconds : float
        Since the series began.
    resident_bytes : int
        Mapped files included, which the kernel may take back.
    anonymous_bytes : int, optional
        Without them; None where the system does not tell.
    """

    seconds: float
    resident_bytes: int
    anonymous_bytes: int | None


class MemorySeries:
    """Samples memory in a thread of its own, while the block it is the context of runs.

    Parameters
    ----------
    points : int
        At most, and at least 4.
    interval : float
        Seconds, above 0.

    Examples
    --------
    >>> with MemorySeries() as series:
    ...     block = bytearray(2**20)
    >>> len(series.moments)
    2
    """

    def __init__(self, points: int = POINTS, interval: float = INTERVAL) -> None:
        if points < 4 or interval <= 0:
            raise InvalidInputError(
                f"a series of {points} points, {interval} seconds apart, cannot be sampled",
                "use at least 4 points and an interval above 0",
            )
        self._points, self._interval = points, interval
        self._moments: list[Moment] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory series", daemon=True)
        self._began = 0.0

    @property
    def moments(self) -> tuple[Moment, ...]:
        """What was seen, in order of time."""
        return tuple(self._moments)

    def add(self, moment: Moment) -> None:
        """Take a moment, later than those before; of two neighbours the larger values are kept."""
        if len(self._moments) == self._points:
            self._moments = [
                _larger(*self._moments[at : at + 2]) for at in range(0, self._points, 2)
            ]
            self._interval *= 2
        self._moments.append(moment)

    def write(self, path: Path) -> None:
        """Write one line per moment, as CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Moment._fields)
            for one in self._moments:
                writer.writerow([f"{one.seconds:.3f}", *one[1:]])

    def __enter__(self) -> MemorySeries:
        self._began = time.monotonic()
        self.add(self._now())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.add(self._now())

    def _sample(self) -> None:
        while not self._ended.wait(self._interval):
            self.add(self._now())

    def _now(self) -> Moment:
        seconds = time.monotonic() - self._began
        if not _STATM.exists():
            return Moment(seconds, resident_bytes(), None)
        resident, shared = (int(one) for one in _STATM.read_text().split()[1:3])
        page = os.sysconf("SC_PAGE_SIZE")
        return Moment(seconds, resident * page, (resident - shared) * page)


def _larger(first: Moment, second: Moment | None = None) -> Moment:
    """Return the larger values of two moments, at the time of the first."""
    if second is None:
        return first
    anonymous = [one.anonymous_bytes for one in (first, second) if one.anonymous_bytes is not None]
    return Moment(
        first.seconds,
        max(first.resident_bytes, second.resident_bytes),
        max(anonymous, default=None),
    )
