"""How large the pages of a Parquet file are, told by their headers before any is decompressed.

A reader holds whole pages, and a page has at least one value: one long text makes one long page. The
footer gives the sizes of column chunks only, so where a chunk is larger than usual pages its headers
are walked: a few dozen bytes for each page, whatever the page holds.

Always true: what is returned is at least what the headers say. Where a header cannot be read
(encrypted, damaged, or with statistics too long to read), the chunk counts as one page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Final

import pyarrow.parquet as pq

SMALL_CHUNK: Final = 2 << 20
_HEADER: Final = 4 << 10
_LONGEST_HEADER: Final = 1 << 20
_DICTIONARY_PAGE: Final = 2
# Types of the compact protocol of Thrift.
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY = 0, 1, 2, 3, 7, 8
_LIST, _SET, _MAP, _STRUCT = 9, 10, 11, 12


@dataclass(frozen=True, slots=True)
class Page:
    """What a page's header says.

    Parameters
    ----------
    header, compressed, uncompressed : int
        Bytes of the header, of the page in the file, and once it is decompressed.
    is_dictionary : bool
    """

    header: int
    compressed: int
    uncompressed: int
    is_dictionary: bool


def open_page_bytes(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> int:
    """Return the most bytes of a column chunk's pages that a streaming reader holds at once.

    That is one page as stored and decompressed, and the dictionary: decompressed, and decoded. A page
    that is larger than pages usually are holds a long value, which is copied into a batch that
    grows by doubling.

    Parameters
    ----------
    file : binary file
        Its position is moved.
    chunk : pyarrow.parquet.ColumnChunkMetaData
    """
    whole = max(0, int(chunk.total_uncompressed_size))
    stored = max(0, int(chunk.total_compressed_size))
    if whole <= SMALL_CHUNK:
        return whole + stored
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    dictionary = page = largest = 0
    try:
        for one in _pages(file, start, start + stored):
            largest = max(largest, one.uncompressed)
            if one.is_dictionary:
                # A quarter more: where each value begins.
                dictionary = max(dictionary, 2 * one.uncompressed + one.uncompressed // 4)
            else:
                page = max(page, one.compressed + one.uncompressed)
    except (EOFError, ValueError):
        return 5 * whole + stored
    return dictionary + page + 2 * max(0, largest - SMALL_CHUNK)


def _pages(file: BinaryIO, start: int, end: int) -> list[Page]:
    pages = []
    while start < end:
        page = _page_at(file, start, end)
        pages.append(page)
        start += page.header + page.compressed
    return pages


def _page_at(file: BinaryIO, start: int, end: int) -> Page:
    """Return the page whose header begins at ``start``.

    Raises
    ------
    ValueError
        If there is no such header, or it does not end in time.
    EOFError
    """
    length = _HEADER
    while True:
        file.seek(start)
        data = file.read(min(length, end - start))
        try:
            return page_header(data)
        except IndexError:  # the header goes on
            if len(data) < length or length >= _LONGEST_HEADER:
                raise EOFError(f"the header of a page at {start} does not end") from None
            length *= 8


def page_header(data: bytes) -> Page:
    """Return what a page header says; ``data`` begins with it and may go on.

    Raises
    ------
    IndexError
        If the data end before the header does.
    ValueError
        If it is no page header.

    Examples
    --------
    >>> page_header(bytes([0x15, 4, 0x15, 200, 1, 0x15, 60, 0x4C, 0x15, 2, 0, 0, 99]))
    Page(header=12, compressed=30, uncompressed=100, is_dictionary=True)
    """
    reader = _Compact(data)
    numbers = {}
    field = 0
    while (kind := reader.byte()) != _STOP:
        field = field + (kind >> 4) if kind >> 4 else reader.whole()
        if field in (1, 2, 3):
            numbers[field] = reader.whole()
        else:
            reader.skip(kind & 15)
    if numbers.keys() != {1, 2, 3} or min(numbers.values()) < 0:
        raise ValueError(f"no header of a page: {numbers}")
    return Page(reader.place, numbers[3], numbers[2], numbers[1] == _DICTIONARY_PAGE)


class _Compact:
    """Reads what a page header has of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def byte(self) -> int:
        found = self._data[self.place]
        self.place += 1
        return found

    def _unsigned(self) -> int:
        result = shift = 0
        while True:
            part = self.byte()
            result |= (part & 127) << shift
            if part < 128:
                return result
            shift += 7
            if shift > 63:
                raise ValueError("a number has too many bytes")

    def whole(self) -> int:
        """Return a signed number."""
        found = self._unsigned()
        return (found >> 1) ^ -(found & 1)

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if depth > 8:
            raise ValueError("a header is nested too deeply")
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BINARY:
            length = self._unsigned()
            if self.place + length > len(self._data):
                raise IndexError(length)
            self.place += length
        elif kind == _STRUCT:
            while (member := self.byte()) != _STOP:
                if not member >> 4:
                    self.whole()
                self.skip(member & 15, depth + 1)
        elif kind in (_BYTE, _DOUBLE):
            self.place += 1 if kind == _BYTE else 8
        elif kind in (_LIST, _SET, _MAP):
            raise ValueError("a header holds a list")
        else:
            self._unsigned()
