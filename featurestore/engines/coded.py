"""Texts as positions in a dictionary, for work that only asks which of them are equal.

A partition may hold a column of texts of few different values as an Arrow dictionary instead of in its
frame (``Partition.coded``): then no text is made of any row, and none is hashed but those of the dictionary.

Always true: the dictionary has each value once and no null; nulls are rows without a position.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.arrow import HostArray
from featurestore.engines.blocks import blocks

_BLOCK: Final = 16_384

Coded: TypeAlias = "Mapping[str, pa.DictionaryArray]"
"""Columns as dictionaries, by name."""


def split_coded(table: pa.Table, names: Collection[str]) -> tuple[pa.Table, Coded]:
    """Return a table without its columns that are dictionaries, and those of them that are asked for.

    Examples
    --------
    >>> texts = pa.array(["b", None, "b"]).dictionary_encode()
    >>> rest, coded = split_coded(pa.table({"k": texts, "x": [1, 2, 3]}), ["k"])
    >>> rest.column_names, coded["k"].indices.to_pylist()
    (['x'], [0, None, 0])
    """
    found = {
        name: _unified(table[name])
        for name in names
        if pa.types.is_dictionary(table.schema.field(name).type)
    }
    return table.drop_columns(list(found)) if found else table, found


def as_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of texts as a dictionary; one that is one already as it is."""
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _unified(column: pa.ChunkedArray) -> pa.DictionaryArray:
    if column.num_chunks == 1:
        return column.chunk(0)
    array = column.unify_dictionaries().combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def codes_alike(
    left: pa.DictionaryArray, right: pa.DictionaryArray
) -> tuple[tuple[HostArray, HostArray], tuple[HostArray, HostArray]]:
    """Return codes of both that are equal where their values are, ``int64``, and which rows are no nulls.

    Examples
    --------
    >>> left = pa.array(["b", "a", None]).dictionary_encode()
    >>> right = pa.array(["c", "a", "c"]).dictionary_encode()
    >>> [codes.tolist() for codes, _ in codes_alike(left, right)]
    [[0, 1, 4], [2, 1, 2]]
    """
    known, others = left.dictionary, right.dictionary
    first, last = len(known), len(known) + len(others)
    place = pc.index_in(others, value_set=known)
    codes = np.arange(first, last, dtype=np.int64)
    codes = np.where(place.is_null(), codes, place.fill_null(0))
    null = np.asarray([last], dtype=np.int64)
    return (
        row_codes(left, np.concatenate((np.arange(first, dtype=np.int64), null))),
        row_codes(right, np.concatenate((codes, null))),
    )


def row_codes(coded: pa.DictionaryArray, codes: HostArray) -> tuple[HostArray, HostArray]:
    """Return the code of each row, given those of the values and, last, of nulls; and which are no nulls."""
    indices = coded.indices
    valid = np.ones(len(indices), dtype=np.bool_)
    if indices.null_count:
        valid = np.asarray(indices.is_valid())
        indices = indices.fill_null(len(codes) - 1)
    positions, found = indices.to_numpy(zero_copy_only=False), np.empty(len(indices), codes.dtype)
    for where in blocks(
        len(found), np, _BLOCK
    ):  # NumPy makes int64 of positions, which stay in a cache so
        found[where] = codes.take(positions[where])
    return found, valid
