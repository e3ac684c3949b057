"""Parquet files as inputs: streamed page by page, so that a row group may be larger than memory.

One page of each column is in memory at a time, never a whole row group. Page checksums are verified
where a file has them.

Trade-off: all columns' pages are open at once, so a wide table needs memory for each of its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.ingest.formats import bounded, readable, rows_within
from featurestore.ingest.parquet_pages import open_page_bytes

_BUFFER: Final = 64 << 10
# What a reader keeps per column beside its pages, measured over 10,000 columns.
_COLUMN: Final = 4 << 10
_FIRST_ROWS: Final = 1024


class ParquetFile:
    """A Parquet file."""

    format = "Parquet file"
    text = False

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        with self._open() as file:
            self.types: pa.Schema = file.schema_arrow
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        self._widths: dict[tuple[str, ...], float] = {}
        # Row groups differ in width: batches are bounded by the widest.
        self._row_bytes = max(
            (group.total_byte_size / group.num_rows for group in groups if group.num_rows),
            default=1.0,
        )

    @cached_property
    def reading_bytes(self) -> int:
        with self._open() as file, self._path.open("rb") as raw:
            groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
            return max((self._open_pages(raw, one) for one in groups), default=0)

    def _open_pages(self, raw: BinaryIO, group: pq.RowGroupMetaData) -> int:
        """Return the bytes of all columns' dictionaries, current pages and buffers."""
        total = 0
        for index in range(group.num_columns):
            chunk = group.column(index)
            total += open_page_bytes(raw, chunk) + _COLUMN
            total += min(_BUFFER, max(0, chunk.total_compressed_size))
        return total

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        # Buffered columns, else a whole row group's bytes are held at once.
        with (
            readable(self._path, self.format.removesuffix(" file")),
            pq.ParquetFile(
                self._path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
            ) as file,
        ):
            yield file

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        fixed = sum(_bytes_per_value(types.field(name).type) for name in columns)
        share = len(columns) / max(len(self.types), 1)
        width = max(fixed, self._row_bytes * share, self._decoded_width(tuple(columns)))
        rows = rows_within(batch_bytes, width)
        with self._open() as file:
            for batch in file.iter_batches(rows, columns=list(columns), use_threads=False):
                yield from bounded(batch, batch_bytes)

    def _decoded_width(self, columns: tuple[str, ...]) -> float:
        """Return the bytes of the first rows, each: texts of a dictionary are larger than stored."""
        if columns not in self._widths:
            with self._open() as file:
                first = file.iter_batches(_FIRST_ROWS, columns=list(columns), use_threads=False)
                batch = next(first, None)
                rows = 0 if batch is None else batch.num_rows
                self._widths[columns] = batch.nbytes / rows if batch is not None and rows else 0.0
        return self._widths[columns]

    def close(self) -> None:
        """Nothing is held between calls."""


def _bytes_per_value(type_: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(type_):
        return int(type_.list_size) * _bytes_per_value(type_.value_type)
    return int(type_.bit_width) // 8 if pa.types.is_primitive(type_) else 4
