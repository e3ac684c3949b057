"""Quantiles of columns, as a state that merges: exact for few distinct values, else a sketch.

Always true: a quantile is a value whose rank is off by at most 1% of the rows (``rank_sketch`` says
how that comes; beyond a billion rows, of distributions that its cells do not resolve, slightly more), and
exact up to 4,096 distinct values. NaN and infinities are not learnt from. Where at most 1% of the rows lie
in one cell, which is nearly always, the same rows give the same bits however they were cut.

Between two ranks a quantile is in proportion, as in NumPy and scikit-learn. All that is learnt of quantiles
of the same columns shares one state. Trade-off: up to 96 KiB per column in the state of a partition for the cells, and 16
for the picks; combined, as many for each doubling of the rows. Integers beyond 2**53 are rounded to float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Array, Engine
from featurestore.errors import CorruptionError
from featurestore.fingerprint import fingerprint
from featurestore.transforms.base import Partition, State, encode
from featurestore.transforms.rank_sketch import (
    MOST_CELLS,
    MOST_PICKS,
    Cells,
    RankSketch,
    sketch_sorted,
)
from featurestore.transforms.selectors import Selection

# Raise it whenever the sketch of the same rows changes: kept states are found by it.
_VERSION: Final = 1
_COLUMNS: Final = pa.schema([("column", pa.string()), ("depth", pa.int8()), ("error", pa.int64())])
_CELLS: Final = pa.schema(
    [
        ("column", pa.int32()), ("count", pa.int64()), ("smallest", pa.float64()),
        ("largest", pa.float64()),
    ]
)  # fmt: skip
_PICKS: Final = pa.schema([("column", pa.int32()), ("level", pa.int8()), ("value", pa.float64())])
_SCHEMAS: Final = {"columns": _COLUMNS, "cells": _CELLS, "picks": _PICKS}
_CELL: Final = 28
_PICK: Final = 13
_REST: Final = 64
"""Rows that are left over beside picks of one weight: a pick of each lower weight at most."""


def quantiles_fingerprint(columns: Selection) -> str:
    """Return the fingerprint of a state of quantiles, whichever transformer learns it."""
    return fingerprint("quantiles", _VERSION, encode(columns))


def quantiles_bytes(columns: Sequence[str], rows: int) -> int:
    """Return the most Arrow bytes of a state of quantiles of so many rows."""
    cells = _CELL * min(rows, MOST_CELLS)
    doublings = max(1, (rows // MOST_PICKS).bit_length() + 1)
    picks = 0 if rows <= MOST_CELLS else _PICK * MOST_PICKS * doublings
    return sum(9 + len(one.encode()) + cells + picks for one in columns) + 128 * 10


def summary_quantiles_bytes(columns: Sequence[str], rows: int) -> int:
    """Return the most Arrow bytes of a state of so many rows in one piece: picks of one weight, and a rest."""
    names = sum(9 + len(one.encode()) for one in columns)
    return names + _kept(rows) * len(columns) + 128 * 10


def _kept(rows: int) -> int:
    picks = MOST_PICKS + _REST if rows > MOST_CELLS else 0
    return _CELL * min(rows, MOST_CELLS) + _PICK * picks


def quantiles_memory(columns: Sequence[str], rows: int) -> int:
    """Return what ``summarize_quantiles`` takes, its result included: one column in order at a time."""
    return 40 * rows + 2 * (_kept(rows) + 2**9) * len(columns)


def summarize_quantiles(partition: Partition, columns: Sequence[str], engine: Engine) -> State:
    """Return the quantiles of a partition's columns (numbers, booleans, decimals)."""
    found = {}
    for name in columns:
        ordered = _in_order(*engine.values(partition.frame[name]), engine.xp)
        found[name] = sketch_sorted(ordered, engine.xp, engine.to_host)
        del ordered
    return _to_state(found)


def combine_quantiles(earlier: State, later: State) -> State:
    """Return the quantiles of two runs of rows; ``{}`` on either side returns the other."""
    if not earlier or not later:
        return earlier or later
    a, b = sketches(earlier), sketches(later)
    if a.keys() != b.keys():
        raise CorruptionError(
            f"states of columns {list(a)} and {list(b)} cannot be merged",
            "build the statistics again",
        )
    return _to_state({name: one.merge(b[name]) for name, one in a.items()})


def column_quantiles(
    state: State, shares: Callable[[int], Sequence[float]]
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return quantiles of each column of a state, none where it has no finite value.

    Parameters
    ----------
    state : State
    shares : function of int
        Which quantiles are wanted of so many values, each in ``[0, 1]``: 0.5 is the median.
    """
    return {
        name: one.answering.quantiles(np.array(shares(one.rows), dtype=np.float64))
        if one.rows
        else np.zeros(0)
        for name, one in sketches(state).items()
    }


def sketches(state: State) -> dict[str, RankSketch]:
    """Return what a state says of each column.

    Raises
    ------
    CorruptionError
        If it is no state of quantiles.
    """
    if any(name not in state or state[name].schema != _SCHEMAS[name] for name in _SCHEMAS):
        raise CorruptionError(
            f"a state of quantiles has { ({name: one.schema.names for name, one in state.items()}) }",
            "build the statistics again",
        )
    columns = state["columns"].to_pydict()
    number = np.arange(len(columns["column"]) + 1)
    cells, picks = _arrays(state["cells"]), _arrays(state["picks"])
    of_cells = np.searchsorted(cells["column"], number)
    of_picks = np.searchsorted(picks["column"], number)
    found = {}
    for i, name in enumerate(columns["column"]):
        own = slice(of_cells[i], of_cells[i + 1])
        kept = Cells(cells["count"][own], cells["smallest"][own], cells["largest"][own])
        levels = picks["level"][of_picks[i] : of_picks[i + 1]]
        values = picks["value"][of_picks[i] : of_picks[i + 1]]
        by_level = {int(one): values[levels == one] for one in np.unique(levels)}
        found[name] = RankSketch(columns["depth"][i], columns["error"][i], kept, by_level)
    return found


def _in_order(values: Array, valid: Array, xp: Any) -> Array:
    """Return the finite values as float64, ascending."""
    known = valid
    if values.dtype.kind == "f":
        known = known & xp.isfinite(values)
    if int(xp.count_nonzero(known)) < int(known.shape[0]):
        values = values[known]
    ordered = values.astype(xp.float64)
    ordered.sort()
    ordered += 0.0  # -0.0 becomes 0.0
    return ordered


def _to_state(found: Mapping[str, RankSketch]) -> State:
    columns = {
        "column": list(found),
        "depth": [one.depth for one in found.values()],
        "error": [one.error for one in found.values()],
    }
    every = list(found.values())
    cells = [
        np.repeat(np.arange(len(every), dtype=np.int32), [len(one.cells) for one in every]),
        _joined([one.cells.count for one in every], np.int64),
        _joined([one.cells.smallest for one in every], np.float64),
        _joined([one.cells.largest for one in every], np.float64),
    ]
    levels = [(i, level, held) for i, one in enumerate(every) for level, held in one.picks.items()]
    sizes = [len(held) for _, _, held in levels]
    picks = [
        np.repeat(np.array([i for i, _, _ in levels], dtype=np.int32), sizes),
        np.repeat(np.array([level for _, level, _ in levels], dtype=np.int8), sizes),
        _joined([held for _, _, held in levels], np.float64),
    ]
    return {
        "columns": pa.table(columns, schema=_COLUMNS),
        "cells": pa.Table.from_arrays([pa.array(one) for one in cells], schema=_CELLS),
        "picks": pa.Table.from_arrays([pa.array(one) for one in picks], schema=_PICKS),
    }


def _joined(parts: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])


def _arrays(table: pa.Table) -> dict[str, Any]:
    return {name: table[name].to_numpy() for name in table.column_names}
