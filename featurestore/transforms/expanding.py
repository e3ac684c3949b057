"""Expanding: statistics of all rows of a group so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import pyarrow as pa

from featurestore.engines.protocol import Array
from featurestore.engines.running import deviations, whole_sums, wide_numbers
from featurestore.engines.windows import STATISTICS
from featurestore.schema import Field, TableSchema
from featurestore.transforms.event_time import Span
from featurestore.transforms.folded_column import Seen
from featurestore.transforms.grouping import By
from featurestore.transforms.naming import Renaming
from featurestore.transforms.running import Running
from featurestore.transforms.selectors import Selection, normalise_selection
from featurestore.transforms.statistics import (
    check_min_count,
    is_whole,
    made_fields,
    normalise_statistics,
    numeric_columns,
    statistic_type,
)


@dataclass(frozen=True)
class Expanding(Running):
    """Statistics of all rows of the same group so far.

    Scope ``prefix``. Rows of a group are in table order (time, then key).

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns (booleans count as 0 and 1).
    stats : str or sequence of {"mean", "std", "sum", "min", "max", "count", "first", "last"}
    min_count : int
        Fewer values than this give null.
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    closed : {"right", "left"}
        *Boundary rule.* A row sees the rows of its group before it and itself (right) or not (left); rows
        of one time count one by one, in table order.
    lag : str or timedelta, optional
        The row at ``t`` sees the rows up to ``t - lag`` instead (left: before that), all or none of
        those of one time. Needs a timestamp or date as time.
    prefix, rename : optional
        Change the names ``<input>_expanding_<statistic>``.

    Notes
    -----
    *Null rule.* As in ``Rolling``: nulls are skipped; ``count`` is never null, the rest is null for fewer
    than ``min_count`` values, ``std`` (``ddof=1``) also for fewer than two. NaN and infinities are
    values: sums, means and extremes of a group hold them from then on, and ``std`` is NaN.

    *Types.* As in ``Rolling``: ``count`` int64; ``mean`` and ``std`` float64; ``sum`` int64 of integers and
    booleans (exact, refused beyond 64 bits; uint64 of uint64), else float64; ``min max first last`` the
    input's type (float64 for decimals). Means of integers come of exact sums.

    *State.* One row per group where all statistics are exact (all but ``std``, and ``mean`` and ``sum`` of
    floats); else up to two rows per group for each bit of the time span, some 20 in practice; with a
    ``lag``, the rows of each group's last ``lag`` too. *Memory.* To apply, 50 bytes per row and per row of the
    state, and per row 30 and 40 for each number that the largest statistic needs (1 for a sum, 4 for
    ``std``); to summarise, 66 and 30, and the state.

    Raises
    ------
    DefinitionError
        For a table without time column, or a parameter that is not as above.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"k": ["a", "b", "a"], "t": [1, 2, 3], "x": [1.0, 5.0, 3.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, ("k",), "t"))
    >>> Expanding("x", ["mean", "max"]).apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_expanding_mean': [1.0, 5.0, 2.0], 'x_expanding_max': [1.0, 5.0, 3.0]}
    """

    columns: Selection
    stats: str | Sequence[str] = ("mean",)
    _: KW_ONLY
    by: By = None
    closed: str = "right"
    lag: Span | None = None
    min_count: int = 1
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        super().__post_init__()
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "stats", normalise_statistics(self.stats, STATISTICS, "Expanding"))
        check_min_count(self.min_count, "Expanding")

    def sources(self, schema: TableSchema) -> tuple[str, ...]:
        return numeric_columns(self.columns, schema, "Expanding")

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        made = [
            (f"{name}_expanding_{stat}", statistic_type(schema[name].type, stat))
            for name in self.sources(schema)
            for stat in self.stats
        ]
        return made_fields(made, self.prefix, self.rename, "Expanding")

    def fold_names(self, schema: TableSchema, source: str) -> tuple[str, ...]:
        total = "whole" if is_whole(schema[source].type) else "sum"
        needed = {"mean": total, "sum": total, "std": "moments"}
        return tuple(dict.fromkeys(("count", *(needed.get(one, one) for one in self.stats))))

    def results(
        self, xp: Any, schema: TableSchema, source: str, seen: Seen, times: Array
    ) -> Iterator[tuple[Array, Array]]:
        (count,) = seen["count"]
        unsigned = pa.types.is_uint64(schema[source].type)
        for stat in self.stats:
            if stat == "count":
                yield count, xp.ones(count.shape[0], dtype=xp.bool_)
                continue
            valid = count >= max(self.min_count, 2 if stat == "std" else 1)
            if stat == "std":
                yield deviations(xp, seen["moments"]), valid
            elif stat not in ("sum", "mean"):
                yield seen[stat][1], valid
            elif "whole" in seen and stat == "sum":
                yield whole_sums(xp, seen["whole"], unsigned=unsigned), valid
            else:
                whole = seen.get("whole")
                # A sum of nothing is -0.0.
                sums = seen["sum"][0] + 0.0 if whole is None else wide_numbers(xp, whole)
                yield sums if stat == "sum" else sums / xp.maximum(count, 1), valid
