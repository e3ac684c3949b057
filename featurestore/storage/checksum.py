"""Checksums of files: computed while writing, compared while reading in blocks.

The checksum of a data file is ``xxh3:`` and XXH3 with 128 bits over all its bytes, in hexadecimal: it
is computed about as fast as memory is read. Those of filesets, which name all others, are BLAKE2b with
16 bytes and no prefix, as those of data files that earlier versions of this package wrote.

The trade-off: a checksum finds damage, however small; it is not made against somebody who alters a file
and its checksum on purpose, which who may write to a store could do with any.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import xxhash

from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import StoredFile, check_path

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_BLOCK: Final = 4 * 2**20
DATA: Final = "xxh3:"
"""What the checksum of a data file begins with."""
_SEALED: Final = ""


class HashingWriter(io.RawIOBase):
    """A write-only stream that passes bytes on, counts them and keeps their checksum.

    Parameters
    ----------
    target : file object
    kind : str
        ``DATA``, or empty for BLAKE2b.
    """

    def __init__(self, target: BinaryIO, kind: str = _SEALED) -> None:
        self._target = target
        self._kind = kind
        self._hash = _hasher(kind)
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
        return self._kind + str(self._hash.hexdigest())


class FileWriter:
    """Collects the record of a file while it is being written; see :func:`hashed_file`."""

    def __init__(self, path: str, stream: HashingWriter) -> None:
        self._path = path
        self.stream = stream

    def stored(self, footer: str = "") -> StoredFile:
        return StoredFile(self._path, self.stream.bytes, self.stream.checksum, footer)


@contextmanager
def hashed_file(store: ObjectStore, path: str, kind: str = DATA) -> Iterator[FileWriter]:
    """Write a new data file as a stream; its record is ``stored()`` of what this yields."""
    with store.open_write(check_path(path)) as target:
        yield FileWriter(path, HashingWriter(target, kind))


def write_data(store: ObjectStore, path: str, data: bytes | memoryview) -> StoredFile:
    """Write a whole new data file and return its record."""
    return _write(store, path, data, DATA)


def write_sealed(store: ObjectStore, path: str, data: bytes | memoryview) -> StoredFile:
    """Write a whole new file that names others; its checksum is ``fingerprint.digest`` of its bytes."""
    return _write(store, path, data, _SEALED)


def has_checksum(store: ObjectStore, file: StoredFile) -> bool:
    """Read a file in blocks of 4 MiB and say whether its bytes have the checksum that was recorded."""
    hasher = _hasher(file.checksum)
    with store.open_read(file.path) as stream:
        while block := stream.read(_BLOCK):
            hasher.update(block)
    return is_checksum(hasher, file)


def hasher_of(file: StoredFile) -> Any:
    """Return a new hasher, as of ``hashlib``, of the kind that a file's checksum was made by."""
    return _hasher(file.checksum)


def is_checksum(hasher: Any, file: StoredFile) -> bool:
    """Whether the bytes that a hasher of :func:`hasher_of` was given are those of a file."""
    return bool(file.checksum.removeprefix(DATA) == hasher.hexdigest())


def _write(store: ObjectStore, path: str, data: bytes | memoryview, kind: str) -> StoredFile:
    with hashed_file(store, path, kind) as writer:
        writer.stream.write(data)
    return writer.stored()


def _hasher(checksum: str) -> Any:
    if checksum.startswith(DATA):
        return xxhash.xxh3_128()
    return hashlib.blake2b(digest_size=16)
