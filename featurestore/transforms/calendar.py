"""Calendar: parts of a date or time, as numbers or as points on a circle.

Always true: a value depends on its own row only. Parts are those of the wall clock in one time zone,
daylight saving included. Trade-off: derived parts (week, month end) are computed from year, month
and day by arithmetic, so that every engine gives the same numbers.
"""

from __future__ import annotations

import math
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import narwhals as nw
import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes

_CLOCK: Final = ("hour", "minute", "second")
_TYPES: Final[Mapping[str, pa.DataType]] = {
    "year": pa.int16(), "quarter": pa.int8(), "month": pa.int8(), "week": pa.int8(),
    "day": pa.int8(), "weekday": pa.int8(), "dayofyear": pa.int16(),
    "hour": pa.int8(), "minute": pa.int8(), "second": pa.int8(),
    "is_weekend": pa.bool_(), "is_month_start": pa.bool_(), "is_month_end": pa.bool_(),
    "is_quarter_end": pa.bool_(), "is_year_end": pa.bool_(),
}  # fmt: skip
_CYCLES: Final[Mapping[str, tuple[int, float]]] = {
    "quarter": (1, 4), "month": (1, 12), "weekday": (0, 7), "hour": (0, 24), "minute": (0, 60),
    "second": (0, 60), "week": (1, 53), "day": (1, 31), "dayofyear": (1, 366),
}  # fmt: skip
PARTS: Final = tuple(_TYPES)
# Bytes per row of the intermediate columns, numbers of 4 bytes and less, of the parts that take most.
_WORK: Final[Mapping[str, int]] = {
    "week": 24, "is_month_end": 28, "is_quarter_end": 24, "is_year_end": 14,
}  # fmt: skip
_LITTLE_WORK: Final = 8


@dataclass(frozen=True)
class Calendar(Transformer):
    """Calendar parts of one date or timestamp column.

    Scope: none. State: none. Boundary rule: a value depends on its own row only.
    Null rule: a null gives null. Memory: 8 bytes per row, 28 for ``week`` and the ends of months and
    quarters, one part at a time; 8 more with a time zone, 18 more for points on a circle.

    Ranges: ``quarter`` 1-4, ``month`` 1-12, ``week`` 1-53 (ISO 8601), ``day`` 1-31, ``weekday`` 0-6
    (Monday is 0), ``dayofyear`` 1-366, ``hour`` 0-23, ``minute`` and ``second`` 0-59;
    ``is_weekend`` is Saturday and Sunday.

    Outputs are ``<column>_<part>``, or ``<column>_<part>_sin`` and ``<column>_<part>_cos``.

    Parameters
    ----------
    column : str, optional
        A date or timestamp column; the time column if not given.
    parts : tuple of str
        Of ``year quarter month week day weekday dayofyear hour minute second is_weekend
        is_month_start is_month_end is_quarter_end is_year_end``.
    cyclical : bool
        Give each part as sine and cosine (float32) of its place in its cycle, so that 23 h lies
        beside 0 h. Not for ``year`` and the ``is_`` parts. A month counts 31 days, a year 366.
    timezone : str, optional
        IANA name of the zone whose wall clock counts. A column without a zone is taken as UTC then.
        Not given: the column's own zone, or the values as they are. Polars knows daylight saving to
        the end of 2099.
    prefix : str, optional
        What output names begin with instead of ``<column>_``.

    Raises
    ------
    DefinitionError
        For unknown parts or zones, clock parts of a date, cyclical parts without a cycle.

    Examples
    --------
    >>> schema = TableSchema((Field("at", pa.timestamp("us")),), time="at")
    >>> [one.name for one in Calendar(parts=("hour", "is_weekend")).outputs(schema)]
    ['at_hour', 'at_is_weekend']
    >>> [one.name for one in Calendar("at", parts=("hour",), cyclical=True).outputs(schema)]
    ['at_hour_sin', 'at_hour_cos']
    """

    column: str | None = None
    _: KW_ONLY
    parts: tuple[str, ...] = ("month", "weekday", "hour")
    cyclical: bool = False
    timezone: str | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        given: Sequence[str] = self.parts
        parts = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "parts", parts)
        unknown = [part for part in parts if part not in _TYPES]
        if unknown or not parts or len(set(parts)) < len(parts):
            raise DefinitionError(
                f"calendar parts {list(parts)} are not distinct known parts",
                f"choose from {list(PARTS)}",
            )
        endless = [part for part in parts if part not in _CYCLES]
        if self.cyclical and endless:
            raise DefinitionError(
                f"calendar parts {endless} have no cycle", "put them in a Calendar of their own"
            )
        if self.timezone is not None:
            _check_zone(self.timezone)

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        name = self.column if self.column is not None else schema.time
        if name is None:
            raise DefinitionError("the table has no time column", "name one: Calendar(column=...)")
        type_ = schema[name].type
        is_date = pa.types.is_date(type_)
        if schema[name].is_tensor or not (is_date or pa.types.is_timestamp(type_)):
            raise SchemaError(
                f"column {name!r} has type {type_}, not date or timestamp",
                "cast it at ingest, or derive a timestamp with Expression first",
            )
        clock = [part for part in self.parts if part in _CLOCK]
        if is_date and (clock or self.timezone is not None):
            raise DefinitionError(
                f"column {name!r} is a date and has no {clock or 'time zone'}",
                "choose parts of a date, or a timestamp column",
            )
        return (name,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        (column,) = self.inputs(schema)
        stem = f"{column}_" if self.prefix is None else self.prefix
        if not self.cyclical:
            return tuple(Field(f"{stem}{part}", _TYPES[part]) for part in self.parts)
        return tuple(
            Field(f"{stem}{part}_{end}", pa.float32())
            for part in self.parts
            for end in ("sin", "cos")
        )

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        (column,) = self.inputs(partition.schema)
        names = [one.name for one in self.outputs(partition.schema)]
        clock = nw.col(column)
        if self.timezone is not None:
            if partition.schema[column].type.tz is None:
                clock = clock.dt.replace_time_zone("UTC")
            clock = clock.dt.convert_time_zone(self.timezone)
        expressions: list[nw.Expr] = []
        for part in self.parts:
            value = _EXPRESSIONS[part](clock)
            if self.cyclical:
                first, period = _CYCLES[part]
                angle = (value.cast(nw.Float64) - first) * (2 * math.pi / period)
                expressions += [angle.sin().cast(nw.Float32), angle.cos().cast(nw.Float32)]
            else:
                expressions.append(value.cast(_NARWHALS_TYPES[_TYPES[part]]))
        # One by one: computed side by side, their intermediate columns would all be there at once.
        columns = [
            partition.frame.select(**{name: one})
            for name, one in zip(names, expressions, strict=True)
        ]
        return Columns(nw.concat(columns, how="horizontal"))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        (column,) = self.inputs(schema)
        zoned = self.timezone is not None or getattr(schema[column].type, "tz", None) is not None
        derived = max(_WORK.get(part, _LITTLE_WORK) for part in self.parts)
        return (derived + 8 * zoned + 18 * self.cyclical) * extent.rows

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))


def _check_zone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DefinitionError(
            f"there is no time zone {name!r} on this machine",
            "use an IANA name such as 'America/New_York'; on a bare system install tzdata",
        ) from error


_NARWHALS_TYPES: Final[Mapping[pa.DataType, Any]] = {
    pa.int8(): nw.Int8,
    pa.int16(): nw.Int16,
    pa.bool_(): nw.Boolean,
}


def _year(at: nw.Expr) -> nw.Expr:
    return at.dt.year().cast(nw.Int32)


def _month(at: nw.Expr) -> nw.Expr:
    return at.dt.month().cast(nw.Int32)


def _day(at: nw.Expr) -> nw.Expr:
    return at.dt.day().cast(nw.Int32)


def _day_of_year(at: nw.Expr) -> nw.Expr:
    return at.dt.ordinal_day().cast(nw.Int32)


def _weekday(at: nw.Expr) -> nw.Expr:
    return at.dt.weekday().cast(nw.Int32) - 1


def _is_leap(year: nw.Expr) -> nw.Expr:
    return ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)


def _weeks_in(year: nw.Expr) -> nw.Expr:
    # ISO 8601: a year has 53 weeks if it ends on a Thursday or the one before ended on a Wednesday.
    def last_weekday(one: nw.Expr) -> nw.Expr:
        return (one + one // 4 - one // 100 + one // 400) % 7

    long = (last_weekday(year) == 4) | (last_weekday(year - 1) == 3)
    return 52 + long.cast(nw.Int32)


def _week(at: nw.Expr) -> nw.Expr:
    year = _year(at)
    week = (_day_of_year(at) - (_weekday(at) + 1) + 10) // 7
    inside = nw.when(week > _weeks_in(year)).then(nw.lit(1)).otherwise(week)
    return nw.when(week < 1).then(_weeks_in(year - 1)).otherwise(inside)


def _is_month_end(at: nw.Expr) -> nw.Expr:
    month, day = _month(at), _day(at)
    february = 28 + _is_leap(_year(at)).cast(nw.Int32)
    # 31 days in months 1 3 5 7 8 10 12, 30 in 4 6 9 11.
    usual = 30 + (month + month // 8) % 2
    return day == nw.when(month == 2).then(february).otherwise(usual)


_EXPRESSIONS: Final[Mapping[str, Callable[[nw.Expr], nw.Expr]]] = {
    "year": _year,
    "quarter": lambda at: (_month(at) - 1) // 3 + 1,
    "month": _month,
    "week": _week,
    "day": _day,
    "weekday": _weekday,
    "dayofyear": _day_of_year,
    "hour": lambda at: at.dt.hour(),
    "minute": lambda at: at.dt.minute(),
    "second": lambda at: at.dt.second(),
    "is_weekend": lambda at: _weekday(at) >= 5,
    "is_month_start": lambda at: _day(at) == 1,
    "is_month_end": _is_month_end,
    "is_quarter_end": lambda at: _is_month_end(at) & (_month(at) % 3 == 0),
    "is_year_end": lambda at: (_month(at) == 12) & (_day(at) == 31),
}
