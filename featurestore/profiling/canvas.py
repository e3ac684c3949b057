"""Two things to draw on, in pixels from the upper left corner: SVG text, and a picture in memory.

SVG needs nothing but this module: no fonts, scripts, styles or other resources from outside, and all
text is escaped. PNG and PDF are drawn by matplotlib, through its objects only, so that none of its
global state changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import Any, Final, Protocol, TypeAlias

from featurestore.errors import MissingDependencyError

Point: TypeAlias = tuple[float, float]

# Characters that XML cannot hold, or that a terminal would obey.
_FORBIDDEN: Final = {
    **dict.fromkeys(one for one in (*range(32), *range(127, 160)) if one not in (9, 10, 13)),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
    0xFFFE: None,
    0xFFFF: None,
}
# The width of a character through the height of the letters, on the safe side for usual fonts.
_CHARACTER_WIDTH: Final = 0.6
_BOLD: Final = 1.15


def clean(text: str) -> str:
    """Return text on one line, without characters that nothing can show."""
    return " ".join(text.translate(_FORBIDDEN).split())


def width_of(text: str, size: float, bold: bool = False) -> float:
    """Return about how wide a text will be, in pixels, rather too much than too little."""
    return len(text) * size * _CHARACTER_WIDTH * (_BOLD if bold else 1)


def shortened(text: str, size: float, width: float, bold: bool = False) -> str:
    """Return text that fits a width, its middle left out; empty if not even four letters fit."""
    return cut(text, int(width / width_of("x", size, bold)))


def cut(text: str, room: int) -> str:
    """Return text of at most ``room`` characters, its middle left out; empty if it is less than 4.

    Examples
    --------
    >>> cut("delay_mean_7d_by_carrier", 12)
    'delay_me…ier'
    """
    text = clean(text)
    if len(text) <= room:
        return text
    if room < 4:
        return ""
    end = (room - 1) // 3
    return f"{text[: room - 1 - end]}…{text[len(text) - end :]}"


class Canvas(Protocol):
    """Something to draw on."""

    def area(
        self, points: Sequence[Point], fill: str, *, opacity: float = 1, title: str = ""
    ) -> None:
        """Fill a polygon; ``title`` shows when it is pointed at, where that is possible."""

    def line(
        self, points: Sequence[Point], colour: str, *, width: float = 1, dash: Sequence[float] = ()
    ) -> None:
        """Draw a line through points."""

    def text(
        self, at: Point, text: str, *, size: float = 11, colour: str = "#222222",
        anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        """Write text on a base line; ``anchor`` is start, middle or end."""


def box(x: float, y: float, width: float, height: float) -> list[Point]:
    """Return the corners of a rectangle."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


class SvgCanvas:
    """Collects an SVG."""

    def __init__(self, width: float, height: float) -> None:
        self._size = width, height
        self._parts: list[str] = []

    def area(
        self, points: Sequence[Point], fill: str, *, opacity: float = 1, title: str = ""
    ) -> None:
        inner = f"<title>{escape(clean(title))}</title>" if title else ""
        self._parts.append(
            f'<polygon points="{_pairs(points)}" fill="{fill}"'
            + (f' fill-opacity="{opacity:g}"' if opacity < 1 else "")
            + (f">{inner}</polygon>" if inner else "/>")
        )

    def line(
        self, points: Sequence[Point], colour: str, *, width: float = 1, dash: Sequence[float] = ()
    ) -> None:
        dashes = f' stroke-dasharray="{" ".join(f"{one:g}" for one in dash)}"' if dash else ""
        self._parts.append(
            f'<polyline points="{_pairs(points)}" fill="none" stroke="{colour}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"{dashes}/>'
        )

    def text(
        self, at: Point, text: str, *, size: float = 11, colour: str = "#222222",
        anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{escape(clean(text))}</text>'
        )

    def finish(self) -> str:
        """Return the picture."""
        width, height = self._size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" style="max-width:100%;height:auto" '
            f'font-family="sans-serif" role="img"><rect width="{width:g}" height="{height:g}" '
            f'fill="#ffffff"/>{"".join(self._parts)}</svg>'
        )


def _pairs(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


class MatplotlibCanvas:
    """Collects the same in a figure of matplotlib.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """

    _DPI: Final = 100

    def __init__(self, width: float, height: float) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                "drawing PNG and PDF needs matplotlib",
                "pip install 'featurestore[plots]', or draw SVG or HTML",
            ) from error
        self._figure: Any = Figure(figsize=(width / self._DPI, height / self._DPI), dpi=self._DPI)
        self._axes: Any = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()
        self._order = 0

    def area(
        self, points: Sequence[Point], fill: str, *, opacity: float = 1, title: str = ""
    ) -> None:
        from matplotlib.patches import Polygon

        self._axes.add_patch(
            Polygon(points, closed=True, facecolor=fill, alpha=opacity, lw=0, zorder=self._next())
        )

    def line(
        self, points: Sequence[Point], colour: str, *, width: float = 1, dash: Sequence[float] = ()
    ) -> None:
        from matplotlib.lines import Line2D

        # matplotlib counts in points of 1/72 inch, and dashes in line widths.
        style: Any = (0, [one / width for one in dash]) if dash else "-"
        x, y = zip(*points, strict=True)
        self._axes.add_line(
            Line2D(x, y, color=colour, lw=width * 72 / self._DPI, ls=style, zorder=self._next())
        )

    def text(
        self, at: Point, text: str, *, size: float = 11, colour: str = "#222222",
        anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        self._axes.text(
            *at,
            clean(text),
            fontsize=size * 72 / self._DPI,
            color=colour,
            ha={"start": "left", "middle": "center", "end": "right"}[anchor],
            va="baseline",
            weight="bold" if bold else "normal",
            zorder=self._next(),
            parse_math=False,
        )

    def finish(self, kind: str) -> bytes:
        """Return the picture: ``"png"`` or ``"pdf"``; PNG has twice as many pixels a side."""
        data = BytesIO()
        with warnings.catch_warnings():
            # Letters that matplotlib's font does not have become boxes; there is nothing to do about it.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            self._figure.savefig(data, format=kind, dpi=2 * self._DPI)
        return data.getvalue()

    def _next(self) -> int:
        self._order += 1
        return self._order
