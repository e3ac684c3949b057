"""A report as one HTML file that needs nothing else: the page's shell around data and a drawing.

The page asks no network for anything and runs no script but its own: a policy in its head names the
checksums of its script and its style and forbids the rest, so that a name in the data which finds its way
into the document is text at worst. Data is JSON in a block that no browser runs; scripts put it into the
document by ``textContent`` alone.

Scripts and styles are plain files in ``assets``, shipped as they are written: ``page.js`` and ``page.css``
(the shell, tables), ``charts.js`` (drawings), and one script for each kind of report.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from featurestore.errors import InvalidInputError

_HOME: Final = "featurestore.report"
_SHARED: Final = ("page.js", "charts.js")
_STYLE: Final = "page.css"
# What ends a script or begins a comment in HTML, and what ends a line in JavaScript.
_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


@dataclass(frozen=True, slots=True)
class Page:
    """What a file shows.

    Parameters
    ----------
    title : str
    drawing : str
        The script in ``assets`` that draws it, without suffix.
    data : mapping
        JSON values; numbers are finite.
    home : str
        The package whose ``assets`` these are.
    """

    title: str
    drawing: str
    data: Mapping[str, Any]
    home: str = _HOME

    def to_html(self) -> str:
        """Return the whole document."""
        style = _asset(_HOME, _STYLE)
        shared = [_asset(_HOME, name) for name in _SHARED]
        script = "\n".join([*shared, _asset(self.home, f"{self.drawing}.js")])
        policy = (
            f"default-src 'none'; script-src '{_checksum(script)}'; style-src '{_checksum(style)}'; "
            "base-uri 'none'; form-action 'none'"
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{html.escape(_encodable(self.title))}</title>\n<style>{style}</style>\n</head>\n"
            '<body>\n<main id="report"></main>\n'
            "<noscript>This report is drawn by a script inside it, which is switched off.</noscript>\n"
            f'<script type="application/json" id="data">{embedded(self.data)}</script>\n'
            f"<script>{script}</script>\n</body>\n</html>\n"
        )


def embedded(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand inside a script element, whatever texts are in it.

    Examples
    --------
    >>> embedded({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def write_page(page: Page, path: str | Path) -> Path:
    """Write a page into a file, whole or not at all.

    Raises
    ------
    InvalidInputError
        If the file cannot be written.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        unfinished.write_text(page.to_html(), encoding="utf-8")
        unfinished.replace(target)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InvalidInputError(
            f"the report {target} cannot be written: {error.strerror}",
            "name a file in a folder that exists and is yours",
        ) from error
    return target


def _asset(home: str, name: str) -> str:
    return files(home).joinpath("assets", name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    """Return how a policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _encodable(text: str) -> str:
    """Return a text without halves of surrogate pairs, which no file holds."""
    return text.encode("utf-8", "replace").decode()
