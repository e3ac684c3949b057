"""How many bytes each row takes when decoded: the measure by which partitions are cut.

The width of a row depends on its values alone, never on batches or files, so that equal rows are
always cut into equal partitions. Validity bits are left out; a boolean counts as one byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.schema import Field
from featurestore.storage.row_width import row_widths as value_widths

Widths = npt.NDArray[np.int64]


def fixed_width(field: Field) -> int | None:
    """Return a column's bytes per row, or None where they vary with the value.

    Examples
    --------
    >>> fixed_width(Field("e", pa.float32(), (2, 3)))
    24
    """
    if pa.types.is_list(field.type) or pa.types.is_string(field.type):
        return None
    if pa.types.is_binary(field.type):
        return None
    return max(1, int(field.type.bit_width) // 8) * math.prod(field.shape or (1,))


def row_widths(table: pa.Table | pa.RecordBatch, fields: Iterable[Field]) -> Widths:
    """Return each row's bytes over ``fields``: ``int64 [rows]``."""
    total = np.zeros(table.num_rows, np.int64)
    for field in fields:
        width = fixed_width(field)
        if width is not None:
            total += width
            continue
        column = table.column(field.name)
        start = 0
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            total[start : start + len(chunk)] += value_widths(chunk)
            start += len(chunk)
    return total
