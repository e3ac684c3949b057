"""How much memory this process may use when the user does not say: the machine's or its container's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from featurestore.units import parse_bytes

DEFAULT_SHARE: Final = 0.6
ENVIRONMENT: Final = "FEATURESTORE_MEMORY_LIMIT"

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
