"""Axes: from seconds and bytes to pixels, and the round figures that are written beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_STEPS: Final = (1, 2, 5, 10)
_TIME_UNITS: Final = ((1, "seconds"), (60, "minutes"), (3600, "hours"), (86400, "days"))
_BYTE_UNITS: Final = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB"))
# The largest unit is taken of which the axis has more than this many.
_MANY: Final = 2


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map of ``0..top`` to pixels ``start..stop``; values outside are clipped."""

    top: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = min(1.0, max(0.0, value / self.top)) if self.top > 0 else 0.0
        return self.start + share * (self.stop - self.start)


@dataclass(frozen=True, slots=True)
class Ticks:
    """Where an axis has figures: values, how they are written, and their unit."""

    values: tuple[float, ...]
    labels: tuple[str, ...]
    unit: str


def time_ticks(top: float, count: int) -> Ticks:
    """Return about ``count`` round times from 0 to ``top`` seconds.

    Examples
    --------
    >>> time_ticks(11.0, 6)
    Ticks(values=(0.0, 2.0, 4.0, 6.0, 8.0, 10.0), labels=('0', '2', '4', '6', '8', '10'), unit='seconds')
    """
    return _ticks(top, count, _TIME_UNITS)


def byte_ticks(top: float, count: int) -> Ticks:
    """Return about ``count`` round sizes from 0 to ``top`` bytes."""
    return _ticks(top, count, _BYTE_UNITS)


def _ticks(top: float, count: int, units: tuple[tuple[int, str], ...]) -> Ticks:
    factor, unit = max((one for one in units if top > _MANY * one[0]), default=units[0])
    rough = top / factor / count
    if not rough > 0:
        return Ticks((0.0,), ("0",), unit)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in _STEPS if one * power >= rough * 0.999)
    steps = range(int(top / factor / step + 1e-9) + 1)
    digits = max(0, -math.floor(math.log10(step)))
    return Ticks(
        tuple(one * step * factor for one in steps),
        tuple(f"{one * step:,.{digits}f}" if one else "0" for one in steps),
        unit,
    )
