"""The state of statistics of everything so far: per group, runs of rows that no later row can change, folded.

A table with columns ``by_0, ..., time, part_0_<fold>_0, ...`` in order of the first row of each run, which
gives it its time. Where folds are not exact, ``low`` and ``high`` say between which times all rows of the
group are known; of exact folds, one run per group is left (:mod:`featurestore.engines.time_trees`).

Always true: rows of one group are put together by themselves, so that such a state may be taken apart by its
keys (:mod:`keyed`), and how it was put together changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Array, Engine
from featurestore.engines.running import Fold, added_before
from featurestore.engines.time_trees import Nodes, Parts
from featurestore.engines.windows import INT64_MAX, Groups, group_rows, subtract_floor
from featurestore.transforms.base import State
from featurestore.transforms.event_time import arrow_times
from featurestore.transforms.keyed import key_columns
from featurestore.transforms.tails import TAIL, TIME, arrow_codes

LOW: Final = "low"
HIGH: Final = "high"


def part_columns(table: pa.Table) -> dict[str, list[str]]:
    """Return the columns of each fold of a state, by their common name.

    Examples
    --------
    >>> part_columns(pa.table({"by_0": [1], "part_0_min_0": [True], "part_0_min_1": [2.5]}))
    {'part_0_min': ['part_0_min_0', 'part_0_min_1']}
    """
    found: dict[str, list[str]] = {}
    for name in table.column_names:
        if name.startswith("part_"):
            found.setdefault(name.rsplit("_", 1)[0], []).append(name)
    return found


def part_name(source: int, fold: str) -> str:
    """Return the common name of the columns of a fold of a source."""
    return f"part_{source}_{fold}"


def in_time(state: State) -> State:
    """Return a state in order of time: what was taken by keys is in order of these."""
    if TAIL not in state:
        return state
    times = arrow_times(state[TAIL][TIME])
    if not np.any(times[1:] < times[:-1]):
        return state
    return {TAIL: state[TAIL].take(pa.array(np.argsort(times, kind="stable")))}


def spans(xp: Any, low: Array, high: Array, wait: int, *, spanned: bool) -> tuple[Array, Array]:
    """Return between which times rows are joined: not those of the last ``wait``; without spans all."""
    if not spanned:
        return low, xp.full(1, INT64_MAX, dtype=xp.int64)
    return low, subtract_floor(xp, high, wait)[0]


def combined(
    earlier: State, later: State, folds: Mapping[str, Fold], counter: str | None, wait: int
) -> State:
    """Return the state of two adjacent runs of rows.

    Parameters
    ----------
    earlier, later : State
    folds : mapping of str to Fold
        By the common names of their columns.
    counter : str, optional
        The fold that numbers rows, for those folds that know places by number.
    wait : int
        How much younger than a row those are that see it, in steps of the time.
    """
    if not earlier or not later:
        return earlier or later
    # Each column is put into one piece by itself, which is given up before the next.
    table = pa.concat_tables([earlier[TAIL], later[TAIL]])
    groups = group_rows(np, arrow_codes(table, key_columns(table.column_names)))
    spanned, times = LOW in table.column_names, arrow_times(table[TIME])
    low, high = _hulls(table, groups) if spanned else (times[:1], times[:1])
    span = spans(np, low, high, wait, spanned=spanned)
    exact = all(fold.exact for fold in folds.values())
    nodes = Nodes.of(np, groups, times, *span, exact=exact)
    columns = part_columns(table)
    arrays = {one: array_of(table[one])[groups.order] for some in columns.values() for one in some}
    places = {
        name: added_before(np, (arrays[f"part_{name.split('_')[1]}_{counter}_0"],), groups.begin)[0]
        for name, fold in folds.items()
        if fold.shift is not None
    }

    def leaves(where: slice) -> dict[str, Parts]:
        return {
            name: moved(
                np, folds[name], tuple(arrays[one][where] for one in some), places.get(name), where
            )
            for name, some in columns.items()
        }

    parts: dict[str, Any] = {}
    for name, folded in folded_nodes(np, nodes, leaves, folds, places).items():
        parts.update(zip(columns[name], folded, strict=True))
    if spanned:
        parts.update({LOW: low[nodes.rows], HIGH: high[nodes.rows]})
    rows, kept = pa.array(nodes.rows), {}
    for name in table.column_names:
        made = parts.pop(name, None)
        kept[name] = table[name].combine_chunks().take(rows) if made is None else pa.array(made)
    return {TAIL: pa.table(kept)}


def _hulls(table: pa.Table, groups: Groups) -> tuple[Array, Array]:
    """Return for each row between which times its group is known."""
    low, high = (array_of(table[name])[groups.order] for name in (LOW, HIGH))
    ends = np.append(np.unique(groups.begin)[1:], len(table)) - 1
    lows, highs = np.empty_like(low), np.empty_like(high)
    lows[groups.order] = low[groups.begin]
    highs[groups.order] = high[ends[groups.number]]
    return lows, highs


def moved(xp: Any, fold: Fold, parts: Parts, places: Array | None, where: slice) -> Parts:
    """Return folds whose places are numbers with those of all rows before them."""
    if fold.shift is None or places is None:
        return parts
    return fold.shift(xp, parts, places[where])


def folded_nodes(
    xp: Any,
    nodes: Nodes,
    leaves: Callable[[slice], Mapping[str, Parts]],
    folds: Mapping[str, Fold],
    places: Mapping[str, Array],
) -> dict[str, Parts]:
    """Return the folds of what is left, by name.

    Of folds with ``places`` (``int64``, by sorted position), places are numbers from there on.
    """
    merges = {name: None if fold.is_added else fold.merge for name, fold in folds.items()}
    found = nodes.folds(leaves, merges)
    for name, at in places.items():
        shift = folds[name].shift
        if shift is not None:
            found[name] = shift(xp, found[name], -at[nodes.at])
    return found


def state_of(kept: pa.Table, columns: Mapping[str, Any]) -> State:
    """Return a state of the first rows of what is left and further columns."""
    for name, values in columns.items():
        kept = kept.append_column(name, pa.array(values))
    return {TAIL: kept}


def earlier_parts(
    engine: Engine, state: State, source: int, folds: Sequence[str]
) -> dict[str, Parts]:
    """Return what a state has of the folds of a source; nothing if it is empty."""
    if TAIL not in state or not len(state[TAIL]):
        return {}
    columns = part_columns(state[TAIL])
    return {
        fold: tuple(
            engine.from_host(array_of(state[TAIL][one])) for one in columns[part_name(source, fold)]
        )
        for fold in folds
    }


def array_of(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a column without nulls as an array."""
    values: np.ndarray[Any, Any] = column.to_numpy()
    return values
