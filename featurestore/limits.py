"""How much memory this process may use when the user does not say, and how much it holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from featurestore.errors import UnsupportedError
from featurestore.units import parse_bytes

DEFAULT_SHARE: Final = 0.6
ENVIRONMENT: Final = "FEATURESTORE_MEMORY_LIMIT"

_STATM: Final = Path("/proc/self/statm")

# Version 2, then version 1; a huge number there means no limit.
_CGROUP_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available_memory() -> int:
    """Return the bytes of memory of this machine, or of its container if that has fewer."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [machine]
    for path in _CGROUP_FILES:
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def memory_limit(value: int | str | None) -> int:
    """Return a memory limit in bytes.

    Parameters
    ----------
    value : int or str, optional
        ``"2GiB"`` or bytes. If not given: the environment variable ``FEATURESTORE_MEMORY_LIMIT``,
        else 60% of what the machine or its container allows.
    """
    if value is None:
        value = os.environ.get(ENVIRONMENT) or int(available_memory() * DEFAULT_SHARE)
    return parse_bytes(value)


def resident_bytes() -> int:
    """Return the memory this process holds now; its peak so far where the present is not told.

    Raises
    ------
    UnsupportedError
        On a system that tells neither.
    """
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError as error:
        raise UnsupportedError(
            f"this system ({sys.platform}) does not tell how much memory a process takes",
            "use Linux or macOS",
        ) from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
