"""Rolling statistics: windows of an entity's rows up to each row.

Scope ``prefix``: the state is the tail of earlier rows (:mod:`tails`), put before the partition's own rows. Windows are found by sort and search and folded so that the result depends only
on the rows in the window (:mod:`featurestore.engines.windows`), hence not on partitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import pyarrow as pa

from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.quantiles import level_of
from featurestore.engines.windows import (
    CLOSED,
    STATISTICS,
    Groups,
    Windows,
    group_rows,
    row_windows,
    time_windows,
)
from featurestore.errors import DefinitionError
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
    grouping_bytes,
    handed_extent,
    is_varying,
    kept_bytes,
    rounding_bytes,
    state_rows,
    tail_memory,
)
from featurestore.transforms.grouping import By, normalise_by, require_time, resolve_by
from featurestore.transforms.naming import Renaming, normalise_renaming
from featurestore.transforms.selectors import Selection, normalise_selection
from featurestore.transforms.statistics import (
    check_min_count,
    made_fields,
    normalise_statistics,
    numeric_columns,
    statistic_type,
)
from featurestore.transforms.tails import (
    TAIL,
    TIME,
    Extended,
    Keep,
    combine_tails,
    key_rows,
    positional,
    scattered,
    summarize_tail,
)
from featurestore.units import Duration


@dataclass(frozen=True)
class Rolling(Transformer):
    """Statistics of a window of the same group's rows up to each row.

    Scope ``prefix``. Rows of a group are in table order (time, then key).

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns (booleans count as 0 and 1).
    window : str, timedelta or int
        A length of time (``"7d"``) or a number of rows. Time windows need a timestamp or date time
        column; on integer time columns use rows.
    stats : str or sequence of str
        ``mean std sum min max count first last median`` and quantiles: ``"q0.9"`` is the value below
        which nine of ten values lie, linearly interpolated between the two next to it.
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    closed : {"right", "left", "both", "none"}
        *Boundary rule.* With a time window the row at ``t`` sees rows in ``(t - w, t]`` (right),
        ``[t - w, t)`` (left), ``[t - w, t]`` (both) or ``(t - w, t)`` (none); rows of one time are in
        or out together. With ``w`` rows: the row and ``w - 1`` before it (right), the ``w`` before
        it (left), the row and ``w`` before it (both), the ``w - 1`` before it (none).
    lag : str, timedelta or int, optional
        Moves the window into the past: by time for time windows (``t`` becomes ``t - lag``), by rows
        for windows of rows.
    min_count : int
        Fewer values than this in the window give null.
    prefix, rename : optional
        Change the names ``<input>_<statistic>_<window>`` (``price_mean_7d``, ``price_sum_5r``).

    Notes
    -----
    *Null rule.* Nulls are skipped: a window's values are its non-null ones. ``count`` is their number,
    never null; the rest is null for fewer than ``min_count`` of them, ``std`` (``ddof=1``) also for
    fewer than two. NaN and infinities are values: they reach the windows that hold them and no others
    (``std`` of such a window is NaN; ``min``, ``max`` and quantiles of one with NaN are NaN).

    *Types.* ``count`` int64; ``mean``, ``std`` and quantiles float64; ``sum`` int64 of integers and booleans
    (exact, refused beyond 64 bits; uint64 of uint64), else float64; ``min max first last`` the
    input's type (float64 for decimals). Means of integers come of exact sums: they are correctly rounded where
    these are below 2**53, and within two units in the last place beyond.

    *State.* Time windows: the rows of the last ``window + lag``. Windows of rows: the last
    ``window + lag`` rows of each group, for ever. *Memory.* 135 bytes per row, and
    100 for each row of the state (``std``: 155 and 120; quantiles: 255 and 100); to summarise, 52 per
    row, or 26 and the state.

    Raises
    ------
    DefinitionError
        For a table without time column, or a parameter that is not as above.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine, day = PolarsEngine(), 86_400_000
    >>> table = pa.table({"k": ["a", "a", "a"], "t": pa.array([0, day, 9 * day], pa.timestamp("ms")),
    ...                   "x": [1.0, 3.0, 5.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, ("k",), "t"))
    >>> columns = Rolling("x", "7d", stats=["mean", "count"]).apply(part, {}, engine)
    >>> columns.frame.to_dict(as_series=False)
    {'x_mean_7d': [1.0, 2.0, 5.0], 'x_count_7d': [1, 2, 1]}
    """

    columns: Selection
    window: Span
    _: KW_ONLY
    stats: str | Sequence[str] = ("mean",)
    by: By = None
    closed: str = "right"
    lag: Span | None = None
    min_count: int = 1
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "window", span_of(self.window, "window", 1))
        put(self, "by", normalise_by(self.by))
        put(self, "stats", normalise_statistics(self.stats, STATISTICS, "Rolling", quantiles=True))
        put(self, "rename", normalise_renaming(self.rename))
        if self.lag is not None:
            put(self, "lag", span_of(self.lag, "lag", 0))
            if isinstance(self.lag, int) != isinstance(self.window, int):
                raise DefinitionError(
                    f"Rolling has window={self.window!r} and lag={self.lag!r}",
                    "give both as times or both as numbers of rows",
                )
        if self.closed not in CLOSED:
            raise DefinitionError(f"Rolling has closed={self.closed!r}", f"use one of {CLOSED}")
        check_min_count(self.min_count, "Rolling")

    @property
    def scope(self) -> Scope:
        return Scope.PREFIX

    @property
    def slicing(self) -> Slicing:
        # Rows of one time are in a window of time together.
        return Slicing.ROWS if isinstance(self.window, int) else Slicing.TIMES

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        by, time = resolve_by(self.by, schema, "Rolling"), self._time(schema)
        return tuple(dict.fromkeys((*by, time, *self._columns(schema))))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        made = [
            (f"{name}_{stat}_{self._label}", statistic_type(schema[name].type, stat))
            for name in self._columns(schema)
            for stat in self.stats
        ]
        return made_fields(made, self.prefix, self.rename, "Rolling")

    @property
    def _label(self) -> str:
        return f"{self.window}r" if isinstance(self.window, int) else str(self.window)

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        return numeric_columns(self.columns, schema, "Rolling")

    def _time(self, schema: TableSchema) -> str:
        time = require_time(schema, "Rolling", "looks back in time")
        if not isinstance(self.window, int) and schema.time_unit is None:
            raise DefinitionError(
                f"Rolling has window={self._label!r} and time column {time!r} counts integers, "
                "which have no length",
                "give the window as a number of rows, or ingest the column as a timestamp",
            )
        return time

    def _steps(self, unit: str | None) -> tuple[int, int]:
        """Return window and lag in steps of a time column of this unit, or in rows."""
        window, lag = cast("Duration | int", self.window), cast("Duration | int | None", self.lag)
        if isinstance(window, int) or unit is None:
            return cast("int", window), cast("int", lag or 0)
        return window.in_unit(unit), lag.in_unit(unit) if isinstance(lag, Duration) else 0

    def _keep(self, unit: str | None) -> Keep:
        span = sum(self._steps(unit))
        return Keep(rows=span) if isinstance(self.window, int) else Keep(span=span)

    @property
    def is_keyed(self) -> bool:
        return isinstance(self.window, int) and self.by != ()

    def keys(self, partition: Partition, engine: Engine) -> pa.Table:
        return key_rows(engine, partition.frame, resolve_by(self.by, partition.schema, "Rolling"))

    def handed(self, schema: TableSchema, extent: Extent) -> Extent:
        rows = sum(self._steps(None)) * extent.rows
        return handed_extent(schema, self._state_columns(schema), rows, extent)

    def reach(self, schema: TableSchema) -> int | None:
        if isinstance(self.window, int):
            return None
        # The window's first moment itself is outside where it is open on the left.
        return sum(self._steps(schema.time_unit)) - (self.closed in ("right", "none"))

    def summarize(self, partition: Partition, engine: Engine) -> State:
        schema = partition.schema
        by = resolve_by(self.by, schema, "Rolling")
        frame = positional(partition.frame, by, self._time(schema), self._columns(schema))
        return summarize_tail(engine, frame, self._keep(schema.time_unit))

    def combine(self, earlier: State, later: State) -> State:
        if not earlier or not later:
            return earlier or later
        unit = time_unit(later[TAIL].schema.field(TIME).type)
        return combine_tails(earlier, later, self._keep(unit))

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        by, columns = resolve_by(self.by, schema, "Rolling"), self._columns(schema)
        frame = positional(partition.frame, by, self._time(schema), columns)
        rows = Extended.of(engine, frame, state, len(by))
        groups = group_rows(xp, rows.codes())
        start, end = self._bounds(xp, groups, rows, schema)
        order = groups.order
        del groups
        own, target = rows.own(order)
        start, end = start[own], end[own]
        fields = iter(self.outputs(schema))
        out: list[Series] = []
        for i in range(len(columns)):
            # In a function of its own, so that one column's arrays are gone before the next's come.
            out += self._statistics(rows, i, (order, start, end, target), fields)
        return Columns(partition.frame.select(*out) if out else None)

    def _statistics(
        self,
        rows: Extended,
        position: int,
        sorted_: tuple[Array, Array, Array, Array],
        fields: Iterator[Field],
    ) -> list[Series]:
        """Return the statistics of one column; the next of ``fields`` say what they are called."""
        order, start, end, target = sorted_
        engine, out = rows.engine, []
        values, valid = (one[order] for one in rows.values(position))
        windows = Windows.of(engine.xp, values, valid, start, end)
        del values, valid
        for stat, field in zip(self.stats, fields, strict=False):
            one = scattered(engine.xp, windows.statistic(stat, self.min_count), target)
            out.append(engine.column(field.name, *one, field.type))
        return out

    def _bounds(
        self, xp: Any, groups: Groups, rows: Extended, schema: TableSchema
    ) -> tuple[Array, Array]:
        width, lag = self._steps(schema.time_unit)
        if isinstance(self.window, int):
            return row_windows(xp, groups, width=width, lag=lag, closed=self.closed)
        return time_windows(xp, groups, rows.times(), width=width, lag=lag, closed=self.closed)

    def _state_columns(self, schema: TableSchema) -> tuple[str, ...]:
        """Return what a row of the state holds; a column may occur twice."""
        by = resolve_by(self.by, schema, "Rolling")
        return (*by, self._time(schema), *self._columns(schema))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        by = resolve_by(self.by, schema, "Rolling")
        together = extent.rows + state_rows(schema, self._state_columns(schema), extent)
        ranks = [level_of(one) is not None for one in self.stats]
        ranked = any(ranks)
        folded = 0 if all(ranks) else 120 if "std" in self.stats else 100
        sorted_ = max(folded, 100 if ranked else 0) * together
        sorted_ = max(grouping_bytes(schema, by, together), sorted_)
        made = (120 if ranked else 35) * extent.rows + rounding_bytes(
            self.outputs(schema), extent.rows
        )
        varying = sum(is_varying(schema[name].type) for name in by)
        return sorted_ + made + VIEW * together * varying

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        by = resolve_by(self.by, schema, "Rolling")
        types = [schema[name].type for name in self._state_columns(schema)]
        return tail_memory(schema, by, types, self.state_bytes(schema, extent), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        names = self._state_columns(schema)
        if not isinstance(self.window, int):  # nobody knows how many rows a span of time has
            return copied_bytes(schema, names, extent)
        by = resolve_by(self.by, schema, "Rolling")
        return kept_bytes(schema, by, names, sum(self._steps(None)), extent)

    def state_fingerprint(self) -> str:
        by = None if self.by is None else list(self.by)
        spans = [encode(self.window), encode(self.lag)]
        return fingerprint("tail", "Rolling", self.version, encode(self.columns), by, spans)
