"""A progress bar for anything that takes longer than a second; silent when not on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from featurestore.execution.events import (
    Event,
    StepAdvanced,
    StepFinished,
    StepStarted,
    observed_by,
    step,
)

PATIENCE_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Step:
    label: str
    total: int
    started: float
    bar: TaskID | None = None


class ProgressBars:
    """Shows a bar for each step that has run for a second."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps: dict[int, _Step] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._steps[event.step] = _Step(event.label, event.total, time.monotonic())
            return
        step = self._steps.get(event.step)
        if step is None:
            return
        if isinstance(event, StepFinished):
            del self._steps[event.step]
            if step.bar is not None:
                self._progress.remove_task(step.bar)
        elif isinstance(event, StepAdvanced):
            self._advance(step, event)

    def _advance(self, step: _Step, event: StepAdvanced) -> None:
        if step.bar is None and time.monotonic() - step.started > PATIENCE_SECONDS:
            step.bar = self._progress.add_task(step.label, total=step.total or None)
        if step.bar is not None:
            self._progress.update(step.bar, completed=event.done)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show progress of everything inside the block, on standard error if it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        observed_by(ProgressBars(progress)),
    ):
        yield


@contextmanager
def ingest_progress(
    label: str, memory_limit: int = 0
) -> Iterator[Callable[[int, int | None, str, int], None]]:
    """Show progress of an ingest; yields the callback it reports to.

    That is called with rows done, total, phase, and the bytes projected for it.

    Each phase is a step of its own, under the memory limit.
    """
    with progress_bars(), ExitStack() as running:
        current: tuple[str, Callable[[int], None]] | None = None

        def report(done: int, total: int | None, phase: str, projected: int) -> None:
            nonlocal current
            if current is None or current[0] != phase:
                running.close()
                announced = step(
                    f"{label}: {phase}",
                    total or 0,
                    projected_bytes=projected,
                    memory_limit=memory_limit,
                )
                entered = running.enter_context(announced)
                current = (phase, entered)
            current[1](done)

        yield report


@contextmanager
def counted_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress of one step; yields the callback it reports to: done, total as known by then."""
    with progress_bars(), ExitStack() as running:
        known: tuple[int, Callable[[int], None]] | None = None

        def report(done: int, total: int) -> None:
            nonlocal known
            if known is None or known[0] != total:
                running.close()
                known = (total, running.enter_context(step(label, total)))
            known[1](done)

        yield report
