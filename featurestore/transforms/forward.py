"""Labels: what comes after each row, of the same key.

Scope ``suffix``: the state of a partition is the head of the rows after it (:mod:`heads`), put behind the
partition's own rows. Windows ahead are found by sort and search and folded as those of ``Rolling`` are,
so that the result depends only on the rows in the window, hence not on partitions.

Always true: a value is null until no row that is still to be appended can change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, cast

import pyarrow as pa

from featurestore.engines.protocol import Engine, Series
from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema, time_unit
from featurestore.transforms.base import (
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    Transformer,
    encode,
)
from featurestore.transforms.event_time import Span, span_of
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import (
    VIEW,
    copied_bytes,
    fixed_bytes,
    grouping_bytes,
    is_grown,
    is_text,
    is_varying,
    kept_bytes,
    rounding_bytes,
    state_rows,
    tail_memory,
    taking_bytes,
)
from featurestore.transforms.grouping import By, normalise_by, require_time, resolve_by
from featurestore.transforms.heads import (
    HEAD,
    combine_heads,
    head_of_groups,
    head_until,
    summarize_head,
    with_head,
)
from featurestore.transforms.naming import Renaming, normalise_renaming
from featurestore.transforms.rows_ahead import RowsAhead
from featurestore.transforms.selectors import Selection, normalise_selection, resolve
from featurestore.transforms.statistics import (
    check_min_count,
    is_whole,
    made_fields,
    normalise_statistics,
    statistic_type,
)
from featurestore.transforms.tails import TIME, Keep, positional
from featurestore.units import Duration

AGGREGATES: Final = ("mean", "sum", "min", "max", "std", "count")
STATISTICS: Final = ("value", "difference", "return", "log_return", *AGGREGATES)
_KIND: Final = "Forward"
_NEWEST_BYTES: Final = 256


@dataclass(frozen=True)
class Forward(Transformer):
    """What the next rows of the same group hold: labels such as forward returns.

    Scope ``suffix``. Such a column is a label (or a weight), never a feature: datasets refuse it, and
    all that is computed from it, as a model's input, and new rows cannot be given it.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        ``value`` takes scalar columns of any type; all else numeric or boolean ones (0 and 1).
    ahead : int, str or timedelta
        How far it looks: a number of rows (``5``) or a length of time (``"30d"``). A length of time needs
        a timestamp or date time column; on integer time columns use rows.
    stats : str or sequence of str
        Of the *future row*, which is the ``ahead``-th next row, or the last row in ``(t, t + ahead]``:
        ``value``; ``difference`` (future - now); ``return`` (future / now - 1); ``log_return``
        (ln(future / now)). Of *all* the next ``ahead`` rows, or those in ``(t, t + ahead]``: ``mean``,
        ``sum``, ``min``, ``max``, ``std`` (``ddof=1``), ``count`` (of values that are not null).
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    min_count : int
        Aggregates of fewer values than this are null (``count`` is not).
    prefix, rename : optional
        Change the names ``<input>_<statistic>_ahead_<n>`` (``price_return_ahead_5r``,
        ``price_mean_ahead_30d``).

    Notes
    -----
    *Boundary rule.* A value is null until its future is complete: until the group has ``ahead`` later rows,
    or the newest time of the whole table is ``t + ahead`` or later. With rows, those that share a time
    count one by one, in table order. With a length of time, rows at ``t`` itself are not in the window,
    rows at ``t + ahead`` are, and a row whose group has none in it has null (``count`` 0).

    The future row of a length of time is the *last at or before* ``t + ahead``: the price on the
    screen at that moment, as ``AsOfJoin`` would find it, not the next trade after it, which may come
    a weekend later. So nothing beyond ``t + ahead`` is looked at, and an ``embargo=`` as long as
    ``ahead`` between the parts of a split is enough. A group that ended (a share that is no longer
    traded) has null from then on, never a return of 0.

    *Null rule.* The future row counts whether it holds a null or not; null there or now gives null.
    Aggregates skip nulls. NaN and infinities are values and follow IEEE arithmetic (a return on 0 is
    infinite or NaN); ``std`` of a window that holds one is NaN.

    *Types.* ``value``, ``min`` and ``max`` the input's type (float64 for decimals, but for ``value``);
    ``count`` int64; ``difference`` and ``sum`` int64 of integers and booleans (exact, refused beyond 64
    bits; ``sum`` of uint64 is uint64), else float64; all else float64.

    *State.* Of later rows: for each group of the partition the next ``ahead`` rows; or all rows of the
    next length of time. What is appended makes those partitions stale that have a row whose future
    was not complete; a change of later rows those that looked at them. *Memory.* 140 bytes per row and
    120 for each row of the state; to summarise, 52 per row, or 26 and the state.

    Raises
    ------
    DefinitionError
        For a table without time column, or a parameter that is not as above.
    InvalidInputError
        For a difference of integers that does not fit 64 bits.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine, day = PolarsEngine(), 86_400_000
    >>> table = pa.table({"k": ["a", "a", "a"], "t": pa.array([0, day, 3 * day], pa.timestamp("ms")),
    ...                   "x": [2.0, 3.0, 6.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, ("k",), "t"))
    >>> Forward("x", 1, stats="return").apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_return_ahead_1r': [0.5, 1.0, None]}
    >>> Forward("x", "2d", stats=["value", "count"]).apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_value_ahead_2d': [3.0, 6.0, None], 'x_count_ahead_2d': [1, 1, None]}
    """

    columns: Selection
    ahead: Span
    _: KW_ONLY
    stats: str | Sequence[str] = ("value",)
    by: By = None
    min_count: int = 1
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "ahead", span_of(self.ahead, "ahead", 1, _KIND))
        put(self, "by", normalise_by(self.by))
        put(self, "stats", normalise_statistics(self.stats, STATISTICS, _KIND))
        put(self, "rename", normalise_renaming(self.rename))
        check_min_count(self.min_count, _KIND)

    @property
    def scope(self) -> Scope:
        return Scope.SUFFIX

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._state_columns(schema)))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        label = f"{self.ahead}r" if isinstance(self.ahead, int) else str(self.ahead)
        made = [
            (f"{name}_{stat}_ahead_{label}", _type(schema[name].type, stat))
            for name in self._columns(schema)
            for stat in self.stats
        ]
        return made_fields(made, self.prefix, self.rename, _KIND)

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            field = schema[name]
            if field.is_tensor or (tuple(self.stats) != ("value",) and not field.is_numeric):
                raise SchemaError(
                    f"Forward cannot give {list(self.stats)} of column {name!r} of type {field.type}",
                    "name numeric or boolean columns; stats='value' takes any scalar column",
                )
        return names

    def _time(self, schema: TableSchema) -> str:
        time = require_time(schema, _KIND, "looks ahead in time")
        if not isinstance(self.ahead, int) and schema.time_unit is None:
            raise DefinitionError(
                f"Forward has ahead={str(self.ahead)!r} and time column {time!r} counts integers, "
                "which have no length",
                "give ahead= as a number of rows, or ingest the column as a timestamp",
            )
        return time

    def _steps(self, unit: str | None) -> int:
        """Return how far it looks in steps of a time column of this unit, or in rows."""
        if isinstance(self.ahead, int) or unit is None:
            return cast("int", self.ahead)
        return cast("Duration", self.ahead).in_unit(unit)

    def _keep(self, unit: str | None) -> Keep:
        steps = self._steps(unit)
        return Keep(rows=steps) if isinstance(self.ahead, int) else Keep(span=steps)

    def reach(self, schema: TableSchema) -> int | None:
        return None if isinstance(self.ahead, int) else self._steps(schema.time_unit)

    def _positional(self, partition: Partition) -> tuple[Any, tuple[str, ...]]:
        schema = partition.schema
        by = resolve_by(self.by, schema, _KIND)
        return positional(partition.frame, by, self._time(schema), self._columns(schema)), by

    def summarize(self, partition: Partition, engine: Engine) -> State:
        frame, _ = self._positional(partition)
        return summarize_head(engine, frame, self._keep(partition.schema.time_unit))

    def combine(self, earlier: State, later: State) -> State:
        known = next((one[HEAD] for one in (earlier, later) if HEAD in one), None)
        unit = None if known is None else time_unit(known.schema.field(TIME).type)
        return combine_heads(earlier, later, self._keep(unit))

    def look_ahead(self, later: State, own: State, horizon: int | None) -> tuple[State, int | None]:
        if horizon is None:
            return head_of_groups(later, own, self._steps(None))
        return head_until(later, horizon), None

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        frame, by = self._positional(partition)
        rows = with_head(engine, frame, state, len(by))
        steps, timed = self._steps(partition.schema.time_unit), not isinstance(self.ahead, int)
        ahead = RowsAhead.of(rows, state, steps, timed=timed)
        fields = iter(self.outputs(partition.schema))
        out: list[Series] = []
        for position in range(len(self._columns(partition.schema))):
            # In a function of its own, so that one column's arrays are gone before the next's come.
            out += self._statistics(ahead, position, fields)
        return Columns(partition.frame.select(*out) if out else None)

    def _statistics(self, ahead: RowsAhead, position: int, fields: Iterator[Field]) -> list[Series]:
        """Return the statistics of one column; the next of ``fields`` say what they are called."""
        engine, out = ahead.rows.engine, []
        windows = None
        if any(one in AGGREGATES for one in self.stats):
            windows = ahead.windows(position)
        for stat, field in zip(self.stats, fields, strict=False):
            if stat == "value":
                out.append(ahead.value(position).alias(field.name))
            elif windows is not None and stat in AGGREGATES:
                one = ahead.aggregate(windows, stat, self.min_count)
                out.append(engine.column(field.name, *one, field.type))
            else:
                one = ahead.change(position, stat, field)
                out.append(engine.column(field.name, *one, field.type))
        return out

    def _state_columns(self, schema: TableSchema) -> tuple[str, ...]:
        """Return what a row of the state holds; a column may occur twice."""
        by = resolve_by(self.by, schema, _KIND)
        return (*by, self._time(schema), *self._columns(schema))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        by, columns = resolve_by(self.by, schema, _KIND), self._columns(schema)
        later = state_rows(schema, self._state_columns(schema), extent)
        together = extent.rows + later
        types = [schema[name].type for name in columns] if "value" in self.stats else []
        # Texts and lists of both are put into one piece.
        joined = sum(
            extent.bytes_of([name]) + extent.state_bytes + VIEW * together * is_text(type_)
            for name, type_ in zip(columns, types, strict=False)
            if is_varying(type_) and (later or is_grown(type_))
        )
        folding = any(one != "value" for one in self.stats)
        sorted_ = max(
            grouping_bytes(schema, by, together),
            (128 if folding else 75) * together + taking_bytes(types, extent.rows),
        )
        made = 20 * extent.rows + rounding_bytes(self.outputs(schema), extent.rows)
        varying = sum(is_varying(schema[name].type) for name in by)
        return sorted_ + made + joined + VIEW * together * varying

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        varying = sum(
            extent.bytes_of([name]) + extent.state_bytes
            for name in self._columns(schema)
            if is_varying(schema[name].type)
        )
        if not isinstance(self.ahead, int):  # the last row of a window may be that of many
            widest = extent.widest_row or extent.input_bytes
            varying = max(varying, extent.rows * widest) if varying else 0
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema)) + varying

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        by = resolve_by(self.by, schema, _KIND)
        types = [schema[name].type for name in self._state_columns(schema)]
        return tail_memory(schema, by, types, self.state_bytes(schema, extent), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        names = self._state_columns(schema)
        if not isinstance(self.ahead, int):  # nobody knows how many rows a span of time has
            return copied_bytes(schema, names, extent) + _NEWEST_BYTES
        by = resolve_by(self.by, schema, _KIND)
        return kept_bytes(schema, by, names, self._steps(None), extent) + _NEWEST_BYTES

    def state_fingerprint(self) -> str:
        by = None if self.by is None else list(self.by)
        return fingerprint(
            "head", _KIND, self.version, encode(self.columns), by, encode(self.ahead)
        )


def _type(type_: pa.DataType, stat: str) -> pa.DataType:
    if stat == "value":
        return type_
    if stat == "difference" and is_whole(type_):
        return pa.int64()
    return statistic_type(type_, stat)
