"""Event times as exact integers, and back.

Inside, a time is an ``int``: steps of the time column's unit since 1970 (UTC for zoned columns; see
``schema.time_unit``). Boundaries that people write are turned into steps exactly or refused.
"""

from __future__ import annotations

import datetime as dt
import re
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from featurestore.arguments import as_whole, shown
from featurestore.errors import InvalidInputError
from featurestore.schema import time_unit

TimeLike: TypeAlias = "str | int | dt.date | dt.datetime | np.datetime64"

_STEPS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FRACTION: Final = re.compile(
    r"(?P<time>.+[^\d:](?:\d\d:\d\d:\d\d|\d{6}))[.,](?P<digits>[0-9]{1,50})(?P<offset>(?:[Zz+-].*)?)"
)
_NUMPY_SECONDS: Final = {
    "W": Fraction(604_800), "D": Fraction(86_400), "h": Fraction(3600), "m": Fraction(60),
    **{unit: Fraction(1, 1000**n) for n, unit in enumerate(("s", "ms", "us", "ns", "ps", "fs", "as"))},
}  # fmt: skip


def to_steps(value: TimeLike, type_: pa.DataType, column: str) -> int:
    """Return a boundary in steps of a time column.

    Parameters
    ----------
    value : str, int, date, datetime or numpy.datetime64
        ISO 8601 text with as many digits as the column counts, a date (midnight), or a time of
        Python, pandas or NumPy; integers only for integer time columns.
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
        if (whole := as_whole(value)) is not None:
            return whole
        raise InvalidInputError(
            f"{shown(value)} is not a time of integer column {column!r}", "give an integer"
        )
    seconds, has_offset = _seconds(value, column)
    zone = getattr(type_, "tz", None)
    if zone is None and has_offset:
        raise InvalidInputError(
            f"{value!r} has a time zone and column {column!r} has none", "leave the offset out"
        )
    if zone is not None and not has_offset and zone != "UTC":
        raise InvalidInputError(
            f"{value!r} has no time zone and column {column!r} is in {zone}",
            "write the offset, like '2024-01-01T00:00:00+01:00'",
        )
    steps = seconds * _STEPS_PER_SECOND[unit]
    if steps.denominator != 1:
        raise InvalidInputError(
            f"{value!r} is finer than column {column!r}, which counts {unit}", "round it"
        )
    return int(steps)


def _seconds(value: TimeLike, column: str) -> tuple[Fraction, bool]:
    """Return exact seconds since 1970, in UTC if there is no offset, and whether there is one."""
    if isinstance(value, np.datetime64) and not np.isnat(value):
        return _numpy_seconds(value), False
    found = _parse(value)
    if found is None:
        raise InvalidInputError(
            f"{shown(value)} is not a time for column {column!r}",
            "write it like '2013-10-01T06:00:00'",
        )
    moment, finer = found
    has_offset = moment.tzinfo is not None
    moment = moment if has_offset else moment.replace(tzinfo=dt.UTC)
    micros = (moment - _EPOCH) // dt.timedelta(microseconds=1)
    return Fraction(micros, 10**6) + finer, has_offset


def is_time(value: dt.date) -> bool:
    """Whether it is a time, and not the NaT of pandas, which says it is a datetime."""
    return isinstance(value.year, int)


def _parse(value: TimeLike) -> tuple[dt.datetime, Fraction] | None:
    """Return a time and the seconds below its microseconds; None if it is no time."""
    if isinstance(value, dt.date) and not is_time(value):
        return None
    if isinstance(value, dt.datetime):
        # Of pandas, whose time is a datetime that also counts nanoseconds.
        return value, Fraction(getattr(value, "nanosecond", 0), 10**9)
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day), Fraction()  # noqa: DTZ001 - zoned by the caller
    if not isinstance(value, str):
        return None
    # The library cuts fractions after six digits, so they are read here.
    whole, digits = value, "0"
    if match := _FRACTION.fullmatch(value):
        whole, digits = match["time"] + match["offset"], match["digits"]
    try:
        if "." not in whole and "," not in whole:
            return dt.datetime.fromisoformat(whole), Fraction(int(digits), 10 ** len(digits))
    except ValueError:
        pass  # the caller says what was expected
    return None


def _numpy_seconds(value: np.datetime64) -> Fraction:
    unit, count = np.datetime_data(value.dtype)
    if unit in ("Y", "M"):  # of no fixed length; their beginnings are days
        value, unit, count = value.astype("datetime64[D]"), "D", 1
    return int(value.astype(np.int64)) * count * _NUMPY_SECONDS[unit]


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
    micros, nanos = divmod(rest * 10**9 // _STEPS_PER_SECOND[unit], 1000)
    try:
        moment = _EPOCH + dt.timedelta(seconds=seconds, microseconds=micros)
    except OverflowError:
        return f"{steps} {unit} since 1970"
    if pa.types.is_date32(type_):
        return moment.date().isoformat()
    offset = "+00:00" if getattr(type_, "tz", None) else ""
    moment = moment.replace(tzinfo=None)
    if nanos:
        return f"{moment.isoformat(timespec='microseconds')}{nanos:03d}{offset}"
    return f"{moment.isoformat()}{offset}"
