"""The handful of system calls that change a local store, behind one small object.

Everything a local store writes goes through here, so that a simulated disk can stand in its place:
one that fails a call, tears a write, or forgets what was not synced. Reads do not pass through.
"""

# These are the system calls themselves, hence no Path objects.
# ruff: noqa: PTH102, PTH105, PTH106, PTH108

from __future__ import annotations

import os


class LocalIO:
    """The real system calls; each raises ``OSError`` as the system does."""

    def open(self, path: str, flags: int) -> int:
        """Open a file and return its descriptor."""
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write at the end of the file and return how many bytes were taken."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Make a file's bytes durable."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; fails if that name exists."""
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: str, target: str) -> None:
        """Move a file over any of the target's name."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def fsync_dir(self, path: str) -> None:
        """Make the entries of a directory durable."""
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
