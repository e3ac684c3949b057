"""Peak memory against data size: 1x, 4x, 16x, 64x the rows, here, with pandas and with dask.dataframe.

Ingest, one feature of each family, what a pipeline learns, a shuffled epoch and XGBoost, each in a fresh
process and under one memory limit, which the kernel keeps where it can. What is bounded stays flat;
what is not grows with the data until its process ends: that is a result, too. Anonymous memory is what
a program holds; resident memory adds pages of mapped files (a loader's pack), which the kernel drops
when it needs them.

    python benchmarks/memory.py [--small] [--rows N] [--factors 1,4,16,64] [--steps ingest,rolling]
                                [--patience SECONDS]

Writes a table to the terminal, and ``memory.json`` and ``.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import (
    MIB,
    OUT,
    described,
    figure,
    parse,
    print_table,
    run_case,
    save,
    tree_bytes,
    write_data,
)
from memory_cases import CASES, STEPS, TOOLS

SMALL_STEPS = ("ingest", "rolling", "as-of join", "fit", "load", "xgboost")
SMALL_PEERS = ("pandas rolling", "dask rolling")
COLORS = {"featurestore": "#3b6ea5", "pandas": "#9b2226", "dask": "#ca9703"}
ACROSS = 5

Results = list[dict[str, Any]]


def draw(results: Results, limit: int) -> Path:
    steps = [one for one in STEPS if any(result["step"] == one for result in results)]
    down = -(-len(steps) // ACROSS)
    across = min(ACROSS, len(steps))
    picture = figure(2.6 * across + 1, 2.6 * down)
    grid = picture.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, step in zip(grid, steps, strict=False):
        for tool in TOOLS:
            _draw_tool(axes, [one for one in results if one["case"] == f"{tool} {step}"], tool)
        axes.axhline(limit / MIB, color="#777777", lw=0.8, ls="--")
        axes.set_title(step, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("data (MiB)", fontsize=8)
        axes.grid(alpha=0.3)
    for axes in grid[len(steps) :]:
        axes.set_visible(False)
    grid[0].set_ylabel("peak memory (MiB)")
    marks = grid[0].get_legend_handles_labels()
    picture.legend(*marks, loc="outside lower center", ncols=4, fontsize=7)
    path = OUT / "memory.png"
    picture.savefig(path)
    return path


def _draw_tool(axes: Any, mine: Results, tool: str) -> None:
    done = [one for one in mine if "error" not in one]
    sizes = [one["data_bytes"] / MIB for one in done]
    for key, style, name in (
        ("peak_bytes", "-", "resident"),
        ("anonymous_bytes", ":", "anonymous"),
    ):
        heights = [one[key] / MIB for one in done]
        axes.plot(
            sizes, heights, style, marker="o", ms=3, color=COLORS[tool], label=f"{tool}, {name}"
        )
    died = [one["data_bytes"] / MIB for one in mine if "error" in one]
    if died:
        top = [max((one["peak_bytes"] for one in done), default=0) / MIB] * len(died)
        axes.plot(died, top, "x", ms=7, color=COLORS[tool], label=f"{tool}, ended")


def small_cases() -> list[str]:
    return [f"featurestore {one}" for one in SMALL_STEPS] + list(SMALL_PEERS)


def measure_all(
    cases: list[str],
    rows: int,
    columns: int,
    factors: list[int],
    partition: str,
    limit: str,
    patience: float | None = None,
    after_each: Callable[[Results], object] = lambda _: None,
) -> Results:
    """Run every case at every size; the store's own in their order, on one store for each size.

    Parameters
    ----------
    patience : float, optional
        Seconds after which a case is ended. One that ended is not tried with more rows.
    after_each : callable, optional
        Gets the results so far after each size, so that a run that is stopped leaves them.
    """
    ended: set[str] = set()
    results: Results = []
    for factor in factors:
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            source = write_data(Path(folder) / "source.parquet", rows * factor, columns)
            quotes = write_data(Path(folder) / "quotes.parquet", rows * factor // 10, 1)
            arguments = {
                "source": str(source), "quotes": str(quotes), "target": f"{folder}/made.parquet",
                "store": f"{folder}/store", "packs": f"{folder}/packs", "rows": rows * factor,
                "memory_limit": limit, "partition_bytes": partition,
            }  # fmt: skip
            size = tree_bytes(source)
            for case in cases:
                tool, step = case.split(" ", 1)
                found = {"error": "ended before: it did so with fewer rows"}
                if case not in ended:
                    found = run_case(str(Path(__file__).resolve()), case, arguments, patience)
                if "error" in found:
                    ended.add(case)
                about = {"case": case, "tool": tool, "step": step, "factor": factor}
                results.append({**about, "data_bytes": size, **found})
                shutil.rmtree(f"{folder}/made.parquet.dask", ignore_errors=True)
        after_each(results)
    return results


def report(results: Results, factors: list[int], limit: str, partition: str) -> None:
    by_case: dict[str, dict[int, dict[str, Any]]] = {}
    for one in results:
        by_case.setdefault(one["case"], {})[one["factor"]] = one
    shown = [
        [case, *(_cell(mine[one]) for one in factors), _seconds(mine[factors[-1]])]
        for case, mine in by_case.items()
    ]
    sizes = {one["factor"]: one["data_bytes"] / MIB for one in results}
    print_table(
        f"peak MiB of the process (of it anonymous), by size of the data; every process has {limit}, "
        f"partitions of {partition}",
        ("", *(f"{one}x: {sizes[one]:,.0f} MiB" for one in factors), "seconds at the last"),
        shown,
    )


def _cell(result: dict[str, Any]) -> str:
    if "error" in result:
        return result["error"].split(":")[0] if ":" in result["error"] else "failed"
    return f"{result['peak_bytes'] / MIB:,.0f} ({result['anonymous_bytes'] / MIB:,.0f})"


def _seconds(result: dict[str, Any]) -> str:
    return "" if "error" in result else f"{result['seconds']:.1f}"


def compare(
    cases: list[str],
    rows: int,
    columns: int,
    factors: list[int],
    partition: str,
    limit: str,
    patience: float | None,
) -> None:
    from featurestore.units import parse_bytes

    configuration = {
        "rows": rows, "columns": columns, "factors": factors,
        "memory_limit": limit, "partition_bytes": partition,
    }  # fmt: skip
    results = measure_all(
        cases, rows, columns, factors, partition, limit, patience,
        after_each=lambda found: save("memory", configuration, found),
    )  # fmt: skip
    report(results, factors, limit, partition)
    print(f"saved {OUT / 'memory.json'} and {draw(results, parse_bytes(limit))}")
    failed = [one for one in results if "error" in one]
    for one in failed:
        print(f"{one['case']} at {one['factor']}x: {one['error']}")
    if any(one["tool"] == "featurestore" for one in failed):
        raise SystemExit("featurestore did not do all steps within the limit")


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=400_000, help="rows at factor 1")
    parser.add_argument("--columns", type=int, default=32)
    parser.add_argument("--factors", default="1,4,16,64")
    parser.add_argument("--partition-bytes", default="32MiB")
    parser.add_argument("--memory-limit", default="1GiB")
    parser.add_argument("--patience", type=float, help="end a case after so many seconds")
    parser.add_argument("--steps", default=",".join(STEPS))
    given = parse(parser, CASES, "50,000 rows x 16 columns, 1x and 4x, some steps")
    if given is None:
        return
    if given.small:
        compare(small_cases(), 50_000, 16, [1, 4], "2MiB", given.memory_limit, given.patience)
        return
    steps = {"ingest", *given.steps.split(",")}  # without which there is no store
    cases = [case for case in CASES if case.split(" ", 1)[1] in steps]
    factors = sorted(int(one) for one in given.factors.split(","))
    compare(
        cases, given.rows, given.columns, factors, given.partition_bytes, given.memory_limit,
        given.patience,
    )  # fmt: skip


if __name__ == "__main__":
    main()
