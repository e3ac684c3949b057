"""Event times as exact integers, and back.

Inside, a time is an ``int``: steps of the time column's unit since 1970 (UTC for zoned columns; see
``schema.time_unit``). Boundaries that people write are turned into steps exactly or refused.
"""

from __future__ import annotations

import datetime as dt
from typing import TypeAlias

import pyarrow as pa

from featurestore.errors import InvalidInputError
from featurestore.schema import time_unit

TimeLike: TypeAlias = "str | int | dt.date | dt.datetime"

_STEPS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def to_steps(value: TimeLike, type_: pa.DataType, column: str) -> int:
    """Return a boundary in steps of a time column.

    Parameters
    ----------
    value : str, int, date or datetime
        ISO 8601 text, a date (midnight) or a datetime; integers only for integer time columns.
        For a zoned column it must carry an offset unless the column is UTC; for a naive column it
        must not.
    type_ : pyarrow.DataType
    column : str
        For messages.

    Raises
    ------
    InvalidInputError
        If it does not fit the column's type, or lies between two steps.

    Examples
    --------
    >>> to_steps("1970-01-02", pa.timestamp("ms"), "t")
    86400000
    """
    unit = time_unit(type_)
    if unit is None:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise InvalidInputError(
            f"{value!r} is not a time of integer column {column!r}", "give an integer"
        )
    moment = _parse(value, column)
    zone = getattr(type_, "tz", None)
    if zone is None and moment.tzinfo is not None:
        raise InvalidInputError(
            f"{value!r} has a time zone and column {column!r} has none", "leave the offset out"
        )
    if zone is not None and moment.tzinfo is None and zone != "UTC":
        raise InvalidInputError(
            f"{value!r} has no time zone and column {column!r} is in {zone}",
            "write the offset, like '2024-01-01T00:00:00+01:00'",
        )
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    micros = (moment - _EPOCH) // dt.timedelta(microseconds=1)
    whole, rest = divmod(micros * _STEPS_PER_SECOND[unit], 10**6)
    if rest:
        raise InvalidInputError(
            f"{value!r} is finer than column {column!r}, which counts {unit}", "round it"
        )
    return whole


def _parse(value: TimeLike, column: str) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001 - zoned by the caller
    try:
        if isinstance(value, str):
            return dt.datetime.fromisoformat(value)
    except ValueError:
        pass  # the message below says what was expected
    raise InvalidInputError(
        f"{value!r} is not a time for column {column!r}", "write it like '2013-10-01T06:00:00'"
    )


def from_steps(steps: int, type_: pa.DataType) -> str:
    """Return a time as people read it: ISO 8601, in UTC for zoned columns.

    Examples
    --------
    >>> from_steps(86400000, pa.timestamp("ms"))
    '1970-01-02T00:00:00'
    >>> from_steps(12, pa.int64())
    '12'
    """
    unit = time_unit(type_)
    if unit is None:
        return str(steps)
    seconds, rest = divmod(steps, _STEPS_PER_SECOND[unit])
    micros = rest * 10**6 // _STEPS_PER_SECOND[unit]
    try:
        moment = _EPOCH + dt.timedelta(seconds=seconds, microseconds=micros)
    except OverflowError:
        return f"{steps} {unit} since 1970"
    if pa.types.is_date32(type_):
        return moment.date().isoformat()
    return (
        moment.isoformat()
        if getattr(type_, "tz", None)
        else moment.replace(tzinfo=None).isoformat()
    )
