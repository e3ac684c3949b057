"""Changes: a row's value against that of the same group some rows before.

The state is that of :class:`~featurestore.transforms.lag.Lag` of the same columns, whose kept states serve
these too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from featurestore.engines.differences import whole_difference
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.windows import canonical, group_rows
from featurestore.schema import TableSchema
from featurestore.transforms.base import Columns, Partition, State
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import (
    VIEW,
    fixed_bytes,
    is_varying,
    rounding_bytes,
    sorting_bytes,
    state_rows,
)
from featurestore.transforms.lag import Lag
from featurestore.transforms.statistics import numeric_columns
from featurestore.transforms.tails import Extended, positional, rows_before


@dataclass(frozen=True)
class Diff(Lag):
    """The difference to the value of the same group's row some rows before each row.

    Scope ``prefix``. Rows of a group are in table order (time, then key).

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns (booleans count as 0 and 1).
    periods : int or sequence of int
        How many rows before; each 1 or more.
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    prefix, rename : optional
        Change the names ``<input>_diff_<n>``.

    Notes
    -----
    *Null rule.* Null if either value is null, or there are fewer than ``n`` rows before. NaN and infinities
    are values, subtracted as such. *Boundary rule.* Rows of one group that share a time count one by one, in
    table order. *Types.* int64 of integers and booleans (exact, refused beyond 64 bits), float64 of
    decimals, else the input's. *State.* The last ``max(periods)`` rows of each group, as of ``Lag``. *Memory.*
    110 bytes per row and 70 for each row of the state; to summarise, as ``Lag``.

    Raises
    ------
    SchemaError
        For other columns.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import Field
    >>> engine = PolarsEngine()
    >>> table = pa.table({"k": ["a", "b", "a"], "t": [1, 2, 3], "x": [5, 6, 8]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, ("k",), "t"))
    >>> Diff("x").apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_diff_1': [None, None, 3]}
    """

    _word: ClassVar[str] = "diff"

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        return numeric_columns(self.columns, schema, type(self).__name__)

    def _type(self, type_: pa.DataType) -> pa.DataType:
        if pa.types.is_floating(type_):
            return type_
        return pa.float64() if pa.types.is_decimal(type_) else pa.int64()

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        by, columns = self._by(schema), self._columns(schema)
        rows = Extended.of(engine, positional(partition.frame, by, None, columns), state, len(by))
        groups = group_rows(xp, rows.codes())
        before = {count: rows_before(rows, groups, count) for count in self._periods}
        del groups
        fields = iter(self.outputs(schema))
        out: list[Series] = []
        for i in range(len(columns)):
            values, valid = rows.values(i)
            for count in self._periods:
                at, known = before[count]
                known = known & valid[at] & valid[rows.before :]
                with np.errstate(all="ignore"):
                    made = self._change(xp, values[rows.before :], values[at], known)
                field = next(fields)
                made = canonical(xp, made, known)
                out.append(engine.column(field.name, made, known, field.type))
        return Columns(partition.frame.select(*out) if out else None)

    def _change(self, xp: Any, new: Array, old: Array, known: Array) -> Array:
        """Return the change of values; whatever where it is not known."""
        if new.dtype.kind == "f":
            return new - old
        return whole_difference(xp, new, old, known)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        by = self._by(schema)
        earlier = state_rows(schema, self._state_columns(schema), extent)
        together = extent.rows + earlier
        work = 42 * together + (48 + 9 * len(self._periods)) * extent.rows
        keys = VIEW * together * sum(is_varying(schema[name].type) for name in by)
        rounding = rounding_bytes(self.outputs(schema), extent.rows)
        # Of the state too, where there are hundreds of columns: as read, as a frame, and as joined.
        rounding += 3 * rounding_bytes((schema[one] for one in self._columns(schema)), earlier)
        return sorting_bytes(schema, by, together, work) + keys + rounding

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))


@dataclass(frozen=True)
class PctChange(Diff):
    """The relative change against the value of the same group's row some rows before each row.

    Scope ``prefix``. Rows of a group are in table order (time, then key). The value is ``new / old - 1``.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns (booleans count as 0 and 1).
    periods : int or sequence of int
        How many rows before; each 1 or more.
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    prefix, rename : optional
        Change the names ``<input>_pct_change_<n>``.

    Notes
    -----
    *Null rule.* Null if either value is null, or there are fewer than ``n`` rows before. *Zero denominators*
    give what division gives, as in pandas and Polars: an infinity with the sign of ``new``, NaN for ``0 /
    0``; ``-0.0`` counts as 0.0. NaN and infinities are values. *Boundary rule.* Rows of one group that share a
    time count one by one, in table order. *Types.* float64. *State.* The last ``max(periods)`` rows of each
    group, as of ``Lag``. *Memory.* 110 bytes per row and 70 for each row of the state; to summarise, as
    ``Lag``.

    Raises
    ------
    SchemaError
        For other columns.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import Field
    >>> engine = PolarsEngine()
    >>> table = pa.table({"k": ["a", "b", "a"], "t": [1, 2, 3], "x": [4, 6, 5]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, ("k",), "t"))
    >>> PctChange("x").apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_pct_change_1': [None, None, 0.25]}
    """

    _word: ClassVar[str] = "pct_change"

    def _type(self, type_: pa.DataType) -> pa.DataType:
        return pa.float64()

    def _change(self, xp: Any, new: Array, old: Array, known: Array) -> Array:
        return new.astype(xp.float64) / (old.astype(xp.float64) + 0.0) - 1.0
