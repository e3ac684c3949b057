"""How much memory a block of code takes at its peak, and how it came to that.

Two instruments together. The kernel's own high-water mark, reset at the start of the block, is exact
for this process and misses nothing. A sampler in a separate process tells over time how much is
anonymous (what counts), how much file-backed (what the kernel may drop) and, if asked, what child
processes take.

On systems other than Linux there is only the high-water mark since the process began; a measurement
says so in ``method``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from featurestore.errors import InvalidInputError
from featurestore.profiling.records import Sample
from featurestore.profiling.sampling_process import SamplingProcess
from featurestore.watermark import Watermark


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
        SamplingProcess.check(interval)
        self._interval, self._children = interval, children
        self._mark = Watermark()
        self._process: SamplingProcess | None = None
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
        self._mark.start()
        self._process = SamplingProcess(self._interval, self._children)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        seconds = time.monotonic() - self._process.began
        mark, exact = self._mark.stop(), self._mark.exact
        output = self._process.end()
        found: dict[str, Any] = json.loads(output) if output else {"samples": [], "peaks": {}}
        samples = tuple(Sample(*one) for one in found["samples"])
        sampled = max((one.resident + one.children for one in samples), default=0)
        if self._children or (samples and not exact):
            peak, method = max(sampled, mark if exact else 0), "sampled"
        else:
            peak = max(mark, sampled)
            method = "high-water mark" if exact else "since process start"
        self._result = Measurement(
            seconds,
            self._mark.start_bytes,
            max(peak, self._mark.start_bytes),
            found["peaks"].get("anonymous", 0),
            method,
            samples,
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
