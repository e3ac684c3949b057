"""Event times as integers: read from frames and Arrow columns, and compared across tables.

Always true: two times are compared exactly, in the finer of their units; a conversion that does not
fit 64 bits is an error and never wraps.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.arrow import MICROSECONDS_PER_DAY, HostArray
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError, InvalidInputError
from featurestore.schema import TableSchema, time_unit
from featurestore.units import Duration

PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_INT64_MAX: Final = 2**63 - 1
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
    if values.shape[0] and values.dtype == engine.xp.uint64 and int(values.max()) > _INT64_MAX:
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
    """The finer of two time columns' units.

    Parameters
    ----------
    unit : str, optional
        None for integer times.
    left_factor, right_factor : int
        How many of its steps one step of each column is.
    """

    unit: str | None
    left_factor: int
    right_factor: int

    @classmethod
    def of(cls, left: TableSchema, right: TableSchema, right_name: str) -> CommonUnit:
        """Return the common unit of two tables' time columns.

        Raises
        ------
        DefinitionError
            If one is an integer and the other is not, or only one has a time zone.
        """
        if left.time is None or right.time is None:
            raise DefinitionError(
                f"an as-of join needs a time column in both tables; {right_name!r} has "
                f"{right.time!r}, this table has {left.time!r}",
                "ingest both with time=, or use Lookup for a table without time",
            )
        one, other = left[left.time].type, right[right.time].type
        shown = f"time columns {left.time!r} ({one}) and {right_name}.{right.time!r} ({other})"
        units = time_unit(one), time_unit(other)
        if (units[0] is None) != (units[1] is None):
            raise DefinitionError(
                f"{shown} cannot be compared: only one is an integer",
                "ingest both as timestamps or both as integers",
            )
        zones = [getattr(type_, "tz", None) for type_ in (one, other)]
        if (zones[0] is None) != (zones[1] is None):
            raise DefinitionError(
                f"{shown} cannot be compared: only one has a time zone",
                "give the other its time zone before ingest",
            )
        if units[0] is None or units[1] is None:
            return cls(None, 1, 1)
        finer = max(units[0], units[1], key=PER_SECOND.__getitem__)
        factors = [PER_SECOND[finer] // PER_SECOND[unit] for unit in (units[0], units[1])]
        return cls(finer, *factors)


def span_of(value: Span, what: str, least: int) -> Duration | int:
    """Return a length of time or a number of rows that ``Rolling`` was given.

    Raises
    ------
    DefinitionError
        If it is neither, or less than ``least``.
    """
    if isinstance(value, int):
        if isinstance(value, bool) or value < least:
            raise DefinitionError(f"Rolling has {what}={value!r}", f"use {least} rows or more")
        return value
    try:
        span = Duration.parse(value)
    except InvalidInputError as error:
        raise DefinitionError(
            f"Rolling has {what}={value!r}: {error.problem}", error.remedy
        ) from error
    if span.nanoseconds < least:
        raise DefinitionError(f"Rolling has {what}={value!r}", "give a positive length of time")
    return span
