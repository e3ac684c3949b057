"""One more feature: what adding a float column to a wide table costs, here and elsewhere.

A table of N rows and M float32 columns gets one more column computed of two others. ``featurestore``
reads the two and writes the one; Polars (streaming) and pandas rewrite the table, because that is
what a Parquet file asks for. Polars also writes the one column alone to a file of its own: the least that
any of them can do, and what ``featurestore`` should take at most 1.5 times as long as. All in one run, each
in a fresh process, values compared.

    python benchmarks/add_feature.py [--small] [--rows N] [--columns M]

Writes a table to the terminal, and ``add_feature.json`` and ``.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from comparison import ADDED, PEAK, SECONDS, WRITTEN, ingested, keep, run_cases, show
from measuring import MIB, OURS, PANDAS, POLARS, described, measured, parse, tree_bytes, write_data

LABELS = {
    "featurestore": "featurestore add",
    "polars_column": "Polars column alone",
    "polars": "Polars rewrite",
    "pandas": "pandas rewrite",
}


def ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make the store; measured, but no part of the comparison."""
    import featurestore as fs

    def work() -> None:
        store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
        store.ingest(
            "data", arguments["source"], key="entity", time="time",
            partition_bytes=arguments["partition_bytes"],
        )  # fmt: skip

    return measured(work, OURS)


def with_featurestore(arguments: dict[str, Any]) -> dict[str, Any]:
    import narwhals as nw

    import featurestore as fs

    place = Path(arguments["store"])
    table = fs.FeatureStore.open(place, memory_limit=arguments["memory_limit"]).table("data")
    added = fs.Expression(added=nw.col("x0") * 2 + nw.col("x1"))
    before = tree_bytes(place)
    result = measured(lambda: table.add(added), OURS)
    written = tree_bytes(place) - before
    return {**result, "written_bytes": written, "check": float(table.read("added")["added"].sum())}


def with_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    return sunk_by_polars(arguments, alone=False)


def with_polars_column(arguments: dict[str, Any]) -> dict[str, Any]:
    return sunk_by_polars(arguments, alone=True)


def sunk_by_polars(arguments: dict[str, Any], *, alone: bool) -> dict[str, Any]:
    import polars as pl

    target = Path(arguments["folder"]) / f"polars-{alone}.parquet"

    def work() -> None:
        column = (pl.col("x0") * 2 + pl.col("x1")).alias("added")
        rows = pl.scan_parquet(arguments["source"])
        made = rows.select(column) if alone else rows.with_columns(column)
        made.sink_parquet(target, compression="uncompressed")

    result = measured(work, POLARS)
    check = pl.scan_parquet(target).select(pl.col("added").sum()).collect().item()
    return {**result, "written_bytes": tree_bytes(target), "check": float(check)}


def with_pandas(arguments: dict[str, Any]) -> dict[str, Any]:
    import pandas as pd

    target = Path(arguments["folder"]) / "pandas.parquet"

    def work() -> None:
        frame = pd.read_parquet(arguments["source"])
        frame["added"] = frame["x0"] * 2 + frame["x1"]
        frame.to_parquet(target, compression=None)

    result = measured(work, PANDAS)
    check = pd.read_parquet(target, columns=["added"])["added"].sum()
    return {**result, "written_bytes": tree_bytes(target), "check": float(check)}


CASES = {
    "ingest": ingest,
    "featurestore": with_featurestore,
    "polars_column": with_polars_column,
    "polars": with_polars,
    "pandas": with_pandas,
}


def compare(rows: int, columns: int, memory_limit: str) -> None:
    with tempfile.TemporaryDirectory(prefix="add_feature-") as folder:
        source = write_data(Path(folder) / "source.parquet", rows, columns)
        arguments = {
            "folder": folder, "source": str(source), "store": f"{folder}/store",
            "memory_limit": memory_limit, "partition_bytes": "128MiB",
        }  # fmt: skip
        title = f"add 1 column to {rows:,} rows x {columns} float32 ({tree_bytes(source) / MIB:,.0f} MiB)"
        made = ingested(__file__, arguments)
        results = run_cases(__file__, LABELS, arguments)
    show(title, LABELS, results, (SECONDS, WRITTEN, PEAK, ADDED))
    sums = [one["check"] for one in results if "check" in one]
    if any(abs(one - sums[0]) > 1e-4 * max(1.0, rows**0.5) for one in sums):
        raise SystemExit(f"the values differ: their sums are {sums}")
    configuration = {"rows": rows, "columns": columns, "memory_limit": memory_limit, "ingest": made}
    keep("add_feature", title, LABELS, results, (SECONDS, WRITTEN, ADDED), configuration)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--memory-limit", default="2GiB")
    given = parse(parser, CASES, "200,000 rows x 16 columns")
    if given is None:
        return
    if given.small:
        compare(200_000, 16, given.memory_limit)
    else:
        compare(given.rows, given.columns, given.memory_limit)


if __name__ == "__main__":
    main()
