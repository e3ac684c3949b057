"""Large states, and those larger than memory: the file of one written and read part by part.

The same file as :mod:`states` writes, whose tables came in several record batches: whoever reads it whole
gets the same tables, whoever reads it in parts holds one batch at a time. A file that was written whole may
have a single batch; then that is what reading it takes.

Always true: what is read is checked as it passes by, each batch before it is handed over; that the file is
whole and of its key is known only at the end, so nothing may be done with parts before the last was read.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

import pyarrow as pa

from featurestore.errors import CorruptionError, LimitError
from featurestore.storage.arrow_bounds import is_compressed
from featurestore.storage.checksum import HashingWriter
from featurestore.storage.state_format import (
    DIGEST_BYTES,
    KEY_MAGIC,
    KEY_TAIL,
    MAGIC,
    MAX_BYTES,
    NAME,
    REMEDY,
    TAIL,
    TOO_LARGE,
    key_seal,
)

PART_BYTES: Final = 2 * 2**20
"""Of a part that is written, unless it is a single row; smaller states are written whole."""


class PartWriter:
    """Writes the file of a state table by table.

    Parameters
    ----------
    target : binary file
    key : str

    Examples
    --------
    >>> target = io.BytesIO()
    >>> writer = PartWriter(target, "0badcafe")
    >>> for number in range(3):
    ...     writer.add("tail", pa.table({"x": [number]}))
    >>> writer.end()
    >>> size = target.tell()
    >>> target.seek(0)
    0
    >>> [(name, part["x"].to_pylist()) for name, part in parts_of(target, size, "0badcafe")]
    [('tail', [0, 1, 2])]
    """

    def __init__(self, target: BinaryIO, key: str) -> None:
        self._sink = HashingWriter(target)
        self._key = key
        self._name = ""
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add_table(self, name: str, table: pa.Table) -> None:
        """Write a table that is there, a part at a time, which spares a copy of it."""
        most = max(1, table.num_rows * PART_BYTES // max(1, table.nbytes))
        self.add(name, table.slice(0, most))
        for start in range(most, table.num_rows, most):
            self.add(name, table.slice(start, most))

    def add(self, name: str, rows: pa.Table) -> None:
        """Write rows of a table after those before, small ones together; tables come in order of their names.

        Raises
        ------
        LimitError
            If there are too many for one state.
        """
        if name != self._name:
            self._end_table()
            self._name = name
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= PART_BYTES:
            self._write()

    def end(self) -> None:
        """Write what is left, and what says that it is all."""
        self._end_table()
        self._sink.write(MAGIC)
        digest = bytes.fromhex(self._sink.checksum)
        self._sink.write(digest + key_seal(digest, self._key) + KEY_MAGIC)

    def _end_table(self) -> None:
        if self._waiting:
            self._write()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self) -> None:
        rows = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._bytes = [], 0
        if self._stream is None:
            metadata = {**(rows.schema.metadata or {}), NAME: self._name.encode()}
            self._schema = rows.schema.with_metadata(metadata)
            self._stream = pa.ipc.new_stream(pa.PythonFile(self._sink, "w"), self._schema)
        most = max(1, rows.num_rows * PART_BYTES // max(1, rows.nbytes))
        self._stream.write_table(rows.replace_schema_metadata(self._schema.metadata), most)
        if self._sink.bytes > MAX_BYTES - TAIL - KEY_TAIL:
            raise LimitError(
                f"a state would have more than {self._sink.bytes} bytes, more than the {MAX_BYTES} "
                "that one may have",
                TOO_LARGE,
            )


def parts_of(source: BinaryIO, size: int, key: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield the record batches in the file of a state, with the names of their tables.

    Parameters
    ----------
    source : binary file
    size : int
        Its bytes.
    key : str

    Raises
    ------
    CorruptionError
        If it is torn, damaged, of another key, or holds something else; at the latest at its end.
    """
    source.seek(max(0, size - KEY_TAIL))
    end = source.read(KEY_TAIL)
    sealed = end.endswith(KEY_MAGIC)  # not by an earlier version of this package
    body = size - TAIL - (KEY_TAIL if sealed else 0)
    if size > MAX_BYTES or body < 0:
        raise CorruptionError(f"a state of {size} bytes is torn or too large", REMEDY)
    source.seek(0)
    passing = _HashingSource(source, body)
    reader = pa.PythonFile(passing, "r")
    try:
        while passing.left:
            yield from _stream_of(reader)
    except (pa.ArrowException, KeyError, ValueError, struct.error, OSError) as error:
        raise CorruptionError(f"a state cannot be read: {error}", REMEDY) from error
    digest = passing.digest(source.read(len(MAGIC)))
    found = source.read(DIGEST_BYTES)
    if digest != found or (sealed and source.read(DIGEST_BYTES) != key_seal(digest, key)):
        raise CorruptionError(f"a state of {size} bytes is damaged, or another's", REMEDY)


def _stream_of(reader: pa.NativeFile) -> Iterator[tuple[str, pa.Table]]:
    """Yield the batches of one Arrow stream; only its schema and plain record batches are accepted."""
    messages = pa.ipc.MessageReader.open_stream(reader)
    try:
        schema = pa.ipc.read_schema(messages.read_next_message())
    except StopIteration:
        raise CorruptionError("a state has no table where one begins", REMEDY) from None
    metadata = dict(schema.metadata or {})
    name = metadata.pop(NAME).decode()
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if message.type != "record batch" or is_compressed(
            message.metadata.to_pybytes(), dictionary=False
        ):
            raise CorruptionError(
                f"a state holds a {message.type} that does not belong there", REMEDY
            )
        part = pa.Table.from_batches([pa.ipc.read_record_batch(message, schema)])
        part.validate(full=True)  # a hostile offset leads nowhere
        yield name, part.replace_schema_metadata(metadata or None)


class _HashingSource(io.RawIOBase):
    """The first bytes of a file, whose digest is known once they were read."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._at = 0
        self.left = size

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        wanted = self.left if size is None or size < 0 else min(size, self.left)
        data = self._source.read(wanted)
        if len(data) < wanted:
            raise CorruptionError(f"a state ends after {self._at + len(data)} bytes", REMEDY)
        self._hasher.update(data)
        self._at += len(data)
        self.left -= len(data)
        return data

    def digest(self, magic: bytes) -> bytes:
        self._hasher.update(magic)
        return self._hasher.digest() if magic == MAGIC else b""
