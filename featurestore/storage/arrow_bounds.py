"""Arrow IPC files of others, decoded within bounds.

Buffers of an Arrow file may be compressed, and each says itself how large it becomes. A file of a few
kilobytes can claim terabytes, which a reader would allocate before it finds nothing there. So the
metadata are walked first, and the claims added up; nothing is decoded of a file that claims more than
``ALWAYS_FINE`` bytes and more than ``FACTOR`` times its size, or more than ``MAX_BYTES``.

The file is read as the stream that is inside it: each message once, in order. The footer, which could
name one message many times, is not looked at. What was decoded is validated in full, so that no
offset leads out of its buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from featurestore.errors import CorruptionError

MAX_BYTES: Final = 2**30
ALWAYS_FINE: Final = 64 * 2**20
FACTOR: Final = 200
_MAGIC: Final = b"ARROW1\0\0"
_RECORD_BATCH: Final = "record batch"
_DICTIONARY: Final = "dictionary"


def read_arrow_file(
    data: bytes, path: str, remedy: str, accept: Callable[[pa.Schema], None]
) -> pa.Table:
    """Return the table in an Arrow IPC file.

    Parameters
    ----------
    data : bytes
    path, remedy : str
        For messages.
    accept : callable
        Gets the schema before anything is decoded, and raises if it is not the one wanted.

    Raises
    ------
    CorruptionError
        If it is not such a file, claims to become too large, or is not valid Arrow.
    """
    if not data.startswith(_MAGIC):
        raise CorruptionError(f"{path} is not an Arrow file", remedy)
    stream = pa.py_buffer(data).slice(len(_MAGIC))
    limit = min(MAX_BYTES, max(ALWAYS_FINE, FACTOR * len(data)))
    try:
        claimed = sum(_claims(stream))
        if claimed > limit:
            raise CorruptionError(
                f"{path} has {len(data)} bytes and claims to become {claimed}, more than {limit}",
                remedy,
            )
        # In this thread and from the C library: Arrow's own pool takes three times as much for files of a
        # few megabytes, in each thread that decodes, and keeps it.
        options, pool = pa.ipc.IpcReadOptions(use_threads=False), pa.system_memory_pool()
        source = pa.BufferReader(stream)
        with pa.ipc.open_stream(source, options=options, memory_pool=pool) as reader:
            accept(reader.schema)
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error, OverflowError) as error:
        raise CorruptionError(f"{path} is not an Arrow file: {error}", remedy) from error
    return table


def _claims(stream: pa.Buffer) -> Iterator[int]:
    """Yield for each batch how many bytes it claims to have when it is decoded."""
    for kind, metadata, body in messages(pa.BufferReader(stream)):
        if kind in (_RECORD_BATCH, _DICTIONARY):
            yield _batch_claim(metadata, body, dictionary=kind == _DICTIONARY)


def messages(reader: pa.NativeFile) -> Iterator[tuple[str, bytes, pa.Buffer | None]]:
    """Yield the messages of one Arrow stream: kind, metadata and body; nothing is decoded."""
    found = pa.ipc.MessageReader.open_stream(reader)
    while True:
        try:
            message = found.read_next_message()
        except StopIteration:
            return
        yield message.type, message.metadata.to_pybytes(), message.body


def is_compressed(metadata: bytes, *, dictionary: bool) -> bool:
    """Whether the flatbuffer of a message says that its record batch is compressed."""
    return _table(metadata, _batch(metadata, dictionary=dictionary), 3) != 0


def _batch_claim(metadata: bytes, body: pa.Buffer | None, *, dictionary: bool) -> int:
    held = b"" if body is None else memoryview(body)
    return claimed_bytes(
        metadata, len(held), lambda at: bytes(held[at : at + 8]), dictionary=dictionary
    )


def claimed_bytes(
    metadata: bytes, body: int, eight_at: Callable[[int], bytes], *, dictionary: bool
) -> int:
    """Return how many bytes a record batch claims to have when it is decoded.

    Parameters
    ----------
    metadata : bytes
        The flatbuffer of its message.
    body : int
        Bytes of the message's body.
    eight_at : callable
        Returns the eight bytes at an offset of the body.
    dictionary : bool
        Whether the message is a dictionary.

    Raises
    ------
    CorruptionError
    """
    batch = _batch(metadata, dictionary=dictionary)
    if not batch or not _table(metadata, batch, 3):
        return body  # not compressed: slices of what is there
    total = 0
    for offset, length in _buffers(metadata, batch):
        if not length:
            continue
        if not 0 <= offset <= offset + length <= body or length < 8:
            raise CorruptionError(f"a buffer of {length} bytes at {offset} is not in its message")
        claimed = struct.unpack("<q", eight_at(offset))[0]
        if claimed < -1:
            raise CorruptionError(f"a buffer claims {claimed} bytes")
        total += length - 8 if claimed == -1 else claimed
    return total


def _batch(metadata: bytes, *, dictionary: bool) -> int:
    """Return where the record batch of a message lies in its flatbuffer.

    Message: version, header type, *header*, ... DictionaryBatch: id, *data*, ... RecordBatch: length,
    nodes, buffers, *compression*, ...
    """
    batch = _table(metadata, struct.unpack_from("<I", metadata)[0], 2)
    return _table(metadata, batch, 1) if dictionary else batch


def _buffers(metadata: bytes, batch: int) -> Iterator[tuple[int, int]]:
    vector = _table(metadata, batch, 2)
    if not vector:
        return
    count = struct.unpack_from("<I", metadata, vector)[0]
    if vector + 4 + 16 * count > len(metadata):
        raise CorruptionError(f"a message lists {count} buffers and ends before them")
    for index in range(count):
        yield struct.unpack_from("<qq", metadata, vector + 4 + 16 * index)


def _table(metadata: bytes, table: int, number: int) -> int:
    """Return where a member of a flatbuffer table that is a table or vector lies, 0 if absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    slot = 4 + 2 * number
    if vtable < 0 or slot >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", metadata, vtable + slot)[0]
    if not offset:
        return 0
    place = table + offset
    return int(place + struct.unpack_from("<I", metadata, place)[0])
