"""How much memory a block of code takes at its peak, and how it came to that.

Two instruments together. The kernel's own high-water mark, reset at the start of the block, is exact
for this process and misses nothing. A sampler in a separate process tells over time how much is
anonymous (what counts), how much file-backed (what the kernel may drop) and, if asked, what child
processes take.

On systems other than Linux there is only the high-water mark since the process began; a measurement
says so in ``method``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from os import getpid
from pathlib import Path
from threading import Lock
from typing import IO, Final

from featurestore.errors import InvalidInputError
from featurestore.limits import resident_bytes
from featurestore.profiling import probe

_open_meters: Final[list[Meter]] = []
_lock: Final = Lock()
_HAS_PROC: Final = Path("/proc/self/status").exists()


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory at one moment.

    Parameters
    ----------
    seconds : float
        Since the measurement began.
    anonymous, file_backed, shared : int
        Bytes.
    """

    seconds: float
    anonymous: int
    file_backed: int
    shared: int = 0

    @property
    def resident(self) -> int:
        return self.anonymous + self.file_backed + self.shared


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a block of code took.

    Parameters
    ----------
    seconds : float
    start_bytes, peak_bytes : int
        Resident memory when the block began, and at its peak (never below the start).
    peak_anonymous : int
        The peak of anonymous memory as sampled; 0 where there is no sampler.
    method : str
        ``"high-water mark"`` (exact), ``"sampled"``, or ``"since process start"`` (an upper bound).
    samples : tuple of Sample
    """

    seconds: float
    start_bytes: int
    peak_bytes: int
    peak_anonymous: int
    method: str
    samples: tuple[Sample, ...] = field(default=(), repr=False)

    @property
    def added_bytes(self) -> int:
        """Peak minus start."""
        return self.peak_bytes - self.start_bytes


class Meter:
    """A measurement in progress: a context manager whose ``result`` is there after the block.

    Meters may be nested. Measuring from several threads at once measures the process, not the
    threads.
    """

    def __init__(self, interval: float, children: bool) -> None:
        if not 0.001 <= interval <= 60:
            raise InvalidInputError(
                f"a sampling interval of {interval} s", "choose one from 0.001 to 60 seconds"
            )
        self._interval, self._children = interval, children
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._start_bytes = self._floor = 0
        self._resettable = False
        self._began = 0.0
        self._result: Measurement | None = None

    @property
    def result(self) -> Measurement:
        """What the block took.

        Raises
        ------
        InvalidInputError
            If the block has not ended.
        """
        if self._result is None:
            raise InvalidInputError(
                "the measured block has not ended", "read the result after the with block"
            )
        return self._result

    @property
    def seconds(self) -> float:
        return self.result.seconds

    @property
    def start_bytes(self) -> int:
        return self.result.start_bytes

    @property
    def peak_bytes(self) -> int:
        return self.result.peak_bytes

    def __enter__(self) -> Meter:
        with _lock:
            for outer in _open_meters:  # the reset below would lose what they have seen
                outer._floor = max(outer._floor, _high_water_mark())
            self._resettable = _reset_high_water_mark()
            _open_meters.append(self)
        self._start_bytes = resident_bytes()
        self._began = time.monotonic()
        if _HAS_PROC:
            self._start_sampler()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._began
        with _lock:
            mark = max(_high_water_mark(), self._floor)
            _open_meters.remove(self)
            for outer in _open_meters:
                outer._floor = max(outer._floor, mark)
        samples = self._stop_sampler()
        sampled = max((one.resident for one in samples), default=0)
        if self._children or (samples and not self._resettable):
            peak, method = max(sampled, mark if self._resettable else 0), "sampled"
        else:
            peak = max(mark, sampled)
            method = "high-water mark" if self._resettable else "since process start"
        self._result = Measurement(
            seconds,
            self._start_bytes,
            max(peak, self._start_bytes),
            max((one.anonymous for one in samples), default=0),
            method,
            samples,
        )

    def _start_sampler(self) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the meter stops
        arguments = [str(getpid()), str(self._interval), "1" if self._children else "0"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(probe.__file__)), *arguments],
            stdin=subprocess.PIPE,
            stdout=self._output,
        )

    def _stop_sampler(self) -> tuple[Sample, ...]:
        if self._process is None or self._output is None:
            return ()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        with self._output:
            self._output.seek(0)
            lines = self._output.read().decode().splitlines()
        rows = [line.split() for line in lines]
        return tuple(
            Sample(max(0.0, float(when) - self._began), int(anonymous), int(file), int(shared))
            for when, anonymous, file, shared in rows
        )


def measure(interval: float = 0.02, children: bool = False) -> Meter:
    """Measure time and peak memory of a block of code.

    Parameters
    ----------
    interval : float
        Seconds between samples. The peak of this process is exact whatever it is, where the kernel
        allows it (``result.method``).
    children : bool
        Add the memory of child processes; the peak is then a sampled one.

    Returns
    -------
    Meter
        Its ``result`` is a :class:`Measurement` once the block has ended, also if it raised.

    Raises
    ------
    UnsupportedError
        On a system that does not tell a process's memory.

    Examples
    --------
    >>> with measure() as meter:
    ...     block = bytearray(64 * 2**20)
    >>> meter.result.peak_bytes - meter.result.start_bytes > 60 * 2**20
    True
    """
    return Meter(interval, children)


def _high_water_mark() -> int:
    if _HAS_PROC:
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes()


def _reset_high_water_mark() -> bool:
    """Set the kernel's mark to the present; False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
