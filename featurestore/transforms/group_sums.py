"""Sums of columns by group, as a state that merges: count, sum, squares, smallest and largest.

A table with one row per group, in ascending order of the group's values ``key_0 key_1 ...``, none of them null:
how many values each measured column has there, and what is asked for of them. Nulls, NaN and infinities
are not counted. Always true: sums are those of ``engines.exact_sums``, so a state depends on its rows, not on
how they were cut. Trade-off: 44 bytes per sum and group. As the tables are in order, states that do not fit
memory together are combined a range of keys at a time (``ORDER``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.exact_sums import LIMBS, Sums, check_rows, merge_runs, sum_groups
from featurestore.engines.protocol import Array, Engine, Frame, Series
from featurestore.errors import CorruptionError
from featurestore.schema import TableSchema
from featurestore.transforms.base import State
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import copied_bytes, grouping_bytes, is_text

_KEY: Final = "key_"
ORDER: Final = ("key_0",)
"""By which the tables are in order; further keys order what is equal in this."""
SUM_BYTES: Final = 4 + 8 * LIMBS
VERSION: Final = 1
"""Raise it whenever the sums of the same rows change: kept states are found by it."""
_TAKING: Final = 40
"""Bytes per row beside keys and sums: numbers of groups, values, which of them are known."""
HostArray: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


@dataclass(frozen=True, slots=True)
class Measures:
    """What is kept of each measured column beside how many values it has.

    Parameters
    ----------
    sums, squares, extremes : bool
    """

    sums: bool = True
    squares: bool = False
    extremes: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes per group and measured column."""
        return 8 + SUM_BYTES * (self.sums + self.squares) + 16 * self.extremes


def keys_of(table: pa.Table) -> list[str]:
    """Return the names of a table's key columns, by which it is in order."""
    return [name for name in table.column_names if name.startswith(_KEY)]


def sum_by_group(
    frame: Frame, keys: Sequence[str], columns: Sequence[Series], measures: Measures, engine: Engine
) -> pa.Table:
    """Return the sums of some rows by group.

    Parameters
    ----------
    frame : Frame
        The rows; none of the keys is null.
    keys : sequence of str
        Strings, integers or booleans.
    columns : sequence of Series
        Numbers or booleans to be measured.
    measures : Measures
    engine : Engine
    """
    xp, rows = engine.xp, len(frame)
    codes, groups = _groups(frame, keys, engine)
    made = [groups.column(number) for number in range(groups.num_columns)]
    names = [f"{_KEY}{number}" for number in range(len(keys))]
    for i, column in enumerate(columns):
        values, valid = engine.values(column)
        if values.dtype.kind == "f":
            valid = valid & xp.isfinite(values)
        group = codes
        if not bool(valid.all()):
            values, group = values[valid], codes[valid]
        found = _measured(values, group, groups.num_rows, measures, xp)
        names += [f"{name}_{i}" for name in found]
        made += [pa.array(engine.to_host(one)) for one in found.values()]
        del values, valid, group
    del codes
    check_rows(rows)
    return pa.table(made, names=names)


def _groups(frame: Frame, keys: Sequence[str], engine: Engine) -> tuple[Array, pa.Table]:
    """Return for each row the number of its group, and the groups in order of their values."""
    xp, rows = engine.xp, len(frame)
    codes = engine.codes(frame, keys)
    last = xp.full(rows, -1, dtype=xp.int64)
    last[codes] = xp.arange(rows)
    last = last[last >= 0]  # a row of each group, whichever
    groups = engine.to_arrow(engine.take(frame.select(*keys), last))
    order = engine.from_host(
        pc.sort_indices(groups, [(pc.field(key), "ascending") for key in keys]).to_numpy()
    )
    order = order.astype(xp.int64)
    number = xp.zeros(rows, dtype=xp.int64)
    number[codes[last[order]]] = xp.arange(order.shape[0])
    return number[codes], groups.take(pa.array(engine.to_host(order))).combine_chunks()


def _measured(
    values: Array, group: Array, groups: int, measures: Measures, xp: Any
) -> dict[str, Array]:
    found = {"count": xp.bincount(group, minlength=groups).astype(xp.int64)}
    for name, wanted in (("sum", measures.sums), ("square", measures.squares)):
        if wanted:
            sums = sum_groups(xp, values, group, groups, squares=name == "square")
            found[f"{name}_top"] = sums.top
            found |= {f"{name}_{k}": sums.limbs[k] for k in range(LIMBS)}
    if measures.extremes:
        kept = _plain(values, xp)
        least, most = _bounds(kept.dtype)
        found["smallest"] = xp.full(groups, most, dtype=kept.dtype)
        found["largest"] = xp.full(groups, least, dtype=kept.dtype)
        xp.minimum.at(found["smallest"], group, kept)
        xp.maximum.at(found["largest"], group, kept)
    return found


def _plain(values: Array, xp: Any) -> Array:
    if values.dtype.kind == "f":
        return values.astype(xp.float64) + 0.0  # -0.0 becomes 0.0
    return values if values.dtype == xp.uint64 else values.astype(xp.int64)


def _bounds(dtype: Any) -> tuple[Any, Any]:
    """Return what stands for the largest and the smallest of no values."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def combine_sums(states: Sequence[State]) -> State:
    """Return the sums of several runs of rows, table by table; empty states change nothing.

    Raises
    ------
    CorruptionError
        If they have different tables.
    LimitError
        If a group has more rows than its sums hold.
    """
    states = [one for one in states if one]
    if len(states) < 2:
        return states[0] if states else {}
    first = states[0]
    for one in states[1:]:
        if set(one) != set(first):
            raise CorruptionError(
                f"sums {sorted(first)} and {sorted(one)} cannot be merged",
                "build the statistics again",
            )
    return {name: _merged([one[name] for one in states]) for name in first}


def _merged(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the sums of several runs of rows, those of equal groups put together."""
    order = keys_of(tables[0])
    both = pa.concat_tables(tables)
    both = both.take(pc.sort_indices(both, [(pc.field(name), "ascending") for name in order]))
    both = both.combine_chunks()
    begins = np.flatnonzero(first_of_group(both, order))
    if len(begins) == both.num_rows:
        return both
    made = {name: both[name].take(pa.array(begins)) for name in order}
    for name in both.column_names[len(order) :]:
        if name in made:
            continue
        if name.endswith(f"_top_{name.rpartition('_')[2]}"):
            kind, _, number = name.partition("_top_")
            sums = merge_runs(sums_of(both, kind, int(number)), begins)
            made |= dict(zip(_sum_names(kind, int(number)), (sums.top, *sums.limbs), strict=True))
            continue
        values = both[name].to_numpy()
        put = {"count": np.add, "smallest": np.minimum, "largest": np.maximum}
        made[name] = put[name.partition("_")[0]].reduceat(values, begins)
    merged = pa.table(made)
    for name in merged.column_names:
        if name.startswith("count_"):
            check_rows(int(merged[name].to_numpy().max()))
    return merged


def first_of_group(table: pa.Table, keys: Sequence[str]) -> HostArray:
    """Return for each row of a table in order whether its keys differ from those of the row before."""
    rows = table.num_rows
    first = np.zeros(rows, dtype=np.bool_)
    first[:1] = True
    for name in keys if rows > 1 else ():
        values = table[name]
        first[1:] |= pc.not_equal(values.slice(1), values.slice(0, rows - 1)).to_numpy()
    return first


def _sum_names(kind: str, number: int) -> list[str]:
    return [f"{kind}_{part}_{number}" for part in ("top", *range(LIMBS))]


def sums_of(table: pa.Table, kind: str, number: int) -> Sums:
    """Return the sums (``"sum"`` or ``"square"``) that a table has of a measured column."""
    top, *limbs = (table[name].to_numpy() for name in _sum_names(kind, number))
    return Sums(top, np.stack(limbs))


# --- sizes -----------------------------------------------------------------------------------------------


def group_sums_bytes(
    schema: TableSchema, keys: Sequence[str], columns: int, measures: Measures, extent: Extent
) -> int:
    """Return the most Arrow bytes of such a table: every row may be a group of its own."""
    return copied_bytes(schema, keys, extent) + measures.row_bytes * columns * extent.rows


def group_sums_memory(
    schema: TableSchema, keys: Sequence[str], columns: int, measures: Measures, extent: Extent
) -> int:
    """Return what ``sum_by_group`` takes, its result included."""
    rows = extent.rows
    texts = sum(is_text(schema[name].type) for name in keys)
    grouping = grouping_bytes(schema, keys, rows) + 24 * rows
    kept = group_sums_bytes(schema, keys, columns, measures, extent)
    ordering = copied_bytes(schema, keys, extent) + (24 + 16 * texts) * rows
    return max(grouping + ordering, 16 * rows + kept + _TAKING * rows)
