"""How many rows of its group came before a row, and how long ago the last of them was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import pyarrow as pa

from featurestore.engines.protocol import Array
from featurestore.errors import SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.event_time import PER_SECOND, Span, span_of
from featurestore.transforms.folded_column import Seen
from featurestore.transforms.grouping import By
from featurestore.transforms.naming import Renaming
from featurestore.transforms.running import Running
from featurestore.transforms.statistics import made_fields
from featurestore.units import Duration


@dataclass(frozen=True)
class CumCount(Running):
    """How many rows of the same group came before each row.

    Scope ``prefix``. Rows of a group are in table order (time, then key).

    Parameters
    ----------
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    closed : {"left", "right"}
        *Boundary rule.* Without the row itself (left: 0, 1, 2, ...) or with it (right: 1, 2, 3, ...). Rows
        of one time count one by one, in table order.
    lag : str or timedelta, optional
        Count the rows before ``t - lag`` (right: up to it), all or none of those of one time.
    prefix, rename : optional
        Change the name ``cum_count``.

    Notes
    -----
    *Null rule.* Rows count, whatever they hold; never null. *Types.* int64. *State.* One row per group; with
    a ``lag``, one per time of the last ``lag`` too. *Memory.* 130 bytes per row, 50 per row of the state.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"k": ["a", "b", "a"], "t": [1, 2, 3]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, ("k",), "t"))
    >>> CumCount().apply(part, {}, engine).frame.to_dict(as_series=False)
    {'cum_count': [0, 0, 1]}
    """

    _: KW_ONLY
    by: By = None
    closed: str = "left"
    lag: Span | None = None
    prefix: str | None = None
    rename: Renaming = None

    def sources(self, schema: TableSchema) -> tuple[str, ...]:
        return () if schema.time is None else (schema.time,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        return made_fields([("cum_count", pa.int64())], self.prefix, self.rename, "CumCount")

    def fold_names(self, schema: TableSchema, source: str) -> tuple[str, ...]:
        return ("count",)

    def results(
        self, xp: Any, schema: TableSchema, source: str, seen: Seen, times: Array
    ) -> Iterator[tuple[Array, Array]]:
        (count,) = seen["count"]
        yield count, xp.ones(count.shape[0], dtype=xp.bool_)


@dataclass(frozen=True)
class TimeSince(Running):
    """How long ago the last row of the same group was, or the last one where a column is true.

    Scope ``prefix``. Rows of a group are in table order (time, then key).

    Parameters
    ----------
    where : str, optional
        A boolean column: rows where it is true count. By default every row does.
    unit : str or timedelta
        What one is: ``"1s"``, ``"1h"``, ``"1d"``. Integer times have no unit; they are subtracted.
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    closed : {"left", "right"}
        *Boundary rule.* Without the row itself (left) or with it (right: 0 where it counts). A row before
        it, in table order, of the same time gives 0.
    lag : str or timedelta, optional
        Rows count that are before ``t - lag`` (right: up to it), all or none of those of one time.
    prefix, rename : optional
        Change the name ``since_last`` or ``since_<where>``.

    Notes
    -----
    *Null rule.* Null where no row counts yet; a null in ``where`` is not true. *Types.* float64, int64 for
    integer times. *State.* One row per group; with a ``lag``, one per time of the last ``lag`` too.
    *Memory.* 160 bytes per row, 50 per row of the state.

    Raises
    ------
    SchemaError
        If ``where`` is not boolean.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.transforms.base import Partition
    >>> engine, hour = PolarsEngine(), 3_600_000
    >>> table = pa.table({"t": pa.array([0, hour, 3 * hour], pa.timestamp("ms")),
    ...                   "sold": [True, False, True]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> TimeSince("sold", unit="1h", by=[]).apply(part, {}, engine).frame.to_dict(as_series=False)
    {'since_sold': [None, 1.0, 3.0]}
    """

    where: str | None = None
    _: KW_ONLY
    unit: Span = "1s"
    by: By = None
    closed: str = "left"
    lag: Span | None = None
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.unit, int):
            # Said as for other lengths of time that are none.
            span_of(f"{self.unit}", "unit", 1, "TimeSince")
        object.__setattr__(self, "unit", span_of(self.unit, "unit", 1, "TimeSince"))

    def sources(self, schema: TableSchema) -> tuple[str, ...]:
        if self.where is None:
            return () if schema.time is None else (schema.time,)
        one = schema[self.where]
        if one.is_tensor or not pa.types.is_boolean(one.type):
            raise SchemaError(
                f"TimeSince has where={self.where!r}, which is {one.type}",
                "name a boolean column, which an Expression can make",
            )
        return (self.where,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        name = "since_last" if self.where is None else f"since_{self.where}"
        type_ = pa.int64() if schema.time_unit is None else pa.float64()
        return made_fields([(name, type_)], self.prefix, self.rename, "TimeSince")

    def fold_names(self, schema: TableSchema, source: str) -> tuple[str, ...]:
        return ("last_time" if self.where is None else "last_true",)

    def results(
        self, xp: Any, schema: TableSchema, source: str, seen: Seen, times: Array
    ) -> Iterator[tuple[Array, Array]]:
        ((valid, last),) = seen.values()
        # As unsigned, as two int64 may be further apart than an int64 can be.
        apart = times.view(xp.uint64) - last.view(xp.uint64)
        if schema.time_unit is None:
            yield apart.view(xp.int64), valid
        else:
            steps = self._unit.nanoseconds * PER_SECOND[schema.time_unit] / 10**9
            yield apart.astype(xp.float64) / steps, valid

    @property
    def _unit(self) -> Duration:
        return Duration.parse(self.unit)  # type: ignore[arg-type]
