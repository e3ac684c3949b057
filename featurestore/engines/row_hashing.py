"""One 64-bit hash per row over columns of every type that a table can hold.

As ``hashing``, whose kernels it uses, but for Arrow tables of any stored type, lists, binary and
decimals among them, and on the host. Equal rows have equal hashes; rows that differ have different
ones but for one pair in 2**64. ``-0.0`` equals ``0.0``, all NaN are equal, null equals null only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.engines.hashing import hash_numbers, hash_strings, splitmix64

Hashes = npt.NDArray[np.uint64]
_NULL: Final = np.uint64(0x6E756C6C00000000)  # "null"


def hash_rows(columns: pa.Table, tensors: Mapping[str, npt.NDArray[Any]]) -> Hashes:
    """Return the hash of each row; the order of the columns does not matter, their names do.

    Examples
    --------
    >>> table = pa.table({"a": [1, 1, 2], "b": [[0.0], None, [0.0]]})
    >>> len(set(hash_rows(table, {}).tolist()))
    3
    """
    rows = columns.num_rows if columns.num_columns else len(next(iter(tensors.values())))
    total = np.zeros(rows, np.uint64)
    hashed = {name: _hash_column(columns.column(name)) for name in columns.column_names}
    hashed |= {name: _hash_tensor(values) for name, values in tensors.items()}
    with np.errstate(over="ignore"):
        for name, values in hashed.items():
            seed = _strings(pa.array([name]))[0]
            total += splitmix64(np, values ^ splitmix64(np, np.full(1, seed)))
    return np.asarray(splitmix64(np, total))


def _hash_column(column: pa.ChunkedArray) -> Hashes:
    parts = [_hash_array(chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _hash_array(array: pa.Array) -> Hashes:
    kind = array.type
    if pa.types.is_list(kind):
        hashed = _lists(array)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        hashed = _strings(array)
    elif pa.types.is_decimal(kind):
        hashed = _strings(array.cast(pa.string()))
    else:
        hashed = _numbers(array)
    if array.null_count:
        hashed = np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, hashed)
    return hashed


def _numbers(array: pa.Array) -> Hashes:
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_temporal(kind):
        array = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    values = array.fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(hash_numbers(np, values))


def _strings(array: pa.Array) -> Hashes:
    _, offsets, data = array.buffers()
    count = len(array)
    if not count:
        return np.zeros(0, np.uint64)
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + count + 1]
    content = np.zeros(1, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return np.asarray(hash_strings(np, bounds.astype(np.int64), content))


def _lists(array: pa.Array) -> Hashes:
    """Hash lists by their elements at their places, and by their lengths."""
    bounds = array.offsets.to_numpy().astype(np.int64)
    elements = _hash_array(array.values.slice(bounds[0], bounds[-1] - bounds[0]))
    bounds = bounds - bounds[0]
    lengths = np.diff(bounds)
    places = np.arange(len(elements)) - np.repeat(bounds[:-1], lengths)
    return _combined(elements, places, bounds, lengths)


def _combined(
    elements: Hashes,
    places: npt.NDArray[Any],
    bounds: npt.NDArray[np.int64],
    lengths: npt.NDArray[Any],
) -> Hashes:
    placed = splitmix64(np, elements ^ splitmix64(np, places.astype(np.uint64)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(placed, dtype=np.uint64)])
    total = sums[bounds[1:]] - sums[bounds[:-1]]  # modulo 2**64, like the sums themselves
    return np.asarray(splitmix64(np, total ^ splitmix64(np, lengths.astype(np.uint64))))


def _hash_tensor(values: npt.NDArray[Any]) -> Hashes:
    flat = values.reshape(len(values), -1)
    rows, width = flat.shape
    bounds = np.arange(rows + 1, dtype=np.int64) * width
    elements = np.asarray(hash_numbers(np, flat.reshape(-1)))
    places = np.tile(np.arange(width), rows)
    return _combined(elements, places, bounds, np.full(rows, width))
