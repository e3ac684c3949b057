"""Features of one column, row by row: what adding one costs, here and as a Polars query.

A stored table of N rows and M float64 columns, one of them with 2% nulls, a string column and a time.
Each case makes one column of one other: an expression, a clipped number, a logarithm, an interval's
code, a hash, the hour of a time. ``featurestore`` adds it to the table: reads one column, checks it,
writes and syncs one, and publishes a version. Polars scans the same files for that column alone,
computes, and sinks it to a file, with its own compression and plain: nothing is synced. All in one run,
each in a fresh process, values compared (to 1e-9 relative; hashes are each library's own).

    python benchmarks/row_wise.py [--small] [--rows N] [--columns M]

Writes a table to the terminal, and ``row_wise.json`` and ``row_wise.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from comparison import ADDED, PEAK, SECONDS, WRITTEN, ingested, keep_grouped
from measuring import (
    MIB,
    OURS,
    POLARS,
    described,
    measured,
    parse,
    print_table,
    run_case,
    stored_files,
    tree_bytes,
)

LIBRARIES = {
    "featurestore": "featurestore add",
    "polars": "Polars",
    "polars_plain": "Polars, uncompressed",
}
KINDS = ("Expression", "Clip", "Log", "Bucketize", "Hash", "Calendar")
BOUNDARIES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
BUCKETS = 1000
_CHUNK = 65_536


def write_rows(path: Path, rows: int, columns: int) -> Path:
    """Write ``id``, ``time`` (seconds), ``code`` (strings) and ``x0``... (float64; ``x0`` with 2% nulls)."""
    random = np.random.default_rng(0)
    names = [f"x{i}" for i in range(columns)]
    schema = pa.schema(
        [("id", pa.int64()), ("time", pa.timestamp("ms")), ("code", pa.string())]
        + [(one, pa.float64()) for one in names]
    )
    codes = np.array([f"code-{one:04d}" for one in range(5000)])
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, _CHUNK):
            position = np.arange(start, min(start + _CHUNK, rows))
            count = len(position)
            arrays = [
                pa.array(position),
                pa.array(position * 1000).cast(pa.timestamp("ms")),
                pa.array(codes[random.integers(0, len(codes), count)]),
            ]
            for i in range(columns):
                mask = random.random(count) < 0.02 if i == 0 else None
                arrays.append(pa.array(random.standard_normal(count), mask=mask))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return path


def ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make the store; measured, but no part of the comparison."""
    import featurestore as fs

    def work() -> None:
        store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
        store.ingest("data", arguments["source"], key="id", time="time")

    return measured(work, OURS)


def with_featurestore(arguments: dict[str, Any]) -> dict[str, Any]:
    import narwhals as nw

    import featurestore as fs

    kind = arguments["kind"]
    name = f"out_{kind}"
    made: dict[str, Any] = {
        "Expression": lambda: fs.Expression(**{name: nw.col("x0") * 2 + 1}),
        "Clip": lambda: fs.Clip("x0", -1.0, 1.0, rename={"x0": name}),
        "Log": lambda: fs.Log("x0", "signed", rename={"x0": name}),
        "Bucketize": lambda: fs.Bucketize("x0", BOUNDARIES, rename={"x0": name}),
        "Hash": lambda: fs.Hash("code", BUCKETS, rename={"code": name}),
        "Calendar": lambda: fs.Calendar(parts=("hour",), prefix=f"{name}_"),
    }
    place = Path(arguments["store"])
    table = fs.FeatureStore.open(place, memory_limit=arguments["memory_limit"]).table("data")
    transformer = made[kind]()
    before = tree_bytes(place)
    result = measured(lambda: table.add(transformer), OURS)
    written = tree_bytes(place) - before
    (column,) = (one for one in table.schema.names if one.startswith(name))
    return {**result, "written_bytes": written, **checked(table.read(column)[column].to_numpy())}


def with_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    return sunk_by_polars(arguments, "zstd")


def with_plain_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    return sunk_by_polars(arguments, "uncompressed")


def sunk_by_polars(arguments: dict[str, Any], compression: Any) -> dict[str, Any]:
    import polars as pl

    x = pl.col("x0")
    codes = pl.lit(pl.Series(BOUNDARIES)).search_sorted(x, side="right").cast(pl.Int32) + 1
    columns = {
        "Expression": x * 2 + 1,
        "Clip": x.clip(-1.0, 1.0),
        "Log": x.sign() * x.abs().log1p(),
        "Bucketize": pl.when(x.is_null() | x.is_nan()).then(0).otherwise(codes),
        "Hash": (pl.col("code").hash() % BUCKETS).cast(pl.Int32) + 1,
        "Calendar": pl.col("time").dt.hour(),
    }
    made = columns[arguments["kind"]].alias("out")
    target = Path(arguments["folder"]) / "polars.parquet"

    def work() -> None:
        rows = pl.scan_parquet(arguments["files"]).select(made)
        rows.sink_parquet(target, compression=compression)

    result = measured(work, POLARS)
    values = pq.read_table(target)["out"].to_numpy()
    return {**result, "written_bytes": tree_bytes(target), **checked(values)}


def checked(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return what values are compared by: how many there are, and a sum that depends on their places."""
    there = np.isfinite(values)
    weights = 1.0 + np.arange(values.shape[0]) % 97
    return {"count": int(there.sum()), "check": float((values * weights)[there].sum())}


CASES = {
    "ingest": ingest,
    "featurestore": with_featurestore,
    "polars": with_polars,
    "polars_plain": with_plain_polars,
}


def differing(results: list[dict[str, Any]]) -> list[str]:
    """Return the kinds whose values are not the same everywhere; of hashes only that each row has one."""
    wrong = []
    for kind in KINDS:
        done = [one for one in results if one["kind"] == kind and "error" not in one]
        near = kind == "Hash" or all(
            abs(one["check"] - done[0]["check"]) <= 1e-9 * 97 * done[0]["count"] for one in done
        )
        if not near or len({one["count"] for one in done}) > 1:
            wrong.append(f"{kind}: {[(one['case'], one['count'], one['check']) for one in done]}")
    return wrong


def compare(rows: int, columns: int, memory_limit: str) -> None:
    with tempfile.TemporaryDirectory(prefix="row_wise-") as folder:
        source = write_rows(Path(folder) / "source.parquet", rows, columns)
        arguments: dict[str, Any] = {
            "folder": folder, "source": str(source), "store": f"{folder}/store",
            "memory_limit": memory_limit,
        }  # fmt: skip
        size = tree_bytes(source) / MIB
        title = f"features of one of {columns} columns, {rows:,} rows ({size:,.0f} MiB)"
        made = ingested(__file__, arguments)
        arguments["files"] = stored_files(arguments["store"])
        source.unlink()
        results = [
            {"kind": kind, "case": one, **run_case(__file__, one, {**arguments, "kind": kind})}
            for kind in KINDS
            for one in LIBRARIES
        ]
    measures = (SECONDS, WRITTEN, PEAK, ADDED)
    print_table(
        title,
        ("", "", *(one.heading for one in measures)),
        [
            [one["kind"], LIBRARIES[one["case"]], one["error"]]
            if "error" in one
            else [one["kind"], LIBRARIES[one["case"]], *(found.text(one) for found in measures)]
            for one in results
        ],
    )
    wrong = differing(results)
    if wrong:
        raise SystemExit("values differ: " + "; ".join(wrong))
    configuration = {"rows": rows, "columns": columns, "memory_limit": memory_limit, "ingest": made}
    keep_grouped(
        "row_wise", title, ("kind", KINDS), ("case", LIBRARIES), results,
        (SECONDS, WRITTEN, ADDED), configuration,
    )  # fmt: skip


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--memory-limit", default="2GiB")
    given = parse(parser, CASES, "200,000 rows x 4 columns")
    if given is None:
        return
    if given.small:
        compare(200_000, 4, given.memory_limit)
    else:
        compare(given.rows, given.columns, given.memory_limit)


if __name__ == "__main__":
    main()
