"""Arrow numbers as NumPy arrays and back, without a copy where there is one chunk.

By way of buffers: pyarrow's own conversions import pandas as soon as it is installed, which costs
half a second and 50 MB that a bounded ingest would rather use for rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def to_numpy(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return a column of numbers or booleans as an array ``[rows]``; what is under nulls is undefined.

    Examples
    --------
    >>> to_numpy(pa.array([1, 2, 3]).slice(1)).tolist()
    [2, 3]
    """
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks != 1:
            dtype = to_numpy(pa.nulls(0, column.type)).dtype
            return np.concatenate([np.zeros(0, dtype), *map(to_numpy, column.chunks)])
        column = column.chunk(0)
    if pa.types.is_boolean(column.type):
        return to_numpy(pc.cast(column, pa.uint8())).view(np.bool_)
    dtype = np.dtype(column.type.to_pandas_dtype())
    if len(column) == 0:
        return np.zeros(0, dtype)
    return np.frombuffer(
        column.buffers()[1], dtype, count=len(column), offset=column.offset * dtype.itemsize
    )


def to_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Return ``int64`` numbers or booleans as an Arrow array without nulls.

    Examples
    --------
    >>> to_arrow(np.array([True, False])).to_pylist()
    [True, False]
    """
    if values.dtype == np.bool_:
        return pc.cast(_wrapped(values.view(np.uint8), pa.uint8()), pa.bool_())
    return _wrapped(values.astype(np.int64, copy=False), pa.int64())


def _wrapped(values: npt.NDArray[Any], type_: pa.DataType) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(type_, len(values), [None, buffer])
