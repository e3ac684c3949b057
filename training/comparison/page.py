"""The report of a comparison: one HTML file about what it found, on the shell of all reports."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Final

from featurestore.report.page import Page, write_page
from training.comparison.result import Comparison
from training.run_report import flat

_HOME: Final = "training"


def report(folder: str | Path, output: str | Path) -> Path:
    """Write an HTML file about a finished comparison; return its path.

    Parameters
    ----------
    folder : path
    output : path

    Raises
    ------
    NotFoundError, FormatError, CorruptionError
        If the folder holds no finished comparison that can be read.
    InvalidInputError
        If the file cannot be written.
    """
    return write_page(page_of(Comparison.open(folder)), output)


def page_of(comparison: Comparison) -> Page:
    """Return the page that shows a comparison."""
    content: dict[str, Any] = comparison.to_json()
    data = {
        **content,
        "caption": comparison.caption,
        "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "configuration": flat(content["config"]),
    }
    del data["config"]
    return Page(f"Comparison {comparison.path.name}", "comparison_report", data, home=_HOME)
