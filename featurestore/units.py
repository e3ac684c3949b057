"""Bytes and durations: parsed from what people type, printed as people read them.

Durations are exact integers of nanoseconds. Calendar units (months, years) have no fixed length and
are refused.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from featurestore.arguments import as_whole, shown
from featurestore.errors import InvalidInputError

_BYTE_FACTORS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
}  # fmt: skip
_BYTES: Final = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-zA-Z]*)\s*")

_BYTES_REMEDY: Final = "write it like '512MiB' or '2GB', or as a whole number of bytes"

_NANOSECONDS: Final = {
    "ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9,
    "m": 60 * 10**9, "min": 60 * 10**9, "h": 3600 * 10**9,
    "d": 86400 * 10**9, "w": 7 * 86400 * 10**9,
}  # fmt: skip
_DURATION_PART: Final = re.compile(r"(\d{1,30})\s*(ns|us|ms|min|[smhdw])")


def parse_bytes(value: int | float | str) -> int:
    """Return a number of bytes from ``"2GiB"``, ``"512 MB"`` or an integer.

    Raises
    ------
    InvalidInputError
        If it is no whole number of bytes, or not positive, or the text has an unknown unit.

    Examples
    --------
    >>> parse_bytes("2GiB")
    2147483648
    >>> parse_bytes("1.5 kB")
    1500
    """
    if isinstance(value, str):
        match = _BYTES.fullmatch(value)
        factor = _BYTE_FACTORS.get(match[2].lower()) if match else None
        size = int(Fraction(match[1]) * factor) if match and factor else None
    elif isinstance(value, float):
        size = int(value) if value.is_integer() else None  # such as 2e9
    else:
        size = as_whole(value)
    if size is None:
        raise InvalidInputError(f"{shown(value)} is not a number of bytes", _BYTES_REMEDY)
    if size <= 0:
        raise InvalidInputError(
            f"a number of bytes must be positive, not {shown(value)}", _BYTES_REMEDY
        )
    return size


def format_bytes(count: float) -> str:
    """Return ``count`` bytes as people read it.

    Examples
    --------
    >>> format_bytes(134217728)
    '128.0 MiB'
    >>> format_bytes(12)
    '12 B'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A fixed length of time.

    Parameters
    ----------
    nanoseconds : int
        Not negative.

    Examples
    --------
    >>> Duration.parse("1d12h")
    Duration('1d12h')
    >>> Duration.parse("90m") > Duration.parse("1h")
    True
    """

    nanoseconds: int

    def __post_init__(self) -> None:
        if self.nanoseconds < 0:
            raise InvalidInputError(
                f"a duration must not be negative, not {self.nanoseconds} ns",
                "give 0s or more",
            )

    @classmethod
    def parse(cls, value: str | dt.timedelta | Duration) -> Duration:
        """Read ``"7d"``, ``"1h30m"``, ``"0s"`` or a ``datetime.timedelta``.

        Raises
        ------
        InvalidInputError
            For anything else, calendar units included.
        """
        if isinstance(value, Duration):
            return value
        if isinstance(value, dt.timedelta):
            microseconds = value // dt.timedelta(microseconds=1)
            return cls(microseconds * 1000)
        text = value.strip() if isinstance(value, str) else ""
        parts = _DURATION_PART.findall(text)
        if not parts or _DURATION_PART.sub("", text).strip():
            raise InvalidInputError(
                f"{shown(value)} is not a duration",
                "write it like '7d', '1h30m' or '250ms' (units ns us ms s m h d w; months and "
                "years have no fixed length)",
            )
        return cls(sum(int(number) * _NANOSECONDS[unit] for number, unit in parts))

    def in_unit(self, unit: str) -> int:
        """Return the duration as an exact number of ``unit`` (``"ns"``, ``"us"``, ``"ms"``, ``"s"``).

        Raises
        ------
        InvalidInputError
            If it is not a whole number of them.
        """
        whole, rest = divmod(self.nanoseconds, _NANOSECONDS[unit])
        if rest:
            raise InvalidInputError(
                f"{self} is not a whole number of {unit}, the resolution of the time column",
                f"use a multiple of 1{unit}",
            )
        return whole

    def __str__(self) -> str:
        if self.nanoseconds == 0:
            return "0s"
        rest, text = self.nanoseconds, ""
        for unit in ("d", "h", "m", "s", "ms", "us", "ns"):
            count, rest = divmod(rest, _NANOSECONDS[unit])
            text += f"{count}{unit}" if count else ""
        return text

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"
