"""Checksums of files: computed while writing, compared while reading in blocks.

The checksum of a file is BLAKE2b with 16 bytes, in hexadecimal, over all its bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import StoredFile, check_path

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_BLOCK: Final = 4 * 2**20


class HashingWriter(io.RawIOBase):
    """A write-only stream that passes bytes on, counts them and keeps their checksum."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._hash = hashlib.blake2b(digest_size=16)
        self._kept: bytearray | None = None
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        self._target.write(view)
        self._hash.update(view)
        if self._kept is not None:
            self._kept += view
        self.bytes += len(view)
        return len(view)

    def keep_the_rest(self) -> None:
        """Keep what is written from now on, see ``kept``."""
        self._kept = bytearray()

    @property
    def kept(self) -> bytes:
        return bytes(self._kept or b"")

    @property
    def checksum(self) -> str:
        """The checksum of what was written so far."""
        return self._hash.hexdigest()


class FileWriter:
    """Collects the record of a file while it is being written; see :func:`hashed_file`."""

    def __init__(self, path: str, stream: HashingWriter) -> None:
        self._path = path
        self.stream = stream

    def stored(self, footer: str = "") -> StoredFile:
        return StoredFile(self._path, self.stream.bytes, self.stream.checksum, footer)


@contextmanager
def hashed_file(store: ObjectStore, path: str) -> Iterator[FileWriter]:
    """Write a new file as a stream; its record is ``stored()`` of what this yields."""
    with store.open_write(check_path(path)) as target:
        yield FileWriter(path, HashingWriter(target))


def write_hashed(store: ObjectStore, path: str, data: bytes | memoryview) -> StoredFile:
    """Write a whole new file and return its record."""
    with hashed_file(store, path) as writer:
        writer.stream.write(data)
    return writer.stored()


def file_checksum(store: ObjectStore, path: str) -> str:
    """Return the checksum of a file's bytes, read in blocks of 4 MiB."""
    hasher = hashlib.blake2b(digest_size=16)
    with store.open_read(path) as stream:
        while block := stream.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()
