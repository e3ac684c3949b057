"""What was known at each row's time: an as-of join with another table, here and elsewhere.

Rows of many keys get the newest earlier event of their key. ``featurestore`` adds the column to a stored table,
partition by partition; Polars, DuckDB and pandas join the same Parquet files and write the one column. All in
one run, each in a fresh process, values compared.

    python benchmarks/asof_join.py [--small] [--rows N] [--events N] [--keys N]

Writes a table to the terminal, and ``asof_join.json`` and ``.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from comparison import ADDED, PEAK, SECONDS, ingested, keep, million_rows, run_cases, show
from measuring import OURS, PANDAS, POLARS, described, measured, parse

LABELS = {
    "featurestore": "featurestore add",
    "polars": "Polars join_asof",
    "duckdb": "DuckDB ASOF JOIN",
    "pandas": "pandas merge_asof",
}
_CHUNK_ROWS = 262_144


def write_events(path: Path, rows: int, keys: int, seed: int) -> Path:
    """Write a Parquet file in order of time: ``key`` (text), ``time`` (microseconds), ``value``.

    No two rows share a time: which of several events of one time is taken others do not say.
    """
    random, names = np.random.default_rng(seed), [f"key{one:06d}" for one in range(keys)]
    fields = [("key", pa.string()), ("time", pa.timestamp("us")), ("value", pa.float64())]
    step = 1_000_000_000 // rows  # a million seconds in milliseconds, whatever the number of rows
    with pq.ParquetWriter(path, pa.schema(fields), compression="none") as writer:
        for start in range(0, rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, rows - start)
            times = np.arange(start, start + count) * step + random.integers(0, step, count)
            key = pa.DictionaryArray.from_arrays(random.integers(0, keys, count), names)
            columns = [
                key.cast(pa.string()),
                pa.array(times * 1000).cast(pa.timestamp("us")),
                pa.array(random.standard_normal(count)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=writer.schema))
    return path


def ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make the store; measured, but no part of the comparison."""
    import featurestore as fs

    def work() -> None:
        store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
        for name in ("rows", "events"):
            store.ingest(
                name, arguments[name], key="key", time="time", duplicates="keep",
                partition_bytes=arguments["partition_bytes"],
            )  # fmt: skip

    return measured(work, OURS)


def with_featurestore(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    store = fs.FeatureStore.open(arguments["store"], memory_limit=arguments["memory_limit"])
    table = store.table("rows")
    join = fs.AsOfJoin("events", "value", by="key", prefix="known_")
    # Arrow imports pandas, where it is there, with the first array that is made.
    result = measured(lambda: table.add(join), (*OURS, *PANDAS))
    return {**result, **_checked(table.read("known_value", as_="arrow")["known_value"])}


def with_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    import polars as pl

    target = Path(arguments["folder"]) / "polars.parquet"

    def work() -> None:
        rows, events = (pl.scan_parquet(arguments[one]) for one in ("rows", "events"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot see whether each key is in order
            rows.select("key", "time").join_asof(events, on="time", by="key").select(
                "value"
            ).sink_parquet(target, compression="uncompressed")

    result = measured(work, POLARS)
    return {**result, **_checked(pq.read_table(target)["value"])}


def with_duckdb(arguments: dict[str, Any]) -> dict[str, Any]:
    import duckdb

    target = Path(arguments["folder"]) / "duckdb.parquet"

    def work() -> None:
        with duckdb.connect() as connection:
            connection.execute(
                f"COPY (SELECT e.value FROM read_parquet('{arguments['rows']}') r "
                f"ASOF LEFT JOIN read_parquet('{arguments['events']}') e "
                "ON r.key = e.key AND r.time >= e.time) "
                f"TO '{target}' (FORMAT parquet, COMPRESSION uncompressed)"
            )

    result = measured(work, ("duckdb",))
    return {**result, **_checked(pq.read_table(target)["value"])}


def with_pandas(arguments: dict[str, Any]) -> dict[str, Any]:
    import pandas as pd

    target = Path(arguments["folder"]) / "pandas.parquet"

    def work() -> None:
        rows = pd.read_parquet(arguments["rows"], columns=["key", "time"])
        events = pd.read_parquet(arguments["events"])
        joined = pd.merge_asof(rows, events, on="time", by="key")
        joined[["value"]].to_parquet(target, compression=None)

    result = measured(work, PANDAS)
    return {**result, **_checked(pq.read_table(target)["value"])}


def _checked(column: pa.ChunkedArray) -> dict[str, Any]:
    """Return what has to be the same everywhere: how many rows there are and match, and their sum."""
    values = column.drop_null().to_numpy()
    return {"rows": len(column), "matched": len(values), "check": float(np.sort(values).sum())}


CASES = {
    "ingest": ingest,
    "featurestore": with_featurestore,
    "polars": with_polars,
    "duckdb": with_duckdb,
    "pandas": with_pandas,
}


def compare(rows: int, events: int, keys: int, memory_limit: str, partition_bytes: str) -> None:
    with tempfile.TemporaryDirectory(prefix="asof_join-") as folder:
        arguments = {
            "folder": folder, "store": f"{folder}/store", "memory_limit": memory_limit,
            "partition_bytes": partition_bytes,
            "rows": str(write_events(Path(folder) / "rows.parquet", rows, keys, 0)),
            "events": str(write_events(Path(folder) / "events.parquet", events, keys, 1)),
        }  # fmt: skip
        title = f"as-of join of {rows:,} rows with {events:,} events of {keys:,} keys"
        made = ingested(__file__, arguments)
        results = run_cases(__file__, LABELS, arguments)
    rate = million_rows(rows)
    show(title, LABELS, results, (SECONDS, rate, PEAK, ADDED))
    found = [(one["rows"], one["matched"], one["check"]) for one in results if "error" not in one]
    if any(one[:2] != found[0][:2] or abs(one[2] - found[0][2]) > 1e-6 for one in found):
        raise SystemExit(f"the values differ: rows, matches and their sums are {found}")
    configuration = {
        "rows": rows, "events": events, "keys": keys, "memory_limit": memory_limit,
        "partition_bytes": partition_bytes, "ingest": made,
    }  # fmt: skip
    keep("asof_join", title, LABELS, results, (rate, ADDED), configuration)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--keys", type=int, default=5_000)
    parser.add_argument("--memory-limit", default="1GiB")
    parser.add_argument("--partition-bytes", default="16MiB")
    given = parse(parser, CASES, "200,000 rows, 50,000 events, 500 keys")
    if given is None:
        return
    sizes = (200_000, 50_000, 500) if given.small else (given.rows, given.events, given.keys)
    compare(*sizes, given.memory_limit, "2MiB" if given.small else given.partition_bytes)


if __name__ == "__main__":
    main()
