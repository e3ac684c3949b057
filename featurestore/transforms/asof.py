"""The newest earlier row of another table: what was known at the time of each row.

Always true: exactly one output row per input row, in the input's order, and never a right row that
became visible after the left row's time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from featurestore.engines.joins import asof_positions, scale_times
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError
from featurestore.fingerprint import fingerprint
from featurestore.schema import TableSchema, time_steps
from featurestore.transforms.base import Partition, SourceWindow, State, encode
from featurestore.transforms.event_time import CommonUnit, frame_times
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import is_text, tail_memory
from featurestore.transforms.matching import (
    ROWS,
    MatchingTransformer,
    Named,
    Pairs,
    gather_rows,
    normalise_pairs,
    source_frame,
)
from featurestore.transforms.naming import Renaming
from featurestore.transforms.selectors import Selection
from featurestore.transforms.tails import TIME, Keep, combine_tails, summarize_tail
from featurestore.units import Duration

_TEXT_KEY: Final = 48  # bytes per row
Age = str | dt.timedelta | Duration | int | None
"""A length of time (``"3h"``); an integer where both time columns are integers."""


@dataclass(frozen=True)
class AsOfJoin(MatchingTransformer):
    """Columns of another table, as they were known at each row's time.

    Scope ``prefix``, of the other table.

    Parameters
    ----------
    table : str or table
        The other table: its name, or anything with a ``name``.
    columns : str, sequence of str or Selector
        Columns of the other table: scalars, strings or lists.
    by : mapping, sequence of str or str, optional
        Which columns must be equal, ``{"own": "other"}`` or shared names; by default the other
        table's key columns that this table has. ``[]``: time alone decides.
    lag : str, timedelta or int, optional
        How long after its time a row becomes known (publication lag).
    max_age : str, timedelta or int, optional
        Rows older than this give null.
    exact : bool
        Whether a row that becomes known exactly at ``t`` is known at ``t``.
    prefix, rename : optional
        Change the names, which are those of the columns.

    Notes
    -----
    *Boundary rule.* A row of the other table is visible at ``t`` when ``time + lag <= t`` (``<`` with
    ``exact=False``) and ``t - time <= max_age``. The newest visible one is taken; among rows of one
    key and time the last in the table's order. Times are compared exactly, in the finer of the two
    units; those with time zones as instants.

    *Null rule.* A null in a ``by`` column matches nothing; no match gives nulls; the row taken may
    itself hold nulls. *State.* The other table's rows within the partition's time range, and, without
    ``max_age``, the last row per key before it. *Memory.* About
    45 bytes (100 for string keys) per row of both tables, 21 more per row of the other, and 16 for each
    string taken. Each row may take the widest string or list there is.

    Raises
    ------
    DefinitionError
        If a table has no time column, or times or keys cannot be compared.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.schema import Field
    >>> join = AsOfJoin("weather", ["temp"], by={"origin": "origin"}, max_age="3h")
    >>> weather = TableSchema(
    ...     (Field("origin", pa.string()), Field("hour", pa.timestamp("us")), Field("temp", pa.float64())),
    ...     ("origin",), "hour")
    >>> flights = TableSchema(
    ...     (Field("origin", pa.string()), Field("dep", pa.timestamp("ms"))), ("origin",), "dep",
    ...     {"weather": weather})
    >>> [field.name for field in join.outputs(flights)], join.inputs(flights)
    (['temp'], ('origin', 'dep'))
    >>> join.source_window(flights, 0, 10_000)
    SourceWindow(lower=-10800000000, upper=10000000, carry=False)
    """

    table: str | Named
    columns: Selection
    by: Pairs = None
    lag: Age = None
    max_age: Age = None
    exact: bool = True
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        super().__post_init__()
        put = object.__setattr__
        put(self, "lag", _age(self.lag, "lag"))
        put(self, "max_age", _age(self.max_age, "max_age"))
        lag, age = cast("Any", self.lag), cast("Any", self.max_age)
        if type(lag) is type(age) and lag is not None and age < lag:
            raise DefinitionError(
                f"AsOfJoin has lag={lag} and max_age={age}: rows are too old before they are known",
                "give a max_age of at least the lag",
            )

    # --- what it is ----------------------------------------------------------------------------

    def _unit(self, schema: TableSchema) -> CommonUnit:
        return CommonUnit.of(schema, schema.source(self.source_table), self.source_table)

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        self._spans(schema)
        return tuple(dict.fromkeys((*self.matching(schema).left, cast("str", schema.time))))

    def source_inputs(self, schema: TableSchema) -> tuple[str, ...]:
        source, matching = schema.source(self.source_table), self.matching(schema)
        by = source.key if self.by is None else matching.right
        return tuple(dict.fromkeys((*by, cast("str", source.time), *matching.columns)))

    def _spans(self, schema: TableSchema) -> tuple[int, int | None]:
        """Return lag and greatest age in the common unit."""
        unit = self._unit(schema).unit
        spans = [
            None if span is None else time_steps(cast("Duration | int", span), unit, schema.time)
            for span in (self.lag, self.max_age)
        ]
        return spans[0] or 0, spans[1]

    def source_window(
        self, schema: TableSchema, time_min: int | None, time_max: int | None
    ) -> SourceWindow:
        """Return the other table's rows that may be the newest visible one of some row."""
        if time_min is None or time_max is None:
            return SourceWindow(1, 0, carry=False)  # no rows, nothing needed
        unit, (lag, max_age) = self._unit(schema), self._spans(schema)
        back = lag if max_age is None else max_age
        lower = (time_min * unit.left_factor - back) // unit.right_factor
        upper = (time_max * unit.left_factor - lag) // unit.right_factor
        return SourceWindow(lower, upper, carry=max_age is None)

    # --- what it does --------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        if self.max_age is not None:
            return {}
        frame = self._source_frame(partition, engine)
        return summarize_tail(engine, frame, Keep(rows=1), ROWS)

    def combine(self, earlier: State, later: State) -> State:
        return combine_tails(earlier, later, Keep(rows=1), ROWS)

    def rows(self, partition: Partition, engine: Engine) -> State:
        return {ROWS: engine.to_arrow(self._source_frame(partition, engine))}

    def gather(self, carry: State, rows: Sequence[State]) -> State:
        return gather_rows((carry, *rows))

    def matched(
        self, partition: Partition, right: Frame, codes: tuple[Array, Array], engine: Engine
    ) -> tuple[Array, Array]:
        schema, xp = partition.schema, engine.xp
        unit, (lag, max_age) = self._unit(schema), self._spans(schema)
        left_times = frame_times(engine, partition.frame, cast("str", schema.time))
        right_times = frame_times(engine, right, TIME)
        return asof_positions(
            xp,
            (codes[0], scale_times(xp, left_times, unit.left_factor)),
            (codes[1], scale_times(xp, right_times, unit.right_factor)),
            lag=lag,
            max_age=max_age,
            exact=self.exact,
        )

    def _source_frame(self, partition: Partition, engine: Engine) -> Frame:
        return source_frame(engine, partition, self.columns, self.by, timed=True)

    # --- what it costs, and its identity ---------------------------------------------------------

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return 0 if self.max_age is not None else super().state_bytes(schema, extent)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        if self.max_age is not None:
            return 0
        source, matching = schema.source(self.source_table), self.matching(schema)
        by = source.key if self.by is None else matching.right
        state = self.state_bytes(schema, extent)
        # Text keys are looked through for nulls first, and sorted in several threads.
        texts = sum(is_text(source[name].type) for name in by)
        tail = tail_memory(source, by, matching.empty.types, state, extent.rows)
        return tail + _TEXT_KEY * texts * extent.rows

    def state_fingerprint(self) -> str:
        kept = "last" if self.max_age is None else "nothing"
        pairs = normalise_pairs(self.by)
        right = None if pairs is None else [other for _, other in pairs]
        return fingerprint(
            "AsOfJoin", self.version, self.source_table, encode(self.columns), right, kept
        )


def _age(value: Age, what: str) -> Duration | int | None:
    if value is None:
        return None
    if isinstance(value, int):
        if isinstance(value, bool) or value < 0:
            raise DefinitionError(f"AsOfJoin has {what}={value!r}", "give 0 or more steps of time")
        return value
    return Duration.parse(value)
