"""A vocabulary and its codes: a string column of many distinct values becomes integers, here and elsewhere.

Of N rows with V distinct strings the most frequent gets code 2, the next 3, and so on, by value among
equals. ``featurestore`` learns the vocabulary and writes the codes as one more column of its table; Polars,
DuckDB and dask count, number and join, and write a Parquet file of the codes alone. All in one run, each in a
fresh process, codes compared by their sum weighted with the row's number.

    python benchmarks/categories.py [--small] [--rows N] [--values V]

Writes a table to the terminal, and ``categories.json`` and ``.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from comparison import ADDED, PEAK, SECONDS, ingested, keep, run_cases, show
from measuring import DASK, MIB, OURS, POLARS, described, measured, parse, tree_bytes

LABELS = {
    "featurestore": "featurestore Categorify",
    "polars": "Polars group, join",
    "duckdb": "DuckDB group, join",
    "dask": "dask count, map",
}
_CHUNK_ROWS = 262_144


def write_categories(path: Path, rows: int, values: int) -> Path:
    """Write a Parquet file: ``row`` (its number) and ``category``, some values more frequent than others."""
    random = np.random.default_rng(0)
    names = pa.array([f"category number {one:09d}" for one in random.permutation(values).tolist()])
    schema = pa.schema([("row", pa.int64()), ("category", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, rows - start)
            chosen = (values * random.random(count) ** 1.5).astype(np.int64)
            columns = [pa.array(np.arange(start, start + count)), names.take(pa.array(chosen))]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return path


def weighted(codes: Any) -> int:
    """Return a sum that tells codes of other rows apart."""
    whole = np.asarray(codes).astype(np.int64)
    return int((whole * (np.arange(len(whole)) % 1009 + 1)).sum())


def ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make the store; measured, but no part of the comparison."""
    import featurestore as fs

    def work() -> None:
        store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
        size = arguments["partition_bytes"]
        store.ingest(
            "data", arguments["source"], time="row", duplicates="keep", partition_bytes=size
        )

    return measured(work, OURS)


def with_featurestore(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    place = Path(arguments["store"])
    table = fs.FeatureStore.open(place, memory_limit=arguments["memory_limit"]).table("data")
    added = fs.Categorify("category", rename={"category": "code"})
    result = measured(lambda: table.add(added, fit_on="all"), OURS)
    return {**result, "check": weighted(table.read("code")["code"].to_numpy())}


def with_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    import polars as pl

    target = Path(arguments["folder"]) / "polars.parquet"

    def work() -> None:
        rows = pl.scan_parquet(arguments["source"]).select("category")
        counts = rows.group_by("category").len().collect(engine="streaming")
        ordered = counts.sort(["len", "category"], descending=[True, False])
        codes = ordered.with_row_index("code", 2).select("category", pl.col("code").cast(pl.Int32))
        rows.join(codes.lazy(), on="category", how="left", maintain_order="left").select(
            "code"
        ).sink_parquet(target, compression="uncompressed")

    result = measured(work, POLARS)
    return {**result, "check": weighted(pl.read_parquet(target)["code"].to_numpy())}


def with_duckdb(arguments: dict[str, Any]) -> dict[str, Any]:
    import duckdb

    target = Path(arguments["folder"]) / "duckdb.parquet"

    def work() -> None:
        with duckdb.connect() as connection:
            connection.execute(
                "CREATE TABLE codes AS SELECT category, CAST(row_number() OVER (ORDER BY count(*) "
                f"DESC, category) + 1 AS INTEGER) AS code FROM '{arguments['source']}' GROUP BY category"
            )
            connection.execute(
                f"COPY (SELECT code FROM '{arguments['source']}' LEFT JOIN codes USING (category) "
                f"ORDER BY row) TO '{target}' (FORMAT parquet, COMPRESSION uncompressed)"
            )

    result = measured(work, ("duckdb",))
    return {**result, "check": weighted(pq.read_table(target)["code"].to_numpy())}


def with_dask(arguments: dict[str, Any]) -> dict[str, Any]:
    import dask.dataframe as dd

    target = Path(arguments["folder"]) / "dask.parquet"

    def work() -> None:
        rows = dd.read_parquet(arguments["source"], columns=["category"], split_row_groups=4)
        counts = rows["category"].value_counts().compute().reset_index()
        ordered = counts.sort_values(["count", "category"], ascending=[False, True])
        codes = dict(zip(ordered["category"], range(2, len(ordered) + 2), strict=True))
        coded = rows["category"].map(codes, meta=("category", "int32"))
        made = rows.assign(code=coded)[["code"]]
        made.to_parquet(target, write_index=False, compression=None)

    result = measured(work, DASK)
    files = sorted(target.glob("*.parquet"), key=lambda one: int(one.name.split(".")[1]))
    codes = pa.concat_tables([pq.read_table(one) for one in files])["code"]
    return {**result, "check": weighted(codes.to_numpy())}


CASES = {
    "ingest": ingest,
    "featurestore": with_featurestore,
    "polars": with_polars,
    "duckdb": with_duckdb,
    "dask": with_dask,
}


def compare(rows: int, values: int, memory_limit: str, partition_bytes: str) -> None:
    with tempfile.TemporaryDirectory(prefix="categories-") as folder:
        source = write_categories(Path(folder) / "source.parquet", rows, values)
        arguments = {
            "folder": folder, "source": str(source), "store": f"{folder}/store",
            "memory_limit": memory_limit, "partition_bytes": partition_bytes,
        }  # fmt: skip
        title = (
            f"codes of {values:,} strings in {rows:,} rows ({tree_bytes(source) / MIB:,.0f} MiB)"
        )
        made = ingested(__file__, arguments)
        results = run_cases(__file__, LABELS, arguments)
    show(title, LABELS, results, (SECONDS, PEAK, ADDED))
    found = {one["check"] for one in results if "check" in one}
    if len(found) > 1:
        raise SystemExit(f"the codes differ: {found}")
    configuration = {
        "rows": rows, "values": values, "memory_limit": memory_limit,
        "partition_bytes": partition_bytes, "ingest": made,
    }  # fmt: skip
    keep("categories", title, LABELS, results, (SECONDS, ADDED), configuration)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--memory-limit", default="2GiB")
    parser.add_argument("--partition-bytes", default="128MiB")
    given = parse(parser, CASES, "300,000 rows, 10,000 values")
    if given is None:
        return
    sizes = (300_000, 10_000) if given.small else (given.rows, given.values)
    compare(*sizes, given.memory_limit, given.partition_bytes)


if __name__ == "__main__":
    main()
