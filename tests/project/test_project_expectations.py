"""Expectations in a project's file: shown by plan, stated by apply before anything is built."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

import featurestore as fs
from featurestore.cli import main
from featurestore.errors import InvalidInputError
from featurestore.testing.tables import observations

HEAD = """
import featurestore as fs
import narwhals as nw
rows = fs.Definitions('rows')
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    store = fs.FeatureStore.create(tmp_path / "golden", workers=1)
    rows = observations(60).sort("t", "k").with_columns(pl.col("x").fill_null(0.0))
    store.ingest("rows", rows, key="k", time="t", partition_bytes=2000)
    (tmp_path / "featurestore.toml").write_text(
        '[project]\nstore = "golden"\nfeatures = "features.py"\n'
    )
    paths = list(sys.path)
    yield tmp_path
    sys.path[:] = paths
    sys.modules.pop("features", None)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


def says(folder: Path, lines: str) -> None:
    (folder / "features.py").write_text(HEAD + lines)


def expected(folder: Path) -> tuple[Any, ...]:
    return fs.FeatureStore.open(folder / "golden").table("rows").expectations


def test_they_are_planned_stated_and_dropped(folder: Path) -> None:
    says(folder, "rows.expect(fs.ExpectNulls('x'), fs.ExpectRange('x', low=-9))")
    shown = run("plan")
    assert "+ rows expects ExpectNulls(column='x')" in shown.output
    assert "2 expectations to state" in shown.output
    assert run("apply", "--check").exit_code == 3
    assert run("apply", "--yes").exit_code == 0
    assert expected(folder) == (fs.ExpectNulls("x"), fs.ExpectRange("x", low=-9))
    assert run("apply", "--check").exit_code == 0
    says(folder, "rows.expect(fs.ExpectNulls('x'))")
    said = json.loads(run("plan", "--json").output)["expectations"]
    assert said == [{"table": "rows", "state": [], "drop": ["ExpectRange(column='x', low=-9)"]}]
    assert run("apply", "--yes").exit_code == 0
    assert expected(folder) == (fs.ExpectNulls("x"),)
    says(folder, "")  # nothing is said: they stay
    assert run("apply", "--check").exit_code == 0
    says(folder, "rows.expect()")
    assert run("apply", "--yes").exit_code == 0
    assert expected(folder) == ()


def test_a_new_feature_is_held_against_them(folder: Path) -> None:
    says(
        folder,
        "rows.add(fs.Expression(double=nw.col('x') * 2))\n"
        "rows.expect(fs.ExpectRange('double', low=100))",
    )
    refused = run("apply", "--yes")
    assert refused.exit_code == 1
    assert "values lie outside [100, ]" in refused.output
    store = fs.FeatureStore.open(folder / "golden")
    assert store.table("rows").status()["double"].missing > 0
    says(
        folder,
        "rows.add(fs.Expression(double=nw.col('x') * 2))\n"
        "rows.expect(fs.ExpectRange('double', low=-100))",
    )
    assert run("apply", "--yes").exit_code == 0
    assert store.table("rows").validate().ok


def test_drift_is_the_same_however_often_it_is_applied(folder: Path) -> None:
    says(folder, "rows.expect(fs.ExpectDrift('x', tag='silver'))")
    unknown = run("plan")
    assert unknown.exit_code == 1
    assert "silver" in unknown.output
    fs.FeatureStore.open(folder / "golden").tag("silver")
    assert run("apply", "--yes").exit_code == 0
    assert expected(folder)[0].edges
    assert run("apply", "--check").exit_code == 0


@pytest.mark.parametrize("line", ["rows.expect('x > 0')", "rows.expect(fs.ExpectNulls('nowhere'))"])
def test_mistakes_are_found_by_plan(folder: Path, line: str) -> None:
    says(folder, line)
    found = run("plan")
    assert found.exit_code == 1
    assert found.output.startswith("Error: ")


def test_definitions_refuse_what_is_no_expectation() -> None:
    rows = fs.Definitions("rows")
    assert rows.expectations is None
    with pytest.raises(InvalidInputError, match="no expectation"):
        rows.expect(3)  # type: ignore[arg-type]
    assert rows.expectations is None
