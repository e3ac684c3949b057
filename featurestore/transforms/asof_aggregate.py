"""Statistics of another table's events in the time before each row.

Always true: exactly one output row per input row, in the input's order, whether events match or not, and
never an event that became known after the row's time. The same events give the same bits, however both
tables are partitioned and however late the events came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from featurestore.engines.event_windows import Seen, Span, window_statistics
from featurestore.engines.protocol import Engine, Frame, Series
from featurestore.engines.windows import CLOSED, STATISTICS
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes, rounding_bytes
from featurestore.transforms.known import Age, EventMatching
from featurestore.transforms.matching import Named, Pairs
from featurestore.transforms.naming import Renaming
from featurestore.transforms.selectors import Selection
from featurestore.transforms.statistics import (
    check_min_count,
    made_fields,
    normalise_statistics,
    statistic_type,
)
from featurestore.transforms.tails import column_name, scattered
from featurestore.units import Duration

_EVENT, _LATE, _ROW = 95, 35, 100
"""Bytes per event, more of them where events may be late, and bytes per row."""


@dataclass(frozen=True)
class AsOfAggregate(EventMatching):
    """Statistics of the other table's events in a window of time before each row.

    Scope ``prefix``, of the other table.

    Parameters
    ----------
    table : str or table
        The other table: its name, or anything with a ``name``.
    columns : str, sequence of str or Selector
        Numeric or boolean columns of the other table (booleans count as 0 and 1).
    window : str, timedelta or int
        How far back events count: a length of time, an integer where both time columns are integers.
    stats : str or sequence of {"mean", "std", "sum", "min", "max", "count", "first", "last"}
        ``first`` and ``last`` are the oldest and the newest value.
    by : mapping, sequence of str or str, optional
        Which columns must be equal, ``{"own": "other"}`` or shared names; by default the other
        table's key columns that this table has. ``[]``: time alone decides.
    closed : {"right", "left", "both", "none"}
        Which ends of the window belong to it.
    lag : str, timedelta or int, optional
        How long after its time an event becomes known (publication lag).
    available : str, optional
        A column of the other table: when each of its rows became known.
    min_count : int
        Fewer values than this in the window give null.
    prefix, rename : optional
        Change the names ``<input>_<statistic>_<window>`` (``price_mean_7d``).

    Notes
    -----
    *Boundary rule.* An event is known from the later of ``time + lag`` and its ``available``. A row at
    ``t`` sees those known by ``t`` (``closed="right"`` and ``"both"``) or before ``t`` (``"left"`` and
    ``"none"``), whose own time is after ``t - window`` (``"right"`` and ``"none"``) or not before it
    (``"left"`` and ``"both"``). The lag moves no window: what is not known yet is missing from it.
    Events are in order of time, those of one key and time in the table's order.

    *Null rule.* A null in a ``by`` column matches nothing; an event with a null in ``available`` is never
    known. Nulls among the values are skipped. ``count`` is the number of values, 0 where nothing
    matches, never null; the rest is null for fewer than ``min_count`` values, ``std`` (``ddof=1``)
    also for fewer than two. NaN and infinities are values and reach the windows that hold them only.

    *Types.* Those of ``Rolling``. *State.* The other table's rows from ``window`` before the partition
    to its end. *Memory.* About 100 bytes per row, 95 per event, 130 with ``available``, for one column
    at a time, and 9 per row and statistic.

    Raises
    ------
    DefinitionError
        If a table has no time column, or times or keys cannot be compared.
    SchemaError
        If a column is not numeric.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import Field, TableSchema
    >>> engine = PolarsEngine()
    >>> fields = Field("k", pa.string()), Field("t", pa.int64())
    >>> trades = TableSchema((*fields, Field("size", pa.float64())), ("k",), "t")
    >>> quotes = TableSchema(fields, ("k",), "t", {"trades": trades})
    >>> recent = AsOfAggregate("trades", "size", window=10, stats=["sum", "count"])
    >>> events = pa.table({"k": ["a", "a", "a"], "t": [1, 5, 12], "size": [1.0, 2.0, 4.0]})
    >>> state = recent.gather({}, [recent.rows(Partition(engine.from_arrow(events), trades), engine)])
    >>> rows = pa.table({"k": ["a", "b", "a"], "t": [5, 9, 12]})
    >>> made = recent.apply(Partition(engine.from_arrow(rows), quotes), state, engine)
    >>> made.frame.to_dict(as_series=False)
    {'size_sum_10': [3.0, None, 6.0], 'size_count_10': [2, 0, 2]}
    """

    table: str | Named
    columns: Selection
    window: Age
    _: KW_ONLY
    stats: str | Sequence[str] = ("mean",)
    by: Pairs = None
    closed: str = "right"
    lag: Age = None
    available: str | None = None
    min_count: int = 1
    prefix: str | None = None
    rename: Renaming = None

    oldest: ClassVar[str | None] = "window"

    def __post_init__(self) -> None:
        stats = normalise_statistics(self.stats, STATISTICS, "AsOfAggregate")
        object.__setattr__(self, "stats", stats)
        if self.closed not in CLOSED:
            raise DefinitionError(
                f"AsOfAggregate has closed={self.closed!r}", f"use one of {CLOSED}"
            )
        check_min_count(self.min_count, "AsOfAggregate")
        super().__post_init__()
        if self.window is None or self.window in (0, Duration(0)):
            raise DefinitionError(
                f"AsOfAggregate has window={self.window!r}", "give a positive length of time"
            )

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        source = schema.source(self.source_table)
        made = [
            (f"{name}_{stat}_{self.window}", statistic_type(source[name].type, stat))
            for name in self.numbers(schema)
            for stat in self.stats
        ]
        return made_fields(made, self.prefix, self.rename, "AsOfAggregate")

    def values(self, partition: Partition, right: Frame, seen: Seen, engine: Engine) -> Columns:
        fields, made = iter(self.outputs(partition.schema)), list[Series]()
        for position in range(len(self.numbers(partition.schema))):
            made += self._statistics(engine, right[column_name(position)], seen, fields)
        return Columns(partition.frame.select(*made) if made else None)

    def _statistics(
        self, engine: Engine, column: Series, seen: Seen, fields: Iterator[Field]
    ) -> list[Series]:
        """Return the statistics of one column; the next of ``fields`` say what they are called."""
        values, valid = (one[seen.events.order] for one in engine.values(column))
        found = window_statistics(engine.xp, seen, values, valid, self.stats, self.min_count)
        del values, valid
        made = []
        for one, field in zip(found, fields, strict=False):
            made.append(
                engine.column(field.name, *scattered(engine.xp, one, seen.order), field.type)
            )
        return made

    def span(self, schema: TableSchema) -> Span:
        lag, back = self.spans(schema)
        return Span(lag, back, self.closed in ("right", "both"), self.closed in ("left", "both"))

    def working_bytes(self, schema: TableSchema, extent: Extent, events: int) -> int:
        late = _LATE if self.available is not None else 0
        made = 9 * len(self.stats) * extent.rows
        rounding = rounding_bytes(self.outputs(schema), extent.rows)
        return (_EVENT + late) * events + _ROW * extent.rows + made + rounding

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))
