"""A split drawn over time: which times each part has, fold by fold, and which are left out.

From recorded times and the split alone: nothing is read. What is drawn are times, not rows: a part that
takes its rows by hash has its share of the hash space, which its entities have in about that proportion.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import pyarrow as pa

from featurestore.arguments import as_whole, shown
from featurestore.dataset.selection import HASH_SPACE, HashRange, Selection, TimeRange
from featurestore.errors import InvalidInputError
from featurestore.schema import TableSchema
from featurestore.times import from_steps

_SIGNS: Final = {"train": "█", "valid": "▒", "test": "░", "all": "█"}
_OTHERS: Final = "▓▚▞▙▟"
_NOTHING: Final = "·"
_COLOURS: Final = {"train": "#4477aa", "valid": "#ee6677", "test": "#228833", "all": "#4477aa"}
_OTHER_COLOUR: Final = "#aa3377"
_NARROWEST: Final = 10
_MOST: Final = 60
"""Folds that are drawn."""
_PIXELS: Final = 640
_LABEL_PIXELS: Final = 90
_LINE: Final = 18


@dataclass(frozen=True, slots=True)
class PartSpan:
    """Times of one part of one fold.

    Parameters
    ----------
    part : str
    spans : tuple of (float, float)
        Of the table's time range, from 0 to 1, in order.
    text : str
        In words: from when to when, or which share of which entities.
    """

    part: str
    spans: tuple[tuple[float, float], ...]
    text: str


@dataclass(frozen=True, slots=True)
class SplitPicture:
    """How a split divides a table over time.

    Prints as text, and shows as a picture in a notebook.

    Parameters
    ----------
    title : str
    first, last : str
        The table's earliest and latest time; empty if it has none.
    folds : tuple of tuple of PartSpan
        The parts of each fold.

    Examples
    --------
    >>> train, valid = PartSpan("train", ((0.0, 0.5),), "to June"), PartSpan("valid", ((0.6, 1.0),), "rest")
    >>> print(SplitPicture("split", "January", "December", ((train, valid),)).drawn(20))
    split
            ██████████··▒▒▒▒▒▒▒▒  train to June; valid rest
            January     December
    █ train  ▒ valid  · left out
    """

    title: str
    first: str
    last: str
    folds: tuple[tuple[PartSpan, ...], ...]

    def drawn(self, width: int = 60) -> str:
        """Return it as text, the time range ``width`` characters wide.

        Raises
        ------
        InvalidInputError
            If that is no whole number, or less than 10.
        """
        if (as_whole(width) or 0) < _NARROWEST:
            raise InvalidInputError(
                f"a picture {shown(width)} characters wide", f"give {_NARROWEST} characters or more"
            )
        lines = [self.title]
        for number, parts in enumerate(self.folds[:_MOST]):
            name = f"fold {number}" if len(self.folds) > 1 else ""
            text = "; ".join(f"{one.part} {one.text}" for one in parts)
            if _together(parts):
                lines.append(f"{name:8}{self._row(parts, width)}  {text}")
                continue
            for one in parts:
                lines.append(f"{name:8}{self._row([one], width)}  {one.part} {one.text}")
                name = ""
        if len(self.folds) > _MOST:
            lines.append(f"and {len(self.folds) - _MOST} more folds")
        if self.first:
            lines.append(f"{'':8}{self.first}{self.last:>{max(1, width - len(self.first))}}")
        return "\n".join([*lines, self._legend()])

    def __str__(self) -> str:
        return self.drawn()

    def __repr__(self) -> str:
        return str(self)

    def _parts(self) -> list[str]:
        return list(dict.fromkeys(one.part for parts in self.folds for one in parts))

    def _signs(self) -> Mapping[str, str]:
        others = iter(_OTHERS * len(self.folds[0] if self.folds else ()))
        return {one: _SIGNS.get(one) or next(others) for one in self._parts()}

    def _legend(self) -> str:
        signs = [f"{sign} {part}" for part, sign in self._signs().items()]
        return "  ".join([*signs, f"{_NOTHING} left out"])

    def _row(self, parts: Sequence[PartSpan], width: int) -> str:
        """Return a line in which each character is what most of its time is: a part, or left out."""
        signs, cells = self._signs(), []
        for cell in range(width):
            shares = {
                signs[one.part]: sum(
                    max(0.0, min(stop * width, cell + 1) - max(start * width, cell))
                    for start, stop in one.spans
                )
                for one in parts
            }
            shares[_NOTHING] = 1 - sum(shares.values())
            cells.append(max(shares, key=lambda sign: shares[sign]))
        for one in parts:  # what is narrower than a character is there all the same
            for start, stop in one.spans:
                if (stop - start) * width < 1:
                    cells[min(width - 1, int((start + stop) / 2 * width))] = signs[one.part]
        return "".join(cells)

    def _repr_html_(self) -> str:
        """Return it as SVG: a line for each fold, or for each part where they share times."""
        shapes, top = [], 0
        for number, parts in enumerate(self.folds[:_MOST]):
            for several in [parts] if _together(parts) else [[one] for one in parts]:
                named = len(self.folds) > 1 and several[0] is parts[0]
                shapes.append(_label(0, top, f"fold {number}" if named else ""))
                shapes += [_bar(one, span, top) for one in several for span in one.spans]
                top += _LINE
        if len(self.folds) > _MOST:
            shapes.append(_label(0, top, f"and {len(self.folds) - _MOST} more folds"))
            top += _LINE
        if self.first:
            shapes.append(_label(_LABEL_PIXELS, top, self.first))
            shapes.append(_label(_LABEL_PIXELS + _PIXELS, top, self.last, anchor="end"))
            top += _LINE
        for place, part in enumerate(self._parts()):
            left = _LABEL_PIXELS + place * 110
            colour = _COLOURS.get(part, _OTHER_COLOUR)
            shapes.append(
                f'<rect x="{left}" y="{top + 3}" width="12" height="12" fill="{colour}"/>'
            )
            shapes.append(_label(left + 18, top, part))
        size = f'width="{_LABEL_PIXELS + _PIXELS}" height="{top + _LINE}"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="12" font-family="sans-serif">'
        return f"<div><b>{escape(self.title)}</b><br/>{svg}{''.join(shapes)}</svg></div>"


def _together(parts: Sequence[PartSpan]) -> bool:
    """Whether no two parts share a time, so that one line shows them all."""
    spans = sorted(span for one in parts for span in one.spans)
    return all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def _bar(one: PartSpan, span: tuple[float, float], top: int) -> str:
    left, right = (_LABEL_PIXELS + place * _PIXELS for place in span)
    colour = _COLOURS.get(one.part, _OTHER_COLOUR)
    title = f"<title>{escape(f'{one.part} {one.text}')}</title>"
    width = max(1.0, right - left)
    return (
        f'<rect x="{left:.1f}" y="{top + 2}" width="{width:.1f}" height="{_LINE - 4}" '
        f'fill="{colour}">{title}</rect>'
    )


def _label(left: float, top: int, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{left}" y="{top + 13}" text-anchor="{anchor}" fill="currentColor">'
        f"{escape(text)}</text>"
    )


def split_picture(
    title: str,
    folds: Sequence[Mapping[str, Selection]],
    schema: TableSchema,
    times: Sequence[tuple[int | None, int | None]],
) -> SplitPicture:
    """Return what a split looks like.

    Parameters
    ----------
    title : str
    folds : sequence of mapping of str to Selection
        The rows of each part of each fold.
    schema : TableSchema
    times : sequence of (int, int)
        First and last time of each partition, in order; None where it has no rows or the table no times.
    """
    known = [(first, last) for first, last in times if first is not None and last is not None]
    over = None
    if known and schema.time is not None:
        over = _Times(known[0][0], known[-1][1], schema[schema.time].type)
    spans = tuple(tuple(_span(*one, over) for one in parts.items()) for parts in folds)
    if over is None:
        return SplitPicture(title, "", "", spans)
    return SplitPicture(title, over.written(over.first), over.written(over.last), spans)


@dataclass(frozen=True, slots=True)
class _Times:
    """The times of a table."""

    first: int
    last: int
    type: pa.DataType

    def written(self, steps: int) -> str:
        return from_steps(steps, self.type).replace("T00:00:00", "")

    def place(self, steps: int) -> float:
        return (steps - self.first) / (self.last + 1 - self.first)

    def clipped(self, one: TimeRange) -> tuple[int, int] | None:
        """Return the part of a range that is among them; None if there is none."""
        lower = self.first if one.lower is None else max(self.first, one.lower)
        upper = self.last + 1 if one.upper is None else min(self.last + 1, one.upper)
        return (lower, upper) if lower < upper else None

    def words(self, lower: int, upper: int) -> str:
        end = "the end" if upper > self.last else self.written(upper)
        return f"{self.written(lower)} to {end}"


def _span(part: str, selection: Selection, over: _Times | None) -> PartSpan:
    words = [] if selection.hashed is None else [_share(selection.hashed)]
    if over is None:
        return PartSpan(part, ((0.0, 1.0),), "; ".join(words) or "all rows")
    found = [clipped for one in selection.times if (clipped := over.clipped(one)) is not None]
    words.insert(0, ", ".join(over.words(*one) for one in found) or "no times")
    spans = tuple((over.place(lower), over.place(upper)) for lower, upper in found)
    return PartSpan(part, spans, "; ".join(words))


def _share(hashed: HashRange) -> str:
    length = hashed.upper - hashed.lower
    share = (length if length >= 0 else length + HASH_SPACE) / HASH_SPACE
    return f"{100 * share:.4g}% by hash of {', '.join(hashed.columns)}"
