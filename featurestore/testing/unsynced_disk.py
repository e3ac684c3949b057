"""A disk on which nothing is synced: local stores that are only looked at fill quickly on it."""

from __future__ import annotations

from featurestore.storage.local_io import LocalIO


class UnsyncedDisk(LocalIO):
    """The system's calls, without waiting for the disk."""

    def fsync(self, descriptor: int) -> None:
        """Do nothing."""

    def fsync_dir(self, path: str) -> None:
        """Do nothing."""
