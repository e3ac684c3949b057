"""The small interface behind which files live: a local directory, memory, or an object store.

Names are relative, with ``/`` between parts. Every file is written once and never changed; only
``create`` may race. Three levels of durability: ``create`` and ``replace`` are durable when they
return; what ``open_write`` wrote is once ``sync`` returned; ``write`` is for files that nobody misses
after a power failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A file as a listing shows it: path, size in bytes, time of last change (seconds since 1970)."""

    path: str
    bytes: int
    modified: float


class ObjectStore(Protocol):
    """What the rest of the package needs of a file system or object store.

    All errors are of the package's tree: ``NotFoundError`` for a missing path, ``DiskFullError``,
    ``ConflictError`` from ``create``, ``CorruptionError`` for a short read.
    """

    @property
    def url(self) -> str:
        """Reopens this store with ``open_object_store``, in this or (if shared) another process."""

    @property
    def shared(self) -> bool:
        """Whether other processes see it (a directory or S3 does, memory does not)."""

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a range of them."""

    def open_read(self, path: str) -> BinaryIO:
        """Return a seekable binary file object."""

    def open_write(self, path: str, *, named: bool = True) -> AbstractContextManager[BinaryIO]:
        """Write a new file as a stream; it exists under its name once the context exits cleanly.

        An exception inside the context leaves no file under that name. ``named`` is for files that
        others name: ``sync`` them before, however much later that is. Without, as ``write``.
        """

    def write(self, path: str, data: bytes) -> None:
        """Write a whole new file that may be lost with the power.

        A ``sync`` long after it may not learn that its bytes did not reach the disk meanwhile.
        """

    def create(self, path: str, data: bytes) -> None:
        """Write a file if none of that name exists, atomically and durably.

        Raises
        ------
        ConflictError
            If it exists. After an ambiguous transport error, compare contents before concluding.
        """

    def replace(self, path: str, data: bytes) -> None:
        """Write a small file over any of that name, atomically and durably."""

    def sync(self, paths: Iterable[str]) -> None:
        """Return once these files, and the directory entries that lead to them, are durable."""

    def size(self, path: str) -> int:
        """Return a file's size in bytes."""

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the files below a directory ``prefix``, recursively, in order of their paths."""

    def delete(self, paths: Iterable[str], durable: bool = False) -> None:
        """Delete files; those that are gone already are no error.

        After a power failure they may be back, unless ``durable``.
        """

    def local_path(self, path: str) -> Path | None:
        """Return where a file lies on this machine's file system, for memory maps; else None."""

    def zarr_store(self) -> Any:
        """Return the same files as a read-only store of zarr-python."""
