"""Looking back: rolling statistics, exponentially weighted means and lags per key, here and elsewhere.

A table of N rows in order of time, K keys and one float64 column. Each case computes one column:

* ``mean``, ``std``, ``median``: over the key's rows of the last hour, ``(t - 1h, t]``;
* ``ewm``: the mean of the key's rows so far, half-life 20 rows;
* ``lag``: the key's value one row before.

``featurestore`` adds it to a stored table, partition by partition; Polars, pandas and DuckDB read a Parquet
file into memory and write the one column to another. All in one run, each in a fresh process, values
compared (to 1e-9 relative). A library that lacks a case is left out of it.

    python benchmarks/windows.py [--small] [--rows N] [--keys K]

Writes a table to the terminal, and ``windows.json`` and ``windows.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from comparison import ADDED, SECONDS, ingested, keep_grouped
from measuring import MIB, OURS, PANDAS, POLARS, described, measured, parse, print_table, run_case

DUCKDB = ("duckdb", "pyarrow.parquet")
STEP = 100  # milliseconds between rows
HALF_LIFE = 20
LIBRARIES = {
    "featurestore": ("mean", "std", "median", "ewm", "lag"),
    "polars": ("mean", "std", "median", "ewm", "lag"),
    "pandas": ("mean", "std", "median", "ewm", "lag"),
    "duckdb": ("mean", "std", "median", "lag"),
}
STATISTICS = LIBRARIES["featurestore"]


def write_rows(path: Path, rows: int, keys: int) -> Path:
    """Write ``k``, ``t`` (milliseconds, ascending) and ``x``; every key has rows all along."""
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "k": pa.array(random.integers(0, keys, rows)),
            "t": pa.array(np.arange(rows) * STEP).cast(pa.timestamp("ms")),
            "x": random.standard_normal(rows),
        }
    )
    pq.write_table(table, path, compression="none", row_group_size=65_536)
    return path


def ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make the store; measured, but no part of the comparison."""
    import featurestore as fs

    def work() -> None:
        store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
        size = arguments["partition_bytes"]
        store.ingest("data", arguments["source"], key="k", time="t", partition_bytes=size)

    return measured(work, OURS)


def with_featurestore(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    statistic = arguments["statistic"]
    name = f"out_{statistic}"
    made: fs.EWM | fs.Lag | fs.Rolling
    if statistic == "ewm":
        made = fs.EWM("x", HALF_LIFE, rename={f"x_ewm_mean_{HALF_LIFE}r": name})
    elif statistic == "lag":
        made = fs.Lag("x", rename={"x_lag_1": name})
    else:
        made = fs.Rolling("x", "1h", stats=statistic, rename={f"x_{statistic}_1h": name})
    store = fs.FeatureStore.open(arguments["store"], memory_limit=arguments["memory_limit"])
    table = store.table("data")
    result = measured(lambda: table.add(made), OURS)
    return {**result, **checked(table.read(name)[name].to_numpy())}


def with_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    import polars as pl

    x, target = pl.col("x"), Path(arguments["folder"]) / "polars.parquet"
    columns = {
        "mean": x.rolling_mean_by("t", "1h"),
        "std": x.rolling_std_by("t", "1h"),
        "median": x.rolling_median_by("t", "1h"),
        "ewm": x.ewm_mean(half_life=HALF_LIFE),
        "lag": x.shift(1),
    }
    made = columns[arguments["statistic"]].over("k").alias("out")

    def work() -> None:
        frame = pl.read_parquet(arguments["source"]).select(made)
        frame.write_parquet(target, compression="uncompressed")

    return {**measured(work, POLARS), **read_back(target)}


def with_pandas(arguments: dict[str, Any]) -> dict[str, Any]:
    import pandas as pd

    statistic, target = arguments["statistic"], Path(arguments["folder"]) / "pandas.parquet"

    def work() -> None:
        frame = pd.read_parquet(arguments["source"])
        groups = frame.groupby("k", sort=False)["x"]
        if statistic == "lag":
            out = groups.shift(1)
        elif statistic == "ewm":
            out = groups.ewm(halflife=HALF_LIFE).mean().droplevel(0).sort_index()
        else:
            values = getattr(frame.groupby("k").rolling("1h", on="t")["x"], statistic)()
            # Rows come back key by key, in the order that they have within it.
            out = np.empty(len(frame))
            out[np.argsort(frame["k"].to_numpy(), kind="stable")] = values.to_numpy()
        pd.DataFrame({"out": np.asarray(out)}).to_parquet(target, compression=None)

    return {**measured(work, PANDAS), **read_back(target)}


def with_duckdb(arguments: dict[str, Any]) -> dict[str, Any]:
    import duckdb

    target = Path(arguments["folder"]) / "duckdb.parquet"
    hour = "over (partition by k order by t range between interval 3599999 milliseconds preceding and current row)"
    columns = {
        "mean": f"avg(x) {hour}",
        "std": f"stddev_samp(x) {hour}",
        "median": f"median(x) {hour}",
        "lag": "lag(x) over (partition by k order by t)",
    }
    made = columns[arguments["statistic"]]

    def work() -> None:
        duckdb.sql(
            f"copy (select t, {made} as out from '{arguments['source']}' order by t) "
            f"to '{target}' (format parquet, compression uncompressed)"
        )

    return {**measured(work, DUCKDB), **read_back(target)}


def checked(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return what values are compared by: how many there are, and a sum that depends on their places."""
    there = np.isfinite(values)
    weights = 1.0 + np.arange(values.shape[0]) % 97
    return {"count": int(there.sum()), "check": float((values * weights)[there].sum())}


def read_back(path: Path) -> dict[str, Any]:
    return checked(pq.read_table(path, columns=["out"])["out"].to_numpy())


CASES = {
    "ingest": ingest,
    "featurestore": with_featurestore,
    "polars": with_polars,
    "pandas": with_pandas,
    "duckdb": with_duckdb,
}


def differing(results: list[dict[str, Any]]) -> list[str]:
    """Return the statistics whose values are not the same everywhere."""
    wrong = []
    for statistic in STATISTICS:
        done = [one for one in results if one["statistic"] == statistic and "check" in one]
        counts = {one["count"] for one in done}
        checks = [one["check"] for one in done]
        near = all(abs(one - checks[0]) <= 1e-9 * max(counts) * 97 for one in checks)
        if len(counts) > 1 or not near:
            wrong.append(
                f"{statistic}: {[(one['library'], one['count'], one['check']) for one in done]}"
            )
    return wrong


def compare(rows: int, keys: int, memory_limit: str, partition_bytes: str) -> None:
    title = f"looking back over {rows:,} rows of {keys:,} keys"
    libraries = [one for one in LIBRARIES if find_spec(one) is not None]
    with tempfile.TemporaryDirectory(prefix="windows-") as folder:
        source = write_rows(Path(folder) / "source.parquet", rows, keys)
        arguments = {
            "folder": folder, "source": str(source), "store": f"{folder}/store",
            "memory_limit": memory_limit, "partition_bytes": partition_bytes,
        }  # fmt: skip
        made = ingested(__file__, arguments)
        results = [
            {
                "library": one,
                "statistic": statistic,
                **run_case(__file__, one, {**arguments, "statistic": statistic}, 1800),
            }
            for statistic in STATISTICS
            for one in libraries
            if statistic in LIBRARIES[one]
        ]
    print_table(
        title,
        ("", "", "seconds", "million rows/s", "peak MiB above imports"),
        [
            [one["statistic"], one["library"], one["error"], "", ""]
            if "error" in one
            else [
                one["statistic"], one["library"], f"{one['seconds']:.2f}",
                f"{rows / one['seconds'] / 1e6:.2f}", f"{one['added_bytes'] / MIB:,.0f}",
            ]
            for one in results
        ],
    )  # fmt: skip
    wrong = differing(results)
    if wrong:
        raise SystemExit("values differ: " + "; ".join(wrong))
    configuration = {
        "rows": rows, "keys": keys, "memory_limit": memory_limit,
        "partition_bytes": partition_bytes, "ingest": made,
    }  # fmt: skip
    keep_grouped(
        "windows", title, ("statistic", STATISTICS), ("library", {one: one for one in LIBRARIES}),
        results, (SECONDS, ADDED), configuration,
    )  # fmt: skip


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--memory-limit", default="1GiB")
    parser.add_argument("--partition-bytes", default="16MiB")
    given = parse(parser, CASES, "300,000 rows of 100 keys")
    if given is None:
        return
    sizes = (300_000, 100) if given.small else (given.rows, given.keys)
    compare(*sizes, given.memory_limit, given.partition_bytes)


if __name__ == "__main__":
    main()
