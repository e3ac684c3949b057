"""How the columns of a Parquet file are written: encoded, compressed, or plain, whichever saves something.

Whole numbers, dates and times lie near their neighbours, in time order above all: differences in as few bits
as they need (``DELTA_BINARY_PACKED``) are smaller than what Zstandard makes of them, and are read four
times as fast. Measurements are mostly noise in their lower bits; Zstandard takes 7% off such a column, and
reading it takes twice as long as reading it plain. So a piece of each column of numbers is looked at first:
whole numbers are written as differences unless Zstandard does far better, and what Zstandard does not
shrink by a tenth is left plain.

Always true: the choice depends on the column's values alone, and any Parquet reader reads either. Trade-off:
a column takes up to half more of the disk than the smallest form would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

CODEC: Final = "zstd"
LEVEL: Final = 1
DIFFERENCES: Final = "DELTA_BINARY_PACKED"
_PLAIN: Final = "none"
_SAMPLE: Final = 64 << 10
"""Bytes: about what Zstandard looks back on at this level."""
_WORTH: Final = 0.9
_TOLERATED: Final = 1.5
"""How much larger than what Zstandard makes of a column its differences may be."""
_SMALL: Final = 32
"""Differences that take one of so many bytes are small enough, whatever Zstandard makes of the column."""
_BLOCK: Final = 128
_PART: Final = 32
_BLOCK_HEAD: Final = 8
"""Differences are packed in parts of so many, of which a block shares the smallest one and a few bytes."""


@dataclass(frozen=True, slots=True)
class ColumnForm:
    """How a column is written.

    Parameters
    ----------
    codec : str
        ``"zstd"`` or ``"none"``.
    encoding : str, optional
        Of Parquet; the usual one if not given.
    """

    codec: str
    encoding: str | None = None


def column_forms(columns: pa.Table) -> dict[str, ColumnForm]:
    """Return how each column is written, by its path in the file.

    Parameters
    ----------
    columns : pyarrow.Table
        The first rows; at least one where there are any.

    Examples
    --------
    >>> noise = np.random.default_rng(0).standard_normal(10_000)
    >>> table = pa.table({"noise": noise, "step": noise.round(), "text": ["a"] * 10_000, "n": range(10_000)})
    >>> {name: (form.codec, form.encoding) for name, form in column_forms(table).items()}
    {'noise': ('none', None), 'step': ('zstd', None), 'text': ('zstd', None), 'n': ('none', 'DELTA_BINARY_PACKED')}
    """
    return {
        _path(field): _form(column)
        for field, column in zip(columns.schema, columns.columns, strict=True)
    }


def _path(field: pa.Field) -> str:
    path, type_ = str(field.name), field.type
    while pa.types.is_list(type_):
        path, type_ = f"{path}.list.element", type_.value_type
    return path


def _form(column: pa.ChunkedArray) -> ColumnForm:
    type_ = column.type
    if not pa.types.is_primitive(type_) or pa.types.is_boolean(type_):
        return ColumnForm(CODEC)
    width = type_.bit_width // 8
    rows = max(1, _SAMPLE // width)
    piece = column.slice(max(0, (len(column) - rows) // 2), rows).combine_chunks()
    kind = "u" if pa.types.is_unsigned_integer(type_) else "i"
    values = _values(piece, np.dtype(f"<{kind}{width}"))
    if values is None:
        return ColumnForm(CODEC)
    whole = pa.types.is_integer(type_) or pa.types.is_temporal(type_)
    packed = difference_bytes(values) if whole else values.nbytes
    plain = len(values) * max(4, width)  # Parquet has no narrower numbers
    if whole and packed <= plain // _SMALL:
        return ColumnForm(_PLAIN, DIFFERENCES)
    compressed = len(pa.Codec(CODEC, LEVEL).compress(values.view(np.uint8), asbytes=True))
    if whole and packed <= min(_WORTH * plain, _TOLERATED * compressed):
        return ColumnForm(_PLAIN, DIFFERENCES)
    return ColumnForm(CODEC if compressed <= _WORTH * values.nbytes else _PLAIN)


def _values(piece: pa.Array, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Return the bits of what is not null as integers; None where there is nothing."""
    if piece.null_count:
        piece = pc.drop_null(piece)
    found = piece.buffers()[1] if len(piece) else None
    if found is None:
        return None
    return np.frombuffer(found, dtype, count=len(piece), offset=piece.offset * dtype.itemsize)


def difference_bytes(values: npt.NDArray[Any]) -> int:
    """Return about how many bytes integers take as packed differences.

    Examples
    --------
    >>> difference_bytes(np.arange(12_800)), difference_bytes(np.arange(12_800) % 2)
    (800, 4000)
    """
    if len(values) < 2:
        return values.nbytes
    held = values.view(np.int64) if values.itemsize == 8 else values.astype(np.int32)
    # As the encoder does, modulo the width.
    steps = np.diff(held)
    rest = -len(steps) % _BLOCK
    blocks = np.concatenate([steps, np.full(rest, steps[-1])]).reshape(-1, _BLOCK)
    above = (blocks - blocks.min(axis=1, keepdims=True)).view(f"<u{held.itemsize}")
    largest = above.reshape(-1, _PART).max(axis=1)
    bits = np.ceil(np.log2(largest.astype(np.float64) + 1.0))
    return int(bits.sum()) * _PART // 8 + _BLOCK_HEAD * len(blocks)
