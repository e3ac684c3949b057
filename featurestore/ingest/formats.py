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

from featurestore.errors import FeatureStoreError, SourceError

BATCH_ROWS: Final = 65_536
# A batch this many times larger than what is asked for is not kept for the sake of a slice.
_MUCH_LARGER: Final = 4
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
    """Yield a batch in slices of about ``batch_bytes``, one row at least.

    Nothing is copied, unless the batch is so large that a slice must not keep it in memory.
    """
    if batch.num_rows == 0:
        return
    rows = rows_within(batch_bytes, batch.nbytes / batch.num_rows)
    copied = batch.nbytes > _MUCH_LARGER * batch_bytes and rows < batch.num_rows
    for start in range(0, batch.num_rows, rows):
        part = batch.slice(start, rows)
        yield _copied(part) if copied else part


def _copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows in memory of their own."""
    # Arrow copies what it puts together; a single array it would hand back.
    arrays = [pa.concat_arrays([column, column.slice(0, 0)]) for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


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
    from featurestore.ingest.arrow_format import ArrowFile
    from featurestore.ingest.csv_format import CsvFile, is_csv_name
    from featurestore.ingest.parquet_format import ParquetFile

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
