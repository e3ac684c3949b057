"""A step judged: what it took at its peak beside what was projected for it.

A projection that is too small is a promise broken, so it is a warning with numbers (and an error in
tests, where warnings are errors). The peak is the kernel's high-water mark, exact; what it holds that
no projection of a step can know is allowed for:

* library code that runs for the first time: the file-backed pages that came during the step;
* modules imported during the step, ``_MODULE_BYTES`` each (Polars, PyArrow and NumPy together have
  about a thousand of them in 93 MB);
* ``_SLACK`` for allocators' rounding, Python's own objects and what other threads do meanwhile.

Work in flight of other steps at the same time is counted as they projected it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from featurestore.errors import MemoryProjectionWarning
from featurestore.execution.budget import budget_of
from featurestore.units import format_bytes
from featurestore.watermark import watermark

_STATUS: Final = Path("/proc/self/status")
_MODULE_BYTES: Final = 128 * 2**10
_SLACK: Final = 16 * 2**20


@contextmanager
def judged(label: str, projected: int, reserved: int) -> Iterator[None]:
    """Warn if this process takes more memory inside the block than was projected.

    Nothing is judged where the kernel does not tell, or if the block raises.

    Parameters
    ----------
    label : str
        Of the step.
    projected : int
        Peak of this process, in bytes.
    reserved : int
        What it held before.

    Warns
    -----
    MemoryProjectionWarning
    """
    files, modules = _file_backed(), len(sys.modules)
    with watermark() as mark, budget_of().recorded() as record:
        yield
    if not mark.exact:
        return
    allowed = max(projected, reserved + record.most_bytes)
    unforeseen = max(0, _file_backed() - files) + _MODULE_BYTES * max(0, len(sys.modules) - modules)
    unforeseen += _SLACK
    if mark.peak_bytes > allowed + unforeseen:
        warnings.warn(
            f"step {label!r} took {format_bytes(mark.peak_bytes)} at its peak, "
            f"{format_bytes(allowed)} were projected ({format_bytes(reserved)} in use before, "
            f"{format_bytes(record.most_bytes)} in flight): its features, or other threads of this "
            "process, need more than they say",
            MemoryProjectionWarning,
            stacklevel=4,
        )


def _file_backed() -> int:
    """Return the resident bytes of mapped files, code above all; 0 where the system does not tell."""
    if _STATUS.exists():
        for line in _STATUS.read_bytes().splitlines():
            if line.startswith(b"RssFile:"):
                return int(line.split()[1]) * 1024
    return 0
