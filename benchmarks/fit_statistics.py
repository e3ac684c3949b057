"""Statistics of a wide table: mean and standard deviation of every column, here and elsewhere.

A table of N rows and M float64 columns, eight of them with 2% nulls. ``featurestore`` learns
``Standardize`` on the training part of a dataset from its own partitions; the others compute mean and
deviation of the same rows from a Parquet file. Then the same statistics of another training part, which
``featurestore`` puts together from what it kept. All in one run, each in a fresh process, values compared.

    python benchmarks/fit_statistics.py [--small] [--rows N] [--columns M]

Writes a table to the terminal, and ``fit_statistics.json`` and ``.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from comparison import ADDED, PEAK, Measure, ingested, keep, run_cases, show
from measuring import DASK, MIB, OURS, PANDAS, POLARS, described, measured, parse, tree_bytes

LABELS = {
    "featurestore": "featurestore fit",
    "again": "featurestore, another split",
    "quantiles": "featurestore fit, medians",
    "polars": "Polars",
    "duckdb": "DuckDB",
    "dask": "dask",
    "pandas": "pandas",
}
_CHUNK = 65_536
_WITH_NULLS = 8


def write_columns(path: Path, begin: int, end: int, columns: int) -> None:
    """Write rows of ``id``, ``time`` (seconds) and ``x0``... (float64), in row groups of 64k rows."""
    random = np.random.default_rng(begin)
    names = [f"x{i}" for i in range(columns)]
    schema = pa.schema(
        [("id", pa.int64()), ("time", pa.timestamp("s")), *((n, pa.float64()) for n in names)]
    )
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(begin, end, _CHUNK):
            count = min(_CHUNK, end - start)
            position = np.arange(start, start + count)
            arrays = [pa.array(position), pa.array(position).cast(pa.timestamp("s"))]
            for i in range(columns):
                values = random.standard_normal(count) * (i + 1) + 10.0 * i
                mask = random.random(count) < 0.02 if i < _WITH_NULLS else None
                arrays.append(pa.array(values, mask=mask))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make the store; measured, but no part of the comparison."""
    import featurestore as fs

    def work() -> None:
        store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
        first, second = sorted(Path(arguments["folder"]).glob("*.parquet"))
        store.ingest("data", str(first), key="id", time="time").append(str(second))

    return measured(work, OURS)


def learn(arguments: dict[str, Any], rows: int, step: Any) -> dict[str, Any]:
    """Fit one step on the first rows, and return what it learnt of the first and the last column."""
    import featurestore as fs

    store = fs.FeatureStore.open(arguments["store"], memory_limit=arguments["memory_limit"])
    start = dt.datetime(1970, 1, 1, tzinfo=dt.UTC).replace(tzinfo=None)
    split = fs.TimeSplit(valid=start + dt.timedelta(seconds=rows))
    names = [f"x{i}" for i in range(arguments["columns"])]
    found: dict[str, Any] = {}

    def work() -> None:
        data = store.table("data").dataset(
            names, label="id", split=split, pipeline=fs.Pipeline(step)
        )
        (found["state"],) = data.pipeline.states

    # What a process holds before it works is measured with all loaded that the work may need.
    return {
        **measured(work, (*OURS, "featurestore.dataset.dataset")),
        "state": found["state"],
    }


def with_featurestore(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    result = learn(arguments, arguments["rows"], fs.Standardize())
    state = result.pop("state")
    return {**result, "check": scales(state)}


def once_more(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    # Where the appended rows begin: a split that cuts a partition reads that one.
    result = learn(arguments, arguments["other_rows"], fs.Standardize())
    result.pop("state")
    return result


def with_quantiles(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    result = learn(arguments, arguments["rows"], fs.RobustScale())
    result.pop("state")
    return result


def scales(state: Any) -> list[float]:
    rows = state["scales"].to_pylist()
    return [number for one in (rows[0], rows[-1]) for number in (one["mean"], one["divisor"])]


def with_polars(arguments: dict[str, Any]) -> dict[str, Any]:
    import polars as pl

    found: dict[str, Any] = {}

    def work() -> None:
        each = pl.exclude("id", "time")
        wanted = [each.mean().name.suffix("_mean"), each.std(ddof=0).name.suffix("_std")]
        found["made"] = (
            pl.scan_parquet(arguments["source"]).select(wanted).collect(engine="streaming")
        )

    result = measured(work, POLARS)
    return {**result, "check": ends(found["made"].row(0, named=True), arguments)}


def with_duckdb(arguments: dict[str, Any]) -> dict[str, Any]:
    import duckdb

    found: dict[str, Any] = {}

    def work() -> None:
        each = ", ".join(
            f"avg(x{i}) as x{i}_mean, stddev_pop(x{i}) as x{i}_std"
            for i in range(arguments["columns"])
        )
        rows: Any = duckdb.sql(f"select {each} from '{arguments['source']}'")
        found["made"] = dict(zip(rows.columns, rows.fetchall()[0], strict=True))

    result = measured(work, ("duckdb",))
    return {**result, "check": ends(found["made"], arguments)}


def with_dask(arguments: dict[str, Any]) -> dict[str, Any]:
    import dask
    import dask.dataframe as dd

    found: dict[str, Any] = {}
    names = [f"x{i}" for i in range(arguments["columns"])]

    def work() -> None:
        frame = dd.read_parquet(arguments["source"], columns=names, split_row_groups="adaptive")
        mean, std = dask.compute(frame.mean(), frame.std(ddof=0))
        found["made"] = {**mean.add_suffix("_mean"), **std.add_suffix("_std")}

    result = measured(work, DASK)
    return {**result, "check": ends(found["made"], arguments)}


def with_pandas(arguments: dict[str, Any]) -> dict[str, Any]:
    import pandas as pd

    found: dict[str, Any] = {}
    names = [f"x{i}" for i in range(arguments["columns"])]

    def work() -> None:
        frame = pd.read_parquet(arguments["folder"], columns=names)
        found["made"] = {
            **frame.mean().add_suffix("_mean"),
            **frame.std(ddof=0).add_suffix("_std"),
        }

    result = measured(work, PANDAS)
    return {**result, "check": ends(found["made"], arguments)}


def ends(made: Any, arguments: dict[str, Any]) -> list[float]:
    """Return mean and deviation of the first and the last column."""
    return [
        float(made[f"x{i}_{one}"]) for i in (0, arguments["columns"] - 1) for one in ("mean", "std")
    ]


CASES = {
    "ingest": ingest,
    "featurestore": with_featurestore,
    "again": once_more,
    "quantiles": with_quantiles,
    "polars": with_polars,
    "duckdb": with_duckdb,
    "dask": with_dask,
    "pandas": with_pandas,
}


def compare(rows: int, columns: int, memory_limit: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fit_statistics-") as folder:
        source = Path(folder) / "source"
        source.mkdir()
        other = rows * 3 // 4
        write_columns(source / "0.parquet", 0, other, columns)
        write_columns(source / "1.parquet", other, rows, columns)
        arguments = {
            "folder": str(source), "source": f"{source}/*.parquet", "store": f"{folder}/store", "memory_limit": memory_limit,
            "rows": rows, "columns": columns, "other_rows": other,
        }  # fmt: skip
        title = (
            f"mean and deviation of {rows:,} rows x {columns} float64 "
            f"({tree_bytes(source) / MIB:,.0f} MiB)"
        )
        made = ingested(__file__, arguments)
        results = run_cases(__file__, LABELS, arguments)
    seconds = Measure("seconds", lambda one: one["seconds"], 3)
    show(title, LABELS, results, (seconds, PEAK, ADDED))
    checks = [one["check"] for one in results if "check" in one]
    if any(not np.allclose(one, checks[0], rtol=1e-9) for one in checks):
        raise SystemExit(f"the values differ: {checks}")
    configuration = {"rows": rows, "columns": columns, "memory_limit": memory_limit, "ingest": made}
    keep("fit_statistics", title, LABELS, results, (seconds, ADDED), configuration)


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
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
