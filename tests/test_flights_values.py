"""Every as-of and rolling value of the real flights equals an independent brute-force computation.

For five partition sizes, and whether the rows arrive at once or in ten appends; between those the
values must be equal to the last bit.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import featurestore as fs
from training.flights import flights, weather

HOUR = 3_600_000_000
DAY = 24 * HOUR
COLUMNS = [
    "dep_delay_mean_7d",
    "dep_delay_std_7d",
    "dep_delay_max_7d",
    "temp",
    "wind_speed",
    "visib",
]


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    frame = pl.from_arrow(flights())
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("sched_dep", "carrier", "flight")


@pytest.fixture(scope="module")
def hours() -> pl.DataFrame:
    frame = pl.from_arrow(weather())
    assert isinstance(frame, pl.DataFrame)
    return frame


@pytest.fixture(scope="module")
def expected(rows: pl.DataFrame, hours: pl.DataFrame) -> dict[str, np.ndarray]:
    return rolling_by_hand(rows) | as_of_by_hand(rows, hours)


def rolling_by_hand(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    """Mean, deviation and maximum of dep_delay per carrier over [t - 8d, t - 1d), one by one."""
    times = rows["sched_dep"].to_physical().to_numpy()
    delays = rows["dep_delay"].to_numpy()  # nulls become NaN, the data has none of its own
    carriers = rows["carrier"].to_numpy()
    out = {name: np.full(len(rows), np.nan) for name in COLUMNS[:3]}
    for carrier in np.unique(carriers):
        at = np.flatnonzero(carriers == carrier)
        t, x = times[at], delays[at].astype(np.float64)
        starts = np.searchsorted(t, t - 8 * DAY, "left")
        stops = np.searchsorted(t, t - DAY, "left")
        for row, start, stop in zip(at, starts, stops, strict=True):
            window = x[start:stop]
            window = window[~np.isnan(window)]
            if len(window):
                out[COLUMNS[0]][row] = window.mean()
                out[COLUMNS[2]][row] = window.max()
            if len(window) > 1:
                out[COLUMNS[1]][row] = window.std(ddof=1)
    return out


def as_of_by_hand(rows: pl.DataFrame, hours: pl.DataFrame) -> dict[str, np.ndarray]:
    """The newest weather not younger than two hours and not older than three, per airport."""
    out = {name: np.full(len(rows), np.nan, np.float32) for name in COLUMNS[3:]}
    known: dict[str, tuple[list[int], list[tuple[float | None, ...]]]] = {}
    physical = hours.with_columns(pl.col("time_hour").to_physical()).sort("time_hour")
    for origin, moment, *values in physical.select("origin", "time_hour", *COLUMNS[3:]).iter_rows():
        times, found = known.setdefault(origin, ([], []))
        times.append(moment)
        found.append(tuple(values))
    moments = rows["sched_dep"].to_physical().to_list()
    for row, (origin, moment) in enumerate(zip(rows["origin"].to_list(), moments, strict=True)):
        times, found = known[origin]
        at = bisect_right(times, moment - 2 * HOUR) - 1
        if at >= 0 and moment - times[at] <= 3 * HOUR:
            for name, value in zip(COLUMNS[3:], found[at], strict=True):
                out[name][row] = np.nan if value is None else value
    return out


def build(path: Path, pieces: list[pl.DataFrame], hours: pl.DataFrame, size: str) -> fs.Table:
    store = fs.FeatureStore.create(path)
    sky = store.ingest("weather", hours, key="origin", time="time_hour", partition_bytes="256KiB")
    table = store.ingest(
        "flights", pieces[0], key=["carrier", "flight"], time="sched_dep", partition_bytes=size
    )
    table.add(
        fs.Rolling(
            "dep_delay",
            by="carrier",
            window="7d",
            stats=["mean", "std", "max"],
            closed="left",
            lag="1d",
        ),
        fs.AsOfJoin(sky, columns=COLUMNS[3:], by={"origin": "origin"}, lag="2h", max_age="3h"),
    )
    for piece in pieces[1:]:
        table.append(piece)
        table.build()
    return table


def in_ten(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """Cut the rows into ten appends, never inside a timestamp."""
    times = rows["sched_dep"].to_physical().to_numpy()
    allowed = np.flatnonzero(times[1:] != times[:-1]) + 1
    cuts = [allowed[len(allowed) * n // 10] for n in range(1, 10)]
    edges = [0, *(int(one) for one in cuts), len(rows)]
    return [rows[a:b] for a, b in pairwise(edges)]


SEEN: dict[str, pl.DataFrame] = {}


@pytest.mark.parametrize(
    ("size", "appends"),
    [
        ("256MiB", False),
        ("8MiB", False),
        ("3MiB", False),
        ("1MiB", False),
        ("300KiB", False),
        ("2MiB", True),
    ],
)
def test_values_equal_brute_force_for_every_partitioning(
    tmp_path: Path,
    rows: pl.DataFrame,
    hours: pl.DataFrame,
    expected: dict[str, np.ndarray],
    size: str,
    appends: bool,
) -> None:
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=7)
    table = build(tmp_path / "s", in_ten(rows) if appends else [shuffled], hours, size)
    if appends:
        assert table.partitions >= 10
    found = table.read(["sched_dep", "carrier", "flight", *COLUMNS])
    assert found.select("sched_dep", "carrier", "flight").equals(
        rows.select("sched_dep", "carrier", "flight")
    )
    for name in COLUMNS:
        values = found[name].to_numpy()  # nulls become NaN
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
    first = SEEN.setdefault("first", found)
    assert found.equals(first, null_equal=True), "values depend on the partitioning"
    assert table.status().is_fresh


def test_the_partition_sizes_really_differ(tmp_path: Path, rows: pl.DataFrame) -> None:
    counts = []
    for n, size in enumerate(("256MiB", "8MiB", "3MiB", "1MiB", "300KiB")):
        store = fs.FeatureStore.create(tmp_path / str(n))
        counts.append(
            store.ingest(
                "f", rows, key=["carrier", "flight"], time="sched_dep", partition_bytes=size
            ).partitions
        )
    assert counts[0] == 1
    assert counts == sorted(set(counts)), counts
