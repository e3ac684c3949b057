"""A timeline in a terminal: a chart of blocks, the phases below it, and a table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

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
    worth_a_line,
)
from featurestore.profiling.canvas import clean, cut
from featurestore.profiling.recording import BETWEEN
from featurestore.profiling.timeline import Timeline
from featurestore.units import format_bytes

HEIGHT: Final = 8
MAX_ROWS: Final = 30
_AXIS: Final = 11
_GAP: Final = 2
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_COLOURS: Final = {BETWEEN: "bright_black", FRAMEWORK: "magenta"}
_OURS: Final = ("blue", "cyan")


def as_text(timeline: Timeline, width: int = 100) -> str:
    """Return the timeline as plain text of a width."""
    console = Console(file=StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(rendered(timeline, width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def print_to_terminal(timeline: Timeline) -> None:
    """Print the timeline, coloured and as wide as the terminal, if there is one."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(rendered(timeline, console.width))


def rendered(timeline: Timeline, width: int) -> RenderableType:
    """Return what rich prints: the headline, the chart and the table."""
    figures = figures_of(timeline)
    all_rows = rows_of(timeline, figures)
    rows = worth_a_line(all_rows, MAX_ROWS)
    letters = _letters(rows)
    measured = timeline.measurement
    head = Text(clean(headline(timeline, peak_of(timeline, figures))), style="bold")
    about = f"{measured.seconds:,.1f} s, {timeline.ended}; {_limits(timeline, figures)}; "
    about += growth(figures)
    parts: list[RenderableType] = [head, Text(clean(about).rstrip("; "))]
    if measured.samples and measured.seconds > 0:
        parts.append(_chart(timeline, figures, letters, max(20, width - _AXIS - 1)))
    if rows:
        parts.append(_table(timeline, rows, letters, width))
    if len(rows) < len(all_rows):
        parts.append(Text(f"and {len(all_rows) - len(rows):,} lower ones"))
    if timeline.children:
        largest = timeline.children[0]
        words = f"child processes: {len(timeline.children):,}; the largest, {largest.name} "
        words += f"{largest.pid}, held {format_bytes(largest.peak_bytes)}"
        parts.append(Text(clean(words)))
    return Group(*parts)


def _letters(rows: Sequence[Row]) -> dict[int, str]:
    """Return the letter of each phase by its position; phases without one are not in it."""
    lettered = [row for row in rows if row.kind != BETWEEN]
    return {
        position: letter
        for row, letter in zip(lettered, _LETTERS, strict=False)
        for position in row.positions
    }


def _limits(timeline: Timeline, figures: Sequence[PhaseFigures]) -> str:
    known = limits_of(timeline, figures)
    if not known:
        return "no limit known"
    return "limit " + " to ".join(dict.fromkeys(format_bytes(one) for one in (known[0], known[-1])))


# --- chart ----------------------------------------------------------------------------------------


def _chart(
    timeline: Timeline, figures: Sequence[PhaseFigures], letters: dict[int, str], width: int
) -> Text:
    """Return rows of blocks: what was held, coloured by phase, and lines of what was projected."""
    total = timeline.measurement.seconds
    owner = _owners(figures, total, width)
    held = _heights(timeline, width)
    for column, one in enumerate(owner):
        # Phases shorter than a column, and peaks between samples, show at their exact height.
        if one is not None and _column(one.highest, total, width) == column:
            held[column] = max(held[column], one.held_bytes)
    projected = [0 if one is None else one.phase.projected_bytes for one in owner]
    top = max([*held, *projected, 1])
    limits = [0 if one is None else one.memory_limit for one in owner]
    if max(limits) <= LIMIT_ROOM * top:
        top = max(top, *limits)
    limits = [one if one <= top else 0 for one in limits]
    lines = []
    for line in range(HEIGHT, 0, -1):
        label = format_bytes(top * line / HEIGHT) if line in (HEIGHT, HEIGHT // 2) else ""
        text = Text(f"{label:>{_AXIS - 1}} ┤" if label else " " * _AXIS + "│", style="dim")
        for column in range(width):
            block = _cell(held[column], projected[column], limits[column], top, line)
            text.append(block, style=_style(block, owner[column], letters))
        lines.append(text)
    lines.append(Text(f"{'0':>{_AXIS - 1}} └" + "─" * width, style="dim"))
    strip = "".join(" " if one is None else letters.get(one.position, "·") for one in owner)
    lines.append(Text(" " * (_AXIS + 1) + strip))
    seconds = f"{total:,.1f} s"
    lines.append(Text(" " * (_AXIS + 1) + "0" + f"{seconds:>{width - 1}}", style="dim"))
    return Text("\n").join(lines)


def _column(seconds: float, total: float, width: int) -> int:
    return min(width - 1, int(seconds / total * width))


def _heights(timeline: Timeline, width: int) -> list[int]:
    """Return what was held at most in each column; a column without a sample goes on as before."""
    found = [-1] * width
    for one in timeline.measurement.samples:
        column = _column(one.seconds, timeline.measurement.seconds, width)
        found[column] = max(found[column], one.held)
    for column in range(1, width):
        if found[column] < 0:
            found[column] = found[column - 1]
    return [max(0, one) for one in found]


def _owners(figures: Sequence[PhaseFigures], total: float, width: int) -> list[PhaseFigures | None]:
    """Return the phase that each column shows: steps before what is between, the innermost first."""
    found: list[PhaseFigures | None] = [None] * width
    for one in sorted(figures, key=lambda one: (one.phase.kind != BETWEEN, one.phase.start)):
        first = _column(one.phase.start, total, width)
        for column in range(first, _column(one.phase.stop, total, width) + 1):
            found[column] = one
    return found


def _cell(held: int, projected: int, limit: int, top: float, line: int) -> str:
    """Return one character: a part of a block, or of a line above the blocks."""
    eighths = round(held / top * HEIGHT * 8) - (line - 1) * 8
    if eighths > 0:
        return _BLOCKS[min(8, eighths)]
    for height, mark in ((limit, "━"), (projected, "╌")):
        if height and min(HEIGHT, int(height / top * HEIGHT) + 1) == line:
            return mark
    return " "


def _style(block: str, one: PhaseFigures | None, letters: dict[int, str]) -> str:
    if block == "━":
        return "red"
    if block == "╌" or one is None:
        return ""
    kind = one.phase.kind
    return _COLOURS.get(kind) or _OURS[ord(letters.get(one.position, "a")) % 2]


# --- table ----------------------------------------------------------------------------------------


def _table(timeline: Timeline, rows: Sequence[Row], letters: dict[int, str], width: int) -> Table:
    columns = _columns(timeline)
    most = max(row.held_bytes for row in rows)
    # Figures are never cut: names of phases give way.
    widths = [
        max(len(one) for one in [*name.split("\n"), *(text(row) for row in rows)])
        for name, text in columns
    ]
    room = max(8, width - sum(widths) - _GAP * (len(widths) + 1) - 1)
    names = [_name(row, room) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    table.add_column("", width=1)
    table.add_column("phase", no_wrap=True, width=max(8, *map(len, names)))
    for (name, _), wide in zip(columns, widths, strict=True):
        table.add_column(name, justify="right", no_wrap=True, width=wide)
    for row, name in zip(rows, names, strict=True):
        over = row.ratio is not None and row.ratio > 1
        table.add_row(
            letters.get(row.positions[0], "·"),
            Text(name),
            *(text(row) for _, text in columns),
            style="red" if over else "bold" if row.held_bytes == most else "",
        )
    return table


def _name(row: Row, room: int) -> str:
    count = f" ×{row.count:,}" if row.count > 1 else ""
    kind = " (framework)" if row.kind == FRAMEWORK else ""
    if len(clean(row.label)) + len(count) + len(kind) > room:
        kind = ""  # the colour says it too
    return cut(row.label, max(4, room - len(count) - len(kind))) + count + kind


def _columns(timeline: Timeline) -> list[tuple[str, Callable[[Row], str]]]:
    """Return the columns of figures: name, and what a row has there."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("seconds", lambda row: f"{row.seconds:,.2f}"),
        ("peak", lambda row: format_bytes(row.held_bytes)),
        ("added", lambda row: format_bytes(row.added_bytes)),
        ("projected", lambda row: _or_dash(row.projected_bytes)),
        ("measured/\nprojected", lambda row: ratio_text(row.ratio, "-")),
        ("limit", lambda row: _or_dash(row.memory_limit)),
    ]
    if timeline.gpu:
        columns.append(("GPU", lambda row: _or_dash(row.gpu_bytes)))
    return columns


def _or_dash(size: int) -> str:
    return format_bytes(size) if size else "-"
