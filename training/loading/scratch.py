"""Directories in a cache that end with the process that made them.

Always true: their names say which process that is, so that what a killed one left is removed by the
next that writes in the same cache, and what a running one has is left alone.

The trade-off: of another host's processes nothing is known; what they left goes after a week.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from featurestore.errors import DiskFullError, FeatureStoreError

_SCRATCH: Final = ".scratch-"
_NAME: Final = re.compile(rf"{re.escape(_SCRATCH)}(?P<host>.*)-(?P<pid>[0-9]{{1,9}})-[^-]+")
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


class ScratchFiles:
    """Arrays in files of a new scratch directory, which is removed with this object.

    Pickled it is the same directory, which stays the first process' to remove.

    Parameters
    ----------
    root : Path
        The cache.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> cache = TemporaryDirectory()
    >>> files = ScratchFiles(Path(cache.name))
    >>> with files.writing("numbers") as file:
    ...     _ = file.write(np.arange(3).tobytes())
    >>> files.mapped("numbers", np.int64, 3).tolist()
    [0, 1, 2]
    >>> cache.cleanup()
    """

    def __init__(self, root: Path) -> None:
        with _disk_errors(root):
            self.path = scratch_directory(root)
        self._remove = weakref.finalize(self, _remove, self.path, os.getpid())
        self._open()

    def _open(self) -> None:
        self._mapped: set[Path] = set()
        _open.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_another_process, (self.path,)

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """Let a new file be written inside the block.

        Raises
        ------
        DiskFullError
        FeatureStoreError
            If it cannot be written for another reason.
        """
        with _disk_errors(self.path.parent), (self.path / name).open("w+b") as file:
            yield file

    def pieces(self, name: str, dtype: Any, rows: int) -> Iterator[np.ndarray[Any, Any]]:
        """Yield a file as arrays of ``rows`` rows, read one after the other; the last may have fewer."""
        with (self.path / name).open("rb") as file:
            while len(piece := np.fromfile(file, dtype, rows)):
                yield piece

    def mapped(self, name: str, dtype: Any, rows: int) -> np.ndarray[Any, Any]:
        """Return a file as a read-only array."""
        if not rows:
            return np.empty(0, dtype=dtype)  # nothing cannot be mapped
        self._mapped.add(self.path / name)
        return np.asarray(np.memmap(self.path / name, dtype=dtype, mode="r", shape=(rows,)))

    def remove(self, name: str) -> None:
        """Remove a file that is not needed any more."""
        (self.path / name).unlink()


def mapped_files() -> set[Path]:
    """Return the scratch files that this process has mapped, whose pages are the kernel's to take."""
    return {path for files in list(_open) for path in files._mapped}


_open: Final[weakref.WeakSet[ScratchFiles]] = weakref.WeakSet()


def _of_another_process(path: Path) -> ScratchFiles:
    made = ScratchFiles.__new__(ScratchFiles)
    made.path = path
    made._open()
    return made


def _remove(folder: Path, process: int) -> None:
    """Remove a directory, unless this is a fork of the process that it belongs to."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = DiskFullError if full else FeatureStoreError
        raise kind(
            f"a scratch file cannot be written in {root}: {error}",
            "free space there, or name another directory with cache= or $FEATURESTORE_CACHE",
        ) from error


def scratch_name() -> str:
    """Return a new name that says which process a directory ends with."""
    return f"{_SCRATCH}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def _abandoned(path: Path) -> bool:
    """Whether its process is gone; on another host's, whether it was not touched for a week."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        return False  # nobody here made it
    if named["host"] == socket.gethostname():
        return not _runs(int(named["pid"]))
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
