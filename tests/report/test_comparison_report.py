"""The report of a comparison: what it found, in a browser, whatever variants are called."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from training.cli import main
from training.comparison.page import page_of, report
from training.comparison.result import Comparison, Period, VariantResult, Verdict
from training.comparison.statistics import Interval

PHONE = {"viewport": {"width": 375, "height": 700}}
HARM = "<img src=x onerror=alert(1)></script>"
BY_CELL = ((0, 0, 0.6), (1, 0, math.nan))


def variant(name: str, mean: float | None, verdict: Verdict) -> VariantResult:
    told = None if mean is None else Interval(mean, mean - 0.02, mean + 0.02, 0.04, "some test")
    if verdict is Verdict.UNDECIDED:
        told = Interval(0.0, math.nan, math.nan, math.nan, "too little to say")
    return VariantResult(
        name, (f"{name}_x",), 0.6, {"auc": 0.6, "loss": math.nan}, BY_CELL, told,
        math.nan if told is None else told.p, verdict, "because",
        importance={f"{name}_x": 0.01}, training_seconds=1.25, feature_bytes={f"{name}_x": 8000},
    )  # fmt: skip


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    results = (
        variant("base", None, Verdict.BASE),
        variant("news", 0.05, Verdict.HELPS),
        variant(HARM, -0.03, Verdict.LEAKS),
        variant("thin", 0.0, Verdict.UNDECIDED),
    )
    scores = {one.name: 0.5 for one in results}
    periods = (
        Period(0, "2024-01-01T00:00:00", "2024-02-01T00:00:00", scores),
        Period(1, "2024-02-01T00:00:00", "2024-03-01T00:00:00", {**scores, "news": math.nan}),
    )
    config = {"data": {"table": HARM}, "split": {"kind": "time"}}
    made = Comparison(
        tmp_path, config, "7-abc", "binary", "auc", 2, 1, results, periods, {"z": HARM}
    )
    made.save()
    return made


@pytest.mark.parametrize("device", [{}, {**PHONE, "color_scheme": "dark"}], ids=["desk", "phone"])
def test_a_comparison_is_looked_at_in_a_browser(
    look: Callable[..., Any], found: Comparison, tmp_path: Path, device: Any
) -> None:
    path = report(tmp_path, tmp_path / "found.html")
    with look(path, **device) as seen:
        assert seen.text("h1") == "Did the feature help?"
        names = seen.page.locator("tr.opens td:first-child").all_inner_texts()
        assert [one.strip() for one in names] == ["base", "news", HARM, "thin"]
        seen.page.get_by_label("Search variants").fill("helps")
        assert seen.count("tr.opens") == 1
        seen.page.locator("tr.opens button").click()
        detail = seen.page.locator("tr.detail").inner_text()
        for words in ("helps: because", "fold 1, seed 0", "news_x", "7.8 KiB"):
            assert words in detail
        # Intervals of those that have one: to the right of the middle is better.
        bars = seen.page.locator("section:has(h2:text('Difference')) svg")
        assert bars.count() == 2
        assert "+0.05, +0.03 to +0.07" in bars.first.get_attribute("aria-label")
        assert seen.count("svg.lines") == 1
        assert HARM in seen.page.locator("section").last.inner_text()
        assert seen.count("img") == 0
        assert seen.overflow() == 0


def test_nothing_may_be_there_to_draw(look: Callable[..., Any], tmp_path: Path) -> None:
    results = (variant("base", None, Verdict.BASE), variant("thin", 0.0, Verdict.UNDECIDED))
    Comparison(tmp_path, {}, "7-abc", "binary", "auc", 1, 1, results).save()
    with look(report(tmp_path, tmp_path / "found.html")) as seen:
        page = seen.page.locator("main").inner_text()
        assert "No variant has an interval." in page
        assert "The table has no time." in page


def test_the_command_writes_it(found: Comparison, tmp_path: Path) -> None:
    out = tmp_path / "found.html"
    done = CliRunner().invoke(main, ["report", str(tmp_path), "-o", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}\n")
    assert page_of(found).data["results"][1]["verdict"] == "helps"
    assert "Did the feature help?" in out.read_text("utf-8")
