"""Boundaries in time: exact in the steps of a column, or refused; read back as they were written."""

# ruff: noqa: DTZ001 - naive times are among the inputs
from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import DefinitionError, InvalidInputError
from featurestore.times import from_steps, to_steps

DAY = 86_400
UNITS = {"ms": 3, "us": 6, "ns": 9}


@pytest.mark.parametrize(
    ("value", "unit", "steps"),
    [
        ("1970-01-02", "ms", DAY * 10**3),
        ("1970-01-01T00:00:00.5", "ms", 500),
        ("1970-01-01 00:00:00,25", "ms", 250),
        ("19700101T000001.5", "ms", 1500),
        ("1970-01-01T00:00:00.1230000000", "ms", 123),
        ("1970-01-01T00:00:00.123456789", "ns", 123_456_789),
        ("1970-01-01T00:00:00.000000001000", "ns", 1),
        ("1969-12-31T23:59:59.999999999", "ns", -1),
        (pd.Timestamp("1970-01-01T00:00:00.000000007"), "ns", 7),
        (dt.datetime(1970, 1, 1, 0, 0, 0, 7), "ns", 7000),
        (np.datetime64("1970-01-01T00:00:00.000000007"), "ns", 7),
        (np.datetime64(-1, "ns"), "ns", -1),
        (np.datetime64("1970-02"), "ms", 31 * DAY * 10**3),
        (np.datetime64("1971"), "ms", 365 * DAY * 10**3),
        (np.datetime64(3, ("s", 25)), "ms", 75_000),
        (np.datetime64(2_000_000, "ps"), "us", 2),
    ],
    ids=str,
)
def test_steps_are_exact(value: Any, unit: str, steps: int) -> None:
    assert to_steps(value, pa.timestamp(unit), "t") == steps


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("1970-01-01T00:00:00.0001", "ms"),
        ("1970-01-01T00:00:00.0000001", "us"),
        ("1970-01-01T00:00:00.0000000001", "ns"),
        (pd.Timestamp("1970-01-01T00:00:00.000000007"), "us"),
        (np.datetime64(1, "us"), "ms"),
        (np.datetime64(1, "as"), "ns"),
        (dt.datetime(1970, 1, 1, 0, 0, 0, 7), "ms"),
    ],
    ids=str,
)
def test_what_lies_between_two_steps_is_refused(value: Any, unit: str) -> None:
    with pytest.raises(InvalidInputError, match="is finer than column 't'"):
        to_steps(value, pa.timestamp(unit), "t")


@pytest.mark.parametrize(
    "value",
    [
        3, 3.5, None, True, b"1970-01-01", [1], "soon", "1970-01-01.5", "1970-01-01T00:00.5", "",
        "1970-01-01T00:00:00.", "1970-01-01T00:00:00.5.5", "1970-01-01,12", "19700101,120000",
        "1970-01-01T00:00:00." + "1" * 5000, pd.NaT, np.datetime64("NaT"), np.int64(3),
    ],
    ids=lambda one: repr(one)[:40],
)  # fmt: skip
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="is not a time for column 't'"):
        to_steps(value, pa.timestamp("ns"), "t")


def test_offsets() -> None:
    utc, paris = pa.timestamp("ns", "UTC"), pa.timestamp("ns", "Europe/Paris")
    text = "1970-01-01T01:00:00.000000001"
    assert to_steps(f"{text}+01:00", utc, "t") == to_steps(f"{text}+01:00", paris, "t") == 1
    assert to_steps(f"{text}-01:00", utc, "t") == 7200 * 10**9 + 1
    assert to_steps(f"{text}Z", utc, "t") == to_steps(text, utc, "t") == 3600 * 10**9 + 1
    assert to_steps(pd.Timestamp(f"{text}+01:00"), paris, "t") == 1
    for value in (text, np.datetime64(text)):
        with pytest.raises(InvalidInputError, match="has no time zone"):
            to_steps(value, paris, "t")
    with pytest.raises(InvalidInputError, match="has a time zone"):
        to_steps(f"{text}Z", pa.timestamp("ns"), "t")


@given(
    st.sampled_from(sorted(UNITS)), st.integers(-(10**9), 10**10), st.data(), st.sampled_from(["", "UTC"])
)  # fmt: skip
def test_texts_read_back(unit: str, seconds: int, data: st.DataObject, zone: str) -> None:
    scale = 10 ** UNITS[unit]
    steps = seconds * scale + data.draw(st.integers(0, scale - 1))
    type_ = pa.timestamp(unit, zone or None)
    assert to_steps(from_steps(steps, type_), type_, "t") == steps


def test_integers() -> None:
    plain: list[Any] = [3, np.int64(3), np.uint8(3)]
    for value in plain:
        steps = to_steps(value, pa.int32(), "t")
        assert (steps, type(steps)) == (3, int)
    for wrong in ("3", 3.0, True, np.float64(3), np.datetime64(3, "s"), None):
        with pytest.raises(InvalidInputError, match="give an integer"):
            to_steps(wrong, pa.int32(), "t")  # type: ignore[arg-type]


def test_ranges_take_numbers_and_times_of_numpy_and_pandas() -> None:
    store = fs.FeatureStore.create("memory://times-of-numpy", workers=1)
    rows = pl.DataFrame({"t": [1, 2, 3, 4], "x": [1.0, 2.0, 3.0, 4.0]})
    days = store.ingest("days", rows, time="t")
    days.replace(rows[1:2].with_columns(x=9.0), (np.int64(2), np.int32(3)))
    assert days.read("x")["x"].to_list() == [1.0, 9.0, 3.0, 4.0]
    days.add(fs.Standardize("x", prefix="z_"), fit_on=(np.int64(1), np.int64(3)))
    assert days.dataset("x", split=fs.TimeSplit(valid=np.int64(3))).train.rows == 2  # type: ignore[arg-type]

    at = [dt.datetime(2020, 1, day) for day in (1, 2, 3, 4)]
    exact = pl.DataFrame({"t": pl.Series(at, dtype=pl.Datetime("ns")), "x": rows["x"]})
    exact = exact.with_columns(t=pl.col("t") + pl.duration(nanoseconds=7))
    times = store.ingest("times", exact, time="t")
    span = (np.datetime64("2020-01-02T00:00:00.000000007"), pd.Timestamp("2020-01-03"))
    assert times.replace(exact[:0], span).removed == 1
    split = fs.TimeSplit(valid=np.datetime64("2020-01-04", "ns"))
    assert split == fs.TimeSplit(valid="2020-01-04")
    assert times.dataset("x", split=split).train.rows == 2
    for wrong in (np.datetime64(1, "ns"), np.datetime64("NaT"), pd.NaT):
        with pytest.raises(DefinitionError, match="is not a boundary"):
            fs.TimeSplit(valid=wrong)
