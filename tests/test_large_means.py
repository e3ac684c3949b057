"""Deviations of values a million million times larger than they: 1e-6 against exact arithmetic."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

import featurestore as fs

ROWS, KEYS, WINDOW = 240, 3, 12
RANDOM = np.random.default_rng(5)
VALUES = {
    "x": (1e12 + RANDOM.normal(size=ROWS)).tolist(),
    "n": (10**12 + RANDOM.integers(-2, 3, ROWS)).tolist(),
}


def deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None  # in exact fractions


@pytest.mark.parametrize("partition_bytes", ["2KB", "1GB"])
@pytest.mark.parametrize("column", VALUES)
def test_of_windows_behind_and_ahead_and_of_events(column: str, partition_bytes: str) -> None:
    rows = pl.DataFrame(
        {
            "k": [f"k{i % KEYS}" for i in range(ROWS)],
            "t": pl.Series(range(ROWS), dtype=pl.Datetime("ms")),
            column: VALUES[column],
        }
    )
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    store.ingest("events", rows, key="k", time="t", partition_bytes=partition_bytes)
    table = store.ingest("rows", rows, key="k", time="t", partition_bytes=partition_bytes)
    span = f"{KEYS * WINDOW}ms"
    table.add(
        fs.Rolling(column, WINDOW, stats=["std"]),
        fs.Rolling(column, span, stats=["std"]),
        fs.Forward(column, WINDOW, stats=["std"]),
        fs.AsOfAggregate("events", column, span, stats=["std"], prefix="of_"),
    )
    values = VALUES[column]
    behind = [values[i % KEYS : i + 1 : KEYS][-WINDOW:] for i in range(ROWS)]
    ahead = [values[i + KEYS : i + KEYS * WINDOW + 1 : KEYS] for i in range(ROWS)]
    wanted = {
        f"{column}_std_{WINDOW}r": list(map(deviation, behind)),
        f"{column}_std_{span}": list(map(deviation, behind)),
        f"{column}_std_ahead_{WINDOW}r": [
            deviation(one) if len(one) == WINDOW else None for one in ahead
        ],
    }
    made = table.read()
    new = [one for one in made.columns if one not in rows.columns]
    (events,) = set(new) - set(wanted)
    wanted[events] = wanted[f"{column}_std_{span}"]
    for name, expected in wanted.items():
        found = made[name].to_list()
        assert [one is None for one in found] == [one is None for one in expected], name
        known = [i for i, one in enumerate(expected) if one is not None]
        pairs = [(found[i], expected[i]) for i in known]
        assert len(pairs) > ROWS // 2
        assert all(abs(a - b) <= 1e-6 * b for a, b in pairs), name
