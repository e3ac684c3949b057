"""The picture of a timeline: what was held, above it the phases, below it tasks and figures.

From top to bottom: what cost the memory, in words; the phases by name or number; the bands of memory
with the projection, the limit, and each phase's exact peak; GPU memory if there is a GPU; rows of
bars for tasks; a table of the phases. Colours are of Okabe and Ito's palette, which people who
are colour-blind can tell apart; nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from featurestore.execution.events import FRAMEWORK
from featurestore.profiling.analysis import (
    LIMIT_ROOM,
    PhaseFigures,
    Row,
    figures_of,
    growth,
    headline,
    limits_of,
    peak_of,
    ratio_text,
    rows_of,
    segments_of,
    worth_a_line,
)
from featurestore.profiling.canvas import Canvas, Point, box, clean, shortened, width_of
from featurestore.profiling.recording import BETWEEN
from featurestore.profiling.records import Sample, Span
from featurestore.profiling.scales import Scale, byte_ticks, time_ticks
from featurestore.profiling.timeline import Timeline
from featurestore.units import format_bytes

WIDTH: Final = 1200
MAX_ROWS: Final = 16
MAX_LANES: Final = 16
MAX_DEPTH: Final = 3
# The share of the chart that a band must have to be explained.
_VISIBLE: Final = 0.003
_EXACT: Final = "high-water mark"
# The least of a phase's name that says anything.
_LEGIBLE: Final = 9

_LEFT, _RIGHT = 74.0, 1050.0
_CHART: Final = 280.0
_GPU: Final = 70.0
_STRIP: Final = 20.0
_LINE: Final = 18.0
_LANE: Final = 9.0
_INK, _FAINT, _GRID = "#222222", "#666666", "#e3e3e3"
_LIMIT, _PROJECTED, _GPU_COLOUR = "#d55e00", "#000000", "#009e73"
_DASHES: Final = (5.0, 3.0)
_OURS: Final = ("#b5d3ea", "#d9e8f4")
_KINDS: Final = {FRAMEWORK: "#ecc6de", BETWEEN: "#efefef"}
_BARS: Final = ("#4f7ea8", "#94b5d0")

# Bands from below: name, colour, what a sample has of it.
_BANDS: Final[tuple[tuple[str, str, Callable[[Sample], int]], ...]] = (
    ("anonymous", "#0072b2", lambda one: one.anonymous),
    ("shared", "#56b4e9", lambda one: one.shared),
    ("code", "#8c8c8c", lambda one: one.code),
    ("children", "#e69f00", lambda one: one.children),
    ("mapped files (not held)", "#f0e9c9", lambda one: one.mapped),
)


class Picture:
    """Lays a timeline out, and paints it on a canvas of ``width`` by ``height`` pixels."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._figures = figures_of(timeline)
        self._peak = peak_of(timeline, self._figures)
        self._segments = segments_of(self._figures)
        self._limits = limits_of(timeline, self._figures)
        rows = rows_of(timeline, self._figures)
        self._rows = worth_a_line(rows, MAX_ROWS)
        self._left_out = len(rows) - len(self._rows)
        self._numbers = _numbers(self._rows)
        self._depths = _depths(self._figures)
        self._lanes = min(MAX_LANES, max((one.lane + 1 for one in timeline.spans), default=0))
        self._place()

    def _place(self) -> None:
        """Set where everything is."""
        ends = [
            self._timeline.measurement.seconds,
            *(one.seconds for one in self._timeline.measurement.samples[-1:]),
            *(one.stop for one in self._timeline.phases),
        ]
        self.width = float(WIDTH)
        self._x = Scale(max(ends), _LEFT, _RIGHT)
        deepest = max(self._depths.values(), default=-1) + 1
        top = self._top_bytes()
        self._y = Scale(top, 0.0, 1.0)
        self._strip_top = 92.0 + self._place_legend()
        self._chart_top = self._strip_top + deepest * _STRIP + 8
        self._chart_bottom = self._chart_top + _CHART
        self._y = Scale(top, self._chart_bottom, self._chart_top)
        self._gpu_top = self._chart_bottom + 44
        gpu = _GPU + 26 if self._timeline.gpu else 0
        self._lanes_top = self._gpu_top + gpu
        lanes = self._lanes * _LANE + 26 if self._lanes else 0
        self._table_top = self._lanes_top + lanes + 6
        lines = (len(self._rows) + 1 + bool(self._left_out)) if self._rows else 0
        self.height = self._table_top + lines * _LINE + 12

    def _top_bytes(self) -> float:
        projected = max((one.phase.projected_bytes for one in self._figures), default=0)
        held = max(self._peak.held_bytes, projected, *self._timeline.lines.values(), 1)
        mapped = max((one.held + one.mapped for one in self._samples()), default=0)
        limits = [one for one in self._limits if one <= LIMIT_ROOM * held]
        return 1.1 * max(held, min(mapped, 1.5 * held), *limits)

    def paint(self, canvas: Canvas) -> None:
        """Paint everything."""
        self._title(canvas)
        self._legend(canvas)
        self._axes(canvas)
        self._shades(canvas)
        self._bands(canvas)
        self._phases(canvas)
        self._lines(canvas)
        self._mark_peak(canvas)
        if self._timeline.gpu:
            self._gpu(canvas)
        self._tasks(canvas)
        if self._rows:
            self._table(canvas)

    # --- around the chart ---------------------------------------------------------------------------

    def _title(self, canvas: Canvas) -> None:
        text = headline(self._timeline, self._peak)
        room = WIDTH - 32
        canvas.text((16, 26), shortened(text, 17, room, bold=True), size=17, bold=True)
        measured = self._timeline.measurement
        words = [f"{measured.seconds:,.1f} seconds, {self._timeline.ended}"]
        if self._limits:
            low, high = format_bytes(self._limits[0]), format_bytes(self._limits[-1])
            above = " (above the chart)" if self._limits[-1] > self._y.top else ""
            words.append(f"limit {low if low == high else f'{low} to {high}'}{above}")
        ratios = [one.ratio for one in self._figures if one.ratio is not None]
        if ratios:
            words.append(f"at most {ratio_text(max(ratios), '')} of what was projected")
        words += [growth(self._figures)] if growth(self._figures) else []
        if self._timeline.children:
            words.append(f"child processes: {len(self._timeline.children):,}")
        if measured.method != _EXACT:
            words.append(f"peaks are only {measured.method}")
        canvas.text((16, 47), shortened("; ".join(words), 12, room), size=12, colour=_FAINT)

    def _legend(self, canvas: Canvas) -> None:
        for (x, y), (name, colour, dash) in zip(self._legend_at, self._legend_of, strict=True):
            if dash is None:
                canvas.area(box(x, y - 10, 14, 11), colour)
            else:
                canvas.line([(x, y - 4), (x + 16, y - 4)], colour, width=1.8, dash=dash)
            canvas.text((x + 20, y), name)

    def _legend_entries(self) -> list[tuple[str, str, tuple[float, ...] | None]]:
        """Return the names, the colours and, of lines, the dashes that are to be explained."""
        entries: list[tuple[str, str, tuple[float, ...] | None]] = []
        for name, colour, of in _BANDS:
            most = max((of(one) for one in self._timeline.measurement.samples), default=0)
            if most > _VISIBLE * self._y.top:
                entries.append((f"{name}, up to {format_bytes(most)}", colour, None))
        if any(one.phase.projected_bytes for one in self._figures):
            entries.append(("projected", _PROJECTED, _DASHES))
        if any(one <= self._y.top for one in self._limits):
            entries.append(("limit", _LIMIT, ()))
        if self._figures:
            entries.append(("peak of each phase", _INK, ()))
        return entries

    def _place_legend(self) -> float:
        """Set where the entries of the legend are; return how high it is."""
        self._legend_of = self._legend_entries()
        self._legend_at: list[Point] = []
        x, y = 16.0, 71.0
        for name, _, _ in self._legend_of:
            width = 20 + width_of(name, 11)
            if x + width > WIDTH - 10:
                x, y = 16.0, y + _LINE
            self._legend_at.append((x, y))
            x += width + 10
        return y - 71.0

    def _axes(self, canvas: Canvas) -> None:
        ticks = byte_ticks(self._y.top, 5)
        for value, label in zip(ticks.values, ticks.labels, strict=True):
            y = self._y(value)
            canvas.line([(_LEFT, y), (_RIGHT, y)], _GRID)
            canvas.text((_LEFT - 6, y + 4), label, colour=_FAINT, anchor="end")
        canvas.text(
            (_LEFT - 6, self._chart_top - 6), ticks.unit, colour=_FAINT, anchor="end", bold=True
        )
        times = time_ticks(self._x.top, 10)
        bottom = self._chart_bottom
        for value, label in zip(times.values, times.labels, strict=True):
            x = self._x(value)
            canvas.line([(x, bottom), (x, bottom + 4)], _FAINT)
            canvas.text((x, bottom + 17), label, colour=_FAINT, anchor="middle")
        canvas.text((_RIGHT + 16, bottom + 17), times.unit, colour=_FAINT, bold=True)

    # --- chart ----------------------------------------------------------------------------------------

    def _samples(self) -> list[Sample]:
        """Return the highest sample of each column of pixels."""
        found: dict[int, Sample] = {}
        for one in self._timeline.measurement.samples:
            column = int(self._x(one.seconds))
            if column not in found or one.held > found[column].held:
                found[column] = one
        return list(found.values())

    def _bands(self, canvas: Canvas) -> None:
        samples = self._samples()
        if not samples:
            return
        below = [0] * len(samples)
        moments = [self._x(one.seconds) for one in samples]
        for _, colour, of in _BANDS:
            above = [a + of(one) for a, one in zip(below, samples, strict=True)]
            if above != below:
                top = [(x, self._y(y)) for x, y in zip(moments, above, strict=True)]
                foot = [(x, self._y(y)) for x, y in zip(moments, below, strict=True)]
                canvas.area([*top, *reversed(foot)], colour)
            below = above
        canvas.line([(_LEFT, self._chart_bottom), (_RIGHT, self._chart_bottom)], _FAINT)

    def _shades(self, canvas: Canvas) -> None:
        """Paint the ground of the chart: whose time it is."""
        for start, stop, one in self._segments:
            canvas.area(self._column(start, stop), self._colour(one), opacity=0.35)

    def _column(self, start: float, stop: float) -> list[Point]:
        left, right = self._x(start), self._x(stop)
        return box(left, self._chart_top, right - left, self._chart_bottom - self._chart_top)

    def _phases(self, canvas: Canvas) -> None:
        """Paint the strip of phases and the exact peak of each; pointed at, they tell their story."""
        for start, stop, one in self._segments:
            canvas.area(self._column(start, stop), "#ffffff", opacity=0, title=_story(one))
        written: dict[int, float] = {}
        for one in sorted(self._figures, key=lambda one: one.phase.start):
            left, right = self._x(one.phase.start), self._x(one.phase.stop)
            y = self._strip_top + self._depths[one.position] * _STRIP
            corners = box(left, y, max(1.0, right - left - 1), _STRIP - 2)
            canvas.area(corners, self._colour(one), title=_story(one))
            label = self._strip_label(one, right - left - 6)
            depth = self._depths[one.position]
            if label and left + 3 >= written.get(depth, 0.0):
                canvas.text((left + 3, y + 13), label)
                written[depth] = left + 5 + width_of(label, 11)
            height_of_peak = self._y(one.held_bytes)
            if right - left >= 1:
                canvas.line([(left, height_of_peak), (right, height_of_peak)], _INK, width=1.4)

    def _strip_label(self, one: PhaseFigures, room: float) -> str:
        """Return the name of a phase as far as there is room, or its number, or nothing."""
        number = self._numbers.get(one.position, "")
        whole = clean(f"{number} {one.phase.label}")
        text = shortened(whole, 11, room)
        if text == whole or len(text) >= len(number) + _LEGIBLE:
            return text
        return number if width_of(number, 11) <= room + 4 else ""

    def _colour(self, one: PhaseFigures) -> str:
        number = self._numbers.get(one.position, "0")
        return _KINDS.get(one.phase.kind) or _OURS[int(number or 0) % 2]

    def _lines(self, canvas: Canvas) -> None:
        """Draw what was projected and allowed, as steps, and other lines; their names on the right."""
        labels: list[tuple[float, str, str]] = []
        timeline = self._timeline
        for stretch in self._steps(lambda one: one.phase.projected_bytes):
            canvas.line(stretch, "#ffffff", width=4)
            canvas.line(stretch, _PROJECTED, width=1.6, dash=_DASHES)
        steps = list(self._steps(lambda one: one.memory_limit))
        if not self._figures and 0 < timeline.memory_limit <= self._y.top:
            y = self._y(timeline.memory_limit)
            steps = [[(_LEFT, y), (_RIGHT, y)]]
        for stretch in steps:
            canvas.line(stretch, "#ffffff", width=4.4)
            canvas.line(stretch, _LIMIT, width=2.4)
        shown = [one for one in self._limits if one <= self._y.top]
        labels += [(self._y(one), f"limit {format_bytes(one)}", _LIMIT) for one in shown]
        for name, size in timeline.lines.items():
            y = self._y(size)
            canvas.line([(_LEFT, y), (_RIGHT, y)], _FAINT, dash=(2, 2))
            labels.append((y, f"{name} {format_bytes(size)}", _FAINT))
        self._name_lines(canvas, sorted(labels))

    def _name_lines(self, canvas: Canvas, labels: Sequence[tuple[float, str, str]]) -> None:
        """Write the names of lines beside them, from above: as near as they go without touching."""
        room = WIDTH - _RIGHT - 10
        lowest = self._chart_bottom - 14 * (len(labels) - 1)
        last = 0.0
        for number, (y, text, colour) in enumerate(labels):
            last = max(min(y + 4, lowest + 14 * number), last + 14)
            canvas.text((_RIGHT + 6, last), shortened(text, 11, room), colour=colour)

    def _steps(self, of: Callable[[PhaseFigures], int]) -> Iterator[list[Point]]:
        """Yield the stretches of a stepped line, where there is something and it is in the chart."""
        stretch: list[Point] = []
        end = -1.0
        for start, stop, one in self._segments:
            value = of(one)
            if not 0 < value <= self._y.top or start > end + 1e-9:
                if stretch:
                    yield stretch
                stretch = []
            if 0 < value <= self._y.top:
                y = self._y(value)
                stretch += [(self._x(start), y), (self._x(stop), y)]
            end = stop
        if stretch:
            yield stretch

    def _mark_peak(self, canvas: Canvas) -> None:
        x, y = self._x(self._peak.seconds), self._y(self._peak.held_bytes)
        canvas.area([(x, y), (x - 6, y - 10), (x + 6, y - 10)], _INK)
        text = f"peak {format_bytes(self._peak.held_bytes)}"
        width = width_of(text, 12, bold=True)
        right = x + width + 12 < _RIGHT
        left = x + 10 if right else x - 10 - width
        canvas.area(box(left - 2, y - 15, width + 2, 15), "#ffffff", opacity=0.8)
        at = (left, y - 3) if right else (left + width, y - 3)
        canvas.text(at, text, size=12, bold=True, anchor="start" if right else "end")

    # --- below the chart ------------------------------------------------------------------------------

    def _gpu(self, canvas: Canvas) -> None:
        samples = self._timeline.measurement.samples
        most = max((one.gpu for one in samples), default=0)
        y = Scale(max(1.1 * most, 1.0), self._gpu_top + _GPU, self._gpu_top)
        whose = "" if self._timeline.gpu == "own" else ", all processes, since the start"
        canvas.text(
            (_LEFT, self._gpu_top - 5), f"GPU memory{whose}: up to {format_bytes(most)}", bold=True
        )
        ticks = byte_ticks(y.top, 2)
        for value, label in zip(ticks.values, ticks.labels, strict=True):
            canvas.line([(_LEFT, y(value)), (_RIGHT, y(value))], _GRID)
            canvas.text((_LEFT - 6, y(value) + 4), label, colour=_FAINT, anchor="end")
        canvas.text((_LEFT - 6, self._gpu_top - 5), ticks.unit, colour=_FAINT, anchor="end")
        if samples:
            top = [(self._x(one.seconds), y(one.gpu)) for one in samples]
            canvas.area([(top[0][0], y(0)), *top, (top[-1][0], y(0))], _GPU_COLOUR, title="GPU")

    def _tasks(self, canvas: Canvas) -> None:
        if not self._lanes:
            return
        top = self._lanes_top + 6
        hidden = max(one.lane for one in self._timeline.spans) + 1 - self._lanes
        more = f" ({hidden} more rows not shown)" if hidden else ""
        tasks = sum(one.count for one in self._timeline.spans)
        canvas.text(
            (_LEFT, top - 5),
            f"{tasks:,} tasks; those that ran at the same time are in rows of their own{more}",
            colour=_FAINT,
        )
        for lane in range(self._lanes):
            canvas.text(
                (_LEFT - 6, top + (lane + 1) * _LANE - 1), f"{lane + 1}", size=9, colour=_FAINT,
                anchor="end",
            )  # fmt: skip
        for left, right, span in self._bars():
            colour = _BARS[span.phase % 2]
            if span is self._peak.span:
                colour = _LIMIT
            corners = box(left, top + span.lane * _LANE, right - left, _LANE - 2)
            canvas.area(corners, colour, title=self._span_story(span))

    def _bars(self) -> Iterator[tuple[float, float, Span]]:
        """Yield the bars of tasks; those that are too narrow to be told apart become one."""
        ends: dict[int, float] = {}
        for span in self._timeline.spans:
            left, right = self._x(span.start), self._x(span.stop)
            if span.lane >= self._lanes:
                continue
            if right <= ends.get(span.lane, 0) and span is not self._peak.span:
                continue
            right = max(left + 1.5, right - 0.5)
            ends[span.lane] = right
            yield left, right, span

    def _span_story(self, span: Span) -> str:
        needs = f", taken to need {format_bytes(span.bytes)}" if span.bytes else ""
        many = f" and {span.count - 1} more" if span.count > 1 else ""
        phase = self._timeline.phases[span.phase].label
        return f"{span.label or 'task'}{many} of {phase}: {span.stop - span.start:.2f} s{needs}"

    def _table(self, canvas: Canvas) -> None:
        columns = _columns(self._timeline)
        y = self._table_top + 12
        canvas.text((_LEFT, y), "phase", bold=True)
        for x, name, _ in columns:
            canvas.text((x, y), name, bold=True, anchor="end")
        for row in self._rows:
            y += _LINE
            number = self._numbers.get(row.positions[0], "")
            colour = self._colour(self._figures[row.positions[0]])
            canvas.area(box(_LEFT - 34, y - 12, 28, 15), colour)
            canvas.text((_LEFT - 20, y), number, anchor="middle")
            count = f" ×{row.count:,}" if row.count > 1 else ""
            kind = " (framework)" if row.kind == FRAMEWORK else ""
            bold = row.held_bytes == self._peak.held_bytes
            label = shortened(f"{row.label}{count}{kind}", 11, columns[0][0] - _LEFT - 70, bold)
            canvas.text((_LEFT, y), label, bold=bold)
            for x, name, text in columns:
                over = name == "measured/projected" and row.ratio is not None and row.ratio > 1
                canvas.text(
                    (x, y), text(row), anchor="end", bold=bold or over,
                    colour=_LIMIT if over else _INK,
                )  # fmt: skip
        if self._left_out:
            canvas.text((_LEFT, y + _LINE), f"and {self._left_out:,} lower ones", colour=_FAINT)


def _columns(timeline: Timeline) -> list[tuple[float, str, Callable[[Row], str]]]:
    """Return the columns of the table: right edge, name, and what a row has there."""
    columns: list[tuple[float, str, Callable[[Row], str]]] = [
        (600, "seconds", lambda row: f"{row.seconds:,.2f}"),
        (690, "peak", lambda row: format_bytes(row.held_bytes)),
        (780, "added", lambda row: format_bytes(row.added_bytes)),
        (870, "projected", lambda row: _or_dash(row.projected_bytes)),
        (1010, "measured/projected", lambda row: ratio_text(row.ratio, "–")),
        (1100, "limit", lambda row: _or_dash(row.memory_limit)),
    ]
    if timeline.gpu:
        columns.append((1190, "GPU", lambda row: _or_dash(row.gpu_bytes)))
    return columns


def _or_dash(size: int) -> str:
    return format_bytes(size) if size else "–"


def _numbers(rows: Sequence[Row]) -> dict[int, str]:
    """Return the number of each phase that is in the table, by its position."""
    steps = [row for row in rows if row.kind != BETWEEN]
    return {
        position: str(number)
        for number, row in enumerate(steps, start=1)
        for position in row.positions
    }


def _depths(figures: Sequence[PhaseFigures]) -> dict[int, int]:
    """Return in which line of the strip each phase is: the first that is free when it begins."""
    ends: list[float] = []
    found = {}
    for one in sorted(figures, key=lambda one: (one.phase.start, -one.phase.stop)):
        free = (line for line, end in enumerate(ends) if end <= one.phase.start + 1e-6)
        line = next(free, len(ends))
        if line == len(ends) and line < MAX_DEPTH:
            ends.append(0.0)
        line = min(line, MAX_DEPTH - 1)
        ends[line] = max(ends[line], one.phase.stop)
        found[one.position] = line
    return found


def _story(one: PhaseFigures) -> str:
    """Return what shows when a phase is pointed at."""
    words = [
        f"{one.phase.label}: {one.phase.seconds:.2f} s",
        f"peak {format_bytes(one.held_bytes)}",
        f"added {format_bytes(one.added_bytes)}",
    ]
    if one.ratio is not None:
        projected = format_bytes(one.phase.projected_bytes)
        words.append(f"projected {projected}, measured/projected {ratio_text(one.ratio, '')}")
    return "; ".join(words)
