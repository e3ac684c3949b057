"""A timeline as SVG, HTML, PNG or PDF."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Final

from featurestore.errors import InvalidInputError, MissingDependencyError
from featurestore.profiling.canvas import MatplotlibCanvas, SvgCanvas
from featurestore.profiling.picture import Picture
from featurestore.profiling.timeline import Timeline

SUFFIXES: Final = (".svg", ".html", ".png", ".pdf")


def as_svg(timeline: Timeline) -> str:
    """Return the timeline as an SVG that needs nothing else."""
    picture = Picture(timeline)
    canvas = SvgCanvas(picture.width, picture.height)
    picture.paint(canvas)
    return canvas.finish()


def as_html(timeline: Timeline) -> str:
    """Return the timeline for a notebook: the SVG inside, everything escaped."""
    return f"<div>{as_svg(timeline)}</div>"


def as_png(timeline: Timeline) -> bytes | None:
    """Return the timeline as a PNG; None without matplotlib."""
    try:
        return _by_matplotlib(timeline, "png")
    except MissingDependencyError:
        return None


def draw(timeline: Timeline, path: Path) -> None:
    """Draw a timeline into a file, of the kind that its suffix says; whole or not at all.

    Raises
    ------
    InvalidInputError
        If the suffix is none of ``SUFFIXES``, or the file cannot be written.
    MissingDependencyError
        For PNG and PDF without matplotlib.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidInputError(
            f"no picture is drawn into {path.name!r}", f"let it end in {', '.join(SUFFIXES)}"
        )
    if suffix in (".png", ".pdf"):
        data = _by_matplotlib(timeline, suffix[1:])
    elif suffix == ".svg":
        data = as_svg(timeline).encode()
    else:
        title = escape(path.stem)
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        data = f"{page}<body>{as_html(timeline)}</body></html>".encode()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        raise InvalidInputError(
            f"the picture {path} cannot be written: {error.strerror}",
            "name a file in a folder that exists and is yours",
        ) from error


def _by_matplotlib(timeline: Timeline, kind: str) -> bytes:
    picture = Picture(timeline)
    canvas = MatplotlibCanvas(picture.width, picture.height)
    picture.paint(canvas)
    return canvas.finish(kind)
