"""File formats: which one a file has, its columns, and its rows in bounded batches.

A format is told by the file's first bytes; only text, which has none of its own, by the name.
Always true: a batch holds at most ``BATCH_ROWS`` rows and about the bytes asked for, files are
closed when their iterator ends or is dropped, and every failure names the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import FeatureStoreError, SourceError

BATCH_ROWS: Final = 65_536
_PAGE: Final = 1 << 20
_BUFFER: Final = 64 << 10
_FORMATS: Final = (
    "Parquet, CSV (.csv, .tsv, .txt, also .gz), or Arrow IPC (file, stream, Feather 2)"
)


class Input(Protocol):
    """One file, table or stream: something with a name, columns and rows in a fixed order."""

    @property
    def name(self) -> str:
        """How messages call it: a path, or words."""

    @property
    def format(self) -> str:
        """The format in words."""

    @property
    def text(self) -> bool:
        """Whether column types were guessed from text."""

    @property
    def types(self) -> pa.Schema:
        """Its columns as they are found."""

    @property
    def reading_bytes(self) -> int:
        """Bytes that reading takes besides the batch: buffers, pages, dictionaries."""

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows, in order; each call starts again.

        ``types`` are those wanted in the end; only text is parsed by them.
        """

    def close(self) -> None:
        """Give back scratch space."""


@contextmanager
def readable(path: Path, format_: str) -> Iterator[None]:
    """Turn what a reader raises into :class:`SourceError` that names the file."""
    try:
        yield
    except FeatureStoreError:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as {format_}: {error}",
            "it may be truncated or damaged: write or download it again, or leave it out",
        ) from error


def bounded(batch: pa.RecordBatch, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield a batch in slices of about ``batch_bytes``; nothing is copied."""
    if batch.num_rows == 0:
        return
    rows = rows_within(batch_bytes, batch.nbytes / batch.num_rows)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def rows_within(batch_bytes: int, row_bytes: float) -> int:
    """Return how many rows of a width make a batch."""
    return max(1, min(BATCH_ROWS, int(batch_bytes / max(row_bytes, 1e-9))))


def open_file(path: Path) -> Input:
    """Return the file as an input.

    Raises
    ------
    SourceError
        If it is missing, empty, unreadable, or of no format that is understood.
    """
    from featurestore.ingest.csv_format import CsvFile, is_csv_name

    with readable(path, "a file"):
        if not path.is_file():
            raise SourceError(f"{path} is not a file", "check the path")
        with path.open("rb") as file:
            head = file.read(8)
    if not head:
        raise SourceError(f"{path} is empty (0 bytes)", "write it again, or leave it out")
    if head[:4] == b"PAR1":
        return ParquetFile(path)
    if head[:6] == b"ARROW1":
        return ArrowFile(path, stream=False)
    if head[:4] == b"\xff\xff\xff\xff":
        return ArrowFile(path, stream=True)
    if is_csv_name(path):
        return CsvFile(path)
    known = {
        ".parquet": "Parquet",
        ".pq": "Parquet",
        ".arrow": "Arrow IPC",
        ".feather": "Arrow IPC",
    }
    claimed = known.get(path.suffix.lower())
    problem = f"is not {claimed}" if claimed else "has no format that ingest understands"
    raise SourceError(
        f"{path} {problem}: it begins with {head!r}", f"give files in {_FORMATS}; text by its name"
    )


class ParquetFile:
    """A Parquet file; page checksums are verified where it has them."""

    format = "Parquet file"
    text = False

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        with self._open() as file:
            self.types: pa.Schema = file.schema_arrow
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        # Row groups differ in width: batches are bounded by the widest.
        self._row_bytes = max(
            (group.total_byte_size / group.num_rows for group in groups if group.num_rows),
            default=1.0,
        )
        self.reading_bytes = max(map(_open_pages, groups), default=0)

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
        rows = rows_within(batch_bytes, max(fixed, self._row_bytes * share))
        with self._open() as file:
            for batch in file.iter_batches(rows, columns=list(columns), use_threads=False):
                yield from bounded(batch, batch_bytes)

    def close(self) -> None:
        """Nothing is held between calls."""


def _open_pages(group: pq.RowGroupMetaData) -> int:
    """Return the bytes of all columns' dictionaries, current pages and buffers, about."""
    columns = (group.column(index) for index in range(group.num_columns))
    return sum(min(one.total_uncompressed_size, 2 * _PAGE) + _BUFFER for one in columns)


def _bytes_per_value(type_: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(type_):
        return int(type_.list_size) * _bytes_per_value(type_.value_type)
    return int(type_.bit_width) // 8 if pa.types.is_primitive(type_) else 4


class ArrowFile:
    """An Arrow IPC file (also Feather 2) or stream."""

    format = "Arrow IPC file"
    text = False

    def __init__(self, path: Path, stream: bool) -> None:
        self.name = str(path)
        self._path, self._stream = path, stream
        with self._open(None) as reader:
            self.types: pa.Schema = reader.schema
        # A stored batch is read as a whole; how large it is shows only then.
        self.reading_bytes = 0

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
