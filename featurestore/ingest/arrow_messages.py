"""How large the batches of an Arrow file are, told by their metadata before any is read.

A stored batch is read as a whole, so the largest decides how much memory reading takes. A file and a
stream are the same messages in a row (a file has a footer besides, which is not looked at); of each
only the metadata are read, and of compressed ones eight bytes per buffer.

Always true: what is returned is at least what a reader holds of one batch. A file that cannot be
walked (of before Arrow 0.15, or damaged) counts as one batch as large as the file; a reader says what
is wrong with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from featurestore.errors import CorruptionError
from featurestore.storage.arrow_bounds import claimed_bytes, is_compressed

_FILE_MAGIC: Final = b"ARROW1\0\0"
_CONTINUES: Final = 0xFFFFFFFF
_DICTIONARY: Final = 2
_RECORD_BATCH: Final = 3
_MOST_METADATA: Final = 256 << 20


def largest_batch_bytes(file: BinaryIO, size: int) -> int:
    """Return the bytes that the largest batch takes while it is read: as stored, and decompressed.

    Parameters
    ----------
    file : binary file
    size : int
        Its bytes.
    """
    try:
        return max(_batches(file, size), default=0)
    except (CorruptionError, struct.error, IndexError):
        return size


def _batches(file: BinaryIO, size: int) -> Iterator[int]:
    place = len(_FILE_MAGIC) if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    while place + 8 <= size:
        file.seek(place)
        mark, length = struct.unpack("<II", file.read(8))
        if mark != _CONTINUES or length > _MOST_METADATA:
            raise CorruptionError(f"no message at byte {place}")
        if not length:
            return
        metadata = file.read(length)
        body = place + 8 + length
        kind, stored = _message(metadata)
        if kind in (_DICTIONARY, _RECORD_BATCH):
            yield _held(file, metadata, body, stored, dictionary=kind == _DICTIONARY)
        place = body + stored


def _held(file: BinaryIO, metadata: bytes, body: int, stored: int, *, dictionary: bool) -> int:
    if not is_compressed(metadata, dictionary=dictionary):
        return stored

    def eight_at(offset: int) -> bytes:
        file.seek(body + offset)
        return file.read(8)

    return stored + claimed_bytes(metadata, stored, eight_at, dictionary=dictionary)


def _message(metadata: bytes) -> tuple[int, int]:
    """Return the kind of a message and the bytes of its body, from its flatbuffer."""
    table = struct.unpack_from("<I", metadata)[0]
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    members = struct.unpack_from("<H", metadata, vtable)[0]

    def place(number: int) -> int:
        slot = 4 + 2 * number
        offset = struct.unpack_from("<H", metadata, vtable + slot)[0] if slot < members else 0
        return table + int(offset) if offset else 0

    kind, body = place(1), place(3)
    stored = struct.unpack_from("<q", metadata, body)[0] if body else 0
    if stored < 0:
        raise CorruptionError(f"a message has a body of {stored} bytes")
    return (metadata[kind] if kind else 0), stored
