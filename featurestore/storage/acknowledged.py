"""Snapshot files that a process wrote or read itself, looked after while it builds on them.

An open commit log holds the newest snapshot and the complete one it builds on in memory, as they were
acknowledged. A difference written against a file that was damaged meanwhile would be acknowledged and
yet unreadable for everybody else. So before each commit these files are looked at: their sizes on a
local disk (an object store shows complete objects only), and once a minute their bytes. A damaged
one is written again, byte for byte as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from featurestore.errors import CorruptionError, NotFoundError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.snapshot_file import SnapshotFile, read_snapshot_file, snapshot_path

LOOK_AGAIN_SECONDS: Final = 60.0

_log: Final = logging.getLogger(__name__)


class Acknowledged:
    """The files of one store that a process builds on."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._looked = time.monotonic()

    def are_sound(self, files: Sequence[SnapshotFile]) -> bool:
        """Whether files are as they were; bytes are compared now and then only."""
        now = time.monotonic()
        if now - self._looked < LOOK_AGAIN_SECONDS:
            return all(self._has_its_size(one) for one in files)
        self._looked = now
        return all(self._is_readable(one) for one in files)

    def restore(self, files: Sequence[SnapshotFile]) -> None:
        """Write those again that cannot be read any more."""
        for file in files:
            if not self._is_readable(file):
                path = snapshot_path(file.version)
                _log.warning(
                    "%s was damaged; it is written again as it was acknowledged. Check the disk, "
                    "and run verify",
                    path,
                )
                self._store.replace(path, file.encode())

    def _has_its_size(self, file: SnapshotFile) -> bool:
        path = snapshot_path(file.version)
        if not file.size or self._store.local_path(path) is None:
            return True
        try:
            return self._store.size(path) == file.size
        except NotFoundError:
            return False

    def _is_readable(self, file: SnapshotFile) -> bool:
        try:
            return read_snapshot_file(self._store, file.version).commit == file.commit
        except (CorruptionError, NotFoundError):
            return False
