"""A golden set of made-up daily prices, from rows to batches: python examples/prices.py [FOLDER]

Shows what the quickstart does not: windows and ranks per day, a tensor feature, an append, and features
of rows that are not in the table.
"""

from __future__ import annotations

import datetime as dt
import sys

import narwhals as nw
import numpy as np
import polars as pl

import featurestore as fs
import training

STOCKS, DAYS = 40, 250
FIRST_DAY = dt.date(2023, 1, 2)


def prices(first: int, stop: int) -> pl.DataFrame:
    """Return a random walk per stock for days ``first`` to ``stop``; equal for equal days."""
    steps = np.random.default_rng(0).normal(0.0003, 0.02, (DAYS + 30, STOCKS))
    close = 100 * np.exp(np.cumsum(steps, axis=0))[first:stop]
    days = [FIRST_DAY + dt.timedelta(days=day) for day in range(first, stop)]
    return pl.DataFrame(
        {
            "stock": [f"S{number:02d}" for number in range(STOCKS)] * len(days),
            "day": [day for day in days for _ in range(STOCKS)],
            "close": close.reshape(-1),
        }
    )


def main(folder: str) -> None:
    """Build the golden set in a folder and show what is in it."""
    store = fs.FeatureStore.create(folder, memory_limit="1GiB")
    table = store.ingest(
        "prices", prices(0, DAYS), key="stock", time="day", partition_bytes="64KiB"
    )
    table.add(
        fs.Lag("close", periods=[1, 5]),
        fs.Expression(gain=nw.col("close") / nw.col("close_lag_1") - 1),
        fs.Rolling("gain", window=20, stats=["mean", "std"]),
        fs.Rank("gain"),
    )

    @table.feature(inputs=["close", "close_lag_1", "close_lag_5"], shape=(3,))
    def recent(df: nw.DataFrame[pl.DataFrame]) -> np.ndarray:
        return np.log(df.to_numpy()).astype("float32")

    table.build()
    print(table)

    data = table.dataset(
        ["gain_mean_20r", "gain_std_20r", "gain_rank", "recent"],
        split=fs.TimeSplit(valid="2023-08-01", embargo="5d"),
        pipeline=fs.Pipeline(fs.Impute(), fs.Standardize()),
    )
    batch = training.Loader(data.train, batch_size=512, shuffle=True, cache=f"{folder}-packs")[0]
    print({name: (one.shape, str(one.dtype)) for name, one in batch.inputs.items()})

    tomorrow = prices(DAYS, DAYS + 1)
    ahead = table.compute(tomorrow, columns=["gain", "gain_rank"])
    table.append(tomorrow)
    table.build()
    stored = table.read(["stock", "day", "gain", "gain_rank"]).tail(STOCKS)
    print("computed ahead equals what the table holds now:", ahead.equals(stored))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "prices-golden")
