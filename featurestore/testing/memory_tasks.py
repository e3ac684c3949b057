"""What whole tasks of a build take, measured, beside what was projected for them.

A build runs in a process of its own, one task at a time; each task is measured from its start to its end,
reading, computing and writing included. States are made by an earlier process, and a task begins when
allocators gave back what the one before it freed, so that this does not hide what the task takes.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featurestore.execution.events import (
    Event,
    StepStarted,
    TaskFinished,
    TaskStarted,
    observed_by,
)
from featurestore.plan.costs import THREAD_BYTES
from featurestore.profiling.sampler import Meter, measure
from featurestore.storage.states import STATES
from featurestore.store import FeatureStore
from featurestore.testing.memory_contract import SOURCE, WARM_ROWS, in_fresh_process, settle
from featurestore.testing.memory_shapes import shape_table
from featurestore.transforms.base import Scope, Transformer, transformer_from_spec

TABLE: Final = "measured"
_WARM: Final = "warm"
_DECAY_SECONDS: Final = 2.5
"""Polars gives back what it freed after two seconds, unasked: what a task before took is gone then."""


@dataclass(frozen=True, slots=True)
class TaskFinding:
    """One task: its step, what it added at its peak, and what it was projected to need, in bytes.

    What its thread takes is in both; a build counts it for each task in flight.
    """

    step: str
    measured: int
    projected: int


def make_tables(shape: str, rows: int, folder: Path) -> None:
    """Make the tables that tasks are measured on; they serve many transformers.

    Parameters
    ----------
    shape : str
    rows : int
        Of each of the two partitions of the measured table. The other table, ``SOURCE``, has one of
        half as many, from the times of the first.
    folder : Path
        An empty one.
    """
    store = FeatureStore.create(str(folder / "store"), memory_limit="8GiB")
    whole = {"key": "k", "time": "t", "partition_bytes": "2GiB", "duplicates": "keep"}
    table = store.ingest(TABLE, shape_table(shape, rows), **whole)  # type: ignore[arg-type]
    table.append(shape_table(shape, rows, start=rows))
    store.ingest(_WARM, shape_table(shape, WARM_ROWS), **whole)  # type: ignore[arg-type]
    store.ingest(SOURCE, shape_table(shape, rows // 2, seed=1), **whole)  # type: ignore[arg-type]


def find_tasks(transformer: Transformer, folder: Path) -> Sequence[TaskFinding]:
    """Measure the tasks that compute a feature: its summary in one process, its values in another.

    Parameters
    ----------
    transformer : Transformer
        One that reads another table reads ``SOURCE``.
    folder : Path
        With tables (:func:`make_tables`), which are afterwards what they were.
    """
    shutil.rmtree(folder / "store" / STATES, ignore_errors=True)  # what others learnt
    (folder / "spec.json").write_text(json.dumps(transformer.spec()))
    if transformer.scope is Scope.NONE:
        return _run(folder)
    first, second = _run(folder), _run(folder)
    summaries = [one for one in first if one.step == "summarize"]
    return [*summaries, *(one for one in second if one.step != "summarize")]


def _run(folder: Path) -> list[TaskFinding]:
    found = in_fresh_process("featurestore.testing.memory_tasks", str(folder))
    return [TaskFinding(**one) for one in found["tasks"]]


class _Watcher:
    """Measures each task between its events."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self._label = ""
        self._meter: Meter | None = None
        self._bytes = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._label = event.label
        elif isinstance(event, TaskStarted):
            time.sleep(_DECAY_SECONDS)
            settle()
            self._bytes, self._meter = event.bytes + THREAD_BYTES, measure(interval=1)
            self._meter.__enter__()
        elif isinstance(event, TaskFinished) and self._meter is not None:
            self._meter.__exit__(None, None, None)
            measured = self._meter.result.added_bytes
            self.tasks.append({"step": self._label, "measured": measured, "projected": self._bytes})


def _measured(folder: Path) -> dict[str, Any]:
    store = FeatureStore.open(str(folder / "store"), memory_limit="8GiB", workers=1)
    spec = json.loads((folder / "spec.json").read_text())
    watcher, table, warm = _Watcher(), store.table(TABLE), store.table(_WARM)
    before = table.columns
    made = transformer_from_spec(spec)
    fit_on = "all" if made.scope is Scope.FIT else None
    warm.add(made, fit_on=fit_on)
    with observed_by(watcher):
        table.add(made, fit_on=fit_on)
    for one in (table, warm):  # the values go, the states that were made stay
        one.drop(*(name for name in one.columns if name not in before))
    return {"tasks": watcher.tasks}


if __name__ == "__main__":
    print(json.dumps(_measured(Path(sys.argv[1]))))
