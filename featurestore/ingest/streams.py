"""Sources that are no files: tables in memory, and streams that can be read only once.

A table is sliced anew for every pass. A one-shot stream (a database cursor, a query, a reader) is
copied to scratch space while it is read first, so that later passes see the same rows in the same
order; the copy takes no memory and disappears with the source or the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.errors import FeatureStoreError, SchemaError, SourceError
from featurestore.ingest.formats import BATCH_ROWS, bounded
from featurestore.storage.scratch import Scratch
from featurestore.storage.spill import Segments, SpillFile


class Table:
    """A table in memory: pyarrow, Polars, or anything else that can be streamed again and again."""

    text = False
    reading_bytes = 0

    def __init__(self, value: Any, name: str) -> None:
        self.name = name
        self.format = f"{type(value).__module__.split('.')[0]} {type(value).__name__}"
        self._value = value
        for column in getattr(value, "column_names", getattr(value, "columns", ())):
            # Handing such a name over, Polars ends the process and Arrow cuts the name short.
            if isinstance(column, str) and "\x00" in column:
                raise SchemaError(
                    f"column name {column!r} of {name} has a NUL character", "rename it"
                )
        with _streaming(name):
            self.types: pa.Schema = pa.RecordBatchReader.from_stream(value).schema

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        with _streaming(self.name):
            for batch in pa.RecordBatchReader.from_stream(self._value):
                yield from bounded(batch.select(list(columns)), batch_bytes)

    def close(self) -> None:
        """Nothing is held."""


class PandasFrame:
    """A pandas frame. Its index is left out: reset it into columns to keep it. NaN is null."""

    text = False
    reading_bytes = 0
    format = "pandas DataFrame"

    def __init__(self, frame: Any, name: str) -> None:
        self.name = name
        self._frame = frame
        strange = [column for column in frame.columns if not isinstance(column, str)]
        if strange:
            raise SchemaError(
                f"{name} has columns whose names are not strings: {strange[:5]}",
                "rename them: frame.columns = [str(c) for c in frame.columns]",
            )
        if not frame.columns.is_unique:
            repeated = sorted(set(frame.columns[frame.columns.duplicated()]))
            raise SchemaError(f"columns {repeated} of {name} occur more than once", "rename them")
        # From all rows at once: a slice might hold nothing but nulls.
        self.types: pa.Schema = pa.schema([self._typed(column) for column in frame.columns])

    def _typed(self, column: str) -> pa.Field:
        with _streaming(f"column {column!r} of {self.name}"):
            return pa.Schema.from_pandas(self._frame[[column]], preserve_index=False).field(0)

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self.types.field(name) for name in columns])
        with _streaming(self.name):
            for start in range(0, len(self._frame), BATCH_ROWS):
                part = self._frame.iloc[start : start + BATCH_ROWS][list(columns)]
                # A table: text columns of pandas may come in several chunks.
                table = pa.Table.from_pandas(part, schema=schema, preserve_index=False)
                for batch in table.to_batches():
                    yield from bounded(batch, batch_bytes)

    def close(self) -> None:
        """Nothing is held."""


class OneShot:
    """A stream that can be read once, kept in scratch space from its first reading on."""

    text = False
    format = "stream"

    def __init__(
        self,
        open_reader: Callable[[], pa.RecordBatchReader],
        name: str,
        scratch: Path | Scratch | None,
    ) -> None:
        self.name = name
        self._scratch = Scratch.of(scratch)
        with _streaming(name):
            self._reader: pa.RecordBatchReader | None = open_reader()
            self.types: pa.Schema = self._reader.schema
        self._spill: SpillFile | None = None
        self._segments = Segments()

    @property
    def reading_bytes(self) -> int:
        """A segment is read as a whole; before the first pass none is known."""
        return max((one.length for one in self._segments), default=0)

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        if self._reader is not None:
            self._spool(self._reader, batch_bytes)
        spill = self._spill
        if spill is None:
            raise SourceError(f"{self.name} was closed or failed before", "open the source again")
        for segment in self._segments:
            for batch in spill.read(segment, columns).to_batches():
                yield from bounded(batch, batch_bytes)

    def _spool(self, reader: pa.RecordBatchReader, batch_bytes: int) -> None:
        self._reader = None
        spill = SpillFile(self._scratch)
        try:
            with _streaming(self.name), reader:
                for batch in reader:
                    for part in bounded(batch, batch_bytes):
                        self._segments.append(spill.append(pa.Table.from_batches([part])))
        except BaseException:  # Ctrl-C too: scratch space goes back, and the error goes on
            spill.close()
            raise
        self._spill = spill

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._spill is not None:
            self._spill.close()
            self._spill = None


@contextmanager
def _streaming(name: str) -> Iterator[None]:
    try:
        yield
    except FeatureStoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, RuntimeError) as error:
        raise SourceError(
            f"{name} cannot be read as Arrow: {error}",
            "make sure every column has one type, and that the stream is open and unread",
        ) from error


def open_stream(
    value: Any, name: str, scratch: Path | Scratch | None
) -> Table | PandasFrame | OneShot:
    """Return an object that holds or streams rows as an input.

    Raises
    ------
    SourceError
        If it is none of those.
    """
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        return Table(value, name)
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return PandasFrame(value, name)
    if polars is not None and isinstance(value, polars.DataFrame):
        objects = [column for column, type_ in value.schema.items() if type_ == polars.Object]
        if objects:
            # Polars would hand over the objects' addresses as binary values.
            raise SchemaError(
                f"columns {objects} of {name} hold Python objects",
                "turn them into numbers, strings or lists, or leave them out",
            )
        return Table(value, name)
    if polars is not None and isinstance(value, polars.LazyFrame):
        raise SourceError(
            f"{name} is a Polars LazyFrame, whose rows may differ between passes",
            "collect() it, or sink it to Parquet and ingest the file",
        )
    if hasattr(value, "__arrow_c_stream__"):
        return OneShot(lambda: pa.RecordBatchReader.from_stream(value), name, scratch)
    # pyarrow datasets and scanners; ADBC and other database cursors.
    for method in ("to_reader", "fetch_record_batch"):
        if hasattr(value, method):
            return OneShot(getattr(value, method), name, scratch)
    if hasattr(value, "scanner"):
        return OneShot(lambda: value.scanner().to_reader(), name, scratch)
    raise SourceError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which holds no rows "
        "that Arrow can stream",
        "give a path, a glob, a list of paths, or an object with __arrow_c_stream__ "
        "(pandas, Polars, DuckDB, pyarrow, ADBC)",
    )
