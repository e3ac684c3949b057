"""Lists of many rows as two arrays: all items one after the other, and where each row's begin.

What PyTorch calls ``input`` and ``offsets`` of an ``EmbeddingBag``, TensorFlow ``values`` and ``row_splits``
of a ``RaggedTensor``, and Arrow a list array.

Always true: the items of row ``i`` are ``values[offsets[i]:offsets[i + 1]]``; offsets begin with 0, never
fall, and end with the number of items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from featurestore.errors import DefinitionError, InvalidInputError

HostArray: TypeAlias = "np.ndarray[Any, Any]"
_INT32: Final = frozenset(["int8", "int16", "int32", "uint8", "uint16"])
_INT64: Final = frozenset(["int64", "uint32"])


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """The lists of some rows.

    Parameters
    ----------
    values : array [items]
    offsets : int64 array [rows + 1]

    Raises
    ------
    InvalidInputError
        If offsets are not what is always true of them.

    Examples
    --------
    >>> lists = Ragged(np.array([7, 8, 9], np.int32), np.array([0, 2, 2, 3]))
    >>> lists.rows, lists.lengths.tolist(), [one.tolist() for one in lists]
    (3, [2, 0, 1], [[7, 8], [], [9]])
    """

    values: HostArray
    offsets: HostArray

    def __post_init__(self) -> None:
        offsets, values = self.offsets, self.values
        if values.ndim != 1 or offsets.ndim != 1 or offsets.dtype != np.int64 or not offsets.size:
            raise InvalidInputError(
                f"lists of values {values.dtype} {[*values.shape]} and offsets {offsets.dtype} "
                f"{[*offsets.shape]}",
                "give values [items] and int64 offsets [rows + 1]",
            )
        if offsets[0] or offsets[-1] != len(values) or (offsets[1:] < offsets[:-1]).any():
            raise InvalidInputError(
                f"offsets from {offsets[0]} to {offsets[-1]} do not cut {len(values)} values",
                "let them begin with 0, never fall, and end with the number of values",
            )

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> HostArray:
        """Items of each row, int64 ``[rows]``."""
        found: HostArray = np.diff(self.offsets)
        return found

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.offsets.nbytes)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> HostArray:
        """Return the items of one row, counted from 0."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        found: HostArray = self.values[self.offsets[row] : self.offsets[row + 1]]
        return found

    def slice(self, start: int, stop: int) -> Ragged:
        """Return rows ``[start, stop)``; their values are not copied."""
        bounds = self.offsets[start : stop + 1]
        return Ragged(self.values[bounds[0] : bounds[-1]], bounds - bounds[0])


def item_dtype(type_: pa.DataType) -> str | None:
    """Return the NumPy name of the items that a model gets of lists of a type; None of other types.

    Integers are int32 where all of their type fit, else int64; floats are float32.

    Examples
    --------
    >>> item_dtype(pa.list_(pa.uint32())), item_dtype(pa.list_(pa.float64())), item_dtype(pa.int8())
    ('int64', 'float32', None)
    """
    if not pa.types.is_list(type_):
        return None
    if pa.types.is_floating(type_.value_type):
        return "float32"
    name = str(type_.value_type)
    return "int32" if name in _INT32 else "int64" if name in _INT64 else None


def ragged_of(lists: pa.ListArray, dtype: str, name: str) -> Ragged:
    """Return a column of lists as a model gets it.

    Parameters
    ----------
    lists : pyarrow.ListArray
        A null list is an empty one.
    dtype : str
        As :func:`item_dtype` says.
    name : str
        Of the column, for errors.

    Returns
    -------
    Ragged
        Null items of lists of floats are NaN, what is beyond float32 is infinite.

    Raises
    ------
    DefinitionError
        If a list of integers has null items.

    Examples
    --------
    >>> found = ragged_of(pa.array([[1, 2], None, [3]], pa.list_(pa.int64())), "int64", "tags")
    >>> found.values.tolist(), found.offsets.tolist()
    ([1, 2, 3], [0, 2, 2, 3])
    """
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    items = lists.flatten()  # what null lists may hold is left out
    if items.null_count and dtype != "float32":
        raise DefinitionError(
            f"the lists of integers of {name!r} have {items.null_count} null items, for which "
            "integers have no value",
            "drop or fill them with a Function, or use ListPad, which fills them",
        )
    with np.errstate(over="ignore"):  # beyond float32 is infinity, as of scalars
        values = np.ascontiguousarray(items.to_numpy(zero_copy_only=False), dtype=dtype)
    return Ragged(values, offsets)
