"""XGBoost from external memory, fed by the store; beside all rows in memory, and Parquet files.

N rows of M float32 columns and a binary label; the last tenth in time is held out. Each case trains the
same number of rounds (histograms of 256 bins, depth 6) in a fresh process and predicts the held-out
rows:

* ``Loader.xgboost``: the pack is written (shown apart: later runs and other models find it), then its
  pages are quantised into XGBoost's cache on the disk;
* a ``DataIter`` over the same Parquet files, which XGBoost goes through several times;
* all rows as one array in memory, in a ``QuantileDMatrix``.

    python benchmarks/xgboost_external.py [--small] [--rows N] [--columns M] [--rounds R] [--depth D]

Writes a table to the terminal, and ``xgboost_external.json`` and ``.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import datetime as dt
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from comparison import PEAK, Measure, Result, ingested, keep, mebibytes, run_cases, show
from feeding import TRAINING, Array, Arrays, ingest, names, open_dataset, side_by_side
from measuring import described, measured, parse, stored_files, write_data

ENTITIES = 1000
LABELS = {
    "store": "from the store",
    "parquet": "DataIter over Parquet",
    "memory": "all rows in memory",
}
BINS = 256


def held_out_second(rows: int) -> int:
    """Return the second at which the held-out rows begin."""
    return rows * 9 // 10 // ENTITIES


def train(
    arguments: dict[str, Any],
    build: Callable[[], tuple[Any, float]],
    held_out: Callable[[], Iterator[Arrays]],
    imports: tuple[str, ...],
) -> Result:
    """Build a matrix, train on it, predict; ``build`` also says what its pack took."""
    import xgboost

    found: dict[str, Any] = {}
    ends: list[float] = []

    class Rounds(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            ends.append(time.perf_counter())
            return False

    def work() -> None:
        start = time.perf_counter()
        matrix, pack_seconds = build()
        found["build_seconds"] = time.perf_counter() - start - pack_seconds
        found["pack_seconds"] = pack_seconds
        params = {
            "objective": "binary:logistic", "tree_method": "hist", "grow_policy": "depthwise",
            "max_bin": BINS, "max_depth": arguments["depth"], "seed": 0,
        }  # fmt: skip
        ends.append(time.perf_counter())
        booster = xgboost.train(params, matrix, arguments["rounds"], callbacks=[Rounds()])
        found["round_seconds"] = statistics.median(np.diff(ends).tolist())
        found.update(scored(booster, held_out()))

    return {**measured(work, (*imports, "xgboost")), **found}


def scored(booster: Any, batches: Iterator[Arrays]) -> dict[str, Any]:
    """Return the mean logarithmic loss of held-out rows, and how many there are."""
    total, rows = 0.0, 0
    for inputs, label in batches:
        chance = np.clip(booster.inplace_predict(inputs).astype(np.float64), 1e-7, 1 - 1e-7)
        total -= float(np.log(np.where(label > 0, chance, 1 - chance)).sum())
        rows += len(label)
    return {"loss": total / max(1, rows), "held_out_rows": rows}


def from_store(arguments: dict[str, Any]) -> Result:
    import featurestore as fs

    opened: dict[str, Any] = {}

    def loader(part: Any) -> Any:
        from training import Loader

        return Loader(part, 65_536, cache=arguments["cache"])

    def build() -> tuple[Any, float]:
        from training.hooks.xgboost import dmatrix

        first = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=held_out_second(arguments["rows"]))  # noqa: DTZ001
        opened["data"] = open_dataset(arguments, fs.TimeSplit(valid=first))
        rows = loader(opened["data"].train)
        start = time.perf_counter()
        _ = rows.pack
        packed = time.perf_counter() - start
        return dmatrix(rows, max_bin=BINS), packed

    def held_out() -> Iterator[Arrays]:
        for batch in loader(opened["data"].valid):
            assert batch.label is not None
            yield batch.inputs["numeric"], batch.label

    return train(arguments, build, held_out, (*TRAINING, "training.hooks.xgboost"))


def file_rows(arguments: dict[str, Any], file: str, *, last: bool) -> Arrays:
    """Read one Parquet file: its held-out rows, or those before."""
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["time", *names(arguments), "y"])
    seconds = table["time"].to_numpy().astype("datetime64[s]").astype(np.int64)
    # Rows lie in order of time: either kind is a slice.
    cut = int(np.searchsorted(seconds, held_out_second(arguments["rows"])))
    table = table.slice(cut) if last else table.slice(0, cut)
    columns = [table[name].to_numpy() for name in names(arguments)]
    return side_by_side(columns), table["y"].to_numpy()


def file_by_file(arguments: dict[str, Any], *, last: bool) -> Iterator[Arrays]:
    for file in arguments["files"]:
        inputs, label = file_rows(arguments, file, last=last)
        if len(label):
            yield inputs, label


def from_parquet(arguments: dict[str, Any]) -> Result:
    import xgboost

    class Files(xgboost.DataIter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(cache_prefix=f"{arguments['scratch']}/cache")
            self._left = file_by_file(arguments, last=False)

        def next(self, input_data: Callable[..., Any]) -> bool:
            found = next(self._left, None)
            if found is not None:
                input_data(data=found[0], label=found[1])
            return found is not None

        def reset(self) -> None:
            self._left = file_by_file(arguments, last=False)

    def build() -> tuple[Any, float]:
        Path(arguments["scratch"]).mkdir()
        return xgboost.ExtMemQuantileDMatrix(Files(), max_bin=BINS), 0.0

    return train(
        arguments, build, lambda: file_by_file(arguments, last=True), ("pyarrow.parquet", "pandas")
    )


def from_memory(arguments: dict[str, Any]) -> Result:
    import xgboost

    def build() -> tuple[Any, float]:
        pages: list[Array] = []
        labels: list[Array] = []
        for inputs, label in file_by_file(arguments, last=False):
            pages.append(inputs)
            labels.append(label)
        inputs = np.concatenate(pages)
        pages.clear()
        return xgboost.QuantileDMatrix(inputs, np.concatenate(labels), max_bin=BINS), 0.0

    return train(
        arguments, build, lambda: file_by_file(arguments, last=True), ("pyarrow.parquet", "pandas")
    )


CASES = {"ingest": ingest, "store": from_store, "parquet": from_parquet, "memory": from_memory}
MEASURES = (
    Measure("seconds to pack", lambda one: one["pack_seconds"]),
    Measure("seconds to build", lambda one: one["build_seconds"]),
    Measure("seconds a round", lambda one: one["round_seconds"], 3),
    PEAK,
    mebibytes("added_anonymous_bytes", "anonymous MiB above imports"),
    Measure("held-out loss", lambda one: one["loss"], 5),
)


def differing(results: list[Result]) -> list[str]:
    """Return who predicts other rows, or predicts them less well, than the case in memory."""
    done = [one for one in results if "error" not in one]
    return [
        f"{one['case']}: {one['held_out_rows']} rows, loss {one['loss']}"
        for one in done
        if one["held_out_rows"] != done[-1]["held_out_rows"]
        or not np.isclose(one["loss"], done[-1]["loss"], rtol=0.01)
    ]


def compare(rows: int, columns: int, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="xgboost_external-") as folder:
        source = write_data(Path(folder) / "source.parquet", rows, columns, ENTITIES, label=True)
        arguments = {
            **options, "source": str(source), "store": f"{folder}/store",
            "cache": f"{folder}/packs", "scratch": f"{folder}/scratch", "rows": rows,
            "columns": columns,
        }  # fmt: skip
        ingested(__file__, arguments)
        source.unlink()
        arguments["files"] = stored_files(arguments["store"])
        results = run_cases(__file__, LABELS, arguments)
    title = (
        f"{options['rounds']} rounds of depth {options['depth']} on {rows:,} rows x {columns} "
        f"float32, a tenth held out"
    )
    show(title, LABELS, results, MEASURES)
    wrong = differing(results)
    if wrong:
        raise SystemExit("the models differ: " + "; ".join(wrong))
    keep(
        "xgboost_external", title, LABELS, results, MEASURES[1:5],
        {"rows": rows, "columns": columns, **options}, others=("parquet", "memory"),
    )  # fmt: skip


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--memory-limit", default="2GiB")
    given = parse(parser, CASES, "100,000 rows x 16 columns, 4 rounds")
    if given is None:
        return
    options = {"rounds": given.rounds, "depth": given.depth, "memory_limit": given.memory_limit}
    if given.small:
        compare(100_000, 16, {**options, "rounds": 4})
    else:
        compare(given.rows, given.columns, options)


if __name__ == "__main__":
    main()
