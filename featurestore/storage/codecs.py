"""Which columns of a Parquet file are compressed: those where it saves something.

Measurements are mostly noise in their lower bits; Zstandard takes 7% off such a column, and reading it
takes twice as long as reading it plain. So a piece of each column of numbers is compressed first,
and the column is left plain unless that saves a tenth. Always true: the choice depends on the column's
values alone. Trade-off: such a column takes a little more of the disk.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

CODEC: Final = "zstd"
LEVEL: Final = 1
_PLAIN: Final = "none"
_SAMPLE: Final = 64 << 10
"""Bytes: about what Zstandard looks back on at this level."""
_WORTH: Final = 0.9


def column_codecs(columns: pa.Table) -> dict[str, str]:
    """Return the codec of each column, by its path in the file.

    Parameters
    ----------
    columns : pyarrow.Table
        The first rows; at least one where there are any.

    Examples
    --------
    >>> noise = np.random.default_rng(0).standard_normal(10_000)
    >>> column_codecs(pa.table({"noise": noise, "step": noise.cumsum().round(), "text": ["a"] * 10_000}))
    {'noise': 'none', 'step': 'zstd', 'text': 'zstd'}
    """
    return {
        _path(field): _codec(column)
        for field, column in zip(columns.schema, columns.columns, strict=True)
    }


def _path(field: pa.Field) -> str:
    path, type_ = str(field.name), field.type
    while pa.types.is_list(type_):
        path, type_ = f"{path}.list.element", type_.value_type
    return path


def _codec(column: pa.ChunkedArray) -> str:
    type_ = column.type
    if not pa.types.is_primitive(type_) or pa.types.is_boolean(type_):
        return CODEC
    width = type_.bit_width // 8
    rows = max(1, _SAMPLE // width)
    piece = column.slice(max(0, (len(column) - rows) // 2), rows).combine_chunks()
    values = piece.buffers()[1] if len(piece) else None
    if values is None:
        return CODEC
    held = np.frombuffer(values, np.uint8)[
        piece.offset * width : (piece.offset + len(piece)) * width
    ]
    packed = pa.Codec(CODEC, LEVEL).compress(held, asbytes=True)
    return CODEC if len(packed) <= _WORTH * held.nbytes else _PLAIN
