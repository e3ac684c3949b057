"""The longest line of a text file, where it is longer than the blocks in which a parser reads.

A parser needs every block to hold the end of a line. So the first end of a line in each block is
looked for, which is near its beginning in all but strange files: a few kilobytes per block are read.
"""

from __future__ import annotations

from typing import BinaryIO, Final

_STEP: Final = 64 << 10


def longest_line(file: BinaryIO, size: int, block: int) -> int:
    """Return the bytes of the longest line among those that fill a whole block; 0 if none does.

    Parameters
    ----------
    file : binary file
    size : int
        Its bytes.
    block : int
        Bytes of the blocks, counted from the beginning.

    Examples
    --------
    >>> import io
    >>> text = b"a,b" + bytes([10]) + b"x" * 40 + bytes([10])
    >>> longest_line(io.BytesIO(text), len(text), 8), longest_line(io.BytesIO(text), len(text), 64)
    (41, 0)
    """
    longest, since = 0, -1
    for start in range(0, size, block):
        end = _line_end(file, start, min(start + block, size))
        if end < 0:
            if since < 0:
                since = _after_last_line(file, max(0, start - block), start)
            continue
        if since >= 0:
            longest, since = max(longest, end - since), -1
    return max(longest, size - since) if since >= 0 else longest


def _line_end(file: BinaryIO, start: int, stop: int) -> int:
    """Return where the first line that ends in a range ends, -1 if none does."""
    for place in range(start, stop, _STEP):
        file.seek(place)
        found = file.read(min(_STEP, stop - place)).find(b"\n")
        if found >= 0:
            return place + found + 1
    return -1


def _after_last_line(file: BinaryIO, start: int, stop: int) -> int:
    """Return where the line begins that goes on after a range."""
    file.seek(start)
    return start + file.read(stop - start).rfind(b"\n") + 1
