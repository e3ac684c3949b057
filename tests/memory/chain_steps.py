"""The steps of a chain from files to a model, each run as a process of its own under a memory limit.

    python chain_steps.py STEP FOLDER LIMIT [--kill-after TASKS]

The kernel kills the process where it keeps limits and the step goes beyond it. The last line written is
a JSON object: what keeps the limit (``mechanism``), the most the process ``held`` with its children
(memory that is no file's; sampled), its ``mark`` (all pages, those of mapped files included), projections
that were too small (``warnings``), how many ``tasks`` it had, and what it made (``made``), which two
runs have in common.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import narwhals as nw

import featurestore as fs
from featurestore.errors import EnforcementWarning, MemoryProjectionWarning
from featurestore.execution.events import Event, TaskFinished, observed_by

FEATURES = ("ratio", "x1_mean_30s", "x2_lag_1", "quote", "place_code")
BATCH_ROWS = 4096
READ_ROWS = 65_536
ROUNDS = 3


def transformers() -> list[Any]:
    return [
        fs.Expression(ratio=nw.col("x0") / (nw.col("x1") * nw.col("x1") + 1)),
        fs.Rolling("x1", by="sensor", window="30s", stats=["mean"], closed="left"),
        fs.Lag("x2", by="sensor"),
        fs.AsOfJoin("quotes", columns=["quote"], by="sensor", max_age="1h"),
        fs.Categorify("place", suffix="_code"),
    ]


def place(folder: Path) -> fs.FeatureStore:
    return fs.FeatureStore.open(folder / "store", memory_limit=LIMIT, workers=2, scratch=folder)


def ingest(folder: Path) -> dict[str, Any]:
    store = fs.FeatureStore.create(folder / "store", memory_limit=LIMIT, workers=2, scratch=folder)
    size = json.loads((folder / "chain.json").read_text())["partition_bytes"]
    for name in ("quotes", "readings"):
        source = str(folder / f"{name}*.parquet")
        store.ingest(name, source, key="sensor", time="time", partition_bytes=size)
    table = store.table("readings")
    return {"rows": table.rows, "partitions": table.partitions, "bytes": decoded_bytes(table)}


def decoded_bytes(table: fs.Table) -> int:
    """Return what the table's values take in memory, as recorded when they were written."""
    return sum(one.decoded_bytes for one in table._files().base)


def build(folder: Path) -> dict[str, Any]:
    report = place(folder).table("readings").add(*transformers(), fit_on="all")
    return {"computed": report.computed, "resumed": report.resumed}


def check(folder: Path) -> dict[str, Any]:
    table = place(folder).table("readings")
    digest = hashlib.sha256()
    for start in range(0, table.rows, READ_ROWS):
        rows = table.read(["sensor", "time", *FEATURES], slice(start, start + READ_ROWS), "arrow")
        for column in rows.itercolumns():
            for chunk in column.chunks:
                digest.update(repr(chunk.null_count).encode())
                for buffer in chunk.fill_null(chunk[0] if len(chunk) else None).buffers()[1:]:
                    digest.update(b"" if buffer is None else memoryview(buffer))
    lineage = table.lineage(*FEATURES)
    return {"fresh": table.status().is_fresh, "lineage": lineage, "values": digest.hexdigest()}


def loader(folder: Path) -> Any:
    import training

    table = place(folder).table("readings")
    numbers = [one for one in table.columns if one.startswith("x")]
    data = table.dataset(
        [*numbers, "ratio", "quote", "place_code", "place"],
        label="label",
        pipeline=fs.Pipeline(
            fs.Impute(["ratio", "quote"]), fs.Standardize(["ratio", "quote", *numbers]),
            fs.Categorify("place", max_size=5000),
        ),
    )  # fmt: skip
    return training.Loader(data.all, BATCH_ROWS, shuffle=True, seed=1, cache=folder / "packs")


def epoch(folder: Path) -> dict[str, Any]:
    batches = loader(folder)
    digest, rows = hashlib.sha256(), 0
    for batch in batches:
        rows += batch.rows
        for name in sorted(batch.inputs):
            digest.update(batch.inputs[name])
    return {"rows": rows, "batches": digest.hexdigest()}


def boost(folder: Path) -> dict[str, Any]:
    import xgboost

    from training.hooks.xgboost import dmatrix

    matrix = dmatrix(loader(folder), max_bin=64, page_bytes="32MiB", nthread=1)
    settings = {
        "tree_method": "hist", "max_bin": 64, "max_depth": 4, "nthread": 1, "seed": 0,
        "objective": "binary:logistic",
    }  # fmt: skip
    history: dict[str, Any] = {}
    booster = xgboost.train(
        settings,
        matrix,
        ROUNDS,
        evals=[(matrix, "train")],
        evals_result=history,
        verbose_eval=False,
    )
    model = hashlib.sha256(booster.save_raw("json")).hexdigest()
    return {"model": model, "loss": history["train"]["logloss"]}


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    one.__name__: one for one in (ingest, build, check, epoch, boost)
}


class Tasks:
    """Counts the tasks that are finished, and kills the process after so many; never after 0."""

    def __init__(self, kill_after: int) -> None:
        self.finished = 0
        self._kill_after = kill_after

    def __call__(self, event: Event) -> None:
        self.finished += isinstance(event, TaskFinished)
        if self._kill_after and self.finished >= self._kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def texts(caught: Iterable[warnings.WarningMessage], kind: type[Warning]) -> list[str]:
    return [str(one.message) for one in caught if issubclass(one.category, kind)]


def main() -> None:
    global LIMIT  # noqa: PLW0603 - a script's one setting
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("limit")
    parser.add_argument("--kill-after", type=int, default=0)
    given = parser.parse_args()
    LIMIT = given.limit
    tasks = Tasks(given.kill_after)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", MemoryProjectionWarning)
        warnings.simplefilter("always", EnforcementWarning)
        with (
            fs.enforced(given.limit) as enforcement,
            observed_by(tasks),
            fs.measure(0.1, children=True) as meter,
        ):
            mechanism = enforcement.mechanism
            made = STEPS[given.step](given.folder)
    found = {
        "mechanism": mechanism,
        "held": max(one.anonymous + one.shared + one.children for one in meter.result.samples),
        "mark": meter.peak_bytes,
        "seconds": meter.seconds,
        "tasks": tasks.finished,
        "warnings": texts(caught, MemoryProjectionWarning),
        "made": made,
    }
    print(json.dumps(found))


LIMIT = ""

if __name__ == "__main__":
    main()
