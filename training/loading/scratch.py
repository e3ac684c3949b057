"""Directories in a cache that end with the process that made them.

Always true: their names say which process that is, so that what a killed one left is removed by the
next that writes in the same cache, and what a running one has is left alone.

The trade-off: of another host's processes nothing is known; what they left goes after a week.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Final

_SCRATCH: Final = ".scratch-"
_FORGOTTEN_SECONDS: Final = 7 * 24 * 3600


def scratch_directory(root: Path) -> Path:
    """Return a new directory in a cache for files that end with this process.

    What dead processes left in the same cache is removed first.
    """
    root.mkdir(parents=True, exist_ok=True)
    for path in root.glob(f"{_SCRATCH}*"):
        if _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
    path = root / scratch_name()
    path.mkdir()
    return path


def scratch_name() -> str:
    """Return a new name that says which process a directory ends with."""
    return f"{_SCRATCH}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def _abandoned(path: Path) -> bool:
    """Whether its process is gone; on another host's, whether it was not touched for a week."""
    host, pid, _ = path.name.removeprefix(_SCRATCH).rsplit("-", 2)
    if host == socket.gethostname():
        return not _runs(int(pid))
    try:
        return time.time() - path.stat().st_mtime > _FORGOTTEN_SECONDS
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
