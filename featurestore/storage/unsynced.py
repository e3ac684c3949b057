"""Files of a local store that were written and are not yet durable, with the descriptors that wrote them.

The system may write a file's bytes to the disk long before anybody asks for it, and fail. Linux
tells that to the descriptors that are open at the time; to one that is opened later only while the
file is still in memory. So the descriptor that wrote a file stays open until the file is synced
through it: an error in between cannot be missed.

Always true: at most 64 such descriptors are open. When there are more, the older half of them is
synced and closed, and what came of it is remembered until somebody asks; a file is not synced more
often for that. Where descriptors run out altogether, fewer are kept from then on. What is known of a
name holds only while that name is of the same file. The price is that a file that is written here
and deleted by another process keeps its space until it is among the older half, or this process
ends.
"""

# Paths are text here, as the system calls take them.
# ruff: noqa: PTH116

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from featurestore.storage.local_io import LocalIO

MOST: Final = 64
# A file system commits what several threads sync at once together: with 8 threads, 400 small files
# take half the time, and 20 do on a busy disk; fewer are not worth the threads.
_SYNCS_AT_ONCE: Final = 8
_MANY: Final = 16


def side_by_side(sync: Callable[[str], object], paths: Collection[str]) -> None:
    """Sync all of these, many of them side by side; the first failure is raised at the end."""
    if len(paths) < _MANY:
        for path in paths:
            sync(path)
        return
    with ThreadPoolExecutor(_SYNCS_AT_ONCE, "featurestore-sync") as pool:
        for _ in pool.map(sync, paths):
            pass


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of syncing a file: which file it was, and the error if it failed."""

    status: os.stat_result
    error: OSError | None


class _Written:
    """A file that was written and not synced; whoever has the lock may sync and close it.

    Attributes
    ----------
    descriptor : int
        Negative once somebody has taken it, to sync or to close it.
    outcome : _Outcome, optional
        Of the sync; None before, and if the file had no name any more.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.outcome: _Outcome | None = None
        self.lock = threading.Lock()

    def take(self) -> int:
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor


class UnsyncedFiles:
    """The files below one directory that this process wrote and did not yet sync.

    Parameters
    ----------
    io : LocalIO
        The system calls that wrote them.
    """

    def __init__(self, io: LocalIO) -> None:
        self._io = io
        self._most = MOST
        self._lock = threading.Lock()  # of the two below; taken after a file's, never before
        self._open: dict[str, _Written] = {}  # oldest first
        self._outcomes: dict[str, _Outcome] = {}
        weakref.finalize(self, _close_all, io, self._open).atexit = False
        _everywhere.add(self)

    def __len__(self) -> int:
        """Return how many descriptors are kept."""
        return len(self._open)

    def keep(self, target: str, descriptor: int) -> None:
        """Take over the descriptor that wrote a file, under its final name.

        If too many are kept, older ones are synced. If one of those fails, that is told to whoever
        asks for that file.
        """
        older: list[str] = []
        with self._lock:
            before = self._open.pop(target, None)  # of a file that somebody else deleted
            self._outcomes.pop(target, None)
            self._open[target] = _Written(descriptor)
            if len(self._open) > self._most:
                older = list(self._open)[: len(self._open) - self._most // 2]
        if before is not None:
            self._close(before)
        side_by_side(self._sync, older)

    def settle(self, target: str) -> bool:
        """Make a file durable through the descriptor that wrote it, if that is known here.

        Returns
        -------
        bool
            Whether the file of that name is durable now. If not, nothing is known of it.

        Raises
        ------
        OSError
            If the sync fails, or failed when the descriptor had to be given back.
        """
        outcome = self._sync(target)
        if outcome is None:
            return False
        if not _is_file(outcome, target):  # another file has the name, or none
            self.forget(target)
            return False
        if outcome.error is not None:
            raise OSError(*outcome.error.args)
        with self._lock:
            if self._outcomes.get(target) is outcome:
                del self._outcomes[target]
        return True

    def forget(self, target: str) -> None:
        """Close the descriptor of a file that is gone; its bytes are of no interest any more."""
        with self._lock:
            file = self._open.pop(target, None)
            self._outcomes.pop(target, None)
        if file is not None:
            self._close(file)

    def give_back(self) -> bool:
        """Sync and close all, and keep half as many from now on, as descriptors ran out.

        Returns
        -------
        bool
            Whether there were any.
        """
        with self._lock:
            every = list(self._open)
            self._most = min(self._most, len(every)) // 2
        side_by_side(self._sync, every)
        return bool(every)

    def after_fork(self) -> None:
        """Give up, in a child, the descriptors that are the parent's.

        They share what was reported with the parent's: a sync here would take the error from it.
        """
        self._lock = threading.Lock()  # another thread of the parent may have had it
        for file in self._open.values():
            with suppress(OSError):  # being closed by another thread of the parent just then
                if file.descriptor >= 0:
                    os.close(file.descriptor)
        self._open.clear()

    def _sync(self, target: str) -> _Outcome | None:
        """Sync and close a file if it is open; return what came of it, now or before."""
        with self._lock:
            file = self._open.get(target)
            if file is None:
                return self._outcomes.get(target)
        with file.lock:  # of two threads that want the same, one syncs
            descriptor = file.take()
            if descriptor >= 0:
                try:
                    file.outcome = self._outcome(descriptor)
                finally:
                    with self._lock:
                        if self._open.get(target) is file:  # not forgotten meanwhile
                            del self._open[target]
                            if file.outcome is not None:
                                self._outcomes[target] = file.outcome
            return file.outcome

    def _outcome(self, descriptor: int) -> _Outcome | None:
        """Sync and close a file; None if it was deleted by another process."""
        status, failed = None, None
        try:
            try:
                status = os.fstat(descriptor)
                if status.st_nlink:
                    self._io.fsync(descriptor)
                    status = os.fstat(descriptor)
            finally:
                self._io.close(descriptor)
        except OSError as error:
            failed = error
        return _Outcome(status, failed) if status is not None and status.st_nlink else None

    def _close(self, file: _Written) -> None:
        with file.lock:
            descriptor = file.take()
            if descriptor >= 0:
                with suppress(OSError):  # what it says of the bytes is of no interest any more
                    self._io.close(descriptor)


def _is_file(outcome: _Outcome, target: str) -> bool:
    """Whether the file that was synced is the one that has the name now."""
    try:
        found = os.stat(target, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not os.path.samestat(outcome.status, found):
        return False
    # A later file may get the number of one that was deleted. A failed one is rather condemned
    # wrongly than not.
    return outcome.error is not None or outcome.status.st_mtime_ns == found.st_mtime_ns


def _close_all(io: LocalIO, files: dict[str, _Written]) -> None:
    """Close what is left when no store object of this directory is left to ask for it."""
    for file in files.values():
        descriptor = file.take()
        if descriptor >= 0:
            with suppress(OSError):  # nobody is there to be told
                io.close(descriptor)


_everywhere: Final[weakref.WeakSet[UnsyncedFiles]] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(_everywhere):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
