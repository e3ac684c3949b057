"""GroupStats: statistics of columns by group, learnt once and put beside the rows of each group.

Always true: statistics are of exact sums, so they are the same bits for every partitioning. Trade-off: a row
of the fit scope is among those its statistics are of; for the target of a model use ``TargetEncode``, and for what
was known at a time ``Rolling`` or ``Expanding``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.exact_sums import deviation, ratio
from featurestore.engines.finding import NOWHERE
from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, State, encode
from featurestore.transforms.columnwise import check_numeric
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import rounding_bytes, state_rows
from featurestore.transforms.group_learner import GroupLearner
from featurestore.transforms.group_sums import (
    VERSION,
    HostArray,
    Measures,
    group_sums_bytes,
    group_sums_memory,
    keys_of,
    sum_by_group,
    sums_of,
)
from featurestore.transforms.grouping import By, normalise_by, resolve_by
from featurestore.transforms.learnt_rows import positions, positions_memory
from featurestore.transforms.naming import normalise_renaming, output_names
from featurestore.transforms.selectors import Selection, normalise_selection, numeric, resolve
from featurestore.transforms.value_counts import check_countable, require_rows

_NUMERIC: Final = numeric()
_TABLE: Final = "groups"
STATISTICS: Final = ("mean", "std", "min", "max", "count")


@dataclass(frozen=True)
class GroupStats(GroupLearner):
    """Give each row the mean, deviation, smallest, largest value or count of columns in its group.

    Scope: fit. State: a row per group: its values, and per column 8 bytes, 44 for ``mean``, 88 for ``std``, 16 for
    ``min`` and ``max``; by ranges of keys where that does not fit memory. Boundary rule: all rows of the fit
    scope, the row itself included if it is one of them. Null rule: nulls, NaN and infinities are not learnt from; a
    group without values has count 0 and else nulls, and one value has no ``std`` (divisor n - 1). A row with a
    null in ``by``, and a group that was not learnt, get nulls.
    Output: ``count`` is int64, ``mean`` and ``std`` float64, ``min`` and ``max`` of the column's type (float64 for decimals).
    Memory: 44 bytes (88 for strings) per row and per group. To learn, about 100 bytes per row and the state.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers or booleans.
    stats : sequence of {"mean", "std", "min", "max", "count"}
    by : str or sequence of str, optional
        Strings, integers or booleans; the table's key if not given.
    prefix, rename
        Outputs are named ``<column>_<statistic>_by_<by>``.

    Raises
    ------
    SchemaError
        For columns of other types.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("c", pa.string()), Field("x", pa.float64())))
    >>> part = Partition(engine.from_arrow(pa.table({"c": ["a", "a", None], "x": [1.0, 4.0, 9.0]})), schema)
    >>> stats = GroupStats("x", by="c", stats=["mean", "max"])
    >>> state = stats.finish(stats.summarize(part, engine))
    >>> stats.apply(part, state, engine).frame.to_dict(as_series=False)
    {'x_mean_by_c': [2.5, 2.5, None], 'x_max_by_c': [4.0, 4.0, None]}
    """

    columns: Selection = _NUMERIC
    stats: str | Sequence[str] = ("mean",)
    _: KW_ONLY
    by: By = None
    prefix: str = ""
    rename: Any = ()

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("columns", normalise_selection(self.columns))
        put("by", normalise_by(self.by))
        put("stats", (self.stats,) if isinstance(self.stats, str) else tuple(self.stats))
        put("rename", normalise_renaming(self.rename) or ())
        unknown = [one for one in self.stats if one not in STATISTICS]
        if unknown or not self.stats or len(set(self.stats)) != len(self.stats):
            raise DefinitionError(
                f"GroupStats has stats={list(self.stats)}",
                f"use some of {list(STATISTICS)}, each once",
            )
        if self.by == ():
            raise DefinitionError("by=[] is one group of all rows", "name columns, or Standardize")

    # --- what it is ------------------------------------------------------------------------------

    @property
    def _measures(self) -> Measures:
        wanted = set(self.stats)
        squares = "std" in wanted
        return Measures(squares or "mean" in wanted, squares, not wanted.isdisjoint(("min", "max")))

    def _by(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve_by(self.by, schema, "GroupStats")
        for name in names:
            check_countable(schema[name], "GroupStats(by=)")
        return names

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return self._by(schema)

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            check_numeric(schema[name], "GroupStats")
        return names

    def learns_from(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._by(schema), *self._columns(schema))))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        columns, by = self._columns(schema), "_".join(self._by(schema))
        defaults = [f"{name}_{stat}_by_{by}" for name in columns for stat in self.stats]
        names = iter(output_names(defaults, self.prefix, self.rename, "GroupStats"))
        return tuple(
            Field(next(names), _type_of(stat, schema[name].type))
            for name in columns
            for stat in self.stats
        )

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        return self._columns(schema)

    # --- learning --------------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        schema, by = partition.schema, self._by(partition.schema)
        columns = self._columns(schema)
        frame = partition.frame.select(*dict.fromkeys((*by, *columns)))
        if any(frame[name].null_count() for name in by):
            frame = frame.drop_nulls(list(by))
        measured = [frame[name] for name in columns]
        return {_TABLE: sum_by_group(frame, by, measured, self._measures, engine)}

    def finish(self, state: State) -> State:
        """Return the groups and, per column and statistic, its values: ``<statistic>_<number>``."""
        require_rows(state)
        sums = state[_TABLE]
        made = {name: sums[name] for name in keys_of(sums)}
        columns = sum(name.startswith("count_") for name in sums.column_names)
        for number in range(columns):
            counts = sums[f"count_{number}"].to_numpy()
            for stat in self.stats:
                values, least = _STATISTICS[stat](sums, number, counts)
                made[f"{stat}_{number}"] = pa.array(values, mask=counts < least)
        return {_TABLE: pa.table(made)}

    # --- applying --------------------------------------------------------------------------------

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, learnt, xp = partition.schema, state[_TABLE], engine.xp
        by, fields = self._by(schema), iter(self.outputs(schema))
        at = positions(partition.frame, by, learnt.select(range(len(by))), engine)
        found = at != NOWHERE
        at[~found] = 0
        out = []
        for number, _ in enumerate(self._columns(schema)):
            for stat in self.stats:
                target = next(fields)
                values, valid = engine.values(
                    engine.from_arrow(learnt.select([f"{stat}_{number}"]))[f"{stat}_{number}"]
                )
                if not learnt.num_rows:
                    values, valid = xp.zeros(1, dtype=values.dtype), xp.zeros(1, dtype=bool)
                made = values.astype(target.type.to_pandas_dtype(), copy=False)[at]
                out.append(engine.column(target.name, made, found & valid[at], target.type))
        return Columns(partition.frame.select(*out) if out else None)

    # --- what it costs -----------------------------------------------------------------------------

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        by, outputs = self._by(schema), self.outputs(schema)
        learnt = state_rows(schema, by, extent)
        values = 18 * learnt + 18 * extent.rows + rounding_bytes(outputs, extent.rows)
        looking = positions_memory(schema, by, extent.rows, learnt)
        # There are no outputs yet while groups are looked up.
        return max(looking - self.output_bytes(schema, extent), values + 5 * extent.rows)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        by, columns = self._by(schema), self._columns(schema)
        return group_sums_memory(schema, by, len(columns), self._measures, extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        by, columns = self._by(schema), self._columns(schema)
        return group_sums_bytes(schema, by, len(columns), self._measures, extent)

    def state_fingerprint(self) -> str:
        kept = self._measures
        asked = [kept.sums, kept.squares, kept.extremes]
        return fingerprint("group sums", VERSION, encode(self.columns), encode(self.by), asked)


def _type_of(stat: str, type_: pa.DataType) -> pa.DataType:
    if stat == "count":
        return pa.int64()
    decimal = pa.types.is_decimal(type_)
    return pa.float64() if stat in ("mean", "std") or decimal else type_


def _mean(sums: pa.Table, number: int, counts: HostArray) -> tuple[HostArray, int]:
    return ratio(sums_of(sums, "sum", number), np.maximum(counts, 1).astype(np.float64)), 1


def _std(sums: pa.Table, number: int, counts: HostArray) -> tuple[HostArray, int]:
    total, squares = sums_of(sums, "sum", number), sums_of(sums, "square", number)
    return deviation(total, squares, np.maximum(counts, 2).astype(np.float64)), 2


def _smallest(sums: pa.Table, number: int, counts: HostArray) -> tuple[HostArray, int]:
    return sums[f"smallest_{number}"].to_numpy(), 1


def _largest(sums: pa.Table, number: int, counts: HostArray) -> tuple[HostArray, int]:
    return sums[f"largest_{number}"].to_numpy(), 1


def _count(sums: pa.Table, number: int, counts: HostArray) -> tuple[HostArray, int]:
    return counts, 0


_STATISTICS: Final[Mapping[str, Callable[[pa.Table, int, HostArray], tuple[HostArray, int]]]] = {
    "mean": _mean, "std": _std, "min": _smallest, "max": _largest, "count": _count,
}  # fmt: skip
