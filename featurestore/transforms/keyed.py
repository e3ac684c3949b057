"""States that hold rows by key, taken apart by their keys: in order, and those of some keys only.

A transformer is keyed (``Transformer.is_keyed``) if the one table of its prefix state has columns ``by_0,
by_1, ...``, rows of one key are combined by themselves, and ``apply`` needs the rows of its partition's keys
only. Such a state may be larger than memory: it is combined by ranges of the hashes of its keys, and of it
``apply`` is handed what belongs to its rows.

Always true: keys that are one group have one hash, whatever their type (null is a key, ``-0.0`` equals
``0.0``, all NaN are equal, integers of any width count by value); rows of one hash stay in their order.
Trade-off: keys that differ may share a hash, once in 2**64 pairs; then rows come along that nobody needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.engines.row_hashing import Hashes, hash_rows

GROUP: Final = "group"
"""The column that ordered rows have more: the hash of their key."""
_BLOCK: Final = 2**13
"""So many rows are hashed at a time: numbers of each character are held meanwhile."""


def key_columns(names: Iterable[str]) -> list[str]:
    """Return which columns of a state are its key.

    Examples
    --------
    >>> key_columns(["by_0", "time", "by_1", "column_0"])
    ['by_0', 'by_1']
    """
    return [name for name in names if name.startswith("by_")]


def key_hashes(table: pa.Table) -> Hashes:
    """Return the hash of each row's key; without key columns all rows have the same.

    Examples
    --------
    >>> hashes = key_hashes(pa.table({"by_0": [0.0, -0.0, None], "column_0": [1, 2, 3]}))
    >>> hashes[0] == hashes[1], hashes[0] == hashes[2]
    (np.True_, np.False_)
    """
    keys = table.select(key_columns(table.column_names))
    hashes = np.zeros(table.num_rows, np.uint64)
    if keys.num_columns:
        for start in range(0, table.num_rows, _BLOCK):
            hashes[start : start + _BLOCK] = hash_rows(keys.slice(start, _BLOCK), {})
    return hashes


def in_order(table: pa.Table) -> pa.Table:
    """Return rows in order of the hashes of their keys, which they get as a column, if they have none.

    Rows of one key stay in the order they have.
    """
    if GROUP not in table.column_names:
        table = table.append_column(GROUP, pa.array(key_hashes(table), pa.uint64()))
    hashes = table[GROUP].to_numpy()
    if np.all(hashes[1:] >= hashes[:-1]):
        return table
    return table.take(pa.array(np.argsort(hashes, kind="stable")))


def without_order(table: pa.Table) -> pa.Table:
    """Return ordered rows as a state has them."""
    return table.drop_columns([GROUP])


class Keys:
    """The keys of some rows.

    Parameters
    ----------
    rows : pyarrow.Table
        With the columns that a state's key has, in any types that are equal where ``hash`` is.

    Examples
    --------
    >>> keys = Keys(pa.table({"by_0": ["b", None, "b"]}))
    >>> keys.among(pa.table({"by_0": ["a", "b", None], "column_0": [1, 2, 3]}))["column_0"].to_pylist()
    [2, 3]
    """

    def __init__(self, rows: pa.Table) -> None:
        names = key_columns(rows.column_names)
        self._types = {name: rows.schema.field(name).type for name in names}
        self._hashes: npt.NDArray[np.uint64] = np.unique(key_hashes(rows))

    def among(self, table: pa.Table) -> pa.Table:
        """Return those rows of a state that have one of the keys, in their order."""
        if not len(self._hashes):
            return table.schema.empty_table()  # a slice would keep the whole
        found = key_hashes(self._comparable(table))
        at = np.searchsorted(self._hashes, found)
        np.minimum(at, len(self._hashes) - 1, out=at)
        kept = np.flatnonzero(self._hashes[at] == found)
        return table if len(kept) == table.num_rows else table.take(pa.array(kept))

    def _comparable(self, table: pa.Table) -> pa.Table:
        """Return the columns of a state that these keys have; times of day in their unit."""
        columns = {}
        for name, type_ in self._types.items():
            # An engine may know one unit only, and the state may be another engine's.
            other = pa.types.is_temporal(type_) and table.schema.field(name).type != type_
            columns[name] = table[name].cast(type_) if other else table[name]
        # Without columns, a table would have no rows.
        return pa.table(columns) if columns else table.drop_columns(key_columns(table.column_names))


def rows_among(parts: Iterable[tuple[str, pa.Table]], keys: Keys) -> dict[str, pa.Table]:
    """Return the rows of a state that have one of some keys; the state is gone through part by part.

    Parameters
    ----------
    parts : iterable of (str, pyarrow.Table)
        Name of the table, and some of its rows.
    keys : Keys
    """
    found: dict[str, list[pa.Table]] = {}
    for name, part in parts:
        # Copied, that the part may go: what is taken is one.
        found.setdefault(name, []).append(keys.among(part))
    return {name: pa.concat_tables(tables) for name, tables in found.items()}
