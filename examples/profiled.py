"""What costs the memory of a whole run: python examples/profiled.py [PICTURE [ROWS]]

Ingests made-up sensor readings, adds three features, packs and reads one epoch, trains a few rounds with
XGBoost, and draws the timeline (SVG, HTML, PNG or PDF by the picture's suffix).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import narwhals as nw
import numpy as np
import polars as pl
import xgboost

import featurestore as fs
import training
from training.hooks.xgboost import dmatrix

SENSORS, VALUES, ROUNDS = 500, 12, 5


def readings(rows: int) -> pl.DataFrame:
    """Return one reading a second, of a sensor drawn at random."""
    draw = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "sensor": draw.integers(0, SENSORS, rows),
            "time": np.datetime64("2025-01-01", "us") + np.arange(rows) * np.timedelta64(1, "s"),
            **{f"x{number}": draw.normal(size=rows) for number in range(VALUES)},
            "failed": draw.integers(0, 2, rows),
        }
    )


def main(picture: str, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "readings.parquet"
        readings(rows).write_parquet(source)
        store = fs.FeatureStore.create(f"{folder}/golden", memory_limit="512MiB")
        with fs.profile(Path(folder) / "run.json", memory_limit="512MiB") as run:
            table = store.ingest(
                "readings", source, key="sensor", time="time", partition_bytes="8MiB"
            )
            table.add(fs.Expression(ratio=nw.col("x0") / nw.col("x1")))
            table.add(fs.Rolling("x2", by="sensor", window="1h", stats=["mean", "std"]))
            table.add(fs.Standardize("x3", suffix="_scaled"), fit_on="all")
            data = table.dataset(
                ["x0", "ratio", "x2_mean_1h", "x3_scaled"],
                label="failed",
                split=fs.HashSplit(0.2, 0.0),
            )
            loader = training.Loader(data.train, 4096, shuffle=True, cache=f"{folder}/cache")
            for _ in loader:
                pass
            with run.phase("XGBoost"):
                xgboost.train({"tree_method": "hist"}, dmatrix(loader), ROUNDS)
        print(run)
        run.timeline.draw(picture)


if __name__ == "__main__":
    given = [*sys.argv[1:], *("profile.svg", "1000000")[len(sys.argv) - 1 :]]
    main(given[0], int(given[1]))
