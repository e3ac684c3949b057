"""Keras' ``fit`` from the store beside ``fit`` from NumPy arrays that hold all rows in memory.

N rows of M float32 columns and a label; a network of three dense layers (256, 64, 1); the same batches of
4,096, weights and seeds. Both are fitted in one process, in turn, several rounds; the rate is that of
the median epoch, the first of each ``fit`` left out (the arrays are copied into TensorFlow before it).
Once with one step per execution, once with 16. Before that, both give the same loss of the same
weights.

    python benchmarks/keras_fit.py [--small] [--rows N] [--columns M] [--rounds R]

Writes a table to the terminal, and ``keras_fit.json`` and ``keras_fit.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Measure, Result, ingested, keep_grouped
from feeding import TRAINING, ingest, names, open_dataset
from measuring import described, measured, parse, print_table, run_case, stored_files, write_data

BATCH_ROWS = 4096
STEPS = (1, 16)
LABELS = {"arrays": "NumPy arrays", "store": "the store"}
EPOCHS = 3
KERAS = (*TRAINING, "keras", "training.hooks.keras")


def fit(arguments: dict[str, Any]) -> dict[str, Any]:
    """Fit both ways in turn; return each one's rows a second."""
    import keras
    import polars as pl

    from training import Loader

    found: dict[str, Any] = {}

    def work() -> None:
        part = open_dataset(arguments).all
        loader = Loader(part, BATCH_ROWS, shuffle=True, seed=1, cache=arguments["cache"])
        frame = pl.read_parquet(arguments["files"], columns=[*names(arguments), "y"])
        x, y = frame.drop("y").to_numpy(order="c"), frame["y"].to_numpy()
        del frame
        feeds: dict[str, dict[str, Any]] = {
            "arrays": {"x": x, "y": y, "batch_size": BATCH_ROWS, "shuffle": True},
            "store": {"x": loader.keras(inputs="tuple")},
        }
        models = {one: built(arguments) for one in feeds}
        found["start"] = {
            one: models[one].evaluate(**without_shuffle(feed), verbose=0)
            for one, feed in feeds.items()
        }
        seconds: dict[str, list[float]] = {one: [] for one in feeds}
        losses: dict[str, float] = {}
        for _ in range(arguments["rounds"]):
            for one, feed in feeds.items():
                epochs = Epochs()
                fitted = models[one].fit(**feed, epochs=EPOCHS, verbose=0, callbacks=[epochs])
                seconds[one] += epochs.seconds[1:]
                losses[one] = fitted.history["loss"][-1]
        found.update(seconds=seconds, losses=losses)

    class Epochs(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []
            self._start = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(time.perf_counter() - self._start)

    return {**measured(work, KERAS), **found}


def without_shuffle(feed: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in feed.items() if key != "shuffle"}


def built(arguments: dict[str, Any]) -> Any:
    """Return the network, with the same weights each time."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((arguments["columns"],)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(
        optimizer="adam", loss="binary_crossentropy", steps_per_execution=arguments["steps"]
    )
    return model


CASES = {"ingest": ingest, "fit": fit}


def _named(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''} per execution"


def separated(steps: int, rows: int, result: Result) -> list[Result]:
    """Return a result for each of both ways."""
    if "error" in result:
        return [{"steps": _named(steps), "case": one, **result} for one in LABELS]
    both = []
    for one in LABELS:
        seconds = statistics.median(result["seconds"][one])
        both.append(
            {
                "steps": _named(steps), "case": one, "rows_per_second": rows / seconds,
                "ratio": statistics.median(result["seconds"]["arrays"]) / seconds,
                "start": result["start"][one], "loss": result["losses"][one],
                "epochs": result["seconds"][one],
            }
        )  # fmt: skip
    return both


def differing(results: list[Result]) -> list[str]:
    """Return where both did not begin with the same loss, or ended with quite another."""
    wrong = []
    for arrays, store in zip(results[::2], results[1::2], strict=True):
        if "error" in arrays:
            continue
        same = np.isclose(arrays["start"], store["start"], rtol=1e-4)
        if not same or not np.isclose(arrays["loss"], store["loss"], rtol=0.05):
            wrong.append(f"{arrays['steps']}: {arrays} and {store}")
    return wrong


MEASURES = (
    Measure("million rows/s", lambda one: one["rows_per_second"] / 1e6),
    Measure("times the arrays", lambda one: one["ratio"], 3),
    Measure("last loss", lambda one: one["loss"], 4),
)


def compare(rows: int, columns: int, rounds: int, memory_limit: str) -> None:
    with tempfile.TemporaryDirectory(prefix="keras_fit-") as folder:
        source = write_data(Path(folder) / "source.parquet", rows, columns, label=True)
        arguments: dict[str, Any] = {
            "source": str(source), "store": f"{folder}/store", "cache": f"{folder}/packs",
            "columns": columns, "rounds": rounds, "memory_limit": memory_limit,
        }  # fmt: skip
        ingested(__file__, arguments)
        source.unlink()
        arguments["files"] = stored_files(arguments["store"])
        results = [
            one
            for steps in STEPS
            for one in separated(
                steps, rows, run_case(__file__, "fit", {**arguments, "steps": steps})
            )
        ]
    title = f"fit on {rows:,} rows x {columns} float32, batches of {BATCH_ROWS:,}"
    print_table(
        title,
        ("", "", *(one.heading for one in MEASURES)),
        [
            [one["steps"], LABELS[one["case"]], one["error"]]
            if "error" in one
            else [one["steps"], LABELS[one["case"]], *(found.text(one) for found in MEASURES)]
            for one in results
        ],
    )
    wrong = differing(results)
    if wrong:
        raise SystemExit("they did not train on the same: " + "; ".join(wrong))
    configuration = {"rows": rows, "columns": columns, "rounds": rounds, "batch": BATCH_ROWS}
    keep_grouped(
        "keras_fit", title, ("steps", [_named(one) for one in STEPS]), ("case", LABELS), results,
        MEASURES[:2], configuration,
    )  # fmt: skip


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-limit", default="4GiB")
    given = parse(parser, CASES, "60,000 rows x 16 columns, one round")
    if given is None:
        return
    if given.small:
        compare(60_000, 16, 1, given.memory_limit)
    else:
        compare(given.rows, given.columns, given.rounds, given.memory_limit)


if __name__ == "__main__":
    main()
