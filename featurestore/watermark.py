"""The most memory this process held between two moments, exactly: the kernel's high-water mark.

The kernel keeps one mark per process, so marks share it: whoever starts one resets it, after every
mark that is still open has taken note of what it showed. Marks may therefore be nested, overlap, and
be started and stopped by different threads; each tells the peak of the whole process between its
start and its stop. What is allocated *and* freed by another thread within the microseconds between
that note and the reset is lost to the open marks; nothing else is. A mark counts all resident pages,
those of mapped files included.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Final

from featurestore.errors import InvalidInputError
from featurestore.limits import resident_bytes

_STATUS: Final = Path("/proc/self/status")
_CLEAR_REFS: Final = Path("/proc/self/clear_refs")

_open: Final[list[Watermark]] = []
_lock: Final = Lock()


class Watermark:
    """The peak of this process's resident memory since :meth:`start`; see :func:`watermark`.

    A context manager, or started and stopped by hand. It can be used once.
    """

    __slots__ = ("_exact", "_peak_bytes", "_start_bytes")

    def __init__(self) -> None:
        self._start_bytes = self._peak_bytes = 0
        self._exact = False

    @property
    def start_bytes(self) -> int:
        """Resident bytes when it was started; 0 before."""
        return self._start_bytes

    @property
    def peak_bytes(self) -> int:
        """The most resident bytes from start to stop, so far if it is not stopped; 0 before."""
        with _lock:
            if self in _open:
                self._note(_high_water_mark())
            return self._peak_bytes

    @property
    def added_bytes(self) -> int:
        """Peak minus start."""
        return self.peak_bytes - self._start_bytes

    @property
    def exact(self) -> bool:
        """Whether the peak is that of this stretch; if not, it is that of the process so far.

        False where the kernel's mark cannot be reset, and before the start.
        """
        return self._exact

    def start(self) -> Watermark:
        """Begin, and return the mark itself.

        Raises
        ------
        InvalidInputError
            If it was started before.
        UnsupportedError
            On a system that does not tell a process's memory.
        """
        with _lock:
            if self._start_bytes:
                raise InvalidInputError("this mark was started before", "make another one")
            if _open:  # the reset would lose what they have seen
                seen = _high_water_mark()
                for other in _open:
                    other._note(seen)
            self._exact = _reset_high_water_mark()
            self._start_bytes = resident_bytes()
            self._note(self._start_bytes)
            _open.append(self)
        return self

    def stop(self) -> int:
        """End, and return the peak in bytes; later calls return it again.

        Raises
        ------
        InvalidInputError
            If it was not started.
        """
        with _lock:
            if not self._start_bytes:
                raise InvalidInputError("this mark was not started", "call start() before stop()")
            if self in _open:
                self._note(_high_water_mark())
                _open.remove(self)
            return self._peak_bytes

    def __enter__(self) -> Watermark:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _note(self, seen: int) -> None:
        self._peak_bytes = max(self._peak_bytes, seen)


def watermark() -> Watermark:
    """Return a mark of the most memory this process holds in a block, or from start to stop.

    Examples
    --------
    >>> with watermark() as mark:
    ...     block = bytearray(64 * 2**20)
    >>> mark.peak_bytes - mark.start_bytes > 60 * 2**20
    True
    """
    return Watermark()


def _high_water_mark() -> int:
    if _STATUS.exists():
        for line in _STATUS.read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes()


def _reset_high_water_mark() -> bool:
    """Set the kernel's mark to the present; False where that is not allowed."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
