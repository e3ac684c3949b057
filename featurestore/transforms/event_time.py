"""Event times as integers: read from frames and Arrow columns, and compared across tables.

Always true: two times are compared exactly, in the finer of their units; a conversion that does not
fit 64 bits is an error and never wraps.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.arrow import MICROSECONDS_PER_DAY, HostArray
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.engines.windows import INT64_MAX
from featurestore.errors import DefinitionError, InvalidInputError
from featurestore.schema import TableSchema, is_time_type, time_unit
from featurestore.units import Duration

PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
Span = str | dt.timedelta | Duration | int
"""A length of time (``"7d"``), or a number of rows."""


def frame_times(engine: Engine, frame: Frame, column: str) -> Array:
    """Return a frame's times, ``int64`` steps of the column's unit.

    Raises
    ------
    InvalidInputError
        For nulls, and for unsigned integers beyond ``int64``.
    """
    values, valid = engine.values(frame[column])
    if values.shape[0] and not bool(valid.all()):
        raise InvalidInputError(
            f"time column {column!r} has {int((~valid).sum())} nulls", "drop those rows"
        )
    if values.shape[0] and values.dtype == engine.xp.uint64 and int(values.max()) > INT64_MAX:
        raise InvalidInputError(f"times in {column!r} do not fit int64", "cast the column to int64")
    return values.astype(engine.xp.int64, copy=False)


def arrow_times(column: pa.ChunkedArray) -> HostArray:
    """Return an Arrow column's times as ``frame_times`` does."""
    if pa.types.is_date32(column.type):
        days: HostArray = column.cast(pa.int32()).to_numpy().astype(np.int64)
        return days * MICROSECONDS_PER_DAY
    return np.asarray(pc.cast(column, pa.int64()).to_numpy(), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class CommonUnit:
    """The finest of the units of columns of two tables that say when.

    Parameters
    ----------
    unit : str, optional
        None for integer times.
    left_factor, right_factor : int
        How many of its steps one step of each table's time is.
    available_factor : int
        The same of the column that says when the right table's rows became known.
    """

    unit: str | None
    left_factor: int
    right_factor: int
    available_factor: int = 1

    @classmethod
    def of(
        cls,
        left: TableSchema,
        right: TableSchema,
        right_name: str,
        available: str | None = None,
        *,
        timed: bool = True,
    ) -> CommonUnit:
        """Return the common unit of two tables' time columns.

        Parameters
        ----------
        left, right : TableSchema
        right_name : str
        available : str, optional
            A column of the right table that says when its rows became known.
        timed : bool
            Whether the right table's own time counts.

        Raises
        ------
        DefinitionError
            If one is an integer and another is not, only one has a time zone, or one does not say when.
        """
        if left.time is None or (timed and right.time is None):
            raise DefinitionError(
                f"an as-of join needs a time column in both tables; {right_name!r} has "
                f"{right.time!r}, this table has {left.time!r}",
                "ingest both with time=, or use Lookup for a table without time",
            )
        types = [left[left.time].type]
        for name in (right.time if timed else None, available):
            if name is not None:
                types.append(right[name].type)
                shown = (
                    f"columns {left.time!r} ({types[0]}) and {right_name}.{name!r} ({types[-1]})"
                )
                _check_comparable(types[0], types[-1], f"time {shown}")
        factors = common_factors(types)
        units = [unit for unit, one in zip(map(time_unit, types), factors, strict=True) if one == 1]
        right_factor = factors[1] if timed else 1
        return cls(units[0], factors[0], right_factor, factors[-1] if available is not None else 1)


def common_factors(types: Sequence[pa.DataType]) -> list[int]:
    """Return how many steps of the finest of some types' units one step of each type is.

    Examples
    --------
    >>> common_factors([pa.timestamp("s"), pa.timestamp("ms")])
    [1000, 1]
    """
    steps = [PER_SECOND[unit] if unit is not None else 1 for unit in map(time_unit, types)]
    return [max(steps) // one for one in steps]


def _check_comparable(one: pa.DataType, other: pa.DataType, shown: str) -> None:
    if not is_time_type(other):
        raise DefinitionError(
            f"{shown} cannot be compared: the second does not say when",
            "name a timestamp, date or integer column",
        )
    if (time_unit(one) is None) != (time_unit(other) is None):
        raise DefinitionError(
            f"{shown} cannot be compared: only one is an integer",
            "ingest both as timestamps or both as integers",
        )
    if (getattr(one, "tz", None) is None) != (getattr(other, "tz", None) is None):
        raise DefinitionError(
            f"{shown} cannot be compared: only one has a time zone",
            "give the other its time zone before ingest",
        )


def span_of(value: Span, what: str, least: int, kind: str = "Rolling") -> Duration | int:
    """Return a length of time or a number of rows that a transformer of a kind was given.

    Raises
    ------
    DefinitionError
        If it is neither, or less than ``least``.
    """
    if isinstance(value, int):
        if isinstance(value, bool) or value < least:
            raise DefinitionError(f"{kind} has {what}={value!r}", f"use {least} rows or more")
        return value
    try:
        span = Duration.parse(value)
    except InvalidInputError as error:
        raise DefinitionError(
            f"{kind} has {what}={value!r}: {error.problem}", error.remedy
        ) from error
    if span.nanoseconds < least:
        raise DefinitionError(f"{kind} has {what}={value!r}", "give a positive length of time")
    return span
