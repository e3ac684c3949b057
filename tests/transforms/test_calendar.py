"""Calendar: parts against pandas, daylight saving, leap years, cycles."""

# ruff: noqa: DTZ001 - naive timestamps are among the inputs
from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing.partitions import cut_table, schema_of, values_of
from featurestore.transforms.base import transformer_from_spec
from featurestore.transforms.calendar import PARTS, Calendar
from featurestore.transforms.extent import Extent

DATE_PARTS = tuple(part for part in PARTS if part not in ("hour", "minute", "second"))


def oracle(at: pd.Series, part: str) -> list[object]:
    if part == "week":
        return list(at.dt.isocalendar().week)
    if part == "is_weekend":
        return list(at.dt.day_of_week >= 5)
    names = {"weekday": "day_of_week", "dayofyear": "day_of_year"}
    return list(getattr(at.dt, names.get(part, part)))


moments = st.datetimes(dt.datetime(1890, 1, 1), dt.datetime(2099, 12, 30))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(moments, min_size=1, max_size=20),
    st.sampled_from(["ms", "us", "ns"]),
    st.sampled_from([None, "UTC", "America/New_York", "Asia/Kolkata", "Pacific/Apia"]),
    st.lists(st.integers(0, 20), max_size=2),
)
def test_every_part_equals_pandas(
    values: list[dt.datetime], unit: str, zone: str | None, cuts: list[int]
) -> None:
    column = pa.array(values, pa.timestamp("us")).cast(pa.timestamp(unit), safe=False)
    table = pa.table({"at": column})
    out = values_of(Calendar("at", parts=PARTS, timezone=zone), cut_table(table, cuts))
    at = pd.Series(column.to_pandas())
    at = at if zone is None else at.dt.tz_localize("UTC").dt.tz_convert(zone)
    for part in PARTS:
        assert out[f"at_{part}"].to_pylist() == oracle(at, part), part


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.one_of(st.none(), st.dates(dt.date(1800, 1, 1), dt.date(2400, 1, 1))), max_size=9)
)
def test_every_part_of_a_date_equals_the_standard_library(values: list[dt.date | None]) -> None:
    table = pa.table({"day": pa.array(values, pa.date32())})
    out = values_of(Calendar("day", parts=DATE_PARTS), cut_table(table))
    for i, day in enumerate(values):
        row = {part: out[f"day_{part}"][i].as_py() for part in DATE_PARTS}
        if day is None:
            assert set(row.values()) == {None}
            continue
        tomorrow = day + dt.timedelta(days=1)
        assert row == {
            "year": day.year, "quarter": (day.month + 2) // 3, "month": day.month,
            "week": day.isocalendar().week, "day": day.day, "weekday": day.weekday(),
            "dayofyear": day.timetuple().tm_yday, "is_weekend": day.weekday() > 4,
            "is_month_start": day.day == 1, "is_month_end": tomorrow.day == 1,
            "is_quarter_end": tomorrow.day == 1 and tomorrow.month % 3 == 1,
            "is_year_end": (day.month, day.day) == (12, 31),
        }  # fmt: skip


def test_daylight_saving() -> None:
    # New York: on 10 March 2013 at 07:00 UTC clocks went from 2 to 3; on 3 November back at 06:00.
    utc = ["2013-03-10T06:59", "2013-03-10T07:00", "2013-11-03T05:59", "2013-11-03T06:00"]
    for zone in (None, "UTC"):
        column = pa.array([dt.datetime.fromisoformat(one) for one in utc], pa.timestamp("us", zone))
        calendar = Calendar(column="at", parts=("hour",), timezone="America/New_York")
        out = values_of(calendar, cut_table(pa.table({"at": column})))
        assert out["at_hour"].to_pylist() == [1, 3, 1, 1]


def test_a_column_with_a_zone_uses_its_own_clock() -> None:
    column = pa.array(
        [dt.datetime(2020, 1, 1, 23, tzinfo=dt.UTC)], pa.timestamp("us", "Asia/Tokyo")
    )
    out = values_of(Calendar("at", parts=("hour", "day")), cut_table(pa.table({"at": column})))
    assert out.to_pylist() == [{"at_hour": 8, "at_day": 2}]


def test_cyclical() -> None:
    hours = pa.array([dt.datetime(2020, 1, 1, hour) for hour in range(24)], pa.timestamp("us"))
    out = values_of(
        Calendar("at", parts=("hour",), cyclical=True), cut_table(pa.table({"at": hours}))
    )
    assert out.schema.names == ["at_hour_sin", "at_hour_cos"]
    angle = np.arange(24) * 2 * math.pi / 24
    np.testing.assert_allclose(out["at_hour_sin"].to_numpy(), np.sin(angle), atol=1e-6)
    np.testing.assert_allclose(out["at_hour_cos"].to_numpy(), np.cos(angle), atol=1e-6)


def test_names_and_default_column() -> None:
    schema = TableSchema((Field("at", pa.timestamp("us")),), time="at")
    assert Calendar().inputs(schema) == ("at",)
    assert [one.name for one in Calendar().outputs(schema)] == ["at_month", "at_weekday", "at_hour"]
    named = Calendar(parts="day", prefix="dep.")  # type: ignore[arg-type]
    assert [one.name for one in named.outputs(schema)] == ["dep.day"]


def test_what_is_refused() -> None:
    days = TableSchema((Field("day", pa.date32()), Field("n", pa.int64())), time="day")
    with pytest.raises(DefinitionError, match="no \\['hour'\\]"):
        Calendar(parts=("hour", "day")).inputs(days)
    with pytest.raises(DefinitionError, match="no time zone"):
        Calendar(parts=("day",), timezone="UTC").inputs(days)
    with pytest.raises(SchemaError, match="int64"):
        Calendar("n", parts=("day",)).inputs(days)
    with pytest.raises(DefinitionError, match="no time column"):
        Calendar().inputs(TableSchema((Field("n", pa.int64()),)))
    with pytest.raises(DefinitionError, match="no cycle"):
        Calendar(parts=("year",), cyclical=True)
    for parts in (("fortnight",), (), ("day", "day")):
        with pytest.raises(DefinitionError, match="distinct known"):
            Calendar(parts=parts)
    for zone in ("Mars/Olympus", "../../etc/passwd", ""):
        with pytest.raises(DefinitionError, match="time zone"):
            Calendar(timezone=zone)


def test_empty_partition_and_spec() -> None:
    calendar = Calendar("at", parts=PARTS[:3], timezone="UTC")
    table = pa.table({"at": pa.array([], pa.timestamp("us"))})
    assert values_of(calendar, cut_table(table)).num_rows == 0
    assert transformer_from_spec(calendar.spec()) == calendar
    assert calendar.memory(schema_of(table), Extent(100, {"": 800})) >= 800
