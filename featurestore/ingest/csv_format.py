"""CSV: a header, types guessed from the first block, then parsed as those types and no others.

Nulls: in columns of numbers, booleans and times, an empty field and the usual spellings (``NA``,
``NULL``, ``nan`` ...); in text columns only an empty field, quoted or not, so that a country called
``NA`` stays. A value that does not parse stops the read with its file, row, column and content.

A parser holds whole blocks, and a row must fit one: the block grows with the longest line.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from featurestore.errors import SchemaError, SourceError
from featurestore.ingest.csv_rows import longest_line
from featurestore.ingest.formats import bounded, readable

_BLOCK: Final = 4 << 20
_LARGEST_BLOCK: Final = (1 << 31) - (1 << 20)
# What a parser keeps per column beside its blocks, measured over 10,000 columns.
_COLUMN: Final = 8 << 10
_STRADDLES: Final = "straddles two block boundaries"
_NAME: Final = re.compile(r".*\.(csv|tsv|txt)(\.gz)?", re.IGNORECASE)
_ENCODING: Final = "write it as UTF-8: iconv -f LATIN1 -t UTF-8 (or -f UTF-16), or as Parquet"
_BAD_VALUE: Final = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (.+?): (.*)", re.DOTALL
)


def is_csv_name(path: Path) -> bool:
    """Whether a file's name says it is text with separated values."""
    return _NAME.fullmatch(path.name) is not None


class CsvFile:
    """A CSV file (``.tsv``: tabs), plain or gzipped, UTF-8, with a header."""

    format = "CSV file"
    text = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
        self._require_text()
        # Types are guessed from the first rows, whatever the length of those that follow.
        with self._open(pcsv.ConvertOptions(), _BLOCK) as reader:
            self.types: pa.Schema = reader.schema
        self._require_columns()

    @cached_property
    def _block(self) -> int:
        """Bytes that are parsed at once; of compressed text, whose lines are not known, the least."""
        if _is_gzip(self._path):
            return _BLOCK
        with readable(self._path, "CSV"), self._path.open("rb") as file:
            longest = longest_line(file, self._path.stat().st_size, _BLOCK)
        if longest > _LARGEST_BLOCK:
            raise self._too_long(f"{longest} bytes")
        return max(_BLOCK, longest)

    @cached_property
    def reading_bytes(self) -> int:
        # The block being parsed, the one read ahead, and the parsed fields.
        block = self._block
        if not _is_gzip(self._path):
            block = min(block, self._path.stat().st_size)
        return 4 * block + _COLUMN * len(self.types)

    def _too_long(self, what: str) -> SourceError:
        return SourceError(
            f"a row of {self.name} has more than {what}",
            "convert the file to Parquet, whose rows may be as long as memory allows"
            + (", or decompress it" if _is_gzip(self._path) else ""),
        )

    def _require_text(self) -> None:
        """Refuse another encoding, or another separator, before the parser says what it makes of it."""
        opened = gzip.open if _is_gzip(self._path) else open
        with readable(self._path, "CSV"), opened(self._path, "rb") as file:
            header = file.readline(_BLOCK)
        if header[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise SourceError(f"{self.name} is UTF-16 text, not UTF-8", _ENCODING)
        used = b"\t" if self._tabs else b","
        if used not in header and any(one in header for one in (b";", b"\t", b"|", b",")):
            raise SourceError(
                f"{self.name} has no {'tab' if self._tabs else 'comma'} in its header "
                f"{header[:60]!r}: it has another separator",
                "separate by commas, or by tabs and name it .tsv, or convert it to Parquet",
            )

    def _require_columns(self) -> None:
        binary = [one.name for one in self.types if pa.types.is_binary(one.type)]
        if binary:
            raise SourceError(
                f"{self.name} is not UTF-8: columns {binary} hold other bytes", _ENCODING
            )

    @contextmanager
    def _open(self, convert: pcsv.ConvertOptions, block: int) -> Iterator[pcsv.CSVStreamingReader]:
        with (
            readable(self._path, "CSV"),
            pa.OSFile(str(self._path), "rb") as raw,
            pa.CompressedInputStream(raw, "gzip") if _is_gzip(self._path) else raw as stream,
            pcsv.open_csv(
                stream,
                # One thread, else errors have no row number.
                read_options=pcsv.ReadOptions(use_threads=False, block_size=block),
                parse_options=pcsv.ParseOptions(
                    delimiter="\t" if self._tabs else ",", newlines_in_values=True
                ),
                convert_options=convert,
            ) as reader,
        ):
            yield reader

    def batches(
        self, columns: Sequence[str], types: pa.Schema, batch_bytes: int
    ) -> Iterator[pa.RecordBatch]:
        convert = pcsv.ConvertOptions(
            include_columns=list(columns),
            column_types={name: self._parsed_type(types.field(name)) for name in columns},
            strings_can_be_null=False,
        )
        try:
            with self._open(convert, self._block) as reader:
                for batch in reader:
                    yield from bounded(_empty_text_to_null(batch), batch_bytes)
        except SourceError as error:
            raise self._located(error) from error.__cause__

    def _parsed_type(self, field: pa.Field) -> pa.DataType:
        if pa.types.is_nested(field.type):
            raise SchemaError(
                f"column {field.name!r} of {self.name} is text and cannot be read as {field.type}",
                "ingest lists and tensors from Parquet or Arrow IPC",
            )
        return field.type

    def _located(self, error: SourceError) -> SourceError:
        """Return the error with the column's name, if it is about one value."""
        if _STRADDLES in str(error.__cause__):
            return self._too_long(f"the {self._block} bytes that are parsed at once")
        match = _BAD_VALUE.search(str(error.__cause__))
        if match is None:
            return error
        index, row, type_, what = match.groups()
        column = self.types.names[int(index)]
        line = f"row {row} (the header is row 1), " if row else ""
        return SourceError(
            f"{self.name}: {line}column {column!r} does not parse as {type_}: {what}",
            _ENCODING
            if "UTF8" in what
            else f"correct the value, or say what the column is: types={{{column!r}: "
            f"{'float64' if _is_number(what) else 'string'!r}}}, or convert the file to Parquet",
        )

    def close(self) -> None:
        """Nothing is held between calls."""


def _is_number(what: str) -> bool:
    """Whether the value at the end of Arrow's message, in quotes, is a number."""
    found = re.search(r"'([^']*)'\s*$", what)
    try:
        float(found[1] if found else "")
    except ValueError:
        return False
    return True


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _empty_text_to_null(batch: pa.RecordBatch) -> pa.RecordBatch:
    for index, field in enumerate(batch.schema):
        if pa.types.is_string(field.type):
            column = batch.column(index)
            empty = pc.equal(pc.binary_length(column), 0)
            if pc.any(empty).as_py():
                filled = pc.if_else(empty, pa.scalar(None, pa.string()), column)
                batch = batch.set_column(index, field, filled)
    return batch
