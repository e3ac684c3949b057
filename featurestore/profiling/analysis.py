"""What a timeline says about each phase: how much it held, against what was projected and allowed.

"Held" is what counts against a memory limit: all resident pages of the process and its children
except data of mapped files. A phase's exact peak counts mapped pages too, so where a phase maps data,
what it held is exact only to the samples' grain. It is never overstated.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from featurestore.profiling.recording import BETWEEN
from featurestore.profiling.records import Phase, Sample, Span
from featurestore.profiling.timeline import Timeline
from featurestore.units import format_bytes

# A limit is drawn if the chart need not grow by more than this for it.
LIMIT_ROOM: Final = 1.6
# A stretch between steps stands alone in tables if it takes this share of the time.
_NOTEWORTHY: Final = 0.05
_SAME_HEIGHT: Final = 0.99


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """A phase with what it held.

    Parameters
    ----------
    position : int
        Of the phase in the timeline.
    phase : Phase
    held_bytes : int
        The most that counted against a limit.
    highest : float
        The second at which it held the most, as far as samples tell.
    gpu_bytes : int
    memory_limit : int
        What it ran under: what lies between steps, under the limit of the step before. 0 if unknown.
    """

    position: int
    phase: Phase
    held_bytes: int
    highest: float
    gpu_bytes: int = 0
    memory_limit: int = 0

    @property
    def added_bytes(self) -> int:
        """The most that this process grew by during the phase."""
        return max(0, self.phase.peak_bytes - self.phase.start_bytes)

    @property
    def ratio(self) -> float | None:
        """Measured through projected; None if nothing was projected."""
        projected = self.phase.projected_bytes
        return self.held_bytes / projected if projected else None


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest point of a timeline, and what was running there."""

    seconds: float
    held_bytes: int
    phase: PhaseFigures | None
    span: Span | None
    spans: int


@dataclass(frozen=True, slots=True)
class Row:
    """Phases of one name: the longest time in sum, the highest figures of any."""

    label: str
    kind: str
    count: int
    seconds: float
    held_bytes: int
    added_bytes: int
    projected_bytes: int
    memory_limit: int
    ratio: float | None
    gpu_bytes: int
    positions: tuple[int, ...]


def figures_of(timeline: Timeline) -> tuple[PhaseFigures, ...]:
    """Return the figures of each phase."""
    samples = timeline.measurement.samples
    moments = [one.seconds for one in samples]
    said = (one.memory_limit for one in timeline.phases if one.memory_limit)
    limit = next(said, timeline.memory_limit)
    found = []
    for position, phase in enumerate(timeline.phases):
        limit = phase.memory_limit or limit
        found.append(_figures(position, phase, limit, samples, moments))
    return tuple(found)


def _figures(
    position: int,
    phase: Phase,
    limit: int,
    samples: Sequence[Sample],
    moments: Sequence[float],
) -> PhaseFigures:
    first, last = bisect_left(moments, phase.start), bisect_right(moments, phase.stop)
    inside = samples[first:last]
    around = samples[max(0, first - 1) : last + 1]  # a phase may be shorter than the samples' grain
    mapped = max((one.mapped for one in around), default=0)
    children = min((one.children for one in around), default=0)
    exact = max(0, phase.peak_bytes - mapped) + children
    high = max(inside, key=lambda one: one.held, default=None)
    return PhaseFigures(
        position,
        phase,
        exact if high is None else max(exact, high.held),
        (phase.start + phase.stop) / 2 if high is None else high.seconds,
        max((one.gpu for one in around), default=0),
        limit,
    )


def peak_of(timeline: Timeline, figures: Sequence[PhaseFigures]) -> Peak:
    """Return the highest point, and the innermost phase and the largest task that were running."""
    if not figures:
        high = max(timeline.measurement.samples, key=lambda one: one.held, default=None)
        if high is None:
            return Peak(0.0, timeline.measurement.peak_bytes, None, None, 0)
        return Peak(high.seconds, high.held, None, None, 0)
    most = max(one.held_bytes for one in figures)
    phase = max(
        (one for one in figures if one.held_bytes >= _SAME_HEIGHT * most),
        key=lambda one: (one.held_bytes == most, one.phase.start),
    )
    seconds = phase.highest
    inner = [
        one
        for one in figures
        if one.held_bytes >= _SAME_HEIGHT * most and one.phase.start <= seconds <= one.phase.stop
    ]
    phase = max([phase, *inner], key=lambda one: one.phase.start)
    running = [one for one in timeline.spans if one.start <= seconds <= one.stop]
    span = max(running, key=lambda one: (one.bytes, one.stop - one.start), default=None)
    return Peak(seconds, most, phase, span, len(running))


def rows_of(timeline: Timeline, figures: Sequence[PhaseFigures]) -> list[Row]:
    """Return phases by name, in the order of their first start.

    What lies between steps stands alone where it took long or held the most, and together elsewhere.
    """
    most = max((one.held_bytes for one in figures), default=0)
    long = _NOTEWORTHY * timeline.measurement.seconds
    groups: dict[tuple[str, str], list[PhaseFigures]] = {}
    for one in figures:
        label = one.phase.label
        if one.phase.kind == BETWEEN and one.phase.seconds < long and one.held_bytes < most:
            label = "between steps"
        groups.setdefault((label, one.phase.kind), []).append(one)
    return [_row(label, kind, group) for (label, kind), group in groups.items()]


def _row(label: str, kind: str, group: Sequence[PhaseFigures]) -> Row:
    ratios = [one.ratio for one in group if one.ratio is not None]
    return Row(
        label,
        kind,
        sum(one.phase.count for one in group),
        sum(one.phase.seconds for one in group),
        max(one.held_bytes for one in group),
        max(one.added_bytes for one in group),
        max(one.phase.projected_bytes for one in group),
        max(one.memory_limit for one in group),
        max(ratios, default=None),
        max(one.gpu_bytes for one in group),
        tuple(one.position for one in group),
    )


def worth_a_line(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """Return the rows with the highest peaks and the one that most exceeded its projection, in order."""
    if len(rows) <= most:
        return rows
    worst = max(range(len(rows)), key=lambda one: rows[one].ratio or 0.0)
    kept = {worst}
    for number in sorted(range(len(rows)), key=lambda one: -rows[one].held_bytes):
        if len(kept) < most:
            kept.add(number)
    return [row for number, row in enumerate(rows) if number in kept]


def segments_of(
    figures: Sequence[PhaseFigures],
) -> list[tuple[float, float, PhaseFigures]]:
    """Return stretches of time that do not overlap, each with the innermost phase: start, stop, phase."""
    edges = sorted({edge for one in figures for edge in (one.phase.start, one.phase.stop)})
    waiting = sorted(figures, key=lambda one: one.phase.start)
    running: list[PhaseFigures] = []
    found: list[tuple[float, float, PhaseFigures]] = []
    for start, stop in pairwise(edges):
        while waiting and waiting[0].phase.start <= start:
            running.append(waiting.pop(0))
        running = [one for one in running if one.phase.stop > start]
        if not running:
            continue
        inner = max(running, key=lambda one: (one.phase.kind != BETWEEN, one.phase.start))
        if found and found[-1][2] is inner and found[-1][1] == start:
            found[-1] = (found[-1][0], stop, inner)
        else:
            found.append((start, stop, inner))
    return found


def limits_of(timeline: Timeline, figures: Sequence[PhaseFigures]) -> list[int]:
    """Return the limits that phases ran under, the smallest first; the timeline's if none says one."""
    return sorted({one.memory_limit for one in figures} - {0}) or (
        [timeline.memory_limit] if timeline.memory_limit else []
    )


def growth(figures: Sequence[PhaseFigures]) -> str:
    """Return in which phase this process grew most; empty if it did not."""
    most = max(figures, key=lambda one: one.added_bytes, default=None)
    if most is None or not most.added_bytes:
        return ""
    where = most.phase.label if most.phase.kind == BETWEEN else f"in {most.phase.label}"
    return f"grew most {where} (+{format_bytes(most.added_bytes)})"


def ratio_text(ratio: float | None, nothing: str) -> str:
    """Return measured through projected with two digits: whatever is above 1 is seen to be.

    Examples
    --------
    >>> ratio_text(1.0004, "-"), ratio_text(0.9996, "-"), ratio_text(None, "-")
    ('1.01', '1.00', '-')
    """
    if ratio is None:
        return nothing
    return f"{math.ceil(ratio * 100) / 100 if ratio > 1 else ratio:.2f}"


def headline(timeline: Timeline, peak: Peak) -> str:
    """Return one sentence: what cost the memory.

    Examples
    --------
    >>> from featurestore.profiling.sampler import Measurement
    >>> nothing = Timeline(Measurement(0.0, 0, 3 * 2**20, 0, "sampled"))
    >>> headline(nothing, peak_of(nothing, ()))
    'peak 3.0 MiB'
    """
    text = f"peak {format_bytes(peak.held_bytes)}"
    if peak.phase is not None:
        kind = peak.phase.phase.kind
        text += f" {peak.phase.phase.label}" if kind == BETWEEN else f" in {peak.phase.phase.label}"
    if peak.span is not None:
        others = f" and {peak.spans - 1} more" if peak.spans > 1 else ""
        text += f", while {peak.span.label or 'a task'}{others} ran"
    return text
