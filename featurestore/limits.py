"""How much memory this process may use when the user does not say, and how much it holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from featurestore.configuration import load_configuration
from featurestore.control_groups import own_group
from featurestore.errors import UnsupportedError
from featurestore.units import parse_bytes

DEFAULT_SHARE: Final = 0.6

_STATM: Final = Path("/proc/self/statm")


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory this process may come to hold: the least of all that limits it.

    The machine's memory; its control group's and container's limits, those above included; and
    limits of its own (``RLIMIT_AS``, ``RLIMIT_DATA``).

    Parameters
    ----------
    root : Path
        Where the system's files begin.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = own_group(root)
    found: list[int] = [machine, *_process_limits()]
    if group is not None:
        found += group.limits()
    return min(found)


def _process_limits() -> Iterator[int]:
    try:
        import resource
    except ImportError:
        return  # Windows
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft


def memory_limit(value: int | str | None) -> int:
    """Return a memory limit in bytes.

    Parameters
    ----------
    value : int or str, optional
        ``"2GiB"`` or bytes. If not given: the environment variable ``FEATURESTORE_MEMORY_LIMIT``,
        else what ``featurestore.toml`` says, else 60% of what the machine or its container allows.
    """
    if value is None:
        value = load_configuration().memory_limit or int(available_memory() * DEFAULT_SHARE)
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
