"""From events of the core to phases and spans of a recording, each with its exact peak.

Always true: at every moment of a recording a phase is open. What lies between two steps is a phase
of its own, so that memory taken there has a name too. Steps may overlap; then their phases do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from threading import Lock
from typing import Any, Final, TypeAlias

from featurestore.execution.events import (
    Event,
    StepFinished,
    StepStarted,
    TaskFinished,
    TaskStarted,
)
from featurestore.profiling.recording import BETWEEN
from featurestore.watermark import Watermark

# A stretch between steps that is shorter and took less is nothing to look at.
_SHORT_SECONDS: Final = 0.002
_SMALL_BYTES: Final = 2**20
_LABEL_LENGTH: Final = 200

Tell: TypeAlias = Callable[..., None]


@dataclass(slots=True)
class _Gap:
    number: int
    start: float
    after: str
    mark: Watermark


class Recorder:
    """An observer of events that tells a recording about them; safe from several threads.

    Parameters
    ----------
    tell : callable
        Takes messages of ``Recording.tell``.
    began : float
        The moment that counts as second 0, of ``time.monotonic``.
    """

    def __init__(self, tell: Tell, began: float) -> None:
        self._tell, self._began = tell, began
        self._lock = Lock()
        self._steps: dict[int, tuple[str, Watermark]] = {}
        self._lanes: dict[tuple[int, int], int] = {}
        self._free_lanes: list[int] = []
        self._gap: _Gap | None = None
        self._gaps = 0
        self._closed = False
        self._open_gap("")

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._closed:
                return  # another thread was on its way here
            if isinstance(event, StepStarted):
                self._start_step(event)
            elif isinstance(event, StepFinished):
                self._finish_step(event)
            elif isinstance(event, TaskStarted):
                self._start_task(event)
            elif isinstance(event, TaskFinished):
                self._finish_task(event)

    def close(self) -> None:
        """End what is open, and tell nothing any more."""
        with self._lock:
            self._closed = True
            for step in tuple(self._steps):
                self._finish_step(StepFinished(step))
            self._close_gap("")

    # --- steps and what is between them -----------------------------------------------------------

    def _start_step(self, event: StepStarted) -> None:
        label = event.label[:_LABEL_LENGTH]
        self._close_gap(label)
        mark = Watermark().start()
        self._steps[event.step] = (label, mark)
        self._open_phase(
            event.step,
            label,
            event.kind,
            mark,
            projected_bytes=event.projected_bytes,
            memory_limit=event.memory_limit,
        )

    def _finish_step(self, event: StepFinished) -> None:
        if event.step not in self._steps:
            return  # it began before the recording
        label, mark = self._steps.pop(event.step)
        self._close_phase(event.step, mark)
        for key in [key for key in self._lanes if key[0] == event.step]:
            self._end_task(key)
        if not self._steps:
            self._open_gap(label)

    def _open_gap(self, after: str) -> None:
        self._gaps += 1
        mark = Watermark().start()
        self._gap = _Gap(-self._gaps, self._now(), after, mark)
        self._open_phase(self._gap.number, _between(after, ""), BETWEEN, mark)

    def _close_gap(self, before: str) -> None:
        gap, self._gap = self._gap, None
        if gap is None:
            return
        gap.mark.stop()
        short = self._now() - gap.start < _SHORT_SECONDS
        if short and gap.mark.added_bytes < _SMALL_BYTES and (gap.after or before):
            self._tell("phase drops", gap.number)
        else:
            self._close_phase(gap.number, gap.mark, label=_between(gap.after, before))

    def _open_phase(
        self, number: int, label: str, kind: str, mark: Watermark, **figures: int
    ) -> None:
        fields: dict[str, Any] = {
            "label": label,
            "kind": kind,
            "start": self._now(),
            "start_bytes": mark.start_bytes,
            **figures,
        }
        self._tell("phase", number, fields)

    def _close_phase(self, number: int, mark: Watermark, **more: str) -> None:
        figures = {"stop": self._now(), "peak_bytes": mark.stop(), "exact": mark.exact}
        self._tell("phase ends", number, {**figures, **more})

    # --- tasks ------------------------------------------------------------------------------------------

    def _start_task(self, event: TaskStarted) -> None:
        if event.step not in self._steps:
            return
        lane = heappop(self._free_lanes) if self._free_lanes else len(self._lanes)
        self._lanes[event.step, event.task] = lane
        fields: dict[str, Any] = {
            "phase": event.step,
            "lane": lane,
            "label": event.label[:_LABEL_LENGTH],
            "start": self._now(),
            "bytes": event.bytes,
        }
        self._tell("span", f"{event.step} {event.task}", fields)

    def _finish_task(self, event: TaskFinished) -> None:
        if (event.step, event.task) in self._lanes:
            self._end_task((event.step, event.task))

    def _end_task(self, key: tuple[int, int]) -> None:
        heappush(self._free_lanes, self._lanes.pop(key))
        self._tell("span ends", f"{key[0]} {key[1]}", self._now())

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 6)


def _between(after: str, before: str) -> str:
    if after and before:
        return f"between {after} and {before}"
    if after:
        return f"after {after}"
    return f"before {before}" if before else "outside all steps"
