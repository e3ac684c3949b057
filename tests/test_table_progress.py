"""Progress: silent unless on a terminal, events balanced, bars for what takes longer."""

from __future__ import annotations

import sys
import uuid

import narwhals as nw
import pytest
from rich.progress import Progress

import featurestore as fs
from featurestore.errors import DefinitionError
from featurestore.execution.events import (
    Event,
    StepAdvanced,
    StepFinished,
    StepStarted,
    TaskFinished,
    TaskStarted,
    observed_by,
)
from featurestore.report import progress
from featurestore.testing.tables import observations


def worked() -> fs.Table:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    rows = observations(200)
    table = store.ingest("rows", rows, key="k", time="t", partition_bytes=2500)
    table.add(fs.Expression(double=nw.col("x") * 2), fs.Rolling("double", "1d", stats=["mean"]))
    table.append(observations(20, start=200))
    table.build()
    return table


def test_nothing_is_printed_when_not_on_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    worked()
    assert capfd.readouterr() == ("", "")


def test_everything_on_a_terminal_cleans_up_after_itself(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    worked()
    assert capfd.readouterr().out == ""


def test_each_step_begins_advances_and_ends() -> None:
    events: list[Event] = []
    with observed_by(events.append):
        table = worked()

        def fails(frame: nw.DataFrame) -> nw.Series:  # type: ignore[type-arg]
            if len(frame) < 60:
                raise ValueError("no")
            return frame["x"]

        with pytest.raises(DefinitionError):
            table.add(fs.Function(fails, inputs="x", output="y", dtypes="float64"))
    running: dict[int, StepStarted] = {}
    done: dict[int, int] = {}
    labels = []
    tasks: set[tuple[int, int]] = set()
    names = set()
    for event in events:
        if isinstance(event, StepStarted):
            assert event.step not in done
            running[event.step] = event
            done[event.step] = 0
            labels.append(event.label)
        elif isinstance(event, StepAdvanced):
            assert event.step in running
            done[event.step] = event.done
        elif isinstance(event, TaskStarted):
            assert event.step in running
            assert (event.step, event.task) not in tasks
            tasks.add((event.step, event.task))
            names.add(event.label)
        elif isinstance(event, TaskFinished):
            assert event.step in running
            tasks.remove((event.step, event.task))
        else:
            assert isinstance(event, StepFinished)
            del running[event.step]
    assert running == {}
    assert tasks == set()
    assert "ingest rows: write" in labels
    assert "append to rows: write" in labels
    assert "double" in labels
    assert "double_mean_1d" in labels
    assert "summarize" in labels


def test_a_bar_is_shown_for_steps_that_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bars = Progress()
    show = progress.ProgressBars(bars)
    show(StepStarted(1, "work", 10))
    show(StepAdvanced(1, 1))
    assert bars.tasks == []
    now = 1.5
    show(StepAdvanced(1, 4))
    assert [(one.description, one.completed, one.total) for one in bars.tasks] == [("work", 4, 10)]
    show(StepFinished(1))
    assert bars.tasks == []
    show(StepAdvanced(1, 5))
    show(StepFinished(1))
