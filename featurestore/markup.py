"""What a notebook shows: tables, strips and bars as HTML without scripts, everything in it escaped.

Always true: a text is escaped unless it is :class:`Markup`, and only this module makes that. Colours are of
middle lightness, so that they can be seen on light and on dark ground; nothing depends on a notebook's style.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

COLORS: Final = {
    "fresh": "#2a9d78", "stale": "#e08a00", "missing": "#9aa5ac", "bar": "#4b86d8",
    "part": "#8fb3e6", "none": "#9aa5ac55", "over": "#c0392b",
}  # fmt: skip
"""By the state that a colour stands for."""
_WIDTH: Final = 160
_HEIGHT: Final = 12
_LONGEST: Final = 30
"""Rows of a table beyond which it scrolls."""


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """Return rows as an HTML table; everything is escaped but what is :class:`Markup`.

    Examples
    --------
    >>> html_table("a < b", ["n"], [["<img>"]])
    '<table><caption>a &lt; b</caption><thead><tr><th>n</th></tr></thead><tbody><tr><td>&lt;img&gt;</td></tr></tbody></table>'
    """
    top = "".join(f"<th>{_escaped(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_escaped(one)}</td>" for one in row) + "</tr>" for row in rows
    )
    table = (
        f"<table><caption>{_escaped(caption)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )
    if len(rows) <= _LONGEST:
        return Markup(table)
    return Markup(f'<div style="max-height:32em;overflow:auto">{table}</div>')


def strip(runs: Sequence[tuple[str, int]], label: str = "") -> Markup:
    """Return neighbouring states as one strip.

    Parameters
    ----------
    runs : sequence of (str, int)
        State, one of ``COLORS``, and how long it is.
    label : str
        For those who do not see it; the states if not given.

    Examples
    --------
    >>> strip([("fresh", 3), ("missing", 1)]).count("<rect")
    2
    """
    total = max(1, sum(length for _, length in runs))
    marks, at = "", 0
    for state, length in runs:
        said = html.escape(f"{length:,} {state}")
        marks += (
            f'<rect x="{at}" y="0" width="{length}" height="1" fill="{COLORS[state]}">'
            f"<title>{said}</title></rect>"
        )
        at += length
    told = label or ", ".join(f"{length:,} {state}" for state, length in runs)
    return Markup(
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {total} 1" role="img" '
        f'aria-label="{html.escape(told)}" preserveAspectRatio="none">{marks}</svg>'
    )


def meter(value: float, limit: float, label: str = "") -> Markup:
    """Return how much of a limit a value is: a bar that is full, and red, where it is more.

    Examples
    --------
    >>> "over" in COLORS and COLORS["over"] in meter(3, 2)
    True
    """
    if value > limit:
        return strip([("over", 1)], label)
    part = round(1000 * value / limit) if limit else 0
    return strip([("bar", part), ("none", 1000 - part)], label or f"{part / 10:.1f}%")


def beside(*pieces: object) -> Markup:
    """Return pieces one after the other in one cell."""
    return Markup(" ".join(_escaped(one) for one in pieces))


def _escaped(value: object) -> str:
    return value if isinstance(value, Markup) else html.escape(str(value))
