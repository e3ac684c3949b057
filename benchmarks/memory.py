"""Peak memory against data size: 1x, 4x, 16x the rows, here and in memory with pandas.

Ingest, one row-wise feature, one rolling feature, and a dataset read batch by batch, each in a fresh
process. What is bounded stays flat; what is not grows with the data. Anonymous memory is what a
program holds; resident memory adds pages of mapped files (a loader's pack), which the kernel drops when
it needs them.

    python benchmarks/memory.py [--small] [--rows N] [--factors 1,4,16,64]

Writes a table to the terminal, and ``memory.json`` and ``.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import (
    MIB,
    OURS,
    OUT,
    PANDAS,
    described,
    figure,
    measured,
    parse,
    print_table,
    run_case,
    save,
    tree_bytes,
    write_data,
)

STEPS = ("ingest", "expression", "rolling", "load")
BATCH_ROWS = 4096


def _table(arguments: dict[str, Any]) -> Any:
    import featurestore as fs

    place = arguments["store"]
    return fs.FeatureStore.open(place, memory_limit=arguments["memory_limit"]).table("data")


def store_ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
    size = arguments["partition_bytes"]
    source = arguments["source"]
    return measured(
        lambda: store.ingest("data", source, key="entity", time="time", partition_bytes=size),
        OURS,
    )


def store_expression(arguments: dict[str, Any]) -> dict[str, Any]:
    import narwhals as nw

    import featurestore as fs

    table = _table(arguments)
    return measured(lambda: table.add(fs.Expression(ratio=nw.col("x0") / nw.col("x1"))), OURS)


def store_rolling(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs

    table = _table(arguments)
    rolling = fs.Rolling("x2", by="entity", window="10s", stats=["mean", "std"], closed="left")
    return measured(lambda: table.add(rolling), OURS)


def store_load(arguments: dict[str, Any]) -> dict[str, Any]:
    import featurestore as fs
    import training

    table = _table(arguments)

    def work() -> None:
        pipeline = fs.Pipeline(fs.Standardize(fs.numeric()))
        data = table.dataset(
            features=[name for name in table.columns if name.startswith("x")], pipeline=pipeline
        )
        loader = training.Loader(
            data.all, batch_size=BATCH_ROWS, shuffle=True, seed=0, cache=arguments["packs"]
        )
        rows = sum(batch.rows for batch in loader)
        if rows != arguments["rows"]:
            raise SystemExit(f"{rows} rows were loaded of {arguments['rows']}")

    return measured(work, OURS)


def _frame(arguments: dict[str, Any]) -> Any:
    import pandas as pd

    return pd.read_parquet(arguments["source"])


def pandas_ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    return measured(lambda: _frame(arguments).sort_values(["time", "entity"]), PANDAS)


def pandas_expression(arguments: dict[str, Any]) -> dict[str, Any]:
    def work() -> None:
        frame = _frame(arguments)
        frame["ratio"] = frame["x0"] / frame["x1"]
        frame.to_parquet(arguments["target"])

    return measured(work, PANDAS)


def pandas_rolling(arguments: dict[str, Any]) -> dict[str, Any]:
    def work() -> None:
        frame = _frame(arguments).set_index("time")
        window = frame.groupby("entity")["x2"].rolling("10s", closed="left")
        window.agg(["mean", "std"])

    return measured(work, PANDAS)


def pandas_load(arguments: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    def work() -> None:
        frame = _frame(arguments)
        names = [name for name in frame.columns if name.startswith("x")]
        values = frame[names]
        scaled = ((values - values.mean()) / values.std()).to_numpy(dtype=np.float32)
        order = np.random.default_rng(0).permutation(len(scaled))
        for start in range(0, len(order), BATCH_ROWS):
            scaled[order[start : start + BATCH_ROWS]].sum()

    return measured(work, PANDAS)


CASES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "featurestore ingest": store_ingest,
    "featurestore expression": store_expression,
    "featurestore rolling": store_rolling,
    "featurestore load": store_load,
    "pandas ingest": pandas_ingest,
    "pandas expression": pandas_expression,
    "pandas rolling": pandas_rolling,
    "pandas load": pandas_load,
}


def draw(results: list[dict[str, Any]]) -> Path:
    picture = figure(11, 3.8)
    for axes, step in zip(picture.subplots(1, len(STEPS), sharey=True), STEPS, strict=True):
        for tool, color in (("featurestore", "#3b6ea5"), ("pandas", "#9b2226")):
            mine = [
                one for one in results if one["case"] == f"{tool} {step}" and "error" not in one
            ]
            sizes = [one["data_bytes"] / MIB for one in mine]
            for key, style, name in (
                ("added_bytes", "-", f"{tool}, resident"),
                ("added_anonymous_bytes", ":", f"{tool}, anonymous"),
            ):
                heights = [one[key] / MIB for one in mine]
                axes.plot(sizes, heights, style, marker="o", ms=3, color=color, label=name)
        axes.set_title(step, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("data (MiB)")
        axes.grid(alpha=0.3)
    picture.axes[0].set_ylabel("peak memory above imports (MiB)")
    picture.axes[0].legend(fontsize=8)
    path = OUT / "memory.png"
    picture.savefig(path)
    return path


def compare(rows: int, columns: int, factors: list[int], partition: str, limit: str) -> None:
    results: list[dict[str, Any]] = []
    for factor in factors:
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            source = write_data(Path(folder) / "source.parquet", rows * factor, columns)
            arguments = {
                "source": str(source), "target": f"{folder}/rewritten.parquet",
                "store": f"{folder}/store", "packs": f"{folder}/packs", "rows": rows * factor,
                "memory_limit": limit, "partition_bytes": partition,
            }  # fmt: skip
            size = tree_bytes(source)
            for case in CASES:
                result = run_case(__file__, case, arguments)
                results.append({"case": case, "factor": factor, "data_bytes": size, **result})
    shown = []
    for case in CASES:
        mine = {one["factor"]: one for one in results if one["case"] == case}
        shown.append(
            [
                case,
                *(_cell(mine[factor]) for factor in factors),
                _cell(mine[factors[-1]], "seconds"),
            ]
        )
    sizes = {one["factor"]: one["data_bytes"] / MIB for one in results}
    print_table(
        f"peak MiB above imports, (anonymous), by size of the data; memory_limit {limit}, partitions "
        f"of {partition}",
        (
            "",
            *(f"{factor}x: {sizes[factor]:,.0f} MiB" for factor in factors),
            "seconds at the last",
        ),
        shown,
    )
    configuration = {
        "rows": rows, "columns": columns, "factors": factors,
        "memory_limit": limit, "partition_bytes": partition,
    }  # fmt: skip
    print(f"saved {save('memory', configuration, results)} and {draw(results)}")
    failed = [one for one in results if "error" in one and one["case"].startswith("featurestore")]
    if failed:
        raise SystemExit(
            "\n".join(f"{one['case']} at {one['factor']}x: {one['error']}" for one in failed)
        )


def _cell(result: dict[str, Any], key: str = "added_bytes") -> str:
    if "error" in result:
        return "failed"
    if key == "seconds":
        return f"{result[key]:.1f}"
    return f"{result[key] / MIB:,.0f} ({result['added_anonymous_bytes'] / MIB:,.0f})"


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=400_000, help="rows at factor 1")
    parser.add_argument("--columns", type=int, default=32)
    parser.add_argument("--factors", default="1,4,16")
    parser.add_argument("--partition-bytes", default="32MiB")
    parser.add_argument("--memory-limit", default="1GiB")
    given = parse(parser, CASES, "50,000 rows x 16 columns, 1x and 4x")
    if given is None:
        return
    if given.small:
        compare(50_000, 16, [1, 4], "2MiB", given.memory_limit)
    else:
        factors = sorted(int(one) for one in given.factors.split(","))
        compare(given.rows, given.columns, factors, given.partition_bytes, given.memory_limit)


if __name__ == "__main__":
    main()
