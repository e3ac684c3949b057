"""What whole tasks of a build take, measured, beside what was projected for them.

A build runs in a process of its own, one task at a time; each task is measured from its start to its end,
reading, computing and writing included. States are made by an earlier process, so that what their
computation left in an allocator does not hide what the next task takes.
"""

from __future__ import annotations

import json
import sys
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
from featurestore.profiling.sampler import Meter, measure
from featurestore.store import FeatureStore
from featurestore.testing.memory_contract import SOURCE, WARM_ROWS, in_fresh_process, settle
from featurestore.testing.memory_shapes import shape_table
from featurestore.transforms.base import Transformer, transformer_from_spec

TABLE: Final = "measured"
_WARM: Final = "warm"


@dataclass(frozen=True, slots=True)
class TaskFinding:
    """One task: its step, what it added at its peak, and what it was projected to need, in bytes."""

    step: str
    measured: int
    projected: int


def find_tasks(
    transformer: Transformer, shape: str, rows: int, folder: Path
) -> Sequence[TaskFinding]:
    """Measure the tasks that compute a feature of a table of one partition; states are kept already.

    Parameters
    ----------
    transformer : Transformer
        One that reads another table reads ``SOURCE``, of half as many rows.
    shape : str
    rows : int
    folder : Path
        An empty one.
    """
    store = FeatureStore.create(str(folder / "store"), memory_limit="8GiB")
    whole = {"key": "k", "time": "t", "partition_bytes": "2GiB", "duplicates": "keep"}
    store.ingest(TABLE, shape_table(shape, rows), **whole)  # type: ignore[arg-type]
    store.ingest(_WARM, shape_table(shape, WARM_ROWS), **whole)  # type: ignore[arg-type]
    store.ingest(SOURCE, shape_table(shape, rows // 2, seed=1), **whole)  # type: ignore[arg-type]
    (folder / "spec.json").write_text(json.dumps(transformer.spec()))
    first, second = (_run(folder, number) for number in (1, 2))
    summaries = [one for one in first if one.step == "summarize"]
    return [*summaries, *(one for one in second if one.step != "summarize")]


def _run(folder: Path, number: int) -> list[TaskFinding]:
    found = in_fresh_process("featurestore.testing.memory_tasks", str(folder), str(number))
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
            settle()
            self._bytes, self._meter = event.bytes, measure(interval=1)
            self._meter.__enter__()
        elif isinstance(event, TaskFinished) and self._meter is not None:
            self._meter.__exit__(None, None, None)
            measured = self._meter.result.added_bytes
            self.tasks.append({"step": self._label, "measured": measured, "projected": self._bytes})


def _measured(folder: Path, number: int) -> dict[str, Any]:
    store = FeatureStore.open(str(folder / "store"), memory_limit="8GiB", workers=1)
    spec = json.loads((folder / "spec.json").read_text())
    watcher, table, warm = _Watcher(), store.table(TABLE), store.table(_WARM)
    before = table.columns
    warm.add(transformer_from_spec(spec))
    with observed_by(watcher):
        table.add(transformer_from_spec(spec))
    if number == 1:  # its values go, the states it made stay
        for one in (table, warm):
            one.drop(*(name for name in one.columns if name not in before))
    return {"tasks": watcher.tasks}


if __name__ == "__main__":
    print(json.dumps(_measured(Path(sys.argv[1]), int(sys.argv[2]))))
