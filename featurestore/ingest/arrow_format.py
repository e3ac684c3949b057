"""Arrow IPC files and streams as inputs.

One stored batch is in memory at a time, as a whole; a batch much larger than those asked for is handed
on in copies, so that it goes when its last slice was taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from featurestore.ingest.arrow_messages import largest_batch_bytes
from featurestore.ingest.formats import bounded, readable


class ArrowFile:
    """An Arrow IPC file (also Feather 2) or stream."""

    format = "Arrow IPC file"
    text = False

    def __init__(self, path: Path, stream: bool) -> None:
        self.name = str(path)
        self._path, self._stream = path, stream
        with self._open(None) as reader:
            self.types: pa.Schema = reader.schema

    @cached_property
    def reading_bytes(self) -> int:
        with readable(self._path, "Arrow IPC"), self._path.open("rb") as file:
            return largest_batch_bytes(file, self._path.stat().st_size)

    @contextmanager
    def _open(self, columns: Sequence[str] | None) -> Iterator[pa.ipc.RecordBatchReader]:
        included = None
        if columns is not None:
            included = [self.types.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=included)
        opened = pa.ipc.open_stream if self._stream else pa.ipc.open_file
        with (
            readable(self._path, self.format.removesuffix(" file")),
            pa.OSFile(str(self._path), "rb") as file,
            opened(file, options=options) as reader,
        ):
            yield reader

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        with self._open(columns) as reader:
            for batch in self._stored(reader):
                # A damaged file must not become a read outside its buffers.
                batch.validate(full=True)
                yield from bounded(batch.select(list(columns)), batch_bytes)

    def _stored(self, reader: pa.ipc.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        if self._stream:
            yield from reader
        else:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)

    def close(self) -> None:
        """Nothing is held between calls."""
